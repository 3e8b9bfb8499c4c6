"""Which GPU a process of a benchmark computes on."""

import os


def see_only(gpu: int) -> None:
    """Hide all GPUs from this process but one of those that it was given; before torch is imported.

    Args:
        gpu: its number among these, from 0.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = given.split(",")[gpu] if given else str(gpu)
