"""From images to scores: no split and no labels are needed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from lightning.fabric import Fabric
from torch import nn

from mammo_pd.backbones.base import Backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.unit_batches import batches_of_units
from mammo_pd.normalization import Normalization
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.progress import Progress
from mammo_pd.terms import ScoredPatches
from mammo_pd.training.objectives import Objective
from mammo_pd.training.scoring import score_batches
from mammo_pd.training.setup import make_loader

IMAGES_AT_ONCE = 8
# Read together, of which those with as many patches are scored together, where these differ from
# image to image: so many, or as few of large ones as have so many pixels (512 MiB).
_READ_TOGETHER = 64
_PIXELS_TOGETHER = 2**28


def scoring_sampler(
    backbone: Backbone,
    img_size: tuple[int, int],
    normalization: Normalization,
    score_on: ScoredPatches,
) -> PatchSampler:
    """What reads the patches that a trained model scores.

    Args:
        backbone: of the model.
        img_size: (height, width) in pixels.
        normalization: of the input.
        score_on: which patches these are.
    """
    return PatchSampler(
        img_size,
        backbone.patch_size,
        normalization=normalization,
        score_on=score_on,
        num_prefix=backbone.num_prefix,
    )


def score_dataset(
    fabric: Fabric,
    model: nn.Module,
    sampler: PatchSampler,
    objective: Objective,
    dataset: MammogramDataset,
    *,
    workers: int | None = None,
    images_at_once: int = IMAGES_AT_ONCE,
    say: Callable[[str], None] | None = None,
) -> npt.NDArray[np.float64]:
    """Score every image of a data set.

    Args:
        fabric: device and precision.
        model: with trained weights; moved to the device and left there, in evaluation mode.
        sampler: of the model's input size; it says which patches are read.
        objective: that it was trained with.
        dataset: of stored images.
        workers: threads that read ahead; None to choose by the device.
        images_at_once: that the model takes, with all their patches.
        say: takes a line on how far it is, where there is no terminal; None to show nothing.

    Returns:
        (images, T) float64, in the data set's order; in [0, 1] of the targets that are labels.
    """
    module = fabric.setup_module(model)
    module.eval()
    # Where images are judged together, units are not torn.
    alone = np.arange(len(dataset))
    units = alone if dataset.views is None else dataset.views[:, 0]
    together = images_at_once
    if sampler.parts_differ:
        small_enough = min(_READ_TOGETHER, _PIXELS_TOGETHER // max(1, dataset.most_pixels))
        together = max(images_at_once, small_enough)
    batches = batches_of_units(units, together)
    loader = make_loader(dataset, batches, workers, fabric.device)
    scores = np.empty((len(dataset), len(objective.score_columns)))
    with Progress("score", len(dataset), say, leave=False) as progress:
        for rows, found in score_batches(
            module, sampler, objective, loader, fabric.device, images_at_once=images_at_once
        ):
            scores[rows.numpy()] = found.double().cpu().numpy()
            progress.update(len(rows))
    return scores


def batches_of(images: Sequence[npt.NDArray[np.uint16]]) -> Iterator[ImageBatch]:
    """Put (h, w) uint16 images into batches, a few at once; rows count through all of them."""
    for start in range(0, len(images), IMAGES_AT_ONCE):
        batch = ImageBatch.from_images(images[start : start + IMAGES_AT_ONCE])
        yield replace(batch, rows=batch.rows + start)
