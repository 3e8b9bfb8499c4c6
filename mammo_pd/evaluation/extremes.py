"""Intervals of an AUC or a rate that is 0 or 1, where no resample can differ from the data.

Labels and patients go in, exact limits come out. A bootstrap interval has zero width there, which
would read as certainty.
"""

import numpy as np
from numpy.typing import ArrayLike


def independent_pairs(label: ArrayLike, patient: ArrayLike) -> int:
    """How many pairs of a positive and a negative of different patients share no patient.

    Args:
        label: (n,) 0 or 1.
        patient: (n,) int, the patient of each unit.
    """
    labels, patients = np.asarray(label), np.asarray(patient)
    positive, negative = np.unique(patients[labels == 1]), np.unique(patients[labels == 0])
    every = len(np.union1d(positive, negative))
    return min(len(positive), len(negative), every // 2)


def interval_at_the_end(value: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share that is 0 or 1 in ``n`` independent trials.

    For an AUC the trials are pairs that share no patient: all of them are in order with
    probability AUC to the power of n, so the limits hold for an AUC of 1 at whatever shape of
    the scores. For a rate they are patients.

    Args:
        value: 0 or 1.
        n: number of trials, at least 1.
        level: nominal coverage.

    Source: Clopper and Pearson 1934.
    """
    far = float(((1.0 - level) / 2.0) ** (1.0 / n))
    return (far, 1.0) if value > 0.5 else (0.0, 1.0 - far)


def widened_at_the_end(
    value: float, interval: tuple[float, float] | None, n: int | None
) -> tuple[float, float] | None:
    """An interval that says how little is known of a value of 0 or 1.

    Args:
        value: the estimate.
        interval: as resampled, or None.
        n: independent trials behind a value in [0, 1]; None where they cannot be counted.

    Returns:
        The resampled interval; joined with the exact one where the value is 0 or 1; None where the
        resamples did not vary it and it has no exact one.
    """
    # A rate that is made of others is 1 but for its last bit.
    at_the_end = min(abs(value), abs(value - 1.0)) < 1e-12
    if at_the_end and n:
        low, high = interval_at_the_end(value, n)
        return (low, high) if interval is None else (min(low, interval[0]), max(high, interval[1]))
    if interval is not None and interval[1] - interval[0] < 1e-12:
        return None
    return interval
