"""PatchDropout around timm's vision transformer."""
