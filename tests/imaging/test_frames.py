import warnings

import numpy as np
import pytest
from dicom_files import ENCODERS, half_disk, make_dataset, write_dicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from mammo_pd.errors import ImageError
from mammo_pd.imaging.decode import StoredFrames, decode
from mammo_pd.imaging.dicom_file import read_dataset
from mammo_pd.imaging.grey_scale import WHITE, apply_grey_scale, maximum_intensity_projection
from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.ingest.process import ProcessedImage, process_each_frame, process_image
from mammo_pd.ingest.transforms import store_transforms
from mammo_pd.terms import Frames, Reason, VoiPolicy

SHAPE = (480, 320)
TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"


def frames_of_a_breast(number=4):
    """The same breast, each frame with a bright spot of its own."""
    frames = np.repeat(half_disk(SHAPE)[None], number, axis=0)
    for index in range(number):
        frames[index, 200 + 10 * index, 60] = 3000 + 100 * index
    return frames


def frames_dataset(frames, syntax=uid.ExplicitVRLittleEndian, windows=None, **tags):
    dataset = make_dataset(frames[0], SOPClassUID=TOMOSYNTHESIS, NumberOfFrames=len(frames), **tags)
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == uid.ExplicitVRLittleEndian:
        dataset.PixelData = frames.tobytes()
    else:
        dataset.PixelData = encapsulate([ENCODERS[syntax](frame, 12) for frame in frames])
        dataset["PixelData"].is_undefined_length = True
    if windows is not None:
        dataset.PerFrameFunctionalGroupsSequence = [group_with_window(*w) for w in windows]
    return dataset


def group_with_window(center, width):
    voi, group = Dataset(), Dataset()
    voi.WindowCenter, voi.WindowWidth = center, width
    group.FrameVOILUTSequence = [voi]
    return group


def process(path, frames):
    return process_image(path, store_transforms(ImagingSettings(frames=frames)))


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, *ENCODERS])
def test_each_frame_comes_back(tmp_path, syntax):
    frames = frames_of_a_breast()
    dataset = read_dataset(write_dicom(tmp_path / "a.dcm", frames_dataset(frames, syntax)))
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(decode(dataset, index).values, frame)
    stored = StoredFrames(dataset)
    assert stored.shape == frames.shape
    assert stored.decoder == decode(dataset, 0).decoder
    np.testing.assert_array_equal(np.stack(list(stored)), frames)


def test_by_default_several_frames_are_excluded_with_the_reason(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", frames_dataset(frames_of_a_breast()))
    with pytest.raises(ImageError, match="holds 4 frames") as caught:
        process(path, Frames.EXCLUDE)
    assert caught.value.reason == Reason.MULTI_FRAME
    assert caught.value.reason.excludes


@pytest.mark.parametrize(("number", "middle"), [(1, 0), (3, 1), (4, 2)])
def test_the_middle_frame(tmp_path, number, middle):
    frames = frames_of_a_breast(number)
    sample = process(
        write_dicom(tmp_path / "a.dcm", frames_dataset(frames, ImageLaterality="L")), Frames.MIDDLE
    )
    alone = process(write_dicom(tmp_path / "b.dcm", make_dataset(frames[middle])), Frames.EXCLUDE)
    np.testing.assert_array_equal(sample.pyramid["native"], alone.pyramid["native"])
    columns = sample.columns
    assert columns["number_of_frames"] == number
    assert columns.get("frame") == (None if number == 1 else str(middle + 1))
    assert (columns["rows"], columns["columns"]) == SHAPE


def test_the_maximum_over_the_frames(tmp_path):
    frames = frames_of_a_breast()
    sample = process(write_dicom(tmp_path / "a.dcm", frames_dataset(frames)), Frames.MIP)
    alone = process(
        write_dicom(tmp_path / "b.dcm", make_dataset(frames.max(axis=0))), Frames.EXCLUDE
    )
    np.testing.assert_array_equal(sample.pyramid["native"], alone.pyramid["native"])
    # A tomosynthesis SOP class does not tell the presentation intent.
    assert set(sample.columns) == {*alone.columns, "frame"} - {"presentation_intent"}
    columns = sample.columns
    assert (columns["frame"], columns["number_of_frames"], columns["decoder"]) == (
        "mip",
        4,
        "pydicom",
    )
    assert (columns["rows"], columns["columns"]) == SHAPE


def test_a_single_frame_is_the_same_whatever_is_asked_for(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", make_dataset(half_disk(SHAPE)))
    images = [process(path, frames) for frames in Frames]
    for sample in images:
        np.testing.assert_array_equal(sample.pyramid["native"], images[0].pyramid["native"])
        assert "frame" not in sample.columns


def process_each(path):
    return list(process_each_frame(path, store_transforms(ImagingSettings(frames=Frames.EACH))))


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, *ENCODERS])
def test_each_frame_as_it_would_be_alone(tmp_path, syntax):
    frames = frames_of_a_breast()
    windows = [(1000 + 100 * number, 4000) for number in range(4)]
    found = process_each(
        write_dicom(tmp_path / "a.dcm", frames_dataset(frames, syntax, windows=windows))
    )
    assert [number for number, _ in found] == [1, 2, 3, 4]
    for (number, sample), frame, (center, width) in zip(found, frames, windows, strict=True):
        alone = process(
            write_dicom(
                tmp_path / "b.dcm", make_dataset(frame, WindowCenter=center, WindowWidth=width)
            ),
            Frames.EXCLUDE,
        )
        np.testing.assert_array_equal(sample.pyramid["native"], alone.pyramid["native"])
        assert sample.columns["frame"] == str(number)
        assert sample.identifiers == alone.identifiers


def test_each_frame_of_a_file_of_one_is_that_file(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", make_dataset(half_disk(SHAPE)))
    ((number, sample),) = process_each(path)
    assert number is None
    alone = process(path, Frames.EXCLUDE)
    np.testing.assert_array_equal(sample.pyramid["native"], alone.pyramid["native"])
    assert sample.columns == alone.columns


def test_a_bad_private_value_is_not_warned_about(tmp_path):
    dataset = frames_dataset(frames_of_a_breast())
    block = dataset.private_block(0x0019, "SOME VENDOR", create=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        block.add_new(1, "SH", "longer than sixteen letters")
        path = write_dicom(tmp_path / "a.dcm", dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = process_each(path)
    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert all(isinstance(sample, ProcessedImage) for _, sample in found)


def test_a_damaged_frame_is_lost_alone(tmp_path):
    frames = frames_of_a_breast()
    encode = ENCODERS[uid.JPEGLSLossless]
    dataset = frames_dataset(frames, uid.JPEGLSLossless)
    codestreams = [encode(frame, 12) for frame in frames]
    codestreams[1] = codestreams[1][: len(codestreams[1]) // 4 * 2]
    dataset.PixelData = encapsulate(codestreams)
    found = dict(process_each(write_dicom(tmp_path / "a.dcm", dataset)))
    assert found[2].reason == Reason.DECODE_FAILED
    assert [number for number in found if isinstance(found[number], ProcessedImage)] == [1, 3, 4]


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, *ENCODERS])
@pytest.mark.parametrize("claim", [9, 2**31 - 1])
def test_each_of_more_frames_than_there_are_is_refused_at_once(tmp_path, syntax, claim):
    dataset = frames_dataset(frames_of_a_breast(), syntax)
    dataset.NumberOfFrames = claim
    with pytest.raises(ImageError) as caught:
        process_each(write_dicom(tmp_path / "a.dcm", dataset))
    assert caught.value.reason == Reason.HEADER_CONTRADICTS


def test_each_frame_has_its_own_window(tmp_path):
    frames = np.stack([half_disk(SHAPE)] * 3)
    windows = [(1000, 4000), (1500, 800), (2000, 3000)]
    path = write_dicom(tmp_path / "a.dcm", frames_dataset(frames, windows=windows))
    alone = [
        apply_grey_scale(
            frames[0], make_dataset(frames[0], WindowCenter=center, WindowWidth=width)
        ).pixels
        for center, width in windows
    ]
    wanted = {Frames.MIDDLE: alone[1], Frames.MIP: np.maximum.reduce(alone)}
    for choice, expected in wanted.items():
        sample = process(path, choice)
        columns = sample.columns
        top, left, height, width = (
            columns[f"crop_{side}"] for side in ("top", "left", "height", "width")
        )
        crop = expected[top : top + height, left : left + width]
        inside = sample.pyramid["native"] > 0
        assert inside.mean() > 0.5
        np.testing.assert_array_equal(sample.pyramid["native"][inside], crop[inside])
        assert columns["voi_applied"] == "window:LINEAR"


def test_the_frames_own_table_and_rescale_go_before_the_files():
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    tags = {"WindowCenter": 7, "WindowWidth": 7, "RescaleSlope": 9, "RescaleIntercept": 9}
    dataset = make_dataset(values, **tags)
    table, voi, group = Dataset(), Dataset(), Dataset()
    table.LUTDescriptor, table.LUTData = [256, 10, 8], list(range(255, -1, -1))
    voi.VOILUTSequence = [table]
    group.FrameVOILUTSequence = [voi]
    rescale = Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = 1, 10
    group.PixelValueTransformationSequence = [rescale]
    dataset.PerFrameFunctionalGroupsSequence = [group]
    grey = apply_grey_scale(values, dataset, VoiPolicy.AUTO)
    assert grey.voi_applied == "lut"
    np.testing.assert_array_equal(grey.pixels, (255 - values.astype(int)) * 257)


def test_a_constant_frame_among_others_is_no_error_and_all_of_them_are(tmp_path):
    frames = frames_of_a_breast()
    frames[0] = 0
    path = write_dicom(tmp_path / "a.dcm", frames_dataset(frames))
    assert process(path, Frames.MIP).pyramid["native"].max() > WHITE // 2
    with pytest.raises(ImageError) as caught:
        process(write_dicom(tmp_path / "b.dcm", frames_dataset(frames * 0)), Frames.MIP)
    assert caught.value.reason == Reason.EMPTY_PIXELS


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, *ENCODERS])
@pytest.mark.parametrize("frames", [Frames.MIDDLE, Frames.MIP])
def test_a_claim_of_more_frames_than_there_are_is_refused(tmp_path, syntax, frames):
    dataset = frames_dataset(frames_of_a_breast(), syntax)
    dataset.NumberOfFrames = 9
    path = write_dicom(tmp_path / "a.dcm", dataset)
    with pytest.raises(ImageError) as caught:
        process(path, frames)
    assert caught.value.reason in (Reason.HEADER_CONTRADICTS, Reason.DECODE_FAILED)


def test_brightest_holds_one_frame_at_a_time():
    images = [apply_grey_scale(half_disk(), make_dataset(half_disk())) for _ in range(2)]
    before = images[0].pixels.copy()
    images[1].pixels[30:] = WHITE
    found = maximum_intensity_projection(iter(images)).pixels
    assert (found[30:] == WHITE).all()
    np.testing.assert_array_equal(found[:30], before[:30])
    np.testing.assert_array_equal(images[0].pixels, before)


@pytest.mark.corpus
def test_the_tomosynthesis_file_of_the_corpus(corpus):
    dataset = read_dataset(corpus / "mg_dicom" / "tcia_dbt_hologic_header_4frames_noise_pixels.dcm")
    stored = StoredFrames(dataset)
    assert stored.shape == (4, 128, 128)
    whole, _ = decode(dataset, 2), list(stored)
    np.testing.assert_array_equal(whole.values, dataset.pixel_array[2])
    grey = maximum_intensity_projection(apply_grey_scale(frame, dataset) for frame in stored)
    assert grey.voi_applied == "window:LINEAR"
