import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import pydicom
import pytest

from mammo_pd.data.forget import forget, plan_forgetting, take_again
from mammo_pd.data.labels import read_labels
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.record import Record
from mammo_pd.data.store import open_store
from mammo_pd.ingest import preprocess as stage
from mammo_pd.ingest.preprocess import preprocess
from mammo_pd.ingest.summary import PreprocessSummary


def test_who_was_forgotten_is_on_no_contact_sheet(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is what is refused of hers, whose record has no patient."""
    folder, store, captions = tmp_path / "d", tmp_path / "s", []
    for woman in sorted(phantoms.glob("PHANTOM*"))[:2]:
        shutil.copytree(woman, folder / woman.name)
        file = next((folder / woman.name).rglob("L_CC.dcm"))
        dataset = pydicom.dcmread(file)
        dataset.WindowCenter, dataset.WindowWidth = 60000, 10
        dataset.save_as(file)

    def draw(items: Iterable[tuple[object, object, str]], _: Path, *, last_line: str) -> list[Path]:
        captions.append(([caption.partition(" ")[2] for *_, caption in items], last_line))
        return []

    monkeypatch.setattr(stage, "draw_contact_sheet", draw)

    def again() -> None:
        sheet = tmp_path / "x.png"
        preprocess(folder, store, contact_sheet=sheet, workers=1, say=lambda _: None)

    again()
    paths = open_store(store)
    with Record(paths) as record:
        forget(paths, record, plan_forgetting(paths, record, patients=["PHANTOM0001"]))
    again()
    refused = "refused: constant_pixels"
    assert captions == [
        ([refused] * 2 + ["ok"] * 6, ""),
        ([refused] + ["ok"] * 3, "not shown: 3 forgotten, 1 constant_pixels"),
    ]


def test_who_was_forgotten_is_passed_over_until_taken_again(phantoms: Path, tmp_path: Path) -> None:
    """Under the identifiers of her files and of the label table, and with a new exam."""
    folder, store = tmp_path / "d", tmp_path / "s"
    for woman in sorted(phantoms.glob("PHANTOM*"))[:2]:
        shutil.copytree(woman, folder / woman.name)
    table = pd.read_csv(phantoms / "labels.csv", dtype=str).iloc[:8]
    table["patient_id"] = table["patient_id"].map({"PHANTOM0001": "A", "PHANTOM0002": "B"})
    table.to_csv(folder / "labels.csv", index=False)

    def again() -> PreprocessSummary:
        labels = read_labels(folder / "labels.csv")
        return preprocess(folder, store, labels=labels, workers=1, say=lambda _: None)

    assert again().labelled == 8
    paths = open_store(store)
    with Record(paths) as record:
        forget(paths, record, plan_forgetting(paths, record, patients=["A"]))
    # A new exam of hers: known by the file's tag alone, whose identifier is another than the
    # table's, it is not hers; named by the table, it is.
    new = next((folder / "PHANTOM0001").rglob("L_CC.dcm"))
    dataset = pydicom.dcmread(new)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.save_as(new.with_name("new.dcm"))
    path = new.with_name("new.dcm").relative_to(folder).as_posix()
    row = table.iloc[:1].assign(path=path, sop_instance_uid="")
    pd.concat([table, row]).to_csv(folder / "labels.csv", index=False)
    for _ in range(2):
        summary = again()
        assert summary.by_status == {("ok", ""): 4, ("excluded", "forgotten"): 5}
        assert summary.labelled == 4
        assert summary.unmatched_labels == 0
    manifest = read_manifest(paths.manifest, status=None)
    passed_over = manifest[manifest["status"] == "excluded"]
    assert passed_over["label"].isna().all()
    assert passed_over["pixel_hash"].isna().all()
    with Record(paths) as record:
        assert not set(manifest["patient_id"]) & {
            record.hasher.hash("patient", name) for name in ("A", "PHANTOM0001")
        }
        assert len(list(paths.root.rglob("*.safetensors"))) == 4
        take_again(paths, record, patients=["A"])
    summary = again()
    # Of equal pixels under two UIDs one is taken.
    assert summary.by_status == {("ok", ""): 8, ("excluded", "duplicate_image"): 1}
    assert summary.labelled == 8


@pytest.mark.parametrize("columns", [["path"], ["path", "patient_id"], ["sop_instance_uid"]])
@pytest.mark.parametrize("option", ["patients", "images"])
@pytest.mark.parametrize("kept_files", [True, False])
def test_who_was_forgotten_takes_no_space_and_is_no_row_too_many(
    kept_files: bool, option: str, columns: list[str], phantoms: Path, tmp_path: Path
) -> None:
    """Her files are read once more to be passed over, and her rows are in the hospital's table."""
    folder, store = tmp_path / "d", tmp_path / "s"
    women = [path.name for path in sorted(phantoms.glob("PHANTOM*"))[:2]]
    for woman in women:
        shutil.copytree(phantoms / woman, folder / woman)
    table = pd.read_csv(phantoms / "labels.csv", dtype=str)
    table = table[table["patient_id"].isin(women)]
    table[[*columns, "label"]].to_csv(folder / "labels.csv", index=False)
    said: list[str] = []

    def again(say: Callable[[str], None] = said.append) -> PreprocessSummary:
        labels = read_labels(folder / "labels.csv")
        return preprocess(folder, store, labels=labels, workers=1, say=say)

    again()
    paths = open_store(store)
    with Record(paths) as record:
        hers = [
            image.image_id for image in record.rows() if image.identifiers["patient_id"] == women[0]
        ]
        named = [women[0]] if option == "patients" else hers
        forget(paths, record, plan_forgetting(paths, record, **{option: named}))
    said.clear()
    if not kept_files:
        shutil.rmtree(folder / women[0])
    for _ in range(2):
        summary = again()
        assert summary.labelled == 4
        # Of files that are gone a path tells nothing: such a row is one too many.
        lost = not kept_files and not (option == "patients" and "patient_id" in columns)
        assert summary.unmatched_labels == (4 if lost and columns[0] == "path" else 0)
    told = [line for line in said if line.startswith("expected size")]
    assert told == ["expected size of the pixels: about 0 bytes, at most 0 bytes"] * kept_files
    # The files of another woman have their size, beside hers.
    shutil.copytree(phantoms / "PHANTOM0003", folder / "PHANTOM0003")
    alone: list[str] = []
    preprocess(phantoms / "PHANTOM0003", tmp_path / "alone", workers=1, say=alone.append)
    if kept_files:
        for file in (folder / women[0]).rglob("*.dcm"):
            file.touch()
    said.clear()
    again()
    of_her = [line for line in alone if line.startswith("expected size")]
    assert of_her
    assert [line for line in said if line.startswith("expected size")] == of_her
    # All of a folder may have been forgotten.
    if kept_files:
        summary = preprocess(
            folder / women[0],
            store,
            labels=read_labels(folder / "labels.csv"),
            workers=1,
            say=lambda _: None,
        )
        assert summary.by_status == {("excluded", "forgotten"): 4}
