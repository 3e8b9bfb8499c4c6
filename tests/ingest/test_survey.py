"""What headers tell of a folder, and that preprocess, which decodes, does not say otherwise."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from dicom_files import ENCODERS, half_disk, make_dataset, write_dicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from mammo_pd.data.labels import read_labels, read_rows
from mammo_pd.errors import InputError
from mammo_pd.imaging.dicom_file import read_dataset, read_header
from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.ingest import survey as module
from mammo_pd.ingest.estimate import estimate
from mammo_pd.ingest.preprocess import preprocess
from mammo_pd.ingest.process import Job, process_file
from mammo_pd.ingest.survey import FileFacts, read_facts, survey
from mammo_pd.terms import ImageKind, Reason, Status

KEY = bytes(16)
# What the pixel data alone show.
OF_PIXELS = {
    Reason.DECODE_FAILED,
    Reason.HEADER_CONTRADICTS,
    Reason.EMPTY_PIXELS,
    Reason.NO_BREAST,
    Reason.UNREADABLE,
    Reason.NO_VOI,
}


def preprocessed(path: Path, partial: Path) -> tuple[str, str | None, str]:
    size = path.stat().st_size
    columns = process_file(Job(path, (size, 0), False, ImagingSettings(), partial, False))[
        0
    ].columns
    shutil.rmtree(partial, ignore_errors=True)
    return columns["status"], columns.get("reason"), columns.get("detail", "")


def surveyed(facts: FileFacts) -> tuple[str, str | None, str]:
    return str(facts.status), facts.reason and str(facts.reason), facts.detail


def breast(syntax: str = uid.ExplicitVRLittleEndian, **tags: Any) -> Dataset:
    return make_dataset(half_disk(), syntax, **tags)


def without_pixels() -> Dataset:
    dataset = breast()
    del dataset.PixelData
    return dataset


def encapsulated(frame: bytes, syntax: str, **tags: Any) -> Dataset:
    dataset = breast(**tags)
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


FAULTS: dict[str, tuple[Any, Reason]] = {
    "of another modality": (
        lambda: breast(Modality="CT", SOPClassUID="1.2"),
        Reason.NOT_MAMMOGRAPHY,
    ),
    "of the chest": (lambda: breast(Modality="CR", SOPClassUID="1.2"), Reason.NOT_MAMMOGRAPHY),
    "without pixels": (without_pixels, Reason.NO_PIXELS),
    "without Rows": (lambda: breast(Rows=None), Reason.UNREADABLE),
    "without Photometric": (lambda: breast(PhotometricInterpretation=None), Reason.UNREADABLE),
    "in colour": (lambda: breast(SamplesPerPixel=3), Reason.COLOUR),
    "of frames": (lambda: breast(NumberOfFrames=4), Reason.MULTI_FRAME),
    "of frames without pixels": (
        lambda: breast(NumberOfFrames=4, PixelData=None),
        Reason.MULTI_FRAME,
    ),
    "too short": (lambda: breast(Rows=97), Reason.HEADER_CONTRADICTS),
    "too long": (lambda: breast(Rows=95), Reason.HEADER_CONTRADICTS),
    "too large": (lambda: breast(Rows=65535, Columns=65535), Reason.HEADER_CONTRADICTS),
    "of another codestream": (
        lambda: breast(uid.JPEG2000Lossless, Columns=60),
        Reason.HEADER_CONTRADICTS,
    ),
    "of another codec": (
        lambda: encapsulated(ENCODERS[uid.JPEGLSLossless](half_disk(), 12), uid.JPEG2000Lossless),
        Reason.HEADER_CONTRADICTS,
    ),
    "of too little RLE": (
        lambda: encapsulated(bytes(64), uid.RLELossless),
        Reason.HEADER_CONTRADICTS,
    ),
    "of a video": (lambda: encapsulated(bytes(64), uid.MPEG2MPML), Reason.DECODE_FAILED),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_header_faults_are_those_of_preprocess(fault: str, tmp_path: Path) -> None:
    make, reason = FAULTS[fault]
    path = write_dicom(tmp_path / "a.dcm", make())
    found = surveyed(read_facts(path, KEY))
    assert found[1] == reason
    assert found == preprocessed(path, tmp_path / "partial")


def test_cut_off_pixels_and_no_dicom_at_all(tmp_path: Path) -> None:
    whole = write_dicom(tmp_path / "a.dcm", breast())
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(whole.read_bytes()[:-100])
    text = tmp_path / "text.dcm"
    text.write_bytes(b"no image, " * 100)
    for path, reason in ((cut, Reason.HEADER_CONTRADICTS), (text, Reason.NOT_AN_IMAGE)):
        found = surveyed(read_facts(path, KEY))
        assert found[1] == reason
        assert found == preprocessed(path, tmp_path / "partial")


@pytest.mark.parametrize(
    "syntax", [uid.DeflatedExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.JPEG2000Lossless]
)
def test_header_alone_says_what_the_whole_file_says(syntax: str, tmp_path: Path) -> None:
    # A private element that is longer than what is read of most files.
    dataset = breast(syntax if uid.UID(syntax).is_encapsulated else uid.ExplicitVRLittleEndian)
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.private_block(0x0019, "Mine", create=True).add_new(1, "OB", bytes(200_000))
    path = write_dicom(tmp_path / "a.dcm", dataset)
    header, whole = read_header(path), read_dataset(path)
    del whole.PixelData
    assert header.dataset == whole
    assert header.dataset.file_meta == whole.file_meta


def test_number_of_frames_that_is_no_number_does_not_stop_the_reading(tmp_path: Path) -> None:
    dataset = breast()
    dataset.add_new("NumberOfFrames", "IS", "1")
    dataset.PerFrameFunctionalGroupsSequence = Sequence([Dataset()])
    path = write_dicom(tmp_path / "a.dcm", dataset)
    whole = path.read_bytes()
    assert whole.count(b"\x28\x00\x08\x00IS\x02\x001 ") == 1
    element = b"\x28\x00\x08\x00IS\x02\x00"
    path.write_bytes(whole.replace(element + b"1 ", element + b"x "))
    # Its decoder stumbles over it, which is what only decoding shows.
    assert surveyed(read_facts(path, KEY)) == ("ok", None, "")
    assert preprocessed(path, tmp_path / "partial")[1] == Reason.DECODE_FAILED


def test_headers_of_frames_are_not_parsed_but_of_one_frame_they_are(tmp_path: Path) -> None:
    item = Dataset()
    item.FrameAnatomySequence = Sequence([Dataset()])
    item.FrameAnatomySequence[0].FrameLaterality = "R"
    for frames, expected in ((3, None), (1, "R")):
        dataset = make_dataset(np.stack([half_disk()] * frames).reshape(-1, 64), Rows=96)
        dataset.NumberOfFrames = frames
        dataset.PerFrameFunctionalGroupsSequence = Sequence([item] * frames)
        facts = read_facts(write_dicom(tmp_path / "a.dcm", dataset), KEY)
        assert (facts.side, facts.reason is None) == (expected, frames == 1)


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole exam with a copy, one of three views beside a synthetic image, and others."""
    folder = tmp_path_factory.mktemp("folder")
    made = 0

    def add(study: str, side: str, view: str, name: str = "", **tags: Any) -> Path:
        nonlocal made
        made += 1
        tags = {"SOPInstanceUID": f"1.9.{made}", "PatientID": study, **tags}
        pixels = half_disk()
        pixels[:, 3] += made
        dataset = make_dataset(
            pixels, StudyInstanceUID=study, ImageLaterality=side, ViewPosition=view, **tags
        )
        return write_dicom(folder / f"{name or made}.dcm", dataset)

    for side in "LR":
        for view in ("CC", "MLO"):
            add("1.1", side, view, Manufacturer="HOLOGIC, Inc.", ManufacturerModelName="Anna B.")
    shutil.copy(folder / "1.dcm", folder / "Doe^Jane.dcm")
    for side, view in (("L", "CC"), ("L", "MLO"), ("R", "CC")):
        add("1.2", side, view, PresentationIntentType="FOR PROCESSING")
    generated = ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"]
    add("1.2", "L", "CC", ImageType=generated)
    add("1.2", "L", "MLO", SeriesDescription="L MLO C-View")
    add("1.2", "R", "MLO", NumberOfFrames=3)
    Image.fromarray(half_disk().astype(np.uint8)).save(folder / "a.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_survey_counts(exam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process = lambda jobs, work, _: ((job, work(job)) for job in jobs)  # noqa: E731
    monkeypatch.setattr("mammo_pd.ingest.survey.run_in_processes", in_this_process)
    found = survey(exam, workers=1, say=lambda _: None)
    assert (found.files, found.usable, sum(found.passed_over.values())) == (12, 10, 1)
    assert {reason: count for (_, reason), (count, _) in found.excluded.items()} == {
        Reason.MULTI_FRAME: 1,
        Reason.NOT_IN_TABLE: 1,
    }
    assert found.machines == {("Hologic", "other"): 5, (None, None): 6}
    assert found.kinds == {
        ImageKind.FFDM: 9,
        ImageKind.SYNTHETIC: 1,
        ImageKind.TOMOSYNTHESIS: 1,
    }
    assert found.hinted == 1
    assert found.views == {("L", "CC"): 4, ("L", "MLO"): 3, ("R", "CC"): 2, ("R", "MLO"): 1}
    assert (found.patients, found.exams, found.complete_exams) == (2, 2, 1)
    assert found.missing_views == {(("R", "MLO"),): 1}
    # L CC of the first exam and its copy, L MLO of the second and what free text calls synthetic.
    assert (found.paired_views, found.repeated_views) == (1, 2)
    assert (found.repeated_uids, found.repeated_pixels) == (1, 1)
    assert found.pixels == {str(uid.ExplicitVRLittleEndian): 10 * 96 * 64}
    assert len(found.samples) == 8
    # Nothing that a woman could be known by.
    # A time may well be 1.1e-05.
    told = repr(replace(found, seconds=0, start_seconds=0))
    assert not any(secret in told for secret in ("Doe", "Anna", "1.9.", "1.1"))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Files that only a table makes mammograms, files of which it knows better, and others."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("one.png", "two.jpg", "three.tiff", "unnamed.png"):
        Image.fromarray((half_disk() / 16).astype(np.uint8)).save(folder / name)
    colour = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(colour).save(folder / "colour.png")
    (folder / "text.png").write_text("no image")
    pages = [Image.fromarray(half_disk())] * 2
    pages[0].save(folder / "pages.tiff", save_all=True, append_images=pages[1:])
    for number, tags in enumerate(
        (
            {"ImageLaterality": "L", "ViewPosition": "CC"},
            {"ImageLaterality": "L", "ViewPosition": "CC", "PatientID": "other"},
            {"Modality": "CR", "SOPClassUID": "1.2"},
            {"ImageLaterality": "R", "ViewPosition": "MLO", "PatientID": None},
        ),
        start=1,
    ):
        dataset = make_dataset(
            half_disk() + np.uint16(number),
            SOPInstanceUID=f"1.9.{number}",
            StudyInstanceUID=f"1.8.{number}",
            **tags,
        )
        write_dicom(folder / f"d{number}.dcm", dataset)
    return folder


ROWS = (
    # name, patient_id, exam_id, laterality, view
    ("one.png", "w1", "e1", "L", "CC"),
    ("two.jpg", "w1", "e1", "R", "cranio-caudal"),
    ("three.tiff", "", "", "", "MLO"),
    ("colour.png", "w2", "", "", ""),
    ("text.png", "w2", "", "", ""),
    ("pages.tiff", "w2", "", "", ""),
    ("d2.dcm", "SECRET-ID", "e1", "R", ""),
    ("d3.dcm", "w3", "", "L", "CC"),
    ("gone.png", "w4", "", "", ""),
)


@pytest.mark.parametrize("key", ["path", "sop_instance_uid"])
def test_with_a_table_the_survey_says_what_the_manifest_says(
    key: str, labelled: Path, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    # By a UID a table names DICOM files alone; then d3, which names no breast, is out for both.
    lines = [
        ",".join((f"1.9.{name[1]}" if key == "sop_instance_uid" else name, *row))
        for name, *row in ROWS
        if key == "path" or name.startswith("d")
    ]
    header = f"{key},patient_id,exam_id,laterality,view"
    table.write_text("\n".join([header, *lines]) + "\n")
    found = survey(labelled, labels=read_rows(table), workers=1, say=lambda _: None)
    table.write_text("\n".join([f"{header},label", *(f"{line},0" for line in lines)]) + "\n")
    summary = preprocess(
        labelled, tmp_path / "store", labels=read_labels(table), workers=1, say=lambda _: None
    )
    rows = pq.read_table(tmp_path / "store" / "manifest.parquet").to_pylist()
    used = [row for row in rows if row["status"] == "ok"]
    of_pixels = [row for row in rows if row["reason"] == Reason.COLOUR]
    assert found.unmatched_rows == summary.unmatched_labels == 1
    assert found.ambiguous_rows == 0
    assert found.usable == len(used) + len(of_pixels)
    assert {str(reason): count for (_, reason), (count, _) in found.excluded.items()} == Counter(
        row["reason"] for row in rows if row["reason"] and row not in of_pixels
    )
    assert found.views == Counter((row["laterality"], row["view"]) for row in used + of_pixels)
    assert found.patients == len({row["patient_id"] for row in used + of_pixels})
    assert found.exams == len({row["exam_id"] for row in used + of_pixels} - {None})
    # An image file that is not DICOM has no intent that it could fail to tell.
    of_dicom = sum(count for kind, count in found.kinds.items() if kind is not None)
    assert sum(found.intents.values()) == of_dicom
    # What is timed is what will be done, so that it can be.
    expected = estimate(found.samples, found.pixels, found.usable, 1)
    assert expected is not None
    assert expected.timed == len(used)


def test_a_table_that_preprocess_refuses_is_refused_and_rows_for_several_files_are_counted(
    labelled: Path, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    for key, value in (("path", "elsewhere.png"), ("sop_instance_uid", "1.2.99")):
        table.write_text(f"{key}\n{value}\n")
        with pytest.raises(InputError, match="no row of"):
            survey(labelled, labels=read_rows(table), workers=1, say=lambda _: None)
    (labelled / "again").mkdir()
    shutil.copy(labelled / "one.png", labelled / "again" / "one.png")
    table.write_text("path\none.png\n")
    found = survey(labelled, labels=read_rows(table), workers=1, say=lambda _: None)
    assert (found.usable - 3, found.ambiguous_rows, found.unmatched_rows) == (2, 1, 0)


@pytest.mark.corpus
@pytest.mark.parametrize("folder", ["mg_dicom", "dicom_zoo/good", "dicom_zoo/bad"])
def test_real_headers_say_what_preprocess_says(folder: str, corpus: Path, tmp_path: Path) -> None:
    files = sorted(path for path in (corpus / folder).iterdir() if path.is_file())
    if folder == "mg_dicom":
        # Decoding the four large ones of each kind would take a minute and tell nothing more.
        files = [path for path in files if path.stat().st_size < 2_000_000]
    refused = 0
    for path in files:
        facts = read_facts(path, KEY)
        if facts.status != Status.OK:
            refused += 1
            assert surveyed(facts) == preprocessed(path, tmp_path / "partial"), path.name
        else:
            _, reason, _ = preprocessed(path, tmp_path / "partial")
            assert reason is None or Reason(reason) in OF_PIXELS, path.name
    assert refused


def test_pixel_data_that_differ_in_one_row_are_told_apart(tmp_path: Path) -> None:
    pixels = np.zeros((800, 400), np.uint16)
    pixels[:, :200] = np.random.default_rng(0).integers(1, 4000, (800, 200))
    groups = []
    for name, row in (("a", None), ("b", None), ("c", 600)):
        other = pixels.copy()
        if row is not None:
            other[row : row + 30, :200] += 1
        path = write_dicom(tmp_path / f"{name}.dcm", make_dataset(other))
        facts = read_facts(path, KEY)
        groups.append(module._PixelData(path, facts.pixel_start, facts.pixel_bytes))
    assert facts.pixel_bytes > module._WHOLE
    assert module._roughly(groups)[0] == module._roughly(groups)[2]
    one, two, three = module._closely(groups)
    assert one == two != three
