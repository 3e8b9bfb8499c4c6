"""The pyramid: one mammogram at native size and at a few smaller ones, by exact area averages.

Sizes are (height, width) in pixels.
"""

import numpy as np
from scipy import sparse

from mammo_pd.terms import PYRAMID_LONG_SIDES

# Output columns averaged by one dense product.
_COLUMNS_AT_ONCE = 64


def fitted_size(shape: tuple[int, int], long_side: int) -> tuple[int, int]:
    """The (height, width) of an image scaled to a long side, each at least 1."""
    scale = long_side / max(shape)
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def area_average(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reduce an image; each output pixel is the exact mean over its area.

    Input pixels that are covered in part are weighted by the covered fraction, so nothing aliases
    and nothing shifts.

    Args:
        pixels: (H, W) uint8, uint16 or float32.
        size: of the output, not larger than (H, W).

    Returns:
        (height, width), of the dtype of ``pixels``; integers are rounded.

    Raises:
        ValueError: ``size`` is larger than the image, or empty.
    """
    if size[0] > pixels.shape[0] or size[1] > pixels.shape[1] or min(size) < 1:
        raise ValueError(f"{pixels.shape} can be reduced, but not to {size}.")
    averaged = _average_rows(pixels, size[0])
    averaged = _average_columns(averaged, size[1])
    if pixels.dtype.kind == "u":
        averaged += 0.5
    return averaged.astype(pixels.dtype)


def block_mean(pixels: np.ndarray, block: int) -> np.ndarray:
    """Reduce an image by the mean over whole blocks: faster, for thumbnails and for searching.

    Args:
        pixels: (H, W) unsigned integers of up to 16 bits.
        block: rows and columns of one block, at most 256.

    Returns:
        (H // block, W // block) float32; remaining rows and columns are dropped.
    """
    height, width = pixels.shape[0] // block, pixels.shape[1] // block
    # Rows first, while memory is contiguous; 256 rows of 16-bit values fit 32 bits.
    blocks = pixels[: height * block, : width * block].reshape(height, block, -1)
    by_rows = blocks.sum(axis=1, dtype=np.uint32)
    sums = by_rows.reshape(height, width, block).sum(axis=2)
    return np.asarray((sums / float(block * block)).astype(np.float32))


def build_pyramid(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Build the pyramid levels that training reads: native, then `PYRAMID_LONG_SIDES`.

    Args:
        pixels: (H, W) uint16.

    Returns:
        uint16 by name: ``native`` and, largest first, ``4096``, ``2048``, ... as far as they are
        smaller than native.
    """
    height, width = pixels.shape
    return {"native": pixels, **smaller_levels(pixels, (height, width))}


def smaller_levels(pixels: np.ndarray, native: tuple[int, int]) -> dict[str, np.ndarray]:
    """Build the pyramid levels below one of them.

    Args:
        pixels: (h, w) uint16, the native image or a level of it.
        native: (height, width) of the native image.

    Returns:
        uint16 by name, largest first: those of `PYRAMID_LONG_SIDES` that are smaller than
        ``pixels``.
    """
    levels: dict[str, np.ndarray] = {}
    larger = pixels
    for long_side in PYRAMID_LONG_SIDES:
        if long_side < max(pixels.shape):
            # Each from the next larger level: cheaper than from native, and as exact.
            larger = area_average(larger, fitted_size(native, long_side))
            levels[str(long_side)] = larger
    return levels


def _area_weights(length: int, wanted: int) -> sparse.csr_array:
    """(wanted, length) matrix; row i holds the weight of each input pixel in output pixel i."""
    # Output pixel i covers the input from edges[i] to edges[i + 1].
    edges = np.arange(wanted + 1) * (length / wanted)
    first = np.floor(edges[:-1]).astype(int)
    taps = int(np.ceil(length / wanted)) + 1
    columns = first[:, None] + np.arange(taps)
    covered = np.minimum(columns + 1, edges[1:, None]) - np.maximum(columns, edges[:-1, None])
    # Rounding leaves slivers of 1e-13 where edges coincide.
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
    """(H, W) float32 to (H, wanted) float32.

    A sparse product along rows would stride through memory, so blocks of the weights are dense.
    """
    length = pixels.shape[1]
    if length == wanted:
        return pixels
    weights = _area_weights(length, wanted)
    averaged = np.empty((pixels.shape[0], wanted), np.float32)
    for start in range(0, wanted, _COLUMNS_AT_ONCE):
        band = weights[start : start + _COLUMNS_AT_ONCE]
        low, high = int(band.indices.min()), int(band.indices.max()) + 1
        # Only the input columns that this block of output columns covers.
        dense = band[:, low:high].toarray().T.astype(np.float32)
        averaged[:, start : start + _COLUMNS_AT_ONCE] = pixels[:, low:high] @ dense
    return averaged
