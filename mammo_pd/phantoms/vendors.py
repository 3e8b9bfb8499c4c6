"""Six invented vendors: how each stores grey values, and how its header says so.

In: grey values in [0, 1] as a viewer should show them. Out: stored values, the elements that map
them back, and encoded pixel data. Between them the vendors cover every form that the grey-scale
rules and the decoders must read.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)


class Voi(StrEnum):
    """The VOI transformation that a vendor's header gives."""

    LINEAR = "LINEAR"
    SIGMOID = "SIGMOID"
    LUT = "LUT"
    NONE = "NONE"


@dataclass(frozen=True)
class Vendor:
    """One invented manufacturer.

    Attributes:
        name: Manufacturer (0008,0070).
        rows: of the matrix at scale 1.
        columns: of the matrix at scale 1.
        imager_pixel_spacing: mm at scale 1, the same for rows and columns.
        photometric_interpretation: MONOCHROME1 or MONOCHROME2.
        bits_stored: Bits Stored (0028,0101), unsigned, of 16 allocated.
        voi: the VOI transformation in the header.
        transfer_syntax: of the file; all are lossless.
        padding: whether the rim outside the collimated field holds Pixel Padding Value 0.
        mirrored: whether the chest wall lies on the opposite side to the usual one, as Patient
            Orientation then says.
        paddle_edge: whether the compression paddle's edge crosses the background as a faint bright
            line.
        omitted: keywords of the elements that this vendor does not write.
    """

    name: str
    rows: int
    columns: int
    imager_pixel_spacing: float
    photometric_interpretation: str
    bits_stored: int
    voi: Voi
    transfer_syntax: UID
    padding: bool = False
    mirrored: bool = False
    paddle_edge: bool = False
    omitted: tuple[str, ...] = ()

    @property
    def maximum(self) -> int:
        """The largest value that can be stored."""
        return (1 << self.bits_stored) - 1


VENDORS = (
    Vendor(
        name="Phantom vendor A",
        rows=2560,
        columns=2048,
        imager_pixel_spacing=0.1,
        photometric_interpretation="MONOCHROME2",
        bits_stored=12,
        voi=Voi.LINEAR,
        transfer_syntax=JPEGLosslessSV1,
        padding=True,
    ),
    Vendor(
        name="Phantom vendor B",
        rows=2560,
        columns=2048,
        imager_pixel_spacing=0.094,
        photometric_interpretation="MONOCHROME1",
        bits_stored=14,
        voi=Voi.LINEAR,
        transfer_syntax=ExplicitVRLittleEndian,
        padding=True,
    ),
    Vendor(
        name="Phantom vendor C",
        rows=2394,
        columns=2048,
        imager_pixel_spacing=0.094,
        photometric_interpretation="MONOCHROME2",
        bits_stored=12,
        voi=Voi.LUT,
        transfer_syntax=JPEG2000Lossless,
        omitted=("ViewPosition",),
    ),
    Vendor(
        name="Phantom vendor D",
        rows=2776,
        columns=2082,
        imager_pixel_spacing=0.085,
        photometric_interpretation="MONOCHROME2",
        bits_stored=16,
        voi=Voi.NONE,
        transfer_syntax=JPEGLSLossless,
        paddle_edge=True,
    ),
    Vendor(
        name="Phantom vendor E",
        rows=2294,
        columns=1914,
        imager_pixel_spacing=0.1,
        photometric_interpretation="MONOCHROME1",
        bits_stored=10,
        voi=Voi.SIGMOID,
        transfer_syntax=RLELossless,
        mirrored=True,
        omitted=("PatientAge", "ViewCodeSequence"),
    ),
    Vendor(
        name="Phantom vendor F",
        rows=2560,
        columns=2048,
        imager_pixel_spacing=0.09,
        photometric_interpretation="MONOCHROME2",
        bits_stored=14,
        voi=Voi.SIGMOID,
        transfer_syntax=ImplicitVRLittleEndian,
        padding=True,
        omitted=("ImageLaterality",),
    ),
)


PIXEL_PADDING_VALUE = 0
_LUT_BITS = 12
_LUT_EXPONENT = 2.0


def _window(vendor: Vendor) -> tuple[float, float]:
    """Window Center and Width, in stored values before any inversion for MONOCHROME1."""
    whole = vendor.maximum + 1
    if vendor.voi is Voi.SIGMOID:
        return 0.5 * whole, 0.4 * whole
    return 0.55 * whole, 0.7 * whole


def stored_values(grey: NDArray[np.float32], vendor: Vendor) -> NDArray[np.uint16]:
    """Invert the vendor's VOI transformation: the stored values that viewers show as ``grey``.

    Args:
        grey: (rows, columns) white is 1; clipped to [0.005, 0.995].
        vendor: who makes the image.

    Returns:
        (rows, columns) uint16, at least 1: 0 is reserved for padding.
    """
    grey = np.clip(grey, 0.005, 0.995)
    center, width = _window(vendor)
    match vendor.voi:
        case Voi.LINEAR:
            stored = center + width * (grey - 0.5)
        case Voi.SIGMOID:
            # The inverse of PS3.3 C.11.2.1.3.1.
            stored = center + width / 4 * np.log(grey / (1 - grey))
        case Voi.LUT:
            first, entries = _lut_range(vendor)
            stored = first + (entries - 1) * grey ** (1 / _LUT_EXPONENT)
        case Voi.NONE:
            stored = vendor.maximum * grey
    if vendor.photometric_interpretation == "MONOCHROME1":
        stored = vendor.maximum - stored
    pixels: NDArray[np.uint16] = np.clip(np.rint(stored), 1, vendor.maximum).astype(np.uint16)
    return pixels


def _lut_range(vendor: Vendor) -> tuple[int, int]:
    """First stored value mapped, and number of entries, of a VOI LUT."""
    first = vendor.maximum // 16
    return first, vendor.maximum + 1 - 2 * first


def add_voi(ds: Dataset, vendor: Vendor) -> None:
    """Add the window or the VOI LUT Sequence, if the vendor gives one (PS3.3 C.11.2)."""
    if vendor.voi in (Voi.LINEAR, Voi.SIGMOID):
        center, width = _window(vendor)
        if vendor.photometric_interpretation == "MONOCHROME1":
            center = vendor.maximum - center
        ds.WindowCenter = f"{center:.6g}"
        ds.WindowWidth = f"{width:.6g}"
        ds.VOILUTFunction = vendor.voi.value
    elif vendor.voi is Voi.LUT:
        # Real machines offer several; the first is the default.
        ds.VOILUTSequence = [
            _voi_lut(vendor, _LUT_EXPONENT, "NORMAL"),
            _voi_lut(vendor, 1.5 * _LUT_EXPONENT, "HARDER"),
        ]


def _voi_lut(vendor: Vendor, exponent: float, explanation: str) -> Dataset:
    first, entries = _lut_range(vendor)
    table = ((1 << _LUT_BITS) - 1) * np.linspace(0, 1, entries) ** exponent
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [entries, first, _LUT_BITS])
    item.LUTExplanation = explanation
    item.add_new("LUTData", "US", np.rint(table).astype(int).tolist())
    return item


def add_pixel_data(ds: Dataset, pixels: NDArray[np.uint16], vendor: Vendor) -> None:
    """Encode the pixels in the vendor's transfer syntax, without loss (PS3.5 8.2).

    Args:
        ds: data set with file meta information and the Image Pixel module; changed in place.
        pixels: (rows, columns) uint16, stored values.
        vendor: who made the image.
    """
    syntax = vendor.transfer_syntax
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax == RLELossless:
        ds.compress(RLELossless, pixels, generate_instance_uid=False)
        return
    if not syntax.is_encapsulated:
        ds.PixelData = pixels.astype("<u2").tobytes()
        ds["PixelData"].VR = "OW"
        return
    # Imported here: whoever draws phantoms without writing DICOM files needs no codec.
    import imagecodecs

    if syntax == JPEGLosslessSV1:
        frame = imagecodecs.jpeg8_encode(
            pixels, lossless=True, predictor=1, bitspersample=vendor.bits_stored
        )
    elif syntax == JPEGLSLossless:
        frame = imagecodecs.jpegls_encode(pixels)
    else:
        frame = imagecodecs.jpeg2k_encode(
            pixels, codecformat="j2k", reversible=True, bitspersample=vendor.bits_stored
        )
    ds.PixelData = encapsulate([bytes(frame)])
    ds["PixelData"].VR = "OB"
