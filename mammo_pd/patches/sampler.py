"""From a batch of stored images to standardised kept patches: draw, then read only what is kept."""

from collections.abc import Callable

import torch
from torch import Tensor

from mammo_pd.batch import ImageBatch
from mammo_pd.config import AugmentSettings
from mammo_pd.patches.affine import affine_of, compose, draw_augmentation, fit_to_image_size
from mammo_pd.patches.draw import draw_grid, draw_tissue, draw_uniform
from mammo_pd.patches.intensity import change_intensity, intensity_of
from mammo_pd.patches.sample import probe_tissue, sample_patches
from mammo_pd.terms import Draw


class PatchSampler:
    """Makes the model's input for one canvas.

    Args:
        img_size: (height, width) in pixels that the model sees.
        patch_size: P, in pixels.
        mean: grey value, of 0 to 1, that becomes 0.
        std: grey values to one unit.
        draw: how the kept positions are drawn.
        augment: how far training images are moved and changed.
        compiled: read pixels by compiled code. The draws never are: compilers take liberties with
            large integers (docs/log.md), and a draw is to be the same everywhere.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int,
        *,
        mean: float = 0.5,
        std: float = 0.5,
        draw: Draw = Draw.UNIFORM,
        augment: AugmentSettings | None = None,
        compiled: bool = False,
    ) -> None:
        self.img_size = img_size
        self.patch_size = patch_size
        self._mean = mean
        self._std = std
        self._draw = draw
        self._augment = augment or AugmentSettings()
        self._place: Callable[..., tuple[Tensor, Tensor]] = self._affine_and_intensity
        self._probe: Callable[..., Tensor] = probe_tissue
        self._read_changed: Callable[..., Tensor] = self._read_and_change
        if compiled:
            self._place = torch.compile(self._affine_and_intensity)
            self._probe = torch.compile(probe_tissue)
            self._read_changed = torch.compile(self._read_and_change)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches on the canvas, (rows, columns)."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @torch.no_grad()
    def for_training(
        self, images: ImageBatch, keys: Tensor, num_keep: int
    ) -> tuple[Tensor, Tensor]:
        """Kept patches of augmented images.

        Args:
            images: B stored images, on the device.
            keys: (B,) int64, from `mammo_pd.keyed_random.image_key`.
            num_keep: K, from `mammo_pd.keep_schedule.choose_num_keep`.

        Returns:
            patches (B, K, P * P) float32, positions (B, K) int64.
        """
        drawn = draw_augmentation(keys)
        matrix, intensity = self._place(images.heights, images.widths, drawn)
        positions = self._draw_positions(images, keys, matrix, num_keep)
        return self._read_changed(images, matrix, positions, intensity), positions

    @torch.no_grad()
    def for_evaluation(self, images: ImageBatch) -> tuple[Tensor, Tensor]:
        """All patches of the images as they are: evaluation drops and draws nothing.

        Args:
            images: B stored images, on the device.

        Returns:
            patches (B, N, P * P) float32, positions (B, N) int64.
        """
        rows, columns = self.grid_size
        positions = torch.arange(rows * columns, device=images.pixels.device)
        positions = positions.expand(len(images.heights), -1)
        matrix = fit_to_image_size(images.heights, images.widths, self.img_size)
        return self._standardise(self._read(images, matrix, positions)), positions

    @torch.no_grad()
    def tissue(self, images: ImageBatch) -> Tensor:
        """Which patches of the images as they are hold breast: (B, N) bool."""
        matrix = fit_to_image_size(images.heights, images.widths, self.img_size)
        return probe_tissue(images, matrix, self.grid_size, self.patch_size)

    def _affine_and_intensity(
        self, heights: Tensor, widths: Tensor, drawn: Tensor
    ) -> tuple[Tensor, Tensor]:
        fit = fit_to_image_size(heights, widths, self.img_size)
        matrix = compose(fit, affine_of(drawn, self.img_size, self._augment))
        return matrix, intensity_of(drawn, self._augment)

    def _draw_positions(
        self, images: ImageBatch, keys: Tensor, matrix: Tensor, num_keep: int
    ) -> Tensor:
        rows, columns = self.grid_size
        if self._draw is Draw.TISSUE and num_keep < rows * columns:
            tissue = self._probe(images, matrix, self.grid_size, self.patch_size)
            return draw_tissue(keys, tissue, num_keep)
        if self._draw is Draw.GRID and num_keep < rows * columns:
            return draw_grid(keys, self.grid_size, num_keep)
        return draw_uniform(keys, rows * columns, num_keep)

    def _read_and_change(
        self, images: ImageBatch, matrix: Tensor, positions: Tensor, intensity: Tensor
    ) -> Tensor:
        pixels = self._read(images, matrix, positions)
        return self._standardise(change_intensity(pixels, intensity))

    def _read(self, images: ImageBatch, matrix: Tensor, positions: Tensor) -> Tensor:
        pixels = sample_patches(images, matrix, positions, self.grid_size[1], self.patch_size)
        return pixels / 65535

    def _standardise(self, pixels: Tensor) -> Tensor:
        return (pixels - self._mean) / self._std
