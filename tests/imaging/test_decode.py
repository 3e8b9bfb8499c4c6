import csv
import multiprocessing
import resource
import signal
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_files import ENCODERS, LOSSY_ENCODERS, half_disk, make_dataset, write_dicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame

from mammo_pd.errors import ImageError
from mammo_pd.imaging.decode import StoredFrames, decode
from mammo_pd.imaging.dicom_file import read_dataset
from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.ingest.process import process_each_frame, process_image
from mammo_pd.ingest.transforms import store_transforms
from mammo_pd.terms import Frames, Reason

NATIVE = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
]


def reason_of(dataset):
    with pytest.raises(ImageError) as caught:
        decode(dataset)
    return caught.value.reason


@pytest.mark.parametrize("syntax", [*NATIVE, *ENCODERS])
def test_every_syntax_comes_back_in_the_machines_byte_order(tmp_path, syntax):
    pixels = half_disk()
    path = write_dicom(tmp_path / "a.dcm", make_dataset(pixels, syntax))
    stored = decode(read_dataset(path))
    np.testing.assert_array_equal(stored.values, pixels)
    assert stored.values.dtype == np.dtype("=u2")
    assert stored.decoder == ("pydicom" if syntax in NATIVE else "imagecodecs")


@pytest.mark.parametrize("syntax", LOSSY_ENCODERS)
def test_every_lossy_syntax_comes_back_near_what_it_was(tmp_path, syntax):
    pixels = half_disk()
    if syntax == uid.JPEGBaseline8Bit:
        pixels = (pixels >> 4).astype(np.uint8)
    stored = decode(read_dataset(write_dicom(tmp_path / "a.dcm", make_dataset(pixels, syntax))))
    assert stored.decoder == "imagecodecs"
    assert stored.values.dtype == pixels.dtype
    assert np.abs(stored.values.astype(int) - pixels).mean() < 0.01 * pixels.max()


def test_where_imagecodecs_refuses_the_next_decoder_answers(monkeypatch):
    def refuse(frame):
        raise RuntimeError("no")

    monkeypatch.setattr(imagecodecs, "jpegls_decode", refuse)
    stored = decode(make_dataset(half_disk(), uid.JPEGLSLossless))
    assert stored.decoder == "pylibjpeg"
    np.testing.assert_array_equal(stored.values, half_disk())


def test_without_preamble_and_meta_information(tmp_path):
    dataset = make_dataset(half_disk(), uid.ImplicitVRLittleEndian)
    path = tmp_path / "headless"
    del dataset.file_meta
    pydicom.dcmwrite(path, dataset, implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(decode(read_dataset(path)).values, half_disk())


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\0" * 300, b"\0" * 128 + b"DICM" + b"\7" * 99]
)
def test_what_is_not_dicom_is_refused_without_a_traceback(tmp_path, content):
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        decode(read_dataset(path))
    assert caught.value.reason in (Reason.NOT_AN_IMAGE, Reason.UNREADABLE, Reason.NO_PIXELS)


@pytest.mark.parametrize("syntax", [*NATIVE, *ENCODERS])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_mammogram_that_is_cut_off_is_not_taken_for_another_kind_of_image(
    tmp_path, syntax, share
):
    path = write_dicom(tmp_path / "a.dcm", make_dataset(half_disk((480, 320)), syntax))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImageError) as caught:
        process_image(path, store_transforms(ImagingSettings()))
    assert caught.value.reason in (Reason.UNREADABLE, Reason.HEADER_CONTRADICTS)


def test_a_missing_file(tmp_path):
    with pytest.raises(ImageError, match="no longer there"):
        read_dataset(tmp_path / "gone.dcm")


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"NumberOfFrames": 4}, Reason.MULTI_FRAME),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, Reason.COLOUR),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, Reason.COLOUR),
        ({"PhotometricInterpretation": None}, Reason.UNREADABLE),
        ({"Rows": None}, Reason.UNREADABLE),
        ({"BitsAllocated": None}, Reason.UNREADABLE),
        ({"Rows": 960}, Reason.HEADER_CONTRADICTS),
        ({"Rows": 65535, "Columns": 65535}, Reason.HEADER_CONTRADICTS),
    ],
)
def test_headers_that_cannot_be(tags, reason):
    assert reason_of(make_dataset(half_disk(), **tags)) == reason


@pytest.mark.parametrize("syntax", ENCODERS)
@pytest.mark.parametrize("tags", [{"Rows": 64, "Columns": 96}, {"Rows": 95}, {"Rows": 9600}])
def test_a_header_that_contradicts_its_codestream_is_caught(syntax, tags):
    dataset = make_dataset(half_disk(), syntax, **tags)
    assert reason_of(dataset) == Reason.HEADER_CONTRADICTS


def test_a_header_of_fewer_rows_than_the_rle_holds_is_caught():
    dataset = make_dataset(half_disk())
    dataset.compress(uid.RLELossless, generate_instance_uid=False)
    dataset.Rows = 90
    assert reason_of(dataset) == Reason.HEADER_CONTRADICTS


def test_a_header_that_allocates_too_few_bits_is_caught():
    dataset = make_dataset(half_disk(), uid.JPEGLosslessSV1)
    dataset.BitsAllocated = dataset.BitsStored = 8
    assert reason_of(dataset) == Reason.HEADER_CONTRADICTS


def test_values_beyond_bits_stored_are_caught_not_cut():
    dataset = make_dataset(half_disk(), uid.JPEGLosslessSV1)
    dataset.BitsStored, dataset.HighBit = 10, 9
    assert reason_of(dataset) == Reason.HEADER_CONTRADICTS


def test_another_codestream_than_the_syntax_says_is_caught():
    dataset = make_dataset(half_disk(), uid.JPEGLSLossless)
    dataset.PixelData = encapsulate([ENCODERS[uid.JPEG2000Lossless](half_disk(), 12)])
    assert reason_of(dataset) == Reason.HEADER_CONTRADICTS


@pytest.mark.parametrize("syntax", ENCODERS)
def test_a_codestream_that_is_cut_off_is_not_half_an_image(syntax):
    dataset = make_dataset(half_disk(), syntax)
    frame = ENCODERS[syntax](half_disk(), 12)
    dataset.PixelData = encapsulate([frame[: len(frame) // 2 // 2 * 2]])
    assert reason_of(dataset) == Reason.DECODE_FAILED


def test_pixel_data_that_are_cut_off():
    dataset = make_dataset(half_disk())
    dataset.PixelData = dataset.PixelData[:-100]
    assert reason_of(dataset) == Reason.HEADER_CONTRADICTS


@pytest.mark.parametrize("level", [0, 77])
def test_a_constant_image_is_no_success(level):
    assert reason_of(make_dataset(np.full((96, 64), level, np.uint16))) == Reason.EMPTY_PIXELS


def test_no_pixel_data():
    dataset = make_dataset(half_disk())
    del dataset.PixelData
    assert reason_of(dataset) == Reason.NO_PIXELS


def test_an_unknown_transfer_syntax():
    dataset = make_dataset(half_disk())
    dataset.file_meta.TransferSyntaxUID = uid.UID("1.2.3.4.5")
    assert reason_of(dataset) == Reason.DECODE_FAILED


def test_a_transfer_syntax_that_is_no_text():
    dataset = make_dataset(half_disk())
    dataset.file_meta["TransferSyntaxUID"].value = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"]
    assert reason_of(dataset) == Reason.UNREADABLE


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """A file with a few bytes changed, some cut out or doubled, or its end missing."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        # Half of the faults go into the header, where most of the meaning is.
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 1200)
        place = int(rng.integers(0, end))
        kind = rng.integers(0, 4)
        if kind <= 1:
            changed[place] = int(rng.integers(0, 256))
        elif kind == 2:
            del changed[place : place + int(rng.integers(1, 40))]
        else:
            changed[place:place] = changed[place : place + int(rng.integers(1, 40))]
    return bytes(changed[: int(rng.integers(200, len(changed)))] if rng.random() < 0.1 else changed)


def file_to_mutate(path, syntax, *, frames):
    """A small mammogram with the parts of a header whose damage could do harm."""
    pixels = half_disk((48, 32))
    if syntax == uid.JPEGBaseline8Bit:
        pixels = (pixels >> 4).astype(np.uint8)
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 12]
    table.LUTData = np.arange(4096, dtype="<u2").tobytes()
    rle = syntax == uid.RLELossless
    dataset = make_dataset(
        pixels,
        uid.ExplicitVRLittleEndian if rle else syntax,
        VOILUTSequence=[table],
        RescaleSlope=2,
        RescaleIntercept=-7,
        PixelPaddingValue=0,
    )
    if rle:
        dataset.compress(uid.RLELossless, generate_instance_uid=False)
    if frames > 1:
        dataset.NumberOfFrames = frames
        if uid.UID(syntax).is_encapsulated:
            frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
            dataset.PixelData = encapsulate([frame] * frames)
        else:
            dataset.PixelData = dataset.PixelData * frames
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = 1500, 2000
        group.FrameVOILUTSequence = [window]
        dataset.PerFrameFunctionalGroupsSequence = [group] * frames
    return write_dicom(path, dataset)


def survive_mutations(folder, number: int) -> tuple[int, int, float, float]:
    """Take mutated files the whole way; each image of them is sound, or an ImageError.

    Returns:
        Files refused, images taken, the seconds that the slowest file took, and how far the peak
        of the process's memory, in MiB, rose above that of whole files.
    """
    originals = []
    for syntax in [*NATIVE, *ENCODERS, *LOSSY_ENCODERS, uid.RLELossless]:
        for frames in (1, 3):
            file_to_mutate(folder / "original.dcm", syntax, frames=frames)
            originals.append((folder / "original.dcm").read_bytes())
    path = folder / "mutated.dcm"
    each = store_transforms(ImagingSettings(frames=Frames.EACH))
    refused = taken = before = 0
    slowest = 0.0
    for seed in range(-len(originals), number):
        content = originals[seed % len(originals)]
        if seed >= 0:
            content = mutated(content, np.random.default_rng(seed))
        path.write_bytes(content)
        start = time.monotonic()
        signal.alarm(60)  # its default action ends the process: a hang is a failure
        try:
            images = [sample for _, sample in process_each_frame(path, each)]
        except ImageError:
            refused += 1
            images = []
        signal.alarm(0)
        slowest = max(slowest, time.monotonic() - start)
        for image in images:
            if not isinstance(image, ImageError):
                native = image.pyramid["native"]
                assert native.dtype == np.uint16, seed
                assert native.max() > native.min(), seed
                taken += 1
        if seed < 0:
            assert len(images) in (1, 3), "what is mutated is whole before"
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return refused, taken, slowest, (after - before) / 2**10


@pytest.mark.parametrize("number", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_are_taken_or_refused(tmp_path, number):
    # In a process of its own, so that a crash or a hang is its end and not the tests', and what it
    # held at most can be told.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(survive_mutations, tmp_path, number).result()
    refused, taken, slowest, memory = found
    print(f"{number} files: {refused} refused, {taken} images taken, {slowest:.2f} s, {memory} MiB")
    assert refused > 0.2 * number
    assert taken > 0.2 * number
    assert slowest < 10
    assert memory < 1024  # the imports have less than the other GB of the two


# Lossy values beyond the 12 bits that the header says: cut to them, 4095, as they mean white.
OVERSHOOTS = {"good/f188b5_jpeg2000-multiframe-multifragments.dcm": ("4170", "4095")}


@pytest.mark.corpus
def test_every_good_file_of_the_zoo_has_the_values_of_its_table(corpus):
    zoo = corpus / "dicom_zoo"
    compared = excluded = 0
    for row in csv.DictReader((zoo / "manifest.csv").open()):
        if row["decode"] != "ok":
            continue
        try:
            frames = list(StoredFrames(read_dataset(zoo / row["file"])))
        except ImageError as error:
            explained = {
                Reason.COLOUR: row["spp"] != "1" or not row["photo"].startswith("MONOCHROME"),
                Reason.NO_PIXELS: row["dtype"].startswith("float"),
                # A CT whose codestream is signed under a header that says it is not, and one
                # of 13 bits under a header of 12; pydicom masks both.
                Reason.HEADER_CONTRADICTS: row["file"].endswith(
                    ("J2K_SIZ1_PixRep0.dcm", "mlut_18.dcm")
                ),
            }
            assert explained.get(error.reason), (row["file"], error)
            # No mammogram, as its header says; pydicom decodes it with our plugin in front.
            values = pydicom.dcmread(zoo / row["file"], force=True).pixel_array
            found = (str(values.shape), str(values.dtype))
            assert found == (row["shape"], row["dtype"]), row["file"]
            ends = (float(values.min()), float(values.max()))
            assert ends == pytest.approx((float(row["vmin"]), float(row["vmax"]))), row["file"]
            excluded += 1
            continue
        values = frames[0] if len(frames) == 1 else np.stack(frames)
        found = (str(values.shape), str(values.min()), str(values.max()))
        said, highest = OVERSHOOTS.get(row["file"], (row["vmax"], row["vmax"]))
        assert said == row["vmax"]
        assert found == (row["shape"], row["vmin"], highest), row["file"]
        assert values.dtype == np.dtype(row["dtype"]).newbyteorder("="), row["file"]
        compared += 1
    assert (compared, excluded) == (85, 47)


# Decoded where pydicom's usual decoders refuse; each was looked at and is a sound image.
MENDED = {
    "72af16_1706.dcm", "c42560_JPEG-lossy.dcm", "3a6d42_MR1_JPLY", "1e7c43_MR2_JPLY",
    "d259cd_MR3_JPLY", "ec7320_MR4_JPLY", "65c2f3_RG2_JPLY", "f26b5e_RG3_JPLY",
    "a0c552_SC1_JPLY", "816cdc_XA1_JPLY", "e20c4b_GH364.dcm", "a775c5_PrivateMDNTags.dcm",
    "8bcc80_OT_Implicit_Little_Headless.dcm",
}  # fmt: skip


@pytest.mark.corpus
def test_every_bad_file_of_the_zoo_is_decoded_right_or_refused(corpus):
    decoded = set()
    for path in sorted((corpus / "dicom_zoo" / "bad").iterdir()):
        try:
            decode(read_dataset(path))
        except ImageError as error:
            assert str(corpus) not in error.detail
        else:
            decoded.add(path.name)
    assert decoded == MENDED


@pytest.mark.corpus
def test_an_invalid_scan_header_is_mended_by_imagecodecs(corpus):
    # NEMA's lossy JPEG and its JPEG 2000 hold the same film: their decoded values nearly agree.
    jpeg = decode(read_dataset(corpus / "mg_dicom" / "nema_MG1_JPLY_bad_sos.dcm"))
    jpeg_2000 = decode(read_dataset(corpus / "mg_dicom" / "nema_MG1_J2KI.dcm"))
    assert jpeg.decoder == "imagecodecs"
    difference = np.abs(jpeg.values.astype(int) - jpeg_2000.values)
    assert np.median(difference) < 20


def test_nothing_is_warned_about(tmp_path):
    dataset = make_dataset(half_disk())
    dataset.PixelData = dataset.PixelData + b"\0\0"
    path = write_dicom(tmp_path / "a.dcm", dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(read_dataset(path))


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEG2000Lossless])
def test_lossless_codestream_may_be_shallower_than_its_header(syntax):
    pixels = half_disk() >> 2
    dataset = make_dataset(pixels, syntax, BitsStored=10)
    dataset.BitsStored, dataset.HighBit = 12, 11
    np.testing.assert_array_equal(decode(dataset).values, pixels)


def test_lossy_codestream_of_fewer_bits_than_its_header_is_refused():
    """It was made anew, on a scale that the header's window does not know."""
    dataset = make_dataset((half_disk() >> 4).astype(np.uint8), uid.JPEGBaseline8Bit)
    decode(dataset)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    with pytest.raises(ImageError, match="12 bits, the lossy codestream holds 8") as caught:
        decode(dataset)
    assert caught.value.reason == Reason.HEADER_CONTRADICTS


@pytest.mark.parametrize(("extra", "taken"), [(0, True), (1, True), (64, False), (96 * 64, False)])
def test_bytes_beyond_what_the_header_says(extra, taken):
    pixels = (half_disk() >> 4).astype(np.uint8)
    dataset = make_dataset(pixels)
    dataset.PixelData = dataset.PixelData + bytes(extra)
    if taken:
        np.testing.assert_array_equal(decode(dataset).values, pixels)
    else:
        with pytest.raises(ImageError, match="6144 bytes; the pixel data are") as caught:
            decode(dataset)
        assert caught.value.reason == Reason.HEADER_CONTRADICTS
