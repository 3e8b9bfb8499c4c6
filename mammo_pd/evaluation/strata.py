"""Performance by stratum: a column goes in, one AUC with its interval per value comes out."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.evaluation.levels import Aggregation, aggregate, units_of, with_known_label
from mammo_pd.evaluation.measures import Row, auc_with_interval, counted
from mammo_pd.terms import Level

KNOWN_COLUMNS = (
    "view",
    "laterality",
    "density",
    "age",
    "manufacturer",
    "vendor",
    "site",
    "lesion_type",
    "tumour_size_mm",
)

# An AUC of fewer is hardly informative, and would be quoted all the same.
MIN_PER_CLASS = 10
_MOST_VALUES = 12
NOT_KNOWN = "not known"
SEVERAL = "several"
OTHER = "other"

# Lower edges; the last band is open.
_BANDS = {"age": (0, 40, 50, 60, 70), "tumour_size_mm": (0, 10, 20, 50)}


def known_strata(predictions: pd.DataFrame) -> list[str]:
    """Those of ``KNOWN_COLUMNS`` that the table has and that are not empty."""
    return [
        name
        for name in KNOWN_COLUMNS
        if name in predictions.columns and (_values(predictions, name) != "").any()
    ]


def stratify(
    predictions: pd.DataFrame,
    columns: Sequence[str],
    *,
    aggregation: Aggregation,
) -> list[Row]:
    """AUC by the values of each column.

    The view is a property of an image, so it is evaluated per image; every other column is
    evaluated per breast. A breast whose images disagree on a value counts as ``several``. Where
    only positives have a value (lesion type, tumour size), the positives of each value are compared
    with all negatives.

    Args:
        predictions: as ``check_predictions`` returns it.
        columns: to stratify by; ages and tumour sizes are binned.
        aggregation: how the scores of a breast's images are aggregated.

    Returns:
        One row per value: ``column, value, level, compared_with``, then what ``auc_with_interval``
        returns; no AUC, but a remark, where a class has fewer than 10 units.

    Raises:
        InputError: the table has no such column.
    """
    absent = [name for name in columns if name not in predictions.columns]
    if absent:
        raise InputError(
            f"The predictions have no column {', '.join(absent)} to stratify by: add it, or choose "
            f"from {', '.join(map(str, predictions.columns))}."
        )
    rows: list[Row] = []
    for column in columns:
        level = Level.IMAGE if column == "view" else Level.BREAST
        known = with_known_label(predictions, level)
        if known.empty:
            continue
        units = aggregate(known, level, aggregation)
        value = _of_units(known, column, units_of(known, level))
        label = units["label"].to_numpy()
        negatives_lack_it = not (value[label == 0] != "").any()
        for name in _in_order(value if not negatives_lack_it else value[label == 1]):
            within = value == name
            if negatives_lack_it:  # a negative breast has no lesion that could have a size
                within = (within & (label == 1)) | (label == 0)
            rows.append(
                {
                    "column": column,
                    "value": name or NOT_KNOWN,
                    "level": level.value,
                    "compared_with": "all negatives" if negatives_lack_it else "its own negatives",
                    **_auc_if_enough(units[within]),
                }
            )
    return rows


def _auc_if_enough(units: pd.DataFrame) -> Row:
    positives = int(units["label"].sum())
    fewest = min(positives, len(units) - positives)
    if fewest >= MIN_PER_CLASS:
        return auc_with_interval(units)
    return counted(units) | {
        "remark": f"too few: an AUC needs at least {MIN_PER_CLASS} units of each class",
    }


def _values(predictions: pd.DataFrame, column: str) -> np.ndarray:
    """The column as text; empty where it is unknown."""
    given = predictions[column]
    text = given.astype("str").str.strip()
    text = text.where(given.notna() & ~text.isin(["nan", "None", "<NA>"]), "")
    if column in _BANDS:
        return _banded(_numbers(text), _BANDS[column])
    if column == "density":
        text = text.str.upper()
    # Tools save whole numbers with gaps as 1.0, 2.0, ...
    return text.str.replace(r"(?<=\d)\.0+$", "", regex=True).to_numpy(dtype=object)


def _numbers(text: pd.Series) -> pd.Series:
    """Numbers of text: with a decimal point or comma, or DICOM's Age Strings such as 045Y."""
    years = {"D": 365.25, "W": 365.25 / 7.0, "M": 12.0, "Y": 1.0}
    age = text.str.upper().str.extract(r"^(\d{3})([DWMY])$")
    in_years = pd.to_numeric(age[0]) / age[1].map(years).astype(float)
    plain = pd.to_numeric(text.str.replace(r"^(\d+),(\d+)$", r"\1.\2", regex=True), errors="coerce")
    return plain.fillna(in_years)


def _banded(number: pd.Series, edges: tuple[int, ...]) -> np.ndarray:
    names = [f"under {edges[1]}"]
    names += [f"{low} to under {high}" for low, high in pairwise(edges[1:])]
    names.append(f"{edges[-1]} and over")
    # A negative age or size is a placeholder for an unknown one.
    known = number.notna().to_numpy() & (number >= edges[0]).to_numpy()
    band = np.searchsorted(np.asarray(edges), number.to_numpy(dtype=np.float64), side="right") - 1
    named = np.asarray(names, dtype=object)[np.clip(band, 0, len(names) - 1)]
    return np.where(known, named, "")


def _of_units(predictions: pd.DataFrame, column: str, unit: np.ndarray) -> np.ndarray:
    """(units,) the value that a unit's images share, ``several`` where they disagree."""
    table = pd.DataFrame({"unit": unit, "value": _values(predictions, column)})
    known = table[table["value"] != ""].drop_duplicates()
    once = known.groupby("unit")["value"].agg(["first", "size"])
    values = np.full(int(unit.max()) + 1, "", dtype=object)
    values[once.index.to_numpy()] = once["first"].where(once["size"] == 1, SEVERAL).to_numpy()
    kinds, counts = np.unique(values[values != ""].astype(str), return_counts=True)
    if len(kinds) > _MOST_VALUES:  # a serial number, say: one row each would fill pages
        rare = kinds[np.argsort(-counts, kind="stable")[_MOST_VALUES - 1 :]]
        values[np.isin(values.astype(str), rare)] = OTHER
    return values


def _in_order(values: np.ndarray) -> list[str]:
    """Values sorted, bands by their lower edge; other, several and unknown last."""
    last = {OTHER: 1, SEVERAL: 2, "": 3}
    kinds = set(values.tolist())
    return sorted(kinds, key=lambda kind: (last.get(kind, 0), not kind.startswith("under "), kind))
