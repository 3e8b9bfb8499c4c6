"""The pyramid: one mammogram at native size and at a few smaller ones, by exact area averages.

Sizes are (height, width) in pixels.
"""

import numpy as np
from scipy import sparse

from mammo_pd.terms import PYRAMID_LONG_SIDES

# Columns whose rows are averaged by one sparse product, and columns averaged by one dense product.
_BAND = 128
_COLUMNS_AT_ONCE = 32


def fitted_size(shape: tuple[int, int], long_side: int) -> tuple[int, int]:
    """The (height, width) of an image scaled to a long side, each at least 1."""
    scale = long_side / max(shape)
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def area_average(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reduce an image; each output pixel is the exact mean over its area.

    Input pixels that are covered in part are weighted by the covered fraction, so nothing aliases
    and nothing shifts. Of integers the sums are whole numbers and exact, so that the result does
    not depend on the processor.

    Args:
        pixels: (H, W) uint8, uint16 or float32; sides of at most 65,535, as DICOM has them.
        size: of the output, not larger than (H, W).

    Returns:
        (height, width), of the dtype of ``pixels``; integers are rounded.

    Raises:
        ValueError: ``size`` is larger than the image, or empty.
    """
    if size[0] > pixels.shape[0] or size[1] > pixels.shape[1] or min(size) < 1:
        raise ValueError(f"{pixels.shape} can be reduced, but not to {size}.")
    return _average_columns(_sum_rows(pixels, size[0]), size[1], pixels)


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


def _overlaps(length: int, wanted: int) -> sparse.csr_array:
    """(wanted, length) int64; row i holds how much of each input pixel lies in output pixel i.

    In units of which an input pixel has ``wanted`` and an output pixel ``length``.
    """
    start = np.arange(wanted)[:, None] * length
    columns = start // wanted + np.arange(-(-length // wanted) + 1)
    end = np.minimum((columns + 1) * wanted, start + length)
    covered = end - np.maximum(columns * wanted, start)
    kept = covered > 0
    rows = np.broadcast_to(np.arange(wanted)[:, None], columns.shape)
    return sparse.csr_array((covered[kept], (rows[kept], columns[kept])), shape=(wanted, length))


def _sum_rows(pixels: np.ndarray, wanted: int) -> np.ndarray:
    """(H, W) to (wanted, W): H times the mean over each area, or the pixels where H is wanted."""
    length = pixels.shape[0]
    if length == wanted:
        return pixels
    # 65,535 rows of 16-bit values fit 32 bits.
    dtype = np.dtype(np.uint32 if pixels.dtype.kind == "u" else np.float64)
    weights = _overlaps(length, wanted).astype(dtype)
    sums = np.empty((wanted, pixels.shape[1]), dtype)
    for start in range(0, pixels.shape[1], _BAND):
        band = slice(start, start + _BAND)
        sums[:, band] = weights @ pixels[:, band].astype(dtype)
    return sums


def _average_columns(sums: np.ndarray, wanted: int, pixels: np.ndarray) -> np.ndarray:
    """(height, W), summed over rows of ``pixels``, to (height, wanted) of their dtype.

    A sparse product along rows would stride through memory, so blocks of the weights are dense.
    """
    length = sums.shape[1]
    weights = _overlaps(length, wanted).astype(np.float64)
    area = length * (pixels.shape[0] if sums.shape[0] != pixels.shape[0] else 1)
    half = 0.5 if pixels.dtype.kind == "u" else 0.0
    averaged = np.empty((sums.shape[0], wanted), pixels.dtype)
    for start in range(0, wanted, _COLUMNS_AT_ONCE):
        band = weights[start : start + _COLUMNS_AT_ONCE]
        low, high = int(band.indices.min()), int(band.indices.max()) + 1
        # Only the input columns that this block of output columns covers. Below 2**53, so exact
        # in whatever order a processor's kernel sums.
        dense = band[:, low:high].toarray().T
        mean = sums[:, low:high].astype(np.float64) @ dense / area
        averaged[:, start : start + _COLUMNS_AT_ONCE] = mean + half
    return averaged
