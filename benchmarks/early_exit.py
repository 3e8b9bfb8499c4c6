"""A trial: patches are drawn in favour of what an early exit finds salient in a first look.

The first look reads every second pixel of the image and runs the first blocks on it, without
gradient. A linear exit on the mean of its tokens learns the image's label; what it says of a token
gives the patches below it their weights in the draw. Nothing of it is in the package;
`ideas_draws.py` trains and measures it.

Shapes: B images, N patches of the grid, K of them kept, C patches of the coarse grid, each of which
covers 2x2 of the N; D the width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mammo_pd.backbones.base import Backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import TrainingSettings
from mammo_pd.keyed_random import hashed
from mammo_pd.patches.affine import compose
from mammo_pd.patches.sampler import PatchSampler, Placement
from mammo_pd.training.objectives.binary_label import BinaryLabel

# Blocks that the first look runs through.
_DEPTH = 3
# Pixels of the input between two that it reads, along each side.
_COARSER = 2
# Of a patch's weight in the draw that is the same for all tissue.
_UNIFORM_SHARE = 0.5
# Of the exit's loss. AdamW does not care for it, and the clipping of gradients would: the exit is
# not to slow the rest down.
_EXIT_LOSS = 0.01
# The largest rank that tissue can have is below 75.
_AIR_LAST = 1e3


def draw_weighted(keys: Tensor, tissue: Tensor, salience: Tensor, num_keep: int) -> Tensor:
    """Draw K positions for each image, tissue first, without replacement and by weight.

    The first of the draws takes a patch with a probability in proportion to its weight, the next
    one of those that are left, and so on. With equal salience it is the tissue draw itself,
    position by position.

    Args:
        keys: (B,) int64, from `mammo_pd.keyed_random.image_key`.
        tissue: (B, N) bool, whether each patch holds breast.
        salience: (B, N) float; standardised over each image's tissue before it is used.
        num_keep: K.

    Returns:
        (B, K) int64 positions in [0, N), without repeats, ascending.

    Source: Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir": the lowest of
    exponential numbers of these rates, which are the highest of Gumbel numbers around their logs.
    """
    salience = salience.double()
    count = tissue.sum(dim=1, keepdim=True).clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return values.masked_fill(~tissue, 0.0).sum(dim=1, keepdim=True) / count

    centred = salience - mean(salience)
    scaled = centred / (mean(centred**2).sqrt() + 1e-6)
    favoured = scaled.masked_fill(~tissue, -torch.inf).softmax(dim=1).nan_to_num(0.0) * count
    weight = (_UNIFORM_SHARE + (1 - _UNIFORM_SHARE) * favoured).masked_fill(~tissue, 1.0)
    number = (hashed(keys, tissue.shape[1], stream=0).double() + 0.5) / (1 << 53)
    rank = -torch.log1p(-number) / weight + _AIR_LAST * ~tissue
    return rank.argsort(dim=1, stable=True)[:, :num_keep].sort(dim=1).values


def first_look(timm_model: Any, grid_size: tuple[int, int], patches: Tensor) -> Tensor:
    """Tokens of the coarse patches after the first blocks, each normalised: (B, C, D) float32.

    Args:
        timm_model: a `VisionTransformer` with one prefix token.
        grid_size: of the N patches, (rows, columns).
        patches: (B, C, P * P), all of the coarse grid in raster order.
    """
    projection, place = timm_model.patch_embed.proj, timm_model.pos_embed
    x = F.linear(patches, projection.weight.flatten(1), projection.bias)
    # Where a coarse patch lies: the mean of the places that it covers.
    grid = place[:, 1:].transpose(1, 2).unflatten(2, grid_size)
    coarse = F.avg_pool2d(grid, _COARSER, ceil_mode=True, count_include_pad=False)
    x = x + coarse.flatten(2).transpose(1, 2)
    front = timm_model.cls_token + place[:, :1]
    x = timm_model.norm_pre(torch.cat([front.expand(len(x), -1, -1), x], dim=1))
    for block in timm_model.blocks[:_DEPTH]:
        # Without stochastic depth, and not the blocks' own compiled code, which is for other sizes.
        x = x + block.ls1(block.attn(block.norm1(x)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return F.layer_norm(x[:, 1:].float(), x.shape[-1:])


class EarlyExit(nn.Module):
    """A backbone with an exit after the first blocks, of which evaluation knows nothing.

    Args:
        backbone: a timm `VisionTransformer` with one prefix token.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        assert backbone.plain_attention and backbone.num_prefix == 1
        self.backbone = backbone
        self.exit = nn.Linear(backbone.embed_dim, 1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)
        rows, columns = (-(-side // _COARSER) for side in backbone.grid_size)
        self.coarse_grid = rows, columns
        self._reader = self._make_reader(compiled=False)
        self._look: Callable[..., Tensor] = first_look

    def compile_blocks(self) -> None:
        """Compile the first look; the backbone compiles its own."""
        self._reader = self._make_reader(compiled=True)
        self._look = torch.compile(first_look, dynamic=False)

    @torch.no_grad()
    def look(
        self, images: ImageBatch, placement: Placement, tissue: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take the first look.

        Args:
            images: B stored images, on the device.
            placement: of the images, as the kept patches will be read.
            tissue: (B, N) bool, whether each patch holds breast.

        Returns:
            (B, N) float32, the exit's score of each patch; and (B, D) float32, the mean over the
            tissue's tokens, which the exit learns from.
        """
        rows, columns = self.coarse_grid
        coarser = placement.matrix.new_zeros(len(tissue), 2, 3)
        coarser[:, 0, 0] = coarser[:, 1, 1] = _COARSER
        seen = Placement(compose(placement.matrix, coarser), placement.intensity)
        positions = torch.arange(rows * columns, device=tissue.device).expand(len(tissue), -1)
        patches = self._reader.read(images, seen, positions)
        # As training at bf16-mixed does; on a CPU training is in float32.
        with torch.autocast(tissue.device.type, torch.bfloat16, enabled=tissue.is_cuda):
            tokens = self._look(self.backbone.timm_model, self.backbone.grid_size, patches)
        held = tissue.unflatten(1, self.backbone.grid_size)[:, None].float()
        held = F.max_pool2d(held, _COARSER, ceil_mode=True).flatten(1)[:, :, None]
        mean = (tokens * held).sum(dim=1) / held.sum(dim=1).clamp(min=1)
        score = F.linear(tokens, self.exit.weight)[:, :, 0].unflatten(1, (rows, columns))
        score = score.repeat_interleave(_COARSER, dim=1).repeat_interleave(_COARSER, dim=2)
        height, width = self.backbone.grid_size
        return score[:, :height, :width].flatten(1), mean

    def forward(self, patches: Tensor, positions: Tensor, *training: Tensor) -> Tensor:
        """Compute the head's outputs (B, 1); in training the exit's beside them, (B, 2).

        Args:
            patches: (B, K, P * P).
            positions: (B, K) int64.
            training: the keys (B,) int64, and the mean (B, D) of `look`.
        """
        if not training:
            return self.backbone(patches, positions)  # type: ignore[no-any-return]
        keys, mean = training
        return torch.cat([self.backbone(patches, positions, keys), self.exit(mean)], dim=1)

    def _make_reader(self, *, compiled: bool) -> PatchSampler:
        patch_size = self.backbone.patch_size
        rows, columns = self.coarse_grid
        return PatchSampler(
            (rows * patch_size, columns * patch_size),
            patch_size,
            normalization=self.backbone.normalization,
            compiled=compiled,
        )


class SalientDraw(BinaryLabel):
    """Cancer or not, learnt from patches that the early exit favours; the exit learns beside it."""

    def __init__(self, settings: TrainingSettings) -> None:
        super().__init__(settings)
        self._model: EarlyExit | None = None

    def build_model(self, backbone: Backbone) -> EarlyExit:
        """The backbone with its exit, which `training_inputs` looks through."""
        self._model = EarlyExit(backbone)
        return self._model

    @torch.no_grad()
    def training_inputs(
        self, sampler: PatchSampler, batch: ImageBatch, keys: Tensor, num_keep: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Look, draw and read; see `EarlyExit.forward`."""
        assert self._model is not None, "build_model comes first"
        placement = sampler.place(batch, keys)
        tissue = sampler.tissue(batch, placement)
        salience, mean = self._model.look(batch, placement, tissue)
        positions = draw_weighted(keys, tissue, salience, num_keep)
        patches = sampler.read(batch, placement, positions)
        return (patches, positions, keys, mean), batch.targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """That of the head; the exit's gradient comes with it, and its value does not."""
        found = super().loss(outputs[:, :1], targets)
        if outputs.shape[1] == 1:
            return found
        aside = _EXIT_LOSS * super().loss(outputs[:, 1:], targets)
        return found + aside - aside.detach()
