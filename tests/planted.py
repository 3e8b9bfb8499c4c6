"""Strings planted wherever a file, a header or a table can hold one, and the search for them."""

import base64
import io
import json
import re
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from dicom_files import half_disk, make_dataset
from PIL import Image
from pydicom import config, uid
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

# Text elements that identify, or into which anything may be typed.
TEXTS = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "OtherPatientIDs", "OtherPatientNames"),
    *("PatientBirthName", "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers"),
    *("PatientComments", "MedicalRecordLocator", "EthnicGroup", "Occupation"),
    *("AdditionalPatientHistory", "CountryOfResidence", "RegionOfResidence", "MilitaryRank"),
    *("PatientReligiousPreference", "MedicalAlerts", "Allergies", "SpecialNeeds", "AdmissionID"),
    *("AdmittingDiagnosesDescription", "AccessionNumber", "StudyID", "StudyDescription"),
    *("SeriesDescription", "ProtocolName", "PerformedProcedureStepDescription"),
    *("RequestedProcedureDescription", "AcquisitionDeviceProcessingDescription"),
    *("AcquisitionDeviceProcessingCode", "AcquisitionComments", "ImageComments"),
    *("DerivationDescription", "WindowCenterWidthExplanation", "InstitutionName"),
    *("InstitutionAddress", "InstitutionalDepartmentName", "StationName"),
    *("PerformedStationAETitle", "PerformedStationName", "ReferringPhysicianName"),
    *("PerformingPhysicianName", "OperatorsName", "NameOfPhysiciansReadingStudy"),
    *("RequestingPhysician", "ResponsiblePerson", "DeviceSerialNumber", "DeviceID"),
    *("DetectorID", "PlateID", "CassetteID", "GantryID", "SoftwareVersions", "Manufacturer"),
    *("ManufacturerModelName", "FilterType", "ClinicalTrialSubjectID", "ClinicalTrialSiteName"),
    "ClinicalTrialProtocolName",
)
_DATES = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "DeviceUID")
# Longest that fits into each; what is longer is cut before it is written.
_LONGEST = {"SH": 16, "AE": 16, "CS": 16}


@dataclass
class Planted:
    """What was planted: by place, the text that must not come out anywhere."""

    marks: dict[str, str] = field(default_factory=dict)

    def mark(self, place: str) -> str:
        """The mark of a place: letters that no program writes by itself."""
        if place not in self.marks:
            number = len(self.marks)
            self.marks[place] = f"Zq{chr(97 + number // 26)}{chr(97 + number % 26)}vexilQ"
        return self.marks[place]

    def date(self, place: str) -> str:
        """A date of a year that is in no program either."""
        return self.marks.setdefault(place, f"18{31 + len(self.marks) % 60}0{len(place) % 9 + 1}19")

    def uid(self, place: str) -> str:
        """A root of UIDs."""
        return self.marks.setdefault(
            place, f"1.2.826.0.1.{7_311_906_428_000 + len(self.marks) * 13_337}"
        )


def mammogram(planted: Planted, woman: int, side: str, view: str, tokens: bool = True) -> Dataset:
    """A readable mammogram of a woman with something planted in each place that a header has."""
    seed = 4 * woman + 2 * (side == "R") + (view == "CC")
    pixels = half_disk((96, 64), side="right" if side == "R" else "left")
    # No two alike.
    noise = np.random.default_rng(seed).integers(0, 99, pixels.shape)
    pixels = np.where(pixels > 0, pixels + noise, 0).astype(np.uint16)
    dataset = make_dataset(
        pixels, ImageLaterality=side, ViewPosition=view, PatientAge="061Y", PatientSex="F"
    )
    for keyword in TEXTS:
        longest = _LONGEST.get(dictionary_VR(keyword), 60)
        setattr(dataset, keyword, f"{planted.mark(keyword)} {woman}"[:longest])
    for keyword in _DATES:
        setattr(dataset, keyword, planted.date(keyword))
    for keyword in _UIDS:
        setattr(dataset, keyword, f"{planted.uid(keyword)}.{woman}.{seed}")
    dataset.StudyInstanceUID = f"{planted.uid('StudyInstanceUID')}.{woman}"
    dataset.WindowCenter, dataset.WindowWidth = 1200, 2600
    dataset.BodyPartExamined = "BREAST"
    dataset.ViewCodeSequence = Sequence([_code("R-10242", planted.mark("ViewCodeMeaning"))])
    dataset.ViewCodeSequence[0].ViewModifierCodeSequence = Sequence(
        [_code("R-102D5", planted.mark("ViewModifierCodeMeaning"))]
    )
    dataset.RequestAttributesSequence = Sequence([Dataset()])
    step = dataset.RequestAttributesSequence[0]
    step.ScheduledProcedureStepDescription = planted.mark("ScheduledProcedureStepDescription")
    block = dataset.private_block(0x0019, f"{planted.mark('private creator')}", create=True)
    block.add_new(1, "LO", planted.mark("private element"))
    dataset.file_meta.SourceApplicationEntityTitle = planted.mark("source AE title")
    dataset.file_meta.ImplementationVersionName = planted.mark("implementation")
    dataset.preamble = planted.mark("preamble").encode().ljust(128, b"\0")
    return dataset


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SRT", meaning
    return item


@config.disable_value_validation()
def write_archive(folder: Path, planted: Planted, women: int = 8) -> Path:
    """A hospital's folder, with files that fail in many ways, and its label table.

    Returns:
        The table.
    """
    lines = []
    for woman in range(women):
        place = folder / f"{planted.mark('folder name')} {woman}"
        place.mkdir(parents=True)
        for side, view in (("L", "CC"), ("R", "MLO")):
            dataset = mammogram(planted, woman, side, view)
            file = place / f"{planted.mark('file name')}_{side}{view}.dcm"
            dataset.save_as(file, enforce_file_format=True)
            lines.append(_row(planted, file.relative_to(folder), woman, int(woman % 2 == 0)))
    _write_bad_files(folder / planted.mark("folder of bad files"), planted)
    table = folder / "labels.csv"
    names = (
        "path,label,patient_id,exam_id,view,Nachname,nhs_number,geburtsdatum,image,note,vendor,"
        "scanner,machine_id,site_id,density"
    )
    table.write_text("\n".join([names, *lines]) + "\n")
    return table


def _row(planted: Planted, path: Path, woman: int, label: int) -> str:
    cells = [path, label, f"{planted.mark('patient_id of the table')}{woman}"]
    cells += [f"{planted.mark('exam_id of the table')}{woman}"]
    cells += [f"{planted.mark('view of the table')}" if woman == 0 else ""]
    cells += [
        f"{planted.mark(f'column {name} of the table')}{woman}"
        for name in (
            *("Nachname", "nhs_number", "geburtsdatum", "image", "note", "vendor", "scanner"),
            *("machine_id", "site_id"),
        )
    ]
    return ",".join(map(str, [*cells, "ABCD"[woman % 4]]))


def _write_bad_files(folder: Path, planted: Planted) -> None:
    """Of each way to fail one, so that each has its sentence."""
    folder.mkdir()

    def write(name: str, **changes: object) -> Path:
        dataset = mammogram(planted, 90 + len(list(folder.iterdir())), "L", "CC")
        for keyword, value in changes.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        file = folder / f"{planted.mark(f'name of {name}')}.dcm"
        dataset.save_as(file, enforce_file_format=True)
        return file

    write("a foreign modality", Modality=planted.mark("Modality"), SOPClassUID=uid.CTImageStorage)
    write("no modality", Modality=None, BodyPartExamined=planted.mark("BodyPartExamined"))
    write("an odd photometric", PhotometricInterpretation=f"MONOCHROME2 {planted.mark('Photo')}")
    write("an odd intent", PresentationIntentType=planted.mark("PresentationIntentType"))
    write("an odd function", VOILUTFunction=planted.mark("VOILUTFunction"))
    write("an odd orientation", PatientOrientation=["A", planted.mark("PatientOrientation")])
    write("an odd side", ImageLaterality=planted.mark("ImageLaterality"), ViewPosition=None)
    write("an odd window", WindowCenter=None, WindowWidth=None)
    write("no pixels", PixelData=None)
    write("other sizes", Rows=97)
    write("a film", NumberOfFrames=2)
    file = write("a cut file")
    file.write_bytes(file.read_bytes()[:-500])
    file = write("a spoilt number", WindowWidth=1)
    # Written over, since pydicom would not write it.
    content = file.read_bytes()
    file.write_bytes(content.replace(b"\x50\x10DS\x02\x001200"[:8], b"\x50\x10DS\x02\x00"))
    file = write("an unknown syntax")
    # As long as the known one.
    unknown = planted.marks.setdefault("TransferSyntaxUID", "1.2.826.0.1.7311904")
    file.write_bytes(
        file.read_bytes().replace(uid.ExplicitVRLittleEndian.encode(), unknown.encode())
    )
    (folder / f"{planted.mark('name of a text')}.dcm").write_text(planted.mark("text"))
    (folder / f"{planted.mark('name of a note')}.txt").write_text(planted.mark("note"))
    picture = Image.fromarray(np.zeros((9, 9), np.uint8))
    picture.save(folder / f"{planted.mark('name of a picture')}.png")
    (folder / f"{planted.mark('name of a link')}.dcm").symlink_to(planted.mark("a lost file"))
    twin = mammogram(planted, 0, "L", "CC")
    twin.SOPInstanceUID += ".2"
    twin.save_as(folder / f"{planted.mark('name of a twin')}.dcm", enforce_file_format=True)


# ---- the search


def found_in(folder: Path, marks: dict[str, str], *, besides: Path | None = None) -> list[str]:
    """Where marks are found in the files of a folder, and in their names.

    Args:
        folder: searched at any depth.
        marks: by place.
        besides: a folder that does not count.

    Returns:
        One line for each file and mark.
    """
    found = []
    for file in sorted(folder.rglob("*")):
        if besides is not None and file.is_relative_to(besides):
            continue
        name = str(file.relative_to(folder))
        found += [f"the name {name}: {place}" for place in held(name.encode(), marks)]
        if file.is_file() and not file.is_symlink():
            for content in contents(file):
                found += [f"{name}: {place}" for place in held(content, marks)]
    return sorted(set(found))


def held(content: bytes, marks: dict[str, str]) -> list[str]:
    """The places whose marks some bytes hold, in any case, as ASCII or UTF-16."""
    lowered = content.lower()
    return [
        place
        for place, mark in marks.items()
        if (_holds_date if mark.isdigit() else bytes.__contains__)(lowered, mark.lower().encode())
        or mark.lower().encode("utf-16-le") in lowered
    ]


def _holds_date(content: bytes, mark: bytes) -> bool:
    # Among the digits of thousands of scores and features any eight of them come up by chance.
    return mark in content and re.search(rb"(?<![\d.])" + mark, content) is not None


def contents(file: Path) -> Iterator[bytes]:
    """A file's bytes, and what is packed in them: tables, databases, pictures, embedded data."""
    content = file.read_bytes()
    yield content
    if content.startswith(b"PAR1"):
        table = pq.read_table(file)
        yield json.dumps([table.to_pylist(), str(table.schema.metadata)], default=str).encode()
    elif content.startswith(b"SQLite format 3"):
        with closing(sqlite3.connect(file)) as database:
            yield "\n".join(database.iterdump()).encode()
    elif content.startswith(b"\x89PNG"):
        yield from _picture(content)
    elif file.suffix == ".safetensors":
        size = int.from_bytes(content[:8], "little")
        # Escapes of JSON are undone.
        yield json.dumps(json.loads(content[8 : 8 + size]), ensure_ascii=False).encode()
    elif file.suffix in (".html", ".svg", ".json", ".css"):
        yield re.sub(rb"\s+", b"", content)
        for encoded in re.findall(rb"base64,([A-Za-z0-9+/=\s]+)", content):
            data = base64.b64decode(re.sub(rb"\s", b"", encoded) + b"==")
            yield data
            if data.startswith(b"\x89PNG"):
                yield from _picture(data)
    elif content.startswith((b"\x1f\x8b", b"\x78\x9c")):
        yield zlib.decompress(content, 47)


def _picture(content: bytes) -> Iterator[bytes]:
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        yield str(picture.info).encode()


assert all(tag_for_keyword(keyword) for keyword in (*TEXTS, *_DATES, *_UIDS))
