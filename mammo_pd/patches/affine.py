"""Affine maps from the model's input frame to the stored image: placement and augmentation.

Coordinates are (row, column) in pixels, and the centre of the first pixel is at (0.5, 0.5). A map
goes from output to source, so each output pixel is read once:
``source = matrix[:, :2] @ (row, column) + matrix[:, 2]``.
"""

import math

import torch
from torch import Tensor

from mammo_pd.config import AugmentSettings
from mammo_pd.keyed_random import uniform

_STREAM = 1


def fit_to_image_size(heights: Tensor, widths: Tensor, img_size: tuple[int, int]) -> Tensor:
    """Affine maps that place each whole image in the model's input at its natural aspect ratio.

    The image is as large as fits, flush with the left edge (the chest wall) and centred from top to
    bottom.

    Args:
        heights: (B,) pixels of the stored images.
        widths: (B,) pixels.
        img_size: (height, width) in pixels.

    Returns:
        (B, 2, 3) float32, input to stored image.
    """
    height, width = heights.float(), widths.float()
    step = torch.maximum(height / img_size[0], width / img_size[1])
    matrix = torch.zeros(len(heights), 2, 3, device=heights.device)
    matrix[:, 0, 0] = step
    matrix[:, 1, 1] = step
    matrix[:, 0, 2] = (height - img_size[0] * step) / 2
    return matrix


def draw_augmentation(keys: Tensor) -> Tensor:
    """Draw the numbers that `affine_of` and `intensity_of` are made from.

    Args:
        keys: (B,) int64, from `mammo_pd.keyed_random.image_key`.

    Returns:
        (B, 8) float32 in [0, 1).
    """
    return uniform(keys, 8, _STREAM)


def affine_of(drawn: Tensor, img_size: tuple[int, int], settings: AugmentSettings) -> Tensor:
    """Each image's flip, rotation, scale and shift about the centre of the input.

    Args:
        drawn: (B, 8), from `draw_augmentation`.
        img_size: (height, width) in pixels.
        settings: how far.

    Returns:
        (B, 2, 3) float32, input to input.
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
    moved_row, moved_column = img_size[0] * (0.5 + shift[:, 0]), img_size[1] * (0.5 + shift[:, 1])
    offset_row = img_size[0] / 2 - linear[:, 0, 0] * moved_row - linear[:, 0, 1] * moved_column
    offset_column = img_size[1] / 2 - linear[:, 1, 0] * moved_row - linear[:, 1, 1] * moved_column
    return torch.cat([linear, torch.stack([offset_row, offset_column], dim=1)[:, :, None]], dim=2)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The affine map ``outer(inner(x))``; all (B, 2, 3)."""
    linear = outer[:, :, :2] @ inner[:, :, :2]
    offset = outer[:, :, :2] @ inner[:, :, 2:] + outer[:, :, 2:]
    return torch.cat([linear, offset], dim=2)
