import subprocess
import sys
import warnings

import numpy as np
import pytest
from dicom_files import half_disk, make_dataset, write_dicom
from monai.transforms import Compose
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset

from mammo_pd.errors import ImageError
from mammo_pd.imaging.geometry import Box
from mammo_pd.ingest import pipeline
from mammo_pd.ingest.pipeline import mammogram_steps, process_mammogram
from mammo_pd.ingest.transforms import (
    ApplyGreyScaled,
    BuildPyramidd,
    CropBreastd,
    ImagingSettings,
    LoadMammogramd,
    OrientChestWallLeftd,
    mammogram_transforms,
)
from mammo_pd.terms import Frames, Reason, VoiPolicy

WHOLE_WAY = mammogram_steps(ImagingSettings(), thumbnail=True)


def write_breast(path, *, side="left", **tags):
    return write_dicom(path, make_dataset(half_disk((960, 640), side=side), **tags))


def test_from_file_to_pyramid(tmp_path):
    path = write_breast(
        tmp_path / "a.dcm",
        side="right",
        ImageLaterality="R",
        ViewPosition="CC",
        PatientAge="051Y",
        ImagerPixelSpacing=[0.07, 0.08],
        Manufacturer="Maker",
        WindowCenter=1000,
        WindowWidth=2000,
    )
    sample = process_mammogram(path, WHOLE_WAY)
    facts = sample["image_facts"]
    image = sample["image"]
    assert image.dtype == np.uint16
    assert image.shape == (1, facts["crop_height"], facts["crop_width"])
    assert {name: level.shape for name, level in sample["image_levels"].items()}["native"] == (
        image.shape[1:]
    )
    expected = {
        "laterality": "R",
        "view": "CC",
        "rows": 960,
        "columns": 640,
        "flipped": True,
        "image_side": "right",
        "laterality_agrees": True,
        "breast_verdict": "ok",
        "decoder": "pydicom",
        "transfer_syntax": str(uid.ExplicitVRLittleEndian),
        "photometric_interpretation": "MONOCHROME2",
        "voi_applied": "window:LINEAR",
        "imager_pixel_spacing_row": 0.07,
        "imager_pixel_spacing_column": 0.08,
        "manufacturer": "Maker",
        "age": 51.0,
    }
    assert {name: facts[name] for name in expected} == expected
    # The chest wall is on the left: that is where the tissue is.
    assert (image[0, :, 0] > 0).mean() > 0.9 > 0.1 > (image[0, :, -1] > 0).mean()
    assert sample["image_thumbnail"].shape == (256, 171)
    assert sample["image_thumbnail"].dtype == np.uint8


def test_a_tag_that_names_the_other_side_is_reported(tmp_path):
    path = write_breast(tmp_path / "a.dcm", side="right", ImageLaterality="L")
    facts = process_mammogram(path, WHOLE_WAY)["image_facts"]
    assert (facts["image_side"], facts["laterality_agrees"]) == ("right", False)


def test_a_spot_view_goes_by_its_tag(tmp_path):
    spot = half_disk((960, 640))[350:600, :200]
    path = write_dicom(tmp_path / "a.dcm", make_dataset(spot, ImageLaterality="R"))
    sample = process_mammogram(path, WHOLE_WAY)
    facts = sample["image_facts"]
    assert facts["breast_verdict"] == "fills_frame"
    assert (facts["image_side"], facts["laterality_agrees"]) == ("right", None)
    assert sample["image"].shape == (1, 250, 200)


def test_a_table_that_starts_beyond_its_type_is_not_warned_about(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [16, 40000, 16], bytes(range(32))
    path = write_breast(tmp_path / "a.dcm", VOILUTSequence=[table])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        facts = process_mammogram(path, WHOLE_WAY)["image_facts"]
    assert facts["voi_applied"] == "lut"


def test_a_window_that_misses_every_value_is_no_success(tmp_path):
    path = write_breast(tmp_path / "a.dcm", WindowCenter=60000, WindowWidth=100)
    with pytest.raises(ImageError, match=r"window:LINEAR.* the value 0; --voi raw") as caught:
        process_mammogram(path, WHOLE_WAY)
    assert caught.value.reason == Reason.EMPTY_PIXELS


def test_a_right_breast_gives_the_same_pixels_as_its_mirror_image(tmp_path):
    left = process_mammogram(write_breast(tmp_path / "l.dcm"), WHOLE_WAY)
    right = process_mammogram(write_breast(tmp_path / "r.dcm", side="right"), WHOLE_WAY)
    np.testing.assert_array_equal(left["image"], right["image"])


def test_the_crop_can_be_found_in_the_file(tmp_path):
    pixels = half_disk((960, 640), side="right")
    facts = process_mammogram(write_breast(tmp_path / "r.dcm", side="right"), WHOLE_WAY)
    box = Box(
        *(facts["image_facts"][f"crop_{name}"] for name in ("top", "left", "height", "width"))
    )
    expected = np.rint(pixels[box.slices][:, ::-1] / 4095 * 65535)
    inside = facts["image"][0] > 0
    np.testing.assert_allclose(facts["image"][0][inside], expected[inside], atol=1)


def test_identifiers_are_nowhere_but_in_their_own_key(tmp_path):
    sample = process_mammogram(write_breast(tmp_path / "a.dcm"), WHOLE_WAY)
    assert sample["image_identifiers"]["patient_id"] == "SECRET-ID"
    others = {key: value for key, value in sample.items() if key != "image_identifiers"}
    assert "SECRET" not in repr(others).upper()
    assert str(tmp_path) not in repr(others)
    assert not {"image_header", "image_full_range"} & set(sample)


def test_a_raster_image(tmp_path):
    path = tmp_path / "a.PNG"
    Image.fromarray(half_disk((960, 640))).save(path)
    sample = process_mammogram(path, WHOLE_WAY)
    assert sample["image_identifiers"] == {}
    facts = sample["image_facts"]
    assert (facts["laterality"], facts["laterality_agrees"]) == (None, None)
    assert facts["voi_applied"] == "full_range:12bit"
    dicom = process_mammogram(write_breast(tmp_path / "a.dcm"), WHOLE_WAY)
    assert set(facts) == set(dicom["image_facts"])
    np.testing.assert_array_equal(sample["image"], dicom["image"])


def test_the_reason_comes_out_of_monais_wrapping(tmp_path):
    path = write_breast(tmp_path / "ct.dcm", Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    with pytest.raises(ImageError) as caught:
        process_mammogram(path, WHOLE_WAY)
    assert caught.value.reason == Reason.NOT_MAMMOGRAPHY


def test_a_file_named_by_a_table_needs_no_modality(tmp_path):
    path = write_breast(tmp_path / "a.dcm", Modality=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    with pytest.raises(ImageError):
        process_mammogram(path, WHOLE_WAY)
    assert process_mammogram(path, WHOLE_WAY, assume_mammogram=True)["image"].any()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(MemoryError(), Reason.DECODE_FAILED), (KeyError("PatientName^X"), Reason.UNREADABLE)],
)
def test_any_other_error_becomes_a_reason_without_its_words(tmp_path, monkeypatch, error, reason):
    def fail(pixels):
        raise error

    monkeypatch.setattr(pipeline, "find_breast", fail)
    with pytest.raises(ImageError) as caught:
        process_mammogram(write_breast(tmp_path / "a.dcm"), WHOLE_WAY)
    assert caught.value.reason == reason
    assert "Patient" not in caught.value.detail


@pytest.mark.parametrize("frames", [Frames.EXCLUDE, Frames.MIP])
@pytest.mark.parametrize("voi", [VoiPolicy.AUTO, VoiPolicy.RAW])
def test_monais_transforms_do_what_the_steps_do(tmp_path, frames, voi):
    path = write_breast(tmp_path / "a.dcm", side="right", WindowCenter=1500, WindowWidth=2000)
    settings = ImagingSettings(voi=voi, frames=frames)
    ours = process_mammogram(path, mammogram_steps(settings, thumbnail=True))
    monais = process_mammogram(path, mammogram_transforms(settings, thumbnail=True))
    assert list(ours) == list(monais)
    assert ours["image_facts"] == monais["image_facts"]
    for name in ("image", "image_thumbnail"):
        np.testing.assert_array_equal(ours[name], monais[name])
    for name, level in ours["image_levels"].items():
        np.testing.assert_array_equal(level, monais["image_levels"][name])


def test_the_reason_comes_out_of_monais_wrapping_of_an_error(tmp_path):
    path = write_breast(tmp_path / "a.dcm", NumberOfFrames=3)
    with pytest.raises(ImageError) as caught:
        process_mammogram(path, mammogram_transforms(ImagingSettings()))
    assert caught.value.reason == Reason.MULTI_FRAME


def test_the_steps_need_neither_monai_nor_torch():
    """Together they are four fifths of a worker's memory."""
    program = (
        "import sys\n"
        "import mammo_pd.ingest.preprocess, mammo_pd.ingest.pipeline\n"
        "sys.exit(', '.join({'monai', 'torch'} & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stderr.strip()) == (0, "")


def test_each_transform_fits_into_anothers_pipeline(tmp_path):
    pipeline = Compose(
        [
            LoadMammogramd("mammogram"),
            ApplyGreyScaled("mammogram"),
            CropBreastd("mammogram"),
            OrientChestWallLeftd("mammogram"),
            BuildPyramidd("mammogram"),
        ]
    )
    sample = pipeline({"mammogram": write_breast(tmp_path / "a.dcm"), "label": 1})
    assert sample["label"] == 1
    assert sample["mammogram"].shape[0] == 1
    assert "512" in sample["mammogram_levels"]


@pytest.mark.corpus
def test_all_of_mg_dicom(corpus):
    outcome = {}
    for path in sorted((corpus / "mg_dicom").iterdir()):
        try:
            sample = process_mammogram(path, WHOLE_WAY)
        except ImageError as error:
            outcome[path.name] = error.reason
        else:
            assert sample["image"].std() > 1000, path.name
            outcome[path.name] = "ok"
    assert {name: reason for name, reason in outcome.items() if reason != "ok"} == {
        "clunie_MG_text_page_not_a_breast.dcm": Reason.NO_BREAST,
        "tcia_dbt_hologic_header_4frames_noise_pixels.dcm": Reason.MULTI_FRAME,
    }
    assert len(outcome) == 13
