import numpy as np
import pytest
from dicom_files import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from mammo_pd.errors import ImageError
from mammo_pd.imaging.grey_scale import apply_grey_scale
from mammo_pd.imaging.lut import read_lut
from mammo_pd.terms import Reason, VoiPolicy

EVERY_12_BITS = np.arange(4096, dtype=np.uint16).reshape(64, 64)
CURVE = np.rint(4095 / (1 + np.exp(-(np.arange(4096) - 2048) / 500)))


def lut_item(first, data=CURVE, *, count=None, depth=12, vr="US", data_vr="OW", order="<"):
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(data) if count is None else count, first, depth])
    if data_vr == "OW":
        data = np.asarray(data).astype(f"{order}u2").tobytes()
    else:
        data = [int(entry) for entry in data]
    item.add_new("LUTData", data_vr, data)
    return item


def voi(stored, item, **tags):
    return apply_grey_scale(stored, make_dataset(EVERY_12_BITS, VOILUTSequence=[item], **tags))


@pytest.mark.parametrize("vr", ["US", "SS"])
@pytest.mark.parametrize("intercept", [-2048, -4095, -1])
def test_a_first_value_is_signed_where_the_rescaled_values_are(intercept, vr):
    first = intercept if vr == "SS" else intercept + 2**16
    tags = {"RescaleSlope": 1, "RescaleIntercept": intercept}
    grey = voi(EVERY_12_BITS, lut_item(first, vr=vr), **tags)
    # pydicom takes the VR at its word, so it is asked with the VR that fits.
    known = make_dataset(EVERY_12_BITS, VOILUTSequence=[lut_item(intercept, vr="SS")], **tags)
    rescaled = apply_modality_lut(EVERY_12_BITS, known).astype(np.int64)
    expected = apply_voi_lut(rescaled, known) / 4095 * 65535
    np.testing.assert_allclose(grey.pixels, expected, atol=1)
    assert grey.voi_applied == "lut"


@pytest.mark.parametrize(("vr", "first"), [("US", 40000), ("SS", 40000 - 2**16)])
def test_a_first_value_is_unsigned_where_the_values_are(vr, first):
    stored = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    data = np.linspace(0, 65535, 25536).astype(int)
    tags = {"BitsStored": 16, "HighBit": 15}
    grey = voi(stored, lut_item(first, data, depth=16, vr=vr), **tags)
    known = make_dataset(stored, VOILUTSequence=[lut_item(40000, data, depth=16)], **tags)
    np.testing.assert_allclose(grey.pixels, apply_voi_lut(stored, known), atol=1)


def test_signed_pixels_without_a_rescale():
    stored = EVERY_12_BITS.astype(np.int16) - 2048
    grey = apply_grey_scale(
        stored, make_dataset(stored, VOILUTSequence=[lut_item(63488)], BitsStored=12)
    )
    np.testing.assert_allclose(grey.pixels.ravel(), CURVE / 4095 * 65535, atol=1)


@pytest.mark.parametrize("first", [-100, 2**16 - 100])
def test_a_table_that_begins_below_values_that_are_never_negative(first):
    vr = "SS" if first < 0 else "US"
    grey = voi(EVERY_12_BITS, lut_item(first, np.arange(4096), vr=vr))
    expected = np.minimum(np.arange(4096) + 100, 4095) / 4095 * 65535
    np.testing.assert_allclose(grey.pixels.ravel(), expected, atol=1)


@pytest.mark.parametrize(("vr", "first"), [("US", 63488), ("SS", -2048)])
def test_a_modality_lut_takes_its_sign_from_the_pixels(vr, first):
    stored = EVERY_12_BITS.astype(np.int16) - 2048
    item = lut_item(first, depth=16, vr=vr)
    dataset = make_dataset(stored, BitsStored=12, ModalityLUTSequence=[item])
    known = make_dataset(stored, ModalityLUTSequence=[lut_item(-2048, depth=16, vr="SS")])
    expected = apply_modality_lut(stored, known)
    span = expected.max() - expected.min()
    grey = apply_grey_scale(stored, dataset, VoiPolicy.RAW).pixels
    np.testing.assert_allclose(grey, (expected - expected.min()) / span * 65535, atol=1)


def by_table(data, stored=EVERY_12_BITS, policy=VoiPolicy.RAW, **tags):
    item = lut_item(0, data, depth=16)
    dataset = make_dataset(stored, ModalityLUTSequence=[item], **tags)
    return apply_grey_scale(stored, dataset, policy)


def over_its_own_extremes(data, stored):
    """pydicom's modality LUT, from the darkest to the brightest grey that it can give."""
    module = make_dataset(stored, ModalityLUTSequence=[lut_item(0, data, depth=16)])
    greys = apply_modality_lut(stored, module).astype(float)
    return np.rint((greys - np.min(data)) / np.ptp(data) * 65535)


RISING = np.linspace(1000, 50000, 4096)
TURNING_BACK = {
    "a valley": np.abs(np.arange(4096) - 2048) * 30,
    "a hill": 61440 - np.abs(np.arange(4096) - 2048) * 30,
    "a wrap": np.arange(4096) * 32 % 65536,
    "the other byte order": RISING.astype("<u2").byteswap(),
    "another table from the middle on": np.concatenate([RISING[:2048], RISING[:2048]]),
    "a dip of 1 %": np.where(np.arange(4096) == 1000, RISING - 502, RISING),
}


@pytest.mark.parametrize("policy", [VoiPolicy.RAW, VoiPolicy.AUTO])
@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("kind", TURNING_BACK)
def test_a_modality_lut_that_turns_back_is_refused(kind, falling, policy):
    data = TURNING_BACK[kind]
    data = 65535 - data if falling else data
    for tags in ({}, {"WindowCenter": 30000, "WindowWidth": 50000}):
        with pytest.raises(ImageError, match=r"Modality LUT Sequence both rises and falls .* %"):
            by_table(data, policy=policy, **tags)


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(st.integers(0, 65535), min_size=3, max_size=9).filter(lambda p: len(set(p)) > 1)
)
def test_a_modality_lut_is_refused_or_nothing_of_it_is_lost(points):
    data = np.rint(np.interp(np.arange(4096), np.linspace(0, 4095, len(points)), points))
    try:
        grey = by_table(data)
    except ImageError as error:
        assert error.reason == Reason.HEADER_CONTRADICTS
        return
    shown = grey.pixels.ravel().astype(int)
    fall = (np.maximum.accumulate(shown) - shown).max()
    rise = (shown - np.minimum.accumulate(shown)).max()
    assert min(fall, rise) <= 65535 / 256 + 1
    np.testing.assert_allclose(grey.pixels, over_its_own_extremes(data, EVERY_12_BITS), atol=1)


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("at", [0, 2000, 4095])
def test_a_measured_curve_that_trembles_is_applied_as_given(at, falling):
    data = np.rint(RISING + np.random.default_rng(0).integers(-20, 20, 4096))
    data[at] += -100 if at else 100
    data = 65535 - data if falling else data
    expected = over_its_own_extremes(data, EVERY_12_BITS)
    np.testing.assert_allclose(by_table(data).pixels, expected, atol=1)


@pytest.mark.parametrize("beyond", [0, 30000, 65535])
@pytest.mark.parametrize("tags", [{}, {"PixelPaddingValue": 4095}])
def test_what_a_modality_lut_has_for_values_that_are_not_in_the_image_is_no_reason(beyond, tags):
    data = RISING.copy()
    data[3000:] = beyond
    stored = EVERY_12_BITS % 3000
    stored[-1] = 4095 if tags else 0
    grey = by_table(data, stored, **tags).pixels
    expected = over_its_own_extremes(data, stored)
    if tags:
        expected[-1] = 0  # padding is air, whatever the table makes of it
    np.testing.assert_allclose(grey, expected, atol=1)


@pytest.mark.parametrize("vr", ["US", "SS"])
def test_more_than_32767_entries_whatever_the_vr(vr):
    data = np.linspace(0, 65535, 40000).astype(int)
    count = 40000 if vr == "US" else 40000 - 2**16
    item = lut_item(0, data, count=count, depth=16, vr=vr)
    assert len(read_lut(item, make_dataset(EVERY_12_BITS), (0, 65535)).entries) == 40000
    full = lut_item(0, np.arange(2**16), count=0, depth=16, vr=vr)
    assert len(read_lut(full, make_dataset(EVERY_12_BITS), (0, 65535)).entries) == 2**16


@pytest.mark.parametrize(
    ("top", "depth", "brightest", "voi_applied"),
    [
        # The declared depth is the output range (C.11.2.1.1), so these are dark, and said to be.
        (4095, 16, 4095, "lut:holds_12_of_16_bits"),
        (255, 12, round(255 / 4095 * 65535), "lut:holds_8_of_12_bits"),
        # These do not fit their range; it is as wide as they need.
        (4095, 8, 65535, "lut:holds_12_of_8_bits"),
        (65535, 12, 65535, "lut:holds_16_of_12_bits"),
        (4095, 12, 65535, "lut"),
        (0, 12, 0, "lut:spans_under_25_percent"),
    ],
)
def test_more_or_fewer_bits_than_declared_are_recorded(top, depth, brightest, voi_applied):
    grey = voi(EVERY_12_BITS, lut_item(0, np.linspace(0, top, 4096).astype(int), depth=depth))
    assert (grey.pixels.max(), grey.voi_applied) == (brightest, voi_applied)


@pytest.mark.parametrize("data_vr", ["US", "OW"])
@pytest.mark.parametrize("count", [4096, 4000])
def test_further_entries_are_passed_over_and_recorded(count, data_vr):
    """Also by values beyond the table, which take the last entry declared."""
    item = lut_item(0, [*CURVE[:count], 0, 0, 65535], count=count, data_vr=data_vr)
    grey = voi(EVERY_12_BITS, item)
    expected = CURVE[np.minimum(np.arange(4096), count - 1)]
    np.testing.assert_allclose(grey.pixels.ravel(), expected / 4095 * 65535, atol=1)
    assert grey.voi_applied == f"lut:holds_{count + 3}_of_{count}_entries"


def test_half_an_entry_at_the_end_is_passed_over():
    item = lut_item(0)
    item.LUTData += b"\x07"
    grey = voi(EVERY_12_BITS, item)
    np.testing.assert_allclose(grey.pixels.ravel(), CURVE / 4095 * 65535, atol=1)
    assert grey.voi_applied == "lut"


@pytest.mark.parametrize("data_vr", ["US", "OW"])
@pytest.mark.parametrize(("held", "depth"), [(4095, 12), (3000, 12), (2048, 12), (3000, 8)])
def test_fewer_entries_than_declared_are_refused(held, depth, data_vr):
    data = np.linspace(0, 2**depth - 1, held)
    with pytest.raises(ImageError, match=f"declares 4096 entries and holds {held}") as caught:
        voi(EVERY_12_BITS, lut_item(0, data, count=4096, depth=depth, data_vr=data_vr))
    assert caught.value.reason == Reason.UNREADABLE


@pytest.mark.parametrize(("top", "told"), [(4095, "holds_12_of_16_bits"), (65535, None)])
def test_what_is_odd_in_a_modality_lut_is_told(top, told):
    told_of = by_table(np.linspace(0, top, 4096)).voi_applied.split(":")[1:]
    assert told_of == ([] if told is None else [told])


def test_a_modality_lut_that_makes_one_value_of_all_is_refused():
    with pytest.raises(ImageError, match="one value of all") as caught:
        by_table(np.full(4096, 7))
    assert caught.value.reason == Reason.EMPTY_PIXELS


@pytest.mark.parametrize("lacks", ["LUTDescriptor", "LUTData", "one number", "numbers", "all"])
def test_an_incomplete_table_is_refused(lacks):
    item = lut_item(0)
    if lacks == "one number":
        item.LUTDescriptor = [4096, 0]
    elif lacks == "numbers":
        del item.LUTData
        item.add_new("LUTData", "LO", "none of these")
    elif lacks == "all":
        item.LUTData = b""
    else:
        delattr(item, lacks)
    with pytest.raises(ImageError, match="incomplete") as caught:
        voi(EVERY_12_BITS, item)
    assert caught.value.reason == Reason.UNREADABLE


@pytest.mark.parametrize("depth", [1, 8, 16])
def test_every_depth_from_1_to_16_is_taken(depth):
    data = np.linspace(0, 2**depth - 1, 4096).astype(int)
    grey = voi(EVERY_12_BITS, lut_item(0, data, depth=depth))
    assert (grey.pixels.max(), grey.voi_applied) == (65535, "lut")


@pytest.mark.parametrize("depth", [0, 17, 200])
def test_a_depth_that_cannot_be_is_refused(depth):
    with pytest.raises(ImageError, match=f"declares {depth} bits"):
        voi(EVERY_12_BITS, lut_item(0, depth=depth))


@pytest.mark.parametrize("data_vr", ["US", "OW"])
@pytest.mark.parametrize("count", [4096, 4095])
def test_8_bit_entries_two_to_a_word(count, data_vr):
    entries = (np.arange(count) // 16).astype(np.uint8)
    words = np.frombuffer(entries.tobytes().ljust(4096, b"\0"), "<u2")
    item = lut_item(0, words, count=count, depth=8, data_vr=data_vr)
    grey = voi(EVERY_12_BITS, item)
    np.testing.assert_array_equal(grey.pixels.ravel()[:count], entries * 257.0)
    assert grey.voi_applied == "lut"


@pytest.mark.parametrize(("syntax", "order"), [(uid.ExplicitVRBigEndian, ">"), (None, "<")])
def test_the_byte_order_is_the_files(syntax, order):
    header = make_dataset(EVERY_12_BITS, syntax or uid.ImplicitVRLittleEndian)
    table = read_lut(lut_item(0, order=order), header, (0, 4095))
    np.testing.assert_array_equal(table.entries, CURVE)


@pytest.mark.parametrize("first", [0, 1, 32767, 32768, 40000, 65535])
def test_a_first_value_has_the_sign_of_the_range_in_16_bits(first):
    item = lut_item(first)
    header = make_dataset(EVERY_12_BITS)
    signed = int(np.uint16(first).view(np.int16))
    assert read_lut(item, header, (-(2**15), 2**15 - 1)).first == signed
    assert read_lut(item, header, (0, 2**16 - 1)).first == first
