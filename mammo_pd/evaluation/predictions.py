"""The table of predictions: a CSV or a frame goes in, a checked frame comes out.

Columns: ``image_id, patient_id, label, score``; optionally ``exam_id, laterality, view``, and
``split`` or ``fold``; any other column can serve as a stratum.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.evaluation.strata import KNOWN_COLUMNS
from mammo_pd.quoting import such_as
from mammo_pd.table_file import read_csv, unless_equal, with_formulas, with_known_names
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
_PARTS = ("split", "fold")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")
_PERCENT = re.compile(r"[+-]?[\d.,]+\s*%")
_BI_RADS = re.compile(r"(bi-?rads)?\s*[0-6]\s*[abc]?", re.IGNORECASE)
# A score further outside [0, 1] than this is not a rounding error.
_ROUNDING = 1e-3
# Larger than any logit; most percentages are larger still.
_CERTAINLY_PERCENT = 40.0
_NO_BI_RADS = (
    "BI-RADS categories are no probabilities; give the score of a model, or of each category the "
    "share of positives among earlier exams of that category."
)
_NO_VALUE = ("", "nan", "NaN", "NA", "None", "null", "<NA>")


def read_predictions(path: Path | str) -> pd.DataFrame:
    """Read and check a CSV of predictions, as ``check_predictions`` does.

    Raises:
        InputError: the file is missing, is not a CSV, has rows longer or shorter than its header,
            or its content fails a check.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"There is no predictions file at {path}: name a CSV with the columns "
            f"{', '.join(REQUIRED)}."
        )
    # Identifiers stay text: 007 is not 7, and "NA" may be a patient.
    table = with_formulas(read_csv(path, "the table of predictions", whole=True))
    named = with_known_names(table, (*REQUIRED, *OPTIONAL, *_PARTS, *KNOWN_COLUMNS), path)
    return check_predictions(named, source=str(path))


def check_predictions(table: pd.DataFrame, *, source: str = "the predictions") -> pd.DataFrame:
    """Check a table of predictions and normalise its columns.

    Args:
        table: one row per image, with at least ``image_id, patient_id, label, score``.
        source: how to refer to the table in error messages.

    Returns:
        A new frame, rows in the order given: ``image_id, patient_id, exam_id, laterality, view``
        (text, missing as NaN; laterality L or R, view in capitals), ``label`` (float64: 0, 1, or
        NaN where the truth is unknown), ``score`` (float64 in [0, 1]), then all other columns
        unchanged.

    Raises:
        InputError: a column is missing, an image is repeated, an image or patient is unnamed, a
            label is not 0 or 1, or a score is missing or not a probability.
    """
    twice_there = table.columns[table.columns.duplicated()]
    if len(twice_there):
        raise InputError(
            f"{source} has the column {twice_there[0]} more than once: rename or remove all but "
            "one of them."
        )
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
                "and to keep a patient's images together: fill it in (any stable code will do)."
            )
    twice = checked["image_id"].duplicated().to_numpy()
    if twice.any():
        raise InputError(
            f"{source} has the same image_id more than once ({_rows(twice)} repeating an earlier "
            "one), which would count images twice: keep one row per image."
        )
    checked["view"] = unless_equal(checked["view"], lambda views: views.str.upper())
    checked.insert(3, "laterality", _laterality(_text(table, "laterality"), source))
    checked["label"] = _labels(table["label"], source)
    checked["score"] = _scores(table["score"], source)
    for name in table.columns:
        if name not in checked.columns:
            checked[str(name)] = table[name].to_numpy()
    if "fold" in checked.columns:  # an empty cell of a CSV is not a fold
        blank = checked["fold"].astype("str").str.strip() == ""
        checked["fold"] = checked["fold"].mask(blank, np.nan) if blank.any() else checked["fold"]
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
    # Unicode writes accented letters in two ways: both spellings name the same patient.
    text = unless_equal(column.astype("str"), lambda cells: cells.str.strip().str.normalize("NFC"))
    # "NA" is a legitimate identifier; only an empty one is missing.
    there = known & (text != "")
    return text if there.all() else text.where(there, None)


def _laterality(text: pd.Series, source: str) -> pd.Series:
    upper = unless_equal(text, lambda sides: sides.str.upper())
    unknown = (text.notna() & ~upper.isin(list(_LATERALITY))).to_numpy()
    if unknown.any():
        raise InputError(
            f"{source} has {_rows(unknown)} whose laterality is neither L nor R"
            f"{such_as(text[unknown], 1)}: write L or R, or leave it empty where unknown."
        )
    return unless_equal(upper, lambda sides: sides.map(_LATERALITY).astype("str"))


def _numbers(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The column as float64, NaN where it is not a number; and which cells hold something else."""
    column = column.reset_index(drop=True)
    if not pd.api.types.is_numeric_dtype(column):
        # Many locales write 0,25; thousands separators are not expected here.
        column = column.map(
            lambda cell: (
                cell.replace(",", ".")
                if isinstance(cell, str) and _DECIMAL_COMMA.fullmatch(cell.strip())
                else cell
            )
        )
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    empty = (column.isna() | column.astype("str").str.strip().isin(_NO_VALUE)).to_numpy()
    return numbers, np.isnan(numbers) & ~empty


def _labels(column: pd.Series, source: str) -> np.ndarray:
    numbers, not_numbers = _numbers(column)
    wrong = not_numbers | ~(np.isnan(numbers) | np.isin(numbers, (0.0, 1.0)))
    if wrong.any():
        given = column.iloc[int(np.flatnonzero(wrong)[0])]
        raise InputError(
            f"{source} has {_rows(wrong)} whose label is neither 0 nor 1{such_as([given])}: "
            "write 1 for positive, 0 for negative, and nothing where the truth is unknown."
            + (
                " These look like BI-RADS categories, which are an impression and no label; use "
                "the outcome (biopsy or follow-up)."
                if _like_bi_rads(numbers) and not not_numbers.any()
                else ""
            )
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
        remedy = "write the predicted probability as a number in [0, 1]."
        if _PERCENT.fullmatch(str(given).strip()):
            remedy = "write percentages as fractions, 12 % as 0.12."
        elif _BI_RADS.fullmatch(str(given).strip()):
            remedy = _NO_BI_RADS
        raise InputError(
            f"{source} has {_rows(not_numbers)} whose score is not a number{such_as([given])}: "
            f"{remedy}"
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
            f"{numbers.min():.9g} to {numbers.max():.9g}): {_remedy_of_range(numbers)}"
        )
    return numbers


def _remedy_of_range(numbers: np.ndarray) -> str:
    """What scores that are not all in [0, 1] look like, and what to do about it."""
    low, high = float(numbers.min()), float(numbers.max())
    sigmoid = "apply the sigmoid first, score = 1 / (1 + exp(-logit))."
    if np.isinf(numbers).any():
        return (
            "an infinite score is a logarithm of 0 or an overflow, and cannot be ranked or "
            "calibrated; compute these scores again, with the sigmoid in double precision."
        )
    if low >= -_ROUNDING and high <= 1.0 + _ROUNDING:
        return "this is an error of rounding; set what is below 0 to 0 and what is above 1 to 1."
    if low < 0.0:
        return f"these look like logits, not probabilities; {sigmoid}"
    if _like_bi_rads(numbers):
        return f"these look like BI-RADS categories. {_NO_BI_RADS}"
    if high > 100.0:
        return "these are no probabilities; give the probability of a positive for each image."
    if high > _CERTAINLY_PERCENT:
        return "these look like percentages; divide them by 100."
    return f"if these are percentages, divide them by 100; if they are logits, {sigmoid}"


def _like_bi_rads(numbers: np.ndarray) -> bool:
    """Whether the numbers are whole, from 0 to 6, and of several categories above 1."""
    known = numbers[~np.isnan(numbers)]
    categories = np.unique(known[known > 1.0])
    return len(categories) > 1 and bool(np.isin(known, np.arange(7.0)).all())
