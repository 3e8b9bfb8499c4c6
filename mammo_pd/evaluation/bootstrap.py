"""Intervals by resampling patients: how often each patient counts goes out, an interval comes back.

Images of one patient resemble one another, so patients are drawn, never images. A resample is a
vector of counts, one per patient; nothing is copied.
"""

from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Fewer resamples than this on which a figure exists, and its percentiles mean nothing.
MIN_USABLE = 100


def patient_weights(n_patients: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Draw ``n_patients`` patients with replacement, ``resamples`` times.

    Yields:
        (n_patients,) float64, how often each patient was drawn; the sum is ``n_patients``.
    """
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = generator.integers(0, n_patients, size=n_patients)
        yield np.bincount(drawn, minlength=n_patients).astype(np.float64)


def percentile_interval(values: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """The middle ``level`` of the resampled figures, NaN left out (Efron's percentile interval).

    Args:
        values: (resamples,) one figure per resample; NaN where it does not exist.
        level: the share that the interval holds.

    Returns:
        Low and high, or None where too few resamples have the figure.
    """
    tail = (1.0 - level) / 2.0
    return _quantiles(values, tail, 1.0 - tail)


def corrected_interval(
    values: Floats, estimate: float, influence: Floats, level: float = 0.95
) -> tuple[float, float] | None:
    """The interval of a skewed figure, bias-corrected and accelerated (Efron 1987, BCa).

    The plain percentiles of an AUC miss the truth below more often than above.

    Args:
        values: (resamples,) one figure per resample; NaN where it does not exist.
        estimate: the figure on all patients.
        influence: (patients,) how much each patient moves the figure, up to a common factor.
        level: the share that the interval holds.

    Returns:
        Low and high, or None where too few resamples have the figure.
    """
    tail = (1.0 - level) / 2.0
    usable = values[~np.isnan(values)]
    spread = float((influence**2).sum())
    if spread == 0.0 or not len(usable):  # no patient moves it: there is nothing to correct
        return _quantiles(values, tail, 1.0 - tail)
    normal = NormalDist()
    below = float(((usable < estimate).mean() + (usable <= estimate).mean()) / 2.0)
    edge = 1.0 / (len(usable) + 1)
    bias = normal.inv_cdf(min(max(below, edge), 1.0 - edge))
    acceleration = float((influence**3).sum()) / (6.0 * spread**1.5)

    def corrected(share: float) -> float:
        moved = bias + normal.inv_cdf(share)
        return normal.cdf(bias + moved / (1.0 - acceleration * moved))

    return _quantiles(values, corrected(tail), corrected(1.0 - tail))


def _quantiles(values: Floats, low: float, high: float) -> tuple[float, float] | None:
    usable = values[~np.isnan(values)]
    if len(usable) < min(MIN_USABLE, len(values)) or not len(usable):
        return None
    lower, upper = np.quantile(usable, (low, high))
    return float(lower), float(upper)
