"""Any task on several views at once: what another objective learns of an image, of its breast.

The images of a unit, a breast or an exam, are in one batch. Each is encoded by itself from patches
of its own draw, and a small transformer lets the class tokens of a unit look at one another. The
output of each image is its breast's, so that loss, scores and tables are the other objective's.

Shapes: B images, T targets.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor, nn

from mammo_pd.backbones.base import Backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import TrainingSettings
from mammo_pd.errors import InputError
from mammo_pd.evaluation.levels import STANDARD_VIEWS, units_of
from mammo_pd.evaluation.roc import auc
from mammo_pd.patches.sampler import Kept, PatchSampler
from mammo_pd.terms import Level
from mammo_pd.training.objectives.base import Objective
from mammo_pd.training.objectives.view_transformer import FusedModel
from mammo_pd.wording import counted

# What the numbers of images alone may tell of the label before it is said.
_TELLING = 0.6


class FusedViews(Objective):
    """Another objective, whose images are judged together.

    Of the targets of a breast's images the highest counts, as in evaluation: a breast is positive
    if any image is known to be, and unknown if none is and one is not known. An image without a
    label of a unit that has any is read too.

    Args:
        objective: what is learnt.
        settings: of the run; ``fusion`` is read, and ``positive_share``.

    Raises:
        InputError: what is learnt is not judged by the breast.
    """

    def __init__(self, objective: Objective, settings: TrainingSettings) -> None:
        assert settings.fusion is not None
        if objective.is_pretext:
            raise InputError(
                f"training.fusion {settings.fusion} joins views to judge a breast, and "
                f"{settings.objective} judges nothing; drop it here, and give it to the run that "
                "starts from these weights."
            )
        if settings.fusion == "exam" and settings.positive_share is not None:
            raise InputError(
                f"training.positive_share {settings.positive_share:g} draws what is judged "
                "together, and the two breasts of an exam have labels of their own, so that scores "
                "could not be corrected for it; give training.positive_weight, or training.fusion "
                "breast."
            )
        self._inner = objective
        self.judged = Level(settings.fusion)
        self.num_outputs = objective.num_outputs
        self.target_columns = objective.target_columns
        self.score_columns = objective.score_columns
        self.monitor = objective.monitor

    # ---- rows

    def targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Each image's own, by which it is judged."""
        return self._inner.targets(rows)

    def training_targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Those of the breast that each image is of."""
        of_image = self._inner.training_targets(rows)
        breast = units_of(rows, Level.BREAST)
        highest = np.full((breast.max(initial=-1) + 1, of_image.shape[1]), -np.inf, np.float32)
        np.fmax.at(highest, breast, of_image)
        unknown = np.zeros(highest.shape, bool)
        np.logical_or.at(unknown, breast, np.isnan(of_image))
        highest[unknown & (highest < 1)] = np.nan
        of_breast: npt.NDArray[np.float32] = highest[breast]
        return of_breast

    def usable(self, rows: pd.DataFrame) -> npt.NDArray[np.bool_]:
        """All images of each unit of which one can be used."""
        unit = units_of(rows, self.judged)
        of_unit = np.bincount(unit, weights=self._inner.usable(rows)) > 0
        usable: npt.NDArray[np.bool_] = of_unit[unit]
        return usable

    def views(self, rows: pd.DataFrame) -> npt.NDArray[np.int64]:
        """(rows, 3) int64: unit, breast within it, and kind of view: CC, MLO, any other."""
        unit, breast = units_of(rows, self.judged), units_of(rows, Level.BREAST)
        within = pd.Series(breast).groupby(unit).rank(method="dense").to_numpy(np.int64) - 1
        kinds = {name: kind for kind, name in enumerate(STANDARD_VIEWS)}
        kind = rows["view"].map(kinds).fillna(len(kinds)).to_numpy(np.int64)
        return np.stack([unit, within, kind], axis=1)

    def check(self, rows: pd.DataFrame, where: str) -> None:
        """As of the other objective, on the images that have a target.

        Raises:
            InputError: they cannot serve.
        """
        self._inner.check(rows[self._inner.usable(rows)], where)

    def count(self, rows: pd.DataFrame) -> str:
        """As of the other objective, and how many units there are."""
        units = len(np.unique(units_of(rows, self.judged)))
        return f"{self._inner.count(rows)} of {units} {self.judged}s"

    def define(self, target: str) -> str:
        """As of the other objective."""
        return self._inner.define(target)

    def column_of(self, target: str) -> str:
        """As of the other objective."""
        return self._inner.column_of(target)

    def warnings(self, rows: pd.DataFrame) -> list[str]:
        """Of a collection in which how many images there are tells positives from negatives.

        And of one that has nothing to fuse.
        """
        found = []
        targets = self.training_targets(rows)[:, : len(self.target_columns)]
        breast, exam = units_of(rows, Level.BREAST), units_of(rows, Level.EXAM)
        _, first = np.unique(breast, return_index=True)
        of_breast = np.bincount(breast)[breast]
        together = of_breast if self.judged is Level.BREAST else np.bincount(exam)[exam]
        if together.max(initial=0) == 1:
            sideless = int(rows["laterality"].isna().sum())
            found.append(
                f"each {self.judged.value} has one image here, so that fusion has nothing to join"
                + (
                    f"; of {sideless} of {counted(len(rows), 'image')} nothing says which breast "
                    "it shows: give the label table a column laterality"
                    if sideless and self.judged is Level.BREAST
                    else ""
                )
            )
        counts = {"of a breast": of_breast}
        if self.judged is Level.EXAM:
            counts["of the other breast"] = np.bincount(exam)[exam] - of_breast
        for name, target in zip(self.target_columns, targets.T, strict=True):
            for what, images in counts.items():
                once = first[~np.isnan(target[first])]
                truth = target[once] > 0.5
                if truth.all() or not truth.any():
                    continue
                told = float(auc(truth.astype(int), images[once].astype(float)))
                if max(told, 1 - told) > _TELLING:
                    found.append(
                        f"the number of images {what} alone tells {name} with an AUC of "
                        f"{max(told, 1 - told):.2f}, which fusion can learn instead of what the "
                        "images show; scores then mean nothing elsewhere"
                    )
        return found

    def metrics(self, rows: pd.DataFrame, scores: npt.NDArray[np.float64]) -> dict[str, float]:
        """As of the other objective, on the images that have a target."""
        known = self._inner.usable(rows)
        return self._inner.metrics(rows[known].reset_index(drop=True), scores[known])

    # ---- tensors

    def prepare(self, backbone: Backbone, targets: npt.NDArray[np.float32]) -> None:
        """As of the other objective, of breasts."""
        self._inner.prepare(backbone, targets)

    def positive(self, targets: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """As of the other objective."""
        return self._inner.positive(targets)

    def chance_loss(self, targets: npt.NDArray[np.float32]) -> float | None:
        """As of the other objective."""
        return self._inner.chance_loss(targets)

    def prior_note(self) -> str | None:
        """As of the other objective, and what a score is of."""
        seen = "all views of a breast"
        if self.judged is Level.EXAM:
            seen += ", beside those of the other one,"
        note = f"Each image has the score of its breast: {seen} are judged together (fusion)."
        return " ".join(filter(None, (note, self._inner.prior_note())))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The other objective's: a breast counts by its images."""
        return self._inner.loss(outputs, targets)

    def scores(self, outputs: Tensor) -> Tensor:
        """(B, T): of each image its breast's."""
        return self._inner.scores(outputs)

    def build_model(self, backbone: Backbone) -> nn.Module:
        """The backbone with the transformer over its class tokens.

        Raises:
            InputError: the other objective puts something of its own around the backbone.
        """
        if self._inner.build_model(backbone) is not backbone:
            raise InputError(
                f"training.fusion {self.judged} reads the backbone's class tokens, and this "
                "objective puts its own module around it; drop one of them."
            )
        return FusedModel(backbone, across_breasts=self.judged is Level.EXAM)

    def training_inputs(
        self, sampler: PatchSampler, batch: ImageBatch, keys: Tensor, num_keep: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """What the other objective reads, and which images belong together."""
        (patches, positions, *others), targets = self._inner.training_inputs(
            sampler, batch, keys, num_keep
        )
        return (patches, positions, _views_of(batch), *others), targets

    def evaluation_inputs(
        self, sampler: PatchSampler, batch: ImageBatch, kept: Kept | None = None
    ) -> tuple[Tensor, ...]:
        """What the other objective reads, and which images belong together."""
        patches, positions = self._inner.evaluation_inputs(sampler, batch, kept)
        return patches, positions, _views_of(batch)


def _views_of(batch: ImageBatch) -> Tensor:
    assert batch.views is not None, "a data set is made with the objective's views"
    return batch.views
