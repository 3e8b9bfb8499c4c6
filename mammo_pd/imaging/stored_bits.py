"""Which bits of a decoded value are the pixel's: Bits Stored, High Bit, Pixel Representation.

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
# The sign is judged on one row in so many.
_ROW_STEP = 32
# Jumps of more than half the range that a wrong sign makes: per row of a signed image, where a
# breast crosses the middle of the range; as a share of the pixels of an unsigned one, where noise
# around zero jumps. Labels and film edges on a rightly signed image make a few for each row.
_JUMPS_PER_ROW = 1.0
_JUMPS_PER_PIXEL = 0.02
# And the other sign must make the image at least this much smoother.
_SMOOTHER = 0.5


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


def _overlay_bits(header: Dataset) -> Iterator[int]:
    """The bits in which the header says that overlays lie."""
    for group in range(0x6000, 0x6020, 2):
        # An overlay with Overlay Data of its own lies there, whatever its bit position says.
        if (group, 0x0102) in header and (group, 0x3000) not in header:
            try:
                yield int(header[group, 0x0102].value)
            except (TypeError, ValueError):
                continue
