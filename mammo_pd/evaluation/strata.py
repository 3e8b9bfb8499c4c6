"""Performance by stratum: a column goes in; per value an AUC, and rates at a fixed threshold."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.evaluation.cutoffs import Cutoff
from mammo_pd.evaluation.levels import Aggregation, aggregate, units_of, with_known_label
from mammo_pd.evaluation.measures import Row, auc_with_interval, counted
from mammo_pd.evaluation.rates import Decisions
from mammo_pd.terms import Level

# Columns that describe a cancer; values on negatives are meaningless.
LESION_COLUMNS = ("lesion_type", "cancer_type", "invasive", "tumour_size_mm", "cancer_size_mm")
KNOWN_COLUMNS = (
    "view",
    "laterality",
    "density",
    "age",
    "manufacturer",
    "vendor",
    "scanner",
    "machine_id",
    "site",
    "site_id",
    *LESION_COLUMNS,
)

# An AUC of fewer is hardly informative, but would be quoted anyway.
MIN_PER_CLASS = 10
_MOST_VALUES = 12
NOT_KNOWN = "not known"
SEVERAL = "several"
OTHER = "other"

# Lower edges; the last band is open.
_SIZES = (0, 10, 20, 50)
_BANDS = {"age": (0, 40, 50, 60, 70), "tumour_size_mm": _SIZES, "cancer_size_mm": _SIZES}
_YES_OR_NO = {"1": "yes", "TRUE": "yes", "Y": "yes", "0": "no", "FALSE": "no", "N": "no"}
_RATES = [
    f"{rate}{end}" for rate in ("sensitivity", "specificity") for end in ("", "_ci_low", "_ci_high")
]


def known_strata(predictions: pd.DataFrame) -> list[str]:
    """The ``KNOWN_COLUMNS`` that the table has, without empty ones."""
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
    cutoffs: Mapping[Level, Cutoff] | None = None,
) -> list[Row]:
    """AUC by the values of each column, and sensitivity and specificity at a fixed threshold.

    The view is a property of an image, so it is evaluated per image; every other column is
    evaluated per breast. A breast whose images disagree on a value counts as ``several``. Where
    only positives have a value (lesion type, tumour size), the positives of each value are compared
    with all negatives; what a lesion's column says of a negative is ignored.

    Args:
        predictions: as ``check_predictions`` returns it.
        columns: to stratify by; ages and tumour sizes are binned.
        aggregation: how the scores of a breast's images are aggregated.
        cutoffs: the threshold at each level; the same for all groups.

    Returns:
        One row per value: ``column, value, level, compared_with``, then what ``auc_with_interval``
        returns; no AUC, but a remark, where a class has fewer than 10 units. With cutoffs also
        ``sensitivity`` and ``specificity`` with limits, None where there are no units of the class
        or the negatives are not the group's own.

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
        label = units["label"].to_numpy()
        value = values_of_units(known, column, level)
        if column in LESION_COLUMNS:
            value = np.where(label == 1, value, "")
        negatives_lack_it = not (value[label == 0] != "").any()
        flagged = None if cutoffs is None else cutoffs[level].flags(units)
        for name in in_order(value if not negatives_lack_it else value[label == 1]):
            within = value == name
            if negatives_lack_it:  # a negative breast has no lesion that could have a size
                within = (within & (label == 1)) | (label == 0)
            row: Row = {
                "column": column,
                "value": name or NOT_KNOWN,
                "level": level.value,
                "compared_with": "all negatives" if negatives_lack_it else "its own negatives",
                **_auc_if_enough(units[within]),
            }
            if flagged is not None:
                row |= _rates(units[within], flagged[within], own_negatives=not negatives_lack_it)
            rows.append(row)
    return rows


def found_by_lesion(
    predictions: pd.DataFrame, *, level: Level, aggregation: Aggregation, cutoff: Cutoff
) -> list[Row]:
    """How many of the cancers of each kind and size are found at a threshold.

    Args:
        predictions: as ``check_predictions`` returns it.
        level: the units that are flagged or not.
        aggregation: how the scores of a unit's images are aggregated.
        cutoff: the level's threshold.

    Returns:
        For every lesion column with a known value, one row per value: ``column, value, level``,
        ``n_positive, found, missed``, ``sensitivity`` with limits.
    """
    known = with_known_label(predictions, level)
    if known.empty:
        return []
    units = aggregate(known, level, aggregation)
    positive = units["label"].to_numpy() == 1
    flagged = cutoff.flags(units)
    rows: list[Row] = []
    for column in LESION_COLUMNS:
        if column not in known.columns:
            continue
        # Of the positive images alone: the other breast has no cancer that could have a type.
        ill = known.assign(**{column: known[column].where(known["label"] == 1)})
        value = values_of_units(ill, column, level)
        if not (value[positive] != "").any():
            continue
        for name in in_order(value[positive]):
            within = positive & (value == name)
            decided = Decisions.where(units[within], flagged[within])
            found = int(decided.tp[0])
            rows.append(
                {
                    "column": column,
                    "value": name or NOT_KNOWN,
                    "level": level.value,
                    "n_positive": decided.positives,
                    "found": found,
                    "missed": decided.positives - found,
                    **decided.sensitivity.column("sensitivity", 0),
                }
            )
    return rows


def _rates(units: pd.DataFrame, flagged: np.ndarray, *, own_negatives: bool) -> Row:
    decided = Decisions.where(units, flagged)
    row: Row = dict.fromkeys(_RATES)
    if decided.positives:
        row |= decided.sensitivity.column("sensitivity", 0)
    if decided.negatives and own_negatives:
        row |= (1.0 - decided.false_alarms).column("specificity", 0)
    return row


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
    # Parse each distinct value once: long columns have few.
    code, kinds = pd.factorize(predictions[column], use_na_sentinel=False)
    named: np.ndarray = _as_text(pd.Series(kinds), column)[code]
    return named


def _as_text(given: pd.Series, column: str) -> np.ndarray:
    text = given.astype("str").str.strip()
    text = text.where(given.notna() & ~text.isin(["nan", "None", "<NA>"]), "")
    if column in _BANDS:
        return _banded(_numbers(text), _BANDS[column])
    if column == "density":
        text = text.str.upper()
    # Tools save whole numbers with gaps as 1.0, 2.0, ...
    text = text.str.replace(r"(?<=\d)\.0+$", "", regex=True)
    if column == "invasive":
        text = text.str.upper().map(_YES_OR_NO).fillna(text)
    return text.to_numpy(dtype=object)


def _numbers(text: pd.Series) -> pd.Series:
    """Parse numbers from text: decimal point or comma, or DICOM Age Strings such as 045Y."""
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


def values_of_units(
    predictions: pd.DataFrame, column: str, level: Level, *, joined: bool = True
) -> np.ndarray:
    """(units,) the value that a unit's images share.

    Args:
        predictions: as ``check_predictions`` returns it.
        column: ages and sizes are banded.
        level: the kind of unit; in the order in which ``aggregate`` returns them.
        joined: call values beyond the twelve most frequent ``other``, and a unit whose images
            disagree ``several``; otherwise it has all of its values, such as ``CC + MLO``.

    Returns:
        Text; empty where it is unknown.
    """
    values = _values(predictions, column)
    if level is not Level.IMAGE:  # an image agrees with itself
        unit = units_of(predictions, level)
        table = pd.DataFrame({"unit": unit, "value": values})
        known = table[table["value"] != ""].drop_duplicates()
        once = known.groupby("unit")["value"].agg(["first", "size"])
        values = np.full(int(unit.max()) + 1, "", dtype=object)
        values[once.index.to_numpy()] = once["first"].to_numpy()
        apart = known[known["unit"].isin(once.index[once["size"] > 1])].sort_values("value")
        every = apart.groupby("unit")["value"].agg(" + ".join)
        values[every.index.to_numpy()] = SEVERAL if joined else every.to_numpy()
    kinds, counts = np.unique(values[values != ""].astype(str), return_counts=True)
    # A serial number, say: one row each would fill pages.
    if joined and len(kinds) > _MOST_VALUES:
        rare = kinds[np.argsort(-counts, kind="stable")[_MOST_VALUES - 1 :]]
        values[np.isin(values.astype(str), rare)] = OTHER
    return values


def in_order(values: np.ndarray) -> list[str]:
    """Values sorted, bands by their lower edge; other, several and unknown last."""
    last = {OTHER: 1, SEVERAL: 2, "": 3}
    kinds = set(values.tolist())
    return sorted(kinds, key=lambda kind: (last.get(kind, 0), not kind.startswith("under "), kind))
