"""Orientation: turn a mammogram upright with the chest wall on the left, and map boxes with it.

The *native frame* is the image as stored in the file; the *stored frame* is the crop, mirrored
where the chest wall was on the right, and turned upside down where Patient Orientation says that
the native frame is.
"""

from enum import StrEnum

import numpy as np

from mammo_pd.imaging.box import Box
from mammo_pd.terms import Laterality


class SideVerdict(StrEnum):
    """How laterality, Patient Orientation and the side on which the breast lies fit together.

    ``ok``: none contradicts another. ``mirrored``: the breast lies on the other side than the
    laterality leads to expect, as Patient Orientation says. ``against_laterality``: it does so and
    Patient Orientation says nothing. ``against_orientation``: it lies on the other side than
    Patient Orientation says. ``orientation_against_laterality``: Patient Orientation is that of
    the other breast, or of this one turned by 180 degrees.
    """

    OK = "ok"
    MIRRORED = "mirrored"
    AGAINST_LATERALITY = "against_laterality"
    AGAINST_ORIENTATION = "against_orientation"
    ORIENTATION_AGAINST_LATERALITY = "orientation_against_laterality"


def is_upside_down(orientation: tuple[str, str] | None) -> bool:
    """Whether the columns of an image run towards the head.

    Args:
        orientation: Patient Orientation, the directions of a row and of a column, such as
            ``("A", "FL")``. Of a CC view it tells left from right only, which does not decide
            between the other breast and this one upside down.

    Source: DICOM PS3.3 C.7.6.1.1.1.
    """
    return orientation is not None and orientation[0] in _WALL and orientation[1][:1] == "H"


def upright_column(column: str) -> str:
    """The direction of a column once an image that is upside down is turned: ``HL`` is ``FR``.

    Args:
        column: the second value of Patient Orientation.
    """
    return column.translate(_TURNED) if column[:1] == "H" else column


def judge_side(
    side: str, laterality: str | None, orientation: tuple[str, str] | None
) -> SideVerdict | None:
    """Hold laterality, Patient Orientation and the side of the chest wall against one another.

    Args:
        side: ``left`` or ``right``, where the chest wall is in the image.
        laterality: ``L`` or ``R``.
        orientation: as for ``is_upside_down``.

    Returns:
        None where neither tag says anything.

    Source: DICOM PS3.3 C.7.6.1.1.1; mammograms are shown with the axilla or the lateral side on
        top, so that the columns of a right breast run towards the patient's left.
    """
    row, column = orientation or ("", "")
    wall = _WALL.get(row)
    if wall is None:
        column = ""
    if laterality is None and wall is None:
        return None
    if laterality is not None and upright_column(column)[-1:] == laterality:
        return SideVerdict.ORIENTATION_AGAINST_LATERALITY
    if wall is not None and wall != side:
        return SideVerdict.AGAINST_ORIENTATION
    if laterality is None or side == ("right" if laterality == Laterality.RIGHT else "left"):
        return SideVerdict.OK
    return SideVerdict.AGAINST_LATERALITY if wall is None else SideVerdict.MIRRORED


# Where the chest wall is, by the direction of a row: anterior or posterior.
_WALL = {"A": "left", "P": "right"}
_TURNED = str.maketrans("HLR", "FRL")


def turn_chest_wall_left(pixels: np.ndarray, side: str) -> np.ndarray:
    """Mirror an (H, W) image left to right if its chest wall is on the right.

    Args:
        pixels: (H, W).
        side: ``left`` or ``right``, where the chest wall is.

    Returns:
        (H, W), contiguous.
    """
    return np.ascontiguousarray(pixels[:, ::-1] if side == "right" else pixels)


def to_stored_frame(box: Box, crop: Box, *, flipped: bool, turned_upright: bool = False) -> Box:
    """Map a box of the native frame into the stored frame.

    Args:
        box: in the native frame; may reach beyond the crop.
        crop: the crop in the native frame.
        flipped: whether the crop was mirrored left to right.
        turned_upright: whether its rows were reversed.
    """
    top, left = box.top - crop.top, box.left - crop.left
    if flipped:
        left = crop.width - left - box.width
    if turned_upright:
        top = crop.height - top - box.height
    return Box(top, left, box.height, box.width)


def to_native_frame(box: Box, crop: Box, *, flipped: bool, turned_upright: bool = False) -> Box:
    """Map a box of the stored frame back into the native frame; the inverse of the above."""
    left = crop.width - box.left - box.width if flipped else box.left
    top = crop.height - box.top - box.height if turned_upright else box.top
    return Box(top + crop.top, left + crop.left, box.height, box.width)
