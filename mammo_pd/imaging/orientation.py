"""Orientation: mirror a mammogram so that the chest wall is on the left, and map boxes with it.

The *native frame* is the image as stored in the file; the *stored frame* is the crop, mirrored
where the chest wall was on the right.
"""

import numpy as np

from mammo_pd.imaging.box import Box


def turn_chest_wall_left(pixels: np.ndarray, side: str) -> np.ndarray:
    """Mirror an (H, W) image left to right if its chest wall is on the right.

    Args:
        pixels: (H, W).
        side: ``left`` or ``right``, where the chest wall is.

    Returns:
        (H, W), contiguous.
    """
    return np.ascontiguousarray(pixels[:, ::-1] if side == "right" else pixels)


def to_stored_frame(box: Box, crop: Box, *, flipped: bool) -> Box:
    """Map a box of the native frame into the stored frame.

    Args:
        box: in the native frame; may reach beyond the crop.
        crop: the crop in the native frame.
        flipped: whether the crop was mirrored.
    """
    left = box.left - crop.left
    if flipped:
        left = crop.width - left - box.width
    return Box(box.top - crop.top, left, box.height, box.width)


def to_native_frame(box: Box, crop: Box, *, flipped: bool) -> Box:
    """Map a box of the stored frame back into the native frame; the inverse of the above."""
    left = crop.width - box.left - box.width if flipped else box.left
    return Box(box.top + crop.top, left + crop.left, box.height, box.width)
