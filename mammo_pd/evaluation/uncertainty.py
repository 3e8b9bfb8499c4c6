"""The 95 % intervals of every figure of a level: ranked units go in, limits come out.

A figure whose interval would not hold has none; ``Uncertainty.remarks`` says why. The method of
each figure, its source and how often it holds: docs/statistics.md.

Shapes: n units, m patients, t distinct scores, g points of a grid.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mammo_pd.evaluation.intervals import (
    LEVEL,
    Floats,
    Interval,
    Spread,
    auc_interval,
    count_ratio_limits,
    effective_size,
    independent_patients,
    joined,
    log_limits,
    logit_limits,
    quantile_limits,
    ratio_interval,
    share_interval,
    share_limits,
    size_of_a_mean,
)
from mammo_pd.evaluation.roc import Curve, Ranking, placements, total_of_products

# A re-weighted average precision rests on the negatives that score among the positives: where
# fewer than five of them are expected there, it is far too high.
_NEGATIVES_AMONG_POSITIVES = 5.0
_ALL = 1.0 - 1e-9


def patients_for_rate(rate: float) -> int:
    """The fewest patients of a class for which a threshold that keeps this share of it has a limit.

    All of n patients lie beyond such a threshold with probability ``rate`` to the power of n; where
    that exceeds 2.5 %, the threshold may lie beyond every score seen, by an unknown amount.

    Source: the order statistics' interval of a quantile (Thompson 1936).
    """
    return int(np.ceil(np.log((1.0 - LEVEL) / 2.0) / np.log(rate)))


def auc_interval_by_patient(label: ArrayLike, score: ArrayLike, patient: ArrayLike) -> Interval:
    """The interval of an AUC; there must be two patients with a positive and two with a negative.

    Args:
        label: (n,) 0 or 1.
        score: (n,).
        patient: (n,) int, from 0.

    Source: Obuchowski 1997 for the variance.
    """
    labels, patients = np.asarray(label, dtype=bool), np.asarray(patient, dtype=np.intp)
    n = int(patients.max()) + 1
    of_positives, of_negatives = placements(labels, score)
    auc = float(of_positives.mean())
    moved, counts = [], []
    for of_class, placed in ((labels, of_positives), (~labels, of_negatives)):
        away = (placed - placed.mean()) / len(placed)
        moved.append(np.bincount(patients[of_class], weights=away, minlength=n).astype(np.float64))
        counts.append(len(np.unique(patients[of_class])))
    # The means were estimated from the same patients, hence n / (n - 1) as in a sample's variance.
    variance = sum(
        float((of_class**2).sum()) * count / (count - 1)
        for of_class, count in zip(moved, counts, strict=True)
    )
    variance += 2.0 * total_of_products(*moved) * n / (n - 1)
    both = np.intersect1d(patients[labels], patients[~labels]).size
    pairs = min(*counts, (counts[0] + counts[1] - both) // 2)
    spread = Spread(max(variance, 0.0), Spread.of(moved[0] + moved[1]).patients)
    positive, negative = (independent_patients(patients[one]) for one in (labels, ~labels))
    return auc_interval(auc, spread, positive, negative, pairs)


@dataclass(frozen=True)
class _Units:
    """Some units by falling score.

    Attributes:
        patient: (n,) intp, of each unit.
        m: number of patients in all, with or without such units.
    """

    patient: NDArray[np.intp]
    m: int

    @cached_property
    def units(self) -> NDArray[np.int64]:
        """(m,) units of each patient."""
        return np.bincount(self.patient, minlength=self.m)

    @cached_property
    def _sizes(self) -> dict[int, float]:
        # Many points of a band have the same count.
        return {}

    @cached_property
    def patients(self) -> int:
        """Number of patients who have such units."""
        return int((self.units > 0).sum())

    def size_of(self, hit: NDArray[np.bool_]) -> float:
        """The effective size of the share of units that are hit, (n,)."""
        hits = np.bincount(self.patient[hit], minlength=self.m)
        share = float(hits.sum()) / len(self.patient)
        return effective_size(share, self.units, hits - share * self.units)

    def size(self, first: int) -> float:
        """The effective size of the share that lies among the ``first`` units."""
        if first not in self._sizes:
            hits = np.bincount(self.patient[:first], minlength=self.m)
            share = first / len(self.patient)
            away = hits - share * self.units
            self._sizes[first] = effective_size(share, self.units, away)
        return self._sizes[first]

    def interval(self, first: int) -> Interval:
        """Interval of the share of units among the ``first``."""
        return share_interval(first / len(self.patient), self.size(first))


def _turned(interval: Interval) -> Interval:
    """Interval of one minus a share."""
    return 1.0 - interval[1], 1.0 - interval[0]


def _as_share(odds: Interval) -> Interval:
    low, high = odds
    return low / (1.0 + low), high / (1.0 + high) if np.isfinite(high) else 1.0


@dataclass(frozen=True)
class Uncertainty:
    """The intervals of the figures of some units.

    Attributes:
        ranking: of the units; both classes are present, each in two patients at least.
        patient: (n,) intp, from 0, in the order in which the ranking received the units.
        score: (n,) float64, the same order.
        prevalence: share of positives in the intended use; None for that of the data.
    """

    ranking: Ranking
    patient: NDArray[np.intp]
    score: Floats
    prevalence: float | None

    @cached_property
    def _curve(self) -> Curve:
        return self.ranking.curve()

    @cached_property
    def _m(self) -> int:
        return int(self.patient.max()) + 1

    @cached_property
    def _everyone(self) -> _Units:
        return _Units(self.patient[self.ranking.order], self._m)

    @cached_property
    def _positives(self) -> _Units:
        return _Units(self._everyone.patient[self.ranking.positive == 1], self._m)

    @cached_property
    def _negatives(self) -> _Units:
        return _Units(self._everyone.patient[self.ranking.positive == 0], self._m)

    @cached_property
    def _share(self) -> float:
        curve = self._curve
        counted = curve.positives / (curve.positives + curve.negatives)
        return counted if self.prevalence is None else self.prevalence

    def _share_interval(self) -> Interval:
        """Interval of the prevalence; a given prevalence has no width."""
        if self.prevalence is not None:
            return self.prevalence, self.prevalence
        return share_interval(self._share, self._everyone.size_of(self.ranking.positive == 1))

    def _counts(self, point: int) -> tuple[int, int]:
        """Positives and negatives flagged at a point of the curve."""
        curve = self._curve
        return round(curve.true_positives[point]), round(curve.false_positives[point])

    def auc(self) -> Interval:
        """Interval of the AUC."""
        label = np.empty(len(self.patient))
        label[self.ranking.order] = self.ranking.positive
        return auc_interval_by_patient(label, self.score, self.patient)

    def rates(self, point: int) -> dict[str, Interval | None]:
        """Intervals of what ``thresholds.rates_at`` returns, at a fixed threshold."""
        hits, alarms = self._counts(point)
        sensitivity, false_alarm = self._positives.interval(hits), self._negatives.interval(alarms)
        found: dict[str, Interval | None] = {
            "sensitivity": sensitivity,
            "specificity": _turned(false_alarm),
        }
        flagged, every = hits + alarms, len(self.patient)
        if self.prevalence is None:
            found["recall_rate"] = self._everyone.interval(flagged)
            positive, patient = self.ranking.positive == 1, self._everyone.patient
            found["ppv"] = found["npv"] = None
            if flagged:
                units = _Units(patient[:flagged], self._m)
                found["ppv"] = share_interval(hits / flagged, units.size_of(positive[:flagged]))
            if flagged < every:
                units = _Units(patient[flagged:], self._m)
                missed = (self._curve.positives - hits) / (every - flagged)
                size = units.size_of(~positive[flagged:])
                found["npv"] = share_interval(1.0 - missed, size)
            return found
        return found | self._re_weighted(hits, alarms, sensitivity, false_alarm)

    def _re_weighted(
        self, hits: int, alarms: int, sensitivity: Interval, false_alarm: Interval
    ) -> dict[str, Interval | None]:
        """Share flagged and predictive values at the prevalence given, by Bayes' rule."""
        share = self._share
        found = hits / self._curve.positives
        alarm = alarms / self._curve.negatives
        flagged = share * found + (1.0 - share) * alarm
        odds = share / (1.0 - share)
        intervals: dict[str, Interval | None] = {
            "recall_rate": self._sum(flagged, (share, found, sensitivity), (alarm, false_alarm)),
            "ppv": None,
            "npv": None,
        }
        if hits + alarms:
            low, high = ratio_interval(found, sensitivity, alarm, false_alarm)
            intervals["ppv"] = _as_share((odds * low, odds * high))
        if hits + alarms < len(self.patient):
            low, high = ratio_interval(
                1.0 - alarm, _turned(false_alarm), 1.0 - found, _turned(sensitivity)
            )
            intervals["npv"] = _as_share((low / odds, high / odds))
        return intervals

    @staticmethod
    def _sum(
        value: float, positive: tuple[float, float, Interval], negative: tuple[float, Interval]
    ) -> Interval:
        """Interval of ``share * rate + (1 - share) * other``."""
        share, rate, (low, high) = positive
        other, (other_low, other_high) = negative
        return joined(
            value,
            (value - share * (rate - low), value + share * (high - rate)),
            (
                value - (1.0 - share) * (other - other_low),
                value + (1.0 - share) * (other_high - other),
            ),
        )

    def sensitivity_at(self, specificity: float) -> Interval | None:
        """Interval of the sensitivity at a specificity, with the uncertainty of the threshold.

        Returns:
            None with fewer patients with negatives than ``patients_for_rate`` asks for.
        """
        curve = self._curve
        if self._negatives.patients < patients_for_rate(specificity):
            return None
        point = curve.at_specificity(specificity)
        hits, alarms = self._counts(point)
        # Of the negatives, so many lie above the true threshold.
        few, many = quantile_limits(1.0 - specificity, self._negatives.size(alarms))
        strict, lax = (curve.at_specificity(max(1.0 - float(end), 0.0)) for end in (few, many))
        return joined(
            float(curve.sensitivity[point]),
            self._positives.interval(hits),
            (float(curve.sensitivity[strict]), float(curve.sensitivity[lax])),
        )

    def specificity_at(self, sensitivity: float) -> Interval | None:
        """Interval of the specificity at a sensitivity, like ``sensitivity_at``."""
        curve = self._curve
        if self._positives.patients < patients_for_rate(sensitivity):
            return None
        point = curve.at_sensitivity(sensitivity)
        hits, alarms = self._counts(point)
        few, many = quantile_limits(sensitivity, self._positives.size(hits))
        strict, lax = (curve.at_sensitivity(min(float(end), 1.0)) for end in (few, many))
        specificity = 1.0 - curve.false_positive_rate
        return joined(
            float(specificity[point]),
            _turned(self._negatives.interval(alarms)),
            (float(specificity[lax]), float(specificity[strict])),
        )

    def recall_rate_at(self, sensitivity: float) -> Interval | None:
        """Interval of the share of units flagged at a sensitivity."""
        specificity = self.specificity_at(sensitivity)
        if specificity is None:
            return None
        curve, share = self._curve, self._share
        point = curve.at_sensitivity(sensitivity)
        found, alarm = float(curve.sensitivity[point]), float(curve.false_positive_rate[point])
        low, high = _turned(specificity)
        value = share * found + (1.0 - share) * alarm
        rarer, commoner = self._share_interval()
        return joined(
            value,
            (value - (1.0 - share) * (alarm - low), value + (1.0 - share) * (high - alarm)),
            (
                value - (found - alarm) * (share - rarer),
                value + (found - alarm) * (commoner - share),
            ),
        )

    def lift(self, limit: float) -> dict[str, Interval | None]:
        """Intervals of what ``thresholds.lift`` returns for one share of units flagged.

        The threshold is a quantile of all units, with its own uncertainty.
        """
        curve, share = self._curve, self._share
        flagged = share * curve.sensitivity + (1.0 - share) * curve.false_positive_rate
        # The tolerance admits a share that is met exactly but for rounding.
        point = int(np.searchsorted(flagged, limit * (1.0 + 1e-9), side="right")) - 1
        rates = self.rates(point)
        recall = rates["recall_rate"] or (0.0, 1.0)
        few, many = (
            max(int(np.searchsorted(flagged, end * (1.0 + 1e-9), side="right")) - 1, 0)
            for end in recall
        )
        found = float(curve.sensitivity[point])
        sensitivity = joined(
            found,
            rates["sensitivity"] or (found, found),
            (float(curve.sensitivity[few]), float(curve.sensitivity[many])),
        )
        if rates["ppv"] is None:
            return {"sensitivity": sensitivity, "ppv": None, "lift": None}
        # The lift is the sensitivity over the share flagged, which is chosen; where few units make
        # it smaller than was asked for, it lies between the two. It is 1 / prevalence at most.
        chosen, (rarer, _) = float(flagged[point]), self._share_interval()
        lifted = (
            sensitivity[0] / max(limit, chosen),
            min(sensitivity[1] / chosen, 1.0 / max(rarer, 1e-300)),
        )
        if self.prevalence is not None:
            return {
                "sensitivity": sensitivity,
                "ppv": (lifted[0] * share, min(lifted[1] * share, 1.0)),
                "lift": lifted,
            }
        yields = share * curve.sensitivity[1:] / flagged[1:]
        near = yields[max(few - 1, 0) : many]
        ppv = joined(float(yields[point - 1]), rates["ppv"], (float(near.min()), float(near.max())))
        return {"sensitivity": sensitivity, "ppv": ppv, "lift": lifted}

    def partial_auc(self, min_specificity: float) -> Interval:
        """Interval of ``Curve.partial_auc``, as the mean sensitivity over those specificities.

        Source: Dodd and Pepe 2003 for the parts of the area.
        """
        curve, limit = self._curve, 1.0 - min_specificity
        x, y = curve.false_positive_rate, curve.sensitivity
        stop = int(np.searchsorted(x, limit, side="right"))
        at_limit = float(np.interp(limit, x[stop - 1 : stop + 1], y[stop - 1 : stop + 1]))
        # A positive adds the share of the range at which it is flagged; ties count in part.
        left = np.maximum(limit - x, 0.0)
        step = np.diff(x)
        share = np.where(
            step > 0.0,
            (left[:-1] ** 2 - left[1:] ** 2) / (2.0 * np.where(step > 0.0, step, 1.0)),
            left[1:],
        )
        found = share / limit
        # A negative above the limit takes what it lets pass of the positives below it.
        middle = (y[:-1] + y[1:]) / 2.0
        inside = np.clip((limit - x[:-1]) / np.where(step > 0.0, step, 1.0), 0.0, 1.0)
        passed = inside * (middle - at_limit) / limit
        of_unit = self._of_units(found), self._of_units(passed)
        positive = self.ranking.positive == 1
        influence = np.where(
            positive,
            (of_unit[0] - of_unit[0][positive].mean()) / curve.positives,
            (of_unit[1] - of_unit[1][~positive].mean()) / curve.negatives,
        )
        mean = float(of_unit[0][positive].mean())
        spread = self._spread(influence)
        alike = float((self._positives.units.astype(np.float64) ** 2).sum()) / curve.positives**2
        low, high = share_interval(mean, size_of_a_mean(mean, spread, alike))
        chance = limit / 2.0

        def standardised(area: float) -> float:
            return 0.5 * (1.0 + (area - chance) / (1.0 - chance))

        return standardised(low), standardised(high)

    def average_precision(self) -> Interval | None:
        """Interval of the average precision, re-weighted if a prevalence is given.

        Returns:
            None where it is 1, or where too few negatives score among the positives.
        """
        curve = self._curve
        odds = self._share / (1.0 - self._share)
        if self.prevalence is not None and not self._enough_negatives():
            return None
        weight = curve.positives / curve.negatives / odds
        tp, fp = curve.true_positives[1:], curve.false_positives[1:]
        gained = np.diff(curve.true_positives)
        flagged = tp + weight * fp

        def below(values: Floats) -> Floats:
            """Sum over the positives that score no higher."""
            return np.cumsum((gained * values)[::-1])[::-1]

        precision = tp / flagged
        value = float((gained * precision).sum()) / curve.positives
        of_positive = precision - value + below(weight * fp / flagged**2)
        of_negative = below(-weight * tp / flagged**2)
        if self.prevalence is not None:  # each class then has the weight given, however many it is
            turned = float((gained * weight * tp * fp / flagged**2).sum())
            of_positive = of_positive - turned / curve.positives
            of_negative = of_negative + turned / curve.negatives
        influence = np.where(
            self.ranking.positive == 1, self._of_units(of_positive), self._of_units(of_negative)
        )
        return logit_limits(value, self._spread(influence / curve.positives))

    def _enough_negatives(self) -> bool:
        odds = self._share / (1.0 - self._share)
        return self._negatives.patients * odds >= _NEGATIVES_AMONG_POSITIVES

    def brier(self) -> Interval | None:
        """Interval of the mean squared error."""
        error = (self._falling - self.ranking.positive) ** 2
        value = float(error.mean())
        return log_limits(value, self._spread((error - value) / len(error)))

    def pf1(self) -> Interval | None:
        """Interval of the probabilistic F1."""
        score, label = self._falling, self.ranking.positive
        total = float((score + label).sum())
        value = 2.0 * total_of_products(score, label) / total
        influence = (2.0 * score * label - value * (score + label)) / total
        return logit_limits(value, self._spread(influence))

    def expected_observed_ratio(self) -> Interval | None:
        """Interval of the sum of the scores over the number of positives."""
        observed, expected = self._curve.positives, float(self._falling.sum())
        if expected <= 0.0:
            return None
        away = self.ranking.positive - self._falling * (observed / expected)
        return count_ratio_limits(expected, observed, self._spread(away))

    def roc_band(self, rate: Floats, sensitivity: Floats) -> tuple[Floats, Floats]:
        """Interval of the sensitivity at each false-positive rate of a grid, pointwise.

        Args:
            rate: (g,) false-positive rates.
            sensitivity: (g,) of the curve there.

        Returns:
            (g,) low, (g,) high; NaN at rates that too few negatives reach.
        """
        curve = self._curve
        points = [curve.at_specificity(1.0 - one) for one in rate]
        counts = [self._counts(point) for point in points]
        low, high = share_limits(sensitivity, [self._positives.size(hits) for hits, _ in counts])
        strict, lax = quantile_limits(rate, [self._negatives.size(alarms) for _, alarms in counts])
        x, y = curve.false_positive_rate, curve.sensitivity
        low, high = _joined(
            sensitivity, (low, high), (np.interp(strict, x, y), np.interp(lax, x, y))
        )
        return _known(low, high, 1.0 - rate, self._negatives.patients)

    def precision_band(self, recall: Floats, precision: Floats) -> tuple[Floats, Floats]:
        """Interval of the precision at each recall of a grid, pointwise.

        Args:
            recall: (g,) in (0, 1].
            precision: (g,) of the curve there.

        Returns:
            (g,) low, (g,) high; NaN at recalls that too few positives reach.
        """
        curve = self._curve
        points = [curve.at_sensitivity(one * (1.0 - 1e-12)) for one in recall]
        counts = [self._counts(point) for point in points]
        rate = curve.false_positive_rate[points]
        limits = share_limits(rate, [self._negatives.size(alarms) for _, alarms in counts])
        few, many = quantile_limits(recall, [self._positives.size(hits) for hits, _ in counts])
        ends = (
            curve.false_positive_rate[[curve.at_sensitivity(min(one, 1.0)) for one in end]]
            for end in (few, many)
        )
        low, high = _joined(rate, limits, tuple(ends))
        counted = curve.positives / (curve.positives + curve.negatives)
        size = self._everyone.size_of(self.ranking.positive == 1)
        rarer, commoner = share_interval(counted, size)
        # The logit of the precision is that of the prevalence, plus the logarithm of recall over
        # rate: distances on it add up as squares.
        tiny = 1e-300
        with np.errstate(divide="ignore"):
            fewer = np.log(np.maximum(high, tiny)) - np.log(np.maximum(rate, tiny))
            more = np.log(np.maximum(rate, tiny)) - np.log(np.maximum(low, tiny))
        down = np.hypot(fewer, _logit(counted) - _logit(rarer))
        up = np.hypot(more, _logit(commoner) - _logit(counted))
        odds = precision / np.maximum(1.0 - precision, tiny)
        with np.errstate(over="ignore", invalid="ignore"):
            lower, upper = odds * np.exp(-down), odds * np.exp(up)
            lower, upper = lower / (1.0 + lower), 1.0 / (1.0 + 1.0 / upper)
        # Where no negative is flagged the odds are infinite, and only the rate's limit tells.
        none = rate <= 0.0
        at_most = counted / (1.0 - counted) * recall / np.maximum(high, tiny)
        lower = np.where(none, at_most / (1.0 + at_most), lower)
        upper = np.where(none | (low <= 0.0), 1.0, upper)
        return _known(lower, upper, recall, self._positives.patients)

    def bins(self, counted: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Interval of the share of positives in bins of units by falling score.

        Args:
            counted: (bins,) units in each.

        Returns:
            (bins,) low, (bins,) high.
        """
        ends = np.concatenate([[0], np.cumsum(counted)])
        shares, sizes = [], []
        for start, stop in pairwise(ends):
            positive = self.ranking.positive[start:stop] == 1
            shares.append(float(positive.mean()))
            sizes.append(_Units(self._everyone.patient[start:stop], self._m).size_of(positive))
        return share_limits(shares, sizes)

    def remarks(
        self, specificities: tuple[float, ...], sensitivities: tuple[float, ...]
    ) -> list[str]:
        """A sentence for every kind of interval that is missing.

        Args:
            specificities: at which a sensitivity was asked for.
            sensitivities: at which a specificity was asked for.
        """
        said = []
        for figure, fixed, rates, units, sign in (
            ("specificity", "sensitivity", sensitivities, self._positives, "positives"),
            ("sensitivity", "specificity", specificities, self._negatives, "negatives"),
        ):
            missing = [rate for rate in rates if units.patients < patients_for_rate(rate)]
            if missing:
                asked = _listed([f"{rate * 100:g}" for rate in missing])
                needed = _listed([f"{patients_for_rate(rate):,}" for rate in missing])
                said.append(
                    f"No interval of the {figure} at a {fixed} of {asked} %: the threshold that "
                    f"has it may lie beyond the scores of all {units.patients:,} patients with "
                    f"{sign}. At least {needed} are needed."
                )
        if self.prevalence is not None and not self._enough_negatives():
            odds = self._share / (1.0 - self._share)
            said.append(
                "No interval of the average precision re-weighted to a prevalence of "
                f"{self._share:.3g}: at so low a prevalence it depends on the rare "
                "negatives that score as high as positives, and "
                f"{self._negatives.patients:,} patients with negatives are too few to show them; "
                "the value is likely too high. At least "
                f"{int(np.ceil(_NEGATIVES_AMONG_POSITIVES / odds)):,} are needed."
            )
        return said

    @cached_property
    def _falling(self) -> Floats:
        return self.score[self.ranking.order]

    def _of_units(self, of_score: Floats) -> Floats:
        """(n,) in order, from (t,) of each distinct score."""
        counts = np.diff(self.ranking.last, prepend=-1)
        return np.repeat(of_score, counts)

    def _spread(self, influence: Floats) -> Spread:
        """From the influence of each unit, (n,) in order."""
        return Spread.of(np.bincount(self._everyone.patient, weights=influence, minlength=self._m))


def _listed(items: list[str]) -> str:
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def _logit(share: float) -> float:
    return float(np.log(share) - np.log1p(-share))


def _joined(
    value: Floats, first: tuple[Floats, Floats], other: tuple[Floats, ...]
) -> tuple[Floats, Floats]:
    """``joined`` for each point of a grid."""
    below = np.hypot(value - np.minimum(first[0], value), value - np.minimum(other[0], value))
    above = np.hypot(np.maximum(first[1], value) - value, np.maximum(other[1], value) - value)
    return value - below, value + above


def _known(low: Floats, high: Floats, rate: Floats, patients: int) -> tuple[Floats, Floats]:
    """Limits, NaN where ``rate`` asks for more patients than there are."""
    surprise = -np.log(np.clip(rate, 1e-300, _ALL))
    enough = (rate < _ALL) & (patients * surprise >= -np.log((1.0 - LEVEL) / 2.0))
    return (
        np.where(enough, np.clip(low, 0.0, 1.0), np.nan),
        np.where(enough, np.clip(high, 0.0, 1.0), np.nan),
    )
