"""MONAI dictionary transforms from a file to a cropped, oriented mammogram and its pyramid.

Each wraps a function of `mammogram`, so it fits into any MONAI pipeline. Between them KEY holds a
(1, H, W) numpy array, since a ``MetaTensor`` of uint16 would have to be converted, and
``KEY_meta_dict`` what MONAI keeps in a ``MetaTensor``: the affine, and the columns of the manifest
that the file tells (never an identifier). MONAI's own ``ToMetaTensord`` joins the two.

The affine, (3, 3), maps (row, column, 1) of the array to mm on the detector, measured from the
centre of the top left pixel of the original frame. Cropping moves its origin, mirroring negates
the column's step and turning upright the row's, so a lesion can be found in the file from any
later transform. If the pixel spacing is unknown its unit is pixels of the original frame.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.config import KeysCollection
from monai.transforms import CastToTyped, Compose, DeleteItemsd, MapTransform, ToMetaTensord
from monai.utils.enums import PostFix

from mammo_pd.data.store import choose_pyramid_level
from mammo_pd.errors import ImageError, RefusedPixelsError
from mammo_pd.imaging.decode import StoredFrames
from mammo_pd.imaging.grey_scale import WHITE, GreyImage
from mammo_pd.imaging.orientation import turn_chest_wall_left
from mammo_pd.imaging.pyramid import build_pyramid
from mammo_pd.imaging.settings import STEPS, ImagingSettings
from mammo_pd.ingest.mammogram import crop_breast, draw_thumbnail, load_mammogram, to_grey_scale
from mammo_pd.terms import Frames, Reason, VoiPolicy
from mammo_pd.wording import percent

# Of the values of a step of one's own. A filter that overshoots at edges, as Lanczos does, leaves
# some; more than that is another scale.
_MOST_OUTSIDE = 0.05

Affine = npt.NDArray[np.float64]


class LoadMammogramd(MapTransform):
    """Read a file: the path, or ``DicomFrame``, under KEY becomes (1, H, W) stored values.

    With ``Frames.MIP`` a file of several frames becomes ``StoredFrames`` of shape (frames, H, W),
    which ``ApplyGreyScaled`` turns into one image.

    ``KEY_photometric_interpretation``, where there is one, says which of white and black is 0 in a
    file that is not DICOM. Adds ``KEY_meta_dict`` and ``KEY_header`` (a ``FileHeader``, for the
    grey scale; it hides what it holds from logs).
    """

    def __init__(
        self,
        keys: KeysCollection,
        frames: Frames = Frames.EXCLUDE,
        *,
        assume_mammogram: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        """Choose what to load.

        Args:
            keys: of the paths.
            frames: what to take from a file of several frames.
            assume_mammogram: accept files whose header lacks a Modality.
            allow_missing_keys: as in every MONAI dictionary transform.
        """
        super().__init__(keys, allow_missing_keys)
        self.frames = frames
        self.assume_mammogram = assume_mammogram

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load every key.

        Raises:
            ImageError: the file cannot be used; its reason says why. ``Compose`` wraps it in a
                RuntimeError, whose cause it is.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            loaded = load_mammogram(
                d[key],
                self.frames,
                assume_mammogram=self.assume_mammogram,
                photometric_interpretation=d.get(f"{key}_photometric_interpretation"),
            )
            stored = loaded.stored
            d[key] = stored if isinstance(stored, StoredFrames) else stored[None]
            spacing = loaded.tags.imager_pixel_spacing or (1.0, 1.0)
            d[PostFix.meta(key)] = {"affine": np.diag([*spacing, 1.0]), **loaded.columns()}
            d[header_key(key)] = loaded.header
        return d


class ApplyGreyScaled(MapTransform):
    """Turn stored values into (1, H, W) uint16 presentation values, black to white.

    Needs ``KEY_header``. Adds ``KEY_full_range``, (H, W): the same before any window.
    """

    def __init__(
        self,
        keys: KeysCollection,
        voi: VoiPolicy = VoiPolicy.AUTO,
        *,
        bits_stored: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        """Choose the grey scale.

        Args:
            keys: of the stored values.
            voi: which value-of-interest transformation to apply.
            bits_stored: bit depth of 16-bit files that are not DICOM; None for all 16.
            allow_missing_keys: as in every MONAI dictionary transform.
        """
        super().__init__(keys, allow_missing_keys)
        self.voi = voi
        self.bits_stored = bits_stored

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Apply to every key.

        Raises:
            ImageError: the header's grey scale cannot be applied.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            stored = d[key] if isinstance(d[key], StoredFrames) else np.asarray(d[key])[0]
            grey = to_grey_scale(
                stored,
                d[header_key(key)].dataset,
                self.voi,
                d[PostFix.meta(key)].get("photometric_interpretation"),
                self.bits_stored,
            )
            d[key] = grey.pixels[None]
            d[f"{key}_full_range"] = grey.full_range
            d[PostFix.meta(key)] = {**d[PostFix.meta(key)], "voi_applied": grey.voi_applied}
        return d


class AddThumbnaild(MapTransform):
    """Add ``KEY_thumbnail``: the image as (h, w) uint8 with a long side of at most 256 pixels."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add one for every key."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[f"{key}_thumbnail"] = draw_thumbnail(np.asarray(d[key])[0])
        return d


class ApplyOwnStepd(MapTransform):
    """Apply a step that a program has added (`mammo_pd.imaging.settings.STEPS`).

    It takes (1, H, W) uint16 and gives (1, H, W) values of 0 to 65535, whatever their type.
    """

    def __init__(self, key: str, name: str) -> None:
        """Make the step.

        Args:
            key: of the image.
            name: of the step.
        """
        super().__init__(key)
        self.name = name
        self.step = STEPS[name](key)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Apply it, and round to uint16.

        Raises:
            ImageError: it failed, or gave another shape or other values than those of an image.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            before = d[key]
            try:
                d = self.step(d)
                pixels = np.asarray(d[key])
            except ImageError:
                raise
            except Exception as error:
                # Not its text, which may hold a path.
                raise self._failed(f"ended in {type(error).__name__}") from error
            if pixels.shape != before.shape:
                raise self._failed(f"made {pixels.shape} of {before.shape}; the shape has to stay")
            if not np.isfinite(pixels).all():
                raise self._failed("made values that are no numbers (NaN or infinite)")
            if pixels.max() <= 1 < before.max():
                raise self._failed("made no value above 1; values are from 0 to 65535")
            outside = float(np.mean((pixels < 0) | (pixels > WHITE)))
            if outside > _MOST_OUTSIDE:
                raise self._failed(
                    f"made {percent(outside)} of its values lie outside 0 to {WHITE}, which would "
                    "be cut off"
                )
            d[key] = np.rint(pixels).clip(0, WHITE).astype(np.uint16)
        return d

    def _failed(self, how: str) -> ImageError:
        """Of a kind that the next run tries again: the step may have been mended meanwhile."""
        return ImageError(Reason.UNREADABLE, f"The step {self.name} {how}.")


class CropBreastd(MapTransform):
    """Crop to the breast and set what is not breast to 0.

    The breast is searched in ``KEY_full_range``, which is used up, or in the image if there is
    none. An image in which it is doubtful what is breast is kept whole; ``breast_verdict`` says so.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop every key.

        Raises:
            RefusedPixelsError: the image holds no breast (``no_breast_found``), or its grey scale
                leaves nothing of it (``constant_pixels``).
        """
        d = dict(data)
        for key in self.key_iterator(d):
            pixels = np.asarray(d[key])[0]
            meta = d[PostFix.meta(key)]
            full_range = d.pop(f"{key}_full_range", pixels)
            grey = GreyImage(pixels, full_range, meta["voi_applied"])
            row, _, column = meta.get("patient_orientation", "").partition("/")
            orientation = (row, column) if column else None
            try:
                crop = crop_breast(grey, meta.get("laterality"), orientation)
            except ImageError as error:
                drawn, header = d.get(f"{key}_thumbnail"), d.get(header_key(key))
                known = {} if header is None else header.identifiers
                raise RefusedPixelsError(error.reason, error.detail, drawn, known) from error
            box = crop.region.box
            d[key] = crop.pixels[None]
            d[PostFix.meta(key)] = {
                **meta,
                **crop.columns(),
                "affine": _cropped(meta["affine"], box.top, box.left),
            }
        return d


class OrientChestWallLeftd(MapTransform):
    """Mirror the image if ``CropBreastd`` found the chest wall on the right.

    And reverse its rows if Patient Orientation says that they run from the feet to the head.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Turn every key."""
        d = dict(data)
        for key in self.key_iterator(d):
            meta = d[PostFix.meta(key)]
            pixels = turn_chest_wall_left(np.asarray(d[key])[0], meta["image_side"])
            flipped = meta["image_side"] == "right"
            affine = _mirrored(meta["affine"], pixels.shape[1]) if flipped else meta["affine"]
            if meta["turned_upright"]:
                affine = _reversed(affine, pixels.shape[0])
                pixels = np.ascontiguousarray(pixels[::-1])
            d[key] = pixels[None]
            d[PostFix.meta(key)] = {**meta, "flipped": flipped, "affine": affine}
        return d


class BuildPyramidd(MapTransform):
    """Add ``KEY_pyramid``: (h, w) uint16 by the name of the level, ``native`` first."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Build one for every key."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[f"{key}_pyramid"] = build_pyramid(np.asarray(d[key])[0])
        return d


class TakeModelLeveld(MapTransform):
    """Put the pyramid level that a model reads under KEY: (1, h, w) float32, 0 to 65535.

    Needs ``KEY_pyramid``, which is used up.
    """

    def __init__(
        self, keys: KeysCollection, img_size: Sequence[int], *, allow_missing_keys: bool = False
    ) -> None:
        """Choose the level.

        Args:
            keys: of the images.
            img_size: (height, width) in pixels that the model sees.
            allow_missing_keys: as in every MONAI dictionary transform.
        """
        super().__init__(keys, allow_missing_keys)
        self.img_size = (int(img_size[0]), int(img_size[1]))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Take it for every key."""
        d = dict(data)
        for key in self.key_iterator(d):
            pyramid = d.pop(f"{key}_pyramid")
            height, width = pyramid["native"].shape
            level = choose_pyramid_level(height, width, self.img_size)
            d[key] = pyramid[level][None].astype(np.float32)
        return d


def model_transforms(
    img_size: Sequence[int],
    voi: str = "auto",
    frames: str = "exclude",
    bits_stored: int | None = None,
) -> Compose:
    """Compose the way from ``{"image": path}`` to what a model reads, as a MONAI bundle names it.

    Args:
        img_size: (height, width) in pixels that the model sees.
        voi: a `VoiPolicy`.
        frames: a `Frames`; of several frames each cannot be an image here.
        bits_stored: bit depth of 16-bit files that are not DICOM; None for all 16.

    Returns:
        ``image`` becomes (1, h, w) float32; no identifier is left beside it.
    """
    settings = ImagingSettings(VoiPolicy(voi), Frames(frames), bits_stored)
    steps = store_transforms(settings).transforms
    return Compose([*steps, TakeModelLeveld("image", img_size), DeleteItemsd("image_header")])


def mammogram_transforms(
    settings: ImagingSettings | None = None,
    *,
    key: str = "image",
    assume_mammogram: bool = False,
) -> Compose:
    """Compose the way from a file to a ``MetaTensor``, to put before transforms of your own.

    Args:
        settings: what decides the pixels.
        key: of the path, and then of the image.
        assume_mammogram: accept files whose header lacks a Modality.

    Returns:
        From ``{key: path}`` to ``{key: MetaTensor}``, (1, H, W) float32 over 0..65535, chest wall
        on the left; other keys are left alone. Its affine is described at the head of this module,
        ``meta`` holds those of the manifest's columns that are known, and no identifier.
    """
    return Compose(
        [
            *_from_file_to_crop(key, settings or ImagingSettings(), assume_mammogram),
            CastToTyped(key, np.float32),
            ToMetaTensord(key),
            DeleteItemsd(header_key(key)),
        ]
    )


def store_transforms(
    settings: ImagingSettings, *, thumbnail: bool = False, assume_mammogram: bool = False
) -> Compose:
    """Compose what ``preprocess`` runs: from ``{"image": path}`` to the pyramid.

    Args:
        settings: what decides the pixels.
        thumbnail: whether to add ``image_thumbnail``, of the whole frame.
        assume_mammogram: accept files whose header lacks a Modality.

    Returns:
        Adds ``image_pyramid``, ``image_meta_dict`` and ``image_header``. The image stays an array.
    """
    load, grey, *rest = _from_file_to_crop("image", settings, assume_mammogram)
    drawn = [AddThumbnaild("image")] if thumbnail else []
    return Compose([load, grey, *drawn, *rest, BuildPyramidd("image")])


def header_key(key: Hashable) -> str:
    """Where ``LoadMammogramd`` puts the ``FileHeader`` of an image."""
    return f"{key}_header"


def _from_file_to_crop(
    key: str, settings: ImagingSettings, assume_mammogram: bool
) -> list[MapTransform]:
    settings.refuse_unknown_steps()
    return [
        LoadMammogramd(key, settings.frames, assume_mammogram=assume_mammogram),
        ApplyGreyScaled(key, settings.voi, bits_stored=settings.bits_stored),
        *(ApplyOwnStepd(key, name) for name in settings.steps),
        CropBreastd(key),
        OrientChestWallLeftd(key),
    ]


def _cropped(affine: Affine, top: int, left: int) -> Affine:
    step: Affine = np.array([[1.0, 0, top], [0, 1, left], [0, 0, 1]])
    return np.asarray(affine @ step)


def _reversed(affine: Affine, height: int) -> Affine:
    # Row r of the upright image was row height - 1 - r.
    step: Affine = np.array([[-1.0, 0, height - 1], [0, 1, 0], [0, 0, 1]])
    return np.asarray(affine @ step)


def _mirrored(affine: Affine, width: int) -> Affine:
    # Column c of the mirrored image was column width - 1 - c.
    step: Affine = np.array([[1.0, 0, 0], [0, -1, width - 1], [0, 0, 1]])
    return np.asarray(affine @ step)
