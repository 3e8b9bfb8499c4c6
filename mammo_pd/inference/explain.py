"""Pictures for the report's errors: the stored image, what the model attended to, the lesion."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageOps

from mammo_pd.backbones.base import Backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.errors import InputError
from mammo_pd.imaging.pyramid import area_average, fitted_size
from mammo_pd.inference.predict import Scored
from mammo_pd.inference.saliency import attention_rollout, refuse_other_attention
from mammo_pd.inference.score import scoring_sampler
from mammo_pd.patches.affine import fit_to_image_size
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.terms import Split

_LONG_SIDE = 320
_HEAT = (255, 120, 0)
_MARK = (0, 225, 255)
_STRONGEST = 0.7
# Roll-out's work grows with the square of the patches: a few seconds an image up to here.
_MOST_PATCHES_ON_CPU = 2048
# How label tables place a lesion: down, across, radius.
_SPELLINGS = (("lesion_row", "lesion_column", "lesion_radius"), ("y_from_bottom", "x", "radius"))


@dataclass(frozen=True)
class LesionMark:
    """A circle around a lesion.

    Attributes:
        row: of the centre, in pixels; 0 is the centre of the first row.
        column: of the centre, in pixels; 0 is the centre of the first column.
        radius: in pixels.
    """

    row: float
    column: float
    radius: float


def lesion_in_stored_frame(image: Mapping[str, Any]) -> LesionMark | None:
    """Where the label table says a lesion lies, in the image as the store has it.

    Two spellings are read, both in pixels of the native frame: ``lesion_row, lesion_column,
    lesion_radius`` (row 0 at the top; as the phantoms are written), and ``x, y_from_bottom,
    radius`` (mini-MIAS: the origin is the lower left corner).

    Args:
        image: a row of the manifest: one of the two, ``rows``, ``crop_top, crop_left, crop_height,
            crop_width``, ``flipped`` and, if known, ``turned_upright``.

    Returns:
        The mark in the stored frame at its native size (it may lie beyond the crop), or None where
        the row tells of no lesion.

    Source: the mini-MIAS README (x, y, radius).
    """
    for names in _SPELLINGS:
        down, across, radius = (_number(image.get(name)) for name in names)
        if down is None or across is None or radius is None:
            continue
        row = image["rows"] - 1 - down if "y_from_bottom" in names else down
        column = across - image["crop_left"]
        row -= image["crop_top"]
        if image["flipped"]:
            column = image["crop_width"] - 1 - column
        if image.get("turned_upright") is True:  # missing in older stores
            row = image["crop_height"] - 1 - row
        return LesionMark(float(row), float(column), radius)
    return None


def draw_pictures(
    pixels: npt.NDArray[np.uint16],
    heat: npt.NDArray[np.float32] | None,
    lesion: LesionMark | None,
    *,
    mirror: bool = False,
) -> tuple[bytes, ...]:
    """Draw an image, and the same with heat over it; the lesion is ringed in both.

    Args:
        pixels: (h, w) uint16.
        heat: (h, w) float32 in [0, 1], how deeply each pixel is coloured; None for the image alone.
        lesion: in pixels of this image.
        mirror: turn left and right round, once all is drawn.

    Returns:
        One or, with heat, two PNG files of ``h`` rows and ``w`` columns; no more than 256 colours.
    """
    grey = np.repeat((pixels >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    views = [grey]
    if heat is not None:
        depth = _STRONGEST * heat[:, :, None]
        coloured = grey * (1 - depth) + np.array(_HEAT, np.float32) * depth
        views.append((coloured + 0.5).astype(np.uint8))
    pictures = []
    for view in views:
        picture = Image.fromarray(view)
        if lesion is not None:
            _ring(picture, lesion)
        if mirror:
            picture = ImageOps.mirror(picture)
        # A quarter of the bytes: dozens of these lie in one page.
        file = BytesIO()
        picture.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        pictures.append(file.getvalue())
    return tuple(pictures)


def heat_on_image(
    shares: npt.NDArray[np.float32],
    image_size: tuple[int, int],
    size: tuple[int, int],
    img_size: tuple[int, int],
) -> npt.NDArray[np.float32]:
    """Lay the patches' shares of the attention over an image.

    Args:
        shares: (rows, columns) of the patch grid.
        image_size: (height, width) of the stored level that the model read.
        size: (height, width) of the picture of the same image.
        img_size: (height, width) in pixels.

    Returns:
        ``size`` float32 in [0, 1]: 0 is the median share of the patches on the image, 1 the
        highest one. Each pixel has the value of the patch it lies in.
    """
    sides = torch.tensor([[image_size[0]], [image_size[1]]])
    step, _, top, _, _, left = fit_to_image_size(sides[0], sides[1], img_size)[0].flatten().tolist()
    index = []
    for cells, side, shown, offset, length in zip(
        shares.shape, image_size, size, (top, left), img_size, strict=True
    ):
        centres = (np.arange(shown) + 0.5) * (side / shown)
        on_input = (centres - offset) / step
        index.append(np.clip((on_input * cells / length).astype(int), 0, cells - 1))
    laid: npt.NDArray[np.float32] = shares[np.ix_(index[0], index[1])]
    low, high = float(np.median(laid)), float(laid.max())
    heat = np.zeros(size, np.float32)
    if high > low:
        heat[:] = np.clip((laid - low) / (high - low), 0, 1)
    return heat


def attention_heat(
    backbone: Backbone, sampler: PatchSampler, image: ImageBatch, size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Lay attention roll-out over an image.

    Args:
        backbone: in evaluation mode, on its device.
        sampler: of its input size.
        image: a batch of one, at the level that the model reads.
        size: (height, width) of the picture of it.

    Returns:
        As `heat_on_image`.
    """
    parameter = next(backbone.parameters())
    ((image, kept),) = sampler.parts_to_score(image.to(parameter.device))
    patches, positions = sampler.for_evaluation(image, kept)
    shares = attention_rollout(backbone, patches.to(parameter.dtype), positions)
    # Patches that are not read have no share.
    of_patches = shares.new_zeros(backbone.num_tokens)
    of_patches[positions[0]] = shares[0, -positions.shape[1] :]
    of_patches = of_patches.reshape(backbone.grid_size)
    shape = (int(image.heights[0]), int(image.widths[0]))
    return heat_on_image(of_patches.cpu().numpy(), shape, size, sampler.img_size)


def refuse_unexplained(backbone: Backbone) -> None:
    """Check that roll-out is defined for a model, and takes no minutes an image.

    Raises:
        InputError: it is not, or does.
    """
    refuse_other_attention(backbone)
    _refuse_too_slow(backbone)


class ErrorPictures:
    """Makes the pictures of scored images, one when it is asked for.

    Args:
        scored: of one run, or of each fold's run; an image is explained by the model that it is
            judged by.
    """

    def __init__(self, scored: Sequence[Scored]) -> None:
        self._by: dict[str, Scored] = {}
        for one in scored:
            judged = one.table if len(scored) == 1 else one.table[one.table["split"] == Split.TEST]
            self._by |= dict.fromkeys(judged["image_id"], one)
        self._images = pd.concat([one.images for one in scored]).drop_duplicates("image_id")
        self._images = self._images.set_index("image_id", drop=False)
        try:
            for one in scored:
                refuse_unexplained(one.backbone)
            self._unexplained: str | None = None
        except InputError as error:
            self._unexplained = str(error)

    @property
    def legend(self) -> str:
        """What the pictures show, in a few sentences for the reader."""
        said = "Images are shown as acquired, not mirrored."
        if self._unexplained is None:
            said += (
                " Open where the model looked for attention roll-out over the image: the deeper "
                "the orange, the more of the attention leads back to that patch. There is none at "
                "the median of the image and below, and it is deepest at the image's own highest "
                "value, so colours of two images cannot be compared. It shows where attention "
                "flowed, not what spoke for or against."
            )
        else:
            said += f" Where the model looked is not shown: {self._unexplained}"
        if any({*names} <= {*self._images.columns} for names in _SPELLINGS):
            said += " A ring, where there is one, is the lesion as the label table places it."
        return said

    def __call__(self, image_id: str) -> tuple[bytes, ...]:
        """PNG files of one image, long side 320 pixels; none where it was not scored here.

        The image as it was acquired, then the same with attention roll-out, if there is any.
        """
        one = self._by.get(image_id)
        if one is None:
            return ()
        height, width = one.info.img_size
        rows = self._images.loc[[image_id]]
        stored = MammogramDataset(one.cohort.paths, rows, (height, width)).read([0])
        shape = (int(stored.heights[0]), int(stored.widths[0]))
        pixels = stored.pixels.numpy().view(np.uint16).reshape(shape)
        size = fitted_size(shape, _LONG_SIDE) if max(shape) > _LONG_SIDE else shape
        heat = None
        if self._unexplained is None:
            sampler = scoring_sampler(
                one.backbone, (height, width), one.info.normalization, one.score_on
            )
            heat = attention_heat(one.backbone, sampler, stored, size)
        image = {str(name): value for name, value in rows.iloc[0].items()}
        lesion = lesion_in_stored_frame(image)
        if lesion is not None:
            scale = size[0] / image["crop_height"]
            lesion = LesionMark(
                (lesion.row + 0.5) * scale - 0.5,
                (lesion.column + 0.5) * scale - 0.5,
                lesion.radius * scale,
            )
        # The store has every chest wall on the left; radiologists have the right breast's on the
        # right.
        mirror = bool(image["flipped"])
        return draw_pictures(area_average(pixels, size), heat, lesion, mirror=mirror)


def _refuse_too_slow(model: Backbone) -> None:
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and model.num_tokens > _MOST_PATCHES_ON_CPU:
        raise InputError(
            f"attention roll-out over {model.num_tokens} patches takes minutes per image on a CPU; "
            "evaluate on a GPU to see it."
        )


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _ring(tile: Image.Image, lesion: LesionMark) -> None:
    """A light ring on a dark one, seen on any grey, and clear of what it surrounds."""
    draw = ImageDraw.Draw(tile)
    for radius, width, colour in ((lesion.radius + 5, 4, (0, 0, 0)), (lesion.radius + 4, 2, _MARK)):
        draw.ellipse(
            (
                lesion.column - radius,
                lesion.row - radius,
                lesion.column + radius,
                lesion.row + radius,
            ),
            outline=colour,
            width=width,
        )
