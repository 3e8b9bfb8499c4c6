"""timm's vision transformers, on any subset of the patches."""
