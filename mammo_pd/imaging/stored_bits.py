"""What in a decoded array is the pixel's: Bits Stored, High Bit, Pixel Representation, layout.

pydicom masks whatever lies above Bits Stored. That is right for overlay bits, and turns the pixels
of a wrong header into garbage that looks like an image; so what lies there is looked at first.
"""

from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset

from mammo_pd.errors import ImageError
from mammo_pd.imaging.header import integer
from mammo_pd.terms import Reason

# Lossy codecs overshoot white slightly.
_OVERSHOOT = 1.25
# The sign is judged on one row in so many, the layout on so many rows and the next to each.
_ROW_STEP = 32
_PAIRS = 64
# Jumps of more than half the range that a wrong sign makes: per row of a signed image, where a
# breast crosses the middle of the range; as a share of the pixels of an unsigned one, where noise
# around zero jumps. Labels and film edges on a rightly signed image make a few for each row.
_JUMPS_PER_ROW = 1.0
_JUMPS_PER_PIXEL = 0.02
# And the other sign, or layout, must make the image at least this much smoother. Of 2,533 real
# images the other layout makes none smoother: rows and columns exchanged, 2.7 times as rough.
_SMOOTHER = 0.5
# Share of the pixels that differ from the one below, at least, if layout is to be judged by them:
# on plain black a marker alone looks like anything.
_LEAST_CHANGING = 0.02


def keep_stored_bits(values: np.ndarray, header: Dataset, *, lossy: bool) -> np.ndarray:
    """Reduce decoded values to Bits Stored, or refuse what that would turn into other pixels.

    Args:
        values: (H, W) integers as decoded, signed where Pixel Representation says so.
        header: the image's dataset.
        lossy: whether a codec that can overshoot wrote them.

    Returns:
        (H, W) of the same dtype. Values that fit are returned as they are; a sign that was not
        extended into the unused bits is; overlay bits that the header declares are dropped.

    Raises:
        ImageError: bits are set above Bits Stored and nothing says why
            (``header_contradicts_pixels``).

    Source: DICOM PS3.5 8.1.1 (Bits Allocated, Bits Stored, High Bit), PS3.3 C.9.2 (overlays in
        unused bits, retired in 2004).
    """
    stored, allocated = integer(header, "BitsStored") or 16, 8 * values.dtype.itemsize
    if stored >= allocated:
        return values
    signed = values.dtype.kind == "i"
    highest = 2 ** (stored - 1 if signed else stored) - 1
    lowest = -highest - 1 if signed else 0
    low, high = int(values.min()), int(values.max())
    if lowest <= low and high <= highest:
        return values
    if lossy and lowest * _OVERSHOOT <= low and high <= highest * _OVERSHOOT:
        return np.asarray(np.clip(values, lowest, highest))
    sign_not_extended = signed and low >= 0 and high < 2**stored
    if sign_not_extended or any(stored <= bit < allocated for bit in _overlay_bits(header)):
        shift = allocated - stored
        return np.asarray(np.right_shift(np.left_shift(values, shift), shift))
    raise ImageError(
        Reason.HEADER_CONTRADICTS,
        f"The header says {stored} bits (High Bit {integer(header, 'HighBit')}), the pixel data "
        f"run from {low} to {high}.",
    )


def check_sign(values: np.ndarray, header: Dataset) -> None:
    """Refuse an image that Pixel Representation tears apart in the middle of its range.

    Unsigned values read as signed wrap from the brightest to the darkest where the breast crosses
    half the range; signed ones read as unsigned wrap at zero.

    Args:
        values: (H, W) as ``keep_stored_bits`` returns them.
        header: the image's dataset.

    Raises:
        ImageError: ``header_contradicts_pixels``.
    """
    signed = values.dtype.kind == "i"
    bits = min(integer(header, "BitsStored") or 16, 8 * values.dtype.itemsize)
    rows = values[::_ROW_STEP].astype(np.int32)
    if not signed and rows.max() < 2 ** (bits - 1):
        return
    steps = np.abs(np.diff(rows, axis=1))
    # From end to end of the range jumps what is written or cut out in black and white.
    jumps = np.count_nonzero((steps > 2 ** (bits - 1)) & (steps < 2**bits - 1))
    if jumps < (_JUMPS_PER_ROW * len(rows) if signed else _JUMPS_PER_PIXEL * steps.size):
        return
    top = rows >= 2 ** (bits - 1)
    other = np.where(rows < 0, rows + 2**bits, rows) if signed else rows - 2**bits * top
    if np.abs(np.diff(other, axis=1)).sum() < _SMOOTHER * steps.sum():
        given = "signed" if signed else "unsigned"
        raise ImageError(
            Reason.HEADER_CONTRADICTS,
            f"The header's Pixel Representation says that the values are {given}; they make an "
            "image only if they are not.",
        )


def check_layout(values: np.ndarray, header: Dataset) -> None:
    """Refuse pixels that make an image only with Rows and Columns exchanged, or their bytes.

    Codestreams know their own size, and bytes that change places do not fit fewer than 16 bits.

    Args:
        values: (H, W) integers as decoded.
        header: the image's dataset.

    Raises:
        ImageError: ``header_contradicts_pixels``.
    """
    height, width = values.shape
    rows, below = _pairs_of_rows(values)
    if np.count_nonzero(rows != below) < _LEAST_CHANGING * rows.size:
        return  # a marker on plain black, say
    given = _roughness(rows, below)
    if height != width and _roughness(*_pairs_of_rows(values.reshape(width, height))) < (
        _SMOOTHER * given
    ):
        raise ImageError(
            Reason.HEADER_CONTRADICTS,
            f"The header says {height} x {width} pixels; they make an image only as "
            f"{width} x {height}.",
        )
    if values.dtype.itemsize != 2 or (integer(header, "BitsStored") or 16) < 16:
        return
    if _roughness(rows.byteswap(), below.byteswap()) < _SMOOTHER * given:
        raise ImageError(
            Reason.HEADER_CONTRADICTS,
            "The pixels make an image only with their bytes in the other order than the transfer "
            "syntax says.",
        )


def _pairs_of_rows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, W) rows of an image, and those below them: evenly spread, or all of a small one."""
    step = max(1, len(values) // _PAIRS)
    below = values[1::step]
    return values[::step][: len(below)], below


def _roughness(rows: np.ndarray, below: np.ndarray) -> float:
    """The mean step from a row to the next, as a share of the values' range; 0 without one."""
    if not rows.size:
        return 0.0
    wide, next_to_it = rows.astype(np.int32), below.astype(np.int32)
    return float(np.abs(next_to_it - wide).mean() / max(int(np.ptp(wide)), 1))


def _overlay_bits(header: Dataset) -> Iterator[int]:
    """The bits in which the header says that overlays lie."""
    for group in range(0x6000, 0x6020, 2):
        # An overlay with Overlay Data of its own lies there, whatever its bit position says.
        if (group, 0x0102) in header and (group, 0x3000) not in header:
            try:
                yield int(header[group, 0x0102].value)
            except (TypeError, ValueError):
                continue
