"""What a masked autoencoder makes of dropped patches: pictures of some validation images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from mammo_pd.batch import ImageBatch
from mammo_pd.data.cohort import Cohort
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.store import open_store
from mammo_pd.imaging.pyramid import area_average, fitted_size
from mammo_pd.inference.predict import load_model
from mammo_pd.patches.sampler import PatchSampler, sampler_class
from mammo_pd.terms import Split
from mammo_pd.training.devices import make_fabric
from mammo_pd.training.objectives.masked_autoencoder import (
    MaskedAutoencoder,
    mean_and_deviation,
)
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.step import image_keys

_LONG_SIDE = 448
# Of a dropped patch where nothing is to be shown: a grey that is neither air nor most breast.
_BLANK = 70
# Patches that are predicted at a time.
_AT_ONCE = 4096


@dataclass(frozen=True)
class Reconstruction:
    """One image, what was kept of it, and what the rest was predicted to be.

    Attributes:
        original: (h, w) uint8, as the model's input frame has it.
        kept: the same, dropped patches that hold breast blank.
        predicted: the same, dropped patches that hold breast as they were predicted, with their own
            mean and deviation, which the model is not asked for.
        means: the same, those patches as their own mean alone: a prediction of nothing.
        error: over those patches, as validation has it; 1 for a prediction of nothing.
        share: of the patches that hold breast, how many were kept.
    """

    original: npt.NDArray[np.uint8]
    kept: npt.NDArray[np.uint8]
    predicted: npt.NDArray[np.uint8]
    means: npt.NDArray[np.uint8]
    error: float
    share: float


@torch.no_grad()
def reconstruct(
    run: RunFolder, *, store: Path | None = None, count: int = 8
) -> list[Reconstruction]:
    """Reconstruct some validation images with a run's weights.

    Every dropped patch that holds breast is predicted, where training predicts some of them.

    Args:
        run: of a masked autoencoder, trained.
        store: where the store lies now; None for where the run was trained from.
        count: of the images.

    Raises:
        InputError: no checkpoint, or no such store.
    """
    cohort = Cohort.read(
        open_store(store or Path(run.info.store)), run.config.data.split, run.config.data.fold
    )
    rows = cohort.part(Split.VAL)
    # In the order of their IDs, which say nothing: any of them.
    dataset = MammogramDataset(cohort.paths, rows.head(count), run.info.img_size)
    objective = MaskedAutoencoder(run.config.training)
    loaded = load_model(run, objective)
    config = run.config.replace(device=run.config.device.replace(devices=1, accelerator="auto"))
    fabric = make_fabric(config)
    module = fabric.setup_module(loaded.model).eval()
    draw = run.config.patch_dropout.draw
    sampler = sampler_class(draw)(
        run.info.img_size,
        loaded.backbone.patch_size,
        normalization=run.info.normalization,
        draw=draw,
    )
    found = []
    for row in range(len(dataset)):
        batch = dataset.read([row]).to(fabric.device)
        keys = image_keys(dataset, batch.rows, run.config.training.seed, -1, fabric.device)
        found.append(_reconstruct(module, sampler, batch, keys, run.info.num_keep, run))
    return found


def _reconstruct(
    module: torch.nn.Module,
    sampler: PatchSampler,
    batch: ImageBatch,
    keys: Tensor,
    num_keep: int,
    run: RunFolder,
) -> Reconstruction:
    placement = sampler.place(batch, None)
    kept = sampler.draw(batch, keys, placement, num_keep)
    tissue = sampler.tissue(batch, placement)[0]
    is_kept = torch.zeros_like(tissue).scatter(0, kept[0], True)
    everywhere = torch.arange(len(tissue), device=keys.device)[None]
    pixels = sampler.read(batch, placement, everywhere)
    asked = everywhere[:, tissue & ~is_kept]
    patches = sampler.read(batch, placement, kept)
    predicted = [
        module(patches, kept, keys, some).float() for some in torch.split(asked, _AT_ONCE, dim=1)
    ]
    mean, deviation = mean_and_deviation(pixels[:, asked[0]])
    outputs = torch.cat(predicted, dim=1) if predicted else pixels[:, asked[0]]
    truth = (pixels[:, asked[0]] - mean) / deviation
    blank = ~is_kept & tissue

    def picture(of_asked: Tensor | None) -> npt.NDArray[np.uint8]:
        shown = pixels.clone()
        if of_asked is not None:
            shown[:, asked[0]] = of_asked
        normalization = run.info.normalization
        grey = ((shown * normalization.std + normalization.mean) * 255).clamp(0, 255)
        if of_asked is None:
            grey[:, blank] = _BLANK
        whole = F.fold(grey.mT, sampler.img_size, sampler.patch_size, stride=sampler.patch_size)
        image: npt.NDArray[np.uint8] = whole[0, 0].round().to(torch.uint8).cpu().numpy()
        if max(image.shape) <= _LONG_SIDE:
            return image
        return area_average(image, fitted_size(image.shape, _LONG_SIDE))

    return Reconstruction(
        original=picture(pixels[:, asked[0]]),
        kept=picture(None),
        predicted=picture(outputs * deviation + mean),
        means=picture(mean.expand_as(truth)),
        error=float((outputs - truth).square().mean()) if asked.numel() else float("nan"),
        share=float((is_kept & tissue).sum() / tissue.sum().clamp(min=1)),
    )
