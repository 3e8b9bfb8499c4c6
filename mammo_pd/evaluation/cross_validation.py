"""Cross-validations: predictions by fold and seed go in; AUCs and mean scores come out."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.evaluation.levels import (
    Aggregation,
    aggregate,
    with_known_label,
    without_rounding_error,
)
from mammo_pd.evaluation.measures import Row, Scalar, number
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.roc import auc
from mammo_pd.evaluation.within import within_folds
from mammo_pd.terms import Level, Split


def run_aucs(predictions: pd.DataFrame, aggregation: Aggregation) -> Row:
    """The AUC of one run on its validation and test images.

    Args:
        predictions: as for ``check_predictions``, with ``split``.
        aggregation: how the scores of a breast's images are aggregated.

    Returns:
        ``val_auc_image, val_auc_breast, test_auc_image, test_auc_breast``; None where a class is
        missing.
    """
    # A rare target may be unknown for every image of a run.
    unknown = bool(predictions["label"].isna().all())
    checked = predictions[:0] if unknown else check_predictions(predictions)
    return {
        f"{part}_auc_{level}": _auc(checked[checked["split"] == part], level, aggregation)
        for part in (Split.VAL, Split.TEST)
        for level in (Level.IMAGE, Level.BREAST)
    }


def seed_aucs(predictions: Mapping[int, pd.DataFrame], aggregation: Aggregation) -> Sequence[Row]:
    """The AUC of each seed's out-of-fold predictions, within folds.

    Args:
        predictions: by seed, as for ``check_predictions``, with ``fold``.
        aggregation: how the scores of a unit's images are aggregated.

    Returns:
        One row per seed, then ``mean`` and ``range`` (the highest less the lowest): ``seed``, and
        by level the AUC.
    """
    aucs: dict[str, Sequence[Scalar]] = {}
    for seed, rows in predictions.items():
        found = within_folds(check_predictions(rows), aggregation=aggregation)
        of_level = {row["level"]: row["auc"] for row in found}
        aucs[str(seed)] = [of_level.get(level.value) for level in Level]
    # None, where a class is missing, becomes NaN.
    table = np.array(list(aucs.values()), dtype=np.float64)
    summaries = {"mean": table.mean(axis=0), "range": np.ptp(table, axis=0)}
    named = {**aucs, **{name: [number(v) for v in row] for name, row in summaries.items()}}
    return [
        {"seed": name, **{level.value: value for level, value in zip(Level, row, strict=True)}}
        for name, row in named.items()
    ]


def average_seeds(predictions: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Average the scores of several seeds: the predictions of the ensemble of their models.

    Args:
        predictions: one table per seed, of the same images; rows in any order.

    Returns:
        The first table, with the mean of each image's scores as ``score``.

    Raises:
        InputError: the tables are on different images.
    """
    first, *others = (table.reset_index(drop=True) for table in predictions)
    scores = [first["score"].to_numpy(np.float64)]
    for other in others:
        of_image = other.set_index("image_id")["score"]
        if sorted(of_image.index) != sorted(first["image_id"]):
            raise InputError("the seeds were scored on different images; score them again.")
        scores.append(of_image.loc[first["image_id"]].to_numpy(np.float64))
    mean = without_rounding_error(np.mean(np.sort(scores, axis=0), axis=0))
    # The mean over a single seed is its score, unrounded.
    return first.assign(score=np.clip(mean, np.min(scores, axis=0), np.max(scores, axis=0)))


def _auc(rows: pd.DataFrame, level: Level, aggregation: Aggregation) -> float | None:
    known = with_known_label(rows, level)
    if known.empty:
        return None
    units = aggregate(known, level, aggregation)
    return number(auc(units["label"], units["score"]))
