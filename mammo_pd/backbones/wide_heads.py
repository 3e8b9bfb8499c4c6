"""ViTs with attention heads of width 128 in place of 64, half as many, for training from scratch.

A GPU computes attention faster in wider heads, and at full resolution attention is most of a step
(benchmarks/results). In timm's registry, so that they can be named wherever timm's own models can.
"""

from typing import Any

import timm
from timm.models import VisionTransformer, register_model

# A part of their names.
_MARK = "_hd128_"


@register_model  # type: ignore[untyped-decorator]
def vit_small_patch16_hd128_224(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """ViT-S/16 with three heads."""
    return _create("small", 3, pretrained, options)


@register_model  # type: ignore[untyped-decorator]
def vit_base_patch16_hd128_224(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """ViT-B/16 with six heads."""
    return _create("base", 6, pretrained, options)


def has_wide_heads(name: str) -> bool:
    """Whether a model is one of these, by its name."""
    return _MARK in name


def _create(size: str, heads: int, pretrained: bool, options: dict[str, Any]) -> VisionTransformer:
    name = f"vit_{size}_patch16{_MARK}224"
    if pretrained:
        raise ValueError(f"no hub has weights for {name}")
    # What the registry would look up weights by.
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(key, None)
    own = {"architecture": name, "tag": None, "url": "", "hf_hub_id": None}
    model: VisionTransformer = timm.create_model(
        f"vit_{size}_patch16_224", num_heads=heads, pretrained_cfg_overlay=own, **options
    )
    return model
