"""The seam between what is learnt and everything that learns it.

The loop, prediction and checkpoints know an objective only through this class. A supervised task
defines its targets, loss and scores; a pretext task, such as a masked autoencoder, also defines the
module trained around the backbone and what a step reads.

Shapes: B images, K kept patches of each, N of the whole grid, T targets.
"""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor, nn

from mammo_pd.backbones.base import Backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.errors import InputError
from mammo_pd.patches.sampler import Kept, PatchSampler
from mammo_pd.terms import Level


class Objective(ABC):
    """What the head's outputs mean: their targets, their loss, and the scores read from them.

    On a GPU, `training_inputs`, `loss`, `evaluation_inputs` and `scores` run a few times and are
    then replayed as a CUDA graph (`mammo_pd.training.captured`): they must compute everything on
    the device, from the batch and its keys. A value computed on the host, such as a random number
    or a counter, would be frozen at its value during the capture; code that waits for the device
    (`item`) makes steps run uncaptured, with a warning.

    Attributes:
        num_outputs: of the backbone's head.
        target_columns: names in predictions.csv of the 0/1 targets that `evaluate` reports on;
            empty if there are none, as for an age: `evaluate` then writes the scores and prints
            `metrics` of the test images, and `predict` gives scores without verdicts.
        score_columns: names of the scores in predictions.csv, one for each of ``target_columns``,
            in [0, 1], and possibly more that are kept but not reported on. None is named as a
            column of the manifest.
        monitor: the entry of `metrics` that is shown and tells the best epoch; larger is better
            unless its name ends with "loss".
        judged: the level that is judged and drawn: each image by itself, or all images of a breast
            or exam together (`views`). A score belongs to an image or, with fusion, to its breast.
        is_pretext: whether the task is to predict dropped patches. Validation then always keeps as
            many patches as training does, whatever ``training.validate_on`` says, and the scores
            mean nothing outside training.
    """

    num_outputs: int
    target_columns: tuple[str, ...]
    score_columns: tuple[str, ...]
    monitor: str
    judged: Level = Level.IMAGE
    is_pretext: bool = False

    # ---- what every objective must define

    @abstractmethod
    def targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Read the targets of manifest rows: (rows, T) float32, NaN if missing."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean, over the images of a batch, of each image's loss.

        It must be a mean over images, so that the parts of a step, weighted by their images, add up
        to the whole. A missing target contributes 0, but its image still counts in the mean.

        Args:
            outputs: what the model returns, float32; for a backbone (B, num_outputs).
            targets: (B, T) float32, NaN if missing; or whatever `training_inputs` returned.

        Returns:
            () float32.
        """

    @abstractmethod
    def scores(self, outputs: Tensor) -> Tensor:
        """Turn the model's outputs into (B, T) scores of the same dtype."""

    @abstractmethod
    def metrics(self, rows: pd.DataFrame, scores: npt.NDArray[np.float64]) -> dict[str, float]:
        """Judge the scores of validation rows, or of test rows if no label is reported on.

        Args:
            rows: usable rows of the manifest.
            scores: (rows, T) float64, of ``score_columns``.

        Returns:
            Values by name; names begin with ``val_``, and one of them is ``monitor``.
        """

    # ---- which images are used

    def usable(self, rows: pd.DataFrame) -> npt.NDArray[np.bool_]:
        """Say which manifest rows can be learnt from: (rows,) bool.

        By default those with any target, or all of them if the objective has no targets.
        """
        targets = self.targets(rows)
        if not targets.shape[1]:
            return np.ones(len(rows), bool)
        usable: npt.NDArray[np.bool_] = np.any(~np.isnan(targets), axis=1)
        return usable

    def check(self, rows: pd.DataFrame, where: str) -> None:
        """Refuse the usable rows of one part of a split if they are not sufficient.

        By default there must be at least one.

        Args:
            rows: of the manifest.
            where: the part's name for messages, such as "the val part of the split default".

        Raises:
            InputError: training or `metrics` needs more.
        """
        if rows.empty:
            raise InputError(
                f"{where} has no image that {type(self).__name__} can use; check the label table "
                "(mammo-pd preprocess --labels), or make another split: mammo-pd split --name NEW"
            )

    def views(self, rows: pd.DataFrame) -> npt.NDArray[np.int64] | None:
        """Say which images are judged together; by default each is judged by itself.

        Returns:
            (rows, 3) int64: the unit each image belongs to, numbered from 0; its breast within the
            unit; and its kind of view. Batches then hold whole units and carry these numbers
            (`mammo_pd.batch.ImageBatch.views`). None if images are judged by themselves.
        """
        return None

    def warnings(self, rows: pd.DataFrame) -> list[str]:
        """Warnings about the training rows, one sentence each."""
        return []

    def count(self, rows: pd.DataFrame) -> str:
        """Describe the number of usable rows of one part, such as "640 (12 positive)"."""
        return str(len(rows))

    def define(self, target: str) -> str:
        """Say what counts as positive for one of ``target_columns``, for the report."""
        return target

    def column_of(self, target: str) -> str:
        """The manifest's column that one of ``target_columns`` is read from."""
        return target

    # ---- before the first step

    def training_targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Read the targets to train on; by default `targets`, on which scores are judged."""
        return self.targets(rows)

    def positive(self, targets: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Say which images ``positive_share`` counts as positive: any target above 0.5."""
        found: npt.NDArray[np.bool_] = np.any(targets > 0.5, axis=1)
        return found

    def prepare(self, backbone: Backbone, targets: npt.NDArray[np.float32]) -> None:  # noqa: B027
        """Adapt to the training images before the first step; by default does nothing.

        Args:
            backbone: with its initial weights, which a checkpoint may replace later.
            targets: (images, T) float32 from `training_targets`; (breasts, T) if views are fused.
        """

    def chance_loss(self, targets: npt.NDArray[np.float32]) -> float | None:
        """The training loss of the best constant output; None if that is meaningless.

        Args:
            targets: (images, T) float32 of `training_targets`.
        """
        return None

    def prior_note(self) -> str | None:
        """One sentence on the prevalence of the scores, if training changed it."""
        return None

    # ---- what a pretext task overrides

    def build_model(self, backbone: Backbone) -> nn.Module:
        """The module to train: the backbone itself, or a module around it.

        Every weight must take part in every step: an objective that does not use the backbone's
        head sets ``num_outputs`` to 0.
        """
        return backbone

    def training_inputs(
        self, sampler: PatchSampler, batch: ImageBatch, keys: Tensor, num_keep: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Read what a training step needs from a batch.

        Args:
            sampler: draws and reads patches.
            batch: B images, on the device.
            keys: (B,) int64; everything random about an image must follow from its key.
            num_keep: K.

        Returns:
            The model's arguments, and the targets of the loss. By default the kept patches
            (B, K, P * P), their positions (B, K) and the keys; and the batch's own targets.
        """
        return (*sampler.for_training(batch, keys, num_keep), keys), batch.targets

    def evaluation_inputs(
        self, sampler: PatchSampler, batch: ImageBatch, kept: Kept | None = None
    ) -> tuple[Tensor, ...]:
        """Read the model's arguments to score a batch, unaugmented: by default every patch.

        With one of your own ``patch_dropout.score_on`` is refused: both say which patches are read.

        Args:
            sampler: reads patches.
            batch: B images, on the device.
            kept: how many patches to read, and the keys that draw them; None for all.
        """
        return sampler.for_evaluation(batch, kept)
