"""Sensitivity, specificity and what follows from them: counts go in, rates with limits come out.

Everything is in closed form, so that two hundred thresholds, or a decision curve, cost no resample.
The units of a patient are correlated: a rate counts as that of so many patients as if the units of
each were alike. The prevalence counts as known.

Shapes: k thresholds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mammo_pd.evaluation.intervals import equal_patients, share_limits
from mammo_pd.evaluation.measures import Row, number
from mammo_pd.evaluation.roc import Floats


@dataclass(frozen=True)
class Rate:
    """Rates with their 95 % limits, NaN where they are undefined.

    Attributes:
        value: (k,) float64.
        low: (k,) float64.
        high: (k,) float64.
    """

    value: Floats
    low: Floats
    high: Floats

    def __rsub__(self, one: float) -> "Rate":
        """``1 - rate``: specificity from the share of false alarms."""
        return Rate(one - self.value, one - self.high, one - self.low)

    def __mul__(self, factor: "float | Floats") -> "Rate":
        """Scaled by numbers that are known and not negative."""
        return Rate(self.value * factor, self.low * factor, self.high * factor)

    def __add__(self, other: "Rate") -> "Rate":
        """The sum of two independent ones, by the method of variance estimates recovery.

        Source: Zou and Donner 2008.
        """
        value = self.value + other.value
        return Rate(
            value,
            value - np.hypot(self.value - self.low, other.value - other.low),
            value + np.hypot(self.high - self.value, other.high - other.value),
        )

    def __sub__(self, other: "Rate") -> "Rate":
        """The difference of two independent ones, by the same method."""
        return self + Rate(-other.value, -other.high, -other.low)

    def clipped(self) -> "Rate":
        """Within [0, 1]: a sum of rates may have limits beyond."""
        low, high = np.clip([self.low, self.high], 0.0, 1.0)
        return Rate(self.value, low, high)

    def column(self, name: str, row: int) -> Row:
        """The cells ``name, name_ci_low, name_ci_high`` of one threshold.

        A rate that is known has no limits.
        """
        low, high = number(self.low[row]), number(self.high[row])
        known = low == high
        return {
            name: number(self.value[row]),
            f"{name}_ci_low": None if known else low,
            f"{name}_ci_high": None if known else high,
        }


def rate_by_patient(rate: ArrayLike, patients: float) -> Rate:
    """Shares of units with mid-p limits for the patients that the units belong to.

    Args:
        rate: (k,) in [0, 1].
        patients: who have a unit in the denominator, as ``equal_patients`` counts them; 0 makes
            the rate undefined.

    Counting patients for units is safe where the units of a patient are alike, and too cautious
    where they are not.
    """
    value = np.asarray(rate, dtype=np.float64)
    if patients <= 0:
        nothing = np.full_like(value, np.nan)
        return Rate(nothing, nothing, nothing)
    return Rate(value, *share_limits(value, patients))


def predictive_value(right: Rate, wrong: Rate, prevalence: float) -> Rate:
    """The predictive value of a decision, by Bayes' rule.

    Args:
        right: share of the class that is decided so (for the PPV the sensitivity).
        wrong: share of the other class decided so (for the PPV the false-alarm rate).
        prevalence: share of the class among all units, in (0, 1).

    Returns:
        NaN where no unit is decided so.

    Source: Donner and Zou 2012, for the ratio of two independent rates.
    """
    s, f = right.value, wrong.value
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = s / f
        # Both limits in the form that stays finite where a denominator is 0.
        below = right.low * (2.0 * s - right.low)
        under_root = (s * f) ** 2 - below * wrong.high * (2.0 * f - wrong.high)
        low = below / (s * f + np.sqrt(np.maximum(under_root, 0.0)))
        above = right.high * (2.0 * s - right.high)
        under_root = (s * f) ** 2 - above * wrong.low * (2.0 * f - wrong.low)
        high = (s * f + np.sqrt(np.maximum(under_root, 0.0))) / (wrong.low * (2.0 * f - wrong.low))
        odds = prevalence / (1.0 - prevalence)

        def share(of: Floats) -> Floats:
            return np.where(np.isinf(of), 1.0, odds * of / (1.0 + odds * of))

        value = share(ratio)
        low = np.where(s > 0.0, share(low), 0.0)
        high = share(np.where(wrong.low > 0.0, high, np.inf))
    called = (s > 0.0) | (f > 0.0)
    return Rate(*(np.where(called, limit, np.nan) for limit in (value, low, high)))


@dataclass(frozen=True)
class Decisions:
    """The decisions on a level's units at each threshold.

    Attributes:
        tp: (k,) int64, flagged positives.
        fp: (k,) int64, flagged negatives.
        positives: number of positive units.
        negatives: number of negative units.
        positive_patients: who have a positive unit, as ``equal_patients`` counts them.
        negative_patients: who have a negative unit, the same.
    """

    tp: np.ndarray
    fp: np.ndarray
    positives: int
    negatives: int
    positive_patients: float
    negative_patients: float

    @classmethod
    def of(cls, units: pd.DataFrame, tp: ArrayLike, fp: ArrayLike) -> "Decisions":
        """From counts at some thresholds.

        Args:
            units: ``patient_id, label``, one row per unit.
            tp: (k,) how many positives are flagged.
            fp: (k,) how many negatives are.
        """
        positive = units["label"].to_numpy() == 1
        patient = pd.factorize(units["patient_id"])[0]
        return cls(
            np.atleast_1d(np.asarray(tp, dtype=np.int64)),
            np.atleast_1d(np.asarray(fp, dtype=np.int64)),
            int(positive.sum()),
            int((~positive).sum()),
            equal_patients(patient[positive]),
            equal_patients(patient[~positive]),
        )

    @classmethod
    def where(cls, units: pd.DataFrame, flagged: ArrayLike) -> "Decisions":
        """From one decision per unit.

        Args:
            units: ``patient_id, label``, one row per unit.
            flagged: (n,) bool.
        """
        positive, called = units["label"].to_numpy() == 1, np.asarray(flagged, dtype=bool)
        return cls.of(units, int((positive & called).sum()), int((~positive & called).sum()))

    @property
    def sensitivity(self) -> Rate:
        """Share of the positives that are flagged."""
        return rate_by_patient(self.tp / max(self.positives, 1), self.positive_patients)

    @property
    def false_alarms(self) -> Rate:
        """Share of the negatives that are flagged, 1 - specificity."""
        return rate_by_patient(self.fp / max(self.negatives, 1), self.negative_patients)

    def prevalence(self, intended: float | None = None) -> float:
        """The intended use's, or that of the units."""
        return self.positives / (self.positives + self.negatives) if intended is None else intended

    def rows(self, prevalence: float | None = None) -> list[Row]:
        """The confusion table and all rates at each threshold, ready for JSON.

        Args:
            prevalence: share of positives in the intended use; that of the units when None.

        Returns:
            ``tp, fp, fn, tn``, then with limits ``sensitivity, specificity, recall_rate`` (share
            flagged), ``ppv, npv``; None where undefined.
        """
        share = self.prevalence(prevalence)
        sensitivity, false_alarms = self.sensitivity, self.false_alarms
        recalled = (sensitivity * share + false_alarms * (1.0 - share)).clipped()
        rates: Mapping[str, Rate] = {
            "sensitivity": sensitivity,
            "specificity": 1.0 - false_alarms,
            "recall_rate": recalled,
            "ppv": predictive_value(sensitivity, false_alarms, share),
            "npv": predictive_value(1.0 - false_alarms, 1.0 - sensitivity, 1.0 - share),
        }
        rows: list[Row] = []
        for i, (tp, fp) in enumerate(zip(self.tp.tolist(), self.fp.tolist(), strict=True)):
            row: Row = {"tp": tp, "fp": fp, "fn": self.positives - tp, "tn": self.negatives - fp}
            for name, rate in rates.items():
                row |= rate.column(name, i)
            rows.append(row)
        return rows
