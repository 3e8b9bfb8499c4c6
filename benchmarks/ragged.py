"""A trial: every image keeps the same share of its own tissue, so images keep unequal numbers.

The batch's number of kept patches stays what it was, so that shapes are static: the tokens of all
images lie end to end in one row, and each attends to those of its own image. Nothing of it is in
the package; `ideas_draws.py` trains and measures it.

Shapes: B images, N patches of the whole grid, M patches kept of all images together, T = M + B
tokens of the row (each image's class token, then its patches in raster order), H heads, D wide.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import varlen
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from mammo_pd.backbones.base import Backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import TrainingSettings
from mammo_pd.keyed_random import hashed
from mammo_pd.patches.sampler import PatchSampler, Placement
from mammo_pd.training.objectives.binary_label import BinaryLabel

_TILE = 128
_AS_TORCH_CHOOSES = getattr(varlen, "_should_use_cudnn", None)


class Attention(StrEnum):
    """What keeps images apart.

    Attributes:
        MASKED: a mask over all pairs of the row; for a CPU and for comparison, at small sizes.
        VARLEN: torch's attention over sequences of different lengths, as torch chooses.
        CUDNN: the same in cuDNN, which torch 2.11 has, and does not choose.
        FLEX: FlexAttention over tiles of 128 tokens.
    """

    MASKED = "masked"
    VARLEN = "varlen"
    CUDNN = "cudnn"
    FLEX = "flex"


# ---- the draw


class Drawn(NamedTuple):
    """Which patches a batch keeps.

    Attributes:
        positions: (M,) int64 in [0, N), image by image, ascending within each.
        images: (M,) int64, whose they are.
        counts: (B,) int64, how many each image keeps.
    """

    positions: Tensor
    images: Tensor
    counts: Tensor


def share_out(tissue: Tensor, num_tokens: int, total: int) -> Tensor:
    """Share out a batch's patches, in proportion to each image's tissue.

    Args:
        tissue: (B,) int64, the patches of each that hold breast.
        num_tokens: N.
        total: M, at most B * N.

    Returns:
        (B,) int64 that add up to M. Each is within 1 of the same share of the image's tissue; where
        the batch holds less tissue than M it is all of it, and the same share of the air.
    """
    breast, air = tissue.cumsum(0), (num_tokens - tissue).cumsum(0)
    within = breast * total // breast[-1:].clamp(min=1)
    beyond = breast + air * (total - breast[-1:]) // air[-1:].clamp(min=1)
    ends = torch.where(breast[-1:] >= total, within, beyond)
    return ends.diff(prepend=ends.new_zeros(1))


def draw_share(keys: Tensor, tissue: Tensor, total: int) -> Drawn:
    """Draw M positions for a batch: the same share of each image's tissue.

    An image's order is that of `mammo_pd.patches.draw.draw_tissue`, and depends on its key alone.
    How far down that order it is kept depends on the others of the batch.

    Args:
        keys: (B,) int64, from `mammo_pd.keyed_random.image_key`.
        tissue: (B, N) bool, whether each patch holds breast.
        total: M.
    """
    images, num_tokens = tissue.shape
    counts = share_out(tissue.sum(dim=1), num_tokens, total)
    rank = hashed(keys, num_tokens, stream=0) + ((~tissue).long() << 53)
    order = rank.argsort(dim=1, stable=True)
    turn = torch.arange(num_tokens, device=keys.device).expand(images, -1)
    kept = (torch.empty_like(order).scatter_(1, order, turn) < counts[:, None]).flatten()
    # As many as M, which the device knows and the host does not: what is dropped goes to one slot.
    slot = torch.where(kept, kept.cumsum(0) - 1, total)
    place = torch.arange(images * num_tokens, device=keys.device)
    place = place.new_zeros(total + 1).scatter_(0, slot, place)[:total]
    return Drawn(place % num_tokens, place // num_tokens, counts)


def read_packed(
    sampler: PatchSampler, images: ImageBatch, placement: Placement, drawn: Drawn
) -> Tensor:
    """Read the pixels of kept patches: (M, P * P) float32, augmented.

    Each patch is read as if it were the only one of an image of its own.
    """
    of = drawn.images
    alone = ImageBatch(
        images.pixels,
        images.offsets[of],
        images.heights[of],
        images.widths[of],
        images.targets,
        images.rows,
    )
    moved = Placement(placement.matrix[of], placement.intensity[of])
    return sampler.read(alone, moved, drawn.positions[:, None])[:, 0]


# ---- the model


class Row(NamedTuple):
    """How the tokens of a batch lie in one row.

    Attributes:
        starts: (B + 1,) int32, where each image's tokens begin, and the last one's end.
        images: (T,) int64, whose token each is.
        tiles: which tiles of 128 tokens attend to which; None but for `Attention.FLEX`.
    """

    starts: Tensor
    images: Tensor
    tiles: BlockMask | None


def lay_out(counts: Tensor, num_patches: int, attention: Attention) -> Row:
    """Lay a batch's tokens out: (B,) counts that add up to M patches."""
    ends = (counts + 1).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends])
    token = torch.arange(num_patches + len(counts), device=counts.device)
    images = torch.searchsorted(ends, token, right=True)
    tiles = _tiles(images) if attention is Attention.FLEX else None
    return Row(starts.int(), images, tiles)


def _tiles(images: Tensor) -> BlockMask:
    """The tiles that hold tokens of one image, and those that hold no other.

    Made from the tiles' ends: to ask of all pairs of tokens would cost more than attention does.
    """
    assert len(images) % _TILE == 0, f"{len(images)} tokens are not whole tiles of {_TILE}"
    first, last = images[::_TILE], images[_TILE - 1 :: _TILE]
    touch = (first[:, None] <= last) & (last[:, None] >= first)
    whole = (first == last)[:, None] & (first == last) & (first[:, None] == first)

    def listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
        order = tiles.int().argsort(dim=1, descending=True, stable=True)
        return tiles.sum(dim=1).int()[None, None], order.int()[None, None]

    def same_image(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return images[query] == images[key]

    return BlockMask.from_kv_blocks(
        *listed(touch & ~whole), *listed(whole), BLOCK_SIZE=_TILE, mask_mod=same_image
    )


def attend(q: Tensor, k: Tensor, v: Tensor, row: Row, longest: int, attention: Attention) -> Tensor:
    """Attend within each image.

    Args:
        q: (T, H, D / H) queries.
        k: the same, keys.
        v: the same, values.
        row: of the tokens.
        longest: tokens that one image can have.
        attention: how.

    Returns:
        (T, H, D / H).
    """
    if attention is Attention.MASKED:
        return _attend_masked(q, k, v, row.images)
    if attention is Attention.FLEX:
        heads = (x.transpose(0, 1)[None] for x in (q, k, v))
        found = flex_attention(*heads, block_mask=row.tiles)
        assert isinstance(found, Tensor)
        return found[0].transpose(0, 1)
    return varlen.varlen_attn(q, k, v, row.starts, row.starts, longest, longest)  # type: ignore[return-value]


def attend_first(
    q: Tensor, k: Tensor, v: Tensor, row: Row, longest: int, attention: Attention
) -> Tensor:
    """Let each image's class token attend to the image: (B, H, D / H) queries and results."""
    each = torch.arange(len(q) + 1, device=q.device, dtype=torch.int32)
    if attention is Attention.VARLEN:
        return varlen.varlen_attn(q, k, v, each, row.starts, 1, longest)  # type: ignore[return-value]
    # cuDNN takes no single query, and FlexAttention would have one tile of them.
    return _attend_masked(q, k, v, row.images, each[:-1])


def _attend_masked(
    q: Tensor, k: Tensor, v: Tensor, images: Tensor, asking: Tensor | None = None
) -> Tensor:
    apart = (images if asking is None else asking)[:, None] != images
    scores = torch.einsum("qhd,khd->hqk", q * q.shape[-1] ** -0.5, k)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    weights = wide.masked_fill(apart, -torch.inf).softmax(dim=2)
    return torch.einsum("hqk,khd->qhd", weights.to(v.dtype), v)


def packed_tokens(
    backbone: Backbone, patches: Tensor, positions: Tensor, images: Tensor, row: Row
) -> Tensor:
    """Embed kept patches and lay them out with the class tokens: (T, D)."""
    embedded = backbone.embed(patches[None], positions[None])[0]
    place = torch.arange(len(patches), device=patches.device) + images + 1
    first = row.starts[:-1].long()
    tokens = embedded.new_zeros(len(row.images), embedded.shape[1])
    tokens = tokens.index_copy(0, place, embedded[1:])
    return tokens.index_copy(0, first, embedded[:1].expand(len(first), -1))


def packed_block(block: Any, x: Tensor, row: Row, longest: int, attention: Attention) -> Tensor:
    """Timm's block on a row of tokens: (T, D) to (T, D)."""
    own = block.attn
    qkv = own.qkv(block.norm1(x)).unflatten(1, (3, own.num_heads, -1))
    q, k, v = qkv.unbind(1)
    y = attend(own.q_norm(q), own.k_norm(k), v, row, longest, attention)
    x = x + block.drop_path1(block.ls1(own.proj(y.flatten(1))))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))  # type: ignore[no-any-return]


def packed_class_token(
    block: Any, x: Tensor, row: Row, longest: int, attention: Attention
) -> Tensor:
    """The class tokens of timm's block: (T, D) to (B, D).

    As `mammo_pd.backbones.last_block.forward_class_token` does it.
    """
    own, first = block.attn, row.starts[:-1].long()
    width = own.proj.in_features
    weight, bias = own.qkv.weight, own.qkv.bias
    y = block.norm1(x)
    q = nn.functional.linear(y[first], weight[:width], bias[:width])
    others = nn.functional.linear(y, weight[width:], bias[width:])
    k, v = others.unflatten(1, (2, own.num_heads, -1)).unbind(1)
    q = q.unflatten(1, (own.num_heads, -1))
    y = attend_first(own.q_norm(q), own.k_norm(k), v, row, longest, attention)
    alone = x[first] + block.drop_path1(block.ls1(own.proj(y.flatten(1))))
    return alone + block.drop_path2(block.ls2(block.mlp(block.norm2(alone))))  # type: ignore[no-any-return]


def _always(_device_index: int) -> bool:
    return True


class Ragged(nn.Module):
    """A backbone that is trained on rows of tokens, and scores whole images as it always does.

    Args:
        backbone: a timm `VisionTransformer` with one prefix token, which its head reads alone.
        attention: what keeps images apart in training.
    """

    def __init__(self, backbone: Backbone, attention: Attention) -> None:
        super().__init__()
        assert backbone.class_token_alone and backbone.plain_attention and backbone.num_prefix == 1
        self.backbone = backbone
        self.attention = attention
        self._embed: Callable[..., Tensor] = packed_tokens
        self._block: Callable[..., Tensor] = packed_block
        self._last_block: Callable[..., Tensor] = packed_class_token
        # Torch 2.11 asks this function at every call, and its own says no.
        forced = attention is Attention.CUDNN
        varlen._should_use_cudnn = _always if forced else _AS_TORCH_CHOOSES  # type: ignore[assignment]

    def compile_blocks(self) -> None:
        """Compile what training runs; the backbone compiles its own, for evaluation."""
        self._embed = torch.compile(packed_tokens, dynamic=False)
        self._block = torch.compile(packed_block, dynamic=False)
        self._last_block = torch.compile(packed_class_token, dynamic=False)

    def forward(self, patches: Tensor, positions: Tensor, *packed: Tensor) -> Tensor:
        """Compute the head's outputs (B, num_outputs).

        Args:
            patches: (M, P * P) in training, (B, N, P * P) in evaluation.
            positions: (M,) or (B, N) int64.
            packed: in training images and counts of `Drawn`, and the keys (B,) int64.
        """
        if not packed:
            return self.backbone(patches, positions)  # type: ignore[no-any-return]
        images, counts, keys = packed
        row = lay_out(counts, len(patches), self.attention)
        longest = self.backbone.num_tokens + 1
        vit = self.backbone.timm_model
        x = vit.norm_pre(self._embed(self.backbone, patches, positions, images, row))
        self._draw_paths(keys, row)
        for block in vit.blocks[:-1]:
            x = self._block(block, x, row, longest, self.attention)
        x = self._last_block(vit.blocks[-1], x, row, longest, self.attention)
        return self.backbone.head(self.backbone.pool(vit.norm(x)[:, None]))

    def _draw_paths(self, keys: Tensor, row: Row) -> None:
        """Each token skips the residual branches that its image does."""
        self.backbone.draw_paths(keys)
        last = set(self.backbone.timm_model.blocks[-1].modules())
        for path in self.backbone._drop_paths:
            if path.scale is not None and path not in last:
                path.scale = path.scale[row.images]


class RaggedTissue(BinaryLabel):
    """Cancer or not, learnt from the same share of every image's tissue."""

    attention: Attention | None = None

    def __init__(self, settings: TrainingSettings) -> None:
        super().__init__(settings)
        default = Attention.VARLEN if torch.cuda.is_available() else Attention.MASKED
        self._attention = self.attention or default

    def build_model(self, backbone: Backbone) -> Ragged:
        """The backbone, trained on rows of tokens."""
        return Ragged(backbone, self._attention)

    @torch.no_grad()
    def training_inputs(
        self, sampler: PatchSampler, batch: ImageBatch, keys: Tensor, num_keep: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Draw and read B * K patches; see `Ragged.forward`."""
        placement = sampler.place(batch, keys)
        drawn = draw_share(keys, sampler.tissue(batch, placement), len(keys) * num_keep)
        patches = read_packed(sampler, batch, placement, drawn)
        return (patches, drawn.positions, drawn.images, drawn.counts, keys), batch.targets
