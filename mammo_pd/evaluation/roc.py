"""Discrimination: labels and scores go in; weighted ROC counts, AUC and DeLong's errors come out.

scikit-learn computes the metrics of the units as they are. ``Ranking`` and ``Curve`` exist for
resamples of the same units: the units are sorted once, tied scores form one step, and a resample
is a weight for each unit and two cumulative sums.

Shapes: n units, t distinct scores, and t + 1 points of the curve, the first at (0, 0).
"""

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

Floats = NDArray[np.float64]


def total_of_products(a: Floats, b: Floats) -> float:
    """Sum of a * b without BLAS, whose threads cost time here and change the last digits."""
    return float(np.einsum("i,i->", a, b))


# Weights add up to exact integers; the product (1 - 0.9) * n can fall just below one.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Curve:
    """Weight of positives and negatives at or above each threshold.

    Attributes:
        true_positives: (t + 1,) float64, non-decreasing from 0.
        false_positives: (t + 1,) float64, non-decreasing from 0.
    """

    true_positives: Floats
    false_positives: Floats

    @property
    def positives(self) -> float:
        """Total weight of the positives."""
        return float(self.true_positives[-1])

    @property
    def negatives(self) -> float:
        """Total weight of the negatives."""
        return float(self.false_positives[-1])

    @property
    def has_both_classes(self) -> bool:
        """Whether both classes have weight; without both there is no ROC curve."""
        return self.positives > 0 and self.negatives > 0

    def rates(self, point: int) -> tuple[float, float]:
        """Sensitivity and specificity at one point."""
        sensitivity = float(self.true_positives[point]) / self.positives
        return sensitivity, 1.0 - float(self.false_positives[point]) / self.negatives

    @cached_property
    def sensitivity(self) -> Floats:
        """(t + 1,) share of positives at or above each threshold."""
        return self.true_positives / self.positives

    @cached_property
    def false_positive_rate(self) -> Floats:
        """(t + 1,) share of negatives at or above each threshold, 1 - specificity."""
        return self.false_positives / self.negatives

    def auc(self) -> float:
        """Area under the ROC curve: the share of correctly ordered pairs, ties counting half.

        Equal to the Mann-Whitney statistic with mid-ranks (Hanley and McNeil 1982).
        """
        tp, fp = self.true_positives, self.false_positives
        doubled = total_of_products(np.diff(fp), tp[1:] + tp[:-1])
        return doubled / (2.0 * self.positives * self.negatives)

    def partial_auc(self, min_specificity: float) -> float:
        """Standardised area where the specificity is at least ``min_specificity``.

        0.5 is chance and 1 is perfect (McClish 1989), as with scikit-learn's ``max_fpr``.
        """
        limit = 1.0 - min_specificity
        within = limit * self.negatives  # in counts, where steps are whole numbers
        stop = int(np.searchsorted(self.false_positives, within, side="right"))
        # One point beyond the limit, to interpolate the curve at it.
        x = self.false_positives[: stop + 1] / self.negatives
        y = self.true_positives[: stop + 1] / self.positives
        x_kept = np.append(x[:stop], limit)
        y_kept = np.append(
            y[:stop], np.interp(limit, x[stop - 1 : stop + 1], y[stop - 1 : stop + 1])
        )
        area = total_of_products(np.diff(x_kept), y_kept[1:] + y_kept[:-1]) / 2.0
        chance = limit * limit / 2.0
        return 0.5 * (1.0 + (area - chance) / (limit - chance))

    def average_precision(self, prevalence: float | None = None) -> float:
        """Mean precision over the recall steps, without interpolation, as in scikit-learn.

        Args:
            prevalence: share of positives in the intended use, to which the classes are
                re-weighted; that of the data when None.
        """
        tp, fp = self.true_positives[1:], self.false_positives[1:]
        if prevalence is not None:
            fp = fp * (self.positives / self.negatives * (1.0 - prevalence) / prevalence)
        gained = np.diff(self.true_positives)
        flagged = tp + fp
        # A resample may hold no unit above a threshold: 0 flagged, 0 gained, and no 0 / 0.
        return total_of_products(gained, tp / np.maximum(flagged, _ROUNDING)) / self.positives

    def at_specificity(self, specificity: float) -> int:
        """Index of the most sensitive point with at least this specificity."""
        allowed = (1.0 - specificity) * self.negatives
        allowed += _ROUNDING * self.negatives
        return int(np.searchsorted(self.false_positives, allowed, side="right")) - 1

    def at_sensitivity(self, sensitivity: float) -> int:
        """Index of the most specific point with at least this sensitivity."""
        wanted = sensitivity * self.positives - _ROUNDING * self.positives
        return int(np.searchsorted(self.true_positives, wanted, side="left"))


@dataclass(frozen=True)
class Ranking:
    """Units sorted once by falling score, so that every weighting of them is cheap to count.

    Attributes:
        order: (n,) intp, the units by falling score.
        last: (t,) intp, index into ``order`` of the last unit of each distinct score.
        thresholds: (t,) float64, the distinct scores, falling. Point k + 1 of a curve flags every
            unit that scores at least ``thresholds[k]``.
        positive: (n,) float64, 1 for positives and 0 for negatives, in sorted order.
    """

    order: NDArray[np.intp]
    last: NDArray[np.intp]
    thresholds: Floats
    positive: Floats

    @classmethod
    def of(cls, label: ArrayLike, score: ArrayLike) -> "Ranking":
        """Sort units.

        Args:
            label: (n,) 0 or 1.
            score: (n,) higher means more likely positive; no NaN.
        """
        labels = np.asarray(label, dtype=np.float64)
        scores = np.asarray(score, dtype=np.float64)
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
        return cls(order, last, falling[last], labels[order])

    def curve(self, weight_in_order: Floats | None = None) -> Curve:
        """Count positives and negatives from the highest score down.

        Args:
            weight_in_order: (n,) how often each unit counts, sorted as ``order``; once each when
                None.
        """
        if weight_in_order is None:
            weight_in_order = np.ones(len(self.order))
        positive = weight_in_order * self.positive
        true_positives = np.zeros(len(self.last) + 1)
        false_positives = np.zeros(len(self.last) + 1)
        # The indices are valid; in the default mode, which checks them, NumPy buffers ``out``.
        np.take(np.cumsum(positive), self.last, out=true_positives[1:], mode="clip")
        np.take(np.cumsum(weight_in_order), self.last, out=false_positives[1:], mode="clip")
        false_positives[1:] -= true_positives[1:]
        return Curve(true_positives, false_positives)

    def index_of(self, threshold: float) -> int:
        """Index of the point that flags the units that score at least ``threshold``."""
        return int(np.searchsorted(-self.thresholds, -threshold, side="right"))


def auc(label: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve (scikit-learn's), NaN with one class only."""
    labels = np.asarray(label, dtype=bool)
    # Checked here, as scikit-learn has raised, warned or returned NaN depending on its version.
    if labels.all() or not labels.any():
        return float("nan")
    return float(roc_auc_score(labels, np.asarray(score)))


def placements(label: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    """DeLong's structural components: the share of the other class that each unit outranks.

    Args:
        label: (n,) 0 or 1, both present.
        score: (n,).

    Returns:
        ``(positives,)`` share of negatives below each positive, and ``(negatives,)`` share of
        positives above each negative, in the order given, ties counting half. The mean of either
        is the AUC.

    Source: Sun and Xu 2014, who sort instead of comparing all pairs.
    """
    labels = np.asarray(label, dtype=bool)
    scores = np.asarray(score, dtype=np.float64)
    positives, negatives = scores[labels], scores[~labels]
    return _share_below(positives, negatives), 1.0 - _share_below(negatives, positives)


def _share_below(scores: Floats, others: Floats) -> Floats:
    ranked = np.sort(others)
    below = np.searchsorted(ranked, scores, side="left")
    not_above = np.searchsorted(ranked, scores, side="right")
    return (below + not_above) / (2.0 * len(others))


def auc_influence(label: ArrayLike, score: ArrayLike, group: NDArray[np.intp]) -> Floats:
    """First-order influence of each group of units (a patient) on the AUC.

    Args:
        label: (n,) 0 or 1, both present.
        score: (n,).
        group: (n,) from 0.

    Returns:
        (groups,) float64, adding up to 0.

    Source: Obuchowski 1997; her variance of a clustered AUC is the sum of their squares.
    """
    labels = np.asarray(label, dtype=bool)
    # A unit moves the AUC by how far its own placement lies from the mean of its class.
    of_positives, of_negatives = placements(labels, score)
    moved = np.empty(len(labels))
    moved[labels] = (of_positives - of_positives.mean()) / len(of_positives)
    moved[~labels] = (of_negatives - of_negatives.mean()) / len(of_negatives)
    return np.bincount(group, weights=moved).astype(np.float64)


def delong_standard_error(label: ArrayLike, score: ArrayLike) -> float:
    """DeLong's standard error of the AUC.

    It assumes independent units, which images of one patient are not.

    Returns:
        The standard error; NaN with fewer than two positives or two negatives.

    Source: DeLong, DeLong and Clarke-Pearson 1988.
    """
    labels = np.asarray(label, dtype=bool)
    if labels.sum() < 2 or (~labels).sum() < 2:
        return float("nan")
    of_positives, of_negatives = placements(labels, score)
    variance = of_positives.var(ddof=1) / len(of_positives)
    variance += of_negatives.var(ddof=1) / len(of_negatives)
    return float(np.sqrt(variance))


def normal_interval(
    estimate: float, standard_error: float, level: float = 0.95
) -> tuple[float, float]:
    """Normal interval of a proportion, clipped to [0, 1] as in pROC."""
    reach = NormalDist().inv_cdf(0.5 + level / 2.0) * standard_error
    return max(0.0, estimate - reach), min(1.0, estimate + reach)


def f1_of_sums(hits: float, flagged: float, positives: float) -> float:
    """F1 from sums over units; probabilistic F1 when probabilities stand in for decisions.

    Args:
        hits: sum of label * score.
        flagged: sum of score.
        positives: sum of label.

    Returns:
        The score in [0, 1]; 0 where no positive has any probability.

    Source: Yacouby and Axman 2020; the metric of the RSNA 2022 mammography challenge.
    """
    # 2PR / (P + R) with P = hits / flagged and R = hits / positives.
    total = flagged + positives
    return 2.0 * hits / total if total > 0 else 0.0
