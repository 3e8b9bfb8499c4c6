"""The way of one image from file to pyramid, as steps on a dictionary.

Beside the image each step keeps, for the key ``image``: ``image_facts`` (what the manifest wants,
plain values), ``image_identifiers`` (original identifiers: never to be written but to the
owner-only record), and at the end ``image_levels`` and, where wanted, ``image_thumbnail``.
``transforms`` makes MONAI's dictionary transforms of the steps; here they know no MONAI and no
torch, which would be four fifths of a worker's memory and most of its start.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from mammo_pd.errors import ImageError
from mammo_pd.imaging.breast import find_breast
from mammo_pd.imaging.decode import StoredFrames, check_frames, decode
from mammo_pd.imaging.dicom_file import read_dataset
from mammo_pd.imaging.geometry import (
    area_average,
    block_mean,
    build_pyramid,
    fitted_size,
    turn_chest_wall_left,
)
from mammo_pd.imaging.grey_scale import (
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
from mammo_pd.imaging.raster import RASTER_SUFFIXES, read_raster
from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.terms import Frames, Laterality, Reason, VoiPolicy

THUMBNAIL_LONG_SIDE = 256

Sample = dict[Any, Any]
Steps = Callable[[Sample], Sample]


@dataclass(frozen=True)
class OneFrame:
    """One frame of a file that has been read, and found to be a mammogram.

    Attributes:
        dataset: the whole file, as ``read_dataset`` gives it.
        number: which frame, from 0; None where the file holds one.
    """

    dataset: Dataset
    number: int | None


def load(sample: Sample, key: Any, frames: Frames) -> None:
    """Read the file under the key, in place; see ``LoadMammogramd``."""
    given = sample[key]
    path = None if isinstance(given, OneFrame) else Path(given)
    assume = bool(sample.pop(f"{key}_assume_mammogram", False))
    if path is not None and path.suffix.lower() in RASTER_SUFFIXES:
        raster = read_raster(path)
        sample[key] = raster[None]
        sample[f"{key}_facts"] = _facts_of_raster(raster)
        sample[f"{key}_identifiers"] = {}
        sample[f"{key}_header"] = None
        return
    if path is None:
        sample[key], header, facts = _decode_one(given.dataset, given.number)
    else:
        header = read_dataset(path)
        check_is_mammogram(header, assume_mammogram=assume)
        sample[key], header, facts = _decode(header, frames)
    facts |= _plain(read_header_fields(header)) | {
        "transfer_syntax": str(header.file_meta.TransferSyntaxUID),
        "rows": sample[key].shape[1],
        "columns": sample[key].shape[2],
    }
    sample[f"{key}_facts"] = facts
    sample[f"{key}_identifiers"] = read_identifiers(header)
    sample[f"{key}_header"] = header


def to_grey_scale(sample: Sample, key: Any, voi: VoiPolicy) -> None:
    """Turn stored into presentation values, in place; see ``ApplyGreyScaled``."""
    header = sample.pop(f"{key}_header")
    stored = sample[key]
    if header is None:
        grey = stretch_raster(stored[0])
    elif isinstance(stored, StoredFrames):
        grey = maximum_intensity_projection(
            apply_grey_scale(frame, header_of_frame(header, number), voi)
            for number, frame in enumerate(stored)
        )
    else:
        grey = apply_grey_scale(stored[0], header, voi)
    sample[key] = grey.pixels[None]
    sample[f"{key}_full_range"] = grey.full_range
    sample[f"{key}_facts"] = sample[f"{key}_facts"] | {"voi_applied": grey.voi_applied}


def crop_to_breast(sample: Sample, key: Any, *, thumbnail: bool) -> None:
    """Crop to the breast and set what is not breast to 0, in place; see ``CropBreastd``."""
    pixels = sample[key][0]
    region = find_breast(sample.pop(f"{key}_full_range", pixels))
    facts = sample[f"{key}_facts"]
    laterality = facts["laterality"]
    # A doubtful image shows no chest wall to go by: there the tag is the better guess.
    side, agrees = region.side, None
    if laterality is not None:
        tagged = "right" if laterality == Laterality.RIGHT else "left"
        side = region.side if region.verdict == "ok" else tagged
        agrees = region.side == tagged if region.verdict == "ok" else None
    crop = region.cut_out(pixels)
    # The breast is searched before the window; a window that misses it gives plain black.
    if crop.min() == crop.max():
        raise ImageError(
            Reason.EMPTY_PIXELS,
            f"The header's grey scale ({facts['voi_applied']}) gives every pixel the value "
            f"{crop.flat[0]}; --voi raw takes the stored range instead.",
        )
    sample[key] = crop[None]
    if thumbnail:
        sample[f"{key}_thumbnail"] = _thumbnail(pixels)
    sample[f"{key}_facts"] = facts | {
        "crop_top": region.box.top,
        "crop_left": region.box.left,
        "crop_height": region.box.height,
        "crop_width": region.box.width,
        "image_side": side,
        "breast_verdict": region.verdict,
        "breast_area_fraction": round(region.area_fraction, 4),
        "breast_solidity": round(region.solidity, 4),
        "laterality_agrees": agrees,
    }


def turn(sample: Sample, key: Any) -> None:
    """Mirror where the chest wall lies on the right, in place; see ``OrientChestWallLeftd``."""
    facts = sample[f"{key}_facts"]
    side = facts["image_side"]
    sample[key] = turn_chest_wall_left(sample[key][0], side)[None]
    sample[f"{key}_facts"] = facts | {"flipped": side == "right"}


def add_levels(sample: Sample, key: Any) -> None:
    """Add the pyramid, in place; see ``BuildPyramidd``."""
    sample[f"{key}_levels"] = build_pyramid(sample[key][0])


def mammogram_steps(settings: ImagingSettings, *, thumbnail: bool = False) -> Steps:
    """Compose the whole way from ``{"image": path}`` to the pyramid.

    Args:
        settings: what decides the pixels.
        thumbnail: whether a small picture of the whole frame is wanted.
    """
    return partial(_take_steps, settings=settings, thumbnail=thumbnail)


def _take_steps(sample: Sample, *, settings: ImagingSettings, thumbnail: bool) -> Sample:
    taken = dict(sample)
    load(taken, "image", settings.frames)
    to_grey_scale(taken, "image", settings.voi)
    crop_to_breast(taken, "image", thumbnail=thumbnail)
    turn(taken, "image")
    add_levels(taken, "image")
    return taken


def process_mammogram(
    path: Path, steps: Steps, *, assume_mammogram: bool = False
) -> dict[str, Any]:
    """Run one file through the steps.

    Args:
        path: the file.
        steps: as ``mammogram_steps`` gives them, or MONAI's ``mammogram_transforms``.
        assume_mammogram: the user's own table names the file, so a missing Modality is no
            obstacle.

    Returns:
        ``image`` (1, h, w) uint16, ``image_levels``, ``image_facts``, ``image_identifiers``
        and, where the steps make it, ``image_thumbnail`` ((h, w) uint8, the full frame).

    Raises:
        ImageError: the image cannot be used. Nothing else is raised for a bad file.
    """
    return _run({"image": path, "image_assume_mammogram": assume_mammogram}, steps)


def process_each_frame(
    path: Path, steps: Steps, *, assume_mammogram: bool = False
) -> Iterator[tuple[int | None, dict[str, Any] | ImageError]]:
    """Run every frame of a file through the steps, one at a time; the file is read once.

    Args:
        path: the file.
        steps: as ``mammogram_steps`` gives them, or MONAI's ``mammogram_transforms``.
        assume_mammogram: as for ``process_mammogram``.

    Yields:
        The frame's number from 1, as DICOM counts, and what ``process_mammogram`` returns for it,
        or why this frame cannot be used. A file of one frame gives one sample, of number None.

    Raises:
        ImageError: the file cannot be used, whatever the frame.
    """
    if path.suffix.lower() in RASTER_SUFFIXES:
        yield None, process_mammogram(path, steps, assume_mammogram=assume_mammogram)
        return
    dataset = read_dataset(path)
    check_is_mammogram(dataset, assume_mammogram=assume_mammogram)
    check_frames(dataset)
    frames = number_of_frames(dataset)
    if frames == 1:
        yield None, _run({"image": OneFrame(dataset, None)}, steps)
        return
    for number in range(frames):
        try:
            yield number + 1, _run({"image": OneFrame(dataset, number)}, steps)
        except ImageError as error:
            yield number + 1, error


def _run(sample: dict[str, Any], steps: Steps) -> dict[str, Any]:
    try:
        # What is warned of a bad header says nothing that the manifest does not say better.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(steps(sample))
    except Exception as error:
        raise _image_error(error) from error


def _image_error(error: BaseException) -> ImageError:
    """The ImageError that MONAI wrapped into its RuntimeError, or one for whatever it was."""
    cause: BaseException | None = error
    root = error
    while cause is not None:
        if isinstance(cause, ImageError):
            return cause
        root = cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(root, MemoryError):
        return ImageError(Reason.DECODE_FAILED, "Memory ran out while the image was prepared.")
    return ImageError(
        Reason.UNREADABLE, f"The image could not be prepared ({type(root).__name__})."
    )


def _decode(
    header: Dataset, frames: Frames
) -> tuple[np.ndarray | StoredFrames, Dataset, dict[str, Any]]:
    """Stored values, the header that goes with them, and the facts ``decoder``, ``frame``."""
    several = number_of_frames(header) > 1
    if several and frames == Frames.MIP:
        stored = StoredFrames(header)
        return stored, header, {"decoder": stored.decoder, "frame": "mip"}
    middle = several and frames == Frames.MIDDLE
    return _decode_one(header, number_of_frames(header) // 2 if middle else None)


def _decode_one(header: Dataset, number: int | None) -> tuple[np.ndarray, Dataset, dict[str, Any]]:
    decoded = decode(header, number)
    if number is not None:
        # A header of its own, so that the next frame still finds the pixel data.
        header = header_of_frame(header, number)
    del header.PixelData
    taken = None if number is None else str(number + 1)
    return decoded.values[None], header, {"decoder": decoded.decoder, "frame": taken}


def _plain(facts: HeaderFields) -> dict[str, Any]:
    plain = asdict(facts)
    spacing = plain.pop("imager_pixel_spacing") or (None, None)
    modifiers = plain.pop("view_modifiers")
    return plain | {
        "laterality": None if facts.laterality is None else str(facts.laterality),
        "view_modifiers": ";".join(modifiers) or None,
        "imager_pixel_spacing_row": spacing[0],
        "imager_pixel_spacing_column": spacing[1],
    }


def _facts_of_raster(stored: np.ndarray) -> dict[str, Any]:
    nothing = HeaderFields(
        laterality=None,
        view=None,
        view_modifiers=(),
        rows=stored.shape[0],
        columns=stored.shape[1],
        number_of_frames=1,
        photometric_interpretation=None,
        imager_pixel_spacing=None,
        manufacturer=None,
        model=None,
        age=None,
        processing=None,
        burned_in_annotation=None,
        implant=None,
        phantom=None,
    )
    return _plain(nothing) | {"transfer_syntax": None, "decoder": "pillow", "frame": None}


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    long_side = max(pixels.shape)
    reduced = block_mean(pixels, max(long_side // (2 * THUMBNAIL_LONG_SIDE), 1))
    size = fitted_size(reduced.shape, min(THUMBNAIL_LONG_SIDE, max(reduced.shape)))
    return (area_average(reduced, size) / 257).astype(np.uint8)
