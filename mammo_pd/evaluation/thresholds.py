"""Operating points: validation labels and scores go in, thresholds to apply elsewhere come out.

Choosing a threshold and evaluating it on the same units is optimistic; hence the two steps. A unit
is flagged when its score is at least the threshold.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mammo_pd.evaluation.roc import Curve, Ranking
from mammo_pd.wording import percent

# The default cost of a miss, in false alarms.
MISS_COST = 10.0
FIXED_RATES = (0.80, 0.90, 0.95)
FLAGGED_SHARES = (0.01, 0.02, 0.05, 0.10, 0.20)


@dataclass(frozen=True)
class Reader:
    """Radiologists' performance on comparable exams, as a reference for the model.

    Attributes:
        sensitivity: in (0, 1].
        specificity: in (0, 1].
    """

    sensitivity: float
    specificity: float


@dataclass(frozen=True)
class Threshold:
    """A decision threshold and how it was chosen.

    Attributes:
        code: a short name for tables.
        rule: how it was chosen, for people.
        value: the lowest score that is flagged.
    """

    code: str
    rule: str
    value: float


def choose_thresholds(
    label: ArrayLike, score: ArrayLike, *, miss_cost: float, prevalence: float | None = None
) -> list[Threshold]:
    """Choose operating points.

    Args:
        label: (n,) 0 or 1, both present.
        score: (n,) in [0, 1].
        miss_cost: cost of a missed positive, in false alarms.
        prevalence: share of positives in the intended use, for the cost rule; that of these units
            when None.

    Returns:
        Youden's point (the largest sensitivity + specificity - 1), the cheapest point, and the
        points that reach each of the fixed specificities and sensitivities. Empty with one class
        only, or none.
    """
    if not np.size(label):  # at a level at which no unit's label is known
        return []
    ranking = Ranking.of(label, score)
    curve = ranking.curve()
    if not curve.has_both_classes:
        return []
    share = (
        curve.positives / (curve.positives + curve.negatives) if prevalence is None else prevalence
    )
    # Of points that tie, argmax and argmin take the first: the one that flags the fewest.
    benefit = curve.sensitivity - curve.false_positive_rate
    cost = share * miss_cost * (1.0 - curve.sensitivity) + (1.0 - share) * curve.false_positive_rate
    chosen = [
        ("youden", "largest sensitivity + specificity − 1 (Youden)", int(np.argmax(benefit))),
        (
            "cost",
            f"lowest cost, a miss worth {miss_cost:g} false alarms",
            int(np.argmin(cost)),
        ),
    ]
    chosen += [
        (
            f"specificity_{100 * rate:.0f}",
            f"specificity of {percent(rate)}",
            curve.at_specificity(rate),
        )
        for rate in FIXED_RATES
    ]
    chosen += [
        (
            f"sensitivity_{100 * rate:.0f}",
            f"sensitivity of {percent(rate)}",
            curve.at_sensitivity(rate),
        )
        for rate in FIXED_RATES
    ]
    return [Threshold(code, rule, score_at(ranking, point)) for code, rule, point in chosen]


def score_at(ranking: Ranking, point: int) -> float:
    """The lowest score that is flagged at a point of the ranking's curve."""
    if point == 0:  # nothing is flagged: the next number above every score
        return float(np.nextafter(ranking.thresholds[0], np.inf))
    return float(ranking.thresholds[point - 1])


def rates_at(curve: Curve, point: int, prevalence: float | None = None) -> dict[str, float]:
    """Rates and predictive values at one point of a curve.

    Args:
        curve: with both classes.
        point: index of the point.
        prevalence: share of positives in the intended use; as counted when None.

    Returns:
        ``sensitivity, specificity, recall_rate`` (share of all units flagged), ``ppv`` (NaN where
        nothing is flagged), ``npv`` (NaN where everything is).
    """
    sensitivity, specificity = curve.rates(point)
    false_alarms = 1.0 - specificity
    share = (
        curve.positives / (curve.positives + curve.negatives) if prevalence is None else prevalence
    )
    # Bayes' rule: the rates within each class do not depend on how common the classes are.
    flagged = share * sensitivity + (1.0 - share) * false_alarms
    nan = float("nan")
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "recall_rate": flagged,
        "ppv": share * sensitivity / flagged if flagged > 0 else nan,
        # Without a miss it is 1 up to rounding.
        "npv": min((1.0 - share) * specificity / (1.0 - flagged), 1.0) if flagged < 1 else nan,
    }


def at_reader(curve: Curve, reader: Reader, prevalence: float | None = None) -> dict[str, float]:
    """The model's performance at the readers' sensitivity and at their specificity."""
    as_sensitive = rates_at(curve, curve.at_sensitivity(reader.sensitivity), prevalence)
    as_specific = rates_at(curve, curve.at_specificity(reader.specificity), prevalence)
    return {
        "specificity_at_reader_sensitivity": as_sensitive["specificity"],
        "recall_rate_at_reader_sensitivity": as_sensitive["recall_rate"],
        "sensitivity_at_reader_specificity": as_specific["sensitivity"],
    }


def lift(curve: Curve, prevalence: float | None = None) -> dict[float, dict[str, float]]:
    """Yield of flagging only the highest scores, by the share of units flagged.

    Args:
        curve: with both classes.
        prevalence: share of positives in the intended use; as counted when None.

    Returns:
        For each of ``FLAGGED_SHARES``: ``sensitivity``; ``ppv``; ``lift``, the ppv over the
        prevalence. At most that share is flagged: tied units are flagged together or not at all,
        and where that leaves none, ppv and lift are NaN.
    """
    share = (
        curve.positives / (curve.positives + curve.negatives) if prevalence is None else prevalence
    )
    flagged = curve.true_positives * (share / curve.positives)
    flagged += curve.false_positives * ((1.0 - share) / curve.negatives)
    table = {}
    for limit in FLAGGED_SHARES:
        # The tolerance admits a share that is met exactly but for rounding.
        point = int(np.searchsorted(flagged, limit * (1.0 + 1e-9), side="right")) - 1
        rates = rates_at(curve, point, prevalence)
        table[limit] = {
            "sensitivity": rates["sensitivity"],
            "ppv": rates["ppv"],
            "lift": rates["ppv"] / share,
        }
    return table
