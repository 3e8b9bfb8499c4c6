"""The operating points that a model carries: locked on validation images, applied to new ones.

Labelled rows go in where they are locked; rows without labels where they are applied.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mammo_pd.evaluation.levels import Aggregation, aggregate, aggregate_scores, with_known_label
from mammo_pd.evaluation.locked import Locked, Recalibration, lock
from mammo_pd.evaluation.prevalence import prevalence_by_level
from mammo_pd.evaluation.thresholds import MISS_COST, Threshold
from mammo_pd.terms import Level


@dataclass(frozen=True)
class Choices:
    """How operating points are chosen.

    Attributes:
        aggregation: how the scores of a unit's images are aggregated.
        miss_cost: cost of a missed positive, in false alarms.
        prevalence: share of positives in the intended use; None for that of the images.
        prevalence_level: the level that it is a share of.
    """

    aggregation: Aggregation = Aggregation.MEAN
    miss_cost: float = MISS_COST
    prevalence: float | None = None
    prevalence_level: Level = Level.EXAM


@dataclass(frozen=True)
class OperatingPoints:
    """Thresholds and calibration of every level, and how they were chosen.

    Attributes:
        choices: the rules.
        locked: the outcome.
    """

    choices: Choices
    locked: Locked

    @classmethod
    def lock(
        cls,
        rows: pd.DataFrame,
        choices: Choices,
        *,
        part: str,
        evaluated: pd.DataFrame | None = None,
    ) -> "OperatingPoints":
        """Lock operating points on labelled rows.

        Args:
            rows: one row per image, as ``check_predictions`` returns them.
            choices: the rules.
            part: of a split that the rows are.
            evaluated: the rows whose units relate the prevalences of the levels to one another;
                by default ``rows``.
        """
        intended: dict[Level, float] = {}
        if choices.prevalence is not None:
            related = rows if evaluated is None else evaluated
            units = {
                level: aggregate(with_known_label(related, level), level, choices.aggregation)
                for level in Level
            }
            intended = prevalence_by_level(units, choices.prevalence, choices.prevalence_level)
        locked = lock(
            rows,
            part=part,
            aggregation=choices.aggregation,
            miss_cost=choices.miss_cost,
            prevalence=intended,
        )
        return cls(choices, locked)

    @classmethod
    def none(cls) -> "OperatingPoints":
        """For a model without operating points: scores are aggregated, and nothing is judged."""
        return cls(Choices(), Locked(0, "", {}, {}))

    @property
    def rules(self) -> dict[str, str]:
        """Each operating point's code and, in words, its rule; empty where there are none."""
        return {one.code: one.rule for of in self.locked.thresholds.values() for one in of}

    def threshold(self, level: Level, code: str) -> float | None:
        """The lowest score that is flagged; None where the level has no such point."""
        of_level = self.locked.thresholds.get(level, ())
        return next((one.value for one in of_level if one.code == code), None)

    def judge(self, images: pd.DataFrame, level: Level, code: str) -> pd.DataFrame:
        """The units of a level with score, calibrated score and verdict.

        Args:
            images: ``image_id, patient_id, exam_id, laterality, view, score``, one row per image.
            level: the kind of unit.
            code: of the operating point.

        Returns:
            As ``aggregate_scores``, and ``recalibrated`` (NaN without a calibration),
            ``threshold`` (NaN without one) and ``flagged`` (1, 0, or missing without a threshold).
        """
        units = aggregate_scores(images, level, self.choices.aggregation)
        score = units["score"].to_numpy(dtype=np.float64)
        line = self.locked.calibration.get(level)
        units["recalibrated"] = np.nan if line is None else line(score)
        threshold = self.threshold(level, code)
        units["threshold"] = np.nan if threshold is None else threshold
        flagged = pd.Series(pd.NA, index=units.index, dtype="Int8")
        if threshold is not None:
            flagged[:] = (score >= threshold).astype(np.int8)
        units["flagged"] = flagged
        return units

    def dump(self) -> dict[str, Any]:
        """All of it, ready for JSON; `load` reads it."""
        prevalence = self.choices.prevalence
        return {
            "aggregation": self.choices.aggregation.value,
            "miss_cost": self.choices.miss_cost,
            "prevalence": prevalence,
            "prevalence_level": self.choices.prevalence_level.value,
            "rules": self.rules,
            **self.locked.content(),
        }

    @classmethod
    def load(cls, given: Mapping[str, Any]) -> "OperatingPoints":
        """The inverse of `dump`.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        choices = Choices(
            Aggregation(given["aggregation"]),
            float(given["miss_cost"]),
            given["prevalence"],
            Level(given["prevalence_level"]),
        )
        thresholds = {
            Level(level): [
                Threshold(code, given["rules"][code], float(value))
                for code, value in of_level.items()
            ]
            for level, of_level in given["thresholds"].items()
        }
        calibration = {
            Level(level): None if line is None else Recalibration(*map(float, line))
            for level, line in given["calibration"].items()
        }
        return cls(choices, Locked(int(given["images"]), given["part"], thresholds, calibration))
