"""Cutoffs: thresholds and the units they apply to, one for all or one for each fold.

In a cross-validation every fold is scored by a model of its own, on a scale of its own. Its
threshold is chosen on validation images that the same model scored, as it would be for use. Without
these, it is chosen on the out-of-fold scores of the other folds: the patients are different, but so
are the models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mammo_pd.evaluation.measures import Row
from mammo_pd.evaluation.rates import Decisions
from mammo_pd.evaluation.thresholds import Threshold, choose_thresholds

# The operating point at which groups and errors are looked at: about one woman in ten recalled.
FIXED_RULE = "specificity_90"


@dataclass(frozen=True)
class Cutoff:
    """A threshold at one level, and how it was chosen.

    Attributes:
        code: a short name for tables.
        rule: how it was chosen, for people.
        value: the lowest score that is flagged; with folds, the mean over them.
        by_fold: the lowest score that is flagged in each fold; None for one threshold.
        fold_of: the fold of each patient, by ``patient_id``; None for one threshold.
    """

    code: str
    rule: str
    value: float
    by_fold: Mapping[str, float] | None = None
    fold_of: "pd.Series[str] | None" = None

    @classmethod
    def of(cls, threshold: Threshold) -> "Cutoff":
        """One threshold for all units."""
        return cls(threshold.code, threshold.rule, threshold.value)

    @property
    def threshold(self) -> Threshold:
        """The rule and its value, without the folds."""
        return Threshold(self.code, self.rule, self.value)

    def lowest(self, units: pd.DataFrame) -> NDArray[np.float64]:
        """(n,) the lowest score at which each unit is flagged."""
        if self.by_fold is None or self.fold_of is None:
            return np.full(len(units), self.value, dtype=np.float64)
        fold = units["patient_id"].map(self.fold_of)
        return np.asarray(fold.map(self.by_fold), dtype=np.float64)

    def flags(self, units: pd.DataFrame) -> NDArray[np.bool_]:
        """(n,) whether each unit is flagged.

        Args:
            units: ``patient_id, score``, one row per unit.
        """
        flagged: NDArray[np.bool_] = units["score"].to_numpy(dtype=np.float64) >= self.lowest(units)
        return flagged


def folds_of_patients(predictions: pd.DataFrame) -> "pd.Series[str] | None":
    """The fold of each patient; None with fewer than two folds, or with a patient in several.

    Args:
        predictions: ``patient_id`` and ``fold``, one row per image.
    """
    pairs = predictions[["patient_id", "fold"]].drop_duplicates()
    if pairs["fold"].isna().any() or pairs["fold"].nunique() < 2:
        return None
    if pairs["patient_id"].duplicated().any():
        return None
    return pairs.set_index("patient_id")["fold"].astype("str")


def cross_fitted(
    units: pd.DataFrame,
    fold_of: "pd.Series[str]",
    *,
    miss_cost: float,
    prevalence: float | None = None,
) -> list[Cutoff]:
    """Choose the operating points of each fold on the units of the others.

    Args:
        units: ``patient_id, label, score``, one row per unit, scored out of fold.
        fold_of: the fold of each patient.
        miss_cost: cost of a missed positive, in false alarms.
        prevalence: share of positives in the intended use, for the cost rule.

    Returns:
        One per rule of ``choose_thresholds``; none where a fold leaves units of one class only.
    """
    fold = units["patient_id"].map(fold_of)
    others = {str(name): units[fold != name] for name in sorted(fold.unique())}
    return validated_by_fold(others, fold_of, miss_cost=miss_cost, prevalence=prevalence)


def validated_by_fold(
    units: Mapping[str, pd.DataFrame],
    fold_of: "pd.Series[str]",
    *,
    miss_cost: float,
    prevalence: float | None = None,
) -> list[Cutoff]:
    """Choose the operating points of each fold on units of its own.

    Args:
        units: by fold, ``label, score`` of units that are not tested in it.
        fold_of: the fold of each patient who is tested.
        miss_cost: cost of a missed positive, in false alarms.
        prevalence: share of positives in the intended use, for the cost rule.

    Returns:
        One per rule of ``choose_thresholds``; none where a fold has units of one class only.
    """
    chosen = {
        name: choose_thresholds(
            of_fold["label"], of_fold["score"], miss_cost=miss_cost, prevalence=prevalence
        )
        for name, of_fold in units.items()
    }
    if not all(chosen.values()):
        return []
    return [
        Cutoff(
            of_folds[0].code,
            of_folds[0].rule,
            float(np.mean([one.value for one in of_folds])),
            {name: one.value for name, one in zip(chosen, of_folds, strict=True)},
            fold_of,
        )
        for of_folds in zip(*chosen.values(), strict=True)
    ]


def operating_points(
    units: pd.DataFrame, cutoffs: Sequence[Cutoff], prevalence: float | None = None
) -> list[Row]:
    """The operating points of cutoffs that differ between folds.

    Args:
        units: ``patient_id, label, score``, one row per unit, both classes.
        cutoffs: of their level.
        prevalence: share of positives in the intended use; that of the units when None.

    Returns:
        One row per cutoff with the columns of ``LevelResults.operating_points``.
    """
    return [
        {
            "threshold": cutoff.value,
            "code": cutoff.code,
            "rule": cutoff.rule,
            **Decisions.where(units, cutoff.flags(units)).rows(prevalence)[0],
        }
        for cutoff in cutoffs
    ]
