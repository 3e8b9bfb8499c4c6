"""timm's `Eva` on kept patches: EVA-02, DINOv3, Perception Encoder, rotary ViTs and their kin.

Shapes as in `mammo_pd.backbones.base`; d is the width of an attention head.
"""

from collections.abc import Iterator
from typing import Any, Self

from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.columnar import embed_patches, reason_against_embedding

# By name: each came to timm in another version.
_ROTARY_BY_TABLE = ("RotaryEmbeddingCat", "RotaryEmbeddingDinoV3", "RotaryEmbeddingMixed")
_PLAIN_ATTENTION = ("AttentionRope",)


class EvaBackbone(Backbone):
    """Positions enter by an absolute position embedding, by rotation of queries and keys, or both.

    The rotations of the whole grid are timm's, so a non-square grid, a reference grid and learned
    frequencies are as there; each image takes the rows of its kept positions.

    timm can shift, jitter and rescale the coordinates at random in training (DINOv3's recipe,
    Sapiens2 by default). That stays off: the draw comes from torch's generator, one for all images
    of a process, so that a run would depend on its number of devices and on being resumed; and the
    affine augmentation of `mammo_pd.patches` moves and scales the image by a draw of its own.
    """

    def __init__(self, timm_model: Eva) -> None:
        super().__init__(timm_model)
        self.plain_attention = all(
            type(block) in (EvaBlock, EvaBlockPostNorm)
            and (type(block.attn) is EvaAttention or type(block.attn).__name__ in _PLAIN_ATTENTION)
            for block in timm_model.blocks
        )
        self.train(self.training)

    @staticmethod
    def reason_against(timm_model: Any) -> str | None:
        """Say what of patch embedding, position embedding or pooling stands in the way."""
        if not hasattr(timm_model, "pool"):
            return "is an Eva of a timm too old to pool apart from the head; install a newer timm"
        reason = reason_against_embedding(timm_model)
        rope = timm_model.rope
        if reason is None and rope is not None and type(rope).__name__ not in _ROTARY_BY_TABLE:
            reason = (
                f"rotates queries and keys by {type(rope).__name__}, which is not known to give "
                "one row for each patch of the grid"
            )
        if reason is None and rope is None and timm_model.pos_embed is None:
            reason = "has no position embedding, so that kept patches would lose their places"
        return reason

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the rotary embedding, which keeps its coordinates as they are."""
        super().train(mode)
        if self.timm_model.rope is not None:
            self.timm_model.rope.eval()
        return self

    def embed(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Project kept patches, add their position embeddings, and prepend the prefix tokens."""
        return embed_patches(self.timm_model, self._prefix_tokens(), patches, positions)

    def forward_features(
        self, tokens: Tensor, positions: Tensor, keys: Tensor | None = None
    ) -> Tensor:
        """Run the blocks, each with the rotations of the kept positions, and the final norm."""
        self.draw_paths(keys)
        eva = self.timm_model
        x = eva.norm_pre(tokens)
        for block, rope in zip(eva.blocks, self._rotations(positions), strict=True):
            if eva.grad_checkpointing:
                x = checkpoint(block, x, rope, use_reentrant=False)
            else:
                x = block(x, rope=rope)
        return eva.norm(x)  # type: ignore[no-any-return]

    def _rotations(self, positions: Tensor) -> Iterator[Tensor | None]:
        """Yield the sines and cosines for each block, (B, 1, K, 2 d), or (B, H, K, 2 d) by head."""
        eva = self.timm_model
        if eva.rope is None:
            for _ in eva.blocks:
                yield None
            return
        table = eva.rope.get_embed()
        if not eva.rope_mixed:
            # (N, 2 d): one gather serves all blocks and heads.
            shared = _gather(table, positions)[:, None]
            for _ in eva.blocks:
                yield shared
            return
        # (depth, H, N, 2 d), from learned frequencies: a block at a time, for memory's sake.
        for of_block in table:
            yield _gather(of_block, positions).transpose(0, 1)


def _gather(table: Tensor, positions: Tensor) -> Tensor:
    """Take rows by position: (..., N, C) and (B, K) to (..., B, K, C)."""
    # index_select: its backward pass adds up without the sort that indexing by a tensor needs.
    rows = table.index_select(-2, positions.flatten())
    return rows.reshape(*table.shape[:-2], *positions.shape, table.shape[-1])
