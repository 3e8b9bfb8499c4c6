import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK
from pydicom.pixels.processing import apply_voi_lut
from scipy import ndimage, stats

from mammo_pd.errors import InputError
from mammo_pd.phantoms.phantom import (
    VIEWS,
    LesionKind,
    Phantom,
    PhantomSettings,
    _anatomical_noise,
    _draw_woman,
    _Frame,
    dicom_dataset,
    make_phantom,
    write_phantoms,
)
from mammo_pd.phantoms.vendors import VENDORS, Vendor, Voi, stored_values
from mammo_pd.terms import Laterality

SMALL = PhantomSettings(patients=6, scale=0.15)
Pairs = list[tuple[Phantom, np.ndarray, np.ndarray]]
vendors = pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.name[-1])


def shown(settings: PhantomSettings, phantom: Phantom) -> np.ndarray:
    """The grey scale in [0, 1] that pydicom makes of an image."""
    return voi(phantom.pixels, phantom.vendor, dicom_dataset(settings, phantom))


def voi(pixels: np.ndarray, vendor: Vendor, ds: pydicom.Dataset) -> np.ndarray:
    highest = 4095 if vendor.voi is Voi.LUT else vendor.maximum
    grey = apply_voi_lut(pixels, ds) / highest
    return 1 - grey if vendor.photometric_interpretation == "MONOCHROME1" else grey


def images(settings: PhantomSettings) -> Iterator[Phantom]:
    for patient in range(settings.patients):
        for laterality in Laterality:
            for view in VIEWS:
                yield make_phantom(settings, patient, laterality, view)


def phantom_of(vendor: Vendor) -> Phantom:
    patient = next(p for p in range(6) if _draw_woman(SMALL, p).vendor == vendor)
    return make_phantom(SMALL, patient, Laterality.RIGHT, "MLO")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), SMALL, processes=1)


class TestSettings:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("patients", 0),
            ("seed", -1),
            ("scale", 0.05),
            ("scale", 1.5),
            ("prevalence", -0.1),
            ("prevalence", 1.1),
        ],
    )
    def test_names_the_value_out_of_range(self, field: str, value: float) -> None:
        with pytest.raises(InputError, match=f"{field} is {value}"):
            PhantomSettings(**{field: value})

    def test_view_and_patient_are_checked(self) -> None:
        with pytest.raises(ValueError, match="'ML'"):
            make_phantom(SMALL, 0, Laterality.LEFT, "ML")
        with pytest.raises(ValueError, match="patient is 6"):
            make_phantom(SMALL, 6, Laterality.LEFT, "CC")


class TestDeterminism:
    def test_files_are_the_same_bytes_however_many_processes(
        self, archive: Path, tmp_path: Path
    ) -> None:
        again = write_phantoms(tmp_path, SMALL, processes=2)
        names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
        assert names == sorted(p.relative_to(archive.parent) for p in archive.parent.rglob("*.*"))
        assert len(names) == 4 * SMALL.patients + 1
        for name in names:
            assert (tmp_path / name).read_bytes() == (archive.parent / name).read_bytes(), name
        assert again == tmp_path / "labels.csv"

    def test_a_woman_does_not_depend_on_how_many_there_are(self) -> None:
        more = dataclasses.replace(SMALL, patients=100)
        one = make_phantom(SMALL, 3, Laterality.LEFT, "CC")
        assert np.array_equal(one.pixels, make_phantom(more, 3, Laterality.LEFT, "CC").pixels)

    def test_every_image_is_another(self) -> None:
        seeds = [SMALL, dataclasses.replace(SMALL, seed=1)]
        pixels = [phantom.pixels.tobytes() for settings in seeds for phantom in images(settings)]
        assert len(set(pixels)) == len(pixels)


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
        assert ds.Laterality == "R"
        assert ds.PatientOrientation == ["A" if vendor.mirrored else "P", "FL"]
        told = [ds.get("ViewPosition"), [i.CodeMeaning for i in ds.get("ViewCodeSequence", [])]]
        assert "MLO" in told or ["medio-lateral oblique"] in told
        assert not set(vendor.omitted) & set(ds.dir())
        # The field of view does not change with the scale.
        assert ds.Rows * ds.ImagerPixelSpacing[0] == pytest.approx(
            vendor.rows * vendor.imager_pixel_spacing, rel=0.01
        )

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


class TestLabels:
    def test_table_tells_of_every_file(self, archive: Path) -> None:
        table = pd.read_csv(archive, dtype=str)
        assert list(table.columns) == [
            "path", "sop_instance_uid", "patient_id", "exam_id", "laterality", "view", "label",
            "lesion", "density", "vendor", "lesion_row", "lesion_column", "lesion_radius",
        ]  # fmt: skip
        written = {path.relative_to(archive.parent) for path in archive.parent.rglob("*.dcm")}
        assert {Path(path) for path in table["path"]} == written
        for row in table.itertuples():
            ds = pydicom.dcmread(archive.parent / row.path, stop_before_pixels=True)
            assert row.sop_instance_uid == ds.SOPInstanceUID
            assert (row.patient_id, row.exam_id) == (ds.PatientID, ds.StudyInstanceUID)
            assert (row.laterality, row.vendor) == (ds.Laterality, ds.Manufacturer)
        assert table["sop_instance_uid"].is_unique
        assert (table.groupby("patient_id")["exam_id"].nunique() == 1).all()
        assert (table.groupby("vendor").size() == 4).all()

    def test_label_is_of_the_breast_and_a_case_has_one(self, archive: Path) -> None:
        table = pd.read_csv(archive)
        breasts = table.groupby(["patient_id", "laterality"])
        assert (breasts["label"].nunique() == 1).all()
        assert (breasts["lesion"].nunique() == 1).all()
        assert (table.groupby("patient_id")["label"].sum().isin([0, 2])).all()
        assert set(table["label"]) == {0, 1}
        assert ((table["lesion"] == "none") == (table["label"] == 0)).all()
        assert (table["lesion_row"].isna() == (table["label"] == 0)).all()

    def test_share_of_cases_is_the_prevalence(self) -> None:
        settings = PhantomSettings(patients=3000, prevalence=0.3)
        women = [_draw_woman(settings, patient) for patient in range(settings.patients)]
        cases = [woman for woman in women if woman.case_laterality]
        left = sum(woman.case_laterality is Laterality.LEFT for woman in cases)
        assert stats.binomtest(len(cases), len(women), 0.3).pvalue > 0.01
        assert stats.binomtest(left, len(cases), 0.5).pvalue > 0.01


class TestNoLeak:
    """The label shows in the lesion's pixels and nowhere else."""

    def test_facts_do_not_depend_on_the_label(self) -> None:
        settings = PhantomSettings(patients=3000)
        women = [_draw_woman(settings, patient) for patient in range(settings.patients)]
        facts = pd.DataFrame(
            {
                "case": [woman.case_laterality is not None for woman in women],
                "vendor": [woman.vendor.name for woman in women],
                "density": [woman.density for woman in women],
                "age": [woman.age // 10 for woman in women],
                "size": [woman.depth // 10 for woman in women],
            }
        )
        for fact in ("vendor", "density", "age", "size"):
            table = pd.crosstab(facts[fact], facts["case"])
            assert table.to_numpy().min() > 20
            assert stats.chi2_contingency(table).pvalue > 0.01, fact

    def test_without_lesions_no_simple_statistic_tells_cases(self) -> None:
        settings = PhantomSettings(patients=120, scale=0.1)
        healthy = dataclasses.replace(settings, prevalence=0)
        rows = []
        for patient in range(settings.patients):
            case = _draw_woman(settings, patient).case_laterality
            phantom = make_phantom(healthy, patient, case or Laterality.LEFT, "CC")
            grey = stats.zscore(shown(healthy, phantom).ravel())
            rows.append((case is not None, grey.max(), (grey > 1).mean(), stats.skew(grey)))
        case, *statistics = np.array(rows).T
        for statistic in statistics:
            assert stats.mannwhitneyu(statistic[case == 1], statistic[case == 0]).pvalue > 0.01

    def test_the_same_woman_with_and_without_lesion_differs_only_there(self) -> None:
        settings = dataclasses.replace(SMALL, patients=12, prevalence=1)
        healthy = dataclasses.replace(settings, prevalence=0)
        kinds = set()
        for phantom in images(settings):
            twin = make_phantom(healthy, phantom.patient, phantom.laterality, phantom.view)
            assert twin.label == 0
            assert twin.lesions == ()
            changed = phantom.pixels != twin.pixels
            assert changed.any() == bool(phantom.label) == bool(phantom.lesions)
            for lesion in phantom.lesions:
                rows, columns = np.nonzero(changed)
                reach = np.hypot(rows - lesion.row, columns - lesion.column)
                assert reach.max() < 2 * np.sqrt(2) * lesion.radius + 5
                kinds.add(lesion.kind)
        assert kinds == set(LesionKind)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Images with a lesion, what it adds to the grey scale, and the grey scale without it."""
    settings = PhantomSettings(patients=16, scale=0.3, prevalence=1)
    healthy = dataclasses.replace(settings, prevalence=0)
    pairs = []
    for patient in range(settings.patients):
        case = _draw_woman(settings, patient).case_laterality
        assert case is not None
        for view in VIEWS:
            phantom = make_phantom(settings, patient, case, view)
            before = shown(healthy, make_phantom(healthy, patient, case, view))
            pairs.append((phantom, shown(settings, phantom) - before, before))
    return pairs


class TestLesions:
    def test_lies_in_the_breast_and_clear_of_the_muscle(self, pairs: Pairs) -> None:
        for phantom, _, before in pairs:
            lesion = phantom.lesions[0]
            rows, columns = np.indices(before.shape)
            inside = np.hypot(rows - lesion.row, columns - lesion.column) < lesion.radius
            assert inside.sum() > 0.9 * np.pi * lesion.radius**2  # not cut off by the image's edge
            assert ndimage.gaussian_filter(before, 2)[inside].min() > 0.1

    def test_masses_are_8_to_20_mm_wide_and_seen_in_both_views(self, pairs: Pairs) -> None:
        masses = [pair for pair in pairs if pair[0].lesions[0].kind is LesionKind.MASS]
        assert len(masses) >= 10
        for phantom, added, _ in masses:
            lesion = phantom.lesions[0]
            core = (slice(round(lesion.row) - 3, round(lesion.row) + 4),)
            core += (slice(round(lesion.column) - 3, round(lesion.column) + 4),)
            assert added[core].mean() > 0.2
            width = 2 * np.sqrt((added > added[core].mean() / 2).sum() / np.pi)
            width_mm = width * phantom.imager_pixel_spacing[0]
            assert width_mm == pytest.approx(
                2 * lesion.radius * phantom.imager_pixel_spacing[0], rel=0.25
            )
            assert 8 * 0.75 < width_mm < 20 * 1.25

    def test_calcifications_are_a_few_pixels_wide_within_10_mm(self, pairs: Pairs) -> None:
        clusters = [pair for pair in pairs if pair[0].lesions[0].kind is LesionKind.CALCIFICATION]
        assert len(clusters) >= 4
        for phantom, added, _ in clusters:
            specks, number = ndimage.label(added > 0.15)
            assert 3 <= number <= 15  # of 5 to 15 some touch
            areas = ndimage.sum_labels(np.ones_like(added), specks, range(1, number + 1))
            assert 2 <= np.median(areas) <= 25
            rows, columns = np.nonzero(specks)
            spread = max(np.ptp(rows), np.ptp(columns)) * phantom.imager_pixel_spacing[0]
            assert spread < 10 + 5 * phantom.imager_pixel_spacing[0]

    def test_lies_as_far_behind_the_nipple_in_both_views(self, pairs: Pairs) -> None:
        for (cc, _, before_cc), (mlo, _, before_mlo) in zip(pairs[::2], pairs[1::2], strict=True):
            distances = []
            for phantom, before in ((cc, before_cc), (mlo, before_mlo)):
                breast, _ = ndimage.label(ndimage.gaussian_filter(before, 2) > 0.12)
                lesion = phantom.lesions[0]
                inside = breast == breast[round(lesion.row), round(lesion.column)]
                columns = np.flatnonzero(inside.any(axis=0))
                wall_right = (phantom.laterality is Laterality.RIGHT) != phantom.vendor.mirrored
                nipple = columns.min() if wall_right else columns.max()
                distances.append(abs(lesion.column - nipple) * phantom.imager_pixel_spacing[1])
            assert distances[0] == pytest.approx(distances[1], abs=2)


def test_anatomical_noise_has_the_published_spectrum() -> None:
    frame = _Frame(rows=512, columns=512, spacing=0.25)
    for field in _anatomical_noise(frame, np.random.default_rng(0)):
        power = np.abs(np.fft.rfft2(field)) ** 2
        f = np.hypot(np.fft.fftfreq(512, 0.25)[:, None], np.fft.rfftfreq(512, 0.25)[None])
        band = (f > 0.1) & (f < 1)
        slope = np.polyfit(np.log(f[band]), np.log(power[band]), 1)[0]
        assert slope == pytest.approx(-3, abs=0.1)
        assert field.std() == pytest.approx(1, rel=1e-3)
