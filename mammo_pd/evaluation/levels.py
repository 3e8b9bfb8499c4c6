"""Aggregation to breasts, exams and patients: image rows go in, one row per unit comes out."""

from enum import StrEnum

import numpy as np
import pandas as pd

from mammo_pd.terms import Laterality, Level

STANDARD_VIEWS = ("CC", "MLO")
# Scores are written with fewer digits, and the error of a sum of dozens of them lies beyond.
_DIGITS = 14


class Aggregation(StrEnum):
    """How the scores of a unit's images are aggregated into the unit's score."""

    MEAN = "mean"
    MAX = "max"
    NOISY_OR = "noisy_or"  # 1 - prod(1 - score): any image alone can make the unit positive


def units_of(predictions: pd.DataFrame, level: Level) -> np.ndarray:
    """Number the unit that each image belongs to.

    A breast is one side of one exam of one patient; an image without laterality is a unit of its
    own. Images without ``exam_id`` belong to one unnamed exam of their patient.

    Args:
        predictions: as ``check_predictions`` returns it.
        level: the kind of unit.

    Returns:
        (n images,) int64, from 0, in the order of the units' keys.
    """
    if level is Level.IMAGE:
        return np.arange(len(predictions), dtype=np.int64)
    keys = [predictions["patient_id"]]
    if level in (Level.BREAST, Level.EXAM):
        keys.append(predictions["exam_id"].fillna(""))
    if level is Level.BREAST:
        side = predictions["laterality"]
        if side.isna().any():
            # Images of unknown laterality may show opposite breasts, so each is its own unit.
            side = side.where(side.notna(), "image " + predictions["image_id"])
        keys.append(side)
    return np.asarray(predictions.groupby(keys, sort=True).ngroup(), dtype=np.int64)


def with_known_label(predictions: pd.DataFrame, level: Level) -> pd.DataFrame:
    """The rows of the units whose label is known.

    A unit is positive if any of its images is known to be, and negative only if all of them are
    known to be negative; otherwise it is neither. A positive unit keeps its images without a label:
    their scores are part of its score.

    Args:
        predictions: as ``check_predictions`` returns it.
        level: the kind of unit.

    Returns:
        The rows to ``aggregate`` at this level.
    """
    unit = units_of(predictions, level)
    by_unit = predictions["label"].groupby(unit)
    known = by_unit.transform("max").eq(1.0) | by_unit.transform("count").eq(
        by_unit.transform("size")
    )
    # If all are known, the columns are shared, not copied.
    return (predictions if known.all() else predictions[known]).reset_index(drop=True)


def aggregate(
    predictions: pd.DataFrame, level: Level, aggregation: Aggregation = Aggregation.MEAN
) -> pd.DataFrame:
    """One row per unit of a level.

    A unit is positive when any of its images is. Its score is that of ``aggregate_scores``.

    Args:
        predictions: rows of units of known label, as ``with_known_label`` returns them.
        level: the kind of unit.
        aggregation: how the scores of a unit's images are aggregated.

    Returns:
        As ``aggregate_scores``, with ``label`` (int64, 0 or 1) before the score.
    """
    units, order, starts = _score_units(predictions, level, aggregation)
    label = predictions["label"].to_numpy(dtype=np.float64)[order]
    place = len(units.columns) - 2  # before score and n_images
    units.insert(place, "label", np.fmax.reduceat(label, starts).astype(np.int64))
    return units


def aggregate_scores(
    predictions: pd.DataFrame, level: Level, aggregation: Aggregation = Aggregation.MEAN
) -> pd.DataFrame:
    """One row per unit of a level; labels are not needed.

    A unit's score is the mean, the maximum or the noisy-or of its images' scores. Incomplete units
    (an exam of one view) are kept. The order of the rows changes nothing, and scores that are equal
    on paper tie: (0.1, 0.2) with (0.15, 0.15).

    Args:
        predictions: ``image_id, patient_id, exam_id, laterality, view, score``, one row per image.
        level: the kind of unit.
        aggregation: how the scores of a unit's images are aggregated.

    Returns:
        ``patient_id``, ``exam_id`` and ``laterality`` where the level has them (``image_id`` and
        ``view`` too for images), ``score`` (float64 in [0, 1]), ``n_images``.
    """
    units, _, _ = _score_units(predictions, level, aggregation)
    return units


def _score_units(
    predictions: pd.DataFrame, level: Level, aggregation: Aggregation
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """The units with their scores; the images' order by unit, and where each unit starts in it."""
    identity = {
        Level.IMAGE: ["image_id", "patient_id", "exam_id", "laterality", "view"],
        Level.BREAST: ["patient_id", "exam_id", "laterality"],
        Level.EXAM: ["patient_id", "exam_id"],
        Level.PATIENT: ["patient_id"],
    }[level]
    unit = units_of(predictions, level)
    score = predictions["score"].to_numpy(dtype=np.float64)
    # Sorted by unit once, so that each aggregate is one ``reduceat`` and not a group-by; by score
    # within it, as the last digit of a sum depends on the order of what is added.
    order = np.lexsort((score, unit))
    starts = np.flatnonzero(np.diff(unit[order], prepend=-1))
    counts = np.diff(starts, append=len(order))
    score = score[order]

    units = predictions[identity]
    if level is not Level.IMAGE:  # whose columns are shared and not copied: their order is the same
        units = units.iloc[order[starts]]
    units = units.reset_index(drop=True)
    units["score"] = _aggregate_scores(score, starts, counts, aggregation)
    units["n_images"] = counts
    return units, order, starts


def _aggregate_scores(
    score: np.ndarray, starts: np.ndarray, counts: np.ndarray, aggregation: Aggregation
) -> np.ndarray:
    if aggregation is Aggregation.MAX:
        return np.maximum.reduceat(score, starts)
    if aggregation is Aggregation.NOISY_OR:
        none_positive = np.multiply.reduceat(1.0 - score, starts)
        return np.where(counts == 1, score[starts], 1.0 - without_rounding_error(none_positive))
    mean = without_rounding_error(np.add.reduceat(score, starts) / counts)
    # The mean of equal scores is exactly that score.
    lowest, highest = np.minimum.reduceat(score, starts), np.maximum.reduceat(score, starts)
    within: np.ndarray = np.minimum(np.maximum(mean, lowest), highest)
    return within


def units_by_level(
    predictions: pd.DataFrame, aggregation: Aggregation
) -> dict[Level, pd.DataFrame]:
    """The units of known label at every level, as ``aggregate`` returns them."""
    return {
        level: aggregate(with_known_label(predictions, level), level, aggregation)
        for level in Level
    }


def without_rounding_error(values: np.ndarray) -> np.ndarray:
    """Round sums and products so that those that are equal on paper tie in a ranking.

    The last bit of a sum depends on its terms: (0.1 + 0.2) / 2 exceeds 0.15. A ranking that took
    the difference for one of the model would turn many ties at once.

    Args:
        values: (n,) float64, each computed from a few dozen numbers at most.

    Returns:
        (n,) float64, rounded to 14 significant digits.
    """
    # Through text, because no factor of ten below 1 is exact in binary; from an iterator, because a
    # list of Python's numbers is four times as large as the array.
    rounded = (float(f"{value:.{_DIGITS}g}") for value in values)
    return np.fromiter(rounded, dtype=np.float64, count=len(values))


def count_units(predictions: pd.DataFrame) -> dict[str, int]:
    """Count images, breasts, exams and patients, and the images whose keys are missing.

    Returns:
        ``images, patients, exams, breasts``; ``images_without_laterality`` (each a unit of its own
        at breast level), ``images_without_exam_id`` (one exam per patient),
        ``images_without_view``; ``incomplete_exams``: exams that lack one of the four standard
        images L-CC, L-MLO, R-CC, R-MLO, and are kept; ``images_without_label``,
        ``breasts_of_unknown_label`` and so on for exams and patients, which are neither positive
        nor negative; ``contradictory_breasts``: those with positive and negative images, which
        count as positive.
    """
    exam = units_of(predictions, Level.EXAM)
    n_exams = len(np.unique(exam))
    sides = [side.value for side in Laterality]
    standard = predictions["laterality"].isin(sides) & predictions["view"].isin(STANDARD_VIEWS)
    seen = pd.DataFrame(
        {"exam": exam, "side": predictions["laterality"], "view": predictions["view"]}
    )[standard].drop_duplicates()
    views = np.bincount(seen["exam"], minlength=n_exams)
    unknown = {}
    for level in (Level.BREAST, Level.EXAM, Level.PATIENT):
        known = with_known_label(predictions, level)
        unknown[level] = _count_units(predictions, level) - _count_units(known, level)
    of_breast = predictions["label"].groupby(units_of(predictions, Level.BREAST))
    return {
        "images": len(predictions),
        "patients": int(predictions["patient_id"].nunique()),
        "exams": n_exams,
        "breasts": _count_units(predictions, Level.BREAST),
        "images_without_laterality": int(predictions["laterality"].isna().sum()),
        "images_without_exam_id": int(predictions["exam_id"].isna().sum()),
        "images_without_view": int(predictions["view"].isna().sum()),
        "incomplete_exams": int((views < len(sides) * len(STANDARD_VIEWS)).sum()),
        "images_without_label": int(predictions["label"].isna().sum()),
        "breasts_of_unknown_label": unknown[Level.BREAST],
        "exams_of_unknown_label": unknown[Level.EXAM],
        "patients_of_unknown_label": unknown[Level.PATIENT],
        "contradictory_breasts": int((of_breast.max() > of_breast.min()).sum()),
    }


def _count_units(predictions: pd.DataFrame, level: Level) -> int:
    return len(np.unique(units_of(predictions, level)))
