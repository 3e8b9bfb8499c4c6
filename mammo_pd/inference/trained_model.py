"""A model out of a checkpoint's file alone: pixels go in, scores and heat come out."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from lightning.fabric import Fabric
from torch import nn

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import build_backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.data.unit_batches import batches_of_units
from mammo_pd.errors import InputError
from mammo_pd.evaluation.operating_points import OperatingPoints
from mammo_pd.imaging.pyramid import area_average, fitted_size
from mammo_pd.imaging.settings import ALGORITHM_VERSION, ImagingSettings
from mammo_pd.inference.explain import attention_heat, draw_pictures
from mammo_pd.inference.score import batches_of, scoring_sampler
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.terms import PYRAMID_LONG_SIDES, Frames, Level, ScoredPatches, VoiPolicy
from mammo_pd.training.checkpoint import OpenCheckpoint, open_checkpoint
from mammo_pd.training.devices import make_fabric
from mammo_pd.training.model_card import ModelCard
from mammo_pd.training.objectives import Objective, build_objective
from mammo_pd.training.scoring import score_batches
from mammo_pd.wording import counted

_PICTURE_LONG_SIDE = 1024
# Their attention takes the square of it.
_FUSED_AT_ONCE = 256


@dataclass(frozen=True)
class TrainedModel:
    """A model that is ready to score.

    Attributes:
        card: what it was made with.
        epoch: whose weights it has.
        digest: SHA-256 of the weights.
        operating_points: by target; empty where none are locked in the file.
        objective: that it learnt.
        backbone: in evaluation mode, on its device.
        sampler: reads its patches.
        fabric: device and precision.
        trained: the backbone, or what the objective puts around it.
    """

    card: ModelCard
    epoch: int
    digest: str
    operating_points: Mapping[str, OperatingPoints]
    objective: Objective
    backbone: Backbone
    sampler: PatchSampler
    fabric: Fabric
    trained: nn.Module
    _module: nn.Module

    @classmethod
    def load(cls, checkpoint: Path | str) -> "TrainedModel":
        """Load model.safetensors or last.safetensors, onto the device that there is.

        Raises:
            InputError: not a checkpoint, one of a version that did not say what it is, or one of a
                pretext task, which gives no scores.
        """
        with open_checkpoint(Path(checkpoint)) as opened:
            return cls.read(opened)

    @classmethod
    def read(cls, opened: OpenCheckpoint) -> "TrainedModel":
        """The same, from a file that is held open.

        Raises:
            InputError: as `load`.
        """
        header, checkpoint = opened.header(), opened.path
        card = header.card
        if card is None:
            raise InputError(
                f"{checkpoint} was made by an earlier version and does not record its model; train "
                "again, or score its run: mammo-pd evaluate RUN"
            )
        config = card.run_config()
        objective = build_objective(config.training)
        if objective.is_pretext:
            raise InputError(
                f"{checkpoint} was trained for {card.objective}, which gives no scores; use it to "
                f"start another run: mammo-pd train --weights "
                f"{shlex.quote(str(checkpoint))}"
            )
        backbone = build_backbone(
            card.model,
            card.img_size,
            num_outputs=objective.num_outputs,
            global_pool=config.model.global_pool,
        )
        model = objective.build_model(backbone)
        opened.load_into(model, backbone.timm_model)
        # As evaluate does: one device is enough, and it need not be of the kind that trained.
        device = config.device.replace(devices=1, accelerator="auto")
        fabric = make_fabric(config.replace(device=device))
        module = fabric.setup_module(model)
        module.eval()
        if objective.judged is not Level.IMAGE:
            for name in ("encode", "fuse"):
                module.mark_forward_method(name)
        return cls(
            card=card,
            epoch=header.epochs,
            digest=opened.digest(),
            operating_points={
                target: OperatingPoints.load(given)
                for target, given in header.operating_points.items()
            },
            objective=objective,
            backbone=backbone,
            sampler=scoring_sampler(
                backbone,
                card.img_size,
                card.normalization,
                ScoredPatches(config.patch_dropout.score_on),
            ),
            fabric=fabric,
            trained=model,
            _module=module,
        )

    @property
    def settings(self) -> ImagingSettings:
        """What decided the pixels that it was trained on, and decides those that it is given.

        Raises:
            InputError: a step of a program of one's own, which this one does not have.
        """
        given = self.card.preprocessing
        bits = given.get("bits_stored")
        return ImagingSettings(
            VoiPolicy(given.get("voi", VoiPolicy.AUTO)),
            Frames(given.get("frames", Frames.EXCLUDE)),
            None if bits in (None, "None") else int(bits),
            tuple(given.get("steps", ())),
        )

    def preprocessing_warning(self) -> str | None:
        """What of the way from file to pixels differs from its training images'; None for nothing.

        The settings are the same; the code that follows them may be of another version.
        """
        given = self.card.preprocessing
        differing = []
        if (before := given.get("algorithm")) != ALGORITHM_VERSION:
            differing.append(f"by version {before} of the preprocessing, not {ALGORITHM_VERSION}")
        if (levels := given.get("levels")) != list(PYRAMID_LONG_SIDES):
            differing.append(f"from levels of {levels} pixels, not {list(PYRAMID_LONG_SIDES)}")
        if not differing:
            return None
        return (
            f"the model was trained on images prepared {' and '.join(differing)}: its scores may "
            "differ from those it was evaluated with; preprocess its images again and retrain"
        )

    def score(self, images: Sequence[npt.NDArray[np.uint16]]) -> npt.NDArray[np.float64]:
        """Score images.

        Args:
            images: (h, w) each, at the pyramid level that the model reads.

        Returns:
            (images, T) float64, those of 0/1 targets in [0, 1].

        Raises:
            InputError: what is given is not a list of (h, w) uint16 arrays, or a score is no
                number.
        """
        scores = np.empty((len(images), len(self.objective.score_columns)))
        for rows, found in score_batches(
            self._module, self.sampler, self.objective, batches_of(images), self.fabric.device
        ):
            scores[rows.numpy()] = found.double().cpu().numpy()
        return _checked(scores)

    @torch.no_grad()
    def encode(self, images: Sequence[npt.NDArray[np.uint16]]) -> npt.NDArray[np.float32]:
        """What `fuse` needs of images that are judged together: of each by itself, on all patches.

        Args:
            images: (h, w) each, at the pyramid level that the model reads.

        Returns:
            (images, D) float32.
        """
        module: Any = self._module
        found = [
            module.encode(*self.sampler.for_evaluation(batch.to(self.fabric.device)))
            for batch in batches_of(images)
        ]
        return np.concatenate([tokens.float().cpu().numpy() for tokens in found])

    @torch.no_grad()
    def fuse(self, tokens: npt.NDArray[np.float32], rows: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Score images that are judged together.

        Args:
            tokens: (images, D) of `encode`.
            rows: their rows of a manifest.

        Returns:
            (images, T) float64, those of 0/1 targets in [0, 1]; of each image its breast's.

        Raises:
            InputError: a score is no number.
        """
        views = self.objective.views(rows)
        assert views is not None, "of images that are judged by themselves there is nothing to fuse"
        module: Any = self._module
        scores = np.empty((len(rows), len(self.objective.score_columns)))
        for chosen in batches_of_units(views[:, 0], _FUSED_AT_ONCE):
            own = (
                torch.from_numpy(part[chosen]).to(self.fabric.device) for part in (tokens, views)
            )
            outputs = module.fuse(*own).double()
            scores[chosen] = self.objective.scores(outputs).cpu().numpy()
        return _checked(scores)

    def draw_saliency(self, pixels: npt.NDArray[np.uint16], *, mirror: bool) -> bytes:
        """Draw attention roll-out over an image.

        Args:
            pixels: (h, w), at the pyramid level that the model reads.
            mirror: turn left and right round, once all is drawn.

        Returns:
            A PNG file with a long side of at most 1024 pixels.
        """
        shape = (pixels.shape[0], pixels.shape[1])
        size = shape if max(shape) <= _PICTURE_LONG_SIDE else fitted_size(shape, _PICTURE_LONG_SIDE)
        heat = attention_heat(self.backbone, self.sampler, ImageBatch.from_images([pixels]), size)
        return draw_pictures(area_average(pixels, size), heat, None, mirror=mirror)[1]


def _checked(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Refuse scores that are no numbers: no table, threshold or record can hold them."""
    wrong = ~np.isfinite(scores).all(axis=1)
    if wrong.any():
        raise InputError(
            f"the model gives {wrong.sum()} of {counted(len(scores), 'image')} a score that is no "
            "number: its weights are damaged, or overflow in half precision; give another "
            "checkpoint, or score on the CPU (with CUDA_VISIBLE_DEVICES set to nothing)."
        )
    return scores
