"""From the images of a store to the parts of a training step: read, key, draw and sample."""

import math
import os
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mammo_pd.backbones.base import Backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import RunConfig
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.loader import BatchLoader
from mammo_pd.keyed_random import image_key
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.terms import Draw
from mammo_pd.training.loop import Part

_MAX_THREADS = 8


def make_loader(
    dataset: MammogramDataset, batches: Any, workers: int | None, device: torch.device
) -> BatchLoader:
    """Read batches ahead in threads, into pinned memory where there is a GPU."""
    if workers is None:
        # On a CPU the model needs every core, and reading is the smaller part.
        cores = len(os.sched_getaffinity(0)) if device.type == "cuda" else 1
        workers = max(1, min(_MAX_THREADS, cores - 1))
    return BatchLoader(dataset, batches, device, workers)


def keys_of(
    dataset: MammogramDataset, rows: Tensor, seed: int, epoch: int, device: torch.device
) -> Tensor:
    """The keys (B,) int64 of some images in one epoch, on the device."""
    keys = torch.tensor([image_key(seed, epoch, dataset.image_ids[row]) for row in rows.tolist()])
    if device.type == "cuda":
        keys = keys.pin_memory()
    return keys.to(device, non_blocking=True)


def sampler_of(
    img_size: tuple[int, int], model: Backbone, config: RunConfig, compiled: bool
) -> PatchSampler:
    """What draws and reads the patches of a configuration's run."""
    return PatchSampler(
        img_size,
        model.patch_size,
        draw=Draw(config.patch_dropout.draw),
        augment=config.augment,
        compiled=compiled,
    )


def parts_of(
    batch: ImageBatch,
    keys: Tensor,
    num_keep: int,
    sampler: PatchSampler,
    count: int,
    device: torch.device,
) -> list[Part]:
    """Cut a batch into ``count`` parts of nearly equal size, each drawn and read when it is due."""
    images = batch.to(device)
    edges = [len(keys) * number // count for number in range(count + 1)]

    def part(start: int, end: int) -> Part:
        def inputs() -> tuple[tuple[Tensor, ...], Tensor]:
            some, own = images.slice(start, end), keys[start:end]
            return (*sampler.for_training(some, own, num_keep), own), some.targets[:, 0]

        return Part(end - start, inputs)

    return [part(start, end) for start, end in pairwise(edges)]


def count_step_parts(config: RunConfig, rate: float) -> int:
    """In how many parts a step runs: more patches than the batch was chosen for take more."""
    return config.training.grad_accum_steps * math.ceil(rate / config.patch_dropout.schedule.base)
