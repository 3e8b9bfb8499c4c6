"""An objective that nobody planned for, from training on two processes to the report."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from blank_figures import figures_left_blank
from sklearn.metrics import roc_auc_score
from wrapped_findings import Findings

from mammo_pd.cli.app import main
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.split_store import split_store
from mammo_pd.data.store import open_store
from mammo_pd.training.objectives import OBJECTIVES
from mammo_pd.training.runs import RunFolder

PROGRAM = Path(__file__).with_name("wrapped_findings.py")


@pytest.fixture(scope="module", autouse=True)
def _objective_is_known() -> Iterator[None]:
    """As it is in the program's own process; in this one it is a matter of these tests."""
    with pytest.MonkeyPatch.context() as patch, figures_left_blank():
        patch.setitem(OBJECTIVES, "two_findings", lambda _: Findings())
        yield


def by_process(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    return subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, words)],
        env=environment,
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def unlabelled_store(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms with a split, and then without any label: the findings do not need it."""
    store = tmp_path_factory.mktemp("unlabelled") / "store"
    shutil.copytree(phantom_store, store)
    split_store(open_store(store), name="mine", say=lambda _: None)
    split_store(open_store(store), name="two", folds=2, val=0.3, say=lambda _: None)
    manifest = pd.read_parquet(store / "manifest.parquet")
    labels = pd.array([None] * len(manifest), dtype="Int8")
    manifest.assign(label=labels).to_parquet(store / "manifest.parquet")
    return store


SETTINGS = (
    "--res 64x48 --model test_vit --epochs 2 --batch-size 8 --keep 0.5 "
    "--set training.objective=two_findings --set device.precision=32-true "
    "--set device.compile=false --set device.accelerator=cpu"
)


@pytest.fixture(scope="module")
def trained_alone(unlabelled_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    words = ("--split", "mine", "--store", unlabelled_store, "--runs", runs)
    assert main(["train", *SETTINGS.split(), *map(str, words)]) == 0
    return RunFolder.latest(runs).path


def test_from_training_to_a_report_of_each_finding(
    unlabelled_store: Path, trained_alone: Path, tmp_path: Path
) -> None:
    check_reports(unlabelled_store, trained_alone, tmp_path)


@pytest.mark.slow
def test_from_two_processes_to_a_report_of_each_finding(
    unlabelled_store: Path, tmp_path: Path
) -> None:
    """By the program itself, which starts the second process."""
    runs = tmp_path / "runs"
    words = ("--split", "mine", "--devices", 2, "--store", unlabelled_store, "--runs", runs)
    done = by_process("train", *SETTINGS.split(), *words)
    assert done.returncode == 0, done.stderr
    check_reports(unlabelled_store, RunFolder.latest(runs).path, tmp_path)


def check_reports(unlabelled_store: Path, run: Path, tmp_path: Path) -> None:
    assert len(pd.read_csv(run / "history.csv")) == 2

    scores = {}
    for checkpoint in ("model", "last"):
        out = tmp_path / checkpoint
        assert main(["evaluate", str(run), "--checkpoint", checkpoint, "--out", str(out)]) == 0
        scores[checkpoint] = pd.read_csv(run / "predictions.csv")
        tested = scores[checkpoint][lambda table: table["split"] == "test"]
        rows = read_manifest(unlabelled_store / "manifest.parquet").set_index("image_id")
        assert (tested["dense"] == rows["density"].isin(["C", "D"])[tested["image_id"]].array).all()
        for name in ("dense", "older"):
            metrics = json.loads((out / name / "metrics.json").read_text())["image"]
            known = tested[tested[name].notna()]
            assert metrics["n"] == len(known)
            if known[name].nunique() == 2:
                expected = roc_auc_score(known[name], known[f"{name}_score"])
                assert metrics["auc"] == pytest.approx(expected)
    # What lies around the backbone is in both files, which after the last epoch are the same model.
    columns = ["dense_score", "older_score"]
    np.testing.assert_allclose(scores["model"][columns], scores["last"][columns], atol=1e-6)


def test_a_change_of_another_target_is_noticed(
    unlabelled_store: Path,
    trained_alone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(unlabelled_store, changed)
    manifest = pd.read_parquet(changed / "manifest.parquet")
    other = manifest["density"].map({"C": "B", "D": "A", "A": "D", "B": "C"})
    manifest.assign(density=other).to_parquet(changed / "manifest.parquet")
    assert main(["evaluate", str(trained_alone), "--store", str(changed)]) == 2
    assert "the labels in" in capsys.readouterr().err


@pytest.mark.slow
def test_cross_validation_reports_on_each_finding(unlabelled_store: Path, tmp_path: Path) -> None:
    """Its processes are started as this program was, which alone knows the objective."""
    out = tmp_path / "cv"
    words = ("--split", "two", "--store", unlabelled_store, "--out", out, "--parallel", "2")
    done = by_process("cv", *SETTINGS.split(), *words)
    assert done.returncode == 0, done.stderr
    tables = [pd.read_csv(out / f"fold{fold}-seed0" / "predictions.csv") for fold in range(2)]
    scored = pd.concat(tables)[lambda table: table["split"] == "test"]
    for name in ("dense", "older"):
        metrics = json.loads((out / "report" / name / "metrics.json").read_text())
        known = scored[scored[name].notna()]
        assert metrics["image"]["n"] == len(known)
        if known[name].nunique() == 2:
            expected = roc_auc_score(known[name], known[f"{name}_score"])
            assert metrics["image"]["auc"] == pytest.approx(expected)
        assert len(metrics["context"]["runs"]) == 2
