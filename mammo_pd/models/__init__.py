"""PatchDropout around an untouched timm vision transformer."""
