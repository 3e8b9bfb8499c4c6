"""A batch of stored images of different sizes: the only batch type between loader and sampler."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mammo_pd.errors import InputError


@dataclass(frozen=True)
class ImageBatch:
    """Images stored end to end in one buffer, without padding.

    Attributes:
        pixels: (sum of height x width,) int16, a view of uint16: torch has few operations on
            uint16, and CUDA cannot index it.
        offsets: (B,) int64, where each image starts in ``pixels``.
        heights: (B,) int64, pixels.
        widths: (B,) int64, pixels.
        targets: (B, T) float32, what the objective learns; NaN if missing.
        rows: (B,) int64, of the images in the data set; always on the CPU.
        views: (B, 3) int64 if images are judged together: the unit each image belongs to, numbered
            within the batch; its breast within the unit; and its kind of view, as numbered by the
            objective. None if each image is judged by itself.
        units: how many images each unit has, in order; None as above.
    """

    pixels: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor
    targets: Tensor
    rows: Tensor
    views: Tensor | None = None
    units: tuple[int, ...] | None = None

    @classmethod
    def from_images(cls, images: Sequence[npt.NDArray[np.uint16]]) -> "ImageBatch":
        """Put (h, w) uint16 images of any sizes into one batch without targets.

        Raises:
            InputError: none, or an image of another type, shape or dtype.
        """
        _check_images(images)
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
        """Copy to a device without waiting; tensors already there are not copied."""
        on_device = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("pixels", *self.numbers)
        }
        return replace(self, **on_device)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the small tensors on the device: a few numbers per image."""
        names = ("offsets", "heights", "widths", "targets")
        return names if self.views is None else (*names, "views")

    def edges(self, parts: int) -> tuple[int, ...]:
        """Where to cut the batch into parts of nearly equal size, from 0 to B.

        No unit is split, so there may be fewer parts than asked for.
        """
        wanted = [len(self) * number // parts for number in range(parts + 1)]
        if self.units is None:
            return tuple(wanted)
        starts = np.cumsum((0, *self.units))
        nearest = [int(starts[np.abs(starts - edge).argmin()]) for edge in wanted]
        return tuple(dict.fromkeys(nearest))

    def take(self, places: Sequence[int]) -> "ImageBatch":
        """Some images, in any order; pixels are not copied. Only of images judged by themselves."""
        assert self.units is None, "units must not be torn"
        chosen = torch.tensor(places)
        own = chosen.to(self.pixels.device, non_blocking=True)
        numbers = {name: getattr(self, name)[own] for name in self.numbers}
        return replace(self, rows=self.rows[chosen], **numbers)

    def slice(self, start: int, end: int) -> "ImageBatch":
        """Images ``start`` to ``end``, which must not split a unit; pixels are not copied."""
        views = units = None
        if self.views is not None and self.units is not None:
            views = self.views[start:end]
            starts = np.cumsum((0, *self.units[:-1]))
            units = tuple(
                size for first, size in zip(starts, self.units, strict=True) if start <= first < end
            )
        return ImageBatch(
            self.pixels,
            self.offsets[start:end],
            self.heights[start:end],
            self.widths[start:end],
            self.targets[start:end],
            self.rows[start:end],
            views,
            units,
        )


def _check_images(images: Sequence[npt.NDArray[np.uint16]]) -> None:
    """Refuse what is no stored image: its bytes or sides would be read as those of another one."""
    if not len(images):
        raise InputError("a batch needs images, and none was given; give at least one.")
    for number, image in enumerate(images):
        shape, dtype = tuple(getattr(image, "shape", ())), getattr(image, "dtype", "no dtype")
        # Of any byte order.
        is_uint16 = isinstance(dtype, np.dtype) and (dtype.kind, dtype.itemsize) == ("u", 2)
        if not (isinstance(image, np.ndarray) and len(shape) == 2 and is_uint16):
            raise InputError(
                f"image {number} is of type {type(image).__name__}, shape {shape} and {dtype}; a "
                "batch takes a list of NumPy arrays (h, w) of uint16 over 0 to 65535, as a store "
                "has them. Of the MetaTensor that mammogram_transforms gives that is "
                'image.numpy()[0].astype("uint16").'
            )
