"""Results for a PACS of every kind of header that predict may meet, judged by other programs."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import half_disk, make_dataset, write_dicom
from PIL import Image
from pydicom import config, uid
from pydicom.dataset import Dataset
from pydicom.valuerep import STR_VR, validate_value

from mammo_pd.report import dicom_results
from mammo_pd.report.dicom_results import (
    NoResultError,
    ScoredExam,
    ScoredImage,
    ScoringModel,
    Verdict,
    write_exam,
)

pytestmark = pytest.mark.skipif(
    find_spec("highdicom") is None, reason="highdicom is not installed (mammo-pd[dicom])"
)

MODEL = ScoringModel("vit_small_patch16_224 1024x816", "0f" * 32, "cancer within a year")
# Of a woman and her study: what an archive finds them by.
IDENTITY = ("PatientID", "PatientName", "StudyInstanceUID")
WHOLE = {
    "PatientBirthDate": "19601231",
    "PatientSex": "F",
    "PatientAge": "064Y",
    "StudyDate": "20250101",
    "StudyTime": "120000",
    "StudyID": "1",
    "AccessionNumber": "A1",
    "ReferringPhysicianName": "Doctor^A",
    "StudyDescription": "Screening",
    "SeriesInstanceUID": "1.2.3.1",
    "Manufacturer": "VENDOR",
    "ManufacturerModelName": "Unit",
    "PatientOrientation": ["A", "R"],
    "BurnedInAnnotation": "NO",
    "LossyImageCompression": "00",
}
PROCESSING = "1.2.840.10008.5.1.4.1.1.1.2.1"
UNFILLED: dict[str, Any] = dict.fromkeys([*WHOLE, "PatientName", "PatientID"])
# {kind of header: (its tags, laterality, view, frame)}
KINDS: dict[str, tuple[dict[str, Any], str | None, str | None, int | None]] = {
    "presentation": ({}, "L", "CC", None),
    "processing": ({"SOPClassUID": PROCESSING}, "R", "MLO", None),
    "tomosynthesis": (
        {"SOPClassUID": uid.BreastTomosynthesisImageStorage, "NumberOfFrames": 3},
        *("L", "CC", 2),
    ),
    "computed_radiography": (
        {"SOPClassUID": uid.ComputedRadiographyImageStorage},
        *("L", "CC", None),
    ),
    "secondary_capture": ({"SOPClassUID": uid.SecondaryCaptureImageStorage}, "L", "CC", None),
    "unfilled": ({**UNFILLED, "SeriesInstanceUID": "1.2.3.1"}, None, None, None),
    "japanese": (
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Hanako=山田^花子"},
        *("L", "CC", None),
    ),
}


@pytest.fixture(autouse=True)
def _archives_hold_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.IGNORE)


def results(
    folder: Path,
    tags: dict[str, Any],
    laterality: str | None = "L",
    view: str | None = "CC",
    frame: int | None = None,
) -> tuple[Dataset, Dataset, list[Path]]:
    """What is written of an exam of two images, both with a saliency picture.

    Returns:
        The structured report, the first secondary capture, and the files of all.
    """
    folder.mkdir(exist_ok=True)
    picture = folder / "saliency.png"
    Image.fromarray(half_disk().astype(np.uint8)).save(picture)
    verdicts = [Verdict("cancer", 0.25, True, "specificity of 90 %", 0.2, 0.125)]
    images = []
    for number in (1, 2):
        named = {**WHOLE, "SOPInstanceUID": f"1.2.3.4.{number}", **tags}
        dataset = make_dataset(half_disk(), **named)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        source = write_dicom(folder / f"{number}.dcm", dataset)
        images.append(ScoredImage(source, frame, laterality, view, verdicts, picture))
    breasts = {} if laterality is None else {laterality: verdicts}
    files = write_exam(ScoredExam(images, breasts, verdicts), MODEL, folder / "results")
    opened = [pydicom.dcmread(file) for file in files]
    assert [one.Modality for one in opened] == ["SR", "OT", "OT"]
    return opened[0], opened[1], files


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    place = tmp_path_factory.mktemp("kinds")
    return {kind: results(place / kind, *of)[2] for kind, of in KINDS.items()}


@pytest.mark.filterwarnings("ignore:Incorrect value for Specific Character Set")
@pytest.mark.parametrize(
    ("given", "name", "written"),
    [
        ("ISO_IR 100", "Müller^Änne", "ISO_IR 100"),
        ("ISO_IR 192", "Иванова^А", "ISO_IR 192"),
        ("GB18030", "Wang^XiaoDong=王^小东", "GB18030"),
        # Several sets, of which the first may be empty: archives of Japan and Korea.
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", ["", "ISO 2022 IR 87"]),
        (
            ["ISO 2022 IR 13", "ISO 2022 IR 87"],
            *("ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎", ["ISO 2022 IR 13", "ISO 2022 IR 87"]),
        ),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동", "ISO_IR 192"),
        # Not as the standard writes them, which pydicom reads all the same.
        ("ISO IR 100", "Müller^Änne", "ISO_IR 192"),
        (["ISO_IR 100", "ISO 2022 IR 87"], "Müller^Änne", "ISO_IR 192"),
    ],
)
def test_names_are_those_of_the_images_in_every_character_set(
    given: Any, name: str, written: Any, tmp_path: Path
) -> None:
    described = name.partition("^")[0]
    tags = {"SpecificCharacterSet": given, "PatientName": name, "StudyDescription": described}
    for one in results(tmp_path, tags)[:2]:
        assert one.SpecificCharacterSet == written
        assert str(one.PatientName) == str(pydicom.dcmread(tmp_path / "1.dcm").PatientName)
        assert one.StudyDescription == described


@pytest.mark.parametrize(
    ("keyword", "given", "written"),
    [
        ("PatientBirthDate", "00000000", ""),
        ("StudyDate", "2000.01.01", ""),
        ("StudyTime", "99:99", ""),
        ("PatientSex", "W", ""),
        ("StudyID", "x" * 17, ""),
        ("AccessionNumber", ["A", "B"], ""),
        ("ReferringPhysicianName", "R" * 65, ""),
        ("PatientAge", "54", None),
        ("StudyDescription", "D" * 65, None),
        ("IssuerOfPatientID", "HOSPITAL", "HOSPITAL"),
        # What she is found by is written as her images have it.
        ("PatientID", "P" * 65, "P" * 65),
        ("PatientName", "N" * 65, "N" * 65),
        ("StudyInstanceUID", "1.2.03.4", "1.2.03.4"),
    ],
)
def test_what_no_standard_allows_is_left_out_but_for_what_she_is_found_by(
    keyword: str, given: Any, written: Any, tmp_path: Path
) -> None:
    for one in results(tmp_path, {keyword: given})[:2]:
        assert one.get(keyword) == written
        for element in one.iterall():
            if element.keyword not in IDENTITY and not element.is_empty:
                values = element.value if element.VM > 1 else [element.value]
                for value in map(str, values) if element.VR in STR_VR else values:
                    validate_value(element.VR, value, config.RAISE)


def test_text_in_no_character_set_is_left_out_but_for_her_name(tmp_path: Path) -> None:
    tags = {"SpecificCharacterSet": None, "PatientName": "Müller", "StudyDescription": "Größe"}
    for one in results(tmp_path, tags)[:2]:
        assert str(one.PatientName) == "Müller"
        assert "StudyDescription" not in one and "SpecificCharacterSet" not in one


@pytest.mark.parametrize(("instance", "is_kept"), [("1.2.3", True), ("", False), (None, False)])
def test_sequence_with_an_item_that_is_not_whole_is_left_out(
    instance: str | None, is_kept: bool, tmp_path: Path
) -> None:
    item = Dataset()
    if instance is not None:
        item.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
        item.ReferencedSOPInstanceUID = instance
    for one in results(tmp_path, {"ReferencedStudySequence": [item]})[:2]:
        assert ("ReferencedStudySequence" in one) == is_kept


def test_value_that_cannot_be_read_costs_no_exam(tmp_path: Path) -> None:
    results(tmp_path / "whole", {"PatientWeight": "61.5", "StudyID": "MARK"})
    content = (tmp_path / "whole" / "1.dcm").read_bytes()
    assert content.count(b"61.5") == 1
    (broken := tmp_path / "1.dcm").write_bytes(content.replace(b"61.5", b"none"))
    image = ScoredImage(broken, None, "L", "CC", [Verdict("cancer", 0.5)])
    exam = ScoredExam([image], {}, image.verdicts)
    (report,) = write_exam(exam, MODEL, tmp_path / "results")
    opened = pydicom.dcmread(report)
    assert "PatientWeight" not in opened
    assert opened.StudyID == "MARK"


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({"SOPClassUID": "1.3.6.1.4.1.999.1"}, "a file is of a private SOP class"),
        ({"SeriesInstanceUID": None}, "a file lacks the UID of its study, series, image or SOP"),
        ({"StudyInstanceUID": "1.2.3.9"}, "the images are of several studies"),
        (None, "a file can no longer be read"),
    ],
)
def test_exam_without_a_result_says_why(
    tags: dict[str, Any] | None, why: str, tmp_path: Path
) -> None:
    results(tmp_path, {})
    other = make_dataset(half_disk(), **{**WHOLE, "SOPInstanceUID": "1.2.3.4.9", **(tags or {})})
    other.file_meta.MediaStorageSOPClassUID = other.SOPClassUID
    write_dicom(tmp_path / "9.dcm", other)
    if tags is None:
        (tmp_path / "9.dcm").unlink()
    images = [
        ScoredImage(tmp_path / name, None, "L", "CC", [Verdict("cancer", 0.5)])
        for name in ("1.dcm", "9.dcm")
    ]
    exam = ScoredExam(images, {}, images[0].verdicts)
    with pytest.raises(NoResultError, match=why):
        write_exam(exam, MODEL, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_instance_is_another_if_anything_that_made_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an instance whose UID it has already an archive keeps the first and drops the next."""
    verdict = Verdict("cancer", 0.25, True, "specificity of 90 %", 0.2, 0.125)
    results(tmp_path, {})

    def write(verdict: Verdict = verdict, model: ScoringModel = MODEL) -> dict[str, str]:
        """The UIDs of report and capture, each with that of its series."""
        image = ScoredImage(
            tmp_path / "1.dcm", None, "L", "CC", [verdict], tmp_path / "saliency.png"
        )
        exam = ScoredExam([image], {"L": [verdict]}, [verdict])
        opened = map(pydicom.dcmread, write_exam(exam, model, tmp_path / "one"))
        return {str(one.SOPInstanceUID): str(one.SeriesInstanceUID) for one in opened}

    before = write()
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "one").iterdir()}
    assert write() == before
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "one").iterdir()} == times
    for change in (
        {"target": "mass"},
        {"score": 0.26},
        {"flagged": False},
        {"rule": "specificity of 95 %"},
        {"threshold": 0.21},
        {"recalibrated": None},
    ):
        after = write(replace(verdict, **change))
        assert not {*before} & {*after}, change
        assert [*before.values()] == [*after.values()], change
    after = write(model=replace(MODEL, weights="1f" * 32))
    assert not {*before, *before.values()} & {*after, *after.values()}
    monkeypatch.setattr(dicom_results, "__version__", "0.0.1")
    assert not {*before} & {*write()}


def test_capture_says_of_its_pixels_what_the_image_says(tmp_path: Path) -> None:
    """The picture shows the image: text burnt into it, and what compression took from it."""
    tags = {
        "BurnedInAnnotation": "YES",
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": "12.5",
        "LossyImageCompressionMethod": "ISO_15444_1",
    }
    capture = results(tmp_path / "said", tags)[1]
    assert {keyword: str(capture[keyword].value) for keyword in tags} == tags
    capture = results(tmp_path / "unsaid", dict.fromkeys(tags))[1]
    assert not [keyword for keyword in tags if keyword in capture]


def test_side_that_is_not_known_is_said_to_be_unknown(tmp_path: Path) -> None:
    """Type 2C of a paired part: PS3.3 C.7.3.1."""
    assert results(tmp_path / "L", {})[1].Laterality == "L"
    capture = results(tmp_path / "none", {}, None, None)[1]
    assert "Laterality" in capture and not capture.Laterality


@pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)"
)
@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_finds_no_error(kind: str, every_kind: dict[str, list[Path]]) -> None:
    for file in every_kind[kind]:
        judged = subprocess.run(
            ["dciodvfy", file], capture_output=True, text=True, errors="replace"
        )
        assert "Error" not in judged.stderr


@pytest.fixture(scope="module")
def standard() -> Any:
    """What dicom-validator has downloaded of the standard; it is never downloaded here."""
    reader = pytest.importorskip(
        "dicom_validator.spec_reader.edition_reader", reason="dicom-validator is not installed"
    ).EditionReader()
    edition = reader.get_edition("local") if reader.editions_path().is_file() else None
    if edition is None or not reader.json_files_exist(edition):
        pytest.skip(f"dicom-validator has no edition of the standard in {reader.path}")
    return reader.load_dicom_info(edition)


@pytest.mark.parametrize("kind", KINDS)
def test_dicom_validator_finds_no_error(
    kind: str, every_kind: dict[str, list[Path]], standard: Any
) -> None:
    from dicom_validator.validator.dicom_file_validator import DicomFileValidator

    validator = DicomFileValidator(standard)
    for file in every_kind[kind]:
        (judged,) = validator.validate(file).values()
        assert judged.errors == 0, judged.module_errors


@pytest.mark.skipif(
    shutil.which("tid1500reader") is None, reason="tid1500reader is not installed (PyPI: dcmqi)"
)
@pytest.mark.parametrize("kind", KINDS)
def test_dcmqi_reads_every_group_of_the_report(
    kind: str, every_kind: dict[str, list[Path]], tmp_path: Path
) -> None:
    words = ["tid1500reader", "--inputDICOM", every_kind[kind][0]]
    words += ["--outputMetadata", tmp_path / "read.json"]
    subprocess.run(words, capture_output=True, check=True)
    groups = json.loads((tmp_path / "read.json").read_text())["Measurements"]
    names = {group["TrackingIdentifier"] for group in groups}
    laterality = KINDS[kind][1]
    assert len(groups) == (3 if laterality is None else 4)
    assert {"cancer, exam", *([f"cancer, breast {laterality}"] if laterality else [])} < names
    for group in groups:
        values = [float(one["value"]) for one in group["measurementItems"]]
        assert values == [0.25, 0.125]


@pytest.fixture
def java_without_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PixelMed's rules are longer than Java allows a style sheet to be."""
    limits = ("xpathExprGrpLimit", "xpathExprOpLimit", "xpathTotalOpLimit")
    options = [*(f"-Djdk.xml.{limit}=0" for limit in limits), "-Xss512m"]
    given = os.environ.get("JDK_JAVA_OPTIONS", "")
    monkeypatch.setenv("JDK_JAVA_OPTIONS", " ".join([given, *options]))
    yield


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("DicomSRValidator") is None,
    reason="DicomSRValidator is not installed (Debian: pixelmed-apps)",
)
def test_pixelmed_finds_the_templates_followed(
    every_kind: dict[str, list[Path]], java_without_limits: None
) -> None:
    """All but a code of which the standard suggests others, and content that its rules lack.

    CID 100 is TID 1500's baseline and extensible, so that other codes may stand; it has none for
    mammography. Algorithm Manufacturer in TID 4019 is younger than PixelMed's rules, and TID 1501
    may be extended by qualitative evaluations.
    """
    words = ["DicomSRValidator", every_kind["presentation"][0]]
    judged = subprocess.run(words, capture_output=True, text=True).stdout.splitlines()
    assert "Found Root Template TID_1500 (MeasurementReport)" in judged
    assert "Root Template Validation Complete" in judged
    (error,) = [line for line in judged if line.startswith("Error")]
    assert error.endswith('Code (71651007,SCT,"Mammography") not found in context group 100')
    newer = ("Algorithm Manufacturer", "Intended use", "Verdict at the locked threshold")
    for line in judged:
        if line.startswith("Warning"):
            assert line.endswith("Content Item not in template")
            assert any(meaning in line for meaning in newer)
