"""Models on the same images: their tables go in, paired differences in AUC come out.

Where a table is out of fold, so that its scores are of several models, a positive is compared with
negatives of its own fold alone (`mammo_pd.evaluation.within`), with every model in the comparison.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from mammo_pd.errors import InputError
from mammo_pd.evaluation.cutoffs import folds_of_patients
from mammo_pd.evaluation.intervals import independent_patients, student_quantile
from mammo_pd.evaluation.levels import Aggregation, aggregate, with_known_label
from mammo_pd.evaluation.measures import Row, Scalar, auc_with_interval, number
from mammo_pd.evaluation.roc import auc, placements
from mammo_pd.evaluation.within import Influence, auc_within_strata, comparable
from mammo_pd.terms import Level

_PAIRED = (
    "difference",
    "difference_ci_low",
    "difference_ci_high",
    "se",
    "z",
    "p",
    "delong_se",
    "delong_ci_low",
    "delong_ci_high",
    "delong_z",
    "delong_p",
)
# DeLong's paired test is given only with this many units of each class. It calls equally good
# models different in up to 10 % of sets with 5 positives among 200 negatives, 8 % with 8, 7 % with
# 12, and about 6 % with 18 and more (benchmarks/paired_delong.py).
FOR_PAIRED_DELONG = 18
_NO_ERROR = 1e-12
# Below this p an interval of 95 % excludes 0.
SIGNIFICANT = 0.05
# Columns on which the tables of compared models must agree.
_SAME = ("patient_id", "exam_id", "laterality", "label")


@dataclass(frozen=True)
class PairedTest:
    """A tested difference in AUC between two scores of the same units.

    Attributes:
        difference: the first AUC minus the second.
        standard_error: of the difference; NaN with fewer than two positives or two negatives (or
            patients with them).
        z: difference over standard error; NaN where the error is 0.
        p: two-sided.
        reach: half the width of the 95 % interval; NaN where the error is 0 or NaN.
    """

    difference: float
    standard_error: float
    z: float
    p: float
    reach: float


def paired_delong(label: ArrayLike, first: ArrayLike, second: ArrayLike) -> PairedTest:
    """Compare two scores of the same units, which are assumed independent.

    Args:
        label: (n,) 0 or 1, both present.
        first: (n,) scores of one model.
        second: (n,) scores of the other.

    Source: DeLong, DeLong and Clarke-Pearson 1988.
    """
    labels = np.asarray(label, dtype=bool)
    difference = auc(labels, first) - auc(labels, second)
    nan = float("nan")
    if labels.sum() < 2 or (~labels).sum() < 2:
        return PairedTest(difference, nan, nan, nan, nan)
    # The variance of the difference is the variance of the components' differences.
    variance = sum(
        float(np.var(one - other, ddof=1)) / len(one)
        for one, other in zip(placements(labels, first), placements(labels, second), strict=True)
    )
    return _tested(difference, float(np.sqrt(variance)))


def paired_by_patient(
    label: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    patient: ArrayLike,
    stratum: ArrayLike | None = None,
) -> PairedTest:
    """Compare two scores of the same units, treating those of one patient as correlated.

    Where every patient has one unit, the standard error is DeLong's. The ratio is compared with t,
    whose degrees of freedom are the patients of the smaller class minus one: compared with the
    normal distribution, five patients with positives would call equal models different in one case
    of seven. Where a few patients have most of the units, fewer count
    (`mammo_pd.evaluation.intervals.independent_patients`).

    Args:
        label: (n,) 0 or 1, both present.
        first: (n,) scores of one model.
        second: (n,) scores of the other.
        patient: (n,) int, from 0; the clusters.
        stratum: (n,) int, each with both classes, and negatives of two patients; only units of one
            stratum are compared. One stratum by default.

    Source: Obuchowski 1997.
    """
    labels = np.asarray(label, dtype=bool)
    patients = np.asarray(patient, dtype=np.intp)
    strata = np.zeros(len(labels), dtype=np.intp)
    if stratum is not None:
        strata = np.asarray(stratum, dtype=np.intp)
    drawn = [len(np.unique(patients[of_class])) for of_class in (labels, ~labels)]
    if drawn[1] < 2:
        return PairedTest(auc(labels, first) - auc(labels, second), *[float("nan")] * 4)
    one, other = (
        Influence.of(labels, np.asarray(score, dtype=np.float64), patients, strata)
        for score in (first, second)
    )
    moved = one - other
    if drawn[0] < 2:
        return PairedTest(moved.auc, *[float("nan")] * 4)
    variance = moved.variance(drawn[0], len(np.unique(patients)))
    independent = min(independent_patients(patients[of_class]) for of_class in (labels, ~labels))
    return _tested(moved.auc, float(np.sqrt(variance)), max(independent - 1.0, 1.0))


def _tested(difference: float, error: float, freedom: float = np.inf) -> PairedTest:
    # The placements of identical rankings cancel up to rounding.
    if error < _NO_ERROR:
        return PairedTest(difference, 0.0, *[float("nan")] * 3)
    z = difference / error
    reach = student_quantile(freedom) * error
    return PairedTest(difference, error, z, 2.0 * float(stdtr(freedom, -abs(z))), reach)


def holm(p_values: Sequence[Scalar]) -> list[float | None]:
    """Adjust p-values for multiple comparisons (Holm 1979); None stays None and is not counted."""
    known = sorted((float(p), i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[i] = largest
    return adjusted


def on_the_same_images(
    tables: Mapping[str, pd.DataFrame], *, intersect: bool = False
) -> tuple[dict[str, pd.DataFrame], int]:
    """Align tables to the same images in the same order.

    Args:
        tables: by name, each as ``check_predictions`` returns it.
        intersect: where the images differ, keep those that are in every table.

    Returns:
        The tables, and how many images are not in all of them.

    Raises:
        InputError: the images differ and ``intersect`` is off, no image is in every table, or the
            tables disagree on an image's patient, exam, laterality or label.
    """
    if len(tables) < 2:
        raise InputError("A comparison needs at least two sets of predictions: name another one.")
    indexed = {name: table.set_index("image_id") for name, table in tables.items()}
    every = set().union(*(table.index for table in indexed.values()))
    common = sorted(every.intersection(*(table.index for table in indexed.values())))
    if not common:
        raise InputError(
            "No image is in all of these predictions: score the same images with each model."
        )
    left_out = len(every) - len(common)
    if left_out and not intersect:
        counts = ", ".join(f"{name}: {len(table):,}" for name, table in tables.items())
        raise InputError(
            f"These predictions are on different images ({counts}; {len(common):,} in all of "
            "them), so a difference could be due to the images: score the same ones, or compare on "
            "the images in common (--intersect)."
        )
    aligned = {name: table.loc[common].reset_index() for name, table in indexed.items()}
    first = next(iter(aligned))
    for name, table in aligned.items():
        for column in _SAME:
            ours, theirs = aligned[first][column], table[column]
            if not (ours.eq(theirs) | (ours.isna() & theirs.isna())).all():
                raise InputError(
                    f"{first} and {name} disagree in the column {column} for the same images: use "
                    "one table of labels for both."
                )
    return aligned, left_out


def compare(
    tables: Mapping[str, pd.DataFrame],
    *,
    aggregation: Aggregation,
    margin: float | None = None,
) -> tuple[list[Row], list[Row]]:
    """AUC of each model and paired difference of each pair of models, at every level.

    If any table is out of fold, both are computed within folds, and rows also have ``n_strata`` and
    ``n_positive_left_out``.

    Args:
        tables: as ``on_the_same_images`` returns them.
        aggregation: how the scores of a unit's images are aggregated.
        margin: how much smaller an AUC may be and still count as not worse; None not to ask.

    Returns:
        Rows ``level, model`` with what ``auc_with_interval`` returns; and rows ``level, first,
        second, difference`` (first minus second), its interval ``difference_ci_low,
        difference_ci_high``; ``se, z, p`` of the test by patient and ``p_holm``, p adjusted for all
        pairs of models at that level; DeLong's ``delong_se, delong_ci_low, delong_ci_high,
        delong_z, delong_p`` where every patient is one unit and each class has
        ``FOR_PAIRED_DELONG``; ``first_not_worse, second_not_worse``:
        whether the interval shows that this model's AUC is not smaller by the margin or more. None
        where a value is undefined.
    """
    alone: list[Row] = []
    paired: list[Row] = []
    folds = folds_of_tables(tables)
    for level in Level:
        units = {
            name: aggregate(with_known_label(table, level), level, aggregation)
            for name, table in tables.items()
        }
        for name, rows in units.items():
            found = (
                auc_within_strata(rows, _crossed(folds, rows)) if folds else auc_with_interval(rows)
            )
            alone.append({"level": level.value, "model": name, **found})
        of_level: list[Row] = []
        for first, second in combinations(units, 2):
            row = _difference(units[first], units[second], folds)
            of_level.append(
                {
                    "level": level.value,
                    "first": first,
                    "second": second,
                    **row,
                    **_not_worse(row, margin),
                }
            )
        adjusted = holm([row["p"] for row in of_level])
        for row, p in zip(of_level, adjusted, strict=True):
            paired.append(row | {"p_holm": p})
    return alone, paired


def not_surpassed(models: Sequence[str], paired: Sequence[Row]) -> list[str]:
    """The models that are not shown to be worse than another.

    One is worse if its AUC is lower at every level, each time with a p below .05 after adjustment
    for all pairs.

    Args:
        models: their names.
        paired: rows of each pair at each level, as ``compare`` returns them.

    Returns:
        Names, in the order of ``models``; there is always one.
    """
    # Of each pair, at each level, which model is worse; None where neither is shown to be.
    worse: dict[tuple[Scalar, Scalar], set[Scalar]] = {}
    for row in paired:
        first, second, difference, p = (row[k] for k in ("first", "second", "difference", "p_holm"))
        lower = None
        if isinstance(p, float) and isinstance(difference, float) and p < SIGNIFICANT:
            lower = second if difference > 0 else first
        worse.setdefault((first, second), set()).add(lower)
    surpassed = {name for found in worse.values() if len(found) == 1 for name in found}
    return [model for model in models if model not in surpassed]


def _not_worse(row: Row, margin: float | None) -> Row:
    """Whether the difference shows the first, and the second, model to be not worse."""
    low, high = row["difference_ci_low"], row["difference_ci_high"]
    if margin is None or not isinstance(low, float) or not isinstance(high, float):
        return {"first_not_worse": None, "second_not_worse": None}
    return {"first_not_worse": low > -margin, "second_not_worse": high < margin}


def folds_of_tables(tables: Mapping[str, pd.DataFrame]) -> "list[pd.Series[str]]":
    """The fold of each patient, by ``patient_id``, in every table that is out of fold."""
    found = [folds_of_patients(table) for table in tables.values() if "fold" in table.columns]
    return [folds for folds in found if folds is not None]


def _crossed(folds: "Sequence[pd.Series[str]]", units: pd.DataFrame) -> NDArray[np.intp]:
    """(n,) the stratum of each unit, within which each table's scores come from one model."""
    values = pd.DataFrame({place: units["patient_id"].map(of) for place, of in enumerate(folds)})
    return np.asarray(values.groupby(list(values.columns)).ngroup(), dtype=np.intp)


def _difference(
    first: pd.DataFrame, second: pd.DataFrame, folds: "Sequence[pd.Series[str]]"
) -> Row:
    label = first["label"].to_numpy() == 1
    undefined: Row = dict.fromkeys(_PAIRED)
    if label.all() or not label.any():
        return undefined
    patient = np.asarray(pd.factorize(first["patient_id"], sort=True)[0], dtype=np.intp)
    if folds:
        stratum = _crossed(folds, first)
        there = np.isin(stratum, comparable(label, patient, stratum))
        if not there.any():
            return undefined
        one, other = (rows["score"].to_numpy(np.float64)[there] for rows in (first, second))
        tested = paired_by_patient(label[there], one, other, patient[there], stratum[there])
        return undefined | _columns("", tested)
    tested = paired_by_patient(label, first["score"], second["score"], patient)
    row = undefined | _columns("", tested)
    # DeLong's test assumes independent units: with several per patient its p is too small.
    if len(first) > first["patient_id"].nunique():
        return row
    if min(label.sum(), (~label).sum()) < FOR_PAIRED_DELONG:
        return row
    return row | _columns("delong_", paired_delong(label, first["score"], second["score"]))


def _columns(prefix: str, tested: PairedTest) -> Row:
    # Identical rankings do not differ in these patients but may in others, so no interval.
    known = tested.reach > 0.0
    # Two AUCs are at most 1 apart, though Student's t of two patients reaches further.
    interval = {
        "ci_low": max(tested.difference - tested.reach, -1.0) if known else None,
        "ci_high": min(tested.difference + tested.reach, 1.0) if known else None,
    }
    row: Row = {
        f"{prefix}se": number(tested.standard_error),
        f"{prefix}z": number(tested.z),
        f"{prefix}p": number(tested.p),
    }
    if prefix:
        return row | {f"{prefix}{end}": limit for end, limit in interval.items()}
    named = {f"difference_{end}": limit for end, limit in interval.items()}
    return row | {"difference": tested.difference} | named
