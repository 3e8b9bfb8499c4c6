import json
import math
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from blank_figures import figures_left_blank
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from small_runs import small

from mammo_pd.cli import cv
from mammo_pd.cli.app import main
from mammo_pd.config import load_config
from mammo_pd.data.split_store import split_store
from mammo_pd.data.splits import read_split, remove_from_split
from mammo_pd.data.store import open_store
from mammo_pd.errors import InputError
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.tracking import tracking_uri
from mammo_pd.training import train_folds
from mammo_pd.training.checkpoint_writer import CheckpointWriter
from mammo_pd.training.cross_validation import CrossValidation
from mammo_pd.training.run_processes import RunProcess
from mammo_pd.training.runs import RunFolder

SMALL = {
    "--split": "two",
    "--res": "128x96",
    "--model": "test_vit",
    "--epochs": "2",
    "--batch-size": "8",
    "--lr": "1e-3",
}
ON_CPU = ("--set", "device.accelerator=cpu", "--set", "data.workers=1")
LEVELS = ("image", "breast", "exam", "patient")


@pytest.fixture(scope="module")
def store(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with a split of two folds, and one of three."""
    copy = tmp_path_factory.mktemp("cv") / "store"
    # Other tests of this process may have made splits of these names there.
    shutil.copytree(phantom_store, copy, ignore=shutil.ignore_patterns("splits"))
    (copy / "splits").mkdir()
    for folds, name in ((2, "two"), (3, "three")):
        split_store(open_store(copy), name=name, folds=folds, val=0.3, say=lambda _: None)
    return copy


def typed(store: Path, out: Path, *more: str) -> list[str]:
    """The command; options among ``more`` replace those of `SMALL`."""
    given = dict(zip(more[::2], more[1::2], strict=True))
    options = {**SMALL, "--store": str(store), "--out": str(out), **given}
    return ["cv", *ON_CPU, *(word for pair in options.items() for word in pair)]


def by_process(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Type a command, which starts further processes as it was started itself."""
    command = [sys.executable, "-m", "mammo_pd", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def runs_made_here(*, by_process: frozenset[str] = frozenset()) -> Iterator[list[str]]:
    """Runs are made within this process, one after the other; their names.

    Those of ``by_process`` have one each, as all have outside the tests.
    """
    made: list[str] = []
    run_elsewhere = train_folds.run_processes

    def run_here(
        runs: Sequence[RunProcess], *, ended: Callable[[RunProcess, int], bool], **how: Any
    ) -> None:
        for run in runs:
            if run.name in by_process:
                run_elsewhere([run], ended=ended, **how)
                continue
            made.append(run.name)
            run.log.touch()
            if not ended(run, main(run.command[run.command.index("cv-run") :])):
                break

    with pytest.MonkeyPatch.context() as patch, figures_left_blank():
        patch.setattr(train_folds, "run_processes", run_here)
        # Of pytest, it is another.
        patch.setattr(cv, "_this_program", lambda: (sys.executable, "-m", "mammo_pd"))
        yield made


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds, the second by a process of its own; then a second seed of both."""
    out = tmp_path_factory.mktemp("runs") / "cv"
    with (
        runs_made_here(by_process=frozenset({"fold1-seed0"})) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        # As the processes have it.
        patch.setenv("MLFLOW_TRACKING_URI", tracking_uri(out.parent))
        assert main(typed(store, out, "--parallel", "2")) == 0
        assert main(typed(store, out, "--seeds", "2")) == 0
    assert made == ["fold0-seed0", "fold0-seed1", "fold1-seed1"]
    return out


@pytest.fixture
def in_process() -> Iterator[list[str]]:
    """Runs are made within this process; their names."""
    with runs_made_here() as made:
        yield made


def copy_of(whole: Path, folder: Path) -> Path:
    """With MLflow's database, which takes longer to make."""
    return shutil.copytree(whole.parent, folder / "runs") / whole.name


def metrics_of(folder: Path) -> Any:
    return json.loads((folder / "metrics.json").read_text())


def test_every_fold_and_seed_has_a_run_of_its_own(whole: Path) -> None:
    for fold in range(2):
        for seed in range(2):
            run = RunFolder.open(whole / f"fold{fold}-seed{seed}")
            assert run.info.finished
            assert (run.config.data.fold, run.config.training.seed) == (fold, seed)
    assert "epoch 2/2" in (whole / "fold1-seed0.log").read_text()


def test_runs_are_nested_in_mlflow_beside_those_of_train(whole: Path) -> None:
    parent = json.loads((whole / "cv.json").read_text())["mlflow_run_id"]
    with sqlite3.connect(whole.parent / "mlflow.db") as database:
        query = (
            "SELECT name, status FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid "
            "WHERE key = 'mlflow.parentRunId' AND value = ?"
        )
        nested = dict(database.execute(query, (parent,)).fetchall())
        status = database.execute("SELECT status FROM runs WHERE run_uuid = ?", (parent,))
        assert status.fetchall() == [("FINISHED",)]
        logged = dict(
            database.execute("SELECT key, value FROM metrics WHERE run_uuid = ?", (parent,))
        )
    names = [f"fold{fold}-seed{seed}" for fold in range(2) for seed in range(2)]
    assert nested == dict.fromkeys(names, "FINISHED")
    pooled = metrics_of(whole / "report")
    assert logged["test_auc_image"] == pytest.approx(pooled["image"]["auc"])
    assert logged["test_auc_ci_low_patient"] == pytest.approx(pooled["patient"]["auc_ci_low"])


def test_report_is_of_the_mean_score_and_says_so(whole: Path) -> None:
    """Against scikit-learn, from the runs' own predictions."""
    tables = [
        pd.read_csv(whole / f"fold{fold}-seed{seed}" / "predictions.csv").assign(seed=seed)
        for fold in range(2)
        for seed in range(2)
    ]
    scored = pd.concat(tables)
    tested = scored[scored["split"] == "test"]
    assert (tested.groupby("image_id").size() == 2).all()
    mean = tested.groupby("image_id").agg({"label": "first", "score": "mean"})
    metrics = metrics_of(whole / "report")
    assert metrics["image"]["n"] == len(mean) == 48
    assert metrics["image"]["auc"] == pytest.approx(roc_auc_score(mean["label"], mean["score"]))

    *seeds, average, spread = metrics["context"]["seeds"]
    aucs = []
    for _, rows in tested.groupby("seed"):
        of = [group for _, group in rows.groupby("fold")]
        each = [roc_auc_score(group["label"], group["score"]) for group in of]
        aucs.append(np.average(each, weights=[group["label"].sum() for group in of]))
    assert [row["seed"] for row in seeds] == ["0", "1"]
    assert [row["image"] for row in seeds] == pytest.approx(aucs)
    assert average["image"] == pytest.approx(np.mean(aucs))
    assert spread["image"] == pytest.approx(np.ptp(aucs))

    runs = metrics["context"]["runs"]
    assert [(row["fold"], row["seed"]) for row in runs] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    for row in runs:
        own = pd.read_csv(whole / f"fold{row['fold']}-seed{row['seed']}" / "predictions.csv")
        for part in ("val", "test"):
            rows = own[own["split"] == part]
            expected = roc_auc_score(rows["label"], rows["score"])
            assert row[f"{part}_auc_image"] == pytest.approx(expected)
        assert row["seconds"] > 0
        assert row["epoch"] in (1, 2)
    page = (whole / "report" / "index.html").read_text()
    assert "an ensemble: the mean score of the seeds 0, 1" in page
    assert len(pd.read_csv(whole / "report" / "runs.csv")) == 4
    assert len(pd.read_csv(whole / "report" / "seeds.csv")) == 4


def test_one_seed_reports_what_evaluate_does(
    whole: Path,
    store: Path,
    tmp_path: Path,
    in_process: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the scores that are there: nothing is trained or scored again."""
    copy = copy_of(whole, tmp_path)
    capsys.readouterr()
    prevalence = ("--prevalence", "0.006", "--prevalence-level", "patient")
    assert main(typed(store, copy, *prevalence)) == 0
    assert not in_process
    printed = capsys.readouterr().out
    assert "scored" not in printed
    lines = [line.split() for line in printed.splitlines()]
    assert [line[:2] for line in lines if "".join(line[:2]).isdigit()] == [["0", "0"], ["1", "0"]]
    folds = [str(copy / f"fold{fold}-seed0") for fold in range(2)]
    evaluated = tmp_path / "evaluated"
    assert main(["evaluate", *folds, "--out", str(evaluated), *prevalence]) == 0
    ours, theirs = metrics_of(copy / "report"), metrics_of(evaluated)
    assert ours["computation"]["prevalence"] == 0.006
    for name in (*LEVELS, "folds", "strata", "counts", "computation"):
        assert ours[name] == theirs[name], name
    for name in ("predictions.csv", "predictions_breast.csv"):
        assert (copy / "report" / name).read_text() == (evaluated / name).read_text()


class KilledError(Exception):
    pass


@pytest.mark.parametrize("broken", ["fold0-seed0", "fold1-seed0"])
def test_interrupted_and_gone_on_with_equals_unbroken(
    whole: Path,
    store: Path,
    in_process: list[str],
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
) -> None:
    out = whole.parent / f"broken in {broken}"
    sample, save = PatchSampler.for_training, CheckpointWriter.save

    def save_at_once(self: CheckpointWriter, last: Any) -> None:
        save(self, last)
        self.flush(last)

    def sample_until_killed(self: PatchSampler, *arguments: Any) -> Any:
        # In the second epoch, then.
        if (out / broken / "last.safetensors").exists():
            raise KilledError
        return sample(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(CheckpointWriter, "save", save_at_once)
        patch.setattr(PatchSampler, "for_training", sample_until_killed)
        main(typed(store, out))
    assert in_process[-1] == broken
    assert RunFolder.open(out / broken).info.finished is None
    assert not (out / "report").exists()
    begun = list(in_process)
    assert main(typed(store, out)) == 0
    # What was finished is not made again.
    assert in_process[len(begun) :] == [broken] + ["fold1-seed0"] * (broken == "fold0-seed0")
    for fold in range(2):
        name = f"fold{fold}-seed0"
        for file in ("model.safetensors", "last.safetensors"):
            expected = load_file(whole / name / file)
            for key, tensor in load_file(out / name / file).items():
                assert torch.equal(tensor, expected[key]), (name, file, key)
        scores = [
            pd.read_csv(folder / name / "predictions.csv")["score"] for folder in (whole, out)
        ]
        np.testing.assert_allclose(*scores, atol=1e-6)


def test_other_checkpoint_and_a_store_that_has_moved(
    whole: Path, store: Path, tmp_path: Path, in_process: list[str]
) -> None:
    copy = copy_of(whole, tmp_path)
    moved = shutil.copytree(store, tmp_path / "moved")
    assert main(typed(moved, copy, "--checkpoint", "last")) == 0
    assert not in_process
    assert [row["epoch"] for row in metrics_of(copy / "report")["context"]["runs"]] == [2, 2]
    told = json.loads((copy / "fold0-seed0" / "predictions.json").read_text())
    assert (told["checkpoint"], told["epoch"]) == ("last", 2)
    assert json.loads((copy / "cv.json").read_text())["store"] == str(moved)


def test_scores_of_other_weights_of_the_same_epoch_are_not_taken(
    whole: Path, store: Path, tmp_path: Path, in_process: list[str]
) -> None:
    """As where a run was trained anew, or its weights restored from a copy."""
    copy = copy_of(whole, tmp_path)
    run, other = copy / "fold0-seed0", copy / "fold0-seed1"
    shutil.copyfile(other / "model.safetensors", run / "model.safetensors")
    assert main(typed(store, copy, "--seeds", "2")) == 0
    assert not in_process
    scores, expected = (pd.read_csv(one / "predictions.csv")["score"] for one in (run, other))
    np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lr", "0.1"], "training.lr was 0.001 and is now 0.1;"),
        (["--keep", "0.5"], "patch_dropout.keep_rate was 0.25 and is now 0.5;"),
        (["--split", "three"], "data.split was two and is now three;"),
        (
            ["--weights", "timm", "--epochs", "3"],
            "model.weights was None and is now timm; training.ep",
        ),
    ],
)
def test_other_settings_are_refused_by_name(
    whole: Path,
    store: Path,
    words: list[str],
    said: str,
    in_process: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(path.stat().st_mtime_ns for path in whole.rglob("*"))
    assert main(typed(store, whole, *words)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "was started differently" in error
    assert error.count("\n") == 1
    assert not in_process
    assert sorted(path.stat().st_mtime_ns for path in whole.rglob("*")) == before


def test_other_split_of_the_same_name_is_refused(
    whole: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(store, tmp_path / "store")
    first = pd.read_csv(store / "splits" / "two.csv", comment="#")
    # So few women can be dealt out the same way by another seed.
    for seed in range(1, 100):
        for file in (other / "splits").glob("two.*"):
            file.unlink()
        split_store(open_store(other), name="two", folds=2, val=0.3, seed=seed, say=lambda _: None)
        if not pd.read_csv(other / "splits" / "two.csv", comment="#").equals(first):
            break
    assert main(typed(other, whole)) == 2
    assert "the split 'two' is a different one" in capsys.readouterr().err


def test_targets_that_changed_are_refused_and_unknown_of_earlier_versions(
    whole: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(whole, tmp_path)
    info = json.loads((copy / "cv.json").read_text())
    (copy / "cv.json").write_text(json.dumps({**info, "targets_hash": "0"}))
    assert main(typed(store, copy)) == 2
    assert "values of target_column or balance_within have changed" in capsys.readouterr().err
    del info["targets_hash"]
    (copy / "cv.json").write_text(json.dumps(info))
    assert main(typed(store, copy)) == 0


def test_a_split_that_lost_images_is_not_to_be_restored(
    whole: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smaller = shutil.copytree(store, tmp_path / "store")
    images = read_split(smaller / "splits", "two").table["image_id"]
    remove_from_split(smaller / "splits", "two", images[:1])
    assert main(typed(smaller, whole)) == 2
    error = capsys.readouterr().err
    assert "images were removed from the split 'two' (mammo-pd forget)" in error
    assert "another folder with --out" in error
    assert "restore" not in error


def test_split_without_folds_and_other_folders_are_refused(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed(store, tmp_path / "cv", "--split", "none")) == 2
    assert f"mammo-pd split --store {store} --folds 5" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    assert main(typed(store, tmp_path / "mine")) == 2
    assert "is not a cross-validation" in capsys.readouterr().err


@pytest.mark.slow
def test_folds_are_trained_side_by_side(whole: Path, store: Path, tmp_path: Path) -> None:
    """As typed, two processes at a time: the same as one after the other."""
    out = tmp_path / "runs" / "cv"
    assert by_process(typed(store, out, "--parallel", "2")).returncode == 0
    for fold in range(2):
        assert "epoch 2/2" in (out / f"fold{fold}-seed0.log").read_text()
        tables = [
            pd.read_csv(folder / f"fold{fold}-seed0" / "predictions.csv")["score"]
            for folder in (whole, out)
        ]
        np.testing.assert_allclose(*tables, atol=1e-6)


def test_processes_are_started_as_their_parent_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """With -m, or by a user's program, which alone knows its objectives."""
    own = sys.modules["__main__"]
    monkeypatch.setattr(own, "__spec__", find_spec("mammo_pd.__main__"))
    assert cv._this_program() == (sys.executable, "-m", "mammo_pd")
    monkeypatch.setattr(own, "__spec__", None)
    monkeypatch.setattr(sys, "argv", ["theirs.py", "cv"])
    assert cv._this_program() == (sys.executable, str(Path("theirs.py").resolve()))


@pytest.mark.slow
def test_mistake_that_all_runs_share_ends_with_the_first(store: Path, tmp_path: Path) -> None:
    """What the run's process says is read from its log."""
    (tmp_path / "none.safetensors").write_bytes(b"no weights")
    weights = ["--weights", str(tmp_path / "none.safetensors")]
    done = by_process(typed(store, tmp_path / "cv", *weights))
    error = done.stderr
    assert done.returncode == 2
    assert "2 of 2 runs not trained; fold0-seed0 failed: the weights file" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "cv" / "fold1-seed0.log").exists()


def test_what_is_refused_is_mended_in_the_same_place(store: Path, tmp_path: Path) -> None:
    """Nothing is written of what can be refused before; the rest binds once a run is begun."""

    def plan(**changes: object) -> CrossValidation:
        config = small(data__split="two", training__epochs=1, **changes)
        return CrossValidation.plan(tmp_path / "runs" / "cv", store, config)

    for wrong, said in (
        ({"data__res": 1001}, "1001 is not a multiple"),
        ({"model__name": "none_vit"}, "no model 'none_vit'"),
        ({"training__batch_size": 3, "training__fusion": "exam"}, "size 3 is too small"),
        ({"device__devices": 3}, "shared evenly by 3 devices"),
        ({"training__target_column": "none"}, "'none' is not in the store"),
    ):
        with pytest.raises(InputError, match=said):
            plan(**wrong)
    assert not (tmp_path / "runs").exists()
    with plan(device__precision="weird").begun() as refused:
        refused.update(mlflow_run_id="of its refusal")
    with (
        plan().begun() as mended,
        pytest.raises(InputError, match="another process is using"),
        plan().begun(),
    ):
        pass
    assert mended.info.mlflow_run_id is None
    assert CrossValidation.open(mended.path).config.device.precision == "auto"
    mended.run_path(0, 0).mkdir()
    (mended.run_path(0, 0) / "run.json").touch()
    message = r"was started differently: training\.lr was 0\.0003 and is now 1\.0; restore that"
    with pytest.raises(InputError, match=message), plan(training__lr=1.0).begun():
        pass


def test_cross_validation_of_an_earlier_version_goes_on_with_its_best_epochs(
    whole: Path,
    store: Path,
    tmp_path: Path,
    in_process: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Begun before there was a choice, with patience; neither trained nor scored anew."""
    copy = copy_of(whole, tmp_path)
    for file in copy.rglob("config.yaml"):
        written = re.sub(r"\n  choose_epoch: .*", "", file.read_text())
        file.write_text(written.replace("patience: null", "patience: 5"))
    for file in copy.rglob("model.safetensors"):
        file.rename(file.with_name("best.safetensors"))
    for file in copy.rglob("predictions.json"):
        file.write_text(file.read_text().replace('"model"', '"best"'))
    with closing(sqlite3.connect(copy.parent / "mlflow.db")) as database, database:
        keys = "('training.choose_epoch', 'training.patience')"
        database.execute(f"DELETE FROM params WHERE key IN {keys}")
    now = ("--set", "training.patience=5", "--seeds", "2")
    capsys.readouterr()
    with pytest.raises(InputError, match="choose_epoch was best and is now last"):
        last = CrossValidation.open(copy)
        training = last.config.training.replace(patience=None, choose_epoch="last")
        planned = CrossValidation.plan(copy, store, last.config.replace(training=training))
        with planned.begun():
            pass
    words = [*typed(store, copy, *now), "--set", "training.choose_epoch=best"]
    assert main(words) == 0
    assert not in_process
    assert "scored" not in capsys.readouterr().out
    assert not list(copy.rglob("model.safetensors"))
    # The next command, which trains one model with the same settings.
    assert load_config(copy / "config.yaml").training.choose_epoch == "best"


def test_run_that_fails_later_does_not_keep_the_others(
    store: Path,
    tmp_path: Path,
    in_process: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train_folds, "epochs_done", lambda *_: 1)
    (tmp_path / "none.safetensors").write_bytes(b"no weights")
    weights = ["--weights", str(tmp_path / "none.safetensors")]
    assert main(typed(store, tmp_path / "cv", *weights)) == 2
    assert in_process == ["fold0-seed0", "fold1-seed0"]


def test_several_targets_have_a_report_each_and_their_aucs_side_by_side(
    store: Path, tmp_path: Path, in_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    copy, out = shutil.copytree(store, tmp_path / "store"), tmp_path / "runs" / "cv"
    table = pq.read_table(copy / "manifest.parquet")
    healthy = pa.array([1 - label for label in table["label"].to_pylist()])
    pq.write_table(table.append_column("healthy", healthy), copy / "manifest.parquet")
    words = typed(copy, out, "--split", "two", "--epochs", "1")
    assert main([*words, "--target", "label", "--target", "healthy"]) == 0
    targets = ["label", "healthy"]
    told = capsys.readouterr().out
    assert f"wrote {out / 'report'}: targets.csv, and one report folder for each of " in told
    side_by_side = pd.read_csv(out / "report" / "targets.csv")
    assert list(side_by_side["target"].unique()) == targets
    for target, rows in side_by_side.groupby("target"):
        metrics = json.loads((out / "report" / str(target) / "metrics.json").read_text())
        for row in rows.to_dict("records"):
            found = metrics[row["level"]]
            # A cell is empty where a level cannot be judged.
            auc = math.nan if found["auc"] is None else found["auc"]
            assert row["n"] == found["n"]
            assert row["auc"] == pytest.approx(auc, nan_ok=True)
