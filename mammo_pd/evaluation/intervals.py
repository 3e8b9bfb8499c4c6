"""Confidence limits for few patients: estimates and their spread go in, limits come out.

Units of one patient are correlated, so every variance is a sum over patients. With few patients the
variance is itself uncertain: its degrees of freedom come from the patients who contribute to it,
and where only one or two do, the variance of independent patients is added. How often each limit
holds is measured in benchmarks/interval_coverage.py; docs/statistics.md has the table.

Shapes: n units, m patients, k limits asked for at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv, betaln, expit, logit, ndtri, owens_t, stdtrit
from scipy.stats import binom

Floats = NDArray[np.float64]
Interval = tuple[float, float]

LEVEL = 0.95
_UPPER = 0.5 + LEVEL / 2.0
# How many patients the variance of independent patients counts for beside the observed one.
_PRIOR_OF_A_SHARE = 2.0
_PRIOR_OF_AN_AUC = 4.0
# Patients count in full down to two thirds of them making up a share equally (Kish 1965): of less,
# the patients who would are multiplied by this (benchmarks/unequal_patients.py).
_OF_EQUAL_PATIENTS = 1.5
_STEPS = 7
_NEARLY_0 = 1e-12
# Where the influences of every patient cancel out, rounding leaves a width of this share at most.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Spread:
    """The variance of an estimate, as its patients show it.

    Attributes:
        variance: the sum of the squares of the patients' influences.
        patients: how many patients of equal influence would give it (Kish 1965).
    """

    variance: float
    patients: float

    @classmethod
    def of(cls, influence: ArrayLike) -> "Spread":
        """Sum up.

        Args:
            influence: (m,) how far each patient moves the estimate.
        """
        squared = np.asarray(influence, dtype=np.float64) ** 2
        variance = float(squared.sum())
        fourth = float((squared**2).sum())
        return cls(variance, variance**2 / fourth if fourth > 0.0 else 0.0)

    @property
    def reach(self) -> float:
        """Half the width of a 95 % interval: the standard error times a quantile of t."""
        return student_quantile(self.patients + 1.0) * float(np.sqrt(self.variance))


def student_quantile(freedom: float) -> float:
    """The quantile of t that bounds a 95 % interval; the normal one for infinite freedom."""
    return float(ndtri(_UPPER) if np.isinf(freedom) else stdtrit(max(freedom, 1.0), _UPPER))


def plain_limits(value: float, spread: Spread) -> Interval | None:
    """Limits of a number of any size; None where no patient moves it."""
    if spread.reach <= _ROUNDING * max(abs(value), 1.0):
        return None
    return value - spread.reach, value + spread.reach


def log_limits(value: float, spread: Spread) -> Interval | None:
    """Limits of a positive number, symmetrical on its logarithm; None where no patient moves it."""
    if value <= 0.0 or spread.reach <= _ROUNDING * value:
        return None
    reach = spread.reach / value
    return float(value * np.exp(-reach)), float(value * np.exp(reach))


def logit_limits(value: float, spread: Spread) -> Interval | None:
    """Limits of a number between 0 and 1, symmetrical on its logit; None at the ends.

    Also None where no patient moves it.
    """
    if not 0.0 < value < 1.0 or spread.reach <= _ROUNDING * min(value, 1.0 - value):
        return None
    middle, reach = float(logit(value)), spread.reach / (value * (1.0 - value))
    return float(expit(middle - reach)), float(expit(middle + reach))


def count_ratio_limits(expected: float, observed: float, spread: Spread) -> Interval | None:
    """Limits of expected over observed cases, of which the observed vary like a Poisson count.

    Args:
        expected: sum of the probabilities.
        observed: number of cases, at least 1.
        spread: of the observed less the expected, scaled to equal totals.

    Source: the score interval of a Poisson mean, its variance multiplied by the dispersion seen.
    """
    if spread.reach <= _ROUNDING * observed:
        return None
    wide = student_quantile(spread.patients + 1.0) ** 2 * spread.variance / observed
    middle, reach = observed + wide / 2.0, float(np.sqrt(wide * (observed + wide / 4.0)))
    low, high = middle - reach, middle + reach
    return (expected / high, expected / low) if low > 0.0 else None


def equal_patients(patient: ArrayLike) -> float:
    """How many patients with equally many units would determine a mean as precisely.

    Their number if all have as many. A patient with 30 units beside nine with one each is most of
    a mean, which then counts as that of 1.7 patients and not of 10.

    Args:
        patient: (n,) of each unit, any values; the units of a patient are taken to be alike.

    Returns:
        From 1 to the number of patients; 0 without units.

    Source: Kish 1965.
    """
    units = np.unique(np.asarray(patient), return_counts=True)[1].astype(np.float64)
    return float(units.sum() ** 2 / (units**2).sum()) if len(units) else 0.0


def independent_patients(patient: ArrayLike) -> float:
    """How many patients count for the degrees of freedom, and the prior variance, of an AUC.

    All of them, unless a few have most of the units: then fewer, as what a few patients decide
    varies as they do.

    Args:
        patient: (n,) of each unit of a class, any values.
    """
    whole = float(len(np.unique(np.asarray(patient))))
    return min(whole, _OF_EQUAL_PATIENTS * equal_patients(patient))


def effective_size(share: float, units: ArrayLike, away: ArrayLike) -> float:
    """The number of independent units that determine a share as precisely as these units.

    Args:
        share: of the units that are hit.
        units: (m,) units of each patient, at least 1.
        away: (m,) hits of each patient less ``share`` times her units.

    Source: Korn and Graubard 1998; the design effect is that of patients whose units all agree
    where hardly any patient shows how much they do.
    """
    counts = np.asarray(units, dtype=np.float64)
    total = float(counts.sum())
    alike = float((counts**2).sum()) / total**2  # the variance over that of one unit
    spread = Spread.of(np.asarray(away, dtype=np.float64) / total)
    return min(size_of_a_mean(share, spread, alike), total)


def size_of_a_mean(mean: float, spread: Spread, alike: float) -> float:
    """The number of independent zeros and ones whose mean has the same variance.

    Args:
        mean: of numbers in [0, 1].
        spread: of the mean.
        alike: the variance of the mean over that of one zero or one if patients were independent
            and each patient's numbers equal: one over the number of patients with one unit each.
    """
    of_one = mean * (1.0 - mean)
    if of_one <= 0.0:
        return 1.0 / alike
    seen, prior = spread.patients, _PRIOR_OF_A_SHARE
    return of_one * (seen + prior) / (seen * spread.variance + prior * of_one * alike)


def share_limits(share: ArrayLike, size: ArrayLike) -> tuple[Floats, Floats]:
    """Mid-p limits of shares: the exact ones of Clopper and Pearson, less half the chance of a tie.

    Args:
        share: (k,) in [0, 1].
        size: (k,) effective sizes, which need not be whole.

    Returns:
        (k,) low, (k,) high; never equal, low 0 for a share of 0 and high 1 for a share of 1.

    Source: Lancaster 1961; Berry and Armitage 1995. The binomial tail is continued to fractions by
    the beta function.
    """
    shares, sizes = np.broadcast_arrays(
        np.asarray(share, dtype=np.float64), np.asarray(size, dtype=np.float64)
    )
    hits = shares * sizes
    misses = sizes - hits
    tail = (1.0 - LEVEL) / 2.0
    low = np.where(shares > 0.0, _where_tail_is(tail, hits, misses), 0.0)
    # The same with hits and misses exchanged.
    high = np.where(shares < 1.0, 1.0 - _where_tail_is(tail, misses, hits), 1.0)
    return np.minimum(low, shares), np.maximum(high, shares)


def _where_tail_is(tail: float, hits: Floats, misses: Floats) -> Floats:
    """The probability at which this many hits or more have mid-p ``tail``, by Newton's method."""
    # betainc is undefined where a shape is 0: the limit is that of a shape of nearly 0.
    hits, misses = np.maximum(hits, _NEARLY_0), np.maximum(misses, _NEARLY_0)
    # It lies between the exact limits that count a tie wholly and not at all.
    low, high = betaincinv(hits, misses + 1.0, tail), betaincinv(hits + 1.0, misses, tail)
    tried: Floats = (low + high) / 2.0
    scale = -betaln(hits, misses + 1.0)
    other = -betaln(hits + 1.0, misses)
    for _ in range(_STEPS):
        away = betainc(hits, misses + 1.0, tried) + betainc(hits + 1.0, misses, tried) - 2.0 * tail
        low, high = np.where(away < 0.0, tried, low), np.where(away < 0.0, high, tried)
        with np.errstate(all="ignore"):
            on, off = np.log(tried), np.log1p(-tried)
            slope = np.exp(scale + (hits - 1.0) * on + misses * off)
            slope = slope + np.exp(other + hits * on + (misses - 1.0) * off)
            tried = tried - away / slope
        # A step that leaves the bracket (or is undefined) becomes one of bisection.
        inside = (tried >= low) & (tried <= high)
        tried = np.where(inside, tried, (low + high) / 2.0)
    return tried


def quantile_limits(share: ArrayLike, size: ArrayLike) -> tuple[Floats, Floats]:
    """The shares of a sample between which the quantile of ``share`` lies.

    Of n units, a binomial number lies beyond the true quantile: its limits name the order
    statistics that bound it, whatever the distribution.

    Args:
        share: (k,) of the population that lies beyond the quantile, in [0, 1].
        size: (k,) effective sizes of the sample.

    Returns:
        (k,) low, (k,) high, shares of the sample; high can exceed 1, where no unit bounds it.

    Source: Thompson 1936; with the effective size of a clustered sample, Woodruff 1952.
    """
    shares = np.asarray(share, dtype=np.float64)
    whole = np.maximum(np.round(np.asarray(size, dtype=np.float64)), 1.0)
    tail = (1.0 - LEVEL) / 2.0
    return binom.ppf(tail, whole, shares) / whole, (binom.ppf(_UPPER, whole, shares) + 1.0) / whole


def share_interval(share: float, size: float) -> Interval:
    """``share_limits`` of one share."""
    low, high = share_limits(share, size)
    return float(low), float(high)


def auc_interval(
    auc: float, spread: Spread, positive: float, negative: float, pairs: int
) -> Interval:
    """Score interval of an AUC from a clustered variance.

    The variance depends on the AUC that is tried as that of a binormal curve does, and is scaled to
    the one observed. Near 1 the observed one comes from a patient or two; that of independent
    patients, which counts for four, keeps it from vanishing.

    Args:
        auc: the estimate.
        spread: of Obuchowski's influences, summed by patient.
        positive: patients with a positive unit, as ``independent_patients`` counts them.
        negative: patients with a negative unit, the same.
        pairs: of a positive and a negative that share no patient.

    Returns:
        Low and high. At an AUC of 0 or 1 they are exact for the pairs, whatever the scores' shape.

    Source: Obuchowski 1997 (variance), Obuchowski 1994 (binormal), Newcombe 2006 (inversion).
    """
    if auc in (0.0, 1.0):
        return interval_at_the_end(auc, pairs)
    by_model = _binormal_variance(auc, positive, negative)
    seen, prior = spread.patients, _PRIOR_OF_AN_AUC
    scale = (seen * spread.variance / by_model + prior) / (seen + prior)
    wide = student_quantile(seen + prior - 1.0) ** 2 * scale

    def beyond(tried: float) -> float:
        return (auc - tried) ** 2 - wide * _binormal_variance(tried, positive, negative)

    return _root(beyond, 0.0, auc), _root(beyond, 1.0, auc)


def _root(beyond: Callable[[float], float], end: float, inside: float) -> float:
    near = end + (inside - end) * 1e-9
    return end if beyond(near) <= 0.0 else float(brentq(beyond, near, inside, xtol=1e-10))


def _binormal_variance(auc: float, positive: float, negative: float) -> float:
    """Variance of an AUC of independent normal scores of equal variance.

    The chance that one positive exceeds two negatives is a bivariate normal integral of
    correlation 1/2, which Owen's function gives.
    """
    both = auc - 2.0 * float(owens_t(ndtri(auc), 1.0 / np.sqrt(3.0)))
    variance = auc * (1.0 - auc) + (positive + negative - 2) * (both - auc**2)
    return max(variance, 1e-12) / (positive * negative)


def interval_at_the_end(value: float, n: int) -> Interval:
    """Clopper and Pearson's interval of a share that is 0 or 1 in ``n`` independent trials.

    For an AUC the trials are pairs that share no patient: all of them are in order with
    probability AUC to the power of n, so the limits hold for an AUC of 1 whatever the
    distribution of the scores.

    Args:
        value: 0 or 1.
        n: number of trials, at least 1.

    Source: Clopper and Pearson 1934.
    """
    far = float(((1.0 - LEVEL) / 2.0) ** (1.0 / n))
    return (far, 1.0) if value > 0.5 else (0.0, 1.0 - far)


def joined(value: float, *intervals: Interval) -> Interval:
    """The interval of a share that is uncertain for several independent reasons.

    Args:
        value: the estimate, in [0, 1].
        intervals: its limits for each reason alone.

    Source: Zou and Donner 2008 (MOVER): distances from the estimate add up as squares.
    """
    below = sum((value - min(low, value)) ** 2 for low, _ in intervals)
    above = sum((max(high, value) - value) ** 2 for _, high in intervals)
    return max(value - float(np.sqrt(below)), 0.0), min(value + float(np.sqrt(above)), 1.0)


def ratio_interval(first: float, of_first: Interval, other: float, of_other: Interval) -> Interval:
    """The interval of ``first / other``, two independent shares.

    Returns:
        Low and high; high is infinite where ``other`` may be 0.

    Source: Donner and Zou 2012 (MOVER for ratios).
    """
    (l1, u1), (l2, u2) = of_first, of_other
    product = first * other
    low = 0.0
    if first > 0.0:
        inside = max(product**2 - l1 * u2 * (2.0 * first - l1) * (2.0 * other - u2), 0.0)
        below = u2 * (2.0 * other - u2)
        # Both forms of the root; the second is that of a denominator of about 0.
        low = (
            (product - float(np.sqrt(inside))) / below
            if abs(below) > 1e-12
            else l1 * (2.0 * first - l1) / (2.0 * product)
        )
    above = l2 * (2.0 * other - l2)
    if above <= 0.0:
        return max(low, 0.0), float("inf")
    inside = max(product**2 - u1 * l2 * (2.0 * first - u1) * (2.0 * other - l2), 0.0)
    return max(low, 0.0), (product + float(np.sqrt(inside))) / above
