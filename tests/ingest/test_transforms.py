import logging
import pickle
import warnings

import numpy as np
import pydicom
import pytest
import torch
from dicom_files import half_disk, make_dataset, write_dicom
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import (
    Compose,
    Lambdad,
    RandFlipd,
    Resized,
    ScaleIntensityd,
    Spacingd,
)

from mammo_pd.errors import ImageError
from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.ingest.transforms import (
    AddThumbnaild,
    ApplyGreyScaled,
    BuildPyramidd,
    CropBreastd,
    LoadMammogramd,
    OrientChestWallLeftd,
    mammogram_transforms,
    store_transforms,
)
from mammo_pd.terms import Frames, Reason

SECRETS = ("SECRET", "1.2.3", "Secret^Name")


def write_breast(path, *, side="left", **tags):
    return write_dicom(path, make_dataset(half_disk((960, 640), side=side), **tags))


def load(path, **options):
    return mammogram_transforms(**options)({"image": path})["image"]


# ---- what a MONAI user takes out


def test_a_user_gets_a_meta_tensor_with_the_tags(tmp_path):
    path = write_breast(
        tmp_path / "a.dcm",
        side="right",
        ImageLaterality="R",
        ViewPosition="CC",
        PatientAge="051Y",
        Manufacturer="HOLOGIC, Inc.",
        PresentationIntentType="FOR PRESENTATION",
        WindowCenter=1000,
        WindowWidth=2000,
    )
    sample = mammogram_transforms()({"image": path, "label": 1})
    assert set(sample) == {"image", "label"}
    image = sample["image"]
    assert isinstance(image, MetaTensor)
    assert image.dtype == torch.float32
    assert image.shape == (1, image.meta["crop_height"], image.meta["crop_width"])
    assert 60000 < image.max() <= 65535
    expected = {
        "laterality": "R",
        "view": "CC",
        "rows": 960,
        "columns": 640,
        "flipped": True,
        "laterality_agrees": True,
        "breast_verdict": "ok",
        "voi_applied": "window:LINEAR",
        "manufacturer": "Hologic",
        "age": 51.0,
        "presentation_intent": "FOR PRESENTATION",
    }
    assert {name: image.meta[name] for name in expected} == expected
    # What the file does not tell is absent: MONAI cannot collate None.
    assert None not in image.meta.values()
    assert "implant" not in image.meta


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_affine_leads_back_to_the_pixel_of_the_file(tmp_path, side):
    """MONAI's own inverse of the affine, on an image cropped on all sides and mirrored or not."""
    stored = half_disk((960, 640), side=side)
    path = write_dicom(tmp_path / "a.dcm", make_dataset(stored, ImagerPixelSpacing=[0.07, 0.08]))
    image = load(path)
    assert image.meta["crop_top"] > 0
    assert image.meta["crop_width"] < 640
    assert image.meta["flipped"] == (side == "right")
    np.testing.assert_allclose(image.pixdim, [0.07, 0.08])
    for row, column in ((50, 5), (300, 77), (image.shape[1] - 60, 3)):
        millimetres = image.affine.numpy() @ [row, column, 1]
        in_file = np.rint(millimetres[:2] / [0.07, 0.08]).astype(int)
        expected = stored[tuple(in_file)] / 4095 * 65535
        assert expected > 1000
        assert image[0, row, column].item() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_image_that_is_upside_down_is_turned_and_its_affine_with_it(tmp_path, side):
    row = "A" if side == "left" else "P"
    upright = write_breast(tmp_path / "a.dcm", side=side, PatientOrientation=[row, "F"])
    dataset = pydicom.dcmread(upright)
    reversed_rows = dataset.pixel_array[::-1]
    dataset.PixelData, dataset.PatientOrientation = reversed_rows.tobytes(), [row, "H"]
    dataset.save_as(tmp_path / "b.dcm")
    expected, image = load(upright), load(tmp_path / "b.dcm")
    assert not expected.meta["turned_upright"]
    assert image.meta["turned_upright"]
    # Blocks of the breast search begin at the top, so the crop may differ by one of them.
    assert abs(image.shape[1] - expected.shape[1]) <= 8
    for row, column in ((50, 5), (300, 77), (image.shape[1] - 60, 3)):
        in_file = np.rint(image.affine.numpy() @ [row, column, 1])[:2].astype(int)
        found = reversed_rows[tuple(in_file)] / 4095 * 65535
        assert found > 1000
        assert image[0, row, column].item() == pytest.approx(found, abs=1)


def test_without_a_spacing_the_affine_counts_pixels_of_the_file(tmp_path):
    image = load(write_breast(tmp_path / "a.dcm"))
    np.testing.assert_allclose(image.pixdim, [1, 1])
    assert "imager_pixel_spacing_row" not in image.meta


def test_monais_transforms_go_on_with_the_spacing(tmp_path):
    path = write_breast(tmp_path / "a.dcm", side="right", ImagerPixelSpacing=[0.1, 0.2])
    image = load(path)
    resampled = Spacingd("image", pixdim=(0.2, 0.2))({"image": image})["image"]
    assert resampled.shape[1] == pytest.approx(image.shape[1] / 2, abs=1)
    assert resampled.shape[2] == pytest.approx(image.shape[2], abs=1)
    np.testing.assert_allclose(resampled.pixdim, [0.2, 0.2])
    # MONAI's affine knows of the mirroring and does not undo it: tissue is still on the left.
    assert (resampled[0, :, 0] > 0).float().mean() > 0.9


def test_composed_with_monais_own_and_loaded_by_its_loader(tmp_path):
    sides = ["left", "right", "left"]
    files = [
        {
            "image": write_breast(
                tmp_path / f"{n}.dcm", side=side, ImagerPixelSpacing=[0.07, 0.08], ViewPosition="CC"
            ),
            "label": n % 2,
        }
        for n, side in enumerate(sides)
    ]
    # Another has no view: the loader keeps what all have in common.
    files.append({"image": write_breast(tmp_path / "x.dcm"), "label": 0})
    transforms = Compose(
        [
            mammogram_transforms(),
            Resized("image", (64, 32)),
            ScaleIntensityd("image"),
            RandFlipd("image", prob=1.0, spatial_axis=0),
        ]
    )
    (batch,) = DataLoader(Dataset(files, transforms), batch_size=4, num_workers=0)
    assert batch["image"].shape == (4, 1, 64, 32)
    assert (batch["image"].amax(dim=(1, 2, 3)) == 1).all()
    assert batch["label"].tolist() == [0, 1, 0, 0]
    assert batch["image"].meta["flipped"].tolist() == [False, True, False, False]
    assert batch["image"].meta["affine"].shape == (4, 3, 3)
    assert not any(secret in repr(batch) for secret in SECRETS)


def test_the_transforms_can_be_sent_to_another_process(tmp_path):
    path = write_breast(tmp_path / "a.dcm")
    copy = pickle.loads(pickle.dumps(mammogram_transforms(ImagingSettings(frames=Frames.MIP))))
    assert torch.equal(copy({"image": path})["image"], load(path))


def test_a_right_breast_gives_the_same_pixels_as_its_mirror_image(tmp_path):
    left = load(write_breast(tmp_path / "l.dcm"))
    right = load(write_breast(tmp_path / "r.dcm", side="right"))
    assert torch.equal(left, right)
    # The chest wall is on the left: that is where the tissue is.
    assert (left[0, :, 0] > 0).float().mean() > 0.9
    assert (left[0, :, -1] > 0).float().mean() < 0.1


# ---- each transform for itself


def test_each_transform_fits_between_a_users_own(tmp_path):
    seen = []
    mine = Compose(
        [
            LoadMammogramd("mammogram"),
            ApplyGreyScaled("mammogram"),
            AddThumbnaild("mammogram"),
            # Between two of ours, and as a tensor.
            Lambdad("mammogram", lambda pixels: torch.as_tensor(pixels.astype(np.int32)) // 2),
            CropBreastd("mammogram"),
            OrientChestWallLeftd("mammogram"),
            Lambdad("mammogram", lambda pixels: seen.append(pixels) or pixels.astype(np.uint16)),
            BuildPyramidd("mammogram"),
        ]
    )
    path = write_breast(tmp_path / "a.dcm", side="right")
    sample = mine({"mammogram": path, "label": 1})
    assert sample["label"] == 1
    assert isinstance(seen[0], np.ndarray)
    assert list(sample["mammogram_pyramid"]) == ["native", "512"]
    np.testing.assert_array_equal(sample["mammogram_pyramid"]["native"], sample["mammogram"][0])
    np.testing.assert_array_equal(sample["mammogram"][0], load(path).numpy()[0] // 2)
    assert sample["mammogram_thumbnail"].shape == (256, 171)
    assert sample["mammogram_thumbnail"].dtype == np.uint8


def test_two_images_under_two_keys_and_one_that_is_missing(tmp_path):
    keys = ("cc", "mlo", "prior")
    both = Compose(
        [
            LoadMammogramd(keys, allow_missing_keys=True),
            ApplyGreyScaled(keys, allow_missing_keys=True),
            CropBreastd(keys, allow_missing_keys=True),
            OrientChestWallLeftd(keys, allow_missing_keys=True),
        ]
    )
    paths = [
        write_breast(tmp_path / "cc.dcm", ViewPosition="CC"),
        write_breast(tmp_path / "mlo.dcm", ViewPosition="MLO"),
    ]
    given = dict(zip(keys, paths, strict=False))
    sample = both(given)
    assert [sample[f"{key}_meta_dict"]["view"] for key in keys[:2]] == ["CC", "MLO"]
    assert "prior" not in sample
    # What was given is not written to.
    assert given == dict(zip(keys, paths, strict=False))


def test_the_pixels_of_the_store_are_those_that_a_user_gets(tmp_path):
    path = write_breast(tmp_path / "a.dcm", side="right", WindowCenter=1500, WindowWidth=2000)
    stored = store_transforms(ImagingSettings())({"image": path})
    np.testing.assert_array_equal(load(path).numpy(), stored["image"])
    assert stored["image"].dtype == np.uint16
    meta = {name: value for name, value in stored["image_meta_dict"].items() if name != "affine"}
    image = load(path)
    assert {name: image.meta[name] for name in meta} == meta


def test_a_file_without_a_modality_is_taken_if_the_user_says_what_it_is(tmp_path):
    path = write_breast(tmp_path / "a.dcm", Modality=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    with pytest.raises(RuntimeError) as caught:
        load(path)
    assert caught.value.__cause__.reason == Reason.NOT_MAMMOGRAPHY
    assert load(path, assume_mammogram=True).any()


# ---- nothing that identifies a patient


def test_identifiers_are_nowhere_in_what_a_user_gets(tmp_path):
    path = write_breast(tmp_path / "a.dcm")
    image = load(path)
    assert not any(secret in repr((image, image.meta)) for secret in SECRETS)
    assert str(tmp_path) not in repr((image, image.meta))
    stored = store_transforms(ImagingSettings())({"image": path})
    assert stored["image_header"].identifiers["patient_id"] == "SECRET-ID"
    assert not any(secret in repr(stored) for secret in SECRETS)


def fail(pixels):
    raise ValueError("a transform of the user's fails")


@pytest.mark.parametrize("log_stats", [False, True])
@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_failing_transform_logs_nothing_that_identifies(
    tmp_path, capfd, caplog, place, log_stats
):
    """With log_stats MONAI prints every value of the dictionary that a transform failed on."""
    path = write_breast(tmp_path / "a.dcm", ImageLaterality="L")
    steps = list(store_transforms(ImagingSettings()).transforms)
    steps.insert(place, Lambdad("image", fail))
    with (
        caplog.at_level(logging.DEBUG),
        warnings.catch_warnings(),
        pytest.raises(RuntimeError) as caught,
    ):
        warnings.simplefilter("ignore")
        Compose(steps, log_stats=log_stats)({"image": path})
    out, err = capfd.readouterr()
    printed = out + err + caplog.text + str(caught.value)
    assert ("image_header" in printed) == log_stats  # else there is nothing to see here
    assert not any(secret in printed for secret in SECRETS)
    assert str(tmp_path) not in printed


def test_an_image_error_is_the_cause_of_monais(tmp_path):
    path = write_breast(tmp_path / "a.dcm", NumberOfFrames=3)
    with pytest.raises(RuntimeError, match="LoadMammogramd") as caught:
        load(path)
    assert isinstance(caught.value.__cause__.__cause__ or caught.value.__cause__, ImageError)
    assert "SECRET" not in str(caught.value)
