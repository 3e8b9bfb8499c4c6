"""timm's `VisionTransformer` on kept patches: ViT, DeiT, DINOv2, CLIP, SigLIP and their kin.

Shapes as in `mammo_pd.backbones.base`.
"""

from typing import Any

import torch
from timm.models import VisionTransformer, checkpoint_seq
from timm.models.vision_transformer import Attention, Block, ResPostBlock
from torch import Tensor

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.columnar import embed_patches, reason_against_embedding
from mammo_pd.backbones.last_block import forward_class_token, reads_class_token_alone


class VitBackbone(Backbone):
    """Positions enter by the absolute position embedding alone, so blocks run as timm's.

    Where the head reads the class token alone, the last block computes that token only
    (`mammo_pd.backbones.last_block`).
    """

    def __init__(self, timm_model: VisionTransformer) -> None:
        super().__init__(timm_model)
        self.class_token_alone = reads_class_token_alone(timm_model)
        self.plain_attention = all(
            type(block) in (Block, ResPostBlock) and type(block.attn) is Attention
            for block in timm_model.blocks
        )
        self._last_block = forward_class_token

    @staticmethod
    def reason_against(timm_model: Any) -> str | None:
        """Say what of patch embedding, position embedding or pooling stands in the way."""
        reason = reason_against_embedding(timm_model)
        if reason is None and timm_model.pos_embed is None:
            reason = "has no position embedding, so that kept patches would lose their places"
        return reason

    def embed(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Project kept patches, add their position embeddings, and prepend the prefix tokens."""
        return embed_patches(self.timm_model, self._prefix_tokens(), patches, positions)

    def forward_features(
        self, tokens: Tensor, positions: Tensor, keys: Tensor | None = None
    ) -> Tensor:
        """Run the blocks and the final norm; the positions are in the tokens already."""
        self.draw_paths(keys)
        vit = self.timm_model
        x = vit.norm_pre(tokens)
        alone = self.class_token_alone
        blocks = vit.blocks[:-1] if alone else vit.blocks
        x = checkpoint_seq(blocks, x) if vit.grad_checkpointing else blocks(x)
        if alone:
            # Holds too little for the backward pass to be worth recomputing.
            x = self._last_block(vit.blocks[-1], x)
        return vit.norm(x)  # type: ignore[no-any-return]

    def compile_blocks(self) -> None:
        """Compile the embedding and the blocks, and the shortened last block by itself."""
        super().compile_blocks()
        self._last_block = torch.compile(forward_class_token)
