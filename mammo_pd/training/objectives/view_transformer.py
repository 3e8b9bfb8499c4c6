"""A small transformer over the class tokens of the views of a breast, or of both breasts.

All images of a batch are one sequence, and a mask keeps each unit to itself: so there is no
padding, a view that is absent is not there, and the shapes do not depend on how many a unit has.

Shapes: B images, D the width of the pooled tokens, H heads, T outputs.
"""

from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from mammo_pd.backbones.base import Backbone

_DEPTH = 2
_HEAD_WIDTH = 64
_MLP_RATIO = 2
# CC, MLO, any other.
_KINDS = 3


class FusedModel(nn.Module):
    """A backbone whose pooled tokens look at those of their unit, and then give one output.

    A breast's output is the mean of its images' (of logits, as heads are linear). What is put in
    between starts at nothing, so that training begins at the mean of the views.

    Args:
        backbone: encodes each image.
        across_breasts: whether a unit may have two breasts, of which each looks at the other one;
            which of them is the left one makes no difference.
    """

    def __init__(self, backbone: Backbone, *, across_breasts: bool) -> None:
        super().__init__()
        self.backbone = backbone
        width = int(backbone.timm_model.get_classifier().in_features)
        self.kinds = nn.Embedding(_KINDS, width)
        nn.init.zeros_(self.kinds.weight)
        self.blocks = nn.ModuleList(_Block(width, across_breasts) for _ in range(_DEPTH))

    def forward(
        self, patches: Tensor, positions: Tensor, views: Tensor, keys: Tensor | None = None
    ) -> Tensor:
        """Compute each image's output, which is its breast's.

        Args:
            patches: (B, K, P * P) standardised pixels of the kept patches.
            positions: (B, K) int64, theirs.
            views: (B, 3) int64, as of `mammo_pd.batch.ImageBatch`.
            keys: (B,) int64, needed in training by a backbone with stochastic depth.

        Returns:
            (B, T) float32, the same in all images of a breast.
        """
        return self.fuse(self.encode(patches, positions, keys), views)

    def encode(self, patches: Tensor, positions: Tensor, keys: Tensor | None = None) -> Tensor:
        """Compute each image's pooled token (B, D), which depends on no other image."""
        return self.backbone.pool(self.backbone.encode(patches, positions, keys))

    def fuse(self, pooled: Tensor, views: Tensor) -> Tensor:
        """From pooled tokens (B, D) to each image's output (B, T)."""
        unit, breast, kind = views.unbind(1)
        together = unit[:, None] == unit
        same_breast = together & (breast[:, None] == breast)
        x = pooled + self.kinds(kind)
        for block in self.blocks:
            x = block(x, together, same_breast)
        # Summed in float32, one image's after the other's: those of a breast are equal to the bit.
        outputs = self.backbone.head(x).float()
        own = torch.where(same_breast[:, :, None], outputs, 0.0)
        return own.sum(dim=1) / same_breast.sum(dim=1, keepdim=True)


class _Block(nn.Module):
    """Self-attention within units and an MLP, each with a residual connection, both 0 at first."""

    def __init__(self, width: int, across_breasts: bool) -> None:
        super().__init__()
        heads = width // _HEAD_WIDTH if width % _HEAD_WIDTH == 0 else 1
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp: Any = Mlp(width, _MLP_RATIO * width)
        # Of each head: what its scores of the other breast's images have added, so that it can look
        # at one breast alone. Of one breast by itself it would learn nothing.
        self.other = nn.Parameter(torch.zeros(heads)) if across_breasts else None
        self._heads = heads
        for last in (self.proj, self.mlp.fc2):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, together: Tensor, same_breast: Tensor) -> Tensor:
        """(B, D) from itself, and two of (B, B) bool: of one unit, of one breast."""
        qkv = self.qkv(self.norm1(x)).reshape(len(x), 3, self._heads, -1)
        query, key, value = qkv.permute(1, 2, 0, 3).unbind(0)
        mask = together
        if self.other is not None:
            mask = torch.where(same_breast, 0.0, self.other[:, None, None])
            mask = mask.masked_fill(~together, -torch.inf).to(query.dtype)
        seen = F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask)
        x = x + self.proj(seen[0].transpose(0, 1).flatten(1))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]
