import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from phantom_images import SMALL, shown, voi

from mammo_pd.phantoms import VENDORS, Phantom, Vendor, Voi, dicom_dataset, make_phantom
from mammo_pd.phantoms.vendors import stored_values
from mammo_pd.phantoms.women import draw_woman
from mammo_pd.terms import Laterality

vendors = pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.name[-1])


def phantom_of(vendor: Vendor) -> Phantom:
    patient = next(p for p in range(6) if draw_woman(SMALL, p).vendor == vendor)
    return make_phantom(SMALL, patient, Laterality.RIGHT, "MLO")


class TestFiles:
    @vendors
    def test_two_independent_readers_decode_what_was_drawn(
        self, vendor: Vendor, tmp_path: Path
    ) -> None:
        phantom = phantom_of(vendor)
        path = tmp_path / "image.dcm"
        dicom_dataset(SMALL, phantom).save_as(path, enforce_file_format=True)
        read = pydicom.dcmread(path)
        assert read.file_meta.TransferSyntaxUID == vendor.transfer_syntax
        assert np.array_equal(read.pixel_array, phantom.pixels)
        by_gdcm = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))[0]
        if vendor.photometric_interpretation == "MONOCHROME1":  # ITK turns it to MONOCHROME2
            by_gdcm = vendor.maximum - by_gdcm
        assert np.array_equal(by_gdcm, phantom.pixels)

    def test_jpeg_lossless_uses_selection_value_1_and_the_stored_precision(self) -> None:
        vendor = VENDORS[0]
        ds = dicom_dataset(SMALL, phantom_of(vendor))
        frame = next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))
        start_of_frame = frame.index(b"\xff\xc3")
        start_of_scan = frame.index(b"\xff\xda")
        assert frame[start_of_frame + 4] == vendor.bits_stored
        assert frame[start_of_scan + 7] == 1

    @vendors
    def test_header_says_what_the_image_is(self, vendor: Vendor) -> None:
        phantom = phantom_of(vendor)
        ds = dicom_dataset(SMALL, phantom)
        assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.1.2"
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert all(ds[key].value.is_valid for key in ("SOPInstanceUID", "StudyInstanceUID"))
        assert str(ds.PatientName).startswith("PHANTOM^")
        assert ds.QualityControlImage == "YES"
        assert (ds.Modality, ds.PresentationIntentType) == ("MG", "FOR PRESENTATION")
        assert (ds.Rows, ds.Columns) == phantom.pixels.shape
        assert ds.HighBit == ds.BitsStored - 1 == vendor.bits_stored - 1
        assert phantom.pixels.max() <= vendor.maximum
        # Series Laterality only where the image does not say it (PS3.3 C.7.3.1).
        sides = [ds.get("ImageLaterality"), ds.get("Laterality")]
        assert sides == ([None, "R"] if "ImageLaterality" in vendor.omitted else ["R", None])
        assert ds.PatientOrientation == ["A" if vendor.mirrored else "P", "FL"]
        told = [ds.get("ViewPosition"), [i.CodeMeaning for i in ds.get("ViewCodeSequence", [])]]
        assert "MLO" in told or ["medio-lateral oblique"] in told
        assert not set(vendor.omitted) & set(ds.dir())
        # The field of view does not change with the scale.
        assert ds.Rows * ds.ImagerPixelSpacing[0] == pytest.approx(
            vendor.rows * vendor.imager_pixel_spacing, rel=0.01
        )

    @pytest.mark.skipif(
        shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)"
    )
    @vendors
    def test_dciodvfy_misses_nothing_but_what_a_vendor_leaves_out(
        self, vendor: Vendor, tmp_path: Path
    ) -> None:
        path = tmp_path / "image.dcm"
        dicom_dataset(SMALL, phantom_of(vendor)).save_as(path, enforce_file_format=True)
        judged = subprocess.run(["dciodvfy", path], capture_output=True, text=True).stderr
        errors = [line for line in judged.splitlines() if line.startswith("Error")]
        left_out = {*vendor.omitted, *["VOILUTSequence", "WindowCenter"] * (vendor.voi is Voi.NONE)}
        assert judged.startswith("MammographyImageForPresentation")
        assert {re.findall("Element=<(.+?)>", line)[0] for line in errors} <= left_out

    def test_vendors_cover_what_the_grey_scale_rules_must_read(self) -> None:
        assert {vendor.photometric_interpretation for vendor in VENDORS} == {
            "MONOCHROME1",
            "MONOCHROME2",
        }
        assert {vendor.bits_stored for vendor in VENDORS} == {10, 12, 14, 16}
        assert {vendor.voi for vendor in VENDORS} == set(Voi)
        assert len({vendor.transfer_syntax for vendor in VENDORS}) == 6
        assert {vendor for vendor in VENDORS if vendor.padding and vendor.omitted}

    @vendors
    def test_pydicoms_voi_gives_back_the_grey_scale(self, vendor: Vendor) -> None:
        grey = np.linspace(0.01, 0.99, 1000, dtype=np.float32)[None]
        back = voi(stored_values(grey, vendor), vendor, dicom_dataset(SMALL, phantom_of(vendor)))
        assert np.abs(back - grey).max() < 2 / 2**10

    def test_padding_lies_in_the_rim_and_nowhere_else(self) -> None:
        for vendor in VENDORS:
            phantom = phantom_of(vendor)
            padded = phantom.pixels == 0
            assert ("PixelPaddingValue" in dicom_dataset(SMALL, phantom)) == vendor.padding
            assert padded.any() == vendor.padding
            # The right breast's chest wall is on the right: the rim is at the left and below.
            assert not padded[:-6, 6:].any()

    def test_air_is_dark_but_never_constant(self) -> None:
        for vendor in VENDORS:
            grey = shown(SMALL, phantom_of(vendor))
            if vendor.mirrored:
                grey = grey[:, ::-1]
            air = grey[-60:-10, 10:60]  # below, on the side of the nipple
            assert air.std() > 0
            assert air.max() < 0.1
