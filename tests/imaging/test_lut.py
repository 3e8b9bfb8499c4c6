import numpy as np
import pytest
from dicom_files import make_dataset
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
    ],
)
def test_more_or_fewer_bits_than_declared_are_recorded(top, depth, brightest, voi_applied):
    grey = voi(EVERY_12_BITS, lut_item(0, np.linspace(0, top, 4096).astype(int), depth=depth))
    assert (grey.pixels.max(), grey.voi_applied) == (brightest, voi_applied)


@pytest.mark.parametrize("data_vr", ["US", "OW"])
def test_further_entries_are_passed_over_and_recorded(data_vr):
    item = lut_item(0, [*CURVE, 0, 0, 9], count=4096, data_vr=data_vr)
    grey = voi(EVERY_12_BITS, item)
    np.testing.assert_allclose(grey.pixels.ravel(), CURVE / 4095 * 65535, atol=1)
    assert grey.voi_applied == "lut:holds_4099_of_4096_entries"


@pytest.mark.parametrize("data_vr", ["US", "OW"])
@pytest.mark.parametrize(("held", "depth"), [(4095, 12), (3000, 12), (2048, 12), (3000, 8)])
def test_fewer_entries_than_declared_are_refused(held, depth, data_vr):
    data = np.linspace(0, 2**depth - 1, held)
    with pytest.raises(ImageError, match=f"declares 4096 entries and holds {held}") as caught:
        voi(EVERY_12_BITS, lut_item(0, data, count=4096, depth=depth, data_vr=data_vr))
    assert caught.value.reason == Reason.UNREADABLE


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
