import numpy as np
import pytest
from dicom_files import half_disk, make_dataset
from hypothesis import given
from hypothesis import strategies as st

from mammo_pd.imaging.box import Box
from mammo_pd.imaging.header import find_laterality, find_view
from mammo_pd.imaging.orientation import (
    is_upside_down,
    judge_side,
    to_native_frame,
    to_stored_frame,
    turn_chest_wall_left,
    upright_column,
)

boxes = st.builds(Box, *[st.integers(0, 50)] * 2, *[st.integers(1, 40)] * 2)


@given(box=boxes, crop=boxes, flipped=st.booleans())
def test_there_and_back(box, crop, flipped):
    assert (
        to_native_frame(to_stored_frame(box, crop, flipped=flipped), crop, flipped=flipped) == box
    )


@given(crop=boxes, flipped=st.booleans(), data=st.data())
def test_a_mapped_box_holds_the_same_pixels(crop, flipped, data):
    frame = np.arange(100 * 100).reshape(100, 100)
    top = data.draw(st.integers(crop.top, crop.bottom - 1))
    left = data.draw(st.integers(crop.left, crop.right - 1))
    height = data.draw(st.integers(1, crop.bottom - top))
    width = data.draw(st.integers(1, crop.right - left))
    box = Box(top, left, height, width)
    stored = turn_chest_wall_left(frame[crop.slices], "right" if flipped else "left")
    inside = stored[to_stored_frame(box, crop, flipped=flipped).slices]
    assert set(inside.ravel()) == set(frame[box.slices].ravel())


def test_left_flipped_equals_right():
    pixels = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(turn_chest_wall_left(pixels[:, ::-1], "right"), pixels)
    np.testing.assert_array_equal(turn_chest_wall_left(pixels, "left"), pixels)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("flipped", [False, True])
def test_boxes_of_an_upside_down_image(flipped, turned):
    crop, box = Box(5, 7, 40, 30), Box(12, 9, 6, 11)
    frame = np.random.default_rng(0).integers(0, 999, (60, 50))
    stored = frame[crop.slices][:: -1 if turned else 1, :: -1 if flipped else 1]
    inside = to_stored_frame(box, crop, flipped=flipped, turned_upright=turned)
    expected = frame[box.slices][:: -1 if turned else 1, :: -1 if flipped else 1]
    np.testing.assert_array_equal(stored[inside.slices], expected)
    assert to_native_frame(inside, crop, flipped=flipped, turned_upright=turned) == box


@pytest.mark.parametrize(
    ("side", "laterality", "orientation", "verdict"),
    [
        # As mammograms are shown: PS3.3 C.7.6.1.1.1, and the files of the corpus.
        ("left", "L", ("A", "R"), "ok"),
        ("right", "R", ("P", "L"), "ok"),
        ("right", "R", ("P", "FL"), "ok"),
        ("left", "L", ("A", "FR"), "ok"),
        ("left", "L", None, "ok"),
        ("left", None, ("A", "R"), "ok"),
        # Upside down: the way across is turned with the way down.
        ("left", "L", ("A", "HL"), "ok"),
        ("right", "L", ("P", "FR"), "mirrored"),
        ("right", "L", None, "against_laterality"),
        ("right", "L", ("A", "FR"), "against_orientation"),
        ("right", None, ("A", "FR"), "against_orientation"),
        ("right", "L", ("P", "L"), "orientation_against_laterality"),
        ("left", "L", ("A", "HR"), "orientation_against_laterality"),
        # A patient who lies, or a direction that is none of a mammogram's, says nothing.
        ("left", "L", ("R", "P"), "ok"),
        ("left", None, ("R", "P"), None),
        ("left", None, None, None),
    ],
)
def test_side_laterality_and_orientation_against_one_another(
    side, laterality, orientation, verdict
):
    assert judge_side(side, laterality, orientation) == verdict


@pytest.mark.parametrize(
    ("upside_down", "upright"), [("HL", "FR"), ("HR", "FL"), ("H", "F"), ("FL", "FL"), ("R", "R")]
)
def test_the_side_that_orientation_tells_is_that_of_the_upright_image(upside_down, upright):
    """Where no other tag names the side."""
    assert upright_column(upside_down) == upright
    headers = [
        make_dataset(half_disk(), PatientOrientation=["A", c]) for c in (upside_down, upright)
    ]
    assert find_laterality(headers[0]) == find_laterality(headers[1])
    assert find_view(headers[0]) == find_view(headers[1])


def test_what_is_upside_down():
    assert is_upside_down(("A", "HL"))
    assert is_upside_down(("P", "H"))
    for orientation in (None, ("A", "FR"), ("A", "R"), ("P", "L"), ("R", "H"), ("L", "F")):
        assert not is_upside_down(orientation)
