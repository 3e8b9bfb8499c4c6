import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from dicom_files import half_disk, make_dataset, write_dicom
from monai.transforms import Compose, Lambdad
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset

from mammo_pd.errors import ImageError
from mammo_pd.imaging.box import Box
from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.ingest.process import process_image
from mammo_pd.ingest.transforms import store_transforms
from mammo_pd.terms import Reason

TRANSFORMS = store_transforms(ImagingSettings(), thumbnail=True)


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
        Manufacturer="HOLOGIC, Inc.",
        WindowCenter=1000,
        WindowWidth=2000,
    )
    image = process_image(path, TRANSFORMS)
    native = image.pyramid["native"]
    assert native.dtype == np.uint16
    assert native.shape == (image.columns["crop_height"], image.columns["crop_width"])
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
        "manufacturer": "Hologic",
        "age": 51.0,
    }
    assert {name: image.columns[name] for name in expected} == expected
    # The chest wall is on the left: that is where the tissue is.
    assert (native[:, 0] > 0).mean() > 0.9 > 0.1 > (native[:, -1] > 0).mean()
    assert image.thumbnail.shape == (256, 171)
    assert image.thumbnail.dtype == np.uint8


def test_a_tag_that_names_the_other_side_is_reported(tmp_path):
    path = write_breast(tmp_path / "a.dcm", side="right", ImageLaterality="L")
    columns = process_image(path, TRANSFORMS).columns
    assert (columns["image_side"], columns["laterality_agrees"]) == ("right", False)


def test_a_spot_view_goes_by_its_tag(tmp_path):
    spot = half_disk((960, 640))[350:600, :200]
    path = write_dicom(tmp_path / "a.dcm", make_dataset(spot, ImageLaterality="R"))
    image = process_image(path, TRANSFORMS)
    assert image.columns["breast_verdict"] == "fills_frame"
    assert image.columns["image_side"] == "right"
    assert "laterality_agrees" not in image.columns
    assert image.pyramid["native"].shape == (250, 200)


def test_a_table_that_starts_beyond_its_type_is_not_warned_about(tmp_path):
    table = Dataset()
    ramp = np.linspace(0, 65535, 3000).astype("<u2").tobytes()
    table.LUTDescriptor, table.LUTData = [3000, 65436, 16], ramp
    path = write_breast(tmp_path / "a.dcm", VOILUTSequence=[table])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        columns = process_image(path, TRANSFORMS).columns
    assert columns["voi_applied"] == "lut"


def test_a_window_that_misses_every_value_is_no_success(tmp_path):
    path = write_breast(tmp_path / "a.dcm", WindowCenter=60000, WindowWidth=100)
    with pytest.raises(ImageError, match=r"window:LINEAR.* the value 0; --voi raw") as caught:
        process_image(path, TRANSFORMS)
    assert caught.value.reason == Reason.EMPTY_PIXELS


def test_the_crop_can_be_found_in_the_file(tmp_path):
    pixels = half_disk((960, 640), side="right")
    image = process_image(write_breast(tmp_path / "r.dcm", side="right"), TRANSFORMS)
    box = Box(*(image.columns[f"crop_{name}"] for name in ("top", "left", "height", "width")))
    expected = np.rint(pixels[box.slices][:, ::-1] / 4095 * 65535)
    native = image.pyramid["native"]
    inside = native > 0
    np.testing.assert_allclose(native[inside], expected[inside], atol=1)


def test_identifiers_are_nowhere_but_in_their_own_field(tmp_path):
    image = process_image(write_breast(tmp_path / "a.dcm"), TRANSFORMS)
    assert image.identifiers["patient_id"] == "SECRET-ID"
    assert "SECRET" not in repr(image).upper()
    assert str(tmp_path) not in repr(image)


def test_a_raster_image(tmp_path):
    path = tmp_path / "a.PNG"
    Image.fromarray(half_disk((960, 640))).save(path)
    assert (
        process_image(path, TRANSFORMS).columns["voi_applied"] == "full_range:16bit:reaches_12bit"
    )
    raster = process_image(path, store_transforms(ImagingSettings(bits_stored=12)))
    assert raster.identifiers == {}
    assert raster.columns["voi_applied"] == "full_range:12bit"
    assert not {"laterality", "laterality_agrees", "transfer_syntax"} & set(raster.columns)
    dicom = process_image(write_breast(tmp_path / "a.dcm"), TRANSFORMS)
    np.testing.assert_array_equal(raster.pyramid["native"], dicom.pyramid["native"])


def test_the_reason_comes_out_of_monais_wrapping(tmp_path):
    path = write_breast(tmp_path / "ct.dcm", Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    with pytest.raises(ImageError) as caught:
        process_image(path, TRANSFORMS)
    assert caught.value.reason == Reason.NOT_MAMMOGRAPHY


def test_a_file_named_by_a_table_needs_no_modality(tmp_path):
    path = write_breast(tmp_path / "a.dcm", Modality=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    with pytest.raises(ImageError):
        process_image(path, TRANSFORMS)
    named = store_transforms(ImagingSettings(), assume_mammogram=True)
    assert process_image(path, named).pyramid["native"].any()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(MemoryError(), Reason.DECODE_FAILED), (KeyError("PatientName^X"), Reason.UNREADABLE)],
)
def test_any_other_error_becomes_a_reason_without_its_words(tmp_path, capfd, error, reason):
    def fail(pixels):
        raise error

    transforms = Compose([*TRANSFORMS.transforms[:2], Lambdad("image", fail)])
    with pytest.raises(ImageError) as caught:
        process_image(write_breast(tmp_path / "a.dcm"), transforms)
    assert caught.value.reason == reason
    assert "Patient" not in caught.value.detail
    assert capfd.readouterr() == ("", "")


def test_the_process_that_hands_out_the_work_loads_neither_monai_nor_torch():
    program = (
        "import sys\n"
        "import mammo_pd.ingest.preprocess\n"
        "sys.exit(', '.join({'monai', 'torch'} & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stderr.strip()) == (0, "")


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")  # noqa: PTH112
def test_what_the_fork_server_loads_starts_no_thread_hides_no_library_and_is_quiet_when_late(
    tmp_path,
):
    # A library that would take hold of the GPU, which processes that are forked do not survive.
    library = tmp_path / "nvidia" / "nvimgcodec"
    library.mkdir(parents=True)
    (library / "__init__.py").touch()
    program = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import mammo_pd.ingest.preload\n"
        "assert {'monai', 'torch'} <= set(sys.modules)\n"
        "assert 'nvidia.nvimgcodec' not in sys.modules\n"
        "from mammo_pd.imaging.decoders.nvimgcodec_plugin import get_decoder, uid\n"
        "assert 'nvimgcodec' in get_decoder(uid.JPEG2000Lossless).available_plugins\n"
        "print(len(os.listdir('/proc/self/task')))\n"
        "from importlib.util import find_spec\n"
        "hidden = 'matplotlib mlflow nvidia.nvimgcodec pandas sklearn torchvision'.split()\n"
        "assert all(find_spec(name) for name in hidden)\n"
        "import pandas\n"
        # The parent is gone, and with it the semaphores that a worker begins with.
        "for error in (FileNotFoundError('late'), EOFError('late'), ValueError('ours')):\n"
        "    sys.excepthook(type(error), error, None)\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    # Of a worker that starts too late there is no word; of other errors there is.
    assert (run.returncode, run.stdout.strip(), run.stderr.strip()) == (0, "1", "ValueError: ours")


@pytest.mark.corpus
def test_all_of_mg_dicom(corpus):
    outcome = {}
    for path in sorted((corpus / "mg_dicom").iterdir()):
        try:
            image = process_image(path, TRANSFORMS)
        except ImageError as error:
            outcome[path.name] = error.reason
        else:
            assert image.pyramid["native"].std() > 1000, path.name
            outcome[path.name] = "ok"
    assert {name: reason for name, reason in outcome.items() if reason != "ok"} == {
        "clunie_MG_text_page_not_a_breast.dcm": Reason.NO_BREAST,
        "tcia_dbt_hologic_header_4frames_noise_pixels.dcm": Reason.MULTI_FRAME,
    }
    assert len(outcome) == 13
