"""timm's transformers on any subset of an image's patches: one file for each family."""
