"""Plugins for pydicom's decoders."""
