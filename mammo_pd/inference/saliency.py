"""Where a transformer looked: attention roll-out, in memory that grows with T and not with T x T.

Shapes: B images, T tokens (class and register tokens in front, then patches), H heads, d the width
of a head.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mammo_pd.backbones.base import Backbone
from mammo_pd.errors import InputError

# At 33,000 tokens and 6 heads the buffer takes 100 MB.
_ROWS_AT_ONCE = 128


@torch.no_grad()
def attention_rollout(
    model: Backbone, patches: Tensor, positions: Tensor, *, rows_at_once: int = _ROWS_AT_ONCE
) -> Tensor:
    """Follow the attention from what the head reads back to the input tokens.

    Each block counts as ``A = (I + mean over heads of softmax(q k' / sqrt(d))) / 2``, and the
    matrices of the blocks are multiplied: ``A_L ... A_2 A_1``. Only one row of the product is
    needed, that of the class token, or the mean of all rows that are averaged; so the product is
    taken from the left, vector by matrix. No T x T matrix is stored: attention is recomputed from
    the queries and keys of timm's own forward pass, a few rows at a time. The queries and keys of
    all blocks are held, O(blocks x T x width).

    The result says where attention flowed. It does not say what speaks for or against a class, and
    it ignores values, MLPs and the head.

    Args:
        model: in evaluation mode.
        patches: (B, K, P * P) standardised pixels, one channel.
        positions: (B, K) int64 in [0, N).
        rows_at_once: rows of the attention matrices held at a time.

    Returns:
        (B, T) float32, not negative, each row with the sum 1; T = prefix tokens + K.

    Raises:
        InputError: roll-out is not defined for the model's attention or pooling.

    Source: Abnar and Zuidema 2020, Quantifying Attention Flow in Transformers, arXiv 2005.00928,
    section 3 (attention rollout).
    """
    refuse_other_attention(model)
    # Compiled blocks would run the code they were compiled to, past the recorder.
    with torch.compiler.set_stance("force_eager"), _AttentionRecorder() as recorder:
        tokens = model.embed(patches, positions)
        model.forward_features(tokens, positions)
    attentions = recorder.attentions
    if len(attentions) != len(model.timm_model.blocks):
        raise InputError(
            "attention roll-out reads queries and keys where timm passes them to PyTorch's fused "
            "attention, which is disabled; unset TIMM_FUSED_ATTN."
        )
    share = _read_by_head(model, attentions[-1].key)
    for attention in reversed(attentions):
        share = (share + _through_attention(share, attention, rows_at_once)) / 2
    return share


def refuse_other_attention(model: Backbone) -> None:
    """Check that roll-out is defined for a model.

    Raises:
        InputError: parallel or differential attention, or a pooling other than the class token and
            the mean.
    """
    if not model.plain_attention:
        raise InputError(
            "the model's blocks are not plain self-attention blocks one after the other, so "
            "attention roll-out is not defined for it."
        )
    pooling = model.timm_model.global_pool
    if pooling not in ("token", "avg"):
        raise InputError(
            f"the model pools its tokens by {pooling!r}, and attention roll-out is defined here "
            "for the class token ('token') and the mean ('avg')."
        )


class _Attention(NamedTuple):
    """Queries (B, H, T, d), or of the class token alone (B, H, 1, d), and keys (B, H, T, d)."""

    query: Tensor
    key: Tensor


class _AttentionRecorder(TorchFunctionMode):
    """Records the queries and keys of every attention, after norms and rotation."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions: list[_Attention] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.attentions.append(_Attention(*args[:2]))
        return func(*args, **(kwargs or {}))


def _read_by_head(model: Backbone, like: Tensor) -> Tensor:
    """Return (B, T) float32: the weight of each token of the last block in what the head reads."""
    count, tokens = like.shape[0], like.shape[2]
    weight = torch.zeros(count, tokens, device=like.device)
    if model.timm_model.global_pool == "token":
        weight[:, 0] = 1
    else:
        # Older versions of timm, and its Eva, have no such option and leave the prefix out.
        with_prefix = getattr(model.timm_model, "pool_include_prefix", False)
        first = 0 if with_prefix else model.num_prefix
        weight[:, first:] = 1 / (tokens - first)
    return weight


def _through_attention(share: Tensor, attention: _Attention, rows_at_once: int) -> Tensor:
    """Multiply a (B, T) row vector by the (T, T) attention, mean over heads.

    Where there are queries of the first rows only, the vector is 0 in the others.
    """
    query, key = attention
    result = torch.zeros_like(share)
    columns, scale = key.float().transpose(-2, -1), query.shape[-1] ** -0.5
    count = query.shape[2]
    for start in range(0, count, rows_at_once):
        rows = slice(start, min(start + rows_at_once, count))
        scores = (query[:, :, rows].float() * scale @ columns).softmax(dim=-1)
        result += (share[:, None, None, rows] @ scores).mean(dim=(1, 2))
    return result
