"""Who was examined: rows go in, the flow of images and the characteristics by part come out."""

from dataclasses import replace

import pandas as pd

from mammo_pd.evaluation.characteristics import describe_parts
from mammo_pd.evaluation.levels import units_of
from mammo_pd.evaluation.measures import Row
from mammo_pd.report.content import ReportContext
from mammo_pd.terms import Level, Split


def with_participants(
    context: ReportContext, table: pd.DataFrame, evaluated: pd.DataFrame, chosen_on: pd.DataFrame
) -> ReportContext:
    """The context with the flow and characteristics of the rows, where it has none of its own."""
    whole = table
    if len(chosen_on) and not chosen_on["image_id"].isin(table["image_id"]).all():
        whole = pd.concat([table, chosen_on]).drop_duplicates("image_id", ignore_index=True)
    tested = Split.VAL if context.split_part == Split.VAL else Split.TEST
    # Looking up hundreds of thousands of names takes memory, so only where rows differ.
    if len(evaluated) == len(whole):
        part = pd.Series(tested.value, index=whole.index, dtype=object)
    else:
        part = pd.Series(Split.TRAIN.value, index=whole.index, dtype=object)
        part[whole["image_id"].isin(chosen_on["image_id"])] = Split.VAL.value
        part[whole["image_id"].isin(evaluated["image_id"])] = tested.value
    names = [name.value for name in Split if (part == name.value).any()]
    if not context.flow:
        exam = pd.Series(units_of(whole, Level.EXAM))

        def counted(step: str, rows: "pd.Series[bool]") -> Row:
            return {
                "step": step,
                "reason": None,
                "patients": int(whole["patient_id"][rows].nunique()),
                "exams": int(exam[rows].nunique()),
                "images": int(rows.sum()),
                "unlabelled": int(whole["label"][rows].isna().sum()),
                "positives": int(whole["label"][rows].sum()),
            }

        steps = [counted(name, part == name) for name in names]
        given = steps[0] | {"step": "given"}
        if len(steps) > 1:
            given = counted("given", part.notna())
        context = replace(context, flow=[given, *steps], tested=[tested.value])
    if not context.characteristics:
        rows = describe_parts(whole, part, names)
        context = replace(context, characteristics=rows)
    return context
