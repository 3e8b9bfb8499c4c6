"""What is checked of an objective, which a program may bring along: its names, shapes and metrics.

Objectives are written by users, too. A score column that is a column of the images would be
overwritten by it in predictions.csv, and judged as if it were the model's; other mistakes would
come to light as an error of torch or pandas that does not name them, after an epoch.
"""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.training.objectives.base import Objective
from mammo_pd.wording import counted


def check_names(objective: Objective, taken: Collection[str]) -> None:
    """Refuse names of scores that cannot be columns of predictions.csv.

    Args:
        objective: of a run.
        taken: names of columns that predictions.csv has beside targets and scores.

    Raises:
        InputError: not a tuple of names, fewer scores than targets, or a name twice.
    """
    for attribute in ("target_columns", "score_columns"):
        names = getattr(objective, attribute)
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            raise _refused(objective, f"has {attribute} {names!r}; give a tuple of names")
    targets, scores = list(objective.target_columns), list(objective.score_columns)
    if len(scores) < len(targets):
        raise _refused(
            objective,
            f"has the target_columns {targets} and the score_columns {scores}; give one "
            "score for each target, in the same order",
        )
    columns = [*targets, *scores]
    twice = [name for name in dict.fromkeys(columns) if columns.count(name) > 1]
    twice += [name for name in scores if name in taken and name not in twice]
    if twice:
        raise _refused(
            objective,
            f"has the score_columns {scores}, and predictions.csv has another column of "
            f"the name {', '.join(twice)}; choose other names, such as {twice[0]}_predicted",
        )


def check_targets(objective: Objective, rows: pd.DataFrame) -> None:
    """Refuse targets of another shape or dtype than the loss is given.

    Raises:
        InputError: `targets` of the rows is not (rows, T) float32.
    """
    targets = objective.targets(rows)
    if targets.ndim != 2 or len(targets) != len(rows) or targets.dtype != np.float32:
        raise _refused(
            objective,
            f"gives targets of shape {targets.shape} and {targets.dtype} for "
            f"{counted(len(rows), 'image')}; "
            "give (images, targets) float32, with NaN where one is missing",
        )


def check_scores(objective: Objective, shape: tuple[int, ...], images: int) -> None:
    """Refuse scores that are not one of each column for each image.

    Args:
        objective: of a run.
        shape: of what `scores` made.
        images: how many were scored.

    Raises:
        InputError: it is not (images, score columns).
    """
    columns = len(objective.score_columns)
    if shape != (images, columns):
        raise _refused(
            objective,
            f"gives scores of shape {shape} for {counted(images, 'image')}; with the score_columns "
            f"{list(objective.score_columns)} give ({images}, {columns})",
        )


def check_monitor(objective: Objective, metrics: Mapping[str, float]) -> None:
    """Refuse metrics without the one that is shown and tells the best epoch.

    Raises:
        InputError: it is not among them.
    """
    if objective.monitor not in metrics:
        raise _refused(
            objective,
            f"has monitor {objective.monitor!r}, and its metrics are "
            f"{', '.join(metrics) or 'none'}; name one of them",
        )


def _refused(objective: Objective, why: str) -> InputError:
    kind = type(objective)
    return InputError(f"the objective {kind.__module__}.{kind.__qualname__} {why}.")
