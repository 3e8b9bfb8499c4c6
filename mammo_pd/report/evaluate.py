"""Evaluation: tables of predictions go in, a report folder comes out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from mammo_pd.errors import InputError
from mammo_pd.evaluation.characteristics import describe_parts
from mammo_pd.evaluation.compare import compare, folds_of_tables, on_the_same_images
from mammo_pd.evaluation.cutoffs import (
    FIXED_RULE,
    Cutoff,
    cross_fitted,
    folds_of_patients,
    operating_points,
    validated_by_fold,
)
from mammo_pd.evaluation.decision_curve import decision_curve
from mammo_pd.evaluation.levels import (
    Aggregation,
    aggregate,
    count_units,
    units_of,
    with_known_label,
)
from mammo_pd.evaluation.locked import Locked
from mammo_pd.evaluation.measures import (
    LevelResults,
    Row,
    assess,
    auc_with_interval,
)
from mammo_pd.evaluation.predictions import check_predictions, read_predictions
from mammo_pd.evaluation.prevalence import prevalence_by_level
from mammo_pd.evaluation.screening import per_thousand
from mammo_pd.evaluation.strata import found_by_lesion, known_strata, stratify
from mammo_pd.evaluation.threshold_sweep import sweep_thresholds
from mammo_pd.evaluation.thresholds import MISS_COST, Reader, Threshold, choose_thresholds
from mammo_pd.evaluation.within import IDENTITIES, OUTCOME, within_folds, within_strata
from mammo_pd.quoting import such_as
from mammo_pd.report.content import (
    HEADLINE,
    Comparison,
    Computation,
    Programme,
    Report,
    ReportContext,
)
from mammo_pd.report.folder import write_comparison, write_report
from mammo_pd.report.notes import data_notes, margin_verdicts, remarks_with_levels
from mammo_pd.report.numbers import between, fixed, significance, with_interval
from mammo_pd.terms import Level, Split
from mammo_pd.wording import counted

# Exams listed of each kind of error: as many as a reader will look at.
WORST = 8
_VALIDATION = (
    "These are validation images, on which a model's epoch and settings are chosen: the results "
    "are optimistic, and no test. There are no test rows (split = test)."
)


def evaluate_file(
    path: Path,
    out: Path,
    *,
    context: ReportContext | None = None,
    aggregation: str = Aggregation.MEAN,
    prevalence: float | None = None,
    prevalence_level: str = Level.EXAM,
    miss_cost: float = MISS_COST,
    reader: Reader | None = None,
    stratify_by: Sequence[str] | None = None,
    within: Sequence[str] = (),
) -> dict[str, object]:
    """Write the report on a CSV of predictions from any tool.

    Arguments, result and errors are those of ``evaluate_predictions``.
    """
    return evaluate_predictions(
        read_predictions(path),
        out,
        context=ReportContext() if context is None else context,
        aggregation=aggregation,
        prevalence=prevalence,
        prevalence_level=prevalence_level,
        miss_cost=miss_cost,
        reader=reader,
        stratify_by=stratify_by,
        within=within,
    )


def evaluate_predictions(
    predictions: pd.DataFrame,
    out: Path,
    *,
    context: ReportContext,
    validation: pd.DataFrame | None = None,
    validation_by_fold: Mapping[str, pd.DataFrame] | None = None,
    aggregation: str = Aggregation.MEAN,
    prevalence: float | None = None,
    prevalence_level: str = Level.EXAM,
    miss_cost: float = MISS_COST,
    reader: Reader | None = None,
    stratify_by: Sequence[str] | None = None,
    within: Sequence[str] = (),
    thumbnail: Callable[[str], Sequence[bytes]] | None = None,
    locked: Locked | None = None,
) -> dict[str, object]:
    """Write the report on a table of predictions.

    If the table has a column ``split``, the rows ``test`` are evaluated (the rows ``val`` if there
    are none), thresholds are chosen on the rows ``val``, and the rows ``train`` are excluded. If it
    has a column ``fold``, the scores are out-of-fold and are evaluated pooled, within folds and per
    fold; without validation rows the thresholds of each fold are chosen on the other folds.

    Args:
        predictions: one row per image, checked by ``check_predictions``.
        out: the report's folder; an older report there is replaced.
        context: what the reader needs to know besides.
        validation: the rows to choose thresholds on, if they are not in the table.
        validation_by_fold: of out-of-fold predictions, by fold the rows to choose its thresholds
            on: validation images, scored by the model that the fold tests. They take the other
            folds' place, unless a fold has one class only at some level.
        aggregation: ``mean``, ``max`` or ``noisy_or``: how the scores of a breast's, exam's or
            patient's images are aggregated.
        prevalence: share of positives in the intended use.
        prevalence_level: the level that it is a share of; the others follow.
        miss_cost: cost of a missed positive in false alarms, for the cost threshold.
        reader: radiologists to compare the exam level with.
        stratify_by: columns; those of ``known_strata`` when None.
        within: columns that a positive and the negatives it is compared with must share, for the
            AUC within strata; none for no such AUC.
        thumbnail: returns a PNG of the image with this ``image_id`` and, where there is one, a
            second with what the model attended to drawn in; nothing where there is no picture.
            Called for the images of the listed exams only.
        locked: thresholds that were decided on another set; none are chosen here.

    Returns:
        The content of ``metrics.json``.

    Raises:
        InputError: the table fails a check, a patient is on two sides of its split (or both
            evaluated and used to choose thresholds) or in several of its folds, or
            ``validation_by_fold`` has other folds than the table.
    """
    aggregated_by = check_choices(
        aggregation=aggregation,
        prevalence=prevalence,
        prevalence_level=prevalence_level,
        miss_cost=miss_cost,
        reader=reader,
        within=within,
    )
    # In the order that the rows are evaluated in, so that they are in memory once.
    table = _by_image(check_predictions(predictions))
    del predictions
    evaluated, chosen_on, training_rows = select_rows(
        table,
        None if validation is None else check_predictions(validation, source="the validation rows"),
    )
    of_validation = chosen_on
    if locked is not None:
        chosen_on = chosen_on[:0]
    if evaluated["label"].isna().all():
        raise InputError(
            "None of the rows to evaluate has a label: fill in the column label (1 or 0), or "
            "choose rows that have one."
        )
    counts = {
        "training_images_left_out": training_rows,
        **count_units(evaluated),
    }

    units = {
        level: aggregate(with_known_label(evaluated, level), level, aggregated_by)
        for level in Level
    }
    _return_freed_memory()
    intended: dict[Level, float] = {}
    if prevalence is not None:
        intended = prevalence_by_level(units, prevalence, Level(prevalence_level))
    fold_of = None
    if "fold" in evaluated.columns and not len(chosen_on) and locked is None:
        fold_of = folds_of_patients(evaluated)
    by_fold = {}
    if fold_of is not None and validation_by_fold is not None:
        by_fold = _units_by_fold(validation_by_fold, fold_of, aggregated_by)
    results: dict[Level, LevelResults] = {}
    cutoffs: dict[Level, list[Cutoff]] = {}
    for level, rows in units.items():
        thresholds: list[Threshold] = [] if locked is None else list(locked.thresholds[level])
        if len(chosen_on):
            # Per level: an exam's mean score is distributed differently from its images' scores.
            validated = aggregate(with_known_label(chosen_on, level), level, aggregated_by)
            thresholds = choose_thresholds(
                validated["label"],
                validated["score"],
                miss_cost=miss_cost,
                prevalence=intended.get(level),
            )
        results[level] = assess(
            rows,
            thresholds=thresholds,
            prevalence=intended.get(level),
            reader=reader if level is Level.EXAM else None,
        )
        cutoffs[level] = [Cutoff.of(threshold) for threshold in thresholds]
        if fold_of is not None and results[level].roc is not None:
            rule: dict[str, Any] = {"miss_cost": miss_cost, "prevalence": intended.get(level)}
            cutoffs[level] = (
                validated_by_fold(by_fold[level], fold_of, **rule)
                if by_fold
                else cross_fitted(rows, fold_of, **rule)
            )
            points = operating_points(rows, cutoffs[level], intended.get(level))
            results[level] = replace(results[level], operating_points=points)
    caveats = list(context.caveats)
    if "split" in evaluated.columns and (evaluated["split"].map(_part) == Split.VAL).all():
        context = replace(context, split_part=Split.VAL.value)
        caveats.insert(0, _VALIDATION)
    for level_results in results.values():
        level_results.remarks[:0] = caveats
    columns = known_strata(evaluated) if stratify_by is None else list(stratify_by)
    if context.created is None:
        context = dated(context)
    context = _with_participants(context, table, evaluated, of_validation)
    fixed = {
        level: cutoff
        for level, of_level in cutoffs.items()
        for cutoff in of_level
        if cutoff.code == FIXED_RULE
    }
    errors = _worst(evaluated, units[HEADLINE], fixed.get(HEADLINE))
    report = Report(
        context=context,
        computation=Computation(
            aggregated_by,
            prevalence,
            intended,
            miss_cost,
            _images_chosen_on(chosen_on, locked, validation_by_fold if by_fold else None),
            reader,
            locked=None if locked is None else locked.digest,
            cross_fitted=fold_of is not None and not by_fold and any(cutoffs.values()),
            by_fold=bool(by_fold),
        ),
        counts=counts,
        levels=results,
        units=units,
        predictions=_all_rows(table, validation, chosen_on),
        within=within_strata(evaluated, within, aggregation=aggregated_by) if within else (),
        strata=stratify(
            evaluated,
            columns,
            aggregation=aggregated_by,
            # Of all levels or of none: one may lack a class among the validation images.
            cutoffs=fixed if len(fixed) == len(Level) else None,
        ),
        programme=_programme(
            results[HEADLINE],
            units[HEADLINE],
            cutoffs[HEADLINE],
            None
            if HEADLINE not in fixed
            else found_by_lesion(
                evaluated, level=HEADLINE, aggregation=aggregated_by, cutoff=fixed[HEADLINE]
            ),
            prevalence=intended.get(HEADLINE),
            reader=reader,
        ),
        folds=_folds(evaluated, aggregated_by),
        within_folds=within_folds(evaluated, aggregation=aggregated_by),
        validation=_joined(validation_by_fold) if by_fold and validation_by_fold else None,
        errors=errors,
        thumbnails={} if thumbnail is None else _thumbnails(errors, thumbnail),
    )
    _return_freed_memory()
    return write_report(report, out)


def _return_freed_memory() -> None:
    """Give the system back what columns took that are gone; allocators keep it for later ones."""
    # The first holds text, the second is the C library's, which also serves NumPy.
    for pool in (pa.default_memory_pool(), pa.system_memory_pool()):
        pool.release_unused()


def compare_predictions(
    tables: Mapping[str, pd.DataFrame],
    out: Path,
    *,
    context: ReportContext,
    intersect: bool = False,
    aggregation: str = Aggregation.MEAN,
    margin: float | None = None,
) -> dict[str, object]:
    """Write the comparison of two or more models on the same images.

    Rows are chosen by the column ``split``, if any, as in ``evaluate_predictions``.

    Args:
        tables: by the model's name, one row per image, as for ``evaluate_predictions``.
        out: the folder; an older report there is replaced.
        context: what the reader needs to know besides.
        intersect: where the images differ, compare on those that are in every table.
        aggregation: ``mean``, ``max`` or ``noisy_or``.
        margin: how much smaller an AUC may be and still count as not worse; None not to ask.

    Returns:
        The content of ``metrics.json``.

    Raises:
        InputError: a table fails a check, or the tables are on different images.
    """
    aggregated_by = check_choices(aggregation=aggregation, margin=margin)
    evaluated = {}
    for name, table in tables.items():
        checked = check_predictions(table, source=f"the predictions of {name}")
        rows, _, _ = select_rows(checked, None)
        evaluated[name] = rows
    aligned, left_out = on_the_same_images(evaluated, intersect=intersect)
    alone, paired = compare(aligned, aggregation=aggregated_by, margin=margin)
    units = {
        name: {
            level: aggregate(with_known_label(table, level), level, aggregated_by)
            for level in Level
        }
        for name, table in aligned.items()
    }
    if context.created is None:
        context = dated(context)
    return write_comparison(
        Comparison(
            context,
            aggregated_by,
            left_out,
            alone,
            paired,
            units,
            margin,
            within_folds=bool(folds_of_tables(aligned)),
        ),
        out,
    )


def difference_table(metrics: Mapping[str, object]) -> str:
    """A few lines for the terminal: level, models, difference with its interval, p; caveats."""
    rows, alone, how = metrics["paired"], metrics["alone"], metrics["computation"]
    assert isinstance(rows, Sequence)
    assert isinstance(alone, Sequence)
    assert isinstance(how, Mapping)
    several = len({(row["first"], row["second"]) for row in rows}) > 1
    adjusted = ", and adjusted for all pairs (Holm)" if several else ""
    measure = "difference in AUC" + (" within folds" if how["within_folds"] else "")
    lines = [f"{'level':<8} {measure} [95 % interval], p; both by patient{adjusted}"]
    for row in rows:
        difference = fixed(row["difference"], sign="+")
        interval = between(row, "difference_ci", sign="+")
        p = "   p " + significance(row["p"])
        if several:
            p += f" (Holm {significance(row['p_holm'])})"
        shown = " ".join(filter(None, [difference, interval]))
        lines.append(f"{row['level']:<8} {row['first']} − {row['second']}: {shown}{p}")
    lines += [f"note: {verdict}" for verdict in margin_verdicts(rows, how["margin"])]
    remarks: dict[str, list[str]] = {}
    for row in alone:
        if row["remark"] is not None:
            remarks.setdefault(f"{row['level']} level, {row['model']}", []).append(row["remark"])
    for remark, where in remarks_with_levels(remarks).items():
        lines.append(f"note: {remark} ({'; '.join(where)})")
    return "\n".join(lines)


def summary_table(metrics: Mapping[str, object]) -> str:
    """A few lines for the terminal: by level units, positives and AUC with interval; caveats."""
    lines = [f"{'level':<8} {'n':>9} {'positive':>9}   AUC [95 % interval, by patient]"]
    remarks, counts = {}, metrics["counts"]
    assert isinstance(counts, Mapping)
    for level in Level:
        results = metrics[level]
        assert isinstance(results, Mapping)
        shown = with_interval(results)
        lines.append(f"{level:<8} {results['n']:>9,} {results['n_positive']:>9,}   {shown}")
        remarks[level.value] = results["remarks"]
    lines += _within_lines(metrics["within_folds"])
    lines += _within_lines(metrics["within"])
    lines += [f"note: {note}" for note in data_notes(counts)]
    for remark, levels in remarks_with_levels(remarks).items():
        lines.append(f"note: {remark} ({', '.join(levels)} level)")
    return "\n".join(lines)


def _within_lines(rows: object) -> list[str]:
    """The AUC within strata as ``summary_table`` shows that of all; nothing without rows."""
    assert isinstance(rows, Sequence)
    lines, remarks = [], {}
    for row in rows:
        units = f"{row['n']:>9,} {row['n_positive']:>9,}"
        lines.append(f"{row['level']:<8} {units}   {with_interval(row)}")
        remarks[row["level"]] = [] if row["remark"] is None else [row["remark"]]
    if lines:
        columns = rows[0]["columns"].replace(", ", " and ")
        if columns == "fold":
            columns += " (one model's scores)"
        lines.insert(0, f"compared only with negatives of the same {columns}:")
    for remark, levels in remarks_with_levels(remarks).items():
        lines.append(f"note: {remark} ({', '.join(levels)} level)")
    return lines


def check_choices(
    *,
    aggregation: str = Aggregation.MEAN,
    prevalence: float | None = None,
    prevalence_level: str = Level.EXAM,
    miss_cost: float = MISS_COST,
    reader: Reader | None = None,
    margin: float | None = None,
    within: Sequence[str] = (),
) -> Aggregation:
    """Check the options of a report, before hours are spent on scoring.

    Returns:
        The aggregation.

    Raises:
        InputError: an option is out of range.
    """
    try:
        aggregated_by = Aggregation(aggregation)
    except ValueError:
        raise InputError(
            f"There is no aggregation {aggregation!r}: choose one of {', '.join(Aggregation)}."
        ) from None
    if prevalence is not None and not 0.0 < prevalence < 1.0:
        raise InputError(
            f"A prevalence of {prevalence:g} is not a share: use a number between 0 and 1, such as "
            "0.006."
        )
    if prevalence_level not in list(Level):
        raise InputError(
            f"There is no level {prevalence_level!r} for a prevalence to be a share of: choose one "
            f"of {', '.join(Level)}."
        )
    if not 0.0 < miss_cost < inf:
        raise InputError(
            f"A miss cannot cost {miss_cost:g} false alarms: use a number above 0, such as 10. "
            "Whoever accepts any number of false alarms needs no threshold, but flags everyone."
        )
    if margin is not None and not 0.0 < margin < 0.5:
        raise InputError(
            f"A margin of {margin:g} is no difference in AUC that could still count as not worse: "
            "use a number above 0 and below 0.5, such as 0.02."
        )
    if reader is not None:
        for name, rate in asdict(reader).items():
            if not 0.0 < rate <= 1.0:
                raise InputError(
                    f"The radiologists' {name} of {rate:g} is not a share: use a number above 0 "
                    "and at most 1."
                )
    outcome = [name for name in within if name in OUTCOME]
    if outcome:
        raise InputError(
            f"The column {outcome[0]} is what an AUC is made of: compare within columns that "
            "describe an image or a woman, such as machine_id and age."
        )
    unshared = [name for name in within if name in IDENTITIES]
    if unshared:
        raise InputError(
            f"No two women share a value of {unshared[0]}, so within it there is no negative to "
            "compare a positive with: name columns that women share, such as machine_id and age."
        )
    return aggregated_by


def dated(context: ReportContext) -> ReportContext:
    """The same, created now."""
    return replace(context, created=datetime.now().astimezone().isoformat(timespec="seconds"))


def select_rows(
    table: pd.DataFrame, validation: pd.DataFrame | None
) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """The rows to evaluate, those to choose thresholds on, the number of training rows.

    Rows come out by ``image_id``: whatever breaks a tie or adds up further on must not depend on
    the order in which a table happens to be written.

    Raises:
        InputError: a foreign value in ``split``, training rows only, a patient on two sides (to
            evaluate, to choose thresholds on, to train on), or one in several folds.
    """
    evaluated = table
    chosen_on = trained_on = table.iloc[:0]
    if "split" in table.columns:
        split = table["split"].map(_part)
        foreign = ~split.isin(list(Split))
        if foreign.any():
            raise InputError(
                f"The column split of {counted(int(foreign.sum()), 'row')} is none of "
                f"{', '.join(Split)}{such_as(split[foreign])}: correct these rows, or leave the "
                "column out."
            )
        test, val = (split == Split.TEST).to_numpy(), (split == Split.VAL).to_numpy()
        if not (test | val).any():
            raise InputError(
                "All rows are training images, on which any model looks good: supply predictions "
                "for val or test."
            )
        chosen = test if test.any() else val
        evaluated = table if chosen.all() else table[chosen]
        # Without test rows the val rows are evaluated, and cannot serve to choose thresholds too.
        chosen_on = table[val] if test.any() else chosen_on
        trained_on = table[(split == Split.TRAIN).to_numpy()]
    if validation is not None:
        chosen_on = validation
    _refuse_shared(chosen_on, evaluated, "both evaluated and used to choose thresholds")
    _refuse_shared(trained_on, evaluated, "both evaluated and trained on")
    _refuse_shared(trained_on, chosen_on, "both trained on and used to choose thresholds")
    if "fold" in evaluated.columns:
        _refuse_several_folds(evaluated)
    return _by_image(evaluated), _by_image(chosen_on), len(trained_on)


def _refuse_shared(some: pd.DataFrame, others: pd.DataFrame, what: str) -> None:
    """Refuse patients who have rows among both."""
    both = set(some["patient_id"]) & set(others["patient_id"]) if len(some) else set()
    if both:
        raise InputError(
            f"{counted(len(both), 'patient is', 'patients are')} {what}, which makes the results "
            "optimistic: split by patient, with all images of a patient on one side."
        )


def _refuse_several_folds(rows: pd.DataFrame) -> None:
    """Refuse patients who were trained on by the model that scored another image of theirs."""
    of_patient = rows[["patient_id", "fold"]].drop_duplicates()["patient_id"]
    several = of_patient[of_patient.duplicated()].nunique()
    if several:
        raise InputError(
            f"{counted(several, 'patient is', 'patients are')} in more than one fold, so a model "
            "that was trained on some images of a patient scored others of the same patient, "
            "which makes the results optimistic: make folds by patient, or leave the column fold "
            "out if it does not say which model scored a row."
        )


def _part(split: object) -> str:
    return str(split).strip().lower()


def _by_image(rows: pd.DataFrame) -> pd.DataFrame:
    if rows["image_id"].is_monotonic_increasing:
        return rows.reset_index(drop=True)
    return rows.sort_values("image_id", ignore_index=True)


def _all_rows(
    table: pd.DataFrame, validation: pd.DataFrame | None, chosen_on: pd.DataFrame
) -> pd.DataFrame:
    """Every row given, such that evaluating them again gives the same report."""
    if validation is None:
        return table
    rows = table if "split" in table.columns else table.assign(split=Split.TEST.value)
    # The rows given as validation take the place of the table's own.
    rows = rows[rows["split"] != Split.VAL.value]
    return pd.concat([rows, chosen_on.assign(split=Split.VAL.value)], ignore_index=True)


def _units_by_fold(
    validation: Mapping[str, pd.DataFrame], fold_of: "pd.Series[str]", aggregation: Aggregation
) -> dict[Level, dict[str, pd.DataFrame]]:
    """The units to choose thresholds on, by level and fold; none where one has one class only.

    Raises:
        InputError: other folds than are tested, or a patient both validates and is tested by one
            model.
    """
    folds = sorted(fold_of.unique())
    if sorted(validation) != folds:
        raise InputError(
            f"The validation rows are of the folds {', '.join(sorted(validation))}, and the "
            f"predictions of {', '.join(folds)}: give both of every fold."
        )
    units: dict[Level, dict[str, pd.DataFrame]] = {level: {} for level in Level}
    for name, table in validation.items():
        checked = check_predictions(table, source=f"the validation rows of fold {name}")
        both = set(checked["patient_id"]) & set(fold_of.index[fold_of == name])
        if both:
            raise InputError(
                f"{counted(len(both), 'patient is', 'patients are')} both tested in fold {name} "
                "and used to choose its thresholds, which makes the results optimistic: split by "
                "patient."
            )
        for level in Level:
            units[level][name] = aggregate(with_known_label(checked, level), level, aggregation)
    # Without laterality there are no breasts, tested or not.
    there = [of_level.values() for of_level in units.values() if any(map(len, of_level.values()))]
    classes = [rows["label"].nunique() for of_level in there for rows in of_level]
    return units if classes and min(classes) == 2 else {}


def _images_chosen_on(
    chosen_on: pd.DataFrame,
    locked: Locked | None,
    by_fold: Mapping[str, pd.DataFrame] | None,
) -> int:
    """How many labelled images thresholds were chosen on."""
    if locked is not None:
        return locked.images
    if by_fold is not None:
        known = [rows.loc[rows["label"].notna(), "image_id"] for rows in by_fold.values()]
        return int(pd.concat(known).nunique())
    return int(chosen_on["label"].notna().sum())


def _joined(by_fold: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([rows.assign(fold=name) for name, rows in by_fold.items()], ignore_index=True)


def _folds(rows: pd.DataFrame, aggregation: Aggregation) -> list[Row]:
    """AUC by level and fold of out-of-fold predictions."""
    # A single fold would repeat the overall result.
    if "fold" not in rows.columns or rows["fold"].nunique() < 2:
        return []
    return [
        {
            "level": level.value,
            "fold": str(fold),
            **auc_with_interval(aggregate(with_known_label(within, level), level, aggregation)),
        }
        for level in Level
        for fold, within in rows.groupby("fold", sort=True)
    ]


def _with_participants(
    context: ReportContext, table: pd.DataFrame, evaluated: pd.DataFrame, chosen_on: pd.DataFrame
) -> ReportContext:
    """The flow and the characteristics of the rows given, where nobody told more of them."""
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


def _programme(
    results: LevelResults,
    units: pd.DataFrame,
    cutoffs: Sequence[Cutoff],
    lesions: Sequence[Row] | None,
    *,
    prevalence: float | None,
    reader: Reader | None,
) -> Programme | None:
    """What a screening programme reads; None where there is one class only."""
    if results.roc is None:
        return None
    own = float(units["label"].mean())
    share = own if prevalence is None else prevalence
    return Programme(
        prevalence=share,
        outcomes=per_thousand(
            results.operating_points, units, results.metrics, prevalence=share, reader=reader
        ),
        lesions=lesions or (),
        decision_curve=decision_curve(units, prevalence=prevalence, reader=reader),
        # Thresholds that differ between folds are no points of the pooled scores.
        sweep=sweep_thresholds(
            units, [cutoff.value for cutoff in cutoffs if cutoff.by_fold is None], prevalence
        ),
    )


def _thumbnails(
    errors: Sequence[Row], thumbnail: Callable[[str], Sequence[bytes]]
) -> dict[str, Sequence[bytes]]:
    found = ((str(row["image_id"]), thumbnail(str(row["image_id"]))) for row in errors)
    return {image_id: pictures for image_id, pictures in found if pictures}


def _worst(evaluated: pd.DataFrame, units: pd.DataFrame, cutoff: Cutoff | None) -> list[Row]:
    """All images of the exams that are decided wrongly and most clearly so.

    Args:
        evaluated: one row per image.
        units: of the headline level, with known label.
        cutoff: what is flagged; without one nothing is decided, and the highest-scored negatives
            and the lowest-scored positives are listed.
    """
    positive = units["label"].to_numpy() == 1
    if cutoff is None:
        kinds = {"high negative": ~positive, "low positive": positive}
        lowest = None
    else:
        flagged, lowest = cutoff.flags(units), cutoff.lowest(units)
        kinds = {"false alarm": ~positive & flagged, "miss": positive & ~flagged}
    of_image = with_known_label(evaluated, HEADLINE)
    unit = units_of(of_image, HEADLINE)
    rows: list[Row] = []
    for kind, chosen in kinds.items():
        # With thresholds of their own, folds are on scales of their own: by distance from it.
        clear = units["score"] if lowest is None else units["score"] - lowest
        order = (-clear if kind in ("false alarm", "high negative") else clear)[chosen]
        for place, index in enumerate(order.sort_values(kind="stable").index[:WORST], start=1):
            images = of_image[unit == index]
            images = images.sort_values(["laterality", "view", "image_id"], na_position="last")
            # None instead of NaN, for JSON and for the page's "or".
            known = images.astype(object).where(images.notna(), None)
            rows += [
                {
                    "kind": kind,
                    "place": place,
                    "exam_id": image["exam_id"],
                    "patient_id": image["patient_id"],
                    "exam_score": float(units["score"][index]),
                    "exam_threshold": None if lowest is None else float(lowest[index]),
                    **{name: image[name] for name in ("image_id", "laterality", "view")},
                    "image_label": image["label"],
                    "image_score": image["score"],
                }
                for image in known.to_dict("records")
            ]
    return rows
