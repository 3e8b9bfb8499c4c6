import pytest

from mammo_pd.imaging.box import Box


def test_boxes():
    box = Box(2, 3, 4, 5)
    assert (box.bottom, box.right) == (6, 8)
    assert box.overlap(box) == 1
    assert box.overlap(Box(2, 3, 4, 10)) == pytest.approx(0.5)
    assert box.overlap(Box(90, 90, 1, 1)) == 0
    assert box.scaled(0.5, (50, 50)) == Box(1, 1, 2, 3)
    assert Box.whole((30, 20)) == Box(0, 0, 30, 20)
    with pytest.raises(ValueError, match="at least one pixel"):
        Box(0, 0, 0, 4)
