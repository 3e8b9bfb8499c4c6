"""The last block for a head that reads the class token alone: what no other token asks for is left.

Shapes: B images, T tokens (class and register tokens in front, then patches), D the width.
"""

from timm.models import VisionTransformer
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.nn import functional as F


def reads_class_token_alone(vit: VisionTransformer) -> bool:
    """Whether `forward_class_token` can stand for the last block of a model.

    The head reads the class token, and the block is timm's plain one: other kinds run whole.
    """
    block = vit.blocks[-1]
    return (
        vit.global_pool == "token"
        and vit.attn_pool is None
        and type(block) is Block
        and type(block.attn) is Attention
        # Newer versions of timm know these two, older ones do not.
        and isinstance(getattr(block.attn, "norm", nn.Identity()), nn.Identity)
        and getattr(block.attn, "gate", None) is None
    )


def forward_class_token(block: Block, x: Tensor) -> Tensor:
    """What timm's ``block(x)`` makes of the first token, and nothing else.

    The class token attends to all tokens, so all have a key and a value; but queries, projection
    and MLP are needed of it alone. The result is the same up to rounding, and so are the gradients:
    what is left out has none.

    Args:
        block: for which `reads_class_token_alone` holds.
        x: (B, T, D).

    Returns:
        (B, 1, D).
    """
    attention, first = block.attn, x[:, :1]
    heads, width = attention.num_heads, attention.proj.in_features
    weight, bias = attention.qkv.weight, attention.qkv.bias
    of_query, of_others = (None, None) if bias is None else (bias[:width], bias[width:])

    y = block.norm1(x)
    query = F.linear(y[:, :1], weight[:width], of_query)
    query = query.reshape(len(x), 1, heads, -1).transpose(1, 2)
    others = F.linear(y, weight[width:], of_others)
    key, value = others.reshape(*x.shape[:2], 2, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attention.q_norm(query), attention.k_norm(key)
    dropout = attention.attn_drop.p if attention.training else 0.0
    y = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    y = attention.proj_drop(attention.proj(y.transpose(1, 2).flatten(2)))

    first = first + block.drop_path1(block.ls1(y))
    return first + block.drop_path2(block.ls2(block.mlp(block.norm2(first))))  # type: ignore[no-any-return]
