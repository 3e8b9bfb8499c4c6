"""Shim until the backbones land."""

from typing import Any

from mammo_pd.backbones.vit import PatchViT, build_vit
from mammo_pd.backbones.vit import build_plain as describe_backbone


def build_backbone(
    name: str, img_size: tuple[int, int], *, num_outputs: int = 1, **options: Any
) -> PatchViT:
    """Build."""
    assert num_outputs == 1
    return build_vit(name, img_size, **options)


__all__ = ["build_backbone", "describe_backbone"]
