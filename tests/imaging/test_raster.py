import numpy as np
import pytest
from dicom_files import half_disk
from PIL import Image

from mammo_pd.errors import ImageError
from mammo_pd.imaging.raster import read_raster, stored_depth
from mammo_pd.terms import Reason


def refusal(path):
    with pytest.raises(ImageError) as caught:
        read_raster(path)
    assert str(path.parent) not in caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("suffix", [".png", ".pgm", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_images_come_back_as_written(tmp_path, suffix, dtype):
    pixels = half_disk()
    pixels = pixels if dtype == np.uint16 else (pixels >> 4).astype(np.uint8)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path)
    read = read_raster(path)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, pixels)


def test_equal_channels_are_grey_and_others_colour(tmp_path):
    grey = (half_disk() >> 4).astype(np.uint8)
    path = tmp_path / "rgb.png"
    Image.fromarray(np.stack([grey] * 3, -1)).save(path)
    np.testing.assert_array_equal(read_raster(path), grey)
    Image.fromarray(np.stack([grey, grey, grey // 2], -1)).save(path)
    assert refusal(path) == Reason.COLOUR


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(half_disk()).save(path)
    path.write_bytes(path.read_bytes()[:300])
    assert refusal(path) == Reason.UNREADABLE
    path.write_bytes(b"no image")
    assert refusal(path) == Reason.NOT_AN_IMAGE
    assert refusal(tmp_path / "gone.png") == Reason.UNREADABLE


def test_several_pages_constant_values_and_floats_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    page = Image.fromarray(half_disk())
    page.save(path, save_all=True, append_images=[page])
    assert refusal(path) == Reason.MULTI_FRAME
    Image.fromarray(np.full((50, 50), 9, np.uint8)).save(path)
    assert refusal(path) == Reason.EMPTY_PIXELS
    Image.fromarray(half_disk().astype(np.float32)).save(path)
    assert refusal(path) == Reason.UNREADABLE


@pytest.mark.parametrize(
    ("highest", "depth"), [(200, 8), (1000, 10), (1024, 12), (4095, 12), (4096, 14), (65535, 16)]
)
def test_depth_is_the_smallest_usual_one(highest, depth):
    assert stored_depth(np.array([[0, highest]], np.uint16)) == depth


def test_eight_bits_stay_eight_whatever_they_hold():
    assert stored_depth(np.array([[0, 3]], np.uint8)) == 8
