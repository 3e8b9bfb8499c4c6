"""Augmentation that touches kept patches only: one affine read of the pixels, then their intensity.

In go stored images of any size, kept positions and each image's random key; out come the pixels of
the kept patches and of nothing else. A dropped patch is never read.

Shapes: B images, K kept patches, P the patch's side in pixels. Canvas coordinates are (row, column)
in pixels, and the centre of the first pixel is at (0.5, 0.5).

Affine maps go from the canvas to the stored image, so each output pixel is read once:
``source = matrix[:, :2] @ (row, column) + matrix[:, 2]``.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mammo_pd.models.patch_dropout import uniform

_STREAM = 1
# A patch is probed at so many pixels along each side.
_PROBES = 4


class RaggedImages(NamedTuple):
    """Images of different sizes, end to end in one buffer, so that a batch holds no padding.

    Attributes:
        pixels: (sum of height x width,) int16, a view of uint16: CUDA cannot index uint16.
        offsets: (B,) int64, where each image starts in ``pixels``.
        heights: (B,) int64, pixels.
        widths: (B,) int64, pixels.
    """

    pixels: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor


@dataclass(frozen=True)
class AugmentSettings:
    """How far training images are moved and changed; all zeros changes nothing.

    Attributes:
        horizontal_flip: probability of mirroring left to right. The store turns every chest wall
            to the left, so 0 keeps that.
        vertical_flip: probability of mirroring top to bottom.
        rotation_degrees: largest rotation either way.
        scale: largest relative change of size, 0.1 for 0.9 to 1.1.
        shift: largest shift, as a share of the canvas's side.
        gamma: largest power either way, 0.2 for exponents between 1/1.2 and 1.2.
        contrast: largest relative change of the grey values' scale. Air stays 0.
    """

    horizontal_flip: float = 0.0
    vertical_flip: float = 0.5
    rotation_degrees: float = 15.0
    scale: float = 0.1
    shift: float = 0.05
    gamma: float = 0.2
    contrast: float = 0.2

    def __post_init__(self) -> None:
        for name in ("horizontal_flip", "vertical_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a probability in [0, 1]")
        if not 0 <= self.rotation_degrees <= 180:
            raise ValueError(f"rotation_degrees is {self.rotation_degrees}; allowed is 0 to 180")
        for name in ("scale", "shift", "contrast"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed is 0 to below 1")
        if self.gamma < 0:
            raise ValueError(f"gamma is {self.gamma}; allowed is 0 and above")


def fit_canvas(heights: Tensor, widths: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Affine maps that place each whole image in the canvas at its natural aspect ratio.

    The image is as large as fits, flush with the left edge (the chest wall) and centred from top to
    bottom.

    Args:
        heights: (B,) pixels of the stored images.
        widths: (B,) pixels.
        canvas: (height, width) in pixels.

    Returns:
        (B, 2, 3) float32, canvas to stored image.
    """
    height, width = heights.float(), widths.float()
    step = torch.maximum(height / canvas[0], width / canvas[1])
    matrix = torch.zeros(len(heights), 2, 3, device=heights.device)
    matrix[:, 0, 0] = step
    matrix[:, 1, 1] = step
    matrix[:, 0, 2] = (height - canvas[0] * step) / 2
    return matrix


def draw_augmentation(keys: Tensor) -> Tensor:
    """Draw the numbers that `affine_of` and `intensity_of` are made from.

    Args:
        keys: (B,) int64, from `mammo_pd.models.patch_dropout.image_key`.

    Returns:
        (B, 8) float32 in [0, 1).
    """
    return uniform(keys, 8, _STREAM)


def affine_of(drawn: Tensor, canvas: tuple[int, int], settings: AugmentSettings) -> Tensor:
    """Each image's flip, rotation, scale and shift about the centre of the canvas.

    Args:
        drawn: (B, 8), from `draw_augmentation`.
        canvas: (height, width) in pixels.
        settings: how far.

    Returns:
        (B, 2, 3) float32, canvas to canvas.
    """
    flip_row = 1 - 2 * (drawn[:, 0] < settings.vertical_flip).float()
    flip_column = 1 - 2 * (drawn[:, 1] < settings.horizontal_flip).float()
    angle = (2 * drawn[:, 2] - 1) * math.radians(settings.rotation_degrees)
    zoom = 1 + (2 * drawn[:, 3] - 1) * settings.scale
    shift = (2 * drawn[:, 4:6] - 1) * settings.shift
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    linear = torch.stack(
        [
            torch.stack([flip_row * cosine, -flip_row * sine], dim=1),
            torch.stack([flip_column * sine, flip_column * cosine], dim=1),
        ],
        dim=1,
    )
    # In scalars: a tensor made of them on the host would have to wait for the device.
    moved_row, moved_column = canvas[0] * (0.5 + shift[:, 0]), canvas[1] * (0.5 + shift[:, 1])
    offset_row = canvas[0] / 2 - linear[:, 0, 0] * moved_row - linear[:, 0, 1] * moved_column
    offset_column = canvas[1] / 2 - linear[:, 1, 0] * moved_row - linear[:, 1, 1] * moved_column
    return torch.cat([linear, torch.stack([offset_row, offset_column], dim=1)[:, :, None]], dim=2)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The affine map ``outer(inner(x))``; all (B, 2, 3)."""
    linear = outer[:, :, :2] @ inner[:, :, :2]
    offset = outer[:, :, :2] @ inner[:, :, 2:] + outer[:, :, 2:]
    return torch.cat([linear, offset], dim=2)


def sample_patches(
    images: RaggedImages,
    matrix: Tensor,
    positions: Tensor,
    grid_width: int,
    patch_size: int,
) -> Tensor:
    """Read the kept patches' pixels through an affine map, bilinearly; outside the image is air.

    Args:
        images: B stored images.
        matrix: (B, 2, 3) float32, canvas to stored image.
        positions: (B, K) int64, raster order on the patch grid.
        grid_width: patches in one row of the grid.
        patch_size: P.

    Returns:
        (B, K, P * P) float32 in [0, 65535], each patch's pixels in raster order.
    """
    side = torch.arange(patch_size, device=positions.device, dtype=torch.float32) + 0.5
    row = (positions // grid_width * patch_size)[:, :, None] + side
    column = (positions % grid_width * patch_size)[:, :, None] + side
    # (B, K, P, 1) and (B, K, 1, P): the map is linear, so the two parts are added at the end.
    row, column = row[:, :, :, None], column[:, :, None, :]
    m = matrix[:, :, :, None, None, None]
    source_row = m[:, 0, 0] * row + m[:, 0, 1] * column + (m[:, 0, 2] - 0.5)
    source_column = m[:, 1, 0] * row + m[:, 1, 1] * column + (m[:, 1, 2] - 0.5)

    top, left = torch.floor(source_row), torch.floor(source_column)
    down, right = source_row - top, source_column - left
    top, left = top.long(), left.long()
    height = images.heights[:, None, None, None]
    width = images.widths[:, None, None, None]
    offset = images.offsets[:, None, None, None]

    def read(row: Tensor, column: Tensor) -> Tensor:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = torch.where(inside, offset + row * width + column, 0)
        value = (images.pixels[index].to(torch.int32) & 0xFFFF).float()
        return torch.where(inside, value, 0.0)

    above = read(top, left) * (1 - right) + read(top, left + 1) * right
    below = read(top + 1, left) * (1 - right) + read(top + 1, left + 1) * right
    return (above * (1 - down) + below * down).flatten(2)


def probe_tissue(
    images: RaggedImages, matrix: Tensor, grid_size: tuple[int, int], patch_size: int
) -> Tensor:
    """Tell which patches hold breast, from a few pixels of each: air is 0 in the store.

    Args:
        images: B stored images.
        matrix: (B, 2, 3) float32, canvas to stored image.
        grid_size: patches on the canvas, (rows, columns); N is their product.
        patch_size: P.

    Returns:
        (B, N) bool: whether any of 4x4 evenly spaced pixels of the patch, each the nearest of the
        image, is above 0.
    """
    device = matrix.device
    step = patch_size / _PROBES

    def along(count: int) -> Tensor:
        return (torch.arange(count * _PROBES, device=device, dtype=torch.float32) + 0.5) * step

    row, column = along(grid_size[0])[None, :, None], along(grid_size[1])[None, None, :]
    m = matrix[:, :, :, None, None]
    source_row = torch.floor(m[:, 0, 0] * row + m[:, 0, 1] * column + m[:, 0, 2]).long()
    source_column = torch.floor(m[:, 1, 0] * row + m[:, 1, 1] * column + m[:, 1, 2]).long()
    height, width = images.heights[:, None, None], images.widths[:, None, None]
    inside = (source_row >= 0) & (source_row < height)
    inside &= (source_column >= 0) & (source_column < width)
    index = images.offsets[:, None, None] + source_row * width + source_column
    bright = inside & (images.pixels[torch.where(inside, index, 0)] != 0)
    probes = bright.view(-1, grid_size[0], _PROBES, grid_size[1], _PROBES)
    return probes.any(dim=4).any(dim=2).flatten(1)


def intensity_of(drawn: Tensor, settings: AugmentSettings) -> Tensor:
    """Each image's gamma and contrast.

    Args:
        drawn: (B, 8), from `draw_augmentation`.
        settings: how far.

    Returns:
        (B, 2) float32: an exponent and a factor.
    """
    draw = 2 * drawn[:, 6:] - 1
    exponent = torch.exp(draw[:, 0] * math.log1p(settings.gamma))
    return torch.stack([exponent, 1 + draw[:, 1] * settings.contrast], dim=1)


def change_intensity(pixels: Tensor, change: Tensor) -> Tensor:
    """Apply gamma and contrast to the pixels given; air stays 0.

    Args:
        pixels: (B, K, P * P) float32 in [0, 1].
        change: (B, 2), from `intensity_of`.

    Returns:
        (B, K, P * P) float32 in [0, 1].
    """
    exponent, factor = change[:, 0, None, None], change[:, 1, None, None]
    return (pixels.pow(exponent) * factor).clamp(0, 1)
