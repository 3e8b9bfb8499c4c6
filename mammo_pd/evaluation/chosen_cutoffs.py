"""What the cutoffs of a set are chosen on: tables go in, the cutoffs of each level come out.

In this order: thresholds that were locked on another set, the set's validation rows, the validation
rows of each fold, the out-of-fold scores of the other folds. With none of these there are none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.evaluation.cutoffs import (
    FIXED_RULE,
    Cutoff,
    cross_fitted,
    folds_of_patients,
    validated_by_fold,
)
from mammo_pd.evaluation.levels import Aggregation, aggregate, units_by_level, with_known_label
from mammo_pd.evaluation.locked import Locked
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.thresholds import choose_thresholds
from mammo_pd.terms import Level
from mammo_pd.wording import counted


@dataclass(frozen=True)
class ChosenCutoffs:
    """The cutoffs of a set, and what they were chosen on.

    Attributes:
        by_level: the cutoffs of each level; none at a level where nothing could be chosen.
        images: number of labelled images that they were chosen on; 0 for none, and for the
            out-of-fold scores of the other folds.
        locked: hash of the thresholds that were locked on another set, if these are they.
        cross_fitted: whether each fold's were chosen on the other folds.
        by_fold: whether each fold's were chosen on validation rows of its own.
    """

    by_level: Mapping[Level, Sequence[Cutoff]]
    images: int = 0
    locked: str | None = None
    cross_fitted: bool = False
    by_fold: bool = False

    @classmethod
    def of(cls, locked: Locked) -> "ChosenCutoffs":
        """Those that were locked on another set."""
        cutoffs = {level: [Cutoff.of(one) for one in locked.thresholds[level]] for level in Level}
        return cls(cutoffs, locked.images, locked=locked.digest)

    @property
    def fixed(self) -> dict[Level, Cutoff]:
        """The operating point at which groups and errors are looked at, of each level with one."""
        return {
            level: cutoff
            for level, of_level in self.by_level.items()
            for cutoff in of_level
            if cutoff.code == FIXED_RULE
        }


def choose_cutoffs(
    units: Mapping[Level, pd.DataFrame],
    *,
    evaluated: pd.DataFrame,
    locked: Locked | None,
    validation: pd.DataFrame,
    validation_by_fold: Mapping[str, pd.DataFrame] | None,
    aggregation: Aggregation,
    miss_cost: float,
    prevalence: Mapping[Level, float],
) -> ChosenCutoffs:
    """Choose the operating points of every level, unless they are locked.

    Args:
        units: the units to evaluate by level, as ``aggregate`` returns them.
        evaluated: their rows, one per image; with a column ``fold`` they may be out of fold.
        locked: what was decided on another set, if anything.
        validation: rows of other patients, one per image; may be empty.
        validation_by_fold: by fold, rows of patients who are not tested in it, scored by the model
            that is tested in it; used only without ``validation``, and only if every fold has both
            classes at every level.
        aggregation: how the scores of a unit's images are aggregated.
        miss_cost: cost of a missed positive, in false alarms.
        prevalence: by level, share of positives in the intended use, for the cost rule; may be
            empty.

    Raises:
        InputError: ``validation_by_fold`` has other folds than are evaluated, fails a check, or
            has a patient who is tested in the same fold.
    """
    if locked is not None:
        return ChosenCutoffs.of(locked)
    if len(validation):
        chosen = {
            level: _validated(validation, level, aggregation, miss_cost, prevalence.get(level))
            for level in Level
        }
        return ChosenCutoffs(chosen, int(validation["label"].notna().sum()))
    fold_of = folds_of_patients(evaluated) if "fold" in evaluated.columns else None
    if fold_of is None:
        return ChosenCutoffs(dict.fromkeys(Level, ()))
    by_fold = {}
    if validation_by_fold is not None:
        by_fold = _units_by_fold(validation_by_fold, fold_of, aggregation)
    cutoffs: dict[Level, list[Cutoff]] = {level: [] for level in Level}
    for level, rows in units.items():
        if rows["label"].nunique() < 2:
            continue
        share = prevalence.get(level)
        cutoffs[level] = (
            validated_by_fold(by_fold[level], fold_of, miss_cost=miss_cost, prevalence=share)
            if by_fold
            else cross_fitted(rows, fold_of, miss_cost=miss_cost, prevalence=share)
        )
    if by_fold and validation_by_fold is not None:
        return ChosenCutoffs(cutoffs, _labelled_images(validation_by_fold), by_fold=True)
    return ChosenCutoffs(cutoffs, cross_fitted=any(cutoffs.values()))


def _validated(
    validation: pd.DataFrame,
    level: Level,
    aggregation: Aggregation,
    miss_cost: float,
    prevalence: float | None,
) -> list[Cutoff]:
    # Per level: an exam's mean score is distributed differently from its images' scores.
    units = aggregate(with_known_label(validation, level), level, aggregation)
    thresholds = choose_thresholds(
        units["label"], units["score"], miss_cost=miss_cost, prevalence=prevalence
    )
    return [Cutoff.of(threshold) for threshold in thresholds]


def _units_by_fold(
    validation: Mapping[str, pd.DataFrame], fold_of: "pd.Series[str]", aggregation: Aggregation
) -> dict[Level, dict[str, pd.DataFrame]]:
    """The units to choose thresholds on, by level and fold; none if one lacks a class.

    Raises:
        InputError: other folds than are tested, or a patient both validates and is tested by one
            model.
    """
    folds = sorted(fold_of.unique())
    if sorted(validation) != folds:
        raise InputError(
            f"The validation rows are of the folds {', '.join(sorted(validation))}, and the "
            f"predictions of {', '.join(folds)}: give both of every fold."
        )
    # A rare target may be unknown of every image that validates a fold.
    if any(table["label"].isna().all() for table in validation.values()):
        return {}
    units: dict[Level, dict[str, pd.DataFrame]] = {level: {} for level in Level}
    for name, table in validation.items():
        checked = check_predictions(table, source=f"the validation rows of fold {name}")
        both = set(checked["patient_id"]) & set(fold_of.index[fold_of == name])
        if both:
            raise InputError(
                f"{counted(len(both), 'patient is', 'patients are')} both tested in fold {name} "
                "and used to choose its thresholds, which makes the results optimistic: split by "
                "patient."
            )
        for level, rows in units_by_level(checked, aggregation).items():
            units[level][name] = rows
    classes = [rows["label"].nunique() for of_level in units.values() for rows in of_level.values()]
    return units if min(classes) == 2 else {}


def _labelled_images(by_fold: Mapping[str, pd.DataFrame]) -> int:
    """How many images with a label are in any of the tables."""
    known = [rows.loc[rows["label"].notna(), "image_id"] for rows in by_fold.values()]
    return int(pd.concat(known).nunique())
