"""Images that are not DICOM: a grey 8 or 16-bit PNG, PGM, TIFF or JPEG file in, an array out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mammo_pd.errors import ImageError
from mammo_pd.terms import Reason

RASTER_SUFFIXES = frozenset({".png", ".pgm", ".tif", ".tiff", ".jpg", ".jpeg"})
# Tag 262, PhotometricInterpretation (TIFF 6.0, section 3).
_PHOTOMETRIC_TAG = 262
_PHOTOMETRIC = {0: "MONOCHROME1", 1: "MONOCHROME2"}
# Bit depths at which detectors and digitisers store.
_STANDARD_DEPTHS = (8, 10, 12, 14, 16)
# Of the many that Pillow goes by the content for, whatever the name: it reads PostScript, for one,
# by running Ghostscript on it.
_FORMATS = ("PNG", "PPM", "TIFF", "JPEG")
_LOSSY_FORMATS = frozenset({"JPEG", "MPO"})
_COLOUR_MODES = frozenset({"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"})


@dataclass(frozen=True)
class RasterImage:
    """What a raster file holds.

    Attributes:
        pixels: (H, W) uint8 or uint16, as stored.
        photometric_interpretation: MONOCHROME1 or MONOCHROME2 where the file says which of white
            and black is 0, as TIFF does; else None.
        lossy: whether its format gives up detail, as JPEG does.
    """

    pixels: np.ndarray
    photometric_interpretation: str | None
    lossy: bool


@dataclass(frozen=True)
class RasterHeader:
    """What a raster file says in front of its pixels.

    Attributes:
        size: (rows, columns).
        file_format: such as PNG or JPEG, as Pillow calls it.
    """

    size: tuple[int, int]
    file_format: str


def read_raster_header(path: Path) -> RasterHeader:
    """Read the header of a grey image; whether a colour file is grey only its pixels show.

    Args:
        path: a PNG, PGM, TIFF or JPEG file.

    Raises:
        ImageError: as `read_raster`, as far as the header shows.
    """
    with _opened(path) as image:
        return RasterHeader((image.height, image.width), image.format or "")


def read_raster(path: Path) -> RasterImage:
    """Read a grey image; a colour file whose channels are equal counts as grey.

    Args:
        path: a PNG, PGM, TIFF or JPEG file.

    Raises:
        ImageError: the file is missing, damaged, in colour, multi-page, neither 8 nor 16-bit,
            or constant.
    """
    with _opened(path) as image:
        pixels = _grey(image)
        tags = getattr(image, "tag_v2", {})
        photometric = _PHOTOMETRIC.get(tags.get(_PHOTOMETRIC_TAG, -1))
        lossy = image.format in _LOSSY_FORMATS
    if pixels.min() == pixels.max():
        raise ImageError(Reason.EMPTY_PIXELS, f"Every pixel has the value {pixels.flat[0]}.")
    if photometric == "MONOCHROME1" and pixels.dtype == np.uint8:
        # Pillow has turned these; those of 16 bits it leaves as they are.
        pixels = 255 - pixels
    return RasterImage(pixels, photometric, lossy)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a file of one page; whatever fails in opening it or within is an ImageError."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if _has_pages(image):
                raise ImageError(
                    Reason.MULTI_FRAME,
                    "The file holds more than one page; only single images are used.",
                )
            yield image
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(Reason.UNREADABLE, "The file is no longer there.") from None
    except PermissionError:
        raise ImageError(
            Reason.UNREADABLE, "Permission to read the file is denied; grant it."
        ) from None
    except UnidentifiedImageError:
        raise ImageError(
            Reason.NOT_AN_IMAGE, "Pillow does not recognise the file as PNG, PGM, TIFF or JPEG."
        ) from None
    except (Exception, Image.DecompressionBombError, MemoryError) as error:
        raise ImageError(
            Reason.UNREADABLE, f"The file is damaged or cut off ({type(error).__name__})."
        ) from error


def reached_depth(pixels: np.ndarray) -> int:
    """The smallest usual bit depth that holds the largest value of one raster file.

    It only hints at the depth of the data set, since a single marker can reach further.

    Args:
        pixels: (H, W) uint8 or uint16.
    """
    if pixels.dtype == np.uint8:
        return 8
    needed = int(pixels.max()).bit_length()
    return next(depth for depth in _STANDARD_DEPTHS if depth >= needed)


def _has_pages(image: Image.Image) -> bool:
    # Not by n_frames, for which Pillow goes through all pages: minutes where there are 200,000.
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def _grey(image: Image.Image) -> np.ndarray:
    if image.mode in _COLOUR_MODES:
        channels = np.asarray(image.convert("RGB"))
        red = channels[..., 0]
        if not ((channels[..., 1] == red).all() and (channels[..., 2] == red).all()):
            raise ImageError(Reason.COLOUR, "The image is in colour; a mammogram is grey.")
        return np.ascontiguousarray(red)
    if image.mode in {"L", "LA", "1"}:
        return np.asarray(image.convert("L"))
    pixels = np.asarray(image)
    if pixels.ndim != 2 or pixels.dtype.kind not in "iu":
        raise ImageError(
            Reason.UNREADABLE,
            f"The image holds {pixels.dtype} values; only 8 and 16-bit integers are supported.",
        )
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ImageError(Reason.UNREADABLE, "The values do not fit 16 bits.")
    return pixels.astype(np.uint16)
