"""A batch of stored images of different sizes: the one type from the loader to the sampler."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageBatch:
    """Images end to end in one buffer, so that a batch holds no padding.

    Attributes:
        pixels: (sum of height x width,) int16, a view of uint16: torch has few operations on
            uint16, and CUDA cannot index it.
        offsets: (B,) int64, where each image starts in ``pixels``.
        heights: (B,) int64, pixels.
        widths: (B,) int64, pixels.
        targets: (B, T) float32, what the objective learns; NaN where it is missing.
        rows: (B,) int64, of the images in the data set; always on the CPU.
    """

    pixels: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor
    targets: Tensor
    rows: Tensor

    @classmethod
    def from_images(cls, images: Sequence[npt.NDArray[np.uint16]]) -> "ImageBatch":
        """Put (h, w) uint16 images of any sizes into one batch without targets."""
        sizes = [image.size for image in images]
        flat = np.concatenate([image.ravel() for image in images])
        return cls(
            pixels=torch.from_numpy(flat.view(np.int16)),
            offsets=torch.tensor([0, *sizes[:-1]]).cumsum(0),
            heights=torch.tensor([image.shape[0] for image in images]),
            widths=torch.tensor([image.shape[1] for image in images]),
            targets=torch.full((len(images), 1), torch.nan),
            rows=torch.arange(len(images)),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> "ImageBatch":
        """Copy to a device, without waiting; what is there already stays."""
        on_device = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("pixels", "offsets", "heights", "widths", "targets")
        }
        return replace(self, **on_device)

    def slice(self, start: int, end: int) -> "ImageBatch":
        """Images ``start`` to ``end``; the pixels are shared, not copied."""
        return ImageBatch(
            self.pixels,
            self.offsets[start:end],
            self.heights[start:end],
            self.widths[start:end],
            self.targets[start:end],
            self.rows[start:end],
        )
