"""The light decoder of a masked autoencoder: from the encoder's tokens to pixels of other patches.

Shapes: B images, N patches of the whole grid, K of them kept, M of the others asked for, T = prefix
tokens + K, D the encoder's width, P the patch size.
"""

from typing import Any

import torch
from timm.layers import Mlp, build_sincos2d_pos_embed
from torch import Tensor, nn

# A sixth of a ViT-S's multiply-accumulates with as many patches asked for as kept.
_WIDTH, _DEPTH, _HEADS = 256, 4, 4


class PixelDecoder(nn.Module):
    """Predicts patches from the encoder's tokens, each by itself.

    A patch is asked for by its position alone. It looks at the encoder's tokens, and not at other
    patches that are asked for: so its prediction does not depend on which others are, and any
    number of them may be, at a cost in proportion.

    Args:
        width: D.
        grid_size: of patches, (rows, columns).
        patch_size: P, in pixels.

    Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377;
    with cross-attention in place of self-attention, Fu et al. 2024, "Rethinking Patch Dependence
    for Masked Autoencoders", arXiv 2401.14391.
    """

    positions: Tensor

    def __init__(self, width: int, grid_size: tuple[int, int], patch_size: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, _WIDTH)
        self.query = nn.Parameter(torch.zeros(1, 1, _WIDTH))
        self.context_norm = nn.LayerNorm(_WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(_DEPTH))
        self.norm = nn.LayerNorm(_WIDTH)
        self.pixels = nn.Linear(_WIDTH, patch_size**2)
        self.apply(_init)
        nn.init.normal_(self.query, std=0.02)
        # Fixed, as the authors have it, and so no part of a checkpoint.
        table = build_sincos2d_pos_embed(list(grid_size), _WIDTH)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, tokens: Tensor, kept: Tensor, asked: Tensor) -> Tensor:
        """Predict the pixels at some positions.

        Args:
            tokens: (B, T, D), the encoder's, prefix tokens in front.
            kept: (B, K) int64 in [0, N), the positions of the others.
            asked: (B, M) int64 in [0, N).

        Returns:
            (B, M, P * P).
        """
        prefix = tokens.shape[1] - kept.shape[1]
        places = nn.functional.pad(self.positions[kept], (0, 0, prefix, 0))
        context = self.context_norm(self.project(tokens) + places)
        x = self.query + self.positions[asked]
        for block in self.blocks:
            x = block(x, context)
        return self.pixels(self.norm(x))  # type: ignore[no-any-return]

    def compile_blocks(self) -> None:
        """Compile the blocks, which share their code."""
        for block in self.blocks:
            block.compile()

    def macs(self, num_tokens: int, num_asked: int) -> int:
        """Multiply-accumulates of one image: T tokens of the encoder, M patches asked for."""
        ends = [self.project.weight.numel(), self.pixels.weight.numel()]
        each = _WIDTH**2
        # Keys and values of the tokens; queries, projection and the MLP of those asked for.
        block = 2 * each * num_tokens + 10 * each * num_asked + 2 * _WIDTH * num_tokens * num_asked
        return ends[0] * num_tokens + ends[1] * num_asked + _DEPTH * block


class _Block(nn.Module):
    """Cross-attention to the encoder's tokens and an MLP, each with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(_WIDTH)
        self.attention = nn.MultiheadAttention(_WIDTH, _HEADS, batch_first=True)
        self.norm2 = nn.LayerNorm(_WIDTH)
        self.mlp: Any = Mlp(_WIDTH, 4 * _WIDTH)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, M, width) from itself and (B, T, width)."""
        x = x + self.attention(self.norm1(x), context, context, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
