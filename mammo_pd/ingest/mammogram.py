"""One mammogram from its file to the crop: typed values in, typed values out.

`transforms` wraps these functions as MONAI dictionary transforms. Nothing here knows MONAI or
torch, and no argument is changed, except that a single-frame dataset loses its compressed pixels
once they are decoded.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from mammo_pd.errors import ImageError
from mammo_pd.imaging.breast import BreastRegion, find_breast
from mammo_pd.imaging.decode import LOSSY_SYNTAXES, StoredFrames, check_frames, decode
from mammo_pd.imaging.dicom_file import read_dataset
from mammo_pd.imaging.grey_scale import (
    GreyImage,
    apply_grey_scale,
    maximum_intensity_projection,
    stretch_raster,
)
from mammo_pd.imaging.header import (
    HeaderFields,
    check_is_mammogram,
    header_of_frame,
    number_of_frames,
    read_header_fields,
    read_identifiers,
)
from mammo_pd.imaging.image_kind import find_image_kind
from mammo_pd.imaging.orientation import SideVerdict, is_upside_down, judge_side
from mammo_pd.imaging.pyramid import area_average, block_mean, fitted_size
from mammo_pd.imaging.raster import RASTER_SUFFIXES, read_raster
from mammo_pd.terms import Frames, ImageKind, Laterality, Reason, VoiPolicy
from mammo_pd.wording import percent

THUMBNAIL_LONG_SIDE = 256


# So few grey values are a mask or a posterised image, not a mammogram.
_FEWEST_LEVELS = 8
# Share of the breast at one end of the range: 0.10 at most in about 320 real files, more than
# this where an image is inverted.
_CLIPPED = 0.9


@dataclass(frozen=True)
class DicomFrame:
    """One frame of a DICOM file that has been read and found to be a mammogram.

    Attributes:
        dataset: the whole file, as ``read_dataset`` returns it.
        number: which frame, from 0; None if the file holds one.
    """

    dataset: Dataset = field(repr=False)
    number: int | None


@dataclass(frozen=True)
class FileHeader:
    """A file's header and identifiers, neither of which show in its ``repr``.

    MONAI and loggers print the values of a dictionary; these must not end up in a log.

    Attributes:
        dataset: the header without pixel data; None for a raster file.
        identifiers: as ``read_identifiers`` returns them; empty for a raster file.
    """

    dataset: Dataset | None = field(repr=False)
    identifiers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class LoadedImage:
    """What was read from one file.

    Attributes:
        stored: (H, W) stored values; with ``Frames.MIP`` the frames, to be decoded one by one.
        header: of the file, or of the frame that was taken.
        tags: what the header says of the image.
        decoder: what decoded the pixels.
        transfer_syntax: its UID; None for a raster file.
        frame: number of the frame that was taken, from 1, or ``mip``; None if the file holds one.
        kind: how the image was made; None for a raster file.
    """

    stored: np.ndarray | StoredFrames
    header: FileHeader
    tags: HeaderFields
    decoder: str
    transfer_syntax: str | None
    frame: str | None
    kind: ImageKind | None = None

    def columns(self) -> dict[str, Any]:
        """The manifest's columns that are known so far; what the file does not tell is left out."""
        values = asdict(self.tags)
        spacing = values.pop("imager_pixel_spacing") or (None, None)
        values |= {
            "laterality": None if self.tags.laterality is None else str(self.tags.laterality),
            "view_modifiers": ";".join(self.tags.view_modifiers) or None,
            "imager_pixel_spacing_row": spacing[0],
            "imager_pixel_spacing_column": spacing[1],
            "transfer_syntax": self.transfer_syntax,
            "decoder": self.decoder,
            "image_kind": None if self.kind is None else str(self.kind),
            "frame": self.frame,
            "patient_orientation": "/".join(self.tags.patient_orientation or ()) or None,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class BreastCrop:
    """The part of an image that holds the breast.

    Attributes:
        pixels: (h, w) uint16, 0 where there is no breast.
        region: where it was found.
        side: ``left`` or ``right``, where the chest wall is: as seen, or as the laterality tag
            says if the verdict is doubtful.
        laterality_agrees: whether the breast is on the side that the tag leads to expect; None if
            that cannot be told.
        side_verdict: whether side, laterality and Patient Orientation contradict one another; None
            where the tags say nothing or the region is doubtful.
        upside_down: whether Patient Orientation says so; the pixels still are.
    """

    pixels: np.ndarray
    region: BreastRegion
    side: str
    laterality_agrees: bool | None
    side_verdict: SideVerdict | None = None
    upside_down: bool = False

    def columns(self) -> dict[str, Any]:
        """The manifest's columns that the crop adds; what cannot be told is left out."""
        box = self.region.box
        values = {
            "crop_top": box.top,
            "crop_left": box.left,
            "crop_height": box.height,
            "crop_width": box.width,
            "image_side": self.side,
            "breast_verdict": self.region.verdict,
            "breast_area_fraction": round(self.region.area_fraction, 4),
            "breast_solidity": round(self.region.solidity, 4),
            "laterality_agrees": self.laterality_agrees,
            "side_verdict": None if self.side_verdict is None else str(self.side_verdict),
            "turned_upright": self.upside_down,
        }
        return {name: value for name, value in values.items() if value is not None}


def read_frames(path: Path, *, assume_mammogram: bool = False) -> list[DicomFrame]:
    """Read a DICOM file once, to load each of its frames as an image of its own.

    Args:
        path: the file.
        assume_mammogram: as for ``load_mammogram``.

    Returns:
        One entry for each frame.

    Raises:
        ImageError: the file cannot be used, whatever the frame.
    """
    dataset = read_dataset(path)
    check_is_mammogram(dataset, assume_mammogram=assume_mammogram)
    check_frames(dataset)
    count = number_of_frames(dataset)
    if count == 1:
        return [DicomFrame(dataset, None)]
    return [DicomFrame(dataset, number) for number in range(count)]


def load_mammogram(
    source: Path | DicomFrame,
    frames: Frames,
    *,
    assume_mammogram: bool = False,
    photometric_interpretation: str | None = None,
) -> LoadedImage:
    """Read and decode one image.

    Args:
        source: a DICOM, PNG, PGM, TIFF or JPEG file, or one frame of a file that has been read.
        frames: what to take from a file of several frames; a ``DicomFrame`` says so itself.
        assume_mammogram: the caller knows it to be one, so a missing Modality is accepted.
        photometric_interpretation: of a file that is not DICOM, where the caller knows it; it
            counts for more than the file's own.

    Raises:
        ImageError: the file cannot be used; the reason says why.
    """
    if isinstance(source, DicomFrame):
        return _load_frame(source.dataset, source.number)
    if source.suffix.lower() in RASTER_SUFFIXES:
        return _load_raster(source, photometric_interpretation)
    dataset = read_dataset(source)
    check_is_mammogram(dataset, assume_mammogram=assume_mammogram)
    count = number_of_frames(dataset)
    if count > 1 and frames == Frames.MIP:
        stored = StoredFrames(dataset)
        return _loaded(stored, dataset, stored.decoder, "mip")
    middle = count // 2 if count > 1 and frames == Frames.MIDDLE else None
    return _load_frame(dataset, middle)


def to_grey_scale(
    stored: np.ndarray | StoredFrames,
    dataset: Dataset | None,
    voi: VoiPolicy,
    photometric_interpretation: str | None = None,
    bits_stored: int | None = None,
) -> GreyImage:
    """Turn stored values into presentation values.

    Args:
        stored: (H, W), or the frames of a file, whose maximum is taken, each in its own grey scale.
        dataset: the header; None for a raster file, which is stretched to the full range.
        voi: which value-of-interest transformation to apply.
        photometric_interpretation: of a raster file; None for MONOCHROME2.
        bits_stored: of a 16-bit raster file; None for all 16.

    Raises:
        ImageError: the header lacks what the policy insists on, or a look-up table is unreadable.
    """
    if isinstance(stored, StoredFrames):
        assert dataset is not None
        return maximum_intensity_projection(
            apply_grey_scale(frame, header_of_frame(dataset, number), voi)
            for number, frame in enumerate(stored)
        )
    if dataset is None:
        return stretch_raster(stored, photometric_interpretation, bits_stored)
    return apply_grey_scale(stored, dataset, voi)


def crop_breast(
    image: GreyImage, laterality: str | None, orientation: tuple[str, str] | None = None
) -> BreastCrop:
    """Crop an image to the breast.

    Args:
        image: the whole frame.
        laterality: ``L`` or ``R`` as the header says, None if it does not.
        orientation: Patient Orientation, the directions of a row and of a column.

    Raises:
        ImageError: the image holds no breast (``no_breast_found``), or its grey scale leaves
            nothing of it (``constant_pixels``).
    """
    # Searched before any window: what a window clips is breast all the same.
    region = find_breast(image.full_range)
    side, agrees = region.side, None
    if laterality is not None:
        expected = "right" if laterality == Laterality.RIGHT else "left"
        if region.verdict == "ok":
            agrees = region.side == expected
        else:
            # A doubtful image shows no chest wall to go by: there the tag is the better guess.
            side = expected
    _check_grey_values(region.sample(image.pixels), image.voi_applied)
    return BreastCrop(
        region.cut_out(image.pixels),
        region,
        side,
        agrees,
        judge_side(side, laterality, orientation) if region.verdict == "ok" else None,
        is_upside_down(orientation),
    )


def _check_grey_values(breast: np.ndarray, voi_applied: str) -> None:
    """Refuse a grey scale that leaves hardly anything to see: a window beside the breast's values.

    Args:
        breast: (n,) uint16, of the breast alone: the air around it would hide that.
        voi_applied: names the grey scale.

    Raises:
        ImageError: ``constant_pixels``.
    """
    count = np.bincount(breast, minlength=2**16)
    share = count / max(1, count.sum())
    levels = int(np.count_nonzero(count))
    remedy = (
        "is it inverted (photometric_interpretation)?"
        if voi_applied.startswith("full_range")
        else "--voi raw uses the stored range instead."
    )
    for is_so, what in (
        (levels == 1, f"gives every pixel the value {breast[0] if breast.size else 0}"),
        (levels <= _FEWEST_LEVELS, f"leaves the breast {levels} grey values"),
        (share[-1] > _CLIPPED, f"makes {percent(share[-1])} of the breast white"),
        (share[0] > _CLIPPED, f"makes {percent(share[0])} of the breast black"),
    ):
        if is_so:
            raise ImageError(
                Reason.EMPTY_PIXELS,
                f"The grey scale ({voi_applied}) {what}; {remedy}",
            )


def draw_thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Reduce a whole frame to a long side of `THUMBNAIL_LONG_SIDE` pixels.

    Args:
        pixels: (H, W) uint16.

    Returns:
        (h, w) uint8; smaller frames keep their size.
    """
    # Whole blocks first, as the exact average costs more; twice the size keeps it exact enough.
    reduced = block_mean(pixels, max(max(pixels.shape) // (2 * THUMBNAIL_LONG_SIDE), 1))
    size = fitted_size(reduced.shape, min(THUMBNAIL_LONG_SIDE, max(reduced.shape)))
    return (area_average(reduced, size) / 257).astype(np.uint8)


def _load_frame(dataset: Dataset, number: int | None) -> LoadedImage:
    decoded = decode(dataset, number)
    # One of several frames gets a header of its own, so that the next still finds the pixel data.
    header = dataset if number is None else header_of_frame(dataset, number)
    # The compressed pixels would be held until the image is done.
    del header.PixelData
    return _loaded(
        decoded.values, header, decoded.decoder, None if number is None else str(number + 1)
    )


def _loaded(
    stored: np.ndarray | StoredFrames, dataset: Dataset, decoder: str, frame: str | None
) -> LoadedImage:
    rows, columns = stored.shape[-2:]
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    # What was decoded, should the header disagree.
    fields = replace(read_header_fields(dataset), rows=rows, columns=columns)
    if syntax in LOSSY_SYNTAXES:
        fields = replace(fields, lossy_image_compression=True)
    header = FileHeader(dataset, read_identifiers(dataset))
    kind = find_image_kind(dataset)
    return LoadedImage(stored, header, fields, decoder, syntax, frame, kind)


def _load_raster(path: Path, photometric_interpretation: str | None) -> LoadedImage:
    raster = read_raster(path)
    rows, columns = raster.pixels.shape
    known = photometric_interpretation or raster.photometric_interpretation
    fields = replace(
        read_header_fields(Dataset()),
        rows=rows,
        columns=columns,
        photometric_interpretation=known,
        lossy_image_compression=raster.lossy or None,
    )
    return LoadedImage(raster.pixels, FileHeader(None, {}), fields, "pillow", None, None)
