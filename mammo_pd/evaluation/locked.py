"""What is fixed before an external set is seen: thresholds and calibration of a development set.

Rows of the development set go in; thresholds at every level and a recalibration come out, to be
applied to other sets as they are.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from mammo_pd.evaluation.levels import Aggregation, aggregate, with_known_label
from mammo_pd.evaluation.roc import Floats
from mammo_pd.evaluation.thresholds import Threshold, choose_thresholds
from mammo_pd.terms import Level

# A score of exactly 0 or 1 has no finite logit.
_CLIP = 1e-7


@dataclass(frozen=True)
class Recalibration:
    """A line on the logits of the scores: ``intercept + slope * logit``.

    Attributes:
        slope: of the logistic fit.
        intercept: of the same fit.
    """

    slope: float
    intercept: float

    @classmethod
    def fit(cls, label: Floats, score: Floats) -> "Recalibration | None":
        """By maximum likelihood; None where there is no finite line.

        Args:
            label: (n,) 0 or 1.
            score: (n,) in [0, 1].
        """
        positive, negative = score[label == 1], score[label == 0]
        if not len(positive) or not len(negative) or np.ptp(score) == 0.0:
            return None
        if positive.min() >= negative.max() or negative.min() >= positive.max():
            return None  # the classes do not overlap: the slope grows without bound
        fitted = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
        fitted.fit(_logit(score)[:, None], label)
        return cls(float(fitted.coef_[0, 0]), float(fitted.intercept_[0]))

    def __call__(self, score: Floats) -> Floats:
        """(n,) scores in (0, 1), recalibrated."""
        moved: Floats = expit(self.intercept + self.slope * _logit(score))
        return moved


def _logit(score: Floats) -> Floats:
    clipped = np.clip(score, _CLIP, 1.0 - _CLIP)
    logit: Floats = np.log(clipped) - np.log1p(-clipped)
    return logit


@dataclass(frozen=True)
class Locked:
    """Everything that is decided on the development set.

    Attributes:
        images: how many labelled images it was decided on.
        part: of the development set: ``val``, or ``all`` where it has no validation rows.
        thresholds: the operating points of each level.
        calibration: the recalibration of each level; None where there is no finite one.
    """

    images: int
    part: str
    thresholds: Mapping[Level, Sequence[Threshold]]
    calibration: Mapping[Level, Recalibration | None]

    def content(self) -> dict[str, object]:
        """All of it, ready for JSON."""
        return {
            "images": self.images,
            "part": self.part,
            "thresholds": {
                level.value: {one.code: one.value for one in of_level}
                for level, of_level in self.thresholds.items()
            },
            "calibration": {
                level.value: None if line is None else [line.slope, line.intercept]
                for level, line in self.calibration.items()
            },
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        text = json.dumps(self.content(), sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()


def lock(
    rows: pd.DataFrame,
    *,
    part: str,
    aggregation: Aggregation,
    miss_cost: float,
    prevalence: Mapping[Level, float],
) -> Locked:
    """Choose thresholds and fit the calibration on a development set.

    Args:
        rows: one row per image, as ``check_predictions`` returns them.
        part: of the development set that they are.
        aggregation: how the scores of a unit's images are aggregated.
        miss_cost: cost of a missed positive, in false alarms.
        prevalence: by level, share of positives in the intended use, for the cost rule; may be
            empty.
    """
    thresholds, calibration = {}, {}
    for level in Level:
        units = aggregate(with_known_label(rows, level), level, aggregation)
        label = units["label"].to_numpy(dtype=np.float64)
        score = units["score"].to_numpy(dtype=np.float64)
        thresholds[level] = choose_thresholds(
            label, score, miss_cost=miss_cost, prevalence=prevalence.get(level)
        )
        calibration[level] = Recalibration.fit(label, score)
    return Locked(int(rows["label"].notna().sum()), part, thresholds, calibration)
