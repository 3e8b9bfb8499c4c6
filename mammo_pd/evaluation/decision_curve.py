"""Decision curve: units go in, the net benefit of acting on their scores comes out.

The net benefit counts what is found and subtracts what is flagged in vain, at the exchange rate
that a threshold probability implies: whoever would recall a woman at a risk of 1 in 50 takes 49
false alarms for one cancer. It takes scores for probabilities.

Shapes: k threshold probabilities.
"""

import numpy as np
import pandas as pd

from mammo_pd.evaluation.measures import Row
from mammo_pd.evaluation.rates import Decisions
from mammo_pd.evaluation.roc import Floats, Ranking
from mammo_pd.evaluation.thresholds import Reader

_STEPS = 100
# Beyond ten times the prevalence even a good model flags hardly anyone.
_REACH = 10.0
_HIGHEST = 0.99


def decision_curve(
    units: pd.DataFrame,
    *,
    prevalence: float | None = None,
    reader: Reader | None = None,
    at: Floats | None = None,
) -> list[Row]:
    """Net benefit per unit over threshold probabilities.

    Args:
        units: ``patient_id, label`` (both classes), ``score``, one row per unit.
        prevalence: share of positives in the intended use; the odds of the scores are then
            multiplied by its odds over those of these units. That of these units when None.
        reader: radiologists, who decide as they do at every threshold probability.
        at: (k,) threshold probabilities in (0, 1); 100 up to ten times the prevalence when None.

    Returns:
        By threshold probability: ``threshold_probability``, ``threshold`` (of the score as it is),
        ``net_benefit`` with limits, ``net_benefit_all`` (everyone flagged; with no one it is 0),
        ``net_benefit_reader`` (None without a reader).

    Source: Vickers and Elkin 2006.
    """
    ranking = Ranking.of(units["label"], units["score"])
    curve = ranking.curve()
    own = curve.positives / (curve.positives + curve.negatives)
    share = own if prevalence is None else prevalence
    if at is None:
        at = np.linspace(0.0, min(_HIGHEST, _REACH * share), _STEPS + 1)[1:]
    cost = at / (1.0 - at)
    if prevalence is None:
        threshold = at
    else:
        odds = cost * (own / (1.0 - own)) / (share / (1.0 - share))
        # A score that equals the threshold must not miss it through rounding.
        threshold = odds / (1.0 + odds) * (1.0 - 1e-12)
    index = [ranking.index_of(value) for value in threshold]
    decisions = Decisions.of(units, curve.true_positives[index], curve.false_positives[index])
    lost = cost * (1.0 - share)
    benefit = decisions.sensitivity * share - decisions.false_alarms * lost
    of_reader = None
    if reader is not None:
        of_reader = share * reader.sensitivity - lost * (1.0 - reader.specificity)
    return [
        {
            "threshold_probability": float(at[i]),
            "threshold": float(threshold[i]),
            **benefit.column("net_benefit", i),
            "net_benefit_all": float(share - lost[i]),
            "net_benefit_reader": None if of_reader is None else float(of_reader[i]),
        }
        for i in range(len(at))
    ]
