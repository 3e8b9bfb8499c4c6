import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mammo_pd.imaging.box import Box
from mammo_pd.imaging.orientation import to_native_frame, to_stored_frame, turn_chest_wall_left

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
