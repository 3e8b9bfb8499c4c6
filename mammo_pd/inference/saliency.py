"""Where a vision transformer looked: attention roll-out, in memory that grows with N and not N x N.

Shapes: B images, N tokens (class and register tokens in front, then patches), H heads, d the width
of a head.
"""

from collections.abc import Callable

import torch
from timm.models import VisionTransformer
from timm.models.vision_transformer import Attention, Block, ResPostBlock
from torch import Tensor, nn

from mammo_pd.backbones.base import Backbone
from mammo_pd.errors import InputError

# At 33,000 tokens and 6 heads this is a buffer of 100 MB.
_ROWS_AT_ONCE = 128


@torch.no_grad()
def attention_rollout(
    model: Backbone, patches: Tensor, positions: Tensor, *, rows_at_once: int = _ROWS_AT_ONCE
) -> Tensor:
    """Follow the attention from what the head reads back to the tokens that went in.

    Each block counts as ``A = (I + mean over heads of softmax(q k' / sqrt(d))) / 2``, and the
    blocks' matrices are multiplied: ``A_L ... A_2 A_1``. Of the product one row is wanted, that of
    the class token, or where patches are averaged the mean of their rows; so it is had from the
    left, vector by matrix. No N x N matrix is made: the attention is computed anew from timm's own
    queries and keys, some rows at a time. The queries and keys of all blocks are held,
    O(blocks x N x width).

    It says where attention flowed. It does not say what speaks for or against a class, and values,
    MLPs and the head are not in it.

    Args:
        model: in evaluation mode.
        patches: (B, K, P * P) standardised pixels, one channel.
        positions: (B, K) int64 in [0, N).
        rows_at_once: rows of the attention matrices held at one time.

    Returns:
        (B, N) float32, not negative, each row adding up to 1; N = prefix tokens + K.

    Raises:
        InputError: the model attends or pools in a way that roll-out is not defined for.

    Source: Abnar and Zuidema 2020, Quantifying Attention Flow in Transformers, arXiv 2005.00928,
    section 3 (attention rollout).
    """
    refuse_other_attention(model)
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    hooks = []
    for block in model.timm_model.blocks:
        # timm passes q and k through these two in every version, as (B, H, N, d), even where they
        # do nothing.
        for norm, kept in ((block.attn.q_norm, queries), (block.attn.k_norm, keys)):
            hooks.append(norm.register_forward_hook(_keep_in(kept)))
    try:
        model(patches, positions)
    finally:
        for hook in hooks:
            hook.remove()
    share = _read_by_head(model.timm_model, keys[-1])
    for block, query, key in zip(
        reversed(model.timm_model.blocks), queries[::-1], keys[::-1], strict=True
    ):
        attended = _through_attention(share, query, key, block.attn.scale, rows_at_once)
        share = (share + attended) / 2
    return share


def refuse_other_attention(model: Backbone) -> None:
    """Check that roll-out is defined for a model.

    Raises:
        InputError: parallel or differential attention, or a pooling other than the class token and
            the mean.
    """
    vit = model.timm_model
    plain = all(
        type(block) in (Block, ResPostBlock) and type(block.attn) is Attention
        for block in vit.blocks
    )
    if not plain:
        raise InputError(
            "the model's blocks are not plain self-attention blocks one after the other, so "
            "attention roll-out is not defined for it."
        )
    if vit.global_pool not in ("token", "avg"):
        raise InputError(
            f"the model pools its tokens by {vit.global_pool!r}, and attention roll-out is defined "
            "here for the class token ('token') and the mean ('avg')."
        )


def _keep_in(kept: list[Tensor]) -> Callable[[nn.Module, object, Tensor], None]:
    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        kept.append(output)

    return keep


def _read_by_head(vit: VisionTransformer, like: Tensor) -> Tensor:
    """(B, N) float32: the weight with which the head reads each token of the last block."""
    count, tokens = like.shape[0], like.shape[2]
    weight = torch.zeros(count, tokens, device=like.device)
    if vit.global_pool == "token":
        weight[:, 0] = 1
    else:
        # timm 1.0.15 has no such option, and leaves the prefix out.
        with_prefix = getattr(vit, "pool_include_prefix", False)
        first = 0 if with_prefix else int(vit.num_prefix_tokens)
        weight[:, first:] = 1 / (tokens - first)
    return weight


def _through_attention(
    share: Tensor, query: Tensor, key: Tensor, scale: float, rows_at_once: int
) -> Tensor:
    """The product of a (B, N) row vector with the (N, N) attention, mean over heads.

    There may be queries of the first rows alone; then the vector is 0 in the others.
    """
    result = torch.zeros_like(share)
    columns = key.float().transpose(-2, -1)
    count = query.shape[2]
    for start in range(0, count, rows_at_once):
        rows = slice(start, min(start + rows_at_once, count))
        attention = (query[:, :, rows].float() * scale @ columns).softmax(dim=-1)
        result += (share[:, None, None, rows] @ attention).mean(dim=(1, 2))
    return result
