"""Discrimination: labels and scores go in; ROC counts, AUC and DeLong's errors come out.

scikit-learn computes the metrics that it has. ``Ranking`` and ``Curve`` keep the counts at every
threshold, which intervals, operating points and the re-weighting of the classes are made of: the
units are sorted once, and tied scores form one step.

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


# Counts are exact integers; the product (1 - 0.9) * n can fall just below one.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Curve:
    """Number of positives and negatives at or above each threshold.

    Attributes:
        true_positives: (t + 1,) float64, non-decreasing from 0.
        false_positives: (t + 1,) float64, non-decreasing from 0.
    """

    true_positives: Floats
    false_positives: Floats

    @property
    def positives(self) -> float:
        """Number of positives."""
        return float(self.true_positives[-1])

    @property
    def negatives(self) -> float:
        """Number of negatives."""
        return float(self.false_positives[-1])

    @property
    def has_both_classes(self) -> bool:
        """Without both there is no ROC curve."""
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
        return total_of_products(gained, tp / flagged) / self.positives

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
    """Units sorted once by falling score.

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

    def curve(self) -> Curve:
        """Count positives and negatives from the highest score down."""
        true_positives = np.concatenate([[0.0], np.cumsum(self.positive)[self.last]])
        flagged = np.concatenate([[0.0], self.last + 1.0])
        return Curve(true_positives, flagged - true_positives)

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
