import imagecodecs
import numpy as np
import pytest
from dicom_files import half_disk, make_dataset, write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.encaps import encapsulate

from mammo_pd.errors import ImageError
from mammo_pd.imaging.codestream import CodestreamSize, read_codestream_size
from mammo_pd.imaging.decode import decode
from mammo_pd.imaging.decoders.imagecodecs_plugin import (
    JPEG_XL,
    JPEG_XL_LOSSLESS,
    JPEG_XL_RECOMPRESSION,
    find_decoder,
)
from mammo_pd.imaging.dicom_file import read_dataset
from mammo_pd.terms import Reason


def jpeg_xl_dataset(frame, pixels, syntax=JPEG_XL_LOSSLESS, **tags):
    dataset = make_dataset(pixels, **tags)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


def test_their_uids_are_transfer_syntaxes():
    for syntax in (JPEG_XL_LOSSLESS, JPEG_XL_RECOMPRESSION, JPEG_XL):
        assert uid.UID(syntax).is_encapsulated
        assert syntax == find_decoder(syntax).UID
        assert "JPEG XL" in uid.UID(syntax).name
    assert find_decoder("1.2.3.4") is None


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("container", [False, True])
def test_lossless_is_bit_exact(tmp_path, bits, container):
    dtype = np.uint8 if bits == 8 else np.uint16
    pixels = np.random.default_rng(bits).integers(0, 2**bits, (96, 63)).astype(dtype)
    frame = imagecodecs.jpegxl_encode(
        pixels, lossless=True, bitspersample=bits, usecontainer=container
    )
    dataset = jpeg_xl_dataset(frame, pixels, BitsStored=bits, HighBit=bits - 1)
    stored = decode(read_dataset(write_dicom(tmp_path / "a.dcm", dataset)))
    np.testing.assert_array_equal(stored.values, pixels)
    assert stored.values.dtype == dtype
    assert stored.decoder == "imagecodecs"


def test_a_recompressed_jpeg_is_near_what_the_jpeg_was():
    pixels = (half_disk() >> 4).astype(np.uint8)
    jpeg = imagecodecs.jpeg8_encode(pixels, level=90)
    frame = imagecodecs.jpegxl_encode_jpeg(jpeg)
    stored = decode(jpeg_xl_dataset(frame, pixels, JPEG_XL_RECOMPRESSION)).values
    np.testing.assert_allclose(stored.astype(int), imagecodecs.jpeg8_decode(jpeg), atol=4)


def test_lossy_is_near():
    pixels = half_disk()
    frame = imagecodecs.jpegxl_encode(pixels, distance=0.5, bitspersample=12)
    stored = decode(jpeg_xl_dataset(frame, pixels, JPEG_XL)).values
    assert np.abs(stored.astype(int) - pixels).mean() < 40


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 300) | st.sampled_from([512, 513, 800, 1024]),
    columns=st.integers(1, 300) | st.sampled_from([512, 640, 1024]),
    bits=st.sampled_from([8, 10, 12, 13, 16]),
    channels=st.sampled_from([1, 3]),
    container=st.booleans(),
)
def test_the_size_is_read(rows, columns, bits, channels, container):
    shape = (rows, columns) if channels == 1 else (rows, columns, 3)
    pixels = np.zeros(shape, np.uint8 if bits == 8 else np.uint16)
    frame = imagecodecs.jpegxl_encode(
        pixels, lossless=True, bitspersample=bits, usecontainer=container, effort=1
    )
    assert read_codestream_size(frame) == CodestreamSize("jpeg_xl", rows, columns, channels, bits)


@pytest.mark.parametrize(
    "tags",
    [
        {"Rows": 64, "Columns": 96},
        {"Rows": 960},
        {"BitsStored": 10, "HighBit": 9},
        {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
    ],
)
def test_a_header_that_contradicts_it_is_caught(tags):
    frame = imagecodecs.jpegxl_encode(half_disk(), lossless=True, bitspersample=12)
    with pytest.raises(ImageError) as caught:
        decode(jpeg_xl_dataset(frame, half_disk(), **tags))
    assert caught.value.reason == Reason.HEADER_CONTRADICTS


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.99])
def test_one_that_is_cut_off_is_refused(share):
    frame = imagecodecs.jpegxl_encode(half_disk(), lossless=True)
    with pytest.raises(ImageError) as caught:
        decode(jpeg_xl_dataset(frame[: int(len(frame) * share) // 2 * 2], half_disk()))
    assert caught.value.reason in (Reason.DECODE_FAILED, Reason.HEADER_CONTRADICTS)


def test_what_is_no_jpeg_xl_has_no_size():
    box = b"\0\0\0\x0cJXL \r\n\x87\n"
    for frame in (b"\xff\x0a", box, box + b"\0\0\0\0abcd"):
        size = read_codestream_size(frame)
        assert size is None or size.rows * size.columns < 100


@pytest.mark.parametrize("seed", range(60))
def test_a_mutated_one_is_decoded_or_refused(seed):
    rng = np.random.default_rng(seed)
    frame = bytearray(imagecodecs.jpegxl_encode(half_disk(), lossless=True, bitspersample=12))
    end = len(frame) if seed % 2 else 24
    for _ in range(int(rng.integers(1, 4))):
        frame[int(rng.integers(0, end))] = int(rng.integers(0, 256))
    try:
        values = decode(jpeg_xl_dataset(bytes(frame), half_disk())).values
    except ImageError:
        return
    assert values.shape == half_disk().shape
