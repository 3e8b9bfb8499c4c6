import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image

from mammo_pd.data.image_file import write_image_file
from mammo_pd.data.labels import read_labels
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.record import Record, RecordedImage
from mammo_pd.data.split_store import split_store
from mammo_pd.data.splits import patient_groups
from mammo_pd.data.store import (
    StorePaths,
    open_store,
    read_pyramid_level,
    take_in,
)
from mammo_pd.errors import ImageError, InputError
from mammo_pd.imaging.box import Box
from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.ingest import preprocess as stage
from mammo_pd.ingest import process
from mammo_pd.ingest.preprocess import preprocess
from mammo_pd.ingest.process import Job, Outcome, process_file
from mammo_pd.ingest.summary import PreprocessSummary
from mammo_pd.phantoms import PhantomSettings, write_phantoms
from mammo_pd.terms import Frames, Reason, VoiPolicy


def quiet(folder: Path, out: Path, **options: object) -> PreprocessSummary:
    return preprocess(folder, out, say=lambda _: None, workers=2, **options)  # type: ignore[arg-type]


def some(phantoms: Path, folder: Path, women: int = 2) -> Path:
    """Copy the first women's images, flat, with the table beside."""
    folder.mkdir(parents=True, exist_ok=True)
    for patient in sorted(phantoms.glob("PHANTOM*"))[:women]:
        shutil.copytree(patient, folder / patient.name)
    shutil.copy(phantoms / "labels.csv", folder)
    return folder


def everything(out: Path) -> dict[str, bytes]:
    """Every file of a store that training reads."""
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in sorted((out / "pixels").rglob("*.safetensors"))
    }


def test_store_holds_each_image_with_its_label_and_pyramid(
    phantoms: Path, phantom_store: Path
) -> None:
    manifest = read_manifest(phantom_store / "manifest.parquet", status=None)
    table = pd.read_csv(phantoms / "labels.csv")
    assert (manifest["status"] == "ok").all()
    assert len(manifest) == len(table) == 48
    assert manifest["label"].sum() == table["label"].sum()
    assert manifest["phantom"].all()
    assert set(manifest["laterality"]) == {"L", "R"}
    assert set(manifest["view"]) == {"CC", "MLO"}
    assert manifest["patient_id"].nunique() == 12
    paths = open_store(phantom_store)
    for row in manifest.itertuples():
        native = read_pyramid_level(paths, row.image_id, "native")
        assert native.dtype == np.uint16
        assert native.shape == (row.crop_height, row.crop_width)
        # The chest wall is on the left, so the left half holds more of the breast.
        half = native.shape[1] // 2
        assert (native[:, :half] > 0).mean() > (native[:, half:] > 0).mean()


def test_nothing_that_was_written_for_others_holds_an_identifier(
    phantoms: Path, phantom_store: Path
) -> None:
    table = pd.read_csv(phantoms / "labels.csv", dtype=str)
    forbidden = {
        *table["patient_id"],
        *table["sop_instance_uid"],
        *table["exam_id"],
        *table["path"],
        "PHANTOM^",
    }
    for file in phantom_store.rglob("*"):
        if file.is_file() and "private" not in file.relative_to(phantom_store).parts:
            content = file.read_bytes()
            if file.suffix == ".parquet":
                content = pd.read_parquet(file).to_csv().encode()
            assert not [name for name in forbidden if name.encode() in content]


def test_second_run_does_no_work_and_changes_nothing(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d")
    labels = read_labels(folder / "labels.csv")
    quiet(folder, tmp_path / "s", labels=labels)
    before = read_manifest(tmp_path / "s" / "manifest.parquet")
    pixels = sorted((tmp_path / "s").rglob("*.safetensors"))
    times = [file.stat().st_mtime_ns for file in pixels]
    again = quiet(folder, tmp_path / "s")
    assert again.done_before == again.found == 8
    assert [file.stat().st_mtime_ns for file in pixels] == times
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "s" / "manifest.parquet"), before)


def test_changed_file_is_redone_and_a_lost_level_mended(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    quiet(folder, tmp_path / "s")
    whole = everything(tmp_path / "s")
    os.utime(next(folder.rglob("L_CC.dcm")), (1, 1))
    assert quiet(folder, tmp_path / "s").done_before == 3
    lost, half, *_ = sorted((tmp_path / "s" / "pixels").glob("??/*"))
    lost.unlink()
    os.truncate(half, 10_000)
    assert quiet(folder, tmp_path / "s").done_before == 2
    assert everything(tmp_path / "s") == whole


def test_verify_finds_content_that_is_damaged_and_makes_it_anew(
    phantoms: Path, tmp_path: Path
) -> None:
    folder, other = some(phantoms, tmp_path / "d", women=1), tmp_path / "other"
    out = tmp_path / "s"
    other.mkdir()
    next(folder.rglob("R_CC.dcm")).rename(other / "1.dcm")
    quiet(folder, out)
    quiet(other, out)
    whole = everything(out)
    assert quiet(folder, out, verify=True).done_before == 3
    for number, name in enumerate(whole):
        # One bit of a pixel, the header, nothing but zeros: the size stays.
        content = bytearray(whole[name])
        place = (len(content) - 1, 60)[number % 2]
        content[place] ^= 1
        (out / name).write_bytes(content if number % 3 else bytes(len(content)))
    assert quiet(folder, out).done_before == 3
    summary = quiet(folder, out, verify=True)
    assert (summary.done_before, summary.damaged) == (0, 1)
    assert quiet(other, out, verify=True).done_before == 0
    assert everything(out) == whole


def test_no_image_is_recorded_before_its_files_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (_note(file, synced), fsync(file))[1])
    paths = StorePaths(tmp_path / "s")
    paths.partial.mkdir(parents=True)
    checksums = write_image_file(paths.partial / "a", {"native": np.ones((3, 2), np.uint16)})
    assert list(checksums) == ["native"]
    take_in(paths, paths.partial / "a", "abcd")
    names = [str(Path(name).relative_to(tmp_path / "s")) for name in synced]
    assert names == ["pixels/.partial/a", "pixels", "pixels/ab"]
    # And after all of them: the record's commit, which SQLite syncs itself.
    with Record(paths) as record:
        assert record._database.execute("PRAGMA synchronous").fetchone() == (2,)


def _note(file: int, synced: list[str]) -> None:
    synced.append(str(Path(f"/proc/self/fd/{file}").readlink()))


def test_killed_run_is_completed_by_the_next(phantoms: Path, tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\n"
        "from mammo_pd.ingest.preprocess import preprocess\n"
        "if __name__ == '__main__':\n"
        f"    preprocess(Path({str(phantoms)!r}), Path({str(tmp_path / 'killed')!r}), workers=1)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(program)
    with subprocess.Popen([sys.executable, script], start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "killed").glob("pixels/??/*"))) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "killed" / "manifest.parquet").exists()
    quiet(phantoms, tmp_path / "killed")
    quiet(phantoms, tmp_path / "whole")
    # Another store has another key, so other names: the pixels are compared.
    pixels = [sorted(everything(tmp_path / name).values()) for name in ("killed", "whole")]
    assert pixels[0] == pixels[1]
    assert not (tmp_path / "killed" / "pixels" / ".partial").exists()
    manifest = read_manifest(tmp_path / "killed" / "manifest.parquet", status=None)
    assert len(manifest) == 48


def test_bad_files_are_recorded_and_passed_over(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    source = next(folder.rglob("L_CC.dcm"))
    (folder / "half.dcm").write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    (folder / "text.dcm").write_text("no image at all")
    (folder / "empty.dcm").touch()
    (folder / "notes.txt").write_text("nothing")
    summary = quiet(folder, tmp_path / "s")
    assert summary.ok == 4
    assert summary.found == 7
    assert summary.other_files == 2  # notes.txt and labels.csv
    manifest = read_manifest(tmp_path / "s" / "manifest.parquet", status=None)
    failed = manifest[manifest["status"] == "failed"]
    assert len(failed) == 3
    assert failed["reason"].notna().all()
    assert failed["detail"].str.len().min() > 10


def test_worker_that_dies_loses_one_image_only(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = some(phantoms, tmp_path / "d")
    shutil.copy(next(folder.rglob("*.dcm")), folder / "killer.dcm")
    monkeypatch.setattr(stage, "process_file", _process_or_die)
    summary = quiet(folder, tmp_path / "s")
    assert summary.by_status == {("ok", ""): 8, ("failed", "worker_died"): 1}
    # What killed it may have been the machine: the next run tries again.
    monkeypatch.undo()
    again = quiet(folder, tmp_path / "s")
    assert again.done_before == 8
    assert ("failed", "worker_died") not in again.by_status


def test_worker_that_dies_among_many_loses_one_image_only(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More jobs than are under way at once, and a consumer slower than the workers."""
    folder = some(phantoms, tmp_path / "d", women=6)
    shutil.copy(next(folder.rglob("*.dcm")), folder / sorted(folder.iterdir())[3] / "killer.dcm")
    put = Record.put
    monkeypatch.setattr(stage, "process_file", _process_or_die)
    monkeypatch.setattr(Record, "put", lambda *args: (time.sleep(0.05), put(*args)))
    summary = quiet(folder, tmp_path / "s")
    assert summary.by_status == {("ok", ""): 24, ("failed", "worker_died"): 1}


def _process_or_die(job: Job) -> list[Outcome]:
    if job.source.name == "killer.dcm":
        os.kill(os.getpid(), signal.SIGKILL)
    return process_file(job)


def test_what_preprocess_runs_is_monais_compose(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transform put into the Compose shows in the store; one that refuses, in the manifest."""
    folder = some(phantoms, tmp_path / "d", women=1)
    quiet(folder, tmp_path / "plain", key=b"k" * 32)
    monkeypatch.setattr(stage, "process_file", _process_with_a_transform_more)
    summary = quiet(folder, tmp_path / "more", key=b"k" * 32)
    assert summary.by_status == {("ok", ""): 3, ("failed", "colour_image"): 1}
    assert summary.details["colour_image"].endswith(": refused by a transform")
    manifest = read_manifest(tmp_path / "more" / "manifest.parquet")
    stores = [open_store(tmp_path / name) for name in ("plain", "more")]
    for image_id in manifest["image_id"]:
        plain, more = (read_pyramid_level(store, image_id, "native") for store in stores)
        np.testing.assert_array_equal(more, 65535 - plain)


def _process_with_a_transform_more(job: Job) -> list[Outcome]:
    from monai.transforms import Compose, Lambdad

    from mammo_pd.ingest import transforms

    compose_without = transforms.store_transforms

    def refuse_or_invert(pixels: np.ndarray) -> np.ndarray:
        if job.source.name == "L_CC.dcm":
            raise ImageError(Reason.COLOUR, "refused by a transform")
        return 65535 - pixels

    def with_one_more(*args: object, **options: object) -> Compose:
        composed = compose_without(*args, **options)  # type: ignore[arg-type]
        *before, pyramid = composed.transforms
        return Compose([*before, Lambdad("image", refuse_or_invert), pyramid])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "store_transforms", with_one_more)
        process.prepare_transforms.cache_clear()
        return process_file(job)


FAILING = """
import sys
from mammo_pd.cli.app import main

def quote_the_header(sample):
    raise ValueError(str(sample["image_header"].dataset))

def with_one_that_fails(*args, **options):
    load, *after = compose_without(*args, **options).transforms
    return Compose([load, quote_the_header, *after])

if __name__ == "__main__":
    sys.exit(main(["preprocess", sys.argv[1], "--out", sys.argv[2]]))

# Workers, which import this file, have loaded these.
from monai.transforms import Compose
from mammo_pd.ingest import transforms

compose_without = transforms.store_transforms
transforms.store_transforms = with_one_that_fails
"""


def test_a_transform_that_fails_prints_nothing_that_identifies(
    phantoms: Path, tmp_path: Path
) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    script = tmp_path / "run.py"
    script.write_text(FAILING)
    command = [sys.executable, script, str(folder), str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "could not be prepared (ValueError)" in done.stdout
    printed = done.stdout + done.stderr
    assert "Traceback" not in printed
    assert "nanobind" not in printed
    for file in folder.rglob("*.dcm"):
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        for secret in (dataset.PatientID, dataset.PatientName, dataset.SOPInstanceUID, file.name):
            assert str(secret) not in printed


@pytest.mark.slow
def test_cluster_loses_a_worker_and_no_image(phantoms: Path, tmp_path: Path) -> None:
    """One of two Dask workers, each a process, is killed midway: nothing lost, nothing twice."""
    distributed = pytest.importorskip("distributed")
    quiet(phantoms, tmp_path / "here")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        victim = next(iter(cluster.workers.values())).process.process.pid
        watch = threading.Thread(target=_kill_midway, args=(victim, tmp_path / "there"))
        watch.start()
        summary = preprocess(
            phantoms, tmp_path / "there", scheduler=cluster.scheduler_address, say=lambda _: None
        )
        watch.join()
    assert summary.by_status == {("ok", ""): 48}
    pixels = [sorted(everything(tmp_path / name).values()) for name in ("here", "there")]
    assert pixels[0] == pixels[1]
    assert not (tmp_path / "there" / "pixels" / ".partial").exists()


def _kill_midway(pid: int, out: Path) -> None:
    deadline = time.monotonic() + 120
    while len(list(out.glob("pixels/??/*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_cluster_that_does_not_answer_is_refused(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(InputError, match=r"no Dask scheduler responds at tcp://127\.0"):
        preprocess(phantoms, tmp_path / "s", scheduler="tcp://127.0.0.1:9", say=lambda _: None)


def test_two_runs_on_one_store_do_not_mix(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    quiet(folder, tmp_path / "s")
    with (
        Record(StorePaths(tmp_path / "s")),
        pytest.raises(InputError, match="another mammo-pd preprocess"),
    ):
        quiet(folder, tmp_path / "s")


def test_file_whose_name_is_no_text_is_recorded(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    source = next(folder.rglob("L_CC.dcm"))
    source.rename(folder / os.fsdecode(b"z\xff.dcm"))
    (folder / os.fsdecode(b"\xfe.dcm")).write_text("no image")
    summary = quiet(folder, tmp_path / "s", crosswalk=tmp_path / "c.csv")
    assert summary.ok == 4
    assert summary.found == 5
    assert r"\udcfe.dcm" in (tmp_path / "c.csv").read_text()
    assert quiet(folder, tmp_path / "s").done_before >= 4


def test_a_file_that_is_gone_is_told_and_stays(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    assert quiet(folder, tmp_path / "s").gone == 0
    next(folder.rglob("L_CC.dcm")).unlink()
    again = quiet(folder, tmp_path / "s")
    assert (again.gone, again.ok) == (1, 3)
    assert len(read_manifest(tmp_path / "s" / "manifest.parquet")) == 4


def test_broken_link_is_recorded(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    (folder / "gone.dcm").symlink_to(tmp_path / "nowhere.dcm")
    summary = quiet(folder, tmp_path / "s")
    assert summary.by_status == {("ok", ""): 4, ("failed", "unreadable_file"): 1}


def test_same_image_twice_is_kept_once(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    source = next(folder.rglob("L_CC.dcm"))
    (folder / "zz").mkdir()
    shutil.copy(source, folder / "zz" / "copy.dcm")
    crosswalk = tmp_path / "c.csv"
    labels = read_labels(folder / "labels.csv")
    summary = quiet(folder, tmp_path / "s", labels=labels, crosswalk=crosswalk)
    assert summary.by_status == {("ok", ""): 4, ("excluded", "duplicate_image"): 1}
    manifest = read_manifest(tmp_path / "s" / "manifest.parquet", status=None)
    assert manifest["image_id"].is_unique
    # Which of the two is kept is decided by the path, not by timing.
    image_id = summary.details["duplicate_image"].partition(":")[0]
    copy = pd.read_csv(crosswalk).set_index("image_id").loc[image_id, "path"]
    assert copy == str(folder / "zz" / "copy.dcm")


@pytest.mark.parametrize("same_uid", [True, False])
@pytest.mark.parametrize("same_pixels", [True, False])
def test_equal_pixels_make_a_duplicate_and_an_equal_uid_does_not(
    phantoms: Path, tmp_path: Path, same_uid: bool, same_pixels: bool
) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    files = sorted(folder.rglob("*.dcm"))[:2]
    for file in sorted(folder.rglob("*.dcm"))[2:]:
        file.unlink()
    first, second = map(pydicom.dcmread, files)
    if same_uid:
        second.SOPInstanceUID = first.SOPInstanceUID
        second.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID
    if same_pixels:
        for keyword in ("Rows", "Columns", "PixelData", "ImageLaterality", "ViewPosition"):
            setattr(second, keyword, getattr(first, keyword))
    second.save_as(files[1])
    summary = quiet(folder, tmp_path / "s")
    assert summary.by_status == (
        {("ok", ""): 1, ("excluded", "duplicate_image"): 1} if same_pixels else {("ok", ""): 2}
    )
    assert summary.shared_uid == int(same_uid and not same_pixels)
    again = quiet(folder, tmp_path / "s")
    assert (again.by_status, again.shared_uid) == (summary.by_status, summary.shared_uid)


@pytest.mark.parametrize(("labels", "contradicted"), [("01", 1), ("11", 0), ("0", 0)])
def test_copies_under_two_uids_that_are_labelled_differently_are_told(
    phantoms: Path, tmp_path: Path, labels: str, contradicted: int
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    dataset = pydicom.dcmread(next(phantoms.rglob("L_CC.dcm")))
    for number in range(2):
        uid = f"1.2.{number + 1}"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
        dataset.save_as(folder / f"{number}.dcm")
    rows = "".join(f"{number}.dcm,{label}\n" for number, label in enumerate(labels))
    (folder / "t.csv").write_text("path,label\n" + rows)
    summary = quiet(folder, tmp_path / "s", labels=read_labels(folder / "t.csv"))
    assert summary.by_status == {("ok", ""): 1, ("excluded", "duplicate_image"): 1}
    assert (summary.contradicted, summary.labelled) == (contradicted, 1)


def test_a_shared_image_joins_two_patients_of_one_woman(phantoms: Path, tmp_path: Path) -> None:
    """One woman exported twice under two IDs, with one file in common."""
    folder = some(phantoms, tmp_path / "d", women=1)
    second = folder / "second"
    second.mkdir()
    for name in ("L_CC.dcm", "R_CC.dcm"):
        file = next((folder / "PHANTOM0001").rglob(name))
        dataset = pydicom.dcmread(file)
        dataset.PatientID, dataset.StudyInstanceUID = "OTHER", "1.2.3"
        if name == "R_CC.dcm":
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
            file.unlink()
        dataset.save_as(second / name)
    quiet(folder, tmp_path / "s")
    manifest = read_manifest(tmp_path / "s" / "manifest.parquet", status=None)
    assert (manifest["reason"] == "duplicate_image").sum() == 1
    assert manifest["patient_id"].nunique() == 2
    assert patient_groups(manifest).nunique() == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_films_of_one_name_in_two_folders_are_two(tmp_path: Path, order: tuple[int, int]) -> None:
    for number in order:
        film(tmp_path / (name := "ab"[number]), seed=number)
        labels = read_labels(tmp_path / name / "t.csv")
        assert quiet(tmp_path / name, tmp_path / "s", labels=labels).ok == 1
    manifest = read_manifest(tmp_path / "s" / "manifest.parquet", status=None)
    assert (manifest["status"] == "ok").all()
    assert manifest["image_id"].nunique() == 2
    # Each has the label of its own folder's table, though both files have one name.
    assert sorted(manifest["label"]) == [0, 1]
    # One table holds the densities as letters, the other as numbers: then they are text.
    assert sorted(manifest["density"]) == ["0.0", "B"]


def test_copies_of_a_film_are_images_of_their_own_where_a_table_names_each(tmp_path: Path) -> None:
    """Only of a DICOM file, which no table needs to name, is a copy taken for an accident."""
    film(tmp_path / "d", seed=0)
    shutil.copy(tmp_path / "d" / "001.png", tmp_path / "d" / "002.png")
    table = tmp_path / "d" / "t.csv"
    table.write_text("path,label,patient_id\n001.png,0,p\n002.png,0,p\n")
    assert quiet(tmp_path / "d", tmp_path / "s", labels=read_labels(table)).ok == 2


def film(folder: Path, seed: int) -> None:
    """A PNG with a breast, and a table that names it."""
    folder.mkdir()
    row, column = np.mgrid[:400, :300]
    breast = ((row - 200) / 180) ** 2 + (column / 220) ** 2 < 1
    texture = np.random.default_rng(seed).normal(0, 8, (400, 300))
    grey = np.where(breast, 150 + texture - column / 4, 4).clip(0, 255)
    Image.fromarray(grey.astype(np.uint8)).save(folder / "001.png")
    density = "B" if seed else "0"
    (folder / "t.csv").write_text(f"path,label,patient_id,density\n001.png,{seed},p,{density}\n")


def test_one_key_gives_one_set_of_names(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    for name in ("one", "two"):
        quiet(folder, tmp_path / name, key=b"k" * 32)
    first, second = (
        set(read_manifest(tmp_path / name / "manifest.parquet")["image_id"])
        for name in ("one", "two")
    )
    assert first == second
    with pytest.raises(InputError, match="key other than the one given"):
        quiet(folder, tmp_path / "one", key=b"l" * 32)


def test_disk_that_is_really_full_is_one_sentence(tmp_path: Path) -> None:
    """numpy reports it in words of its own, without an error number."""
    folder = tmp_path / "d"
    write_phantoms(folder, PhantomSettings(patients=1, scale=0.25), processes=1)
    program = (
        "import resource, sys\n"
        "from mammo_pd.cli.app import main\n"
        "if __name__ == '__main__':\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        f"    sys.exit(main(['preprocess', {str(folder)!r}, '--out', {str(tmp_path / 's')!r}]))\n"
    )
    script = tmp_path / "run.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert quiet(folder, tmp_path / "s").ok == 4


def test_new_label_table_is_taken_without_decoding(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d")
    first = quiet(folder, tmp_path / "s")
    assert first.labelled == 0
    labels = read_labels(folder / "labels.csv", label_column="density", positive=["B", "C"])
    second = quiet(folder, tmp_path / "s", labels=labels)
    assert second.done_before == second.found
    assert second.labelled == 8


@pytest.mark.parametrize("rows", ["path,label\nother.dcm,1\n", "image_id,label\n77,0\n"])
def test_table_that_names_no_file_is_refused_before_anything_is_decoded(
    phantoms: Path, tmp_path: Path, rows: str
) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    table = tmp_path / "t.csv"
    table.write_text(rows)
    with pytest.raises(InputError, match=r"no row of .*t\.csv names .* Nothing was decoded\."):
        quiet(folder, tmp_path / "s", labels=read_labels(table))
    assert not (tmp_path / "s").exists()


def test_table_whose_uids_name_no_image_loses_nothing(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    table = tmp_path / "t.csv"
    table.write_text("sop_instance_uid,label\n1.2.3,1\n")
    with pytest.raises(InputError, match=r"no row of .*t\.csv names an image"):
        quiet(folder, tmp_path / "s", labels=read_labels(table))
    assert quiet(folder, tmp_path / "s").done_before == 4


def test_row_that_names_two_images_is_refused(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d")
    table = tmp_path / "t.csv"
    table.write_text("path,label\nL_CC.dcm,1\n")
    with pytest.raises(InputError, match=r"line 2 .* names 2 images") as caught:
        quiet(folder, tmp_path / "s", labels=read_labels(table))
    # A file's name may be a woman's.
    assert "L_CC" not in str(caught.value)
    assert "PHANTOM" not in str(caught.value)


def test_png_and_tiff_are_taken_where_a_table_names_them(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    row, column = np.mgrid[:400, :300]
    breast = ((row - 200) / 180) ** 2 + (column / 220) ** 2 < 1
    texture = np.random.default_rng(0).normal(0, 8, (400, 300))
    grey = np.where(breast, 150 + texture - column / 4, 4).clip(0, 255)
    Image.fromarray(grey.astype(np.uint8)).save(folder / "a.png")
    Image.fromarray((grey * 257).astype(np.uint16)).save(folder / "b.tiff")
    Image.fromarray((grey * 0.9).astype(np.uint8)).save(folder / "unnamed.pgm")
    (folder / "t.csv").write_text("path,label,patient_id,view\na.png,1,p1,MLO\nb.tiff,0,p2,CC\n")
    summary = quiet(folder, tmp_path / "s", labels=read_labels(folder / "t.csv"))
    assert summary.by_status == {("ok", ""): 2, ("excluded", "not_in_label_table"): 1}
    manifest = read_manifest(tmp_path / "s" / "manifest.parquet")
    assert sorted(manifest["view"]) == ["CC", "MLO"]
    assert manifest["patient_id"].nunique() == 2
    # Named by a later table, it is taken.
    (folder / "t.csv").write_text("path,label\na.png,1\nb.tiff,0\nunnamed.pgm,1\n")
    assert quiet(folder, tmp_path / "s", labels=read_labels(folder / "t.csv")).ok == 3


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").touch()
    with pytest.raises(InputError, match="holds no images"):
        quiet(tmp_path / "d", tmp_path / "s")
    with pytest.raises(InputError, match="not a folder"):
        quiet(tmp_path / "none", tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("workers", [0, -1])
def test_no_worker_is_refused_before_anything_is_written(
    workers: int, phantoms: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"--workers {workers} is below 1"):
        preprocess(phantoms, tmp_path / "store", workers=workers, say=lambda _: None)
    assert not (tmp_path / "store").exists()


def test_other_settings_in_one_store_are_refused(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    quiet(folder, tmp_path / "s")
    before = everything(tmp_path / "s")
    with pytest.raises(InputError, match="voi was 'auto', is 'raw'"):
        quiet(folder, tmp_path / "s", settings=ImagingSettings(voi=VoiPolicy.RAW))
    assert everything(tmp_path / "s") == before


def test_full_disk_keeps_what_is_done(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = some(phantoms, tmp_path / "d")
    monkeypatch.setattr(stage, "process_file", _process_until_full)
    with pytest.raises(OSError, match="No space left"):
        quiet(folder, tmp_path / "s")
    monkeypatch.undo()
    again = quiet(folder, tmp_path / "s")
    assert again.ok == 8
    assert again.done_before >= 1


def _process_until_full(job: Job) -> list[Outcome]:
    if job.source.name == "R_MLO.dcm" and "0002" in str(job.source):
        raise OSError(28, "No space left on device")
    return process_file(job)


def test_contact_sheet_and_crosswalk_are_written_on_request(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    quiet(folder, tmp_path / "s")
    sheet, crosswalk = tmp_path / "sheet.png", tmp_path / "c.csv"
    summary = quiet(folder, tmp_path / "s", contact_sheet=sheet, crosswalk=crosswalk)
    assert summary.ok == 4
    with Image.open(sheet) as image:
        assert np.ptp(np.asarray(image)) > 100
    rows = pd.read_csv(crosswalk)
    assert sorted(Path(path).name for path in rows["path"]) == sorted(
        file.name for file in folder.rglob("*.dcm")
    )
    manifest = read_manifest(tmp_path / "s" / "manifest.parquet")
    assert set(rows["image_id"]) == set(manifest["image_id"])
    # Both show what the store hides.
    for file in (sheet, crosswalk):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_contact_sheet_begins_with_what_is_doubtful(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, captions = Record.rows, []

    def doubted(record: Record) -> Iterator[RecordedImage]:
        for number, image in enumerate(rows(record)):
            verdict = "no_clear_edge" if number in (1, 3) else "ok"
            yield replace(image, columns={**image.columns, "breast_verdict": verdict})

    def draw(
        items: Iterable[tuple[np.ndarray, Box | None, str]], _: Path, *, last_line: str
    ) -> list[Path]:
        captions.extend(caption for _, _, caption in items)
        assert last_line == ""
        return []

    monkeypatch.setattr(Record, "rows", doubted)
    monkeypatch.setattr(stage, "draw_contact_sheet", draw)
    quiet(some(phantoms, tmp_path / "d", women=1), tmp_path / "s", contact_sheet=tmp_path / "x.png")
    assert [caption.split()[1] for caption in captions] == ["no_clear_edge"] * 2 + ["ok"] * 2
    names = read_manifest(tmp_path / "s" / "manifest.parquet")["image_id"].str[:6].tolist()
    assert [caption.split()[0] for caption in captions] == [names[n] for n in (1, 3, 0, 2)]


@pytest.mark.parametrize("most", [2, 200])
def test_contact_sheet_shows_what_is_refused_for_its_pixels(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """As the file shows it, before all others; of the rest the last line has the count."""
    folder, drawn = some(phantoms, tmp_path / "d", women=3), []

    def draw(
        items: Iterable[tuple[np.ndarray, Box | None, str]], _: Path, *, last_line: str
    ) -> list[Path]:
        drawn.append((list(items), last_line))
        return []

    monkeypatch.setattr(stage, "draw_contact_sheet", draw)
    monkeypatch.setattr(stage, "_MOST_REFUSED", most)
    files = sorted(folder.rglob("*.dcm"))
    for file in files[:2]:
        # A window far above the breast's values makes all of it black.
        dataset = pydicom.dcmread(file)
        dataset.WindowCenter, dataset.WindowWidth = 60000, 10
        dataset.save_as(file)
    marker = pydicom.dcmread(files[2])  # no breast in it
    pixels = np.zeros((marker.Rows, marker.Columns), np.uint16)
    pixels[20:30, 20:30] = 3000
    marker.PixelData, marker.file_meta.TransferSyntaxUID = (
        pixels.tobytes(),
        pydicom.uid.ExplicitVRLittleEndian,
    )
    marker["PixelData"].VR = "OW"
    marker["PixelData"].is_undefined_length = False
    marker.save_as(files[2])
    make_scan(files[3], [1, 1])
    damaged = pydicom.dcmread(files[4])
    damaged.PixelData = pydicom.encaps.encapsulate([b"junk"])
    damaged.save_as(files[4])
    labels = read_labels(folder / "labels.csv")
    runs = [
        quiet(folder, tmp_path / "s", labels=labels, contact_sheet=tmp_path / "x.png"),
        quiet(folder, tmp_path / "s", labels=labels, contact_sheet=tmp_path / "x.png"),
        quiet(folder, tmp_path / "s", labels=labels),
    ]
    by_status = runs[0].by_status
    refused = {
        reason: by_status[status, reason]
        for status, reason in by_status
        if reason in ("constant_pixels", "no_breast_found")
    }
    assert sum(refused.values()) == 3
    # Nothing of them is kept, so each sheet reads them again, and nothing else does.
    assert [run.done_before for run in runs] == [0, 12 - 3, 12]
    kept = {file.stem for file in (tmp_path / "s" / "private" / "thumbnails").rglob("*.npy")}
    assert kept == {*read_manifest(tmp_path / "s" / "manifest.parquet")["image_id"]}
    assert len(drawn) == 2
    for items, last_line in drawn:
        captions = [caption.partition(" ")[2] for _, _, caption in items]
        first, others = captions[: min(most, 3)], captions[min(most, 3) :]
        assert all(caption.startswith("refused: ") for caption in first)
        assert len(others) == runs[0].ok
        assert not any(caption.startswith("refused") for caption in others)
        assert "1 multi_frame" in last_line
        assert sum(map(int, re.findall(r"\d+", last_line))) == 12 - len(items)
    known = next(item for item in drawn[0][0] if item[2].endswith("constant_pixels"))
    assert known[1] is None
    assert max(known[0].shape) == 256


def make_scan(source: Path, levels: Sequence[float]) -> None:
    """Make a file one of several frames, each a share as bright as what it was."""
    dataset = pydicom.dcmread(source)
    frame = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)[0]
    dataset.NumberOfFrames = len(levels)
    dataset.PixelData = b"".join((frame * level).astype(frame.dtype).tobytes() for level in levels)
    dataset["PixelData"].VR = "OW"
    dataset["PixelData"].is_undefined_length = False
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.save_as(source)


def test_files_of_several_frames_are_taken_as_asked_for(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    make_scan(next(folder.rglob("L_CC.dcm")), [1, 1, 1])
    assert quiet(folder, tmp_path / "none").by_status == {
        ("ok", ""): 3,
        ("excluded", "multi_frame"): 1,
    }
    for frames, taken in ((Frames.MIDDLE, "2"), (Frames.MIP, "mip")):
        store = tmp_path / frames
        assert quiet(folder, store, settings=ImagingSettings(frames=frames)).ok == 4
        manifest = read_manifest(store / "manifest.parquet")
        assert manifest["frame"].dropna().tolist() == [taken]
        assert sorted(manifest["number_of_frames"]) == [1, 1, 1, 3]
    with pytest.raises(InputError, match="frames was 'mip', is 'middle'"):
        quiet(folder, tmp_path / "mip", settings=ImagingSettings(frames=Frames.MIDDLE))


def test_each_frame_is_an_image_of_the_same_exam_and_woman(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=12)
    scan = next((folder / "PHANTOM0001").rglob("L_CC.dcm"))
    make_scan(scan, [1, 0.9, 0, 0.8])
    each = ImagingSettings(frames=Frames.EACH)
    labels = read_labels(folder / "labels.csv")
    sheet, crosswalk = tmp_path / "sheet.png", tmp_path / "c.csv"
    summary = quiet(
        folder,
        tmp_path / "s",
        settings=each,
        labels=labels,
        contact_sheet=sheet,
        crosswalk=crosswalk,
    )
    # An empty frame is lost alone, and said to be.
    assert summary.by_status == {("ok", ""): 50, ("failed", "constant_pixels"): 1}
    manifest = read_manifest(tmp_path / "s" / "manifest.parquet", status=None)
    frames = manifest[manifest["frame"].notna()].sort_values("frame")
    assert frames["frame"].tolist() == ["1", "2", "3", "4"]
    assert frames["image_id"].nunique() == 4
    used = frames[frames["status"] == "ok"]
    assert used["pixel_hash"].nunique() == 3
    # One exam and one patient, those of her other views, so no split parts them; and one label.
    woman = manifest[manifest["patient_id"] == used["patient_id"].iloc[0]]
    assert len(woman) == 7
    assert woman["exam_id"].nunique() == 1
    assert used["label"].nunique() == 1
    assert used["label"].notna().all()
    split = split_store(open_store(tmp_path / "s"), folds=3)
    hers = split.table[split.table["image_id"].isin(woman["image_id"])]
    assert len(hers) == 6
    assert hers["fold"].nunique() == 1
    rows = pd.read_csv(crosswalk).set_index("image_id").loc[frames["image_id"]]
    assert rows["frame"].tolist() == [1, 2, 3, 4]
    assert set(rows["path"]) == {str(scan)}
    # 40 crops to a page: the last ten make a second one.
    with Image.open(tmp_path / "sheet-2.png") as image:
        second_row = np.asarray(image)[256 + 14 :]
    assert second_row[:, 256 : 2 * 256].max() > 200
    assert (second_row[:, 2 * 256 :] == second_row[-1, -1]).all()


def test_each_frame_is_done_once_and_redone_with_its_file(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    scan = next(folder.rglob("L_CC.dcm"))
    make_scan(scan, [1, 0.9, 0.8])
    each = ImagingSettings(frames=Frames.EACH)
    labels = read_labels(folder / "labels.csv")
    assert quiet(folder, tmp_path / "s", settings=each, labels=labels).ok == 6
    before = everything(tmp_path / "s")
    again = quiet(folder, tmp_path / "s", settings=each)
    assert (again.done_before, again.ok, again.labelled) == (4, 6, 6)
    lost = read_manifest(tmp_path / "s" / "manifest.parquet").query("frame == '2'")
    open_store(tmp_path / "s").image(lost["image_id"].item()).unlink()
    assert quiet(folder, tmp_path / "s", settings=each).done_before == 3
    assert everything(tmp_path / "s") == before
    # A shorter scan in its place: the third frame leaves the store, the label stays.
    make_scan(scan, [1, 0.7])
    shorter = quiet(folder, tmp_path / "s", settings=each)
    assert (shorter.ok, shorter.labelled) == (5, 5)
    stored = {file.stem for file in (tmp_path / "s" / "pixels").rglob("*.safetensors")}
    assert stored == set(read_manifest(tmp_path / "s" / "manifest.parquet")["image_id"])


def test_what_a_reader_would_want_to_know_is_counted(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    for file, tags in {
        "L_CC.dcm": {"ImageLaterality": "R"},
        "R_CC.dcm": {"BurnedInAnnotation": "YES"},
        "L_MLO.dcm": {"BurnedInAnnotation": "NO", "PresentationIntentType": "FOR PROCESSING"},
    }.items():
        dataset = pydicom.dcmread(next(folder.rglob(file)))
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        dataset.save_as(dataset.filename)
    summary = quiet(folder, tmp_path / "s")
    assert summary.ok == 4
    assert summary.sides == {"orientation_against_laterality": 1}
    assert (summary.burned_in, summary.for_processing) == (1, 1)
    assert summary.doubtful == 0
    spot = next(folder.rglob("R_MLO.dcm"))
    dataset = pydicom.dcmread(spot)
    values = np.random.default_rng(0).integers(2000, 3000, dataset.pixel_array.shape)
    dataset.PixelData = values.astype(np.uint16).tobytes()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset["PixelData"].is_undefined_length = False
    dataset.save_as(spot)
    assert quiet(folder, tmp_path / "s").doubtful == 1


def test_a_machine_whose_images_do_not_share_one_grey_scale_is_told(
    phantoms: Path, tmp_path: Path
) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    for file in folder.rglob("*.dcm"):
        dataset = pydicom.dcmread(file)
        dataset.Manufacturer, dataset.ManufacturerModelName = (
            "HOLOGIC, Inc.",
            "Selenia Dimensions 9000",
        )
        for keyword in ("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"):
            if keyword in dataset:
                delattr(dataset, keyword)
        if file.name.startswith("L"):
            white = int(dataset.pixel_array.max())
            dataset.WindowCenter, dataset.WindowWidth = white // 2, white
        dataset.save_as(file)
    summary = quiet(folder, tmp_path / "s")
    assert summary.mixed_voi == {
        "Hologic Selenia Dimensions, FOR PRESENTATION": {"window": 2, "full_range": 2}
    }
    assert summary.odd_headers == 0
    for file in folder.rglob("R_*.dcm"):
        dataset = pydicom.dcmread(file)
        white = int(dataset.pixel_array.max())
        dataset.WindowCenter, dataset.WindowWidth = white // 2, white
        dataset.save_as(file)
    assert quiet(folder, tmp_path / "s").mixed_voi == {}


def test_a_record_of_before_the_rename_is_read(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    scan = next(folder.rglob("L_CC.dcm"))
    dataset = pydicom.dcmread(scan)
    dataset.PresentationIntentType = "FOR PROCESSING"
    dataset.save_as(scan)
    quiet(folder, tmp_path / "s")
    before = read_manifest(tmp_path / "s" / "manifest.parquet")
    with sqlite3.connect(tmp_path / "s" / "private" / "images.sqlite") as database:
        database.execute(
            "UPDATE images SET facts = replace(facts, '\"presentation_intent\"', '\"processing\"')"
        )
    summary = quiet(folder, tmp_path / "s")
    assert (summary.done_before, summary.for_processing) == (4, 1)
    after = read_manifest(tmp_path / "s" / "manifest.parquet")
    pd.testing.assert_frame_equal(after, before)
    assert sorted(after["presentation_intent"]) == ["FOR PRESENTATION"] * 3 + ["FOR PROCESSING"]


def test_frames_of_a_copy_are_duplicates(phantoms: Path, tmp_path: Path) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    scan = next(folder.rglob("L_CC.dcm"))
    make_scan(scan, [1, 0.9])
    shutil.copy(scan, folder / "zz.dcm")
    summary = quiet(
        folder,
        tmp_path / "s",
        settings=ImagingSettings(frames=Frames.EACH),
        labels=read_labels(folder / "labels.csv"),
    )
    assert summary.by_status == {("ok", ""): 5, ("excluded", "duplicate_image"): 2}
    assert summary.labelled == 5


def test_frames_of_a_woman_without_any_identifier_stay_together(
    phantoms: Path, tmp_path: Path
) -> None:
    folder = some(phantoms, tmp_path / "d", women=1)
    for file in folder.rglob("*.dcm"):
        if file.name != "L_CC.dcm":
            file.unlink()
            continue
        make_scan(file, [1, 0.9])
        dataset = pydicom.dcmread(file)
        del dataset.PatientID, dataset.StudyInstanceUID
        dataset.save_as(file)
    quiet(folder, tmp_path / "s", settings=ImagingSettings(frames=Frames.EACH))
    manifest = read_manifest(tmp_path / "s" / "manifest.parquet")
    assert manifest["patient_id_source"].tolist() == ["image", "image"]
    assert manifest["patient_id"].nunique() == 1


MANY_ROWS = """
import sys
from pathlib import Path
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.record import ImageOrigin, Record, RecordedImage
from mammo_pd.data.store import create_or_match
from mammo_pd.ingest import preprocess as stage
from mammo_pd.ingest.walk import FoundFiles

def mib(kind):
    status = Path("/proc/self/status").read_text()
    return int(status.split(kind + ":")[1].split()[0]) / 1024

number, out = int(sys.argv[1]), Path(sys.argv[2])
folder = out.parent / "archive"
paths = create_or_match(out, {"voi": "auto"})
facts = {
    "laterality": "L", "view": "MLO", "status": "ok", "reason": None, "detail": None,
    "decoder": "imagecodecs", "transfer_syntax": "1.2.840.10008.1.2.4.70",
    "voi_applied": "window:LINEAR", "rows": 3328, "columns": 2560, "number_of_frames": 1,
    "crop_top": 0, "crop_left": 0, "crop_height": 3000, "crop_width": 1200, "flipped": False,
    "breast_verdict": "ok", "laterality_agrees": True, "burned_in_annotation": False,
    "presentation_intent": "FOR PRESENTATION",
    "manufacturer": "Vendor", "age": 50.0, "pixel_hash": "0" * 20, "fingerprint": "0" * 16,
}
with Record(paths) as record:
    sources = [folder / f"exam{index // 4}" / f"{index}.dcm" for index in range(number)]
    # Not the peak so far, which is that of the imports, and would hide the first rows' memory.
    before = mib("VmRSS")
    for index, source in enumerate(sources):
        ids = {"sop_instance_uid": f"1.2.{index}", "patient_id": f"P{index // 4}"}
        image_id = record.hasher.hash("image", f"1.2.{index}")
        record.put(source, (1, 1), [RecordedImage(ImageOrigin(source), image_id, facts, ids, 1)])
        if index % 16 == 0:
            record.commit()
    target = stage._Target(folder, paths, record, "0" * 16)
    summary, _ = stage._finish(FoundFiles(sources), target, None, number, False, None)
print(mib("VmHWM") - before)
assert summary.by_status == {("ok", ""): number}, summary
manifest = read_manifest(paths.manifest)
assert len(manifest) == number and manifest["image_id"].is_unique
assert manifest["patient_id"].nunique() == number // 4
"""


def record_rows(number: int, out: Path) -> float:
    """Record so many images without reading any; the MiB that it took."""
    command = [sys.executable, "-c", MANY_ROWS, str(number), str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


def test_what_measures_the_memory_of_many_images_runs(tmp_path: Path) -> None:
    """The next test is slow, and would go stale unseen."""
    assert record_rows(40, tmp_path / "few") >= 0


@pytest.mark.slow
def test_200_000_images_are_recorded_without_sitting_in_memory(tmp_path: Path) -> None:
    took = {number: record_rows(number, tmp_path / str(number)) for number in (50_000, 200_000)}
    print(f"MiB for the rows, record and manifest: {took}")
    # A million rows would take five times as much more as 150,000 do.
    assert took[200_000] < 250
    assert took[200_000] < took[50_000] + 60


@pytest.mark.corpus
def test_real_mammograms_are_taken_and_the_rest_is_not(corpus: Path, tmp_path: Path) -> None:
    labels = read_labels(corpus / "labels" / "rsna_train.csv")
    summary = quiet(corpus / "mg_dicom", tmp_path / "s", labels=labels)
    assert summary.by_status == {
        ("ok", ""): 11,
        ("excluded", "multi_frame"): 1,
        ("excluded", "no_breast_found"): 1,
    }
    assert summary.labelled == 4
    manifest = read_manifest(tmp_path / "s" / "manifest.parquet")
    rsna = manifest[manifest["label"].notna()]
    assert sorted(rsna["laterality"] + rsna["view"]) == ["LCC", "LMLO", "RCC", "RMLO"]
    assert rsna["patient_id"].nunique() == 1
    assert re.match(r"\w{20}: Nothing in the image", summary.details["no_breast_found"])
    assert StorePaths(tmp_path / "s").manifest.is_file()
