import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from mammo_pd.cli.app import main
from mammo_pd.config import RunConfig
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.record import Record
from mammo_pd.data.split_store import split_store
from mammo_pd.data.splits import SplitTable
from mammo_pd.data.store import open_store
from mammo_pd.training.runs import RunFolder, RunInfo, timestamp


@pytest.fixture
def store(phantom_store: Path, tmp_path: Path) -> Path:
    """A copy of the phantoms' store, whose files are the phantoms still."""
    return Path(shutil.copytree(phantom_store, tmp_path / "store"))


def run_on(folder: Path, store: Path, split: SplitTable, fold: int | None = None) -> None:
    info = RunInfo(
        run_id=folder.name,
        started=timestamp(),
        store=str(store),
        store_fingerprint="",
        label_definition=None,
        split=split.name,
        split_hash=split.hash,
        labels_hash="",
        fold=fold,
        model="vit_tiny_patch16_224",
        img_size=(128, 96),
        num_tokens=48,
        num_keep=12,
        environment={},
    )
    RunFolder(folder, info, RunConfig()).create()


def test_a_woman_is_forgotten_and_the_runs_that_saw_her_are_named(
    store: Path, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = open_store(store)
    split = split_store(paths, say=lambda _: None)
    folds = split_store(paths, name="three", folds=3, say=lambda _: None)
    runs = tmp_path / "runs"
    run_on(runs / "one", store, split)
    for fold in range(3):
        run_on(runs / "cv-three" / f"fold{fold}", store, folds, fold)
    run_on(runs / "older", store, replace(split, hash="of a split that is gone"))
    run_on(runs / "elsewhere", tmp_path / "other", replace(split, hash="of another store"))
    women = pd.read_csv(phantoms / "labels.csv", dtype=str)["patient_id"].unique()
    with Record(paths) as record:
        hashed = {woman: record.hasher.hash("patient", woman) for woman in women[:2]}
    manifest = read_manifest(paths.manifest)
    for number, woman in enumerate(women[:2]):
        # The second woman is looked for in splits that are no longer those of the runs.
        words = ["forget", str(store), "--patient", woman, "--runs", str(runs)]
        assert main([*words, "--dry-run"]) == 0
        assert "nothing was removed" in capsys.readouterr().out
        assert len(read_manifest(paths.manifest)) == 48 - 4 * number
        assert main(words) == 0
        printed = capsys.readouterr().out
        assert "4 images of 1 patient" in printed
        hers = manifest.loc[manifest["patient_id"] == hashed[woman], "image_id"]
        for run, parts, table in [
            ("one", split.parts(), split.table),
            *((f"cv-three/fold{n}", folds.parts(n), folds.table) for n in range(3)),
        ]:
            part = parts[table["image_id"].isin(hers)].unique().item()
            word = {"train": "trained", "val": "validated", "test": "tested"}[part]
            assert f"{runs / run} was {word} on 4 of them\n" in printed
        assert f"1 run in {runs} cannot be read, or used a split" in printed
        assert "elsewhere" not in printed
        assert "4 source files are still there" in printed
        assert woman not in printed
    left = read_manifest(paths.manifest, status=None)
    assert not set(left["patient_id"]) & set(hashed.values())
    assert len(left) == 40


def test_runs_that_cannot_be_looked_through_are_not_said_to_be_innocent(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = read_manifest(open_store(store).manifest)["image_id"].iloc[0]
    words = ["forget", str(store), "--image", image, "--dry-run", "--runs"]
    assert main([*words, str(tmp_path / "none")]) == 0
    printed = capsys.readouterr().out
    assert "warning: there is no folder of runs at" in printed
    assert "is recorded as having used them" not in printed
    assert main([*words, str(tmp_path)]) == 0
    assert f"no run in {tmp_path} is recorded as having used them" in capsys.readouterr().out


def test_nothing_missing_is_no_error(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forget", str(store), "--missing"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "no file of the store is missing; nothing was removed",
        f"next: mammo-pd train --store {store} --res 224 --keep 0.25",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to forget: --patient ID, --image IMAGE_ID or --missing"),
        (["--patient", "SECRET"], "no image of the patient given with --patient"),
        (["--image", "x", "y"], "the store has no image 'x'"),
        (["--image", "x", "--whole-folders"], "--whole-folders only works with --missing"),
        (["--missing", "--take-again"], "--take-again only works with --patient or --image"),
        (["--image", "x", "--take-again"], "the image 'x' was not forgotten"),
    ],
)
def test_what_cannot_be_forgotten_is_refused(
    store: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["forget", str(store), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "SECRET" not in error


def test_a_store_that_was_handed_on_is_refused(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(store / "private")
    assert main(["forget", str(store), "--missing"]) == 2
    assert "forget the images in the original store" in capsys.readouterr().err
    assert not (store / "private").exists()
