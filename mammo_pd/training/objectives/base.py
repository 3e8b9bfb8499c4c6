"""The seam between what is learnt and everything that learns it.

The loop, prediction and checkpoints know an objective by this class alone. A supervised task says
what its targets, loss and scores are; a pretext task, such as a masked autoencoder, also says what
is trained around the backbone and what a step reads.

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
    """What the head's outputs are, their loss, and the scores read from them.

    On a GPU, `training_inputs`, `loss`, `evaluation_inputs` and `scores` run a few times and are
    then replayed as a CUDA graph (`mammo_pd.training.captured`): what they compute has to follow
    from the batch and its keys, on the device. A number of the host, such as a random one or a
    count of calls, would stay what it was at the capture; one that waits for the device (`item`)
    makes steps run uncaptured, with a warning.

    Attributes:
        num_outputs: of the backbone's head.
        target_columns: names in predictions.csv of the targets that `evaluate` reports on, all of
            them 0 or 1; empty where there are none, as of an age: `evaluate` then writes the scores
            and prints `metrics` of the test images.
        score_columns: names of the scores there, one for each of ``target_columns`` (and more, if
            scores are to be kept that nothing is reported on). Those of ``target_columns`` are in
            [0, 1].
        monitor: which of `metrics` chooses the best epoch; larger is better, unless its name ends
            with "loss".
        judged: level of what is judged and drawn: an image by itself, or all images of a breast or
            an exam together (`views`). A score is an image's or, by fusion, its breast's.
        is_pretext: whether what is learnt is to predict dropped patches. Validation then always
            keeps as many patches as training does, whatever ``training.validate_on`` says, and the
            scores are of no use to others.
    """

    num_outputs: int
    target_columns: tuple[str, ...]
    score_columns: tuple[str, ...]
    monitor: str
    judged: Level = Level.IMAGE
    is_pretext: bool = False

    # ---- what every objective says

    @abstractmethod
    def targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Read the targets of manifest rows: (rows, T) float32, NaN where one is missing."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over a batch's images of each image's loss.

        A mean over images, so that the parts of a step, weighted by their images, add up to the
        whole. A missing target contributes nothing, but its image still counts.

        Args:
            outputs: what the model returns, float32; (B, num_outputs) of a backbone.
            targets: (B, T) float32, NaN where one is missing; or what `training_inputs` gave.

        Returns:
            () float32.
        """

    @abstractmethod
    def scores(self, outputs: Tensor) -> Tensor:
        """Read (B, T) scores from the model's outputs, keeping their dtype."""

    @abstractmethod
    def metrics(self, rows: pd.DataFrame, scores: npt.NDArray[np.float64]) -> dict[str, float]:
        """Judge the scores of validation rows, or of test rows where no label is reported on.

        Args:
            rows: usable ones of the manifest.
            scores: (rows, T) float64, of ``score_columns``.

        Returns:
            By names that begin with ``val_``; one of them is ``monitor``.
        """

    # ---- which images it is learnt from

    def usable(self, rows: pd.DataFrame) -> npt.NDArray[np.bool_]:
        """Say which manifest rows something can be learnt from: (rows,) bool.

        By default those with any target; all of them where the objective has no targets.
        """
        targets = self.targets(rows)
        if not targets.shape[1]:
            return np.ones(len(rows), bool)
        usable: npt.NDArray[np.bool_] = np.any(~np.isnan(targets), axis=1)
        return usable

    def check(self, rows: pd.DataFrame, where: str) -> None:
        """Refuse the usable rows of one part of a split if they cannot serve.

        By default they must not be none.

        Args:
            rows: of the manifest.
            where: names the part in a message, such as "the val part of the split default".

        Raises:
            InputError: training or `metrics` needs more.
        """
        if rows.empty:
            raise InputError(
                f"{where} has no image that {type(self).__name__} can use; check the label table "
                "(mammo-pd preprocess --labels), or make another split: mammo-pd split --name NEW"
            )

    def views(self, rows: pd.DataFrame) -> npt.NDArray[np.int64] | None:
        """Say which images are judged together: by default none, each is judged by itself.

        Returns:
            (rows, 3) int64: the unit that each image is of, numbered from 0; its breast, within the
            unit; and its kind of view. A batch then holds whole units, and has these
            (`mammo_pd.batch.ImageBatch.views`). None for images that are judged by themselves.
        """
        return None

    def warnings(self, rows: pd.DataFrame) -> list[str]:
        """What the user may not expect of the training rows, a sentence each."""
        return []

    def count(self, rows: pd.DataFrame) -> str:
        """Count the usable rows of one part for people, such as "640 (12 positive)"."""
        return str(len(rows))

    def define(self, target: str) -> str:
        """Say what counts as positive of one of ``target_columns``, for the report."""
        return target

    def column_of(self, target: str) -> str:
        """The manifest's column that one of ``target_columns`` is read from."""
        return target

    # ---- how it begins

    def training_targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Read what is trained on, where that is not what is judged: by default `targets`."""
        return self.targets(rows)

    def positive(self, targets: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Say which images count as positive where a share of them is set: any target above 0.5."""
        found: npt.NDArray[np.bool_] = np.any(targets > 0.5, axis=1)
        return found

    def prepare(self, backbone: Backbone, targets: npt.NDArray[np.float32]) -> None:  # noqa: B027
        """Adapt to the training images before the first step; by default nothing is to be done.

        Args:
            backbone: with its initial weights, which a checkpoint may replace later.
            targets: (images, T) float32 of `training_targets`; (breasts, T) where views are fused.
        """

    def chance_loss(self, targets: npt.NDArray[np.float32]) -> float | None:
        """The training loss of the best constant output; None where that says nothing.

        Args:
            targets: (images, T) float32 of `training_targets`.
        """
        return None

    def prior_note(self) -> str | None:
        """Say in a sentence what the scores' prevalence is, where training changed it."""
        return None

    # ---- what a pretext task changes

    def build_model(self, backbone: Backbone) -> nn.Module:
        """What is trained: the backbone itself, or a module around it, such as with a decoder.

        Every weight must take part in each step: one that does not use the backbone's head sets
        ``num_outputs`` to 0.
        """
        return backbone

    def training_inputs(
        self, sampler: PatchSampler, batch: ImageBatch, keys: Tensor, num_keep: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Read what a training step needs of a batch.

        Args:
            sampler: draws and reads patches.
            batch: B images, on the device.
            keys: (B,) int64: everything random about an image follows from its key.
            num_keep: K.

        Returns:
            What the model is called with, and the targets of the loss. By default the kept patches
            (B, K, P * P), their positions (B, K) and the keys; and the batch's own targets.
        """
        return (*sampler.for_training(batch, keys, num_keep), keys), batch.targets

    def evaluation_inputs(
        self, sampler: PatchSampler, batch: ImageBatch, kept: Kept | None = None
    ) -> tuple[Tensor, ...]:
        """Read what the model is called with to score a batch, as it is: by default every patch.

        Args:
            sampler: reads patches.
            batch: B images, on the device.
            kept: how many patches to read, and the keys that draw them; None for all.
        """
        return sampler.for_evaluation(batch, kept)
