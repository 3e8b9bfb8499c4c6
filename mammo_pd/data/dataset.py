"""Images of a store as batches for training: memory-mapped levels, end to end in one buffer."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mammo_pd.data.store import StorePaths, choose_level, read_level


class Sample(NamedTuple):
    """One image of the dataset.

    Attributes:
        pixels: (h, w) uint16, memory-mapped: nothing is read until it is batched.
        label: 0 or 1; NaN where there is none.
        row: of the image in the dataset.
    """

    pixels: npt.NDArray[np.uint16]
    label: float
    row: int


class Batch(NamedTuple):
    """Images of different sizes, end to end in one buffer.

    Attributes:
        pixels: (sum of height x width,) int16, a view of uint16.
        offsets: (B,) int64, where each image starts in ``pixels``.
        heights: (B,) int64, pixels.
        widths: (B,) int64, pixels.
        labels: (B,) float32.
        rows: (B,) int64, of the images in the dataset.
    """

    pixels: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor
    labels: Tensor
    rows: Tensor


class MammogramDataset(Dataset[Sample]):
    """The images of some rows of a manifest, at the smallest level that serves the canvas.

    Args:
        paths: the store.
        rows: manifest rows with ``image_id``, ``label``, ``crop_height`` and ``crop_width``.
        canvas: (height, width) in pixels that the model sees.
    """

    def __init__(self, paths: StorePaths, rows: pd.DataFrame, canvas: tuple[int, int]) -> None:
        self._paths = paths
        self.image_ids: list[str] = rows["image_id"].tolist()
        self.labels: npt.NDArray[np.float32] = rows["label"].to_numpy(np.float32, na_value=np.nan)
        heights, widths = rows["crop_height"].tolist(), rows["crop_width"].tolist()
        self._levels = [
            choose_level(height, width, canvas)
            for height, width in zip(heights, widths, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, row: int) -> Sample:
        pixels = read_level(self._paths, self.image_ids[row], self._levels[row])
        return Sample(pixels, float(self.labels[row]), row)


def collate(samples: Sequence[Sample]) -> Batch:
    """Copy the images into one buffer."""
    sizes = [sample.pixels.size for sample in samples]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    # torch has few operations on uint16, and CUDA cannot index it.
    buffer = torch.empty(int(offsets[-1]), dtype=torch.int16)
    flat = buffer.numpy().view(np.uint16)
    for sample, start in zip(samples, offsets, strict=False):
        flat[start : start + sample.pixels.size] = sample.pixels.reshape(-1)
    return Batch(
        pixels=buffer,
        offsets=torch.from_numpy(offsets[:-1]),
        heights=torch.tensor([sample.pixels.shape[0] for sample in samples]),
        widths=torch.tensor([sample.pixels.shape[1] for sample in samples]),
        labels=torch.tensor([sample.label for sample in samples], dtype=torch.float32),
        rows=torch.tensor([sample.row for sample in samples]),
    )


class EpochBatches(Sampler[list[int]]):
    """The batches of one epoch for one process: shuffled by (seed, epoch) alone.

    A global batch is cut into equal shares, so that two processes see together what one would see.
    The last, incomplete global batch is left out, unless it is the only one.

    Args:
        count: images in the dataset.
        batch_size: images in a global batch, a multiple of ``world_size``.
        seed: of the shuffle.
        rank: this process.
        world_size: processes.
    """

    def __init__(
        self, count: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._count = count
        self._batch_size = min(batch_size, count - count % world_size)
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self.epoch = 0

    def __len__(self) -> int:
        return self._count // self._batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self._seed, self.epoch)).permutation(self._count)
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            yield order[start : start + self._batch_size][self._rank :: self._world_size].tolist()
