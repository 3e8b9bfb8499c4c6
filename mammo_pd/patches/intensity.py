"""Gamma and contrast, on the kept patches' pixels alone."""

import math

import torch
from torch import Tensor

from mammo_pd.config import AugmentSettings


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
