"""MONAI dictionary transforms from a file to a cropped, turned mammogram and its pyramid.

Thin around the pure functions of this package, so that each can be taken into another MONAI
pipeline. Beside the image they keep, for the key ``image``: ``image_facts`` (what the manifest
wants, plain values), ``image_identifiers`` (original identifiers: never to be written but to the
owner-only record), and at the end ``image_levels`` and, where wanted, ``image_thumbnail``.
"""

import warnings
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform
from pydicom.dataset import Dataset

from mammo_pd.errors import ImageError
from mammo_pd.imaging.breast import find_breast
from mammo_pd.imaging.dicom import StoredFrames, check_frames, decode, read_dataset
from mammo_pd.imaging.geometry import (
    area_average,
    block_mean,
    build_pyramid,
    fitted_size,
    turn_chest_wall_left,
)
from mammo_pd.imaging.grey_scale import apply_grey_scale, brightest, stretch_raster
from mammo_pd.imaging.header import (
    HeaderFacts,
    check_is_mammogram,
    header_of_frame,
    number_of_frames,
    read_facts,
    read_identifiers,
)
from mammo_pd.imaging.raster import RASTER_SUFFIXES, read_raster
from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.terms import Frames, Laterality, Reason, VoiPolicy

THUMBNAIL_LONG_SIDE = 256


@dataclass(frozen=True)
class OneFrame:
    """One frame of a file that has been read, and found to be a mammogram.

    Attributes:
        dataset: the whole file, as ``read_dataset`` gives it.
        number: which frame, from 0; None where the file holds one.
    """

    dataset: Dataset
    number: int | None


class LoadMammogramd(MapTransform):
    """Read a file: the path, or ``OneFrame``, under the key becomes (1, H, W) stored values.

    Of a file of several frames it takes what ``frames`` says; with ``mip`` they are
    ``StoredFrames`` of shape (frames, H, W), and ``ApplyGreyScaled`` takes the maximum. ``each``
    gives several images of one file, so there ``OneFrame`` says which (``process_each_frame``).
    The fact ``frame`` says what was taken: the frame's number from 1, as DICOM counts, or ``mip``;
    None for a single frame.

    Adds ``KEY_facts``, ``KEY_identifiers`` and ``KEY_header`` (the DICOM dataset without its pixel
    data, for the grey scale; None for a raster file). ``KEY_assume_mammogram``, where given and
    true, says that a missing Modality is no obstacle.
    """

    def __init__(self, keys: KeysCollection, frames: Frames = Frames.EXCLUDE) -> None:
        super().__init__(keys)
        self.frames = frames

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load every key.

        Raises:
            ImageError: the file cannot be used; its reason says why.
        """
        sample = dict(data)
        for key in self.key_iterator(sample):
            given = sample[key]
            path = None if isinstance(given, OneFrame) else Path(given)
            assume = bool(sample.pop(f"{key}_assume_mammogram", False))
            if path is not None and path.suffix.lower() in RASTER_SUFFIXES:
                raster = read_raster(path)
                sample[key] = raster[None]
                sample[f"{key}_facts"] = _facts_of_raster(raster)
                sample[f"{key}_identifiers"] = {}
                sample[f"{key}_header"] = None
            else:
                if path is None:
                    sample[key], header, facts = self._decode_one(given.dataset, given.number)
                else:
                    header = read_dataset(path)
                    check_is_mammogram(header, assume_mammogram=assume)
                    sample[key], header, facts = self._decode(header)
                facts |= _plain(read_facts(header)) | {
                    "transfer_syntax": str(header.file_meta.TransferSyntaxUID),
                    "rows": sample[key].shape[1],
                    "columns": sample[key].shape[2],
                }
                sample[f"{key}_facts"] = facts
                sample[f"{key}_identifiers"] = read_identifiers(header)
                sample[f"{key}_header"] = header
        return sample

    def _decode(self, header: Dataset) -> tuple[np.ndarray | StoredFrames, Dataset, dict[str, Any]]:
        """Stored values, the header that goes with them, and the facts ``decoder``, ``frame``."""
        several = number_of_frames(header) > 1
        if several and self.frames == Frames.MIP:
            frames = StoredFrames(header)
            return frames, header, {"decoder": frames.decoder, "frame": "mip"}
        middle = several and self.frames == Frames.MIDDLE
        return self._decode_one(header, number_of_frames(header) // 2 if middle else None)

    def _decode_one(
        self, header: Dataset, number: int | None
    ) -> tuple[np.ndarray, Dataset, dict[str, Any]]:
        decoded = decode(header, number)
        if number is not None:
            # A header of its own, so that the next frame still finds the pixel data.
            header = header_of_frame(header, number)
        del header.PixelData
        taken = None if number is None else str(number + 1)
        return decoded.values[None], header, {"decoder": decoded.decoder, "frame": taken}


class ApplyGreyScaled(MapTransform):
    """Turn (1, H, W) stored values into (1, H, W) uint16 presentation values, black to white.

    Several frames become their maximum, each in its own grey scale. Uses up ``KEY_header``; adds
    ``KEY_full_range`` (the same before any window, (H, W)) and the fact ``voi_applied``.
    """

    def __init__(self, keys: KeysCollection, voi: VoiPolicy = VoiPolicy.AUTO) -> None:
        super().__init__(keys)
        self.voi = voi

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Apply to every key."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            header = sample.pop(f"{key}_header")
            stored = sample[key]
            if header is None:
                grey = stretch_raster(stored[0])
            elif isinstance(stored, StoredFrames):
                grey = brightest(
                    apply_grey_scale(frame, header_of_frame(header, number), self.voi)
                    for number, frame in enumerate(stored)
                )
            else:
                grey = apply_grey_scale(stored[0], header, self.voi)
            sample[key] = grey.pixels[None]
            sample[f"{key}_full_range"] = grey.full_range
            sample[f"{key}_facts"] = sample[f"{key}_facts"] | {"voi_applied": grey.voi_applied}
        return sample


class CropBreastd(MapTransform):
    """Crop to the breast and set what is not breast to 0.

    Uses up ``KEY_full_range``; adds, where wanted, ``KEY_thumbnail`` (the full frame, uint8, long
    side 256) and the facts crop_top, crop_left, crop_height, crop_width, image_side (where the
    chest wall lies: as seen, or as the laterality tag says where the verdict is doubtful),
    breast_verdict, breast_area_fraction, breast_solidity and laterality_agrees (None where it
    cannot be told).
    """

    def __init__(self, keys: KeysCollection, *, thumbnail: bool = False) -> None:
        super().__init__(keys)
        self.thumbnail = thumbnail

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop every key.

        Raises:
            ImageError: the image holds no breast (``no_breast_found``), or its grey scale leaves
                nothing of it (``constant_pixels``).
        """
        sample = dict(data)
        for key in self.key_iterator(sample):
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
            if self.thumbnail:
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
        return sample


class OrientChestWallLeftd(MapTransform):
    """Mirror the image where the chest wall lies on the right; adds the fact ``flipped``."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Turn every key."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            facts = sample[f"{key}_facts"]
            side = facts["image_side"]
            sample[key] = turn_chest_wall_left(sample[key][0], side)[None]
            sample[f"{key}_facts"] = facts | {"flipped": side == "right"}
        return sample


class BuildPyramidd(MapTransform):
    """Add ``KEY_levels``: native and the long sides of the pyramid as (h, w) uint16."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Build for every key."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            sample[f"{key}_levels"] = build_pyramid(sample[key][0])
        return sample


def mammogram_transforms(settings: ImagingSettings, *, thumbnail: bool = False) -> Compose:
    """Compose the whole way from ``{"image": path}`` to the pyramid.

    Args:
        settings: what decides the pixels.
        thumbnail: whether a small picture of the whole frame is wanted.
    """
    return Compose(
        [
            LoadMammogramd("image", settings.frames),
            ApplyGreyScaled("image", settings.voi),
            CropBreastd("image", thumbnail=thumbnail),
            OrientChestWallLeftd("image"),
            BuildPyramidd("image"),
        ]
    )


def process_mammogram(
    path: Path, transforms: Compose, *, assume_mammogram: bool = False
) -> dict[str, Any]:
    """Run one file through the transforms.

    Args:
        path: the file.
        transforms: as ``mammogram_transforms`` gives them.
        assume_mammogram: the user's own table names the file, so a missing Modality is no
            obstacle.

    Returns:
        ``image`` (1, h, w) uint16, ``image_levels``, ``image_facts``, ``image_identifiers``
        and, where the transforms make it, ``image_thumbnail`` ((h, w) uint8, the full frame).

    Raises:
        ImageError: the image cannot be used. Nothing else is raised for a bad file.
    """
    return _run({"image": path, "image_assume_mammogram": assume_mammogram}, transforms)


def process_each_frame(
    path: Path, transforms: Compose, *, assume_mammogram: bool = False
) -> Iterator[tuple[int | None, dict[str, Any] | ImageError]]:
    """Run every frame of a file through the transforms, one at a time; the file is read once.

    Args:
        path: the file.
        transforms: as ``mammogram_transforms`` gives them.
        assume_mammogram: as for ``process_mammogram``.

    Yields:
        The frame's number from 1, as DICOM counts, and what ``process_mammogram`` returns for it,
        or why this frame cannot be used. A file of one frame gives one sample, of number None.

    Raises:
        ImageError: the file cannot be used, whatever the frame.
    """
    if path.suffix.lower() in RASTER_SUFFIXES:
        yield None, process_mammogram(path, transforms, assume_mammogram=assume_mammogram)
        return
    dataset = read_dataset(path)
    check_is_mammogram(dataset, assume_mammogram=assume_mammogram)
    check_frames(dataset)
    frames = number_of_frames(dataset)
    if frames == 1:
        yield None, _run({"image": OneFrame(dataset, None)}, transforms)
        return
    for number in range(frames):
        try:
            yield number + 1, _run({"image": OneFrame(dataset, number)}, transforms)
        except ImageError as error:
            yield number + 1, error


def _run(sample: dict[str, Any], transforms: Compose) -> dict[str, Any]:
    try:
        # What is warned of a bad header says nothing that the manifest does not say better.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(transforms(sample))
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


def _plain(facts: HeaderFacts) -> dict[str, Any]:
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
    nothing = HeaderFacts(
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
