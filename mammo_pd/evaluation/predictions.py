"""The table of predictions: a CSV or a frame goes in, a checked frame comes out.

Columns: ``image_id, patient_id, label, score``; ``exam_id, laterality, view`` where known;
``split`` or ``fold`` where there is one; any further column can be a stratum.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.terms import Laterality

REQUIRED = ("image_id", "patient_id", "label", "score")
OPTIONAL = ("exam_id", "laterality", "view")

# Image Laterality (0020,0062) as DICOM and as people write it; U and B name no single breast.
_LATERALITY = {
    "L": Laterality.LEFT.value,
    "LEFT": Laterality.LEFT.value,
    "R": Laterality.RIGHT.value,
    "RIGHT": Laterality.RIGHT.value,
    "U": None,
    "B": None,
}
_NO_VALUE = ("", "nan", "NaN", "NA", "None", "null", "<NA>")


def read_predictions(path: Path) -> pd.DataFrame:
    """Read and check a CSV of predictions, as ``check_predictions`` does.

    Raises:
        InputError: the file is absent, is no CSV, or its content fails a check.
    """
    try:
        # Identifiers stay text: 007 is not 7, and "NA" can be a patient.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise InputError(
            f"There is no predictions file at {path}: give the path of a CSV with the columns "
            f"{', '.join(REQUIRED)}."
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as CSV ({error}): write it as UTF-8, separated by commas, with "
            "a header line."
        ) from error
    return check_predictions(table, source=str(path))


def check_predictions(table: pd.DataFrame, *, source: str = "the predictions") -> pd.DataFrame:
    """Check a table of predictions and bring its columns to one form.

    Args:
        table: one row per image, with at least ``image_id, patient_id, label, score``.
        source: what to call the table in an error.

    Returns:
        A new frame, rows in the order given: ``image_id, patient_id, exam_id, laterality, view``
        (text, missing as NaN; laterality L or R), ``label`` (float64: 0, 1, or NaN where the truth
        is unknown), ``score`` (float64 in [0, 1]), then every other column as it came.

    Raises:
        InputError: a column is missing, an image stands there twice, a patient is unnamed, a label
            is not 0 or 1, or a score is missing or not a probability.
    """
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing:
        raise InputError(
            f"{source} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} (found: "
            f"{', '.join(map(str, table.columns))}): rename or add what is missing."
        )
    if table.empty:
        raise InputError(f"{source} has no rows: there is nothing to evaluate.")

    checked = pd.DataFrame(index=pd.RangeIndex(len(table)))
    for name in ("image_id", "patient_id", "exam_id", "view"):
        checked[name] = _text(table, name)
    for name in ("image_id", "patient_id"):
        unnamed = checked[name].isna().to_numpy()
        if unnamed.any():
            raise InputError(
                f"{source} has {_rows(unnamed)} without {name}: without it rows cannot be told "
                "apart or resampled by patient; fill it in (any code that is stable will do)."
            )
    twice = checked["image_id"].duplicated().to_numpy()
    if twice.any():
        raise InputError(
            f"{source} names the same image_id more than once ({_rows(twice)} repeat an earlier "
            "one), which would count images twice: keep one row per image."
        )
    checked.insert(3, "laterality", _laterality(_text(table, "laterality"), source))
    checked["label"] = _labels(table["label"], source)
    checked["score"] = _scores(table["score"], source)
    for name in table.columns:
        if name not in checked.columns:
            checked[str(name)] = table[name].to_numpy()
    return checked


def _rows(at_fault: np.ndarray) -> str:
    """``3 rows (the first is row 7)``; row 1 is the first below the header."""
    count = int(at_fault.sum())
    first = int(np.flatnonzero(at_fault)[0]) + 1
    return f"1 row (row {first})" if count == 1 else f"{count:,} rows (the first is row {first})"


def _text(table: pd.DataFrame, name: str) -> pd.Series:
    if name not in table.columns:
        return pd.Series([None] * len(table), dtype="str")
    column = table[name].reset_index(drop=True)
    known = column.notna()
    text = column.astype("str").str.strip()
    # An identifier may well read "NA"; only an empty one is missing.
    return text.where(known & (text != ""), None)


def _laterality(text: pd.Series, source: str) -> pd.Series:
    upper = text.str.upper()
    unknown = (text.notna() & ~upper.isin(list(_LATERALITY))).to_numpy()
    if unknown.any():
        given = text[unknown].iloc[0]
        raise InputError(
            f"{source} has {_rows(unknown)} whose laterality is neither L nor R (such as "
            f"{given!r}): write L or R, or leave it empty where it is not known."
        )
    return upper.map(_LATERALITY).astype("str")


def _numbers(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The column as float64, NaN where it is no number; and which rows hold something else."""
    column = column.reset_index(drop=True)
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    empty = (column.isna() | column.astype("str").str.strip().isin(_NO_VALUE)).to_numpy()
    return numbers, np.isnan(numbers) & ~empty


def _labels(column: pd.Series, source: str) -> np.ndarray:
    numbers, not_numbers = _numbers(column)
    wrong = not_numbers | ~(np.isnan(numbers) | np.isin(numbers, (0.0, 1.0)))
    if wrong.any():
        given = column.iloc[int(np.flatnonzero(wrong)[0])]
        raise InputError(
            f"{source} has {_rows(wrong)} whose label is neither 0 nor 1 (such as {given!r}): "
            "write 1 for a positive, 0 for a negative, nothing where the truth is unknown."
        )
    if np.isnan(numbers).all():
        raise InputError(
            f"{source} has no label in any row, so there is nothing to compare the scores with: "
            "fill in the column label (1 or 0)."
        )
    return numbers


def _scores(column: pd.Series, source: str) -> np.ndarray:
    numbers, not_numbers = _numbers(column)
    if not_numbers.any():
        given = column.iloc[int(np.flatnonzero(not_numbers)[0])]
        raise InputError(
            f"{source} has {_rows(not_numbers)} whose score is not a number (such as {given!r}): "
            "write the predicted probability, with a point as the decimal sign."
        )
    absent = np.isnan(numbers)
    if absent.any():
        raise InputError(
            f"{source} has {_rows(absent)} without a score (empty or NaN): an image that the model "
            "could not score must not vanish from the figures; score it, or take the row out and "
            "report it as excluded."
        )
    outside = (numbers < 0.0) | (numbers > 1.0)
    if outside.any():
        raise InputError(
            f"{source} has {_rows(outside)} whose score lies outside [0, 1] (from "
            f"{numbers.min():.4g} to {numbers.max():.4g}): these look like logits, not "
            "probabilities; put them through the sigmoid first, score = 1 / (1 + exp(-logit))."
        )
    return numbers
