"""The effect of every threshold: units go in, one row of counts and rates per threshold comes out.

For inspection, not for choosing: a threshold chosen on the units that it is judged on looks too
good.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mammo_pd.evaluation.measures import Row
from mammo_pd.evaluation.rates import Decisions
from mammo_pd.evaluation.roc import Ranking
from mammo_pd.evaluation.thresholds import score_at

MOST_THRESHOLDS = 200


def sweep_thresholds(
    units: pd.DataFrame, marked: Sequence[float] = (), prevalence: float | None = None
) -> list[Row]:
    """Counts and rates at up to ``MOST_THRESHOLDS`` thresholds, and at those marked.

    Args:
        units: ``patient_id, label`` (both classes), ``score``, one row per unit.
        marked: thresholds to have among them, chosen elsewhere.
        prevalence: share of positives in the intended use; that of the units when None.

    Returns:
        By rising threshold: ``threshold``, then as ``Decisions.rows``. From the first, which flags
        every unit, to the last, which flags none. Where there are more distinct scores than rows,
        those stand for all that divide the ROC curve into steps of equal length.
    """
    ranking = Ranking.of(units["label"], units["score"])
    curve = ranking.curve()
    walked = curve.sensitivity + curve.false_positive_rate
    points = np.arange(len(walked))
    if len(points) > MOST_THRESHOLDS:
        # The first point at or beyond each step; each step of a rare class is one of its own.
        wanted = np.linspace(0.0, walked[-1], MOST_THRESHOLDS) * (1.0 - 1e-12)
        points = np.unique(np.searchsorted(walked, wanted, side="left"))
    at = {score_at(ranking, int(point)): int(point) for point in points}
    at |= {value: ranking.index_of(value) for value in marked}
    thresholds = sorted(at)
    index = [at[value] for value in thresholds]
    decisions = Decisions.of(units, curve.true_positives[index], curve.false_positives[index])
    return [
        {"threshold": value, **row}
        for value, row in zip(thresholds, decisions.rows(prevalence), strict=True)
    ]
