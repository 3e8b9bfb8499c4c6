import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import build_backbone
from mammo_pd.cli.app import main
from mammo_pd.cli.scored_runs import context_of, provenance_of
from mammo_pd.config import RunConfig, dump_config, load_config
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.split_store import split_store
from mammo_pd.data.splits import read_split, remove_from_split
from mammo_pd.data.store import open_store
from mammo_pd.errors import InputError
from mammo_pd.inference.predict import Scored, join_folds, load_model, predict
from mammo_pd.inference.score import score_dataset
from mammo_pd.patches.sampler import DRAWS, PatchSampler
from mammo_pd.report.evaluate import evaluate_predictions
from mammo_pd.terms import Level
from mammo_pd.training.batch_size import largest_batch, step_memory
from mammo_pd.training.devices import count_devices, make_fabric
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.setup import RunSetup
from mammo_pd.training.train import reopen_run, resume, train

SMALL = {
    "data.res": "128x96",
    "data.workers": 1,
    "model.name": "test_vit",
    "training.epochs": 4,
    "training.batch_size": 8,
    "device.accelerator": "cpu",
}


def small(**changes: object) -> RunConfig:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(None, {**SMALL, **named})


def silent(line: str) -> None:
    pass


def quiet(store: Path, runs: Path, config: RunConfig) -> Path:
    run = train(store, runs, config, say=silent)
    assert run is not None
    return run.path


def resumed(folder: Path, store: Path | None = None) -> Path:
    run = resume(folder, store=store, say=silent)
    assert run is not None
    return run.path


def scored_of(folder: Path, **options: Any) -> Scored:
    return predict(RunFolder.open(folder), say=silent, **options)


@pytest.fixture(scope="module")
def run(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quiet(phantom_store, tmp_path_factory.mktemp("runs"), small())


def test_run_folder_says_everything(run: Path, phantom_store: Path) -> None:
    info = RunFolder.open(run).info
    assert info.img_size == (128, 96)
    assert (info.num_tokens, info.num_keep) == (48, 12)
    assert info.finished
    assert RunFolder.open(run).config == small()
    history = pd.read_csv(run / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert np.isfinite(history[["train_loss", "val_auc_image", "val_auc_breast"]]).all().all()
    assert (run / "model.safetensors").is_file()
    assert RunFolder.latest(run.parent).path == run


def test_mlflow_has_parameters_metrics_and_hashes(run: Path) -> None:
    info = RunFolder.open(run).info
    with sqlite3.connect(run.parent / "mlflow.db") as database:

        def table(query: str) -> dict[str, str]:
            return dict(database.execute(query, (info.mlflow_run_id,)).fetchall())

        parameters = table("SELECT key, value FROM params WHERE run_uuid = ?")
        tags = table("SELECT key, value FROM tags WHERE run_uuid = ?")
        steps = database.execute(
            "SELECT key, count(*) FROM metrics WHERE run_uuid = ? GROUP BY key",
            (info.mlflow_run_id,),
        ).fetchall()
    assert parameters["patch_dropout.keep_rate"] == "0.25"
    assert parameters["num_keep"] == "12"
    assert tags["split_hash"] == info.split_hash
    assert tags["store_fingerprint"] == info.store_fingerprint
    assert tags["environment.torch"] == torch.__version__
    counts = dict(steps)
    assert counts["val_auc_image"] == 4
    assert counts["step_loss"] >= 4


def client_of(run: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")


def test_mlflow_lists_the_data_that_a_run_used(run: Path) -> None:
    info = RunFolder.open(run).info
    assert info.mlflow_run_id is not None
    inputs = client_of(run).get_run(info.mlflow_run_id).inputs.dataset_inputs
    used = {one.tags[0].value: one.dataset for one in inputs}
    assert used.keys() == {"training", "validation"}
    scored = pd.read_csv(scored_of(run).file)
    images = (scored["split"] == "val").sum()
    assert json.loads(used["validation"].profile)["images"] == images
    assert info.split_hash in used["training"].source
    assert used["training"].digest == used["validation"].digest
    for dataset in used.values():
        assert info.store not in f"{dataset.name}{dataset.source}{dataset.profile}"


def test_model_in_mlflow_gives_the_scores_of_the_run(run: Path, phantom_store: Path) -> None:
    """Loaded from MLflow alone, and called on what the store holds."""
    info = RunFolder.open(run).info
    client = client_of(run)
    (output,) = client.get_run(info.mlflow_run_id).outputs.model_outputs
    mlflow.set_tracking_uri(f"sqlite:///{run.parent / 'mlflow.db'}")
    try:
        model = mlflow.pyfunc.load_model(f"models:/{output.model_id}")
    finally:
        mlflow.set_tracking_uri(None)
    table = scored_of(run).table.set_index("image_id")["score"]
    paths = open_store(phantom_store)
    rows = read_manifest(paths.manifest)
    dataset = MammogramDataset(paths, rows[rows["image_id"].isin(table.index)], info.img_size)
    for row, image_id in list(enumerate(dataset.image_ids))[:3]:
        batch = dataset.read([row])
        shape = (1, int(batch.heights), int(batch.widths))
        pixels = batch.pixels.numpy().view(np.uint16).reshape(shape)
        assert model.predict(pixels).shape == (1, 1)
        assert model.predict(pixels).item() == pytest.approx(table[image_id], abs=1e-5)
    assert model.metadata.signature.outputs.inputs[0].shape == (-1, 1)


@pytest.mark.usefixtures("blank_figures")
def test_report_is_kept_beside_its_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run)]) == 0
    assert "not in MLflow" not in capsys.readouterr().out
    info = RunFolder.open(run).info
    kept = {file.path for file in client_of(run).list_artifacts(info.mlflow_run_id, "report")}
    assert {"report/index.html", "report/metrics.json", "report/roc.png"} <= kept
    # Not what has a row for each image or patient.
    assert not any("predictions" in path or "errors" in path for path in kept)
    # A server that is away costs a warning.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{run / 'run.json'}")
    assert main(["evaluate", str(run)]) == 0
    assert "the report is not in MLflow" in capsys.readouterr().out


class KilledError(Exception):
    pass


@contextmanager
def killed_at_step(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What trains herein is killed as it begins this step, counted from 0 over all epochs."""
    sample, calls = PatchSampler.for_training, iter(range(1000))

    def sample_until_killed(self: PatchSampler, *arguments: Any) -> Any:
        if next(calls) == number:
            raise KilledError
        return sample(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PatchSampler, "for_training", sample_until_killed)
        with pytest.raises(KilledError):
            yield


EVERYTHING = {
    "training__ema_decay": 0.9,
    "training__positive_share": 0.5,
    "training__frozen_epochs": 2,
    "training__layer_decay": 0.7,
    "training__label_smoothing": 0.1,
    "device__precision": "bf16-mixed",
    "device__residual": "bfloat16",
}


@pytest.mark.parametrize("recipe", [{}, EVERYTHING], ids=["plain", "with everything"])
def test_resumed_run_equals_an_unbroken_one(
    recipe: dict[str, object], phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two steps of the third epoch, with a loader process, and gone on with."""
    config = small(data__workers=1, model__drop_path_rate=0.2, **recipe)
    run = quiet(phantom_store, tmp_path / "whole", config)
    with killed_at_step(9, monkeypatch):
        quiet(phantom_store, tmp_path / "broken", config)
    broken = RunFolder.latest(tmp_path / "broken")
    assert broken.info.finished is None
    said: list[str] = []
    predict(broken, say=said.append)
    assert any("did not finish training" in line for line in said)
    with killed_at_step(1, monkeypatch):
        quiet(phantom_store, tmp_path / "begun", config)
    begun = RunFolder.latest(tmp_path / "begun")
    # Not announced as scored and then refused.
    with pytest.raises(InputError, match=f"continue it with: mammo-pd train --resume {begun.path}"):
        predict(begun, say=lambda line: pytest.fail(line))
    again = resumed(broken.path)
    assert again == broken.path
    for name in ("model.safetensors", "last.safetensors"):
        whole, after = load_file(run / name), load_file(again / name)
        assert whole.keys() == after.keys()
        for key, tensor in whole.items():
            assert torch.equal(tensor, after[key]), (name, key)
    columns = ["epoch", "train_loss", "val_auc_image", "val_auc_breast"]
    histories = [pd.read_csv(folder / "history.csv")[columns] for folder in (run, again)]
    pd.testing.assert_frame_equal(*histories)


def test_run_killed_before_its_first_step_is_resumed_from_the_start(
    run: Path, phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_at_step(0, monkeypatch):
        quiet(phantom_store, tmp_path, load_config(run / "config.yaml"))
    broken = RunFolder.latest(tmp_path).path
    with pytest.raises(InputError, match="stopped before its first checkpoint"):
        scored_of(broken)
    again = resumed(broken)
    expected = load_file(run / "last.safetensors")
    for key, tensor in load_file(again / "last.safetensors").items():
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize(
    ("share", "one_step"), [(20.0, True), (1.0, True), (0.8, True), (0.4, False)]
)
def test_batch_that_makes_an_epoch_of_one_step_is_spoken_of(
    phantom_store: Path, share: float, one_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was measured, too; where the images end first, and not the memory, it says so."""
    images = len(RunSetup.build(phantom_store, small(), say=silent).train_set)
    size = int(images * share)
    said: list[str] = []
    monkeypatch.setattr("mammo_pd.training.setup.find_batch_size", lambda _: size)
    RunSetup.build(phantom_store, small(training__batch_size="auto"), say=said.append).introduce()
    of = f"one step of {min(size, images)} of the {images} training images"
    assert any(of in line for line in said) == one_step
    assert said[0] == f"batch size {size}: " + (
        "all training images fit" if share == 1.0 else "the largest that fits"
    )


def test_long_epochs_and_validations_tell_a_log_how_far_they_are(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every minute, where there is no terminal for a bar; here at every step."""
    monkeypatch.setattr("mammo_pd.progress._EVERY", 0)
    said: list[str] = []
    run = train(phantom_store, tmp_path, small(training__epochs=1), say=said.append)
    assert run is not None
    steps = [line for line in said if line.startswith("epoch 1: ")]
    count = len(steps)
    assert count > 1
    assert steps[-1].startswith(f"epoch 1: {count} of {count} steps, ")
    validated = [line for line in said if line.startswith("validation: ")]
    images = validated[-1].partition(" of ")[2].split()[0]
    assert validated[-1].startswith(f"validation: {images} of {images} images, ")


class LastFirst(PatchSampler):
    """Keeps the patches at the end of the grid, whatever the keys are."""

    def draw(self, images: Any, keys: Any, placement: Any, num_keep: int) -> torch.Tensor:
        rows, columns = self.grid_size
        last = torch.arange(rows * columns - num_keep, rows * columns, device=keys.device)
        return last.expand(len(keys), -1)


@pytest.fixture
def own_draw(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(DRAWS, "last_first", LastFirst)
    return "last_first"


def test_draw_of_ones_own_trains_is_told_and_resumed_by_its_name(
    own_draw: str, phantom_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--store", str(phantom_store), "--draw", own_draw, "--res", "64x48", "--epochs", "2"]
    words += ["--model", "test_vit", "--batch-size", "8", "--runs", str(tmp_path / "runs")]
    assert main(["train", *words]) == 0
    run = RunFolder.latest(tmp_path / "runs")
    assert type(RunSetup.build(phantom_store, run.config, say=silent).sampler) is LastFirst
    assert resume(run.path, say=silent).path == run.path
    capsys.readouterr()
    assert main(["show", str(run.chosen)]) == 0
    assert "last_first" in capsys.readouterr().out
    del DRAWS[own_draw]
    # Where every patch is read, a program without the draw will do.
    assert main(["evaluate", str(run.path)]) == 0
    page = (run.path / "report" / "index.html").read_text(encoding="utf-8")
    assert "(PatchDropout, last_first draw)" in page
    capsys.readouterr()
    assert main(["train", *words]) == 2
    told = capsys.readouterr().err
    assert "no draw 'last_first'; choose one of uniform, tissue, grid; a draw of your own" in told
    with pytest.raises(InputError, match="no draw 'last_first'"):
        reopen_run(run.path, say=silent)


def test_draw_of_ones_own_is_refused_for_windows(
    own_draw: str, phantom_store: Path, tmp_path: Path
) -> None:
    config = small(model__name="swin_tiny_patch4_window7_224", data__res="224x224")
    config = config.replace(patch_dropout=config.patch_dropout.replace(draw=own_draw))
    with pytest.raises(InputError, match="--draw last_first chooses patches one by one"):
        RunSetup.build(phantom_store, config, say=silent)


def test_run_that_began_with_weights_is_resumed_without_them(
    run: Path, phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Path(shutil.copy(run / "model.safetensors", tmp_path / "w.safetensors"))
    config = small(model__weights=str(weights), training__epochs=2)
    with killed_at_step(5, monkeypatch):
        quiet(phantom_store, tmp_path / "runs", config)
    broken = RunFolder.latest(tmp_path / "runs").path
    assert (broken / "last.safetensors").is_file()
    weights.unlink()
    assert RunFolder.open(resumed(broken)).info.finished


def test_finished_run_that_is_resumed_stays_as_it_is(run: Path, phantom_store: Path) -> None:
    before = (run / "last.safetensors").read_bytes()
    resumed(run, phantom_store)
    assert (run / "last.safetensors").read_bytes() == before


def test_dropped_patches_are_not_touched_in_training_and_none_in_evaluation(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[bool, int]] = set()
    forward = Backbone.forward

    def watch(self: Backbone, patches: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        seen.add((self.training, patches.shape[1]))
        return forward(self, patches, *others)

    monkeypatch.setattr(Backbone, "forward", watch)
    folder = quiet(phantom_store, tmp_path, small(training__epochs=1))
    scored_of(folder)
    # Validation after an epoch reads as few; the best epoch is scored on all.
    assert seen == {(True, 12), (False, 12), (False, 48)}


SWIN = {"model__name": "swin_tiny_patch4_window7_224", "data__res": "56x56"}


def test_a_swin_run_draws_the_same_rows_and_columns_of_every_window(phantom_store: Path) -> None:
    setup = RunSetup.build(phantom_store, small(**SWIN), say=silent)
    batch = setup.train_set.read([0, 1])
    keys = torch.tensor([1, 2])
    patches, positions = setup.sampler.for_training(batch, keys, setup.num_keep)
    assert patches.shape == (2, 36, 16)
    for row in positions:
        assert len(set((row // 14 % 7).tolist())) == len(set((row % 7).tolist())) == 3
    assert torch.isfinite(setup.model(patches, positions, keys)).all()


@pytest.mark.slow
def test_swin_reads_the_same_rows_and_columns_of_windows_and_evaluates_on_all(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[bool, int]] = set()
    forward = Backbone.forward

    def watch(self: Backbone, patches: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        seen.add((self.training, patches.shape[1]))
        return forward(self, patches, *others)

    monkeypatch.setattr(Backbone, "forward", watch)
    said: list[str] = []
    run = train(phantom_store, tmp_path, small(training__epochs=1, **SWIN), say=said.append)
    assert run is not None
    assert (
        "keep 0.25: the same 3 of 7 rows and columns of every window, 18 % of the patches" in said
    )
    assert scored_of(run.path).table["score"].between(0, 1).all()
    assert seen == {(True, 36), (False, 36), (False, 196)}


def test_what_windows_do_not_allow_is_refused_before_a_run_begins(
    phantom_store: Path, tmp_path: Path
) -> None:
    for changes, message in (
        ({"data__res": "64x56"}, "multiple of 28 pixels"),
        ({"patch_dropout__draw": "grid"}, "--draw grid chooses"),
        ({"patch_dropout__keep_rate": "0.5:0.01"}, "0.01 leaves one patch in each window"),
    ):
        with pytest.raises(InputError, match=message):
            train(phantom_store, tmp_path, small(**{**SWIN, **changes}), say=silent)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_resumed_swin_equals_an_unbroken_one(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(training__epochs=3, model__drop_path_rate=0.2, **SWIN)
    run = quiet(phantom_store, tmp_path / "whole", config)
    with killed_at_step(9, monkeypatch):
        quiet(phantom_store, tmp_path / "broken", config)
    again = resumed(RunFolder.latest(tmp_path / "broken").path)
    whole, after = (load_file(folder / "last.safetensors") for folder in (run, again))
    assert whole.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in whole.items())


def test_predictions_follow_the_contract(run: Path) -> None:
    scored = scored_of(run)
    table = pd.read_csv(scored.file)
    head = ["image_id", "patient_id", "exam_id", "laterality", "view", "label", "score", "split"]
    assert table.columns[: len(head)].tolist() == head
    assert set(table["split"]) == {"val", "test"}
    assert table["score"].between(0, 1).all()
    assert {"density", "vendor", "lesion"} <= set(table.columns)
    # The validation AUC of the best epoch, on all patches, is found again from the written scores.
    val = table[table["split"] == "val"]
    from sklearn.metrics import roc_auc_score

    assert roc_auc_score(val["label"], val["score"]) == pytest.approx(
        RunFolder.open(run).info.validation["val_auc_image"]
    )
    context = context_of([scored])
    assert context.phantom
    assert context.label_definition == RunFolder.open(run).info.label_definition
    assert context.split_hash == RunFolder.open(run).info.split_hash


def test_scores_do_not_depend_on_how_they_are_batched(run: Path, phantom_store: Path) -> None:
    folder = RunFolder.open(run)
    rows = read_manifest(phantom_store / "manifest.parquet")
    # Without labels: scoring needs none.
    dataset = MammogramDataset(open_store(phantom_store), rows.drop(columns="label"), (128, 96))
    objective = build_objective(folder.config.training)
    scores = []
    for images_at_once in (8, 3):
        model, backbone, *_ = load_model(folder, objective)
        sampler = PatchSampler((128, 96), backbone.patch_size)
        fabric = make_fabric(folder.config)
        scores.append(
            score_dataset(fabric, model, sampler, objective, dataset, images_at_once=images_at_once)
        )
    assert scores[0].shape == (len(rows), 1)
    np.testing.assert_allclose(*scores, atol=1e-6)


def test_folds_are_joined_out_of_fold(phantom_store: Path, tmp_path: Path) -> None:
    paths = open_store(phantom_store)
    split_store(paths, name="three", folds=3, say=silent)
    folders = [
        quiet(
            phantom_store,
            tmp_path,
            small(data__split="three", data__fold=fold, training__epochs=1),
        )
        for fold in range(3)
    ]
    scored = [scored_of(folder) for folder in folders]
    table = join_folds(scored)
    assert table["image_id"].is_unique
    assert len(table) == 48
    assert sorted(set(table["fold"])) == [0, 1, 2]
    with pytest.raises(InputError, match="folds"):
        join_folds([scored[0], scored[0]])


def _of_findings(run: Path) -> None:
    config = load_config(run / "config.yaml")
    training = config.training.replace(objective="findings", targets=("label", "implant"))
    (run / "config.yaml").write_text(dump_config(config.replace(training=training)))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda _: None, "the runs test the same images"),
        (lambda run: edit(run / "run.json", lambda info: info.update(fold=1)), None),
        (
            lambda run: edit(run / "run.json", lambda info: info.update(split_hash="0")),
            "different splits",
        ),
        (
            lambda run: edit(run / "run.json", lambda info: info.update(labels_hash="0", fold=1)),
            "the labels in",
        ),
        (
            lambda run: (
                edit(run / "run.json", lambda info: info.update(finished=None, fold=1)),
                (run / "model.safetensors").unlink(),
            ),
            "stopped before its first checkpoint",
        ),
        (
            lambda run: (
                edit(run / "run.json", lambda info: info.update(fold=1)),
                _of_findings(run),
            ),
            "different targets",
        ),
    ],
)
def test_runs_that_cannot_be_judged_together_are_refused_before_any_is_scored(
    spoil: Callable[[Path], object],
    said: str | None,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class ScoredError(Exception):
        pass

    def score(*_: object, **__: object) -> None:
        raise ScoredError

    monkeypatch.setattr("mammo_pd.inference.predict.score_dataset", score)
    folders = [shutil.copytree(run, tmp_path / name) for name in ("one", "two")]
    spoil(folders[1])
    words = ["evaluate", *map(str, folders)]
    if said is None:
        with pytest.raises(ScoredError):
            main(words)
    else:
        assert main(words) == 2
        assert said in capsys.readouterr().err


def test_weights_of_a_run_start_another(run: Path, phantom_store: Path) -> None:
    weights = str(run / "model.safetensors")
    model = build_backbone("test_vit", (128, 96), weights=weights)
    trained = load_file(weights)
    assert torch.equal(
        model.timm_model.blocks[0].mlp.fc1.weight, trained["blocks.0.mlp.fc1.weight"]
    )


def refusals() -> list[tuple[str, dict[str, object], str]]:
    return [
        ("other split", {"data__split": "nine"}, r"no split 'nine'.*--name nine"),
        ("fold of no folds", {"data__fold": 1}, "has no folds"),
        ("image size", {"data__res": 100}, "the nearest are 96 and 112"),
        ("model", {"model__name": "resnet18"}, "is a ResNet"),
        ("residual", {"device__residual": "bfloat16"}, "32-true; give --set device.precision"),
        ("no GPU", {"device__accelerator": "cuda"}, "Lightning Fabric cannot use"),
    ]


@pytest.mark.parametrize(("changes", "message"), [r[1:] for r in refusals()])
def test_what_cannot_be_trained_is_refused(
    phantom_store: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    if "Fabric" in message and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match=message):
        quiet(phantom_store, tmp_path, small(**changes))
    assert not list(tmp_path.glob("*/run.json"))


def edit(file: Path, change: Callable[[dict[str, object]], object]) -> None:
    info = json.loads(file.read_text())
    change(info)
    file.write_text(json.dumps(info))


def test_another_split_than_the_trained_one_is_refused_unless_told(
    run: Path, phantom_store: Path, tmp_path: Path
) -> None:
    copy = tmp_path / run.name
    copy.mkdir()
    for file in run.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    edit(copy / "run.json", lambda info: info.update(split_hash="0" * 64))
    with pytest.raises(InputError, match="--accept-other-split"):
        scored_of(copy)
    scored = scored_of(copy, accept_other_split=True)
    assert len(scored.table)
    # Whoever reads the report is told, with the result.
    assert scored_of(run).caveats == context_of([scored_of(run)]).caveats == []
    assert "may have learnt from patients who are evaluated" in scored.caveats[0]
    context = context_of([scored])
    assert context.split_hash == scored.cohort.split.hash != "0" * 64
    metrics = evaluate_predictions(scored.table, tmp_path / "report", context=context)
    assert all(metrics[level]["remarks"][0] == scored.caveats[0] for level in Level)
    with pytest.raises(InputError, match="started on another split"):
        resumed(copy, phantom_store)
    edit(copy / "run.json", lambda info: info.update(store_fingerprint="x"))
    with pytest.raises(InputError, match="store made with other settings"):
        scored_of(copy, accept_other_split=True)


def test_a_split_that_lost_images_is_no_other_one(
    run: Path, phantom_store: Path, tmp_path: Path
) -> None:
    store, copy = tmp_path / "store", tmp_path / run.name
    shutil.copytree(phantom_store, store)
    shutil.copytree(run, copy)
    tested = read_split(store / "splits", "default").table.query("split == 'test'")
    remove_from_split(store / "splits", "default", tested["image_id"][:1])
    # What was removed is not to be restored, and nobody is on another side.
    for act in (scored_of, resumed):
        with pytest.raises(
            InputError, match=r"images were removed.*\(mammo-pd forget\)"
        ) as refused:
            act(copy, store=store)
        assert "restore" not in str(refused.value)
        remedy = "--accept-other-split" if act is scored_of else "start a new run"
        assert remedy in str(refused.value)
    caveats = scored_of(copy, store=store, accept_other_split=True).caveats
    assert not any("another split" in caveat for caveat in caveats)
    assert any("or images were removed" in caveat for caveat in caveats)


def test_a_woman_of_several_ids_is_one_patient_in_predictions_and_flow(
    run: Path, phantom_store: Path, tmp_path: Path
) -> None:
    # An archive in which each image has a patient ID of its own; those of an exam are one woman's.
    store, copy = tmp_path / "store", tmp_path / run.name
    shutil.copytree(phantom_store, store)
    shutil.copytree(run, copy)
    manifest = pq.read_table(store / "manifest.parquet")
    place = manifest.schema.get_field_index("patient_id")
    own = manifest.set_column(place, manifest.schema.field(place), manifest["image_id"])
    pq.write_table(own, store / "manifest.parquet")
    scored = scored_of(copy, store=store)
    women = scored.table.groupby("exam_id")["patient_id"]
    assert (women.nunique() == 1).all()
    assert scored.table["patient_id"].nunique() == women.ngroups < len(scored.table)
    flow = {row["step"]: row for row in context_of([scored]).flow}
    tested = scored.table[scored.table["split"] == "test"]
    assert flow["test"]["patients"] == tested["patient_id"].nunique()


def test_labels_that_changed_under_a_run_are_refused(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    edit(copy / "run.json", lambda info: info.update(labels_hash="0" * 64))
    with pytest.raises(InputError, match=r"labels in .* have changed"):
        scored_of(copy)
    with pytest.raises(InputError, match=r"labels in .* have changed"):
        resumed(copy)
    scored = scored_of(copy, accept_other_split=True)
    assert "labels are not those that the run" in scored.caveats[0]
    told = provenance_of([scored])["labels, SHA-256"]
    assert told == RunFolder.open(run).info.labels_hash


def _with_column(store: Path, name: str, values: list[object] | None) -> None:
    """Give the manifest a column, as a label table would; None takes it away."""
    manifest = pq.read_table(store / "manifest.parquet")
    if name in manifest.column_names:
        manifest = manifest.drop_columns([name])
    if values is not None:
        manifest = manifest.append_column(name, pa.array(values))
    pq.write_table(manifest, store / "manifest.parquet")


@pytest.mark.parametrize("change", ["one value", "the column is gone"])
@pytest.mark.parametrize(
    ("column", "settings"),
    [
        ("soft", {"training__target_column": "soft"}),
        ("ward", {"training__positive_share": 0.4, "training__balance_within": "ward"}),
    ],
)
def test_targets_and_groups_that_changed_under_a_run_are_refused(
    column: str,
    settings: dict[str, object],
    change: str,
    phantom_store: Path,
    tmp_path: Path,
) -> None:
    """They decide what is learnt as labels do, though validation goes by the label."""
    store = shutil.copytree(phantom_store, tmp_path / "store")
    rows = read_manifest(store / "manifest.parquet", status=None)
    label = rows["label"].fillna(0).astype(float)
    columns: dict[str, list[object]] = {
        "soft": (0.1 + 0.8 * label).tolist(),
        "ward": [f"w{number % 2}" for number in range(len(rows))],
    }
    for name, values in columns.items():
        _with_column(store, name, values)
    run = quiet(store, tmp_path / "runs", small(training__epochs=1, **settings))
    assert scored_of(run).caveats == []
    resumed(run)
    # Another column is none of its business, nor is what is not trained on.
    other = next(name for name in columns if name != column)
    _with_column(store, other, None)
    split = read_split(store / "splits", "default").table.set_index("image_id")["split"]
    parts = rows["image_id"].map(split)
    replaced = {"soft": 0.5, "ward": "w2"}[column]
    values = columns[column]
    tested = [replaced if part == "test" else v for v, part in zip(values, parts, strict=True)]
    _with_column(store, column, tested)
    assert scored_of(run).caveats == []
    resumed(run)
    first = int((parts == "train").to_numpy().argmax())
    values[first] = replaced
    _with_column(store, column, None if change != "one value" else values)
    with pytest.raises(InputError, match=rf"training\.\w+ '?{column}"):
        resumed(run)
    with pytest.raises(InputError, match=rf"{column} in .* have changed.*--accept-other-split"):
        scored_of(run)
    assert "targets that the run" in scored_of(run, accept_other_split=True).caveats[0]
    # Earlier versions recorded no hash of them.
    edit(run / "run.json", lambda info: info.pop("targets_hash"))
    assert scored_of(run).caveats == []


def test_path_of_the_weights_stays_out_of_mlflow(
    run: Path, phantom_store: Path, tmp_path: Path
) -> None:
    weights = shutil.copy(run / "model.safetensors", tmp_path / "secret-place.safetensors")
    folder = quiet(
        phantom_store, tmp_path / "runs", small(model__weights=str(weights), training__epochs=1)
    )
    kept = [file.read_bytes() for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    logged = [file.read_text() for file in (tmp_path / "runs" / "mlartifacts").rglob("config.yaml")]
    assert len(logged) == 1
    assert str(tmp_path) not in logged[0]
    assert "secret-place.safetensors" in logged[0]
    assert str(tmp_path) in (folder / "config.yaml").read_text()
    assert kept


def test_batch_that_devices_cannot_share_is_refused(phantom_store: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the nearest are 6 and 9"):
        quiet(phantom_store, tmp_path, small(training__batch_size=8, device__devices=3))


def fitted(store: Path, runs: Path, accelerator: str, *command: str) -> Path:
    """A run of the command line: in this process, or in those that ``command`` starts."""
    words = (
        "train --res 128x96 --model test_vit --epochs 2 --batch-size 8 --keep 0.5 "
        "--set model.drop_path_rate=0.3 --set training.grad_accum_steps=2 "
        "--set device.precision=32-true "
        f"--set device.compile=false --set device.accelerator={accelerator} "
        f"--store {store} --runs {runs}"
    ).split()
    if not command:
        assert main(words) == 0
        return RunFolder.latest(runs).path
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    subprocess.run(
        [*command[:-1], *words, *command[-1].split()],
        check=True,
        env=environment,
        timeout=300,
        capture_output=True,
    )
    return RunFolder.latest(runs).path


MODULE = (sys.executable, "-m", "mammo_pd")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "mammo_pd")


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "command",
    [
        pytest.param((*MODULE, "--devices 2"), id="devices"),
        pytest.param((*TORCHRUN, ""), id="torchrun", marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one(
    command: tuple[str, ...], accelerator: str, phantom_store: Path, tmp_path: Path
) -> None:
    """However they are started: the same draws, losses, scores and weights."""
    if accelerator == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    alone = fitted(phantom_store, tmp_path / "one", accelerator)
    pair = fitted(phantom_store, tmp_path / "two", accelerator, *command)
    columns = ["epoch", "train_loss", "val_auc_image", "val_auc_breast"]
    expected = pd.read_csv(alone / "history.csv")[columns]
    weights = load_file(alone / "model.safetensors")
    assert RunFolder.open(pair).info.environment["devices"] == 2
    assert len(list(pair.parent.glob("*/run.json"))) == 1
    history = pd.read_csv(pair / "history.csv")[columns]
    pd.testing.assert_frame_equal(history, expected, rtol=1e-4)
    for name, weight in load_file(pair / "model.safetensors").items():
        torch.testing.assert_close(weight, weights[name], atol=2e-4, rtol=1e-3)


def test_torchrun_that_contradicts_the_number_of_devices_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("RUN_ID", "x"), ("LOCAL_WORLD_SIZE", "2"), ("WORLD_SIZE", "4")):
        prefix = "TORCHELASTIC_" if name == "RUN_ID" else ""
        monkeypatch.setenv(prefix + name, value)
    assert count_devices(small()) == (2, 2)
    assert count_devices(small(device__devices=2)) == (2, 2)
    with pytest.raises(InputError, match="contradicts torchrun"):
        count_devices(small(device__devices=3))


def test_stochastic_depth_and_draws_are_the_same_in_parts(
    phantom_store: Path, tmp_path: Path
) -> None:
    """A run in parts, and one whose last epoch keeps every patch, in four parts of a quarter."""
    histories = []
    for grad_accum_steps in (1, 4):
        config = small(
            model__drop_path_rate=0.3,
            training__grad_accum_steps=grad_accum_steps,
            training__epochs=2,
            patch_dropout__keep_rate="0.25+1",
        )
        histories.append(pd.read_csv(quiet(phantom_store, tmp_path, config) / "history.csv"))
    columns = ["epoch", "train_loss", "val_auc_image"]
    pd.testing.assert_frame_equal(histories[0][columns], histories[1][columns], rtol=1e-4)


def test_every_patch_is_kept_in_the_last_epochs_in_more_parts(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    forward = Backbone.forward

    def watch(self: Backbone, patches: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        if self.training:
            seen.append((patches.shape[0], patches.shape[1]))
        return forward(self, patches, *others)

    monkeypatch.setattr(Backbone, "forward", watch)
    config = small(training__epochs=3, patch_dropout__keep_rate="0.125:0.25+1")
    quiet(phantom_store, tmp_path, config)
    assert set(seen) == {(8, 6), (8, 12), (2, 48)}
    assert seen == sorted(seen, key=lambda part: part[1])


@pytest.mark.parametrize("draw", ["tissue", "grid"])
def test_other_draws_train(phantom_store: Path, tmp_path: Path, draw: str) -> None:
    said: list[str] = []
    config = small(training__epochs=1, patch_dropout__draw=draw)
    run = train(phantom_store, tmp_path, config, say=said.append)
    assert run is not None
    assert load_config(run.path / "config.yaml").patch_dropout.draw == draw
    assert any("of the input" in line and "of it is kept" in line for line in said) == (
        draw == "tissue"
    )


def test_search_for_the_batch_runs_true_steps_and_leaves_the_model_alone(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU of 600 pretended units, at 50 and 20 for each image of a step, and then trained."""
    seen: list[int] = []
    forward = Backbone.forward

    def watch(self: Backbone, patches: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        seen.append(len(patches))
        return forward(self, patches, *others)

    monkeypatch.setattr(Backbone, "forward", watch)
    for name in ("reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: (50 + 20 * seen[-1]) << 20)
    config = small(training__grad_accum_steps=2, model__drop_path_rate=0.2)
    setup = RunSetup.build(phantom_store, config, say=silent)
    count = len(setup.train_set)
    before = {name: value.clone() for name, value in setup.backbone.state_dict().items()}
    found = largest_batch(step_memory(setup), 600 << 20, most=count, share=2)
    # (0.92 * 600 - 50) / 20 = 25 images in each of two parts, but there are fewer.
    assert found == count - count % 8
    assert largest_batch(step_memory(setup), 300 << 20, most=count, share=2) == 16
    assert set(seen) >= {2, 6, found // 2}
    for name, value in setup.backbone.state_dict().items():
        assert torch.equal(value, before[name])


def test_automatic_batch_size_needs_a_gpu(phantom_store: Path, tmp_path: Path) -> None:
    config = small(training__batch_size="auto", device__accelerator="cpu")
    with pytest.raises(InputError, match=r"measures a GPU's memory.*give a number"):
        quiet(phantom_store, tmp_path, config)


def test_images_that_came_after_the_split_are_spoken_of(
    phantom_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(phantom_store, store)
    manifest = pd.read_parquet(store / "manifest.parquet")
    late = manifest.iloc[:4].assign(image_id=["a", "b", "c", "d"], pixel_hash=None)
    split_store(open_store(store), say=silent)
    pd.concat([manifest, late]).to_parquet(store / "manifest.parquet")
    said: list[str] = []
    run = train(store, tmp_path, small(training__epochs=1), say=said.append)
    assert any("4 usable images are in no part" in line for line in said)
    assert run is not None
    assert predict(run, say=silent).exclusions == {"in no part of the split": 4}


def test_store_without_a_usable_image_is_not_split(phantom_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(phantom_store, store)
    manifest = pd.read_parquet(store / "manifest.parquet").assign(status="failed", reason="x")
    manifest.to_parquet(store / "manifest.parquet")
    with pytest.raises(InputError, match="no usable image"):
        split_store(open_store(store), say=silent)


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run"):
        RunFolder.open(tmp_path)
    # What can be typed whatever the store: it may have no level for a size named here.
    with pytest.raises(InputError, match=r"no run in .*: mammo-pd train --keep 0\.25$"):
        RunFolder.latest(tmp_path)


def test_run_ids_sort_by_time(run: Path) -> None:
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", run.name)


def test_images_without_tissue_do_not_end_a_run(
    phantom_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        PatchSampler, "tissue", lambda self, images: torch.zeros(len(images), 48, dtype=torch.bool)
    )
    said: list[str] = []
    RunSetup.build(phantom_store, small(patch_dropout__draw="tissue"), say=said.append).introduce()
    assert any("tissue is 0 % of the input" in line for line in said)
