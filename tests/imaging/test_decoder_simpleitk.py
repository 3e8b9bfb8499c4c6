import numpy as np
import pytest
from dicom_files import ENCODERS, LOSSY_ENCODERS, half_disk, make_dataset
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import Decoder, get_decoder

from mammo_pd.errors import ImageError
from mammo_pd.imaging.decode import decode
from mammo_pd.imaging.decoders import simpleitk_plugin
from mammo_pd.imaging.dicom_file import read_dataset
from mammo_pd.terms import Reason

SYNTAXES = [*simpleitk_plugin.DECODER_DEPENDENCIES]
LOSSLESS = [syntax for syntax in SYNTAXES if syntax in ENCODERS]
LOSSY = [syntax for syntax in SYNTAXES if syntax in LOSSY_ENCODERS]


def decode_with(plugin, dataset):
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    return decoder.as_array(dataset, decoding_plugin=plugin)[0]


def full_range(bits, *, signed=False):
    """Every corner of the range, and noise."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    pixels = np.random.default_rng(bits).integers(low, high, (97, 63))
    pixels[0, :2] = low, high - 1
    return pixels.astype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")


def compressed(pixels, syntax, bits, frame):
    signed = int(pixels.dtype.kind == "i")
    dataset = make_dataset(pixels, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=signed)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    return dataset


@pytest.mark.parametrize("bits", [8, 10, 12, 13, 14, 15, 16])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_unsigned_comes_back_as_encoded(syntax, bits):
    pixels = full_range(bits)
    dataset = compressed(pixels, syntax, bits, ENCODERS[syntax](pixels, bits))
    decoded = decode_with("simpleitk", dataset)
    assert decoded.dtype == pixels.dtype
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize(
    ("syntax", "bits"),
    [
        (syntax, bits)
        for syntax in LOSSLESS
        # The JPEG-LS encoder at hand has no depth of its own, and a sign needs the right one.
        for bits in ([8, 16] if syntax == uid.JPEGLSLossless else [8, 10, 12, 13, 14, 15, 16])
    ],
)
def test_signed_comes_back_as_encoded(syntax, bits):
    pixels = full_range(bits, signed=True)
    given = pixels
    if syntax != uid.JPEG2000Lossless:  # the others know no sign: bit patterns
        unsigned = f"u{pixels.dtype.itemsize}"
        given = (pixels.astype(int) % 2**bits).astype(unsigned)
    dataset = compressed(pixels, syntax, bits, ENCODERS[syntax](given, bits))
    decoded = decode_with("simpleitk", dataset)
    assert decoded.dtype == pixels.dtype
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("syntax", LOSSY)
def test_lossy_is_as_imagecodecs_decodes_it(syntax):
    pixels = half_disk()
    if syntax == uid.JPEGBaseline8Bit:
        pixels = (pixels >> 4).astype(np.uint8)
    dataset = make_dataset(pixels, syntax)
    ours, theirs = (decode_with(plugin, dataset) for plugin in ("simpleitk", "imagecodecs"))
    assert ours.dtype == theirs.dtype
    # Two inverse cosine transforms may round apart; what is lossy otherwise is computed alike.
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_it_is_third_in_line(syntax, monkeypatch):
    pixels = half_disk()
    if syntax == uid.JPEGBaseline8Bit:
        pixels = (pixels >> 4).astype(np.uint8)
    dataset = make_dataset(pixels, syntax)
    installed = get_decoder(syntax).available_plugins
    answers = []
    for absent in ((), ("imagecodecs",), ("imagecodecs", "pylibjpeg")):
        present = tuple(plugin for plugin in installed if plugin not in absent)
        monkeypatch.setattr(Decoder, "available_plugins", property(lambda _, p=present: p))
        answers.append(decode(dataset).decoder)
    assert answers == ["imagecodecs", "pylibjpeg", "simpleitk"]


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_codestream_deeper_than_bits_stored_is_not_cut_off(syntax):
    dataset = make_dataset(half_disk(), syntax)
    dataset.BitsStored, dataset.HighBit = 10, 9
    decoder = get_decoder(syntax)
    options = {"decoding_plugin": "simpleitk", "correct_unused_bits": False}
    np.testing.assert_array_equal(decoder.as_array(dataset, **options)[0], half_disk())


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_frame_of_another_size_is_refused(syntax):
    dataset = make_dataset(half_disk((96, 64)), syntax, Rows=64, Columns=96)
    with pytest.raises(RuntimeError, match="the header says"):
        decode_with("simpleitk", dataset)


def test_colour_is_left_to_the_others():
    dataset = make_dataset(half_disk(), uid.JPEGLSLossless, SamplesPerPixel=3)
    dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
    dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    with pytest.raises(RuntimeError, match="grey has one"):
        decode_with("simpleitk", dataset)


def test_no_file_and_no_path_is_left_behind(tmp_path, monkeypatch):
    """The frame goes through a temporary file, of which no error may speak."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    installed = ("simpleitk",)
    monkeypatch.setattr(Decoder, "available_plugins", property(lambda _: installed))
    frame = ENCODERS[uid.JPEGLosslessSV1](half_disk(), 12)
    whole = compressed(half_disk(), uid.JPEGLosslessSV1, 12, frame)
    assert decode(whole).decoder == "simpleitk"
    damaged = compressed(half_disk(), uid.JPEGLosslessSV1, 12, frame[:60] + frame[-2:])
    with pytest.raises(ImageError) as caught:
        decode(damaged)
    assert caught.value.reason == Reason.DECODE_FAILED
    assert str(tmp_path) not in caught.value.detail
    assert list(tmp_path.iterdir()) == []


@pytest.mark.corpus
@pytest.mark.parametrize(
    "name",
    [
        "mg_dicom/ge_essential_R_CC.dcm",
        "mg_dicom/hologic_dsm_stereo_scout_mono1.dcm",
        "mg_dicom/fodicom_OutOfBoundsOverlay_siemens_stereo.dcm",
        "mg_dicom/train_images_10011_220375232.dcm",
        "dicom_zoo/good/229600_XA1_JLSL",
        "dicom_zoo/good/61f38f_JLSL_16_15_1_1F.dcm",
        "dicom_zoo/good/ca3265_SignedShortLosslessBug.dcm",
        "dicom_zoo/good/2df92c_J2K_pixelrep_mismatch.dcm",
        "dicom_zoo/good/5f0539_XA1_J2KR",
    ],
)
def test_bit_exact_with_pylibjpeg_on_real_files(corpus, name):
    dataset = read_dataset(corpus / name)
    ours, theirs = (decode_with(plugin, dataset) for plugin in ("simpleitk", "pylibjpeg"))
    np.testing.assert_array_equal(ours, theirs)
