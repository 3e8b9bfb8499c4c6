from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pytest
from dicom_files import ENCODERS, half_disk, make_dataset
from pydicom import uid
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder

from mammo_pd.imaging.decode import decode
from mammo_pd.imaging.decoders import nvimgcodec_plugin
from mammo_pd.terms import Reason

LOSSLESS = [*nvimgcodec_plugin.DECODER_DEPENDENCIES]


@pytest.fixture
def installed(monkeypatch):
    """The plugin as it is where its library is installed; pydicom's decoders as before after it."""
    for syntax in LOSSLESS:
        decoder = get_decoder(syntax)
        monkeypatch.setattr(decoder, "_available", dict(decoder._available))
    monkeypatch.setattr(nvimgcodec_plugin, "is_available", lambda _: True)
    nvimgcodec_plugin._register()


@pytest.fixture
def asked(monkeypatch, installed):
    """Frames that a pretended GPU was asked for; it decodes as OpenJPEG does."""
    frames = []

    def on_gpu(src):
        frames.append(src)
        return imagecodecs.jpeg2k_decode(src)

    monkeypatch.setattr(nvimgcodec_plugin, "_on_gpu", on_gpu)
    return frames


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_frames_go_to_the_gpu(asked, syntax):
    pixels = half_disk()
    dataset = make_dataset(pixels, uid.JPEG2000Lossless)
    dataset.file_meta.TransferSyntaxUID = syntax
    stored = decode(dataset)
    assert stored.decoder == nvimgcodec_plugin.PLUGIN
    np.testing.assert_array_equal(stored.values, pixels)
    assert asked == [get_frame(dataset.PixelData, 0)]


def test_what_may_be_lossy_does_not(asked):
    dataset = make_dataset(half_disk(), uid.JPEG2000Lossless)
    dataset.file_meta.TransferSyntaxUID = uid.JPEG2000
    assert decode(dataset).decoder == "imagecodecs"
    assert not asked


def test_what_is_lossy_whatever_its_syntax_says_does_not(asked):
    pixels = half_disk()
    dataset = make_dataset(pixels, uid.JPEG2000Lossless)
    frame = imagecodecs.jpeg2k_encode(pixels, level=60, reversible=False, codecformat="j2k")
    dataset.PixelData = encapsulate([frame])
    assert decode(dataset).decoder == "imagecodecs"
    assert not asked


@pytest.mark.parametrize(
    "failure",
    [RuntimeError("out of memory"), MemoryError(), None],
    ids=["error", "memory", "no GPU"],
)
def test_what_it_cannot_decode_the_next_decoder_does(installed, monkeypatch, failure):
    def fail(_):
        raise failure

    if failure is None:
        monkeypatch.setattr(nvimgcodec_plugin, "_make_decoder", lambda: (None, None))
    else:
        monkeypatch.setattr(nvimgcodec_plugin, "_on_gpu", fail)
    pixels = half_disk()
    stored = decode(make_dataset(pixels, uid.JPEG2000Lossless))
    assert stored.decoder == "imagecodecs"
    np.testing.assert_array_equal(stored.values, pixels)


def test_threads_are_left_to_the_next_decoder(installed, monkeypatch):
    monkeypatch.setattr(nvimgcodec_plugin, "_make_decoder", lambda: pytest.fail("in a thread"))
    dataset = make_dataset(half_disk(), uid.JPEG2000Lossless)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(decode, dataset).result().decoder == "imagecodecs"


def test_a_frame_of_another_size_is_no_decoders_fault(installed, monkeypatch):
    from mammo_pd.errors import ImageError

    monkeypatch.setattr(nvimgcodec_plugin, "_on_gpu", lambda _: np.zeros((3, 4), np.uint16))
    with pytest.raises(ImageError) as caught:
        decode(make_dataset(half_disk(), uid.JPEG2000Lossless))
    assert caught.value.reason == Reason.HEADER_CONTRADICTS


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("bits", "signed"),
    # Signed ones of 8 bits are refused, and left to the next decoder.
    [(8, False), *((bits, signed) for bits in (10, 12, 14, 16) for signed in (False, True))],
)
def test_gpu_gives_what_was_encoded(bits, signed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    pixels = np.random.default_rng(bits).integers(low, high, (97, 63))
    pixels[0, :2] = low, high - 1
    pixels = pixels.astype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")
    frame = ENCODERS[uid.JPEG2000Lossless](pixels, bits)
    dataset = make_dataset(
        pixels, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=int(signed)
    )
    dataset.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    decoder = get_decoder(uid.JPEG2000Lossless)
    if nvimgcodec_plugin.PLUGIN not in decoder.available_plugins:
        pytest.skip("needs nvidia-nvimgcodec: pip install mammo-pd[gpu]")
    stored = decode(dataset)
    assert stored.decoder == nvimgcodec_plugin.PLUGIN
    np.testing.assert_array_equal(stored.values, pixels)
