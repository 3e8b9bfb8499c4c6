"""MONAI dictionary transforms from a file to a cropped, turned mammogram and its pyramid.

Thin around the steps of ``pipeline``, so that each can be taken into another MONAI pipeline; what
they keep beside the image stands there.
"""

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform

from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.ingest import pipeline
from mammo_pd.terms import Frames, VoiPolicy


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
            pipeline.load(sample, key, self.frames)
        return sample


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
            pipeline.to_grey_scale(sample, key, self.voi)
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
            pipeline.crop_to_breast(sample, key, thumbnail=self.thumbnail)
        return sample


class OrientChestWallLeftd(MapTransform):
    """Mirror the image where the chest wall lies on the right; adds the fact ``flipped``."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Turn every key."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            pipeline.turn(sample, key)
        return sample


class BuildPyramidd(MapTransform):
    """Add ``KEY_levels``: native and the long sides of the pyramid as (h, w) uint16."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Build for every key."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            pipeline.add_levels(sample, key)
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
