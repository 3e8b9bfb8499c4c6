"""Cancer or not, by the column ``label``: one logit, binary cross-entropy.

Training may draw positives more often than they occur, or give them more weight. The loss, and
nothing else, shifts the logit by the resulting change in the log odds. So a score is a probability
at the prevalence of the training images, and a checkpoint needs no correction afterwards.
"""

import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.metrics import average_precision_score, log_loss
from torch import Tensor
from torch.nn import functional as F

from mammo_pd.backbones.base import Backbone
from mammo_pd.config import TrainingSettings
from mammo_pd.errors import InputError
from mammo_pd.evaluation.levels import Aggregation, aggregate
from mammo_pd.evaluation.roc import auc
from mammo_pd.quoting import such_as
from mammo_pd.terms import Level
from mammo_pd.training.objectives.base import Objective
from mammo_pd.wording import counted

_MEASURES = {"auc": auc, "average_precision": average_precision_score}
_Targets = TypeVar("_Targets", Tensor, float)
# Keeps the log odds finite if the training part holds only one class.
_RAREST = 1e-4


class BinaryLabel(Objective):
    """One label of 0 or 1 for each image.

    Args:
        settings: of the run; ``positive_weight``, ``positive_share``, ``label_smoothing``,
            ``target_column`` and ``monitor`` are read.

    Raises:
        InputError: there is no such metric to monitor.
    """

    num_outputs = 1
    target_columns = ("label",)
    score_columns = ("score",)

    def __init__(self, settings: TrainingSettings) -> None:
        if settings.targets:
            raise InputError(
                "training.targets needs training.objective findings, and this run's is "
                "binary_label; set the objective, or drop the targets."
            )
        self._settings = settings
        self.monitor = settings.monitor or "val_auc_image"
        of_levels = [f"val_{measure}_{level}" for measure in _MEASURES for level in Level]
        if self.monitor not in (*of_levels, "val_loss"):
            raise InputError(
                f"training.monitor {self.monitor!r} does not exist; choose one of "
                f"{', '.join(of_levels)}, val_loss."
            )
        # Shift of the log odds from the training images as they are to those that the loss sees.
        self._shift = 0.0

    def targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        """(rows, 1) float32 of 0, 1 or NaN."""
        return rows[["label"]].to_numpy(np.float32, na_value=np.nan)

    def training_targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        """(rows, 1) float32 in [0, 1] or NaN: the label, or the column of soft labels.

        Raises:
            InputError: there is no such column, it has other values, or it is empty, 0 or 1 for
                every row, so that there is nothing to learn.
        """
        column = self._settings.target_column
        if column is None:
            return self.targets(rows)
        if column not in rows:
            raise InputError(
                f"training.target_column {column!r} is not in the store; give the label table that "
                f"has it: mammo-pd preprocess --labels TABLE --carry {column}"
            )
        values = pd.to_numeric(rows[column], errors="coerce").to_numpy(np.float32, na_value=np.nan)
        wrong = (rows[column].notna() & np.isnan(values)) | (values < 0) | (values > 1)
        if wrong.any():
            raise InputError(
                f"training.target_column {column!r} has {counted(int(wrong.sum()), 'value')} "
                f"outside [0, 1]{such_as(rows[column][wrong])}; targets are probabilities."
            )
        known = values[~np.isnan(values)]
        if known.max(initial=0) == 0 or known.min(initial=1) == 1:
            every = f"{known[0]:g}" if known.size else "empty"
            raise InputError(
                f"training.target_column {column!r} is {every} for every training image"
                f"{' that has a value' * (0 < known.size < len(values))}, so there is nothing to "
                "learn from it; give the label table that holds its values: mammo-pd preprocess "
                f"--labels TABLE --carry {column}"
            )
        return values[:, None]

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

    def prepare(self, backbone: Backbone, targets: npt.NDArray[np.float32]) -> None:
        """Start the head at the prevalence, and compute the loss's shift of the log odds."""
        prevalence = float(np.nanmean(targets))
        bias = backbone.timm_model.get_classifier().bias
        with torch.no_grad():
            bias.fill_(_log_odds(prevalence))
        self._shift = math.log(self._settings.positive_weight)
        if self._settings.positive_share is not None:
            self._shift += _log_odds(self._drawn_share(targets)) - _log_odds(prevalence)

    def chance_loss(self, targets: npt.NDArray[np.float32]) -> float:
        """The entropy of the training targets as drawn, smoothed and weighted."""
        mean = self._smoothed(self._drawn_share(targets))
        positive, negative = self._settings.positive_weight * mean, 1 - mean
        total = positive + negative
        return -positive * math.log(positive / total) - negative * math.log(negative / total)

    def prior_note(self) -> str | None:
        """How positives were over-sampled or weighted, and that the loss corrects for it."""
        share, weight = self._settings.positive_share, self._settings.positive_weight
        done = [] if share is None else [f"drew positives as {share * 100:g} % of its images"]
        if weight != 1.0:
            done.append(f"gave positives {weight:g} times the weight")
        if not done:
            return None
        return (
            f"Training {' and '.join(done)}. The loss shifts the log odds by as much, so scores "
            "are corrected to the prevalence of the training images as they are."
        )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy of (B, 1) logits, mean over the images."""
        known = ~targets.isnan()
        # Filled on the device: copying a Python number from the host would wait for the device.
        weight = torch.full((1,), self._settings.positive_weight, device=outputs.device)
        loss = F.binary_cross_entropy_with_logits(
            outputs + self._shift,
            self._smoothed(torch.where(known, targets, 0.0)),
            pos_weight=weight,
            reduction="none",
        )
        return (loss * known).mean()

    def scores(self, outputs: Tensor) -> Tensor:
        """(B, 1) probabilities from (B, 1) logits."""
        return torch.sigmoid(outputs)

    def metrics(self, rows: pd.DataFrame, scores: npt.NDArray[np.float64]) -> dict[str, float]:
        """AUC per image and per breast (by the mean of its images), the loss, and the monitor."""
        scored = rows.assign(score=scores[:, 0])
        found = {"val_loss": float(log_loss(scored["label"].astype(int), scored["score"]))}
        wanted = {"val_auc_image", "val_auc_breast", self.monitor}
        for measure, function in _MEASURES.items():
            for level in Level:
                if f"val_{measure}_{level}" in wanted:
                    units = aggregate(scored, level, Aggregation.MEAN)
                    value = float(function(units["label"], units["score"]))
                    found[f"val_{measure}_{level}"] = value
        return found

    def _drawn_share(self, targets: npt.NDArray[np.float32]) -> float:
        """The mean target of the images that an epoch draws."""
        share = self._settings.positive_share
        if share is None:
            return float(np.nanmean(targets))
        positive = self.positive(targets)
        means = [float(np.nanmean(targets[kind])) for kind in (positive, ~positive)]
        return share * means[0] + (1 - share) * means[1]

    def _smoothed(self, targets: _Targets) -> _Targets:
        smoothing = self._settings.label_smoothing
        return targets * (1 - smoothing) + 0.5 * smoothing


def _log_odds(share: float) -> float:
    share = min(max(share, _RAREST), 1 - _RAREST)
    return math.log(share / (1 - share))
