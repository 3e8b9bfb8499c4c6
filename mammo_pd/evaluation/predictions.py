"""The table of predictions: a CSV or a frame goes in, a checked frame comes out.

Columns: ``image_id, patient_id, label, score``; optionally ``exam_id, laterality, view``, and
``split`` or ``fold``; any other column can serve as a stratum.
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
        InputError: the file is missing, is not a CSV, or its content fails a check.
    """
    try:
        # Identifiers stay text: 007 is not 7, and "NA" may be a patient.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise InputError(
            f"There is no predictions file at {path}: name a CSV with the columns "
            f"{', '.join(REQUIRED)}."
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as CSV ({error}): save it as comma-separated UTF-8 with a "
            "header line."
        ) from error
    return check_predictions(table, source=str(path))


def check_predictions(table: pd.DataFrame, *, source: str = "the predictions") -> pd.DataFrame:
    """Check a table of predictions and normalise its columns.

    Args:
        table: one row per image, with at least ``image_id, patient_id, label, score``.
        source: how to refer to the table in error messages.

    Returns:
        A new frame, rows in the order given: ``image_id, patient_id, exam_id, laterality, view``
        (text, missing as NaN; laterality L or R), ``label`` (float64: 0, 1, or NaN where the truth
        is unknown), ``score`` (float64 in [0, 1]), then all other columns unchanged.

    Raises:
        InputError: a column is missing, an image is repeated, an image or patient is unnamed, a
            label is not 0 or 1, or a score is missing or not a probability.
    """
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing:
        raise InputError(
            f"{source} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} (found: "
            f"{', '.join(map(str, table.columns))}): rename a column or add what is missing."
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
                f"{source} has {_rows(unnamed)} without {name}, which is needed to tell rows apart "
                "and to resample by patient: fill it in (any stable code will do)."
            )
    twice = checked["image_id"].duplicated().to_numpy()
    if twice.any():
        raise InputError(
            f"{source} has the same image_id more than once ({_rows(twice)} repeating an earlier "
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
    # "NA" is a legitimate identifier; only an empty one is missing.
    return text.where(known & (text != ""), None)


def _laterality(text: pd.Series, source: str) -> pd.Series:
    upper = text.str.upper()
    unknown = (text.notna() & ~upper.isin(list(_LATERALITY))).to_numpy()
    if unknown.any():
        given = text[unknown].iloc[0]
        raise InputError(
            f"{source} has {_rows(unknown)} whose laterality is neither L nor R (such as "
            f"{given!r}): write L or R, or leave it empty where unknown."
        )
    return upper.map(_LATERALITY).astype("str")


def _numbers(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The column as float64, NaN where it is not a number; and which rows are not even empty."""
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
            "write 1 for positive, 0 for negative, and nothing where the truth is unknown."
        )
    if np.isnan(numbers).all():
        raise InputError(
            f"{source} has no label in any row, so the scores cannot be evaluated: fill in the "
            "column label (1 or 0)."
        )
    return numbers


def _scores(column: pd.Series, source: str) -> np.ndarray:
    numbers, not_numbers = _numbers(column)
    if not_numbers.any():
        given = column.iloc[int(np.flatnonzero(not_numbers)[0])]
        raise InputError(
            f"{source} has {_rows(not_numbers)} whose score is not a number (such as {given!r}): "
            "write the predicted probability with a decimal point."
        )
    absent = np.isnan(numbers)
    if absent.any():
        raise InputError(
            f"{source} has {_rows(absent)} without a score (empty or NaN); an image that the model "
            "could not score must not silently drop out of the results: score it, or remove the "
            "row and report it as excluded."
        )
    outside = (numbers < 0.0) | (numbers > 1.0)
    if outside.any():
        raise InputError(
            f"{source} has {_rows(outside)} whose score lies outside [0, 1] (range "
            f"{numbers.min():.4g} to {numbers.max():.4g}); these look like logits, not "
            "probabilities: apply the sigmoid first, score = 1 / (1 + exp(-logit))."
        )
    return numbers
