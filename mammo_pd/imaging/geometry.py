"""Where pixels lie: boxes, the turn that puts the chest wall on the left, and the pyramid.

Boxes and sizes are (rows, columns). The *native frame* is the image as stored in the file; the
*stored frame* is the crop, turned so that the chest wall is on the left.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy import sparse

from mammo_pd.terms import PYRAMID_LONG_SIDES

_BLOCK = 64


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels.

    Attributes:
        top: first row.
        left: first column.
        height: number of rows, at least 1.
        width: number of columns, at least 1.
    """

    top: int
    left: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"A box needs at least one pixel, not {self.height} x {self.width}.")

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Self:
        """The box of a whole (H, W) image."""
        return cls(0, 0, shape[0], shape[1])

    @property
    def bottom(self) -> int:
        """The row after the last."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The column after the last."""
        return self.left + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """For indexing an (H, W) array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def scaled(self, factor: float, shape: tuple[int, int]) -> "Box":
        """The smallest box around this one after scaling, within an (H, W) frame."""
        top, left = int(self.top * factor), int(self.left * factor)
        bottom = min(int(np.ceil(self.bottom * factor)), shape[0])
        right = min(int(np.ceil(self.right * factor)), shape[1])
        top, left = min(top, shape[0] - 1), min(left, shape[1] - 1)
        return Box(top, left, max(bottom - top, 1), max(right - left, 1))

    def overlap(self, other: "Box") -> float:
        """Intersection over union with another box."""
        rows = min(self.bottom, other.bottom) - max(self.top, other.top)
        columns = min(self.right, other.right) - max(self.left, other.left)
        both = max(rows, 0) * max(columns, 0)
        return both / (self.height * self.width + other.height * other.width - both)


def to_stored_frame(box: Box, crop: Box, *, flipped: bool) -> Box:
    """Map a box of the native frame into the stored frame.

    Args:
        box: in the native frame; may reach beyond the crop.
        crop: the crop in the native frame.
        flipped: whether the crop was mirrored.
    """
    left = box.left - crop.left
    if flipped:
        left = crop.width - left - box.width
    return Box(box.top - crop.top, left, box.height, box.width)


def to_native_frame(box: Box, crop: Box, *, flipped: bool) -> Box:
    """Map a box of the stored frame back into the native frame; undoes ``to_stored_frame``."""
    left = crop.width - box.left - box.width if flipped else box.left
    return Box(box.top + crop.top, left + crop.left, box.height, box.width)


def turn_chest_wall_left(pixels: np.ndarray, side: str) -> np.ndarray:
    """Mirror an (H, W) image left to right where the chest wall lies on the right.

    Args:
        pixels: (H, W).
        side: ``left`` or ``right``, where the chest wall lies.

    Returns:
        (H, W), contiguous.
    """
    return np.ascontiguousarray(pixels[:, ::-1] if side == "right" else pixels)


def fitted_size(shape: tuple[int, int], long_side: int) -> tuple[int, int]:
    """The (height, width) of an image scaled to a long side, each at least 1."""
    scale = long_side / max(shape)
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def area_average(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reduce an image by the exact mean over each output pixel's area.

    Runs after cropping; an output pixel that covers parts of input pixels weighs them by the
    part covered, so nothing aliases and nothing shifts.

    Args:
        pixels: (H, W) uint8, uint16 or float32.
        size: (height, width) wanted, not larger than (H, W).

    Returns:
        (height, width), of the type of ``pixels``, rounded for integers.

    Raises:
        ValueError: the size is larger than the image.
    """
    if size[0] > pixels.shape[0] or size[1] > pixels.shape[1] or min(size) < 1:
        raise ValueError(f"{pixels.shape} can be reduced, but not to {size}.")
    averaged = _average_rows(pixels, size[0])
    averaged = _average_columns(averaged, size[1])
    if pixels.dtype.kind == "u":
        averaged += 0.5
    return averaged.astype(pixels.dtype)


def block_mean(pixels: np.ndarray, block: int) -> np.ndarray:
    """Reduce an image by the mean over whole blocks: the fast way, for looking and searching.

    Args:
        pixels: (H, W) unsigned integers of up to 16 bits.
        block: rows and columns of one block, at most 256.

    Returns:
        (H // block, W // block) float32; the rows and columns left over are dropped.
    """
    height, width = pixels.shape[0] // block, pixels.shape[1] // block
    blocks = pixels[: height * block, : width * block].reshape(height, block, -1)
    by_rows = blocks.sum(axis=1, dtype=np.uint32)
    sums = by_rows.reshape(height, width, block).sum(axis=2)
    return np.asarray((sums / float(block * block)).astype(np.float32))


def build_pyramid(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Build the levels that training reads: native, and long sides of 2048, 1024 and 512 pixels.

    Each level is averaged from the next larger one, and only made where it is smaller.

    Args:
        pixels: (H, W) uint16.

    Returns:
        ``native`` and, largest first, ``2048``, ``1024``, ``512``, as far as smaller than native;
        uint16.
    """
    levels = {"native": pixels}
    larger = pixels
    for long_side in PYRAMID_LONG_SIDES:
        if long_side < max(pixels.shape):
            height, width = pixels.shape
            larger = area_average(larger, fitted_size((height, width), long_side))
            levels[str(long_side)] = larger
    return levels


def _area_weights(length: int, wanted: int) -> sparse.csr_array:
    """(wanted, length) matrix whose row i holds the share of each input pixel in output pixel i."""
    edges = np.arange(wanted + 1) * (length / wanted)
    first = np.floor(edges[:-1]).astype(int)
    taps = int(np.ceil(length / wanted)) + 1
    columns = first[:, None] + np.arange(taps)
    covered = np.minimum(columns + 1, edges[1:, None]) - np.maximum(columns, edges[:-1, None])
    # Rounding leaves slivers of 1e-13 where edges meet.
    kept = (covered > 1e-6) & (columns < length)
    rows = np.broadcast_to(np.arange(wanted)[:, None], columns.shape)
    weights = (covered * (wanted / length))[kept]
    return sparse.csr_array((weights, (rows[kept], columns[kept])), shape=(wanted, length))


def _average_rows(pixels: np.ndarray, wanted: int) -> np.ndarray:
    """(H, W) to (wanted, W) float32."""
    wide = pixels.astype(np.float32)
    if pixels.shape[0] == wanted:
        return wide
    averaged: np.ndarray = _area_weights(pixels.shape[0], wanted).astype(np.float32) @ wide
    return averaged


def _average_columns(pixels: np.ndarray, wanted: int) -> np.ndarray:
    """(H, W) float32 to (H, wanted) float32, by products with dense blocks of the weights.

    Along the rows a sparse product would stride through memory.
    """
    length = pixels.shape[1]
    if length == wanted:
        return pixels
    weights = _area_weights(length, wanted)
    averaged = np.empty((pixels.shape[0], wanted), np.float32)
    for start in range(0, wanted, _BLOCK):
        band = weights[start : start + _BLOCK]
        low, high = int(band.indices.min()), int(band.indices.max()) + 1
        dense = band[:, low:high].toarray().T.astype(np.float32)
        averaged[:, start : start + _BLOCK] = pixels[:, low:high] @ dense
    return averaged
