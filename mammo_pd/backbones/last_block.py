"""The last block for a head that reads the class token only: no other token is computed.

Shapes as in `mammo_pd.backbones.base`.
"""

from timm.models import VisionTransformer
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.nn import functional as F


def reads_class_token_alone(vit: VisionTransformer) -> bool:
    """Whether `forward_class_token` can replace the last block of a model.

    It can if the head reads the class token only and the block is timm's plain one; other blocks
    run whole.
    """
    block = vit.blocks[-1]
    return (
        vit.global_pool == "token"
        and vit.attn_pool is None
        and type(block) is Block
        and type(block.attn) is Attention
        # Absent in older versions of timm.
        and isinstance(getattr(block.attn, "norm", nn.Identity()), nn.Identity)
        and getattr(block.attn, "gate", None) is None
    )


def forward_class_token(block: Block, x: Tensor) -> Tensor:
    """Compute the first token of timm's ``block(x)``.

    The class token attends to all tokens, so each needs a key and a value; query, projection and
    MLP are needed for the class token only. Result and gradients equal the whole block's up to
    rounding, since what is left out receives no gradient.

    Args:
        block: for which `reads_class_token_alone` holds.
        x: (B, T, D).

    Returns:
        (B, 1, D).
    """
    attention, first = block.attn, x[:, :1]
    heads, width = attention.num_heads, attention.proj.in_features
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query_bias, other_bias = (None, None) if bias is None else (bias[:width], bias[width:])

    y = block.norm1(x)
    query = F.linear(y[:, :1], weight[:width], query_bias)
    query = query.reshape(len(x), 1, heads, -1).transpose(1, 2)
    others = F.linear(y, weight[width:], other_bias)
    key, value = others.reshape(*x.shape[:2], 2, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attention.q_norm(query), attention.k_norm(key)
    dropout = attention.attn_drop.p if attention.training else 0.0
    y = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    y = attention.proj_drop(attention.proj(y.transpose(1, 2).flatten(2)))

    first = first + block.drop_path1(block.ls1(y))
    return first + block.drop_path2(block.ls2(block.mlp(block.norm2(first))))  # type: ignore[no-any-return]
