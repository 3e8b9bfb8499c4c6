"""Models on the same images: their tables go in, paired differences in AUC come out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mammo_pd.errors import InputError
from mammo_pd.evaluation.bootstrap import corrected_interval, patient_weights
from mammo_pd.evaluation.extremes import widened_at_the_end
from mammo_pd.evaluation.levels import Aggregation, aggregate, with_known_label
from mammo_pd.evaluation.measures import Row, Scalar, auc_with_interval, can_be_resampled, number
from mammo_pd.evaluation.roc import (
    Floats,
    Ranking,
    auc,
    auc_influence,
    placements,
    total_of_products,
)
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
_NO_ERROR = 1e-12
# Columns on which the tables of compared models must agree.
_SAME = ("patient_id", "exam_id", "laterality", "label")


@dataclass(frozen=True)
class PairedTest:
    """The difference in AUC of two scores of the same units, tested.

    Attributes:
        difference: the first AUC minus the second.
        standard_error: of the difference; NaN with fewer than two positives or two negatives (or
            patients with them).
        z: difference over standard error; NaN where the error is 0.
        p: two-sided.
    """

    difference: float
    standard_error: float
    z: float
    p: float


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
        return PairedTest(difference, nan, nan, nan)
    # The variance of the difference is the variance of the components' differences.
    variance = sum(
        float(np.var(one - other, ddof=1)) / len(one)
        for one, other in zip(placements(labels, first), placements(labels, second), strict=True)
    )
    return _tested(difference, float(np.sqrt(variance)))


def paired_by_patient(
    label: ArrayLike, first: ArrayLike, second: ArrayLike, patient: ArrayLike
) -> PairedTest:
    """Compare two scores of the same units, of which those of one patient are correlated.

    Where every patient has one unit, this is DeLong's test.

    Args:
        label: (n,) 0 or 1, both present.
        first: (n,) scores of one model.
        second: (n,) scores of the other.
        patient: (n,) int, from 0; the clusters.

    Source: Obuchowski 1997.
    """
    labels = np.asarray(label, dtype=bool)
    patients = np.asarray(patient, dtype=np.int64)
    difference = auc(labels, first) - auc(labels, second)
    n = int(patients.max()) + 1
    moved, drawn = [], []
    for of_class, one, other in zip(
        (labels, ~labels), placements(labels, first), placements(labels, second), strict=True
    ):
        away = (one - other - difference) / len(one)
        summed = np.bincount(patients[of_class], weights=away, minlength=n)
        moved.append(summed.astype(np.float64))
        drawn.append(len(np.unique(patients[of_class])))
    if min(drawn) < 2:
        return PairedTest(difference, *[float("nan")] * 3)
    of_positives, of_negatives = moved
    # The means were estimated from the same patients, hence n / (n - 1) as in a sample's variance.
    variance = sum(
        float((of_class**2).sum()) * count / (count - 1)
        for of_class, count in zip(moved, drawn, strict=True)
    )
    variance += 2.0 * total_of_products(of_positives, of_negatives) * n / (n - 1)
    return _tested(difference, float(np.sqrt(max(variance, 0.0))))


def _tested(difference: float, error: float) -> PairedTest:
    # Placements of equal rankings cancel out but for rounding.
    if error < _NO_ERROR:
        return PairedTest(difference, 0.0, float("nan"), float("nan"))
    z = difference / error
    return PairedTest(difference, error, z, 2.0 * NormalDist().cdf(-abs(z)))


def holm(p_values: Sequence[Scalar]) -> list[float | None]:
    """P-values adjusted for being several, after Holm 1979; None stays None and is not counted."""
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
    left_out = len(every) - len(common)
    if left_out and not intersect:
        counts = ", ".join(f"{name}: {len(table):,}" for name, table in tables.items())
        raise InputError(
            f"These predictions are on different images ({counts}; {len(common):,} in all of "
            "them), so a difference could be due to the images: score the same ones, or compare on "
            "the images in common."
        )
    if not common:
        raise InputError(
            "No image is in all of these predictions: score the same images with each model."
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
    resamples: int,
    seed: int,
    margin: float | None = None,
) -> tuple[list[Row], list[Row]]:
    """AUC of each model and paired difference of each pair of models, at every level.

    Args:
        tables: as ``on_the_same_images`` returns them.
        aggregation: how the scores of a unit's images are aggregated.
        resamples: number of bootstrap resamples of the patients, shared by all models.
        seed: of the resampling.
        margin: how much smaller an AUC may be and still count as not worse; None not to ask.

    Returns:
        Rows ``level, model`` with what ``auc_with_interval`` returns; and rows ``level, first,
        second, difference`` (first minus second), its bootstrap interval ``difference_ci_low,
        difference_ci_high``; ``se, z, p`` of the test by patient and ``p_holm``, p adjusted for all
        pairs of models at that level; DeLong's ``delong_se, delong_ci_low, delong_ci_high,
        delong_z, delong_p`` where every patient is one unit; ``first_not_worse, second_not_worse``:
        whether the interval shows that this model's AUC is not smaller by the margin or more. None
        where a value is undefined.
    """
    alone: list[Row] = []
    paired: list[Row] = []
    for level in Level:
        units = {
            name: aggregate(with_known_label(table, level), level, aggregation)
            for name, table in tables.items()
        }
        for name, rows in units.items():
            found = auc_with_interval(rows, resamples=resamples, seed=seed)
            alone.append({"level": level.value, "model": name, **found})
        drawn = _drawn(units, resamples, seed)
        of_level: list[Row] = []
        for first, second in combinations(units, 2):
            interval = None
            if can_be_resampled(units[first]):
                interval = _interval(units[first], units[second], drawn[first] - drawn[second])
            of_level.append(
                {
                    "level": level.value,
                    "first": first,
                    "second": second,
                    **_difference(units[first], units[second], interval),
                    **_not_worse(interval, margin),
                }
            )
        adjusted = holm([row["p"] for row in of_level])
        for row, p in zip(of_level, adjusted, strict=True):
            paired.append(row | {"p_holm": p})
    return alone, paired


def _not_worse(interval: tuple[float, float] | None, margin: float | None) -> Row:
    """Whether the first and the second model are shown to be not worse, by their difference."""
    if interval is None or margin is None:
        return {"first_not_worse": None, "second_not_worse": None}
    low, high = interval
    return {"first_not_worse": low > -margin, "second_not_worse": high < margin}


def _drawn(units: Mapping[str, pd.DataFrame], resamples: int, seed: int) -> dict[str, Floats]:
    """The AUC of each model in each resample of patients, NaN where a class is missing."""
    rankings = {name: Ranking.of(rows["label"], rows["score"]) for name, rows in units.items()}
    code, patients = pd.factorize(next(iter(units.values()))["patient_id"], sort=True)
    in_order = {name: np.asarray(code)[ranking.order] for name, ranking in rankings.items()}
    drawn = {name: np.full(resamples, np.nan) for name in units}
    for i, weight in enumerate(patient_weights(len(patients), resamples, seed)):
        # The same weights for every model: what varies is the difference, not the patients.
        for name, ranking in rankings.items():
            curve = ranking.curve(weight[in_order[name]])
            if curve.has_both_classes:
                drawn[name][i] = curve.auc()
    return drawn


def _interval(
    first: pd.DataFrame, second: pd.DataFrame, drawn: Floats
) -> tuple[float, float] | None:
    label = first["label"]
    if label.min() == label.max():
        return None
    patient = np.asarray(pd.factorize(first["patient_id"], sort=True)[0])
    influence = auc_influence(label, first["score"], patient)
    influence -= auc_influence(label, second["score"], patient)  # linear, so it subtracts too
    # In the arithmetic of the resamples: see ``corrected_interval``.
    estimate = Ranking.of(label, first["score"]).curve().auc()
    estimate -= Ranking.of(label, second["score"]).curve().auc()
    interval = corrected_interval(drawn, estimate, influence)
    # Two models that both separate the classes differ in no resample, and may in other patients.
    return widened_at_the_end(estimate, interval, None)


def _difference(
    first: pd.DataFrame, second: pd.DataFrame, interval: tuple[float, float] | None
) -> Row:
    label = first["label"].to_numpy()
    low, high = interval or (None, None)
    if label.min() == label.max():
        return dict.fromkeys(_PAIRED)
    patient = np.asarray(pd.factorize(first["patient_id"], sort=True)[0])
    tested = paired_by_patient(label, first["score"], second["score"], patient)
    row: Row = dict.fromkeys(_PAIRED) | {
        "difference": tested.difference,
        "difference_ci_low": low,
        "difference_ci_high": high,
        "se": number(tested.standard_error),
        "z": number(tested.z),
        "p": number(tested.p),
    }
    # It takes units for independent: of several units of a patient its p-value is too small.
    if len(first) > first["patient_id"].nunique():
        return row
    delong = paired_delong(label, first["score"], second["score"])
    reach = NormalDist().inv_cdf(0.975) * delong.standard_error
    limits = (delong.difference - reach, delong.difference + reach) if reach > 0.0 else (None, None)
    return row | {
        "delong_se": number(delong.standard_error),
        "delong_ci_low": limits[0],
        "delong_ci_high": limits[1],
        "delong_z": number(delong.z),
        "delong_p": number(delong.p),
    }
