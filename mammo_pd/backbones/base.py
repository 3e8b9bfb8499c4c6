"""Shim until the backbones land."""

from mammo_pd.backbones.vit import PatchViT as Backbone

__all__ = ["Backbone"]
