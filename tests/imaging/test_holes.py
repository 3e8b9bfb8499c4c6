"""A piece of a file that never came is zeros, of which most decoders make an image."""

from io import BytesIO

import imagecodecs
import numpy as np
import pytest
from dicom_files import ENCODERS, LOSSY_ENCODERS, make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate

from mammo_pd.errors import ImageError
from mammo_pd.imaging.codestream import has_hole
from mammo_pd.imaging.decode import decode
from mammo_pd.terms import Reason

BLOCK = 8192
SHARES = (0.05, 0.3, 0.6, 0.9)


def noisy_breast(bits: int) -> np.ndarray:
    """(400, 320) with noise in its air, as a detector's."""
    rows, columns = np.mgrid[:400, :320]
    inside = ((rows - 200) / 170) ** 2 + (columns / 200) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 2 ** (bits - 7), inside.shape)
    pixels = np.clip(2 ** (bits - 4) + 2 ** (bits - 1) * inside + noise, 0, 2**bits - 1)
    return pixels.astype(np.uint8 if bits == 8 else np.uint16)


def bits_of(syntax: str) -> int:
    return {uid.JPEGBaseline8Bit: 8, uid.JPEGExtended12Bit: 12}.get(syntax, 16)


def decode_codestream(syntax: str, pixels: np.ndarray, codestream: bytes) -> np.ndarray:
    bits = bits_of(syntax)
    dataset = make_dataset(pixels, BitsStored=bits, HighBit=bits - 1)
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.PixelData = encapsulate([codestream])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    return decode(dataset).values


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("syntax", [*ENCODERS, *LOSSY_ENCODERS])
def test_a_codestream_with_a_hole_is_refused(syntax, share):
    """All 16 bits are stored, so that no value gives the damage away."""
    pixels = noisy_breast(bits_of(syntax))
    codestream = bytes({**ENCODERS, **LOSSY_ENCODERS}[syntax](pixels, bits_of(syntax)))
    assert decode_codestream(syntax, pixels, codestream).shape == pixels.shape
    hole = min(BLOCK, len(codestream) // 4)
    start = int((len(codestream) - hole) * share) // 2 * 2
    damaged = codestream[:start] + bytes(hole) + codestream[start + hole :]
    with pytest.raises(ImageError) as raised:
        decode_codestream(syntax, pixels, damaged)
    assert raised.value.reason in (Reason.DECODE_FAILED, Reason.HEADER_CONTRADICTS)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.JPEGLossless])
def test_what_one_decoder_refuses_another_does_not_make_up(syntax, share):
    """Cut off, with an end marker all the same: pylibjpeg fills what is missing."""
    pixels = noisy_breast(16)
    pixels[0, :2] = 0, 2**15  # of lossless JPEG the two decoders are compared where this occurs
    whole = bytes({**ENCODERS, **LOSSY_ENCODERS}[syntax](pixels, 16))
    with pytest.raises(ImageError) as raised:
        decode_codestream(syntax, pixels, whole[: int(len(whole) * share)] + b"\xff\xd9")
    assert raised.value.reason == Reason.DECODE_FAILED


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.sampled_from(["LRCP", "RLCP", "RPCL", "PCRL", "CPRL"]),
    st.sampled_from([(64, 64), (32, 32), (4, 4), (16, 64)]),
    st.sampled_from([None, (64, 64), (128, 128), (256, 128)]),
    st.sampled_from([None, (64, 64), (200, 300)]),
    st.booleans(),
)
def test_zeros_of_empty_packets_are_no_hole(layers, order, blocks, precincts, tiles, lossy):
    """Encoded by Pillow: a small breast on plain black, in every way that makes empty packets."""
    pixels = np.zeros((640, 512), np.uint8)
    pixels[200:264, :40] = noisy_breast(8)[100:164, :40]
    options = {"precinct_size": precincts, "tile_size": tiles}
    file = BytesIO()
    Image.fromarray(pixels).save(
        file,
        "JPEG2000",
        no_jp2=True,
        irreversible=lossy,
        progression=order,
        codeblock_size=blocks,
        quality_mode="rates",
        quality_layers=[2.0**n for n in range(layers, 0, -1)],
        **{name: given for name, given in options.items() if given},
    )
    assert not has_hole(file.getvalue())


@pytest.mark.parametrize("lossless", [True, False])
def test_zeros_of_flat_air_are_no_hole(lossless):
    """Where no change is the shortest code, black air is coded by zeros."""
    pixels = np.zeros((3000, 2000), np.uint16)
    pixels[1000:1400, :320] = noisy_breast(12)
    codestream = imagecodecs.jpeg8_encode(pixels, bitspersample=12, lossless=lossless)
    assert bytes(BLOCK) in codestream
    assert not has_hole(codestream)
