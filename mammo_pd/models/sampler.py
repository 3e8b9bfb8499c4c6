"""From a batch of stored images to standardised kept patches: draw, then read only what is kept."""

import torch
from torch import Tensor

from mammo_pd.models.augment import (
    AugmentSettings,
    RaggedImages,
    change_intensity,
    compose,
    draw_affine,
    draw_intensity,
    fit_canvas,
    sample_patches,
)
from mammo_pd.models.patch_dropout import count_kept, draw_uniform


class PatchSampler:
    """Makes the model's input for one canvas.

    Args:
        canvas: (height, width) in pixels that the model sees.
        patch_size: P, in pixels.
        mean: grey value, of 0 to 1, that becomes 0.
        std: grey values to one unit.
        compiled: read the pixels by compiled code. The draws never are: compilers take liberties
            with overflowing integers, and a draw is to be the same everywhere.
    """

    def __init__(
        self,
        canvas: tuple[int, int],
        patch_size: int,
        *,
        mean: float = 0.5,
        std: float = 0.5,
        compiled: bool = False,
    ) -> None:
        self.canvas = canvas
        self.patch_size = patch_size
        self._mean = mean
        self._std = std
        self._read_changed = torch.compile(self._read_and_change) if compiled else None

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches on the canvas, (rows, columns)."""
        return self.canvas[0] // self.patch_size, self.canvas[1] // self.patch_size

    @torch.no_grad()
    def for_training(
        self, images: RaggedImages, keys: Tensor, keep_rate: float, augment: AugmentSettings
    ) -> tuple[Tensor, Tensor]:
        """Kept patches of augmented images.

        Args:
            images: B stored images, on the device.
            keys: (B,) int64, from `mammo_pd.models.patch_dropout.image_key`.
            keep_rate: share of the patches that is kept.
            augment: how far images are moved and changed.

        Returns:
            patches (B, K, P * P) float32, positions (B, K) int64.
        """
        rows, columns = self.grid_size
        positions = draw_uniform(keys, rows * columns, count_kept(rows * columns, keep_rate))
        fit = fit_canvas(images.heights, images.widths, self.canvas)
        matrix = compose(fit, draw_affine(keys, self.canvas, augment))
        read = self._read_changed or self._read_and_change
        return read(images, matrix, positions, draw_intensity(keys, augment)), positions

    @torch.no_grad()
    def for_evaluation(self, images: RaggedImages) -> tuple[Tensor, Tensor]:
        """All patches of the images as they are: evaluation drops and draws nothing.

        Args:
            images: B stored images, on the device.

        Returns:
            patches (B, N, P * P) float32, positions (B, N) int64.
        """
        rows, columns = self.grid_size
        positions = torch.arange(rows * columns, device=images.pixels.device)
        positions = positions.expand(len(images.heights), -1)
        matrix = fit_canvas(images.heights, images.widths, self.canvas)
        return self._standardise(self._read(images, matrix, positions)), positions

    def _read_and_change(
        self, images: RaggedImages, matrix: Tensor, positions: Tensor, intensity: Tensor
    ) -> Tensor:
        pixels = self._read(images, matrix, positions)
        return self._standardise(change_intensity(pixels, intensity))

    def _read(self, images: RaggedImages, matrix: Tensor, positions: Tensor) -> Tensor:
        pixels = sample_patches(images, matrix, positions, self.grid_size[1], self.patch_size)
        return pixels / 65535

    def _standardise(self, pixels: Tensor) -> Tensor:
        return (pixels - self._mean) / self._std
