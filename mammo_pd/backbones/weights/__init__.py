"""Pretrained weights: source (read) → names (timm's) → parts (fitted) → load (filled, reported)."""
