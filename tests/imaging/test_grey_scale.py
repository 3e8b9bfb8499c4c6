import numpy as np
import pytest
from dicom_files import half_disk, make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from mammo_pd.errors import ImageError
from mammo_pd.imaging.decode import decode
from mammo_pd.imaging.dicom_file import read_dataset
from mammo_pd.imaging.grey_scale import apply_grey_scale, stretch_raster
from mammo_pd.terms import Reason, VoiPolicy

EVERY_12_BITS = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def oracle(stored, dataset, y_min, y_max, **options):
    """pydicom's own modality and VOI functions on the whole image, brought to 0..65535."""
    grey = apply_modality_lut(stored, dataset)
    if np.all(grey == np.rint(grey)):
        grey = grey.astype(np.int64)
    grey = apply_voi_lut(grey, dataset, **options)
    return np.rint((grey.astype(np.float64) - y_min) / (y_max - y_min) * 65535)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(2048, 4096), (1500, 700.5), (100, 1)])
def test_windows_as_pydicom_applies_them(function, center, width):
    dataset = make_dataset(
        EVERY_12_BITS, WindowCenter=[center, 7], WindowWidth=[width, 7], VOILUTFunction=function
    )
    grey = apply_grey_scale(EVERY_12_BITS, dataset)
    np.testing.assert_allclose(grey.pixels, oracle(EVERY_12_BITS, dataset, 0, 4095), atol=1)
    assert grey.voi_applied == f"window:{function}"
    assert grey.pixels.dtype == np.uint16


def test_a_window_after_a_rescale():
    dataset = make_dataset(
        EVERY_12_BITS, RescaleSlope=0.5, RescaleIntercept=-100, WindowCenter=500, WindowWidth=400
    )
    expected = oracle(EVERY_12_BITS, dataset, -100, 4095 * 0.5 - 100)
    np.testing.assert_allclose(apply_grey_scale(EVERY_12_BITS, dataset).pixels, expected, atol=1)


def lut_dataset(first=100, entries=1000, depth=12, **tags):
    item = Dataset()
    item.LUTDescriptor = [entries, first, depth]
    ramp = np.linspace(0, 2**depth - 1, entries)
    item.LUTData = [int(value) for value in ramp]
    return make_dataset(EVERY_12_BITS, VOILUTSequence=[item], **tags)


def test_the_lut_goes_before_the_window_and_as_pydicom_applies_it():
    dataset = lut_dataset(WindowCenter=2000, WindowWidth=100)
    grey = apply_grey_scale(EVERY_12_BITS, dataset)
    assert grey.voi_applied == "lut"
    np.testing.assert_allclose(grey.pixels, oracle(EVERY_12_BITS, dataset, 0, 4095), atol=1)
    window = apply_grey_scale(EVERY_12_BITS, dataset, VoiPolicy.WINDOW)
    assert window.voi_applied == "window:LINEAR"
    expected = oracle(EVERY_12_BITS, dataset, 0, 4095, prefer_lut=False)
    np.testing.assert_allclose(window.pixels, expected, atol=1)


def test_an_8_bit_lut_of_many_entries_does_not_wrap():
    grey = apply_grey_scale(EVERY_12_BITS, lut_dataset(first=0, entries=4096, depth=8))
    assert (np.diff(grey.pixels.ravel().astype(int)) >= 0).all()
    assert grey.pixels.max() == 65535


def test_policies_that_insist():
    bare = make_dataset(EVERY_12_BITS)
    for policy in (VoiPolicy.LUT, VoiPolicy.WINDOW):
        with pytest.raises(ImageError) as caught:
            apply_grey_scale(EVERY_12_BITS, bare, policy)
        assert caught.value.reason == Reason.NO_VOI
    raw = apply_grey_scale(EVERY_12_BITS, lut_dataset(), VoiPolicy.RAW)
    assert raw.voi_applied == "full_range"
    np.testing.assert_allclose(raw.pixels, np.rint(EVERY_12_BITS / 4095 * 65535), atol=1)


@pytest.mark.parametrize("width", [0, -5])
def test_a_window_that_cannot_be_is_no_window(width):
    dataset = make_dataset(EVERY_12_BITS, WindowCenter=5, WindowWidth=width)
    assert apply_grey_scale(EVERY_12_BITS, dataset).voi_applied == "full_range:unusable_WindowWidth"


@pytest.mark.parametrize(
    ("function", "width", "usable"),
    [("LINEAR", 0.5, False), ("LINEAR", 1, True)]
    + [(function, 0.5, True) for function in ("LINEAR_EXACT", "SIGMOID")],
)
def test_only_a_linear_window_needs_a_width_of_one(function, width, usable):
    """C.11.2.1.2.1 and C.11.2.1.3."""
    dataset = make_dataset(
        EVERY_12_BITS, WindowCenter=2000.25, WindowWidth=width, VOILUTFunction=function
    )
    told = apply_grey_scale(EVERY_12_BITS, dataset).voi_applied
    assert told == (f"window:{function}" if usable else "full_range:unusable_WindowWidth")


def test_the_first_of_several_luts_is_taken():
    """C.11.2.1.1: a viewer may choose any of them."""
    first, second = (lut_dataset(first=at).VOILUTSequence[0] for at in (100, 2000))
    both = make_dataset(EVERY_12_BITS, VOILUTSequence=[first, second])
    np.testing.assert_array_equal(
        apply_grey_scale(EVERY_12_BITS, both).pixels,
        apply_grey_scale(EVERY_12_BITS, lut_dataset(first=100)).pixels,
    )


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33])
def test_an_image_may_have_any_number_of_rows(rows):
    stored = EVERY_12_BITS.reshape(-1, 8)[:rows]
    grey = apply_grey_scale(stored, make_dataset(stored)).pixels
    np.testing.assert_array_equal(grey, np.rint(stored / 4095 * 65535))


@pytest.mark.parametrize("narrow", [np.int16, np.uint16])
def test_values_in_32_bits_are_those_of_16_or_refused(narrow):
    low, high = np.iinfo(narrow).min, np.iinfo(narrow).max
    wide = np.int32 if low else np.uint32
    stored = np.linspace(low, high, 4096).astype(wide).reshape(64, 64)
    dataset = make_dataset(stored.astype(narrow), BitsStored=16)
    expected = apply_grey_scale(stored.astype(narrow), dataset).pixels
    np.testing.assert_array_equal(apply_grey_scale(stored, dataset).pixels, expected)
    for beyond in (low - 1, high + 1)[0 if low else 1 :]:
        with pytest.raises(ImageError, match="do not fit 16 bits"):
            apply_grey_scale(np.where(stored == low, wide(beyond), stored), dataset)


def test_pixels_without_bits_stored_have_16():
    stored = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    dataset = make_dataset(stored, BitsStored=None)
    np.testing.assert_array_equal(apply_grey_scale(stored, dataset).pixels, stored)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "INVERSE", True),
    ],
)
def test_inversion_is_done_once(photometric, shape, inverted):
    plain = apply_grey_scale(
        EVERY_12_BITS, make_dataset(EVERY_12_BITS, WindowCenter=900, WindowWidth=500)
    )
    dataset = make_dataset(
        EVERY_12_BITS,
        PhotometricInterpretation=photometric,
        PresentationLUTShape=shape,
        WindowCenter=900,
        WindowWidth=500,
    )
    expected = 65535 - plain.pixels.astype(int) if inverted else plain.pixels
    np.testing.assert_allclose(apply_grey_scale(EVERY_12_BITS, dataset).pixels, expected, atol=1)


def test_inversion_does_not_depend_on_the_images_own_maximum():
    dim = half_disk()
    dataset = make_dataset(dim, PhotometricInterpretation="MONOCHROME1")
    brighter = dim.copy()
    brighter[0, -1] = 4095
    before, after = (apply_grey_scale(image, dataset).pixels for image in (dim, brighter))
    np.testing.assert_array_equal(before.ravel()[64:], after.ravel()[64:])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("first", "limit"), [(0, None), (4095, None), (0, 30), (4000, 4095)])
def test_padding_is_air_also_where_it_is_white(photometric, first, limit):
    dataset = make_dataset(
        EVERY_12_BITS,
        PhotometricInterpretation=photometric,
        PixelPaddingValue=first,
        PixelPaddingRangeLimit=limit,
    )
    grey = apply_grey_scale(EVERY_12_BITS, dataset)
    padded = (first <= EVERY_12_BITS) & ((first if limit is None else limit) >= EVERY_12_BITS)
    assert (grey.pixels[padded] == 0).all()
    assert (grey.full_range[padded] == 0).all()
    assert grey.pixels[~padded].max() > 60000


def test_signed_values_and_unsigned_padding():
    stored = (EVERY_12_BITS.astype(np.int16) - 2048).copy()
    dataset = make_dataset(stored, PixelPaddingValue=63488)  # -2048, written unsigned
    grey = apply_grey_scale(stored, dataset).pixels.ravel()
    np.testing.assert_allclose(grey[1:], np.rint(np.arange(1, 4096) / 4095 * 65535), atol=1)
    assert grey[0] == 0


def test_32_signed_bits_are_not_clipped():
    signed = EVERY_12_BITS.astype(np.int32) * 8
    dataset = make_dataset(signed, BitsStored=32, HighBit=31)
    grey = apply_grey_scale(signed, dataset).pixels
    np.testing.assert_allclose(grey, (signed + 32768) / 65535 * 65535, atol=1)
    with pytest.raises(ImageError, match="do not fit 16 bits"):
        apply_grey_scale(signed * 2, dataset)


WIDE = {"WindowCenter": 2**15, "WindowWidth": 2**16}


@pytest.mark.parametrize(
    ("stored", "tags", "noted"),
    [
        (EVERY_12_BITS, {}, False),
        (EVERY_12_BITS // 2, {}, False),
        (EVERY_12_BITS, {"BitsStored": 16, "HighBit": 15}, True),
        (EVERY_12_BITS, {"BitsStored": 14, "HighBit": 13}, True),
        (EVERY_12_BITS, {"BitsStored": 13, "HighBit": 12}, False),
        (EVERY_12_BITS, WIDE, True),
        (EVERY_12_BITS, WIDE | {"PhotometricInterpretation": "MONOCHROME1"}, True),
        ((EVERY_12_BITS // 16).astype(np.uint8), {"WindowCenter": 2048, "WindowWidth": 4096}, True),
        ((EVERY_12_BITS // 16).astype(np.uint8), {}, False),
        (EVERY_12_BITS.astype(np.int16), {"BitsStored": 16, "HighBit": 15}, True),
        (EVERY_12_BITS, {"RescaleSlope": "0.01", "RescaleIntercept": 0}, False),
        (
            EVERY_12_BITS,
            {
                "RescaleSlope": "0.01",
                "RescaleIntercept": 0,
                "WindowCenter": 2048,
                "WindowWidth": 4096,
            },
            True,
        ),
    ],
)
def test_a_grey_scale_of_another_depth_than_the_pixels_is_told(stored, tags, noted):
    voi_applied = apply_grey_scale(stored, make_dataset(stored, **tags)).voi_applied
    assert voi_applied.endswith(":spans_under_25_percent") == noted


@pytest.mark.parametrize("tags", [{"RescaleSlope": 2}, {"RescaleIntercept": -1024}])
def test_half_a_rescale_is_told(tags):
    voi_applied = apply_grey_scale(EVERY_12_BITS, make_dataset(EVERY_12_BITS, **tags)).voi_applied
    assert voi_applied == "full_range:incomplete_Rescale"


@settings(max_examples=40, deadline=None)
@given(
    center=st.floats(-1000, 5000),
    width=st.floats(1, 9000),
    slope=st.floats(0.01, 4) | st.floats(-4, -0.01),
    mono1=st.booleans(),
)
def test_order_is_kept_or_reversed_never_mixed(center, width, slope, mono1):
    dataset = make_dataset(
        EVERY_12_BITS,
        WindowCenter=round(center, 3),
        WindowWidth=round(width, 3),
        RescaleSlope=round(slope, 3),
        RescaleIntercept=0,
        PhotometricInterpretation="MONOCHROME1" if mono1 else "MONOCHROME2",
    )
    steps = np.diff(apply_grey_scale(EVERY_12_BITS, dataset).pixels.ravel().astype(int))
    assert (steps * (1 if (slope > 0) != mono1 else -1) >= 0).all()


def test_rasters_fill_the_range():
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(stretch_raster(eight).pixels, eight.astype(int) * 257)
    twelve = stretch_raster(EVERY_12_BITS, bits_stored=12)
    assert (twelve.pixels.max(), twelve.voi_applied) == (65535, "full_range:12bit")


def test_the_depth_of_a_raster_is_never_guessed_from_one_image():
    """A marker that reaches further must not darken the breast."""
    marked = EVERY_12_BITS.copy()
    marked[0, 0] = 16383
    for bits in (None, 14):
        plain, other = (stretch_raster(a, bits_stored=bits) for a in (EVERY_12_BITS, marked))
        np.testing.assert_array_equal(plain.pixels.ravel()[1:], other.pixels.ravel()[1:])
    assert stretch_raster(marked).voi_applied == "full_range:16bit:reaches_14bit"
    with pytest.raises(ImageError, match="reaches 16383, beyond --bits-stored 12"):
        stretch_raster(marked, bits_stored=12)
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert stretch_raster(eight, bits_stored=12).voi_applied == "full_range:8bit"


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "voi", "bits"),
    [
        ("fodicom_GH133_ge_R_MLO_voilut_sigmoid", "lut", 12),
        ("ge_essential_R_CC", "lut", 12),
        ("ge_essential_R_XCCL", "window:SIGMOID", 12),
        ("hologic_dsm_stereo_scout_mono1", "window:LINEAR", 14),
        ("fodicom_OutOfBoundsOverlay_siemens_stereo", "window:LINEAR", 12),
        ("train_images_10011_220375232", "window:LINEAR", 12),
    ],
)
def test_real_files_as_pydicom_shows_them(corpus, name, voi, bits):
    dataset = read_dataset(corpus / "mg_dicom" / f"{name}.dcm")
    stored = decode(dataset).values
    policy = VoiPolicy.AUTO if voi == "lut" else VoiPolicy.WINDOW
    grey = apply_grey_scale(stored, dataset, policy)
    assert grey.voi_applied == voi
    expected = oracle(stored, dataset, 0, 2**bits - 1, prefer_lut=voi == "lut")
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        expected = 65535 - expected
    padding = dataset.get("PixelPaddingValue")
    if padding is not None:
        expected[stored <= dataset.get("PixelPaddingRangeLimit", padding)] = 0
    np.testing.assert_allclose(grey.pixels, expected, atol=1)
