"""PatchDropout: which patches are kept, and their pixels."""
