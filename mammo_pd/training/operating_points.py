"""Operating points of a trained model, locked on its validation images."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from mammo_pd.evaluation.operating_points import Choices, OperatingPoints
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.terms import Split
from mammo_pd.training.objectives import Objective

_IDENTITY = ["image_id", "patient_id", "exam_id", "laterality", "view"]


def lock_operating_points(
    objective: Objective,
    rows: pd.DataFrame,
    scores: npt.NDArray[np.float64],
    choices: Choices | None = None,
    *,
    evaluated: npt.NDArray[np.bool_] | None = None,
) -> dict[str, OperatingPoints]:
    """Lock operating points of each target that is reported on.

    Args:
        objective: what was learnt.
        rows: of a manifest: the validation images, and others if ``evaluated`` says which.
        scores: (rows, T) of ``objective.score_columns``.
        choices: what they are chosen by.
        evaluated: (rows,) bool, rows that only relate the prevalences of the levels.

    Returns:
        By target; none of one without labels.
    """
    found = {}
    targets = objective.targets(rows)
    for column, name in enumerate(objective.target_columns):
        table = rows[_IDENTITY].assign(label=targets[:, column], score=scores[:, column])
        tested = np.zeros(len(rows), bool) if evaluated is None else evaluated
        if np.isnan(targets[~tested, column]).all():
            continue
        found[name] = OperatingPoints.lock(
            check_predictions(table[~tested]),
            choices or Choices(),
            part=Split.VAL.value,
            evaluated=check_predictions(table[tested]) if tested.any() else None,
        )
    return found
