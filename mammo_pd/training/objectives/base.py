"""The seam between what is learnt and everything that learns it.

The loop, prediction and checkpoints know an objective by this protocol alone.

Shapes: B images, T targets of each.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor


class Objective(Protocol):
    """What the head's outputs are, their loss, and the scores read from them.

    Attributes:
        num_outputs: of the head.
        score_columns: names of the T scores in predictions.csv.
        monitor: which of `metrics` chooses the best epoch; larger is better.
    """

    num_outputs: int
    score_columns: tuple[str, ...]
    monitor: str

    def targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Read the targets of manifest rows: (rows, T) float32, NaN where one is missing."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over the images of a batch of each image's loss.

        A mean over images, so that the parts of a step, weighted by their images, add up to the
        whole; a missing target adds nothing and its image still counts.

        Args:
            outputs: (B, num_outputs) float32.
            targets: (B, T) float32, NaN where one is missing.

        Returns:
            () float32.
        """

    def scores(self, outputs: Tensor) -> Tensor:
        """Scores in [0, 1] from outputs (B, num_outputs): (B, T), of the outputs' dtype."""

    def metrics(self, rows: pd.DataFrame, scores: npt.NDArray[np.float64]) -> dict[str, float]:
        """Judge the scores (rows, T) of the validation rows; one of the names is ``monitor``."""
