import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pydicom
import pytest

from mammo_pd.data.labels import read_labels
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.record import ImageOrigin, Record, RecordedImage
from mammo_pd.data.store import create_or_match, open_store
from mammo_pd.ingest.content import content_digest
from mammo_pd.ingest.moved import recognise_moved
from mammo_pd.ingest.preprocess import preprocess


@pytest.mark.parametrize("at", [0, 5_000_000, -1])
def test_content_is_told_from_another(tmp_path: Path, at: int) -> None:
    data = bytearray(os.urandom(2**16) * 128)
    one, copy, other = (tmp_path / name for name in ("a", "b", "c"))
    one.write_bytes(data)
    copy.write_bytes(data)
    # Eight rows of 2,560 pixels: what blackens a name.
    data[at : at + 40_960] = bytes(len(data[at : at + 40_960]))
    data[-1] ^= 1 if at == -1 else 0
    other.write_bytes(data)
    assert content_digest(one) == content_digest(copy)
    assert content_digest(one) != content_digest(other)
    assert len(content_digest(one)) == 16


def test_small_files_are_told_by_every_byte(tmp_path: Path) -> None:
    data = bytearray(300_000)
    (tmp_path / "a").write_bytes(data)
    data[123_456] = 1
    (tmp_path / "b").write_bytes(data)
    assert content_digest(tmp_path / "a") != content_digest(tmp_path / "b")
    (tmp_path / "empty").touch()
    assert content_digest(tmp_path / "empty") == content_digest(tmp_path / "absent") == b""


def test_a_file_that_shrinks_while_it_is_read_does_not_end_the_process(tmp_path: Path) -> None:
    """As one on a disk that fails: where a file is mapped, both end a process by a signal."""
    program = """
import hashlib, os, sys
from pathlib import Path
from mammo_pd.ingest import content

file = Path(sys.argv[1])
file.write_bytes(bytes(2**23))

class Shrinking:
    def __init__(self, *given, **named):
        self.digest = hashlib.blake2b(*given, **named).digest

    def update(self, piece):
        os.truncate(file, 2**12)

content.hashlib = type(sys)("hashlib")
content.hashlib.blake2b = Shrinking
content.content_digest(file)
assert file.stat().st_size == 2**12
"""
    command = [sys.executable, "-c", program, str(tmp_path / "file")]
    assert subprocess.run(command, check=False).returncode == 0


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    """Of old/P1/x, old/P2/x (the same bytes), old/P2/y and a scan of two frames."""
    with Record(create_or_match(tmp_path / "s", {})) as record:
        for name, text, frames in (
            ("P1/x", b"same", (None,)),
            ("P2/x", b"same", (None,)),
            ("P2/y", b"else", (None,)),
            ("P2/scan", b"scan", (1, 2)),
        ):
            path = tmp_path / "old" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
            images = [
                RecordedImage(ImageOrigin(path, frame), f"{name}{frame}", {"status": "ok"}, {}, 1)
                for frame in frames
            ]
            record.put(path, (4, path.stat().st_mtime_ns), images, content_digest(path))
            record.put_labels(path, {"label": 1})
        yield record


def sources(record: Record, top: Path) -> dict[str, str]:
    return {image.image_id: str(image.source.path.relative_to(top)) for image in record.rows()}


@pytest.mark.parametrize("times", ["kept", "new"])
def test_a_folder_that_moved_is_followed(tmp_path: Path, record: Record, times: str) -> None:
    new = tmp_path / "elsewhere" / "new"
    shutil.copytree(
        tmp_path / "old", new, copy_function=shutil.copy2 if times == "kept" else shutil.copyfile
    )
    shutil.rmtree(tmp_path / "old")
    files = sorted(file for file in new.rglob("*") if file.is_file())
    assert recognise_moved(files, record) == 4
    assert sources(record, new) == {
        "P1/xNone": "P1/x",
        "P2/xNone": "P2/x",
        "P2/yNone": "P2/y",
        "P2/scan1": "P2/scan",
        "P2/scan2": "P2/scan",
    }
    assert all(image.labels == {"label": 1} for image in record.rows())
    # Nothing is left to do: size and time are those of the new files.
    for file in files:
        assert all(known[:2] == (4, file.stat().st_mtime_ns) for known in record.known(file))
    assert recognise_moved(files, record) == 0


def test_a_copy_or_another_content_has_not_moved(tmp_path: Path, record: Record) -> None:
    before = sources(record, tmp_path)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    files = sorted(file for file in (tmp_path / "new").rglob("*") if file.is_file())
    assert recognise_moved(files, record) == 0
    shutil.rmtree(tmp_path / "old")
    for file in files:
        file.write_bytes(b"othr")
    assert recognise_moved(files, record) == 0
    assert sources(record, tmp_path) == before


def test_a_moved_folder_is_neither_decoded_again_nor_called_duplicates(
    phantoms: Path, tmp_path: Path
) -> None:
    folder, store = tmp_path / "d", tmp_path / "s"
    woman = sorted(phantoms.glob("PHANTOM*"))[0]
    shutil.copytree(woman, folder / woman.name)
    table = pd.read_csv(phantoms / "labels.csv", dtype=str)
    table[table["patient_id"] == woman.name].to_csv(folder / "labels.csv", index=False)
    said: list[str] = []
    options = {"workers": 1, "say": said.append}
    preprocess(folder, store, labels=read_labels(folder / "labels.csv"), **options)  # type: ignore[arg-type]
    before = read_manifest(store / "manifest.parquet", status=None)
    pixels = {file: file.stat().st_mtime_ns for file in store.rglob("*.safetensors")}
    moved = folder.rename(tmp_path / "moved")
    # One file had its header rewritten on the way: it is read again, and no duplicate.
    rewritten = next(moved.rglob("L_CC.dcm"))
    dataset = pydicom.dcmread(rewritten)
    dataset.InstitutionName = "a longer name"
    dataset.save_as(rewritten)
    summary = preprocess(moved, store, labels=read_labels(moved / "labels.csv"), **options)  # type: ignore[arg-type]
    assert summary.by_status == {("ok", ""): 4}
    assert (summary.done_before, summary.gone, summary.labelled) == (3, 0, 4)
    assert any(line.startswith("3 files have moved since they were read") for line in said)
    assert not summary.label_changes
    after = read_manifest(store / "manifest.parquet", status=None)
    pd.testing.assert_frame_equal(after, before)
    same = [file for file, time in pixels.items() if file.stat().st_mtime_ns == time]
    rewritten_id = set(after["image_id"]) - {file.stem for file in same}
    assert len(rewritten_id) == 1


def test_a_gone_image_whose_pixels_lie_in_a_known_file_changes_no_other_row(
    phantoms: Path, tmp_path: Path
) -> None:
    """The file is recorded as itself: it does not take the gone one's place in the record."""
    folder, store = tmp_path / "d", tmp_path / "s"
    shutil.copytree(sorted(phantoms.glob("PHANTOM*"))[0], folder)
    options = {"workers": 1, "say": lambda _: None}
    preprocess(folder, store, **options)  # type: ignore[arg-type]
    gone, known = (next(folder.rglob(name)) for name in ("L_CC.dcm", "R_CC.dcm"))
    dataset = pydicom.dcmread(gone)
    dataset.InstitutionName = "a longer name"
    dataset.save_as(known)
    gone.unlink()
    summary = preprocess(folder, store, **options)  # type: ignore[arg-type]
    assert summary.by_status == {("ok", ""): 2, ("excluded", "duplicate_image"): 1}
    with Record(open_store(store)) as record:
        files = sorted(image.source.path.name for image in record.rows())
    assert files == ["L_CC.dcm", "L_MLO.dcm", "R_CC.dcm", "R_MLO.dcm"]
