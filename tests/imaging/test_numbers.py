"""Numbers of a header that are none: the first good value is used, and what was ignored is told."""

import numpy as np
import pytest
from dicom_files import make_dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from mammo_pd.imaging.grey_scale import apply_grey_scale
from mammo_pd.imaging.header import readable_numbers

EVERY_12_BITS = np.arange(4096, dtype=np.uint16).reshape(64, 64)
TAGS = {
    "WindowCenter": 0x00281050,
    "WindowWidth": 0x00281051,
    "RescaleSlope": 0x00281053,
    "RescaleIntercept": 0x00281052,
}


def with_text(**texts):
    """A dataset whose decimal strings hold these bytes, as a file would."""
    dataset = make_dataset(EVERY_12_BITS)
    for keyword, text in texts.items():
        tag = Tag(TAGS[keyword])
        raw = RawDataElement(tag, "DS", len(text), text.encode(), 0, False, True)
        dataset._dict[tag] = raw
    return dataset


@pytest.mark.parametrize(
    ("text", "values", "clean"),
    [
        ("1600", [1600], True),
        ("1600.5\\7", [1600.5, 7], True),
        (" 1.6e3 ", [1600], True),
        ("1600,0", [1600], False),
        ("1600,25", [1600.25], False),
        ("0,125", [0.125], False),
        # May be a thousand and a half, or a million and a half.
        ("1,500", [None], False),
        ("\\1600", [None, 1600], False),
        ("NaN\\1600", [None, 1600], False),
        ("inf", [None], False),
        ("auto\\1600", [None, 1600], False),
        ("1600 HU", [1600], False),
        ("", [], True),
    ],
)
def test_texts_are_read_as_far_as_they_can_be(text, values, clean):
    read, is_clean = readable_numbers(with_text(WindowCenter=text), "WindowCenter")
    assert read == values
    assert is_clean == clean


@pytest.mark.parametrize(
    ("center", "width"),
    [
        ("1600,0", "1600,0"),
        ("1600 HU", "1600 HU"),
        ("\\1600", "\\1600"),
        ("NaN\\1600", "7\\1600"),
        ("1600\\", "1600\\x"),
        ("word\\1600", "1600"),
        ("5\\1600", "0\\1600"),
    ],
)
def test_first_good_window_is_used_and_what_was_ignored_is_told(center, width):
    expected = apply_grey_scale(
        EVERY_12_BITS, make_dataset(EVERY_12_BITS, WindowCenter=1600, WindowWidth=1600)
    )
    found = apply_grey_scale(EVERY_12_BITS, with_text(WindowCenter=center, WindowWidth=width))
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.voi_applied.startswith("window:LINEAR:")


@pytest.mark.parametrize(("center", "width"), [("x", "y"), ("1,500", "1,500"), ("1600", "0")])
def test_no_window_at_all_is_the_full_range_and_says_why(center, width):
    found = apply_grey_scale(EVERY_12_BITS, with_text(WindowCenter=center, WindowWidth=width))
    expected = apply_grey_scale(EVERY_12_BITS, make_dataset(EVERY_12_BITS))
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.voi_applied.startswith("full_range:")
    np.testing.assert_array_equal(found.full_range, expected.full_range)


def test_rescale_with_a_decimal_comma():
    expected = apply_grey_scale(
        EVERY_12_BITS,
        make_dataset(
            EVERY_12_BITS,
            RescaleSlope=0.5,
            RescaleIntercept=-100,
            WindowCenter=500,
            WindowWidth=400,
        ),
    )
    dataset = with_text(RescaleSlope="0,5", RescaleIntercept="-100,0")
    dataset.WindowCenter, dataset.WindowWidth = 500, 400
    found = apply_grey_scale(EVERY_12_BITS, dataset)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert "no_number_in_RescaleSlope" in found.voi_applied


def test_what_is_as_it_should_be_has_no_note():
    dataset = with_text(WindowCenter="1600\\5", WindowWidth="1600\\7")
    assert apply_grey_scale(EVERY_12_BITS, dataset).voi_applied == "window:LINEAR"
