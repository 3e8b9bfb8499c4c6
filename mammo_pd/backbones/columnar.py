"""What timm's columnar transformers share: patch embedding, position embedding, prefix tokens.

Shapes as in `mammo_pd.backbones.base`.
"""

from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor
from torch.nn import functional as F


def reason_against_embedding(model: Any) -> str | None:
    """Say why a model's patches cannot be embedded one by one and pooled to one vector.

    Returns:
        None if they can; else the rest of a sentence that starts with "it".
    """
    embed = model.patch_embed
    if hasattr(embed, "backbone"):
        return (
            f"embeds patches by a convolutional stem ({type(embed.backbone).__name__}) whose "
            "receptive field crosses patch borders, so that kept patches depend on dropped ones"
        )
    if type(embed) is not PatchEmbed:
        return f"embeds patches by {type(embed).__name__}, not by timm's PatchEmbed"
    height, width = embed.patch_size
    if height != width:
        return f"has patches of {height}x{width} pixels, and only square ones are sampled"
    projection = embed.proj
    if not (projection.kernel_size == projection.stride == (height, width)):
        return "projects patches that overlap, so that kept patches depend on dropped ones"
    if projection.padding != (0, 0):
        return "pads the image before it projects patches, so that its grid is another"
    if getattr(model, "attn_pool", None) is None and not model.global_pool:
        return "has no pooling, so that its head gives one output for each token"
    return None


def grid_embedding(model: Any) -> Tensor | None:
    """The absolute position embedding of the patches, (N, D); None if the model has none."""
    if model.pos_embed is None:
        return None
    embedding: Tensor = model.pos_embed[0, _prefix_rows(model) :]
    return embedding


def embed_patches(
    model: Any,
    prefix: list[Any],
    patches: Tensor,
    positions: Tensor,
    embedding: Tensor | None = None,
) -> Tensor:
    """Project kept patches and add the absolute position embedding, if there is one, at each.

    Args:
        model: a timm model for which `reason_against_embedding` has none.
        prefix: its (1, n, D) prefix tokens, in order.
        patches: (B, K, P * P) standardised pixels, one channel.
        positions: (B, K) int64 in [0, N), or rows of ``embedding``.
        embedding: a row for each position, where these are not those of the grid; None for
            `grid_embedding`.

    Returns:
        (B, T, D).
    """
    projection = model.patch_embed.proj
    # A convolution whose stride is its kernel is a product with the flattened kernel.
    x = F.linear(patches, projection.weight.flatten(1), projection.bias)
    x = model.patch_embed.norm(x)

    embedding = grid_embedding(model) if embedding is None else embedding
    if embedding is not None:
        # index_select: of an index the threads of a CPU add up the gradient in any order.
        places = embedding.index_select(0, positions.flatten())
        x = x + places.view_as(x)
    if prefix:
        front = torch.cat(prefix, dim=1)
        rows = _prefix_rows(model)
        if embedding is not None and rows:
            front = front + model.pos_embed[:, :rows]
        x = torch.cat([front.expand(len(x), -1, -1), x], dim=1)
    return model.pos_drop(x)  # type: ignore[no-any-return]


def _prefix_rows(model: Any) -> int:
    """Rows of the position embedding that are of prefix tokens: they come first; often none."""
    return 0 if model.no_embed_class else int(model.num_prefix_tokens)
