"""timm's `SwinTransformer` on kept patches: the same rows and columns of every window.

The kept patches form a smaller grid, on which timm's own blocks run with smaller windows: of n x n
tokens, where a window of w x w patches keeps n of its rows and n of its columns. Their relative
position biases are those of their places on the whole grid.

Shapes: B images, (R, C) a stage's grid of kept tokens, of which a window holds (n, m), D its width.

Source: Liu, Matsoukas, Strand, Azizpour, Smith, "PatchDropout: Economizing Vision Transformers
Using Patch Dropout", WACV 2023, arXiv 2208.07220, section 3 (structured sampling). docs/models.md
says where the code released with it does something else.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mammo_pd.backbones.base import (
    Backbone,
    ModelShape,
    StageShape,
    apply_in_full,
    compile_each,
    linear_weights,
)
from mammo_pd.backbones.columnar import reason_against_embedding
from mammo_pd.errors import InputError
from mammo_pd.keep_schedule import choose_rows_kept
from mammo_pd.wording import percent


@dataclass(frozen=True)
class _Windows:
    """How one block cuts the grid of kept tokens into windows.

    Attributes:
        size: tokens of a window, (n, m).
        shift: by how many tokens the windows are shifted, (rows, columns).
        count: windows of an image.
        mask: (count, n * m, n * m) float32, 0 or -100; None for windows that are not shifted.
        bias_index: (B, n * m, n * m) int64, rows of the block's table of relative position biases.
    """

    size: tuple[int, int]
    shift: tuple[int, int]
    count: int
    mask: Tensor | None
    bias_index: Tensor


class _KeptWindowAttention(WindowAttention):  # type: ignore[misc]
    """timm's attention with, where it is set, an index of biases for each image."""

    kept: tuple[Tensor, int] | None = None

    def _get_rel_pos_bias(self) -> Tensor:
        """(1, H, T, T), or for each window of each image (B * windows, H, T, T)."""
        if self.kept is None:
            return super()._get_rel_pos_bias()  # type: ignore[no-any-return]
        index, windows = self.kept
        # index_select: its backward pass adds up without the sort that indexing by a tensor needs.
        bias = self.relative_position_bias_table.index_select(0, index.flatten())
        bias = bias.view(*index.shape, -1).permute(0, 3, 1, 2)  # (B, H, T, T)
        # Windows come image by image, so each image's bias is repeated for all of its own.
        return bias[:, None].expand(-1, windows, -1, -1, -1).flatten(0, 1)  # type: ignore[no-any-return]


class SwinBackbone(Backbone):
    """Positions enter by the relative position bias, which is gathered for the kept patches.

    With every patch kept, timm's blocks run as they are, padding included.
    """

    def __init__(self, timm_model: SwinTransformer) -> None:
        super().__init__(timm_model)
        for block in self._each_block():
            # The attention keeps its weights and their names.
            block.attn.__class__ = _KeptWindowAttention
        self._masks: dict[tuple[object, ...], Tensor] = {}

    @staticmethod
    def reason_against(timm_model: Any) -> str | None:
        """Say what of patch embedding, windows or pooling stands in the way."""
        reason = reason_against_embedding(timm_model)
        sides = _window_sides(timm_model)
        if reason is None and len(sides) > 1:
            reason = (
                f"has windows of {' and '.join(map(str, sorted(sides)))} patches a side, and the "
                "same rows and columns can be kept in windows of one size only"
            )
        return reason

    @property
    def window(self) -> int:
        """The side of a window, in patches."""
        return max(_window_sides(self.timm_model))

    @property
    def num_prefix(self) -> int:
        """There are no class or register tokens."""
        return 0

    @property
    def embed_dim(self) -> int:
        """D of the last stage."""
        return int(self.timm_model.num_features)

    @property
    def shape(self) -> ModelShape:
        """What determines the cost of the model."""
        model = self.timm_model
        stages = [
            StageShape(
                merged=4**number,
                width=int(stage.blocks[0].dim),
                depth=len(stage.blocks),
                heads=int(stage.blocks[0].attn.num_heads),
                token_macs=linear_weights(stage),
                pair_macs=sum(2 * block.attn.proj.in_features for block in stage.blocks),
            )
            for number, stage in enumerate(model.layers)
        ]
        return ModelShape(
            name=str(model.pretrained_cfg["architecture"]),
            width=stages[0].width,
            depth=sum(stage.depth for stage in stages),
            heads=stages[0].heads,
            patch_size=self.patch_size,
            num_prefix=0,
            parameters=sum(weight.numel() for weight in model.layers.parameters()),
            token_macs=stages[0].token_macs,
            pair_macs=stages[0].pair_macs,
            class_token_alone=False,
            window=self.window,
            stages=tuple(stages),
        )

    def allowed_keep(self, keep_rate: float) -> int:
        """Return K: n rows and n columns of every window, n so that K / N is nearest the rate.

        Raises:
            InputError: n would be 1, or the grid is no whole number of windows.
            ValueError: ``keep_rate`` is not in (0, 1].
        """
        kept = choose_rows_kept(self.window, keep_rate)
        if kept == self.window:
            return self.num_tokens
        rows, columns = self.grid_size
        if rows % self.window or columns % self.window:
            unit = self.window * self.patch_size
            raise InputError(
                f"patches can be dropped from whole windows only, of {unit}x{unit} pixels, and "
                f"{rows * self.patch_size}x{columns * self.patch_size} is not a whole number of "
                f"them; choose multiples of {unit} pixels, or keep every patch (--keep 1)."
            )
        return rows * columns // self.window**2 * kept**2

    def describe_keep(self, keep_rate: float) -> str | None:
        """Say which rows and columns are kept, and which share of the patches they hold."""
        kept = choose_rows_kept(self.window, keep_rate)
        if kept == self.window:
            return None if keep_rate == 1 else f"keep {keep_rate:g}: every patch is kept"
        return (
            f"keep {keep_rate:g}: the same {kept} of {self.window} rows and columns of every "
            f"window, {percent(kept**2 / self.window**2)} of the patches"
        )

    def embed(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Project kept patches: (B, K, P * P) to (B, K, D) of the first stage."""
        embedding = self.timm_model.patch_embed
        x = F.linear(patches, embedding.proj.weight.flatten(1), embedding.proj.bias)
        return embedding.norm(x)  # type: ignore[no-any-return]

    def forward_features(
        self, tokens: Tensor, positions: Tensor, keys: Tensor | None = None
    ) -> Tensor:
        """Run the stages and the final norm.

        Args:
            tokens: (B, K, D) of the first stage, from `embed`.
            positions: (B, K) int64, of the same rows and columns of every window, in raster order.
            keys: (B,) int64; see `Backbone.forward_features`.

        Returns:
            (B, T, D) of the last stage, whose tokens are merged from many of the first.
        """
        self.draw_paths(keys)
        kept, (rows, columns) = self._kept_of(positions.shape[1])
        x = tokens.view(len(tokens), rows, columns, -1)
        places = positions.view(-1, rows, columns)
        width = self.grid_size[1]
        rows_kept, columns_kept = places[:, :, 0] // width, places[:, 0] % width
        for number, stage in enumerate(self.timm_model.layers):
            x = stage.downsample(x)
            # A merged token stands where the first of its rows and columns does.
            step = 2**number
            at = rows_kept[:, ::step] // step, columns_kept[:, ::step] // step
            for block, cut in zip(
                stage.blocks, self._windows_of(stage.blocks, kept, at), strict=True
            ):
                if stage.grad_checkpointing:
                    x = checkpoint(_run_block, block, x, cut, use_reentrant=False)
                else:
                    x = _run_block(block, x, cut)
        return self.timm_model.norm(x).flatten(1, 2)  # type: ignore[no-any-return]

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool the tokens as timm's head does: (B, T, D) to (B, D)."""
        return self.timm_model.head.global_pool(tokens[:, :, None])  # type: ignore[no-any-return]

    def head(self, pooled: Tensor) -> Tensor:
        """Apply timm's linear head: (B, D) to (B, num_outputs)."""
        head = self.timm_model.head
        return apply_in_full(head.fc, head.drop(pooled))

    def compile_blocks(self) -> None:
        """Compile the embedding, the merging of patches and the blocks.

        Each size by itself: the stages share the blocks' code, and code for any size of them all
        took 90 s a block to compile on an H200.
        """
        self._embed = torch.compile(self._embed)
        merging = [stage.downsample for stage in self.timm_model.layers]
        compile_each([*merging, *self._each_block()], dynamic=False)

    def _each_block(self) -> Iterator[SwinTransformerBlock]:
        return (block for stage in self.timm_model.layers for block in stage.blocks)

    def _kept_of(self, num_keep: int) -> tuple[int, tuple[int, int]]:
        """The rows kept of each window, and the grid of the kept patches, from K."""
        rows, columns = self.grid_size
        if num_keep == rows * columns:
            return self.window, (rows, columns)
        # Of whole windows, as `allowed_keep` sees to.
        kept = math.isqrt(num_keep * self.window**2 // (rows * columns))
        grid = rows // self.window * kept, columns // self.window * kept
        if kept < 2 or grid[0] * grid[1] != num_keep:
            raise ValueError(f"{num_keep} patches are not the same rows and columns of windows")
        return kept, grid

    def _windows_of(
        self, blocks: Any, kept: int, at: tuple[Tensor, Tensor]
    ) -> list[_Windows | None]:
        """Cut one stage's grid for each of its blocks; None leaves a block its own windows.

        Blocks that are cut alike share what is computed.

        Args:
            blocks: of the stage.
            kept: rows and columns that a window keeps.
            at: rows (B, R) and columns (B, C) of the whole stage's grid that the kept tokens stand
                in, int64.
        """
        if kept == self.window:
            return [None] * len(blocks)
        shared: dict[tuple[object, ...], _Windows] = {}
        for block in blocks:
            alike = (block.window_size, block.shift_size)
            if alike not in shared:
                shared[alike] = self._cut(block, kept, at)
        return [shared[block.window_size, block.shift_size] for block in blocks]

    def _cut(self, block: Any, kept: int, at: tuple[Tensor, Tensor]) -> _Windows:
        grid = at[0].shape[1], at[1].shape[1]
        # A stage whose whole grid is a window has no other, and none that is shifted.
        size = min(kept, grid[0]), min(kept, grid[1])
        shift = tuple(_share(side, kept, self.window) for side in block.shift_size)
        offsets = []
        for of_axis, side, moved, whole in zip(at, size, shift, block.window_size, strict=True):
            first = of_axis[:, :side]
            # The first rows of a shifted window are the last of one, the others of the next.
            row = torch.cat([first[:, moved:], first[:, :moved] + whole], dim=1)
            offsets.append(row[:, :, None] - row[:, None, :] + (whole - 1))
        down, right = offsets
        index = down[:, :, None, :, None] * (2 * block.window_size[1] - 1)
        index = index + right[:, None, :, None, :]
        return _Windows(
            size=size,
            shift=(shift[0], shift[1]),
            count=math.prod(-(-length // side) for length, side in zip(grid, size, strict=True)),
            mask=self._mask(block, grid, size, (shift[0], shift[1]), at[0].device),
            bias_index=index.reshape(len(index), size[0] * size[1], -1),
        )

    def _mask(
        self,
        block: Any,
        grid: tuple[int, int],
        size: tuple[int, int],
        shift: tuple[int, int],
        device: torch.device,
    ) -> Tensor | None:
        """Timm's own mask for windows of another size; kept, since it is the same in each step."""
        if not any(shift):
            return None
        key = (grid, size, shift, device)
        if key not in self._masks:
            padded = (-(-length // side) * side for length, side in zip(grid, size, strict=True))
            with _as_cut(block, size, shift):
                self._masks[key] = block.get_attn_mask(torch.empty(1, *padded, 1, device=device))
        return self._masks[key]


def _window_sides(timm_model: Any) -> set[int]:
    """The sides of the windows that a model was made with."""
    # Absent in older versions of timm, whose blocks know the windows of the image size alone.
    given = getattr(timm_model, "_ref_window_sizes", None)
    if given is None:
        first = max(timm_model.layers[0].blocks[0].window_size)
        given = [
            # A grid smaller than a window is a window itself.
            (first if side == whole < first else side,)
            for stage in timm_model.layers
            for block in stage.blocks
            for side, whole in zip(block.window_size, block.input_resolution, strict=True)
        ]
    return {int(side) for size in given for side in size}


def _share(shift: int, kept: int, window: int) -> int:
    """The shift of windows that keep ``kept`` rows of ``window``, rounded half up."""
    return (2 * shift * kept + window) // (2 * window)


def _run_block(block: Any, x: Tensor, windows: _Windows | None) -> Tensor:
    """Run timm's block on (B, R, C, D), cut into other windows than its own unless None."""
    if windows is None:
        return block(x)  # type: ignore[no-any-return]
    with _as_cut(block, windows.size, windows.shift):
        block.attn_mask = windows.mask
        block.attn.kept = (windows.bias_index, windows.count)
        return block(x)  # type: ignore[no-any-return]


@contextmanager
def _as_cut(block: Any, size: tuple[int, int], shift: tuple[int, int]) -> Iterator[None]:
    """Give timm's block other windows, and its own back at the end."""
    own = block.window_size, block.shift_size, block.window_area, block.attn_mask
    block.window_size, block.shift_size, block.window_area = size, shift, size[0] * size[1]
    try:
        yield
    finally:
        block.window_size, block.shift_size, block.window_area, block.attn_mask = own
        block.attn.kept = None
