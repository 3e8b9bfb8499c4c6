import os
import warnings
from encodings.aliases import aliases

import pytest
from dicom_files import half_disk, make_dataset, write_dicom
from pydicom import uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sr._snomed_dict import mapping
from pydicom.sr.codedict import codes
from pydicom.tag import Tag

from mammo_pd.errors import ImageError
from mammo_pd.imaging.dicom_file import read_dataset
from mammo_pd.imaging.header import (
    check_is_mammogram,
    read_header_fields,
    read_identifiers,
)
from mammo_pd.terms import Reason

VIEWS = {
    "CranioCaudal": "CC",
    "MedioLateralObliqueProjection": "MLO",
    "MedioLateralProjection": "ML",
    "LateroMedial": "LM",
    "LateroMedialOblique": "LMO",
    "CaudoCranial": "FB",
    "SuperolateralToInferomedialOblique": "SIO",
    "InferomedialToSuperolateralOblique": "ISO",
    "CranioCaudalExaggeratedLaterally": "XCCL",
    "CranioCaudalExaggeratedMedially": "XCCM",
    "TissueSpecimenFromBreast": "SPECIMEN",
}


def header(**tags):
    dataset = Dataset()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def coded(code, **inside):
    return [header(CodeValue=code, CodingSchemeDesignator="SCT", CodeMeaning="x", **inside)]


def test_every_view_of_the_standard_has_its_acr_name():
    assert set(VIEWS) == set(codes.cid4014.dir())


@pytest.mark.parametrize(("name", "view"), VIEWS.items())
def test_views_are_read_from_snomed_ct_and_rt(name, view):
    code = getattr(codes.cid4014, name).value
    for given in (code, mapping["SCT"][code]):
        assert read_header_fields(header(ViewCodeSequence=coded(given))).view == view


# The words that stand in the manifests written so far, with the SNOMED RT code of each.
MODIFIERS = {
    "R-102D2": "cleavage",
    "R-102D1": "axillary_tail",
    "R-102D3": "rolled_lateral",
    "R-102D4": "rolled_medial",
    "R-102CA": "rolled_inferior",
    "R-102C9": "rolled_superior",
    "R-102D5": "implant_displaced",
    "R-102D6": "magnification",
    "R-102D7": "spot_compression",
    "R-102C2": "tangential",
    "R-40AB3": "nipple_in_profile",
    "P2-00161": "anterior_compression",
    "R-40ABE": "infra_mammary_fold",
    "R-40AB2": "axillary_tissue",
}


@pytest.mark.parametrize(("code", "word"), MODIFIERS.items())
def test_view_modifiers_are_read_from_snomed_ct_and_rt(code, word):
    for given in (code, mapping["SRT"][code]):
        read = read_header_fields(header(ViewModifierCodeSequence=coded(given)))
        assert read.view_modifiers == (word,)


def test_codes_are_read_whatever_scheme_they_are_said_to_be_of():
    for scheme in ("SCT", "SRT", "SNM3", "99SDM", ""):
        item = header(CodeValue="R-10226", CodingSchemeDesignator=scheme, CodeMeaning="x")
        assert read_header_fields(header(ViewCodeSequence=[item])).view == "MLO"
    assert read_header_fields(header(ViewCodeSequence=coded("R-99999"))).view is None
    assert read_header_fields(header(ViewCodeSequence=[header()])).view is None


@pytest.mark.parametrize(
    ("tags", "view"),
    [
        ({"ViewPosition": "MLO"}, "MLO"),
        ({"ViewPosition": "LMLO"}, "MLO"),
        ({"ViewPosition": "RCC"}, "CC"),
        ({"ViewPosition": "LM"}, "LM"),
        ({"ViewPosition": "", "ViewCodeSequence": coded("R-10242")}, "CC"),
        ({"ViewCodeSequence": coded("Y-X1770")}, "XCCL"),
        ({"ViewCodeSequence": coded("Y-X1771")}, "XCCM"),
        ({"AcquisitionDeviceProcessingDescription": "MAMMO,R-MLO"}, "MLO"),
        ({"SeriesDescription": "L CC"}, "CC"),
        ({"SeriesDescription": "Routine mammogram"}, None),
        ({"SeriesDescription": "ACCESS"}, None),
        ({"PatientOrientation": ["P", "L"]}, "CC"),
        ({"PatientOrientation": ["A", "FR"]}, "MLO"),
        ({"PatientOrientation": ["A", "F"]}, None),
        ({"PatientOrientation": ""}, None),
        ({}, None),
    ],
)
def test_view_from_every_place(tags, view):
    assert read_header_fields(header(**tags)).view == view


def frame_anatomy(side):
    return [header(FrameAnatomySequence=[header(FrameLaterality=side)])]


@pytest.mark.parametrize(
    ("tags", "side"),
    [
        ({"ImageLaterality": "L", "Laterality": "R"}, "L"),
        ({"ImageLaterality": "", "Laterality": "R"}, "R"),
        ({"ImageLaterality": "B"}, None),
        ({"ImageLaterality": "U", "Laterality": "L"}, "L"),
        ({"SharedFunctionalGroupsSequence": frame_anatomy("R")}, "R"),
        ({"PerFrameFunctionalGroupsSequence": frame_anatomy("L")}, "L"),
        ({"ViewPosition": "RMLO"}, "R"),
        ({"SeriesDescription": "LEFT MLO"}, "L"),
        ({"ProtocolName": "CC LEFT"}, "L"),
        ({"PatientOrientation": ["P", "L"]}, "R"),
        ({"PatientOrientation": ["A", "FR"]}, "L"),
        ({}, None),
    ],
)
def test_laterality_from_every_place(tags, side):
    assert read_header_fields(header(**tags)).laterality == side


@pytest.mark.parametrize(
    ("tags", "age"),
    [
        ({"PatientAge": "063Y"}, 63),
        ({"PatientAge": "410M"}, 34.17),
        ({"PatientAge": "000Y"}, None),
        ({"PatientBirthDate": "19500101", "StudyDate": "20100101"}, 60),
        ({"PatientBirthDate": "00000000", "StudyDate": "20100101"}, None),
        ({"PatientBirthDate": "20200101", "StudyDate": "20100101"}, None),
        ({}, None),
    ],
)
def test_age_in_years(tags, age):
    assert read_header_fields(header(**tags)).age == (
        None if age is None else pytest.approx(age, abs=0.01)
    )


def test_modifiers_beside_and_inside_the_view():
    fields = read_header_fields(
        header(ViewCodeSequence=coded("R-10242", ViewModifierCodeSequence=coded("R-102D7")))
    )
    assert fields.view_modifiers == ("spot_compression",)
    fields = read_header_fields(header(ViewModifierCodeSequence=coded("399209000")))
    assert fields.view_modifiers == ("implant_displaced",)


def test_spacing_is_at_the_detector():
    fields = read_header_fields(header(ImagerPixelSpacing=[0.07, 0.08], PixelSpacing=[0.05, 0.05]))
    assert fields.imager_pixel_spacing == (0.07, 0.08)
    assert read_header_fields(header(PixelSpacing=[0.05, 0.05])).imager_pixel_spacing is None
    assert read_header_fields(header(ImagerPixelSpacing=[0, 0])).imager_pixel_spacing is None


def test_yes_no_and_presentation_intent():
    fields = read_header_fields(header(BurnedInAnnotation="YES", BreastImplantPresent="NO"))
    assert (fields.burned_in_annotation, fields.implant) == (True, False)
    raw = read_header_fields(header(SOPClassUID="1.2.840.10008.5.1.4.1.1.1.2.1"))
    assert raw.presentation_intent == "FOR PROCESSING"


def test_identifiers_are_kept_apart_from_the_fields():
    dataset = header(
        SOPInstanceUID="1.2.3", PatientID="SECRET", AccessionNumber="A1", ImageLaterality="L"
    )
    assert read_identifiers(dataset) == {
        "sop_instance_uid": "1.2.3",
        "patient_id": "SECRET",
        "accession_number": "A1",
    }
    assert "SECRET" not in str(read_header_fields(dataset))


@pytest.mark.parametrize(
    "tags",
    [
        {"Modality": "MG"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2"},
        {"Modality": "RG", "BodyPartExamined": "BREAST"},
        {"Modality": "CR", "ViewPosition": "MLO"},
        {"Modality": "DX", "ViewCodeSequence": coded("399162004")},
        {"Modality": "OT", "AnatomicRegionSequence": coded("T-04000")},
        {"Modality": "OT", "AnatomicRegionSequence": coded("76752008")},
        {"Modality": "CR", "BodyPartExamined": "LT BREAST", "ViewPosition": "ML"},
        {"Modality": "CR", "BodyPartExamined": "MAMMA", "ViewPosition": "LM"},
        {"Modality": "CR", "BodyPartExamined": "CHEST", "ViewPosition": "RMLO"},
        {"ImageLaterality": "L"},
    ],
)
def test_mammograms(tags):
    check_is_mammogram(header(**tags))


@pytest.mark.parametrize(
    "tags",
    [
        {"Modality": "CT"},
        {"Modality": "US", "BodyPartExamined": "BREAST"},
        {"Modality": "MR", "ImageLaterality": "L"},
        {"Modality": "CR", "ImageLaterality": "L", "ViewPosition": "AP"},
        {"Modality": "DX", "BodyPartExamined": "CHEST", "ViewPosition": "PA"},
        {"Modality": "CR", "BodyPartExamined": "ELBOW", "ViewPosition": "ML"},
        {"Modality": "DX", "BodyPartExamined": "ANKLE", "ViewPosition": "LLM"},
        {"Modality": "CR", "ViewPosition": "LM"},
        {"Modality": "DX", "BodyPartExamined": "KNEE", "ViewCodeSequence": coded("399260004")},
        {"Modality": "CR", "BodyPartExamined": "BREASTBONE", "ViewPosition": "LL"},
        {"ImageLaterality": "L", "BodyPartExamined": "HAND"},
        {"Modality": "OT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "ViewPosition": "CC"},
        {},
    ],
)
def test_what_is_no_mammogram(tags):
    with pytest.raises(ImageError) as caught:
        check_is_mammogram(header(**tags))
    assert caught.value.reason == Reason.NOT_MAMMOGRAPHY


def test_a_named_file_needs_no_modality_but_a_ct_stays_a_ct():
    check_is_mammogram(header(), assume_mammogram=True)
    with pytest.raises(ImageError):
        check_is_mammogram(header(Modality="CT"), assume_mammogram=True)


def test_a_value_that_breaks_the_standard_is_read_without_being_quoted(tmp_path):
    """pydicom's warnings go to the terminal and into logs, and say what they warn of."""
    dataset = make_dataset(half_disk())
    dataset.PatientID = dataset.StudyInstanceUID = dataset.ViewPosition = "SECRET" * 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_dicom(tmp_path / "a.dcm", dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        header = read_dataset(path)
        read_header_fields(header)
        assert read_identifiers(header)["study_instance_uid"] == "SECRET" * 20


@pytest.mark.parametrize("given", ["Jane^Doe", "JANE DOE", "JD"])
def test_a_modality_that_is_no_code_is_not_quoted(given):
    with pytest.raises(ImageError) as caught:
        check_is_mammogram(header(Modality=given))
    assert given not in caught.value.detail


def test_only_what_the_standard_defines_is_taken_of_codes():
    fields = read_header_fields(
        header(
            PhotometricInterpretation="MONOCHROME2 DOE",
            PresentationIntentType="OF JANE DOE",
            SOPClassUID=uid.DigitalMammographyXRayImageStorageForPresentation,
            Manufacturer="Jane Doe",
            ManufacturerModelName="GE Senographe DS of Jane Doe",
        )
    )
    assert fields.photometric_interpretation is None
    assert fields.presentation_intent == "FOR PRESENTATION"
    assert (fields.manufacturer, fields.model) == ("other", "Senographe DS")


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "side", "view", "age", "spacing"),
    [
        ("fodicom_GH133_ge_R_MLO_voilut_sigmoid", "R", "MLO", None, 0.09409),
        ("ge_essential_R_XCCL", "R", "XCCL", 34.17, 0.09409),
        ("hologic_dsm_stereo_scout_mono1", "L", "CC", 51.92, 0.1),
        ("nema_MG1_J2KI", "L", "MLO", 75, None),
        ("train_images_10011_220375232", "L", None, None, None),
    ],
)
def test_fields_of_real_files(corpus, name, side, view, age, spacing):
    dataset = read_dataset(corpus / "mg_dicom" / f"{name}.dcm")
    check_is_mammogram(dataset)
    fields = read_header_fields(dataset)
    assert (fields.laterality, fields.view) == (side, view)
    assert fields.age == (None if age is None else pytest.approx(age, abs=0.01))
    row_spacing = fields.imager_pixel_spacing and fields.imager_pixel_spacing[0]
    assert row_spacing == (None if spacing is None else pytest.approx(spacing, abs=1e-4))


def raw_header(**tags: tuple[str, bytes]) -> Dataset:
    """A header as read from a file: pydicom decodes its values when they are asked for."""
    dataset = Dataset()
    for keyword, (vr, value) in tags.items():
        tag = Tag(keyword)
        dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return dataset


# pydicom takes the names of Python's codecs for character sets, too.
CHARACTER_SETS = [
    *sorted({name.encode() for name in aliases.values()}),
    *(b"unicode_escape", b"raw_unicode_escape", b"utf_8_sig", b"idna", b"punycode", b"undefined"),
    *(
        b"ISO_IR 192",
        b"GB18030",
        b"ISO 2022 IR 87",
        b"\\\\ISO 2022 IR 149",
        b"ISO_IR 999",
        b"\xff\xfe",
    ),
]


@pytest.mark.parametrize("charset", CHARACTER_SETS)
@pytest.mark.parametrize(
    "written", [b"+2AA-", b"\\ud800", b"A\xd8\x00\x00", b"\xed\xa0\x80", b"\x1b$B\xff", b"\x80\xff"]
)
def test_whatever_the_character_set_identifiers_can_be_hashed_and_written(charset, written):
    """One that could not ended the run, and every later one of its store."""
    dataset = raw_header(SpecificCharacterSet=("CS", charset), PatientID=("LO", written))
    for identifier in read_identifiers(dataset).values():
        assert os.fsencode(identifier)


def test_identifiers_that_differ_behind_a_backslash_differ():
    one, two = (raw_header(PatientID=("LO", b"HOSP\\" + number)) for number in (b"1", b"2"))
    assert read_identifiers(one) == {"patient_id": "HOSP\\1"}
    assert read_identifiers(two) == {"patient_id": "HOSP\\2"}
