"""Calibration: are two in ten units with a score of 0.2 positive?

Labels and scores go in; slope, intercept, a smooth curve and reliability bins come out.

scikit-learn has neither an offset nor cluster-robust standard errors for the logistic fit, and its
``calibration_curve`` returns no counts, which the intervals of its bins need.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from mammo_pd.evaluation.intervals import Spread
from mammo_pd.evaluation.roc import Curve, Floats, Ranking, total_of_products

# A score of exactly 0 or 1 has no finite logit.
_CLIP = 1e-7
_STEPS = 50
# Logits closer than this are the same number to any reader.
_NEARLY_EQUAL = 1e-3
_FOR_FOUR_KNOTS = 50
_GRID_POINTS = 61
_CONVERGED = 1e-10
# On the logit scale: the rounding error left where all patients' influences cancel.
_NO_REACH = 1e-9
_ROWS_AT_ONCE = 2**15


@dataclass(frozen=True)
class Coefficient:
    """A fitted coefficient and its cluster-robust spread, clustered by patient."""

    value: float
    spread: Spread

    @property
    def standard_error(self) -> float:
        """Square root of the sandwich estimator's variance."""
        return float(np.sqrt(self.spread.variance))


@dataclass(frozen=True)
class CalibrationLine:
    """A logistic recalibration.

    Attributes:
        slope: None where there is no finite one.
        intercept: None with one class only.
        remark: why there is no slope, or how not to read it.
    """

    slope: Coefficient | None
    intercept: Coefficient | None
    remark: str | None = None


def calibration_line(label: ArrayLike, score: ArrayLike, patient: ArrayLike) -> CalibrationLine:
    """Slope and intercept of the logistic recalibration.

    The slope is that of the label on the logit of the score (ideally 1; below 1 the scores are too
    extreme). The intercept is fitted with the slope fixed at 1, calibration in the large (ideally
    0; below 0 the scores are too high on average).

    Args:
        label: (n,) 0 or 1.
        score: (n,) in [0, 1], clipped to [1e-7, 1 - 1e-7].
        patient: (n,) int, from 0; the clusters of the sandwich estimator.

    Returns:
        The intercept wherever there are both classes; the slope unless all scores are equal or a
        threshold separates the classes perfectly.

    Source: Van Calster et al. 2019.
    """
    labels = np.asarray(label, dtype=np.float64)
    clipped = np.clip(np.asarray(score, dtype=np.float64), _CLIP, 1.0 - _CLIP)
    logit = np.log(clipped) - np.log1p(-clipped)
    patients = np.asarray(patient, dtype=np.int64)
    positives, negatives = logit[labels == 1], logit[labels == 0]
    if not len(positives) or not len(negatives):
        return CalibrationLine(None, None, "No calibration slope: there is one class only.")
    ones = np.ones_like(logit)
    intercept = _logistic(ones[:, None], labels, logit, patients)
    spread = float(logit.max() - logit.min())
    if spread == 0.0:
        return CalibrationLine(None, intercept, "No calibration slope: all scores are equal.")
    # Without overlap the likelihood keeps increasing with the slope, without a maximum.
    if positives.min() >= negatives.max() or negatives.min() >= positives.max():
        return CalibrationLine(
            None,
            intercept,
            "No calibration slope: a threshold separates the classes perfectly, so the logistic "
            "fit has no finite solution.",
        )
    # Fitted on logits of mean 0 and spread 1: nearly equal ones are no line of their own next to a
    # column of ones, and rounding would stand for the fit.
    standard = (logit - logit.mean()) / spread
    fitted = _logistic(np.column_stack([standard, ones]), labels, np.zeros_like(logit), patients)
    if fitted is None:
        return CalibrationLine(
            None, intercept, "No calibration slope: the logistic fit does not converge."
        )
    slope = Coefficient(
        fitted.value / spread,
        Spread(fitted.spread.variance / spread**2, fitted.spread.patients),
    )
    remark = None
    if spread < _NEARLY_EQUAL:
        remark = (
            f"The scores are nearly constant (they lie within {np.ptp(clipped):.1g}): the "
            "calibration slope is of differences that no one would act on."
        )
    return CalibrationLine(slope, intercept, remark)


@dataclass(frozen=True)
class SmoothCalibration:
    """The share of positives as a smooth function of the score, with pointwise 95 % limits.

    Attributes:
        score: (g,) float64, rising, within the range of the scores.
        observed: (g,) float64.
        low: (g,) float64, NaN where there is no interval.
        high: (g,) float64, the same.
        remark: why the curve is missing (no points) or a straight line; None for a curve.
    """

    score: Floats
    observed: Floats
    low: Floats
    high: Floats
    remark: str | None = None


def smooth_calibration(
    label: ArrayLike, score: ArrayLike, patient: ArrayLike, line: CalibrationLine | None = None
) -> SmoothCalibration:
    """Logistic regression of the label on a restricted cubic spline of the logit of the score.

    The knots are quantiles of the scores: three, or four with 50 units of each class. Where scores
    are tied so much that knots fall together, the line of the calibration slope stands for it.

    Args:
        label: (n,) 0 or 1.
        score: (n,) in [0, 1], clipped to [1e-7, 1 - 1e-7].
        patient: (n,) int, from 0; the clusters of the sandwich estimator.
        line: what ``calibration_line`` returns of them, if it is at hand.

    Source: Austin and Steyerberg 2014; the spline is Harrell's.
    """
    labels = np.asarray(label, dtype=np.float64)
    clipped = np.clip(np.asarray(score, dtype=np.float64), _CLIP, 1.0 - _CLIP)
    logit = np.log(clipped) - np.log1p(-clipped)
    patients = np.asarray(patient, dtype=np.int64)
    nothing = np.empty(0)

    def without(why: str) -> SmoothCalibration:
        return SmoothCalibration(nothing, nothing, nothing, nothing, why)

    if labels.min() == labels.max():
        return without("No smooth calibration curve: there is one class only.")
    line = calibration_line(labels, clipped, patients) if line is None else line
    if line.slope is None or line.remark is not None:
        why = (line.remark or "").replace("No calibration slope", "No smooth calibration curve")
        return without(why if line.slope is None else "No smooth calibration curve: " + why)
    fewest = min(labels.sum(), len(labels) - labels.sum())
    quantiles = (0.05, 0.35, 0.65, 0.95) if fewest >= _FOR_FOUR_KNOTS else (0.1, 0.5, 0.9)
    knots = np.quantile(logit, quantiles)
    remark = None
    if np.any(np.diff(knots) < _NEARLY_EQUAL):
        knots = np.empty(0)
        remark = "The smooth calibration curve is a straight line: too many scores are equal."
    # Within the central 98 % of the scores: beyond, the curve rests on a unit or two.
    ends = np.quantile(logit, (0.01, 0.99))
    grid = np.linspace(float(ends[0]), float(ends[1]), _GRID_POINTS)
    middle, spread = logit.mean(), float(np.ptp(logit))
    bends = (knots - middle) / spread
    columns, on_grid = (_spline((x - middle) / spread, bends) for x in (logit, grid))
    fitted = _fit(columns, labels, np.zeros_like(logit), patients)
    if fitted is None:
        return without("No smooth calibration curve: the logistic fit does not converge.")
    beta, influence = fitted
    linear = on_grid @ beta
    # One point at a time: points by patients would be the largest array of the report.
    reach = np.array([Spread.of(point @ influence).reach for point in on_grid])
    reach[reach <= _NO_REACH] = np.nan
    return SmoothCalibration(
        expit(grid), expit(linear), expit(linear - reach), expit(linear + reach), remark
    )


def _spline(x: Floats, knots: Floats) -> Floats:
    """(n, columns) of a restricted cubic spline, linear beyond its knots; a line without any."""
    columns = [np.ones_like(x), x]
    if len(knots):
        width = (knots[-1] - knots[0]) ** 2

        def cubed(knot: float) -> Floats:
            return np.asarray(np.maximum(x - knot, 0.0) ** 3)

        last, before = knots[-1], knots[-2]
        for knot in knots[:-2]:
            bent = cubed(knot) - cubed(before) * (last - knot) / (last - before)
            bent = bent + cubed(last) * (before - knot) / (last - before)
            columns.append(bent / width)
    return np.column_stack(columns)


def _logistic(
    columns: Floats, label: Floats, offset: Floats, patient: NDArray[np.int64]
) -> Coefficient | None:
    """The first coefficient of a logistic regression with an offset."""
    fitted = _fit(columns, label, offset, patient)
    return None if fitted is None else Coefficient(float(fitted[0][0]), Spread.of(fitted[1][0]))


def _fit(
    columns: Floats, label: Floats, offset: Floats, patient: NDArray[np.int64]
) -> tuple[Floats, Floats] | None:
    """Coefficients (k,) of a logistic regression, and each patient's influence on them (k, m).

    By Newton's method; None where it does not converge.
    """
    beta = np.zeros(columns.shape[1])
    likelihood = _likelihood(columns, label, offset, beta)
    for _ in range(_STEPS):
        information = np.zeros((len(beta), len(beta)))
        total = np.zeros(len(beta))
        for rows in _blocks(len(label)):
            score, weight = _score_and_weight(columns[rows], label[rows], offset[rows], beta)
            information += columns[rows].T @ (columns[rows] * weight[:, None])
            total += score.sum(axis=0)
        try:
            step = np.linalg.solve(information, total)
        except np.linalg.LinAlgError:
            return None
        start = beta
        # Newton overshoots where scores are extreme: halve the step until the likelihood rises.
        for _ in range(_STEPS):
            moved = _likelihood(columns, label, offset, beta + step)
            if moved >= likelihood or not np.any(np.abs(step) > _CONVERGED):
                break
            step = step / 2.0
        likelihood, beta = moved, beta + step
        if np.all(np.abs(step) < _CONVERGED):
            # Sandwich estimator: units of one patient are correlated, so scores are summed by
            # patient before they are squared.
            by_patient = np.zeros((len(beta), int(patient.max()) + 1))
            for rows in _blocks(len(label)):
                score, _ = _score_and_weight(columns[rows], label[rows], offset[rows], start)
                for j in range(len(beta)):
                    of_rows = np.bincount(patient[rows], weights=score[:, j])
                    by_patient[j, : len(of_rows)] += of_rows
            return beta, np.linalg.inv(information) @ by_patient
    return None


def _blocks(n: int) -> Iterator[slice]:
    """Rows in blocks: products over all rows would be the largest arrays of a report."""
    for start in range(0, n, _ROWS_AT_ONCE):
        yield slice(start, min(start + _ROWS_AT_ONCE, n))


def _score_and_weight(
    columns: Floats, label: Floats, offset: Floats, beta: Floats
) -> tuple[Floats, Floats]:
    """(n, k) gradient of each unit's log likelihood, and (n,) its weight in the information."""
    probability = expit(columns @ beta + offset)
    return columns * (label - probability)[:, None], probability * (1.0 - probability)


def _likelihood(columns: Floats, label: Floats, offset: Floats, beta: Floats) -> float:
    """Logarithm of the likelihood."""
    total = 0.0
    for rows in _blocks(len(label)):
        linear = columns[rows] @ beta + offset[rows]
        total += total_of_products(label[rows], linear) - float(np.logaddexp(0.0, linear).sum())
    return total


@dataclass(frozen=True)
class ReliabilityBins:
    """Bins of about equal size, by falling score; equal scores always share a bin.

    Attributes:
        edges: (bins + 1,) int64, the points of the curve that bound each bin, from 0.
        mean_score: (bins,) float64.
        n: (bins,) int64, units in each.
    """

    edges: NDArray[np.int64]
    mean_score: Floats
    n: NDArray[np.int64]

    def observed(self, curve: Curve) -> Floats:
        """(bins,) share of positives in each bin under a curve's weights; NaN where it is empty."""
        positive = np.diff(curve.true_positives[self.edges])
        every = positive + np.diff(curve.false_positives[self.edges])
        observed = np.full(len(every), np.nan)
        np.divide(positive, every, out=observed, where=every > 0)
        return observed


def reliability_bins(ranking: Ranking, score: ArrayLike, bins: int) -> ReliabilityBins:
    """Cut a ranking into bins of about equal size.

    Args:
        ranking: of the units.
        score: (n,) their scores, in the order in which the ranking received them.
        bins: the number wanted; ties can leave fewer.
    """
    falling = np.asarray(score, dtype=np.float64)[ranking.order]
    n = len(falling)
    ends = ranking.last + 1  # units down to and including each distinct score
    # Each bin ends with the first distinct score that completes its share of the units, which is
    # rounded to the nearest unit.
    wanted = np.arange(1, bins + 1) * n / bins
    points = np.unique(np.searchsorted(ends, wanted - 0.5, side="left")) + 1
    edges = np.concatenate([[0], points]).astype(np.int64)
    counted = np.concatenate([[0], ends])[edges]
    total = np.concatenate([[0.0], np.cumsum(falling)])[counted]
    size = np.diff(counted)
    return ReliabilityBins(edges, np.diff(total) / size, size.astype(np.int64))
