"""From a batch of stored images to standardised kept patches: draw first, read only what is kept.

Shapes: B images, N patches on the grid, K of them kept, P the patch's side in pixels.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mammo_pd.batch import ImageBatch
from mammo_pd.config import AugmentSettings
from mammo_pd.errors import InputError
from mammo_pd.normalization import Normalization
from mammo_pd.patches.affine import affine_of, compose, draw_augmentation, fit_to_image_size
from mammo_pd.patches.draw import draw_grid, draw_tissue, draw_uniform, draw_windows
from mammo_pd.patches.intensity import change_intensity, intensity_of
from mammo_pd.patches.sample import probe_tissue, sample_patches
from mammo_pd.registry import Registry
from mammo_pd.terms import Draw, ScoredPatches
from mammo_pd.wording import counted

# A token more costs attention on a GPU a whole tile of them. With another number, models that are
# scored on tissue would give other scores than those that their thresholds were chosen on.
_TILE = 64


class Placement(NamedTuple):
    """How each image of a batch is moved and changed.

    Attributes:
        matrix: (B, 2, 3) float32, affine map from the model's input to the stored image.
        intensity: (B, 2) float32, gamma and contrast.
    """

    matrix: Tensor
    intensity: Tensor


class Kept(NamedTuple):
    """Which patches of a batch are read.

    Attributes:
        num_keep: K.
        keys: (B,) int64, which draw them.
        tissue_first: whether they are patches with breast before any air, whatever the draw.
    """

    num_keep: int
    keys: Tensor
    tissue_first: bool = False


def check_draw(draw: str, window: int | None, score_on: ScoredPatches = ScoredPatches.ALL) -> None:
    """Refuse patches that are not the same rows and columns of every window.

    Raises:
        InputError: they are not, and the model needs it.
    """
    if window is not None and score_on is not ScoredPatches.ALL:
        raise InputError(
            f"patch_dropout.score_on={score_on} chooses patches one by one, and this model reads "
            f"the same rows and columns of every window of {window}x{window}; leave it out."
        )
    if window is not None and draw != Draw.UNIFORM:
        raise InputError(
            f"--draw {draw} chooses patches one by one, and this model keeps the same rows and "
            f"columns of every window of {window}x{window}; give --draw uniform."
        )


class PatchSampler:
    """Reads the model's input out of stored images.

    `for_training` is `place`, `draw` and `read` in turn. They are public for objectives that read
    more than the kept patches, such as the pixels that a masked autoencoder is to predict. A draw
    of one's own is a subclass with another `draw`, and another `pixels_at` if its patches are not
    those of the grid, and a name for it in `DRAWS`. On a GPU both are replayed as part of a CUDA
    graph, as `mammo_pd.training.objectives.Objective` says of its own.

    Args:
        img_size: (height, width) in pixels that the model sees.
        patch_size: P, in pixels.
        normalization: of the result.
        draw: how the kept positions are drawn: a name in `DRAWS`.
        score_on: which patches are read to score an image.
        num_prefix: the backbone's tokens beside the patches, which fill tiles too.
        augment: how far training images are moved and changed.
        window: the backbone's: side of the windows of which the same rows and columns are kept;
            None for any positions.
        compiled: whether pixels are read by compiled code. The draws never are: torch.compile
            computes 64-bit integers differently on the CPU (docs/log.md), and a draw has to be the
            same everywhere.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int,
        *,
        normalization: Normalization | None = None,
        draw: str = Draw.UNIFORM,
        score_on: ScoredPatches = ScoredPatches.ALL,
        num_prefix: int = 0,
        augment: AugmentSettings | None = None,
        window: int | None = None,
        compiled: bool = False,
    ) -> None:
        check_draw(draw, window, score_on)
        self.img_size = img_size
        self.patch_size = patch_size
        self._normalization = normalization or Normalization()
        self._draw = draw
        self._score_on = score_on
        self._num_prefix = num_prefix
        self._window = window
        self._augment = augment or AugmentSettings()
        self._place: Callable[..., tuple[Tensor, Tensor]] = self._affine_and_intensity
        self._probe: Callable[..., Tensor] = probe_tissue
        self._read_changed: Callable[..., Tensor] = self._read_and_change
        self.compiled = compiled
        if compiled:
            self._place = torch.compile(self._affine_and_intensity)
            self._probe = torch.compile(probe_tissue)
            self._read_changed = torch.compile(self._read_and_change)

    @property
    def grid_size(self) -> tuple[int, int]:
        """The grid of patches, (rows, columns)."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @torch.no_grad()
    def for_training(
        self, images: ImageBatch, keys: Tensor, num_keep: int
    ) -> tuple[Tensor, Tensor]:
        """Kept patches of augmented images.

        Args:
            images: B stored images, on the device.
            keys: (B,) int64, from `mammo_pd.keyed_random.image_key`.
            num_keep: K, from the backbone's ``allowed_keep``.

        Returns:
            patches (B, K, P * P) float32, positions (B, K) int64.
        """
        placement = self.place(images, keys)
        positions = self._checked(self.draw(images, keys, placement, num_keep), keys, num_keep)
        return self.read(images, placement, positions), positions

    @torch.no_grad()
    def place(self, images: ImageBatch, keys: Tensor | None) -> Placement:
        """Draw each image's augmentation, or with None for keys none; no pixel is touched."""
        if keys is None:
            matrix = fit_to_image_size(images.heights, images.widths, self.img_size)
            return Placement(matrix, torch.ones_like(matrix[:, 0, :2]))
        drawn = draw_augmentation(keys)
        return Placement(*self._place(images.heights, images.widths, drawn))

    @torch.no_grad()
    def draw(self, images: ImageBatch, keys: Tensor, placement: Placement, num_keep: int) -> Tensor:
        """Draw the kept positions (B, K) int64; of pixels, only a tissue draw probes a few."""
        rows, columns = self.grid_size
        if self._window is not None and num_keep < rows * columns:
            return draw_windows(keys, self.grid_size, self._window, num_keep)
        if self._draw == Draw.TISSUE and num_keep < rows * columns:
            return draw_tissue(keys, self.tissue(images, placement), num_keep)
        if self._draw == Draw.GRID and num_keep < rows * columns:
            return draw_grid(keys, self.grid_size, num_keep)
        return draw_uniform(keys, rows * columns, num_keep)

    @torch.no_grad()
    def read(self, images: ImageBatch, placement: Placement, positions: Tensor) -> Tensor:
        """Read the patches at some positions (B, K): (B, K, P * P) float32, augmented."""
        return self._read_changed(
            self._of_any_size(images), placement.matrix, positions, placement.intensity
        )

    @torch.no_grad()
    def for_evaluation(self, images: ImageBatch, kept: Kept | None = None) -> tuple[Tensor, Tensor]:
        """Every patch of the images as they are, or for a cheaper look some of them.

        Args:
            images: B stored images, on the device.
            kept: which patches; None for all N.

        Returns:
            patches (B, K, P * P) float32, positions (B, K) int64; K is N by default.
        """
        placement = self.place(images, None)
        if kept is not None and kept.tissue_first:
            positions = draw_tissue(kept.keys, self.tissue(images, placement), kept.num_keep)
        elif kept is not None:
            drawn = self.draw(images, kept.keys, placement, kept.num_keep)
            positions = self._checked(drawn, kept.keys, kept.num_keep)
        else:
            rows, columns = self.grid_size
            positions = torch.arange(rows * columns, device=images.pixels.device)
            positions = positions.expand(len(images.heights), -1)
        return self._standardise(self.pixels_at(images, placement.matrix, positions)), positions

    @property
    def parts_differ(self) -> bool:
        """Whether images are scored on unequal numbers of patches."""
        return self._score_on is not ScoredPatches.ALL

    @torch.no_grad()
    def parts_to_score(
        self, images: ImageBatch, at_once: int | None = None
    ) -> Iterator[tuple[ImageBatch, Kept | None]]:
        """The batch in parts of as many patches each, and which these are: None for all N.

        On tissue alone, an image's patches with breast are read, and air up to a whole tile of
        tokens, which costs no more with it. How many does not depend on the images beside it, so
        neither does its score. The host waits for the device to count them.

        Args:
            images: B stored images, on the device.
            at_once: no part has more patches than so many images have in all; None for B.
        """
        if not self.parts_differ:
            yield images, None
            return
        most = (at_once or len(images)) * math.prod(self.grid_size)
        counts = self.tissue(images).sum(dim=1).tolist()
        num_keep = [self._whole_tiles(count) for count in counts]
        for kept in sorted(set(num_keep)):
            places = [place for place, own in enumerate(num_keep) if own == kept]
            size = max(1, most // kept)
            for start in range(0, len(places), size):
                part = images.take(places[start : start + size])
                # Of all images the same: nothing of a score may depend on chance.
                keys = torch.zeros(len(part), dtype=torch.int64, device=images.pixels.device)
                yield part, Kept(kept, keys, tissue_first=True)

    def _whole_tiles(self, count: int) -> int:
        tiles = math.ceil((count + self._num_prefix) / _TILE)
        return min(math.prod(self.grid_size), max(1, tiles) * _TILE - self._num_prefix)

    @torch.no_grad()
    def tissue(self, images: ImageBatch, placement: Placement | None = None) -> Tensor:
        """Which patches hold breast, from a few pixels of each: (B, N) bool.

        Args:
            images: B stored images, on the device.
            placement: of the images; None for the images as they are.
        """
        placed = placement or self.place(images, None)
        return self._probe(
            self._of_any_size(images), placed.matrix, self.grid_size, self.patch_size
        )

    def pixels_at(self, images: ImageBatch, matrix: Tensor, positions: Tensor) -> Tensor:
        """The pixels at some positions (B, K), as they are: (B, K, P * P) float32 in [0, 1]."""
        pixels = sample_patches(images, matrix, positions, self.grid_size[1], self.patch_size)
        return pixels / 65535

    def _of_any_size(self, images: ImageBatch) -> ImageBatch:
        """The same images, which code for any number of pixels is to read, from the first batch on.

        No two batches have equally many.
        """
        if self.compiled:
            torch._dynamo.maybe_mark_dynamic(images.pixels, 0)
        return images

    def _checked(self, positions: Tensor, keys: Tensor, num_keep: int) -> Tensor:
        """Refuse a draw of another shape; its values are on the device, and stay unread."""
        if positions.shape != (len(keys), num_keep):
            raise InputError(
                f"{type(self).__qualname__}.draw gives positions of shape "
                f"{tuple(positions.shape)} for {counted(len(keys), 'image')} of which "
                f"{counted(num_keep, 'patch', 'patches')} are to be kept; give ({len(keys)}, "
                f"{num_keep})."
            )
        return positions

    def _affine_and_intensity(
        self, heights: Tensor, widths: Tensor, drawn: Tensor
    ) -> tuple[Tensor, Tensor]:
        fit = fit_to_image_size(heights, widths, self.img_size)
        matrix = compose(fit, affine_of(drawn, self.img_size, self._augment))
        return matrix, intensity_of(drawn, self._augment)

    def _read_and_change(
        self, images: ImageBatch, matrix: Tensor, positions: Tensor, intensity: Tensor
    ) -> Tensor:
        pixels = self.pixels_at(images, matrix, positions)
        return self._standardise(change_intensity(pixels, intensity))

    def _standardise(self, pixels: Tensor) -> Tensor:
        return (pixels - self._normalization.mean) / self._normalization.std


DRAWS: Registry[str, type[PatchSampler]] = Registry(
    "DRAWS", {str(draw): PatchSampler for draw in Draw}
)
"""The class that draws so, by the name that ``--draw`` gives; a program may add its own."""


def sampler_class(draw: str) -> type[PatchSampler]:
    """The class that draws so.

    Raises:
        InputError: there is none of that name.
    """
    found = DRAWS.get(draw)
    if found is None:
        raise InputError(
            f"there is no draw {draw!r}; choose one of {', '.join(DRAWS)}; a draw of your own "
            "exists only in the program that adds it (docs/extending.md)."
        )
    return found
