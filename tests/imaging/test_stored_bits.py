"""Header against pixel data: depth, High Bit, sign, overlays, frames, in both directions."""

import imagecodecs
import numpy as np
import pytest
from dicom_files import ENCODERS, LOSSY_ENCODERS, half_disk, make_dataset
from pydicom import uid
from pydicom.encaps import encapsulate, generate_fragments

from mammo_pd.errors import ImageError
from mammo_pd.imaging.decode import decode
from mammo_pd.imaging.stored_bits import keep_stored_bits
from mammo_pd.terms import Reason

SYNTAXES = [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLosslessSV1]
NOISE = np.random.default_rng(0).normal(0, 30, (96, 64))


def dataset_of(pixels, syntax, **tags):
    """As ``make_dataset``; an encoder gets as many bits as the values have, whatever is said."""
    if syntax == uid.RLELossless:
        dataset = make_dataset(pixels, **tags)
        dataset.compress(syntax, generate_instance_uid=False)
        return dataset
    if not uid.UID(syntax).is_encapsulated:
        return make_dataset(pixels, syntax, **tags)
    dataset = make_dataset(pixels.view(np.uint16), syntax, BitsStored=16, HighBit=15)
    for keyword, value in {"BitsStored": 12, "HighBit": 11, **tags}.items():
        setattr(dataset, keyword, value)
    return dataset


def assert_refused(dataset, match):
    with pytest.raises(ImageError, match=match) as caught:
        decode(dataset)
    assert caught.value.reason == Reason.HEADER_CONTRADICTS


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_bits_above_bits_stored_are_refused_unless_an_overlay_lies_there(syntax):
    pixels = half_disk()
    with_overlay = pixels | (1 << 14) * (np.indices(pixels.shape).sum(0) % 7 == 0).astype(np.uint16)
    assert_refused(dataset_of(with_overlay, syntax), "12 bits")
    dataset = dataset_of(with_overlay, syntax)
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", 14)
    np.testing.assert_array_equal(decode(dataset).values, pixels)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_values_at_the_high_end_are_not_cut_to_bits_stored(syntax):
    assert_refused(dataset_of(half_disk() << 4, syntax, HighBit=15), "High Bit 15")


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_sign_that_is_not_extended_is(syntax):
    pixels = half_disk().astype(np.int16) - 1000
    raw = (pixels.view(np.uint16) & 0x0FFF).view(np.int16)
    dataset = dataset_of(raw, syntax, PixelRepresentation=1)
    np.testing.assert_array_equal(decode(dataset).values, pixels)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_wrong_sign_is_refused_and_the_right_one_is_not(syntax):
    bright = np.where(half_disk() > 0, half_disk() + 500 + NOISE, 0).astype(np.uint16)
    decode(dataset_of(bright, syntax))
    raw = np.where(bright > 2047, bright.astype(np.int32) - 4096, bright).astype(np.int16)
    assert_refused(dataset_of(raw, syntax, PixelRepresentation=1), "signed")
    around_zero = (half_disk() // 2 + NOISE).astype(np.int16)
    decode(dataset_of(around_zero, syntax, PixelRepresentation=1))
    unsigned = around_zero.view(np.uint16) & 0x0FFF
    assert_refused(dataset_of(unsigned, syntax), "unsigned")


@pytest.mark.parametrize("end", ["low", "high"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("lossy", [False, True])
def test_values_beyond_either_end_are_clipped_only_where_a_lossy_codec_overshoots(
    end, signed, lossy
):
    """A little, that is; twice the range is another depth, whatever the codec."""
    lowest, highest = (-2048, 2047) if signed else (0, 4095)
    reached = lowest if end == "low" else highest
    values = np.linspace(lowest, highest, 600).reshape(20, 30)
    values = values.astype(np.int16 if signed else np.uint16)
    dataset = make_dataset(values)
    kept = values.copy()
    assert keep_stored_bits(kept, dataset, lossy=lossy) is kept
    for factor, is_little in ((1.01, True), (2.5, False)):
        beyond = values.copy()
        beyond[3, 4] = int(reached * factor)
        if beyond[3, 4] == reached:  # nothing lies below 0
            continue
        if lossy and is_little:
            values[3, 4] = reached
            np.testing.assert_array_equal(keep_stored_bits(beyond, dataset, lossy=lossy), values)
        else:
            with pytest.raises(ImageError, match="The header says 12 bits"):
                keep_stored_bits(beyond, dataset, lossy=lossy)


def test_black_and_white_writing_is_no_wrong_sign():
    pixels = half_disk() // 2
    pixels[:, 40:] = 4095 * (np.indices((96, 24)).sum(0) % 3 == 0)
    decode(make_dataset(pixels))


@pytest.mark.parametrize("syntax", [uid.JPEG2000, uid.JPEGLSNearLossless, uid.HTJ2K])
def test_every_lossy_codestream_of_fewer_bits_is_refused(syntax):
    shallow = (half_disk() >> 4).astype(np.uint8)
    dataset = make_dataset(half_disk(), syntax)
    dataset.PixelData = encapsulate([LOSSY_ENCODERS[syntax](shallow, 8)])
    assert_refused(dataset, "the lossy codestream holds 8")


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (uid.JPEG2000, lambda a: imagecodecs.jpeg2k_encode(a, codecformat="j2k", reversible=True)),
        (uid.JPEGLSNearLossless, imagecodecs.jpegls_encode),
    ],
)
def test_a_lossless_codestream_under_a_syntax_that_may_be_lossy_may_be_shallower(syntax, encode):
    shallow = (half_disk() >> 4).astype(np.uint8)
    dataset = make_dataset(half_disk(), syntax)
    dataset.PixelData = encapsulate([encode(shallow)])
    np.testing.assert_array_equal(decode(dataset).values, shallow)


@pytest.mark.parametrize("syntax", [*ENCODERS, uid.RLELossless])
def test_two_frames_under_a_header_of_one_are_refused(syntax):
    dataset = dataset_of(half_disk(), syntax)
    data = dataset.PixelData
    first = b"".join(list(generate_fragments(data))[1:])
    dataset.PixelData = encapsulate([first, first])
    assert_refused(dataset, "one frame; the pixel data hold 2")


@pytest.mark.parametrize("syntax", ENCODERS)
@pytest.mark.parametrize("tail", [b"\0" * 16, b"trailing bytes", b"\xff" * 5])
def test_bytes_after_the_end_marker_do_not_matter(syntax, tail):
    dataset = make_dataset(half_disk(), syntax)
    dataset.PixelData = encapsulate([ENCODERS[syntax](half_disk(), 12) + tail])
    np.testing.assert_array_equal(decode(dataset).values, half_disk())


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("table", ["basic", "extended"])
def test_an_offset_table_that_leads_nowhere_is_passed_over(frames, table):
    syntax = uid.JPEGLosslessSV1
    codestreams = [ENCODERS[syntax](half_disk() + number, 12) for number in range(frames)]
    dataset = make_dataset(half_disk(), syntax, NumberOfFrames=frames)
    wrong = [4 + 10 * number for number in range(frames)]
    data = encapsulate(codestreams, has_bot=False)
    if table == "basic":
        entries = b"".join(offset.to_bytes(4, "little") for offset in wrong)
        data = data[:4] + len(entries).to_bytes(4, "little") + entries + data[8:]
    else:
        for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            entries = b"".join(offset.to_bytes(8, "little") for offset in wrong)
            setattr(dataset, keyword, entries)
    dataset.PixelData = data
    for number in range(frames):
        stored = decode(dataset, number)
        np.testing.assert_array_equal(stored.values, half_disk() + number)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (333, 250)])
@pytest.mark.parametrize("syntax", SYNTAXES[:2])
def test_rows_and_columns_exchanged_are_refused(syntax, shape, bits):
    pixels = noisy_disk(shape, bits)
    tags = {"BitsStored": bits, "HighBit": bits - 1}
    np.testing.assert_array_equal(decode(dataset_of(pixels, syntax, **tags)).values, pixels)
    exchanged = dataset_of(pixels.reshape(shape[::-1]), syntax, **tags)
    assert_refused(exchanged, f"only as {shape[0]} x {shape[1]}")


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES[:2])
def test_bytes_in_the_other_order_are_refused(syntax, signed):
    pixels = noisy_disk((96, 64), 16)
    pixels = (pixels.astype(np.int32) - 2**15).astype(np.int16) if signed else pixels
    tags = {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": int(signed)}
    np.testing.assert_array_equal(decode(dataset_of(pixels, syntax, **tags)).values, pixels)
    assert_refused(dataset_of(pixels.byteswap(), syntax, **tags), "bytes in the other order")


@pytest.mark.parametrize("step", [1, 16, 255, 256])
def test_few_or_wide_steps_are_no_exchanged_bytes(step):
    """As of 8 or 12 bits that were written into 16, at either end."""
    pixels = (noisy_disk((96, 64), 16) // max(step, 16) * step).astype(np.uint16)
    dataset = dataset_of(pixels, SYNTAXES[0], BitsStored=16, HighBit=15)
    np.testing.assert_array_equal(decode(dataset).values, pixels)


def noisy_disk(shape, bits):
    """A breast with noise, over half the range of so many bits."""
    noise = np.random.default_rng(0).normal(0, 2**bits / 200, shape)
    smooth = half_disk(shape) / 2200 * 2 ** (bits - 1)
    pixels = np.clip(smooth + noise * (smooth > 0), 0, 2**bits - 1)
    return pixels.astype(np.uint8 if bits == 8 else np.uint16)
