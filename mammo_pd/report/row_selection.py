"""Which rows of a table are evaluated, and on which thresholds may be chosen."""

import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.quoting import such_as
from mammo_pd.terms import Split
from mammo_pd.wording import counted


def select_rows(
    table: pd.DataFrame, validation: pd.DataFrame | None
) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """The rows to evaluate, those to choose thresholds on, the number of training rows.

    Rows come out by ``image_id``: whatever breaks a tie or adds up further on must not depend on
    the order in which a table happens to be written.

    Raises:
        InputError: a foreign value in ``split``, training rows only, a patient on two sides (to
            evaluate, to choose thresholds on, to train on), or one in several folds, or rows to
            evaluate of which some alone have a fold.
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
        _refuse_some_without_fold(evaluated)
        _refuse_several_folds(evaluated)
    return by_image(evaluated), by_image(chosen_on), len(trained_on)


def _refuse_shared(some: pd.DataFrame, others: pd.DataFrame, what: str) -> None:
    """Refuse patients who have rows among both."""
    both = set(some["patient_id"]) & set(others["patient_id"]) if len(some) else set()
    if both:
        raise InputError(
            f"{counted(len(both), 'patient is', 'patients are')} {what}, which makes the results "
            "optimistic: split by patient, with all images of a patient on one side."
        )


def _refuse_some_without_fold(rows: pd.DataFrame) -> None:
    """Refuse rows of which nobody says what model scored them, beside rows of which a fold does.

    Without the fold of all, none could be compared within folds, and nothing would tell of it.
    """
    unknown = int(rows["fold"].isna().sum())
    if 0 < unknown < len(rows):
        raise InputError(
            f"{counted(unknown, 'row has', 'rows have')} no fold and {len(rows) - unknown:,} "
            f"{'has' if len(rows) - unknown == 1 else 'have'} one, so which model scored what is "
            "not known: fill in the column fold, or leave it out if one model scored all rows."
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


def are_validation(evaluated: pd.DataFrame) -> bool:
    """Whether the rows that ``select_rows`` evaluates are the part ``val``, for want of a test."""
    if "split" not in evaluated.columns:
        return False
    return bool((evaluated["split"].map(_part) == Split.VAL).all())


def _part(split: object) -> str:
    return str(split).strip().lower()


def by_image(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows in the order of ``image_id``."""
    if rows["image_id"].is_monotonic_increasing:
        return rows.reset_index(drop=True)
    return rows.sort_values("image_id", ignore_index=True)


def every_row(
    table: pd.DataFrame, validation: pd.DataFrame | None, chosen_on: pd.DataFrame
) -> pd.DataFrame:
    """Every row given, such that evaluating them again gives the same report."""
    if validation is None:
        return table
    rows = table if "split" in table.columns else table.assign(split=Split.TEST.value)
    # The rows given as validation take the place of the table's own.
    rows = rows[rows["split"] != Split.VAL.value]
    return pd.concat([rows, chosen_on.assign(split=Split.VAL.value)], ignore_index=True)
