import imagecodecs
import numpy as np
import pytest
from dicom_files import ENCODERS, half_disk, make_dataset
from pydicom import uid
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder

from mammo_pd.imaging.decoders import imagecodecs_plugin
from mammo_pd.imaging.dicom_file import read_dataset

LOSSLESS = [*ENCODERS]


@pytest.mark.parametrize("syntax", imagecodecs_plugin.DECODER_DEPENDENCIES)
def test_every_syntax_of_the_table_is_registered(syntax):
    decoder = imagecodecs_plugin.find_decoder(uid.UID(syntax))
    assert imagecodecs_plugin.PLUGIN in decoder.available_plugins


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("plugin", ["imagecodecs", "pylibjpeg"])
def test_both_decoders_give_back_what_was_encoded(syntax, plugin):
    pixels = half_disk()
    decoded, _ = get_decoder(syntax).as_array(make_dataset(pixels, syntax), decoding_plugin=plugin)
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("syntax", [uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL])
def test_openjpeg_as_openjph_decodes_htj2k(syntax):
    """The other decoders of the JPEG 2000 family here are all OpenJPEG; this one is another's."""
    pixels = half_disk()
    decoded, _ = get_decoder(syntax).as_array(
        make_dataset(pixels, syntax), decoding_plugin="imagecodecs"
    )
    np.testing.assert_array_equal(decoded, imagecodecs.htj2k_decode(ENCODERS[syntax](pixels, 12)))


def decode_with_ffmpeg(codestream, bits):
    """FFmpeg's own JPEG 2000 decoder, the one here that is not OpenJPEG; it fills 16 bits."""
    av = pytest.importorskip("av", reason="FFmpeg's decoder is not installed (pip install av)")
    context = av.CodecContext.create("jpeg2000", "r")
    (frame,) = [*context.decode(av.Packet(codestream)), *context.decode(None)]
    return frame.to_ndarray() >> (16 - bits if bits > 8 else 0)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_openjpeg_as_ffmpeg_decodes_jpeg_2000(bits):
    pixels = np.random.default_rng(bits).integers(0, 2**bits, (96, 64))
    pixels = pixels.astype(np.uint8 if bits == 8 else np.uint16)
    codestream = ENCODERS[uid.JPEG2000Lossless](pixels, bits)
    dataset = make_dataset(pixels, uid.JPEG2000Lossless, BitsStored=bits, HighBit=bits - 1)
    decoded, _ = get_decoder(uid.JPEG2000Lossless).as_array(dataset, decoding_plugin="imagecodecs")
    np.testing.assert_array_equal(decoded, decode_with_ffmpeg(codestream, bits))
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.corpus
@pytest.mark.parametrize("number", [1031443799, 220375232, 270344397, 541722628])
def test_real_jpeg_2000_as_ffmpeg_decodes_it(corpus, number):
    dataset = read_dataset(corpus / "mg_dicom" / f"train_images_10011_{number}.dcm")
    decoded, _ = get_decoder(uid.JPEG2000Lossless).as_array(dataset, decoding_plugin="imagecodecs")
    codestream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    np.testing.assert_array_equal(decoded, decode_with_ffmpeg(codestream, 16))


def test_rle_as_pydicom_decodes_it():
    pixels = half_disk((97, 63))
    dataset = make_dataset(pixels)
    dataset.compress(uid.RLELossless, generate_instance_uid=False)
    decoder = get_decoder(uid.RLELossless)
    ours, _ = decoder.as_array(dataset, decoding_plugin="imagecodecs")
    theirs, _ = decoder.as_array(dataset, decoding_plugin="pydicom")
    np.testing.assert_array_equal(ours, pixels)
    np.testing.assert_array_equal(theirs, pixels)


def test_a_frame_of_another_size_is_refused():
    dataset = make_dataset(half_disk((96, 64)), uid.JPEGLSLossless, Rows=64, Columns=96)
    with pytest.raises(RuntimeError, match="the header says"):
        get_decoder(uid.JPEGLSLossless).as_array(dataset, decoding_plugin="imagecodecs")


def test_colour_is_left_to_the_others():
    dataset = make_dataset(half_disk(), uid.JPEGLSLossless, SamplesPerPixel=3)
    dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
    dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    with pytest.raises(RuntimeError, match="grey has one"):
        get_decoder(uid.JPEGLSLossless).as_array(dataset, decoding_plugin="imagecodecs")


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
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    ours, _ = decoder.as_array(dataset, decoding_plugin="imagecodecs")
    theirs, _ = decoder.as_array(dataset, decoding_plugin="pylibjpeg")
    np.testing.assert_array_equal(ours, theirs)
