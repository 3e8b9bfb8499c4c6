import subprocess

import numpy as np
import pytest
from dicom_files import half_disk
from PIL import Image

from mammo_pd.errors import ImageError
from mammo_pd.imaging.grey_scale import stretch_raster
from mammo_pd.imaging.raster import reached_depth, read_raster
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
    read = read_raster(path).pixels
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tag", [0, 1])
def test_tiff_says_which_of_white_and_black_is_zero(tmp_path, tag, dtype):
    pixels = half_disk()
    pixels = pixels if dtype == np.uint16 else (pixels >> 4).astype(np.uint8)
    path = tmp_path / "a.tif"
    Image.fromarray(pixels).save(path)
    # Tag 262, one SHORT. Pillow would invert the pixels if it were asked to write 0.
    entry = b"\x06\x01\x03\x00\x01\x00\x00\x00"
    written = path.read_bytes()
    assert written.count(entry + b"\x01\x00") == 1
    path.write_bytes(written.replace(entry + b"\x01\x00", entry + bytes([tag, 0])))
    read = read_raster(path)
    np.testing.assert_array_equal(read.pixels, pixels)
    assert read.photometric_interpretation == ("MONOCHROME1" if tag == 0 else "MONOCHROME2")
    shown = stretch_raster(read.pixels, read.photometric_interpretation).pixels
    brightest = pixels.argmin() if tag == 0 else pixels.argmax()
    assert shown.flat[brightest] == shown.max()


def test_jpeg_is_read_as_lossy(tmp_path):
    pixels = (half_disk() >> 4).astype(np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    read = read_raster(path)
    assert read.lossy
    np.testing.assert_array_equal(read.pixels, np.asarray(Image.open(path)))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert not read_raster(tmp_path / "a.png").lossy


def test_equal_channels_are_grey_and_others_colour(tmp_path):
    grey = (half_disk() >> 4).astype(np.uint8)
    path = tmp_path / "rgb.png"
    Image.fromarray(np.stack([grey] * 3, -1)).save(path)
    np.testing.assert_array_equal(read_raster(path).pixels, grey)
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
    assert reached_depth(np.array([[0, highest]], np.uint16)) == depth


def test_eight_bits_stay_eight_whatever_they_hold():
    assert reached_depth(np.array([[0, 3]], np.uint8)) == 8


@pytest.mark.parametrize(
    "kind", ["EPS", "BMP", "GIF", "ICO", "JPEG2000", "PCX", "SGI", "TGA", "WEBP"]
)
def test_nothing_but_the_named_formats_is_read_whatever_a_file_is_called(
    tmp_path, kind, monkeypatch
):
    """Pillow goes by the content: it would run Ghostscript on PostScript that is called a PNG."""
    path = tmp_path / "a.png"
    Image.fromarray((half_disk() >> 4).astype(np.uint8)).save(path, kind)
    with Image.open(path) as opened:
        assert opened.format == kind
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("ran a program"))
    assert refusal(path) is Reason.NOT_AN_IMAGE
