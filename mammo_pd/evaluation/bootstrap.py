"""Bootstrap intervals, resampled by patient: counts per patient go out, an interval comes back.

Images of one patient are correlated, so whole patients are drawn, never single images. A resample
is a vector of counts, one per patient; no rows are copied.

Shapes: b resamples.
"""

from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# With fewer usable resamples, the outer percentiles rest on two or three values.
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
    """The central ``level`` of the resampled values, NaN left out (Efron's percentile interval).

    Args:
        values: (b,) one value per resample; NaN where it is undefined.
        level: nominal coverage.

    Returns:
        Low and high, or None where the value is defined in too few resamples.
    """
    tail = (1.0 - level) / 2.0
    return _quantiles(values, tail, 1.0 - tail)


def corrected_interval(
    values: Floats, estimate: float, influence: Floats, level: float = 0.95
) -> tuple[float, float] | None:
    """Bias-corrected and accelerated interval (BCa) of a skewed statistic.

    The plain percentile interval of an AUC misses the true value below more often than above.

    Args:
        values: (b,) one value per resample; NaN where it is undefined.
        estimate: the statistic on all patients, computed exactly as in the resamples.
        influence: (patients,) how much each patient moves the statistic, up to a common factor.
        level: nominal coverage.

    Returns:
        Low and high, or None where the value is defined in too few resamples.

    Source: Efron 1987.
    """
    tail = (1.0 - level) / 2.0
    usable = values[~np.isnan(values)]
    spread = float((influence**2).sum())
    if spread == 0.0 or not len(usable):  # no patient moves it: there is nothing to correct
        return _quantiles(values, tail, 1.0 - tail)
    normal = NormalDist()
    # An AUC of few units takes few distinct values: count resamples that tie with it as half below.
    below = float(((usable < estimate).mean() + (usable <= estimate).mean()) / 2.0)
    edge = 1.0 / (len(usable) + 1)  # inv_cdf is infinite at 0 and 1
    bias = normal.inv_cdf(min(max(below, edge), 1.0 - edge))
    acceleration = float((influence**3).sum()) / (6.0 * spread**1.5)

    def corrected(share: float) -> float:
        moved = bias + normal.inv_cdf(share)
        return normal.cdf(bias + moved / (1.0 - acceleration * moved))

    return _quantiles(values, corrected(tail), corrected(1.0 - tail))


def _quantiles(values: Floats, low: float, high: float) -> tuple[float, float] | None:
    usable = values[~np.isnan(values)]
    # Whoever asks for fewer than MIN_USABLE resamples in all (a quick look) still gets an interval.
    if len(usable) < min(MIN_USABLE, len(values)) or not len(usable):
        return None
    lower, upper = np.quantile(usable, (low, high))
    return float(lower), float(upper)
