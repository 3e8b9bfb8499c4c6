"""The grey scale of DICOM: stored values in, presentation values over the full uint16 range out.

Stored values → modality LUT or rescale → value of interest (VOI LUT, window, or the full stored
range) → inversion → uint16. Every step is a function of the stored value alone, so the chain is
computed once for each possible value, and the image is a single table look-up.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_windowing

from mammo_pd.errors import ImageError
from mammo_pd.imaging.header import functional_group, integer, items, readable_numbers, text
from mammo_pd.imaging.lut import LookUpTable, read_lut
from mammo_pd.imaging.raster import reached_depth
from mammo_pd.terms import Reason, VoiPolicy
from mammo_pd.wording import percent

WHITE = 65535
# What spans less of black to white was stored at another depth than the header says, or has the
# window of an image of another depth: 12 bits read as 14 span a quarter, read as 16 a sixteenth.
_LITTLE = 0.25
# Of the span of a modality LUT's outputs: less than a step of an 8-bit display, as measured or
# rounded curves turn back.
_ROUNDING = 1 / 256
_WINDOW_FUNCTIONS = frozenset({"LINEAR", "LINEAR_EXACT", "SIGMOID"})


@dataclass(frozen=True)
class GreyImage:
    """One image in its grey scale.

    Attributes:
        pixels: (H, W) uint16 over 0..65535, black to white; padding is 0.
        full_range: (H, W) uint16, the same without the value-of-interest step, so that nothing is
            clipped; the breast is searched in it. It is ``pixels`` itself where there was no such
            step.
        voi_applied: ``lut``, ``window:FUNCTION`` or ``full_range``, and behind a colon what was not
            as it should be: a table that departs from its own descriptor
            (``lut:holds_12_of_16_bits``), attributes that were mended or ignored
            (``window:LINEAR:no_number_in_WindowCenter``, ``full_range:unusable_WindowWidth``), or
            a grey scale that the image hardly fills (``window:LINEAR:spans_under_25_percent``).
    """

    pixels: np.ndarray
    full_range: np.ndarray
    voi_applied: str


def apply_grey_scale(
    stored: np.ndarray, header: Dataset, policy: VoiPolicy = VoiPolicy.AUTO
) -> GreyImage:
    """Apply the grey-scale transformations that the header asks for.

    Args:
        stored: (H, W) integers of up to 32 bits, as decoded.
        header: the image's dataset.
        policy: which value-of-interest transformation to use; ``auto`` takes the first VOI LUT,
            else the first window with its VOI LUT Function, else the full stored range.

    Returns:
        The image. Inversion, applied once for MONOCHROME1, Presentation LUT Shape INVERSE or both,
        is relative to the fixed range, so it does not depend on the image's own maximum.

    Raises:
        ImageError: the policy requires a LUT or window that the header lacks, a look-up table
            cannot be read, or the modality LUT both rises and falls over the values of the image.

    Source: DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI), C.7.6.3.1.2 (MONOCHROME1), C.11.6
        (Presentation LUT Shape), C.7.5.1.1.2 (pixel padding).
    """
    if stored.dtype.itemsize > 2:
        low, high = int(stored.min()), int(stored.max())
        narrower = np.int16 if stored.dtype.kind == "i" else np.uint16
        if low < np.iinfo(narrower).min or high > np.iinfo(narrower).max:
            raise ImageError(
                Reason.UNREADABLE, f"The stored values, {low} to {high}, do not fit 16 bits."
            )
        stored = stored.astype(narrower)
    every_value = _every_value(stored.dtype)
    padding = _is_padding(every_value, header)
    index = stored.view(np.dtype(f"u{stored.dtype.itemsize}"))
    for lut in _modality_luts(header):
        occurs = np.bincount(index.ravel(), minlength=every_value.size) > 0
        _refuse_a_reversal(lut, every_value[occurs & ~padding])

    def look_up(policy: VoiPolicy) -> tuple[np.ndarray, str]:
        grey, voi_applied = _presentation_values(every_value.astype(np.float64), header, policy)
        table = np.rint(grey).astype(np.uint16)
        table[padding] = 0
        return _look_up(table, index), voi_applied

    pixels, voi_applied = look_up(policy)
    is_full_range = voi_applied.partition(":")[0] == "full_range"
    full_range = pixels if is_full_range else look_up(VoiPolicy.RAW)[0]
    if np.ptp(pixels) < _LITTLE * WHITE and ":holds_" not in voi_applied:  # which says it already
        voi_applied += ":spans_under_25_percent"
    return GreyImage(pixels, full_range, voi_applied)


def maximum_intensity_projection(images: Iterable[GreyImage]) -> GreyImage:
    """The maximum over the frames of one file, pixel by pixel.

    Args:
        images: one or more, of one shape; each is released before the next is requested.

    Returns:
        The image; ``voi_applied`` lists the frames' transformations, each once, in order.

    Raises:
        ImageError: every pixel has one value (``constant_pixels``).
    """
    applied: dict[str, None] = {}
    pixels = full_range = None
    for image in images:
        applied[image.voi_applied] = None
        if pixels is None or full_range is None:
            pixels, full_range = image.pixels.copy(), image.full_range.copy()
        else:
            np.maximum(pixels, image.pixels, out=pixels)
            np.maximum(full_range, image.full_range, out=full_range)
    assert pixels is not None and full_range is not None
    if full_range.min() == full_range.max():
        raise ImageError(Reason.EMPTY_PIXELS, "Every pixel of every frame has one value.")
    return GreyImage(pixels, full_range, "|".join(applied))


def stretch_raster(
    stored: np.ndarray,
    photometric_interpretation: str | None = None,
    bits_stored: int | None = None,
) -> GreyImage:
    """Scale a raster image to the full uint16 range, black to white.

    Args:
        stored: (H, W) uint8 or uint16.
        photometric_interpretation: MONOCHROME1 where 0 is white; otherwise it is black.
        bits_stored: bit depth of the data set's 16-bit files; None for all 16. It is never guessed
            from the image's own maximum, which a marker raises.

    Returns:
        The image. ``voi_applied`` names the depth that it was scaled from, as in
        ``full_range:12bit``; where none was given it also says to which a 16-bit image reaches, if
        to fewer bits: ``full_range:16bit:reaches_12bit``.

    Raises:
        ImageError: values beyond ``bits_stored`` (``header_contradicts_pixels``).
    """
    depth = 8 * stored.dtype.itemsize
    voi_applied = f"full_range:{depth}bit"
    if stored.dtype == np.uint16 and bits_stored is not None:
        depth, voi_applied = bits_stored, f"full_range:{bits_stored}bit"
        highest = int(stored.max())
        if highest >= 2**depth:
            raise ImageError(
                Reason.HEADER_CONTRADICTS,
                f"The image reaches {highest}, beyond --bits-stored {depth}.",
            )
    elif stored.dtype == np.uint16 and (reached := reached_depth(stored)) < depth:
        voi_applied += f":reaches_{reached}bit"
    levels = np.arange(2**depth, dtype=np.float64)
    table = np.rint(levels * (WHITE / (2**depth - 1))).astype(np.uint16)
    if photometric_interpretation == "MONOCHROME1":
        table = WHITE - table
    pixels = _look_up(table, stored)
    return GreyImage(pixels, pixels, voi_applied)


def _presentation_values(
    stored: np.ndarray, header: Dataset, policy: VoiPolicy
) -> tuple[np.ndarray, str]:
    """Presentation values (float64, 0..65535) of stored values, and which VOI was applied."""
    # The stored range takes the same way, since a rescale or LUT moves it too: all of it, and not
    # only its ends, beyond which a LUT may reach in between.
    low, high = _stored_range(header)
    given = np.concatenate([stored, [low, high]])
    notes: list[str] = []
    modality = _apply_modality(given, header, notes)
    reachable = modality[(given >= low) & (given <= high)]
    ends = np.array([reachable.min(), reachable.max()])
    grey, voi_applied = _apply_voi(modality[:-2], ends, header, policy, notes)
    voi_applied = ":".join((voi_applied, *dict.fromkeys(notes)))
    inverse = (
        text(header, "PhotometricInterpretation") == "MONOCHROME1"
        or text(header, "PresentationLUTShape") == "INVERSE"
    )
    return (WHITE - grey if inverse else grey), voi_applied


def _stored_range(header: Dataset) -> tuple[int, int]:
    bits = min(integer(header, "BitsStored") or 16, 16)
    if integer(header, "PixelRepresentation") == 1:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def _apply_modality(stored: np.ndarray, header: Dataset, notes: list[str]) -> np.ndarray:
    for lut in _modality_luts(header):
        notes.extend(lut.oddities)
        return lut.apply(stored)
    for holder in _with_frames_own(header, "PixelValueTransformationSequence"):
        slope = _first_number(holder, "RescaleSlope", notes)
        intercept = _first_number(holder, "RescaleIntercept", notes)
        if slope == 0:
            notes.append("unusable_RescaleSlope")
        elif slope is not None and intercept is not None:
            module = Dataset()
            module.RescaleSlope, module.RescaleIntercept = slope, intercept
            return apply_modality_lut(stored, module)
        if (slope is None) != (intercept is None):
            notes.append("incomplete_Rescale")
    return stored


def _modality_luts(header: Dataset) -> list[LookUpTable]:
    """The modality LUT, of which there is at most one."""
    tables = items(header, "ModalityLUTSequence")[:1]
    return [read_lut(table, header, _stored_range(header)) for table in tables]


def _refuse_a_reversal(lut: LookUpTable, values: np.ndarray) -> None:
    """Refuse a modality LUT that gives one grey to thin and to dense tissue.

    DICOM does not require a LUT to rise or fall throughout, but attenuation does. What the table
    has for values that the image does not hold, such as a tail of zeros, harms nothing.

    Args:
        lut: the table.
        values: (n,) stored values that the image holds, without padding.

    Raises:
        ImageError: ``header_contradicts_pixels``.
    """
    reversal = lut.reversal(values) if values.size else 0.0
    if reversal > _ROUNDING:
        raise ImageError(
            Reason.HEADER_CONTRADICTS,
            "The header's Modality LUT Sequence both rises and falls over the image's own values "
            f"(it turns back by {percent(reversal, 1)} of its span), so different tissue would "
            "get the same grey: the table is damaged or belongs to another image. Export the "
            "image again, or correct or remove the table.",
        )


def _first_number(header: Dataset, keyword: str, notes: list[str]) -> float | None:
    read, is_clean = readable_numbers(header, keyword)
    if not is_clean:
        notes.append(f"no_number_in_{keyword}")
    return next((entry for entry in read if entry is not None), None)


def _apply_voi(
    values: np.ndarray,
    ends: np.ndarray,
    header: Dataset,
    policy: VoiPolicy,
    notes: list[str],
) -> tuple[np.ndarray, str]:
    if policy in (VoiPolicy.AUTO, VoiPolicy.LUT):
        for holder in _with_frames_own(header, "FrameVOILUTSequence"):
            for table in items(holder, "VOILUTSequence")[:1]:
                lut = read_lut(table, header, (float(ends.min()), float(ends.max())))
                grey = lut.apply(values) * (WHITE / (2**lut.depth - 1))
                notes.extend(lut.oddities)
                return grey, "lut"
        if policy == VoiPolicy.LUT:
            raise ImageError(
                Reason.NO_VOI, "The header has no VOI LUT Sequence, as --voi requires."
            )
    if policy in (VoiPolicy.AUTO, VoiPolicy.WINDOW):
        window = _first_window(header, notes)
        if window is not None:
            return apply_windowing(values, window), f"window:{window.VOILUTFunction}"
        if policy == VoiPolicy.WINDOW:
            raise ImageError(Reason.NO_VOI, "The header has no usable window, as --voi requires.")
    low, high = float(ends.min()), float(ends.max())
    if low == high:
        raise ImageError(
            Reason.EMPTY_PIXELS, "The header's modality transformation makes one value of all."
        )
    return np.clip((values - low) / (high - low), 0, 1) * WHITE, "full_range"


def _first_window(header: Dataset, notes: list[str]) -> Dataset | None:
    """The first usable window as a VOI module whose output range is 0..65535; None without one."""
    for holder in _with_frames_own(header, "FrameVOILUTSequence"):
        function = (text(holder, "VOILUTFunction") or "LINEAR").upper()
        pairs = _windows(holder, notes)
        if pairs and function not in _WINDOW_FUNCTIONS:
            notes.append("unknown_VOILUTFunction")
            continue
        # A linear window of width 1 is a step; narrower ones are not allowed (C.11.2.1.2.1).
        narrowest = 1 if function == "LINEAR" else np.nextafter(0, 1)
        for center, width in pairs:
            if width < narrowest:
                notes.append("unusable_WindowWidth")
                continue
            window = Dataset()
            window.PhotometricInterpretation = "MONOCHROME2"
            window.BitsStored, window.PixelRepresentation = 16, 0
            window.WindowCenter, window.WindowWidth = center, width
            window.VOILUTFunction = function
            return window
    return None


def _windows(holder: Dataset, notes: list[str]) -> list[tuple[float, float]]:
    """(center, width) of the windows of which both can be read."""
    centers, is_clean_center = readable_numbers(holder, "WindowCenter")
    widths, is_clean_width = readable_numbers(holder, "WindowWidth")
    for keyword, is_clean in (("WindowCenter", is_clean_center), ("WindowWidth", is_clean_width)):
        if not is_clean:
            notes.append(f"no_number_in_{keyword}")
    pairs = [
        (center, width)
        for center, width in zip(centers, widths, strict=False)
        if center is not None and width is not None
    ]
    if pairs:
        return pairs
    # As where one of the two begins with an empty value and the other does not.
    center = next((entry for entry in centers if entry is not None), None)
    width = next((entry for entry in widths if entry is not None), None)
    return [] if center is None or width is None else [(center, width)]


def _with_frames_own(header: Dataset, keyword: str) -> tuple[Dataset, ...]:
    """Where to look for an attribute: the frame's own functional group, then the header."""
    group = functional_group(header, keyword)
    return (header,) if group is None else (group, header)


def _is_padding(every_value: np.ndarray, header: Dataset) -> np.ndarray:
    """Which values are padding: Pixel Padding Value, or the range from it to its limit."""
    first = integer(header, "PixelPaddingValue")
    last = integer(header, "PixelPaddingRangeLimit")
    if first is None:
        return np.zeros(every_value.shape, bool)
    # The padding value is often written unsigned where pixels are signed, and vice versa.
    low, high = sorted(
        int(np.uint16(end % 2**16).astype(every_value.dtype))
        for end in (first, first if last is None else last)
    )
    return np.asarray((every_value >= low) & (every_value <= high))


def _every_value(dtype: np.dtype) -> np.ndarray:
    """All values of an 8 or 16-bit type, in the order of their unsigned bit patterns."""
    unsigned = np.dtype(f"u{dtype.itemsize}")
    return np.arange(2 ** (8 * dtype.itemsize), dtype=np.uint32).astype(unsigned).view(dtype)


def _look_up(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    found = np.empty(index.shape, table.dtype)
    # In strips, so that the index, which numpy needs in 64 bits, stays in the cache.
    for start in range(0, index.shape[0], 16):
        strip = slice(start, start + 16)
        np.take(table, index[strip].astype(np.intp), out=found[strip], mode="clip")
    return found
