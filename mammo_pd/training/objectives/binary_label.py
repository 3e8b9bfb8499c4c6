"""Cancer or not, by the column ``label``: one logit, binary cross-entropy."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from mammo_pd.config import TrainingSettings
from mammo_pd.errors import InputError
from mammo_pd.evaluation.levels import Aggregation, aggregate
from mammo_pd.evaluation.roc import auc
from mammo_pd.terms import Level
from mammo_pd.training.objectives.base import Objective


class BinaryLabel(Objective):
    """One label of 0 or 1 for each image.

    Args:
        settings: ``positive_weight`` is the weight of a positive image in the loss.
    """

    num_outputs = 1
    target_columns = ("label",)
    score_columns = ("score",)
    monitor = "val_auc_image"

    def __init__(self, settings: TrainingSettings) -> None:
        self._positive_weight = settings.positive_weight

    def targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        """(rows, 1) float32 of 0, 1 or NaN."""
        return rows[["label"]].to_numpy(np.float32, na_value=np.nan)

    def check(self, rows: pd.DataFrame, where: str) -> None:
        """Both classes are needed.

        Raises:
            InputError: one of them is missing.
        """
        for label, word in ((1, "positive"), (0, "negative")):
            if not (rows["label"] == label).any():
                raise InputError(
                    f"{where} has no {word} image, so neither training nor an AUC is possible; "
                    "check the labels (mammo-pd preprocess --labels), or make another split: "
                    "mammo-pd split --name NEW"
                )

    def count(self, rows: pd.DataFrame) -> str:
        """Images, and how many are positive."""
        return f"{len(rows)} ({int(rows['label'].sum())} positive)"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy of (B, 1) logits, mean over the images."""
        known = ~targets.isnan()
        # Filled on the device: a tensor made from a Python number on the host would wait for it.
        weight = torch.full((1,), self._positive_weight, device=outputs.device)
        loss = F.binary_cross_entropy_with_logits(
            outputs, torch.where(known, targets, 0.0), pos_weight=weight, reduction="none"
        )
        return (loss * known).mean()

    def scores(self, outputs: Tensor) -> Tensor:
        """(B, 1) probabilities from (B, 1) logits."""
        return torch.sigmoid(outputs)

    def metrics(self, rows: pd.DataFrame, scores: npt.NDArray[np.float64]) -> dict[str, float]:
        """AUC per image, and per breast by the mean of its images."""
        scored = rows.assign(score=scores[:, 0])
        found = {}
        for level in (Level.IMAGE, Level.BREAST):
            units = aggregate(scored, level, Aggregation.MEAN)
            found[f"val_auc_{level}"] = auc(units["label"], units["score"])
        return found
