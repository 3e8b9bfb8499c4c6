"""mammo-pd: vision transformers on full-resolution mammograms, with PatchDropout."""

__version__ = "0.2.0"
