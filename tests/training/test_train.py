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

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mammo_pd.backbones.vit import PatchViT, build_vit
from mammo_pd.cli.evaluate import context_of
from mammo_pd.config import RunConfig, load_config
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.split_store import split_store
from mammo_pd.data.store import open_store
from mammo_pd.errors import InputError
from mammo_pd.inference.predict import join_folds, predict
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.training.batch_size import largest_batch
from mammo_pd.training.devices import count_devices, make_fabric
from mammo_pd.training.fitting import memory_of_stages, step_memory, what_fits
from mammo_pd.training.train import latest_run, read_run, train

SMALL = {
    "data.res": "128x96",
    "data.workers": 1,
    "model.name": "vit_tiny_patch16_224",
    "training.epochs": 4,
    "training.batch_size": 8,
    "device.accelerator": "cpu",
}


def small(**changes: object) -> RunConfig:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(None, {**SMALL, **named})


def quiet(*arguments: Any, **options: Any) -> Path:
    folder = train(*arguments, say=lambda _: None, **options)
    assert folder is not None
    return folder


@pytest.fixture(scope="module")
def run(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quiet(phantom_store, tmp_path_factory.mktemp("runs"), small())


def test_run_folder_says_everything(run: Path, phantom_store: Path) -> None:
    facts = read_run(run)
    assert facts["canvas"] == [128, 96]
    assert (facts["num_tokens"], facts["num_keep"]) == (48, 12)
    assert facts["finished"]
    assert load_config(run / "config.yaml") == small()
    history = pd.read_csv(run / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert np.isfinite(history[["train_loss", "val_auc_image", "val_auc_breast"]]).all().all()
    assert (run / "best.safetensors").is_file()
    assert latest_run(run.parent) == run


def test_mlflow_has_parameters_metrics_and_hashes(run: Path) -> None:
    facts = read_run(run)
    with sqlite3.connect(run.parent / "mlflow.db") as database:

        def table(query: str) -> dict[str, str]:
            return dict(database.execute(query, (facts["mlflow_run_id"],)).fetchall())

        parameters = table("SELECT key, value FROM params WHERE run_uuid = ?")
        tags = table("SELECT key, value FROM tags WHERE run_uuid = ?")
        steps = database.execute(
            "SELECT key, count(*) FROM metrics WHERE run_uuid = ? GROUP BY key",
            (facts["mlflow_run_id"],),
        ).fetchall()
    assert parameters["patch_dropout.keep_rate"] == "0.25"
    assert parameters["num_keep"] == "12"
    assert tags["split_hash"] == facts["split_hash"]
    assert tags["store_fingerprint"] == facts["store_fingerprint"]
    assert tags["environment.torch"] == torch.__version__
    counts = dict(steps)
    assert counts["val_auc_image"] == 4
    assert counts["step_loss"] >= 4


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


def test_resumed_run_equals_an_unbroken_one(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two steps of the third epoch, with a loader process, and gone on with."""
    config = small(data__workers=1, model__drop_path_rate=0.2)
    run = quiet(phantom_store, tmp_path / "whole", config)
    with killed_at_step(9, monkeypatch):
        quiet(phantom_store, tmp_path / "broken", config)
    broken = latest_run(tmp_path / "broken")
    assert "finished" not in read_run(broken)
    said: list[str] = []
    predict(broken, say=said.append)
    assert any("was not trained to its end" in line for line in said)
    again = train(None, tmp_path / "elsewhere", load_config(), resume=broken, say=lambda _: None)
    assert again == broken
    assert not (tmp_path / "elsewhere").exists()
    for name in ("best.safetensors", "last.safetensors"):
        whole, resumed = load_file(run / name), load_file(again / name)
        assert whole.keys() == resumed.keys()
        for key, tensor in whole.items():
            assert torch.equal(tensor, resumed[key]), (name, key)
    columns = ["epoch", "train_loss", "val_auc_image", "val_auc_breast"]
    histories = [pd.read_csv(folder / "history.csv")[columns] for folder in (run, again)]
    pd.testing.assert_frame_equal(*histories)


def test_run_killed_before_its_first_step_is_resumed_from_the_start(
    run: Path, phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_at_step(0, monkeypatch):
        quiet(phantom_store, tmp_path, load_config(run / "config.yaml"))
    broken = latest_run(tmp_path)
    with pytest.raises(InputError, match="there is no checkpoint"):
        predict(broken, say=lambda _: None)
    again = quiet(None, tmp_path, load_config(), resume=broken)
    expected = load_file(run / "last.safetensors")
    for key, tensor in load_file(again / "last.safetensors").items():
        assert torch.equal(tensor, expected[key]), key


def test_batch_larger_than_the_part_train_is_spoken_of(phantom_store: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = small(training__batch_size=1000, training__epochs=1)
    train(phantom_store, tmp_path, config, say=said.append)
    assert any("an epoch is one step" in line for line in said)


def test_run_that_began_with_weights_is_resumed_without_them(
    run: Path, phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Path(shutil.copy(run / "best.safetensors", tmp_path / "w.safetensors"))
    config = small(model__weights=str(weights), training__epochs=2)
    with killed_at_step(5, monkeypatch):
        quiet(phantom_store, tmp_path / "runs", config)
    broken = latest_run(tmp_path / "runs")
    assert (broken / "last.safetensors").is_file()
    weights.unlink()
    again = quiet(None, tmp_path, load_config(), resume=broken)
    assert read_run(again)["finished"]


def test_finished_run_that_is_resumed_stays_as_it_is(run: Path, phantom_store: Path) -> None:
    before = (run / "last.safetensors").read_bytes()
    quiet(phantom_store, run.parent, load_config(), resume=run)
    assert (run / "last.safetensors").read_bytes() == before


def test_dropped_patches_are_not_touched_in_training_and_none_in_evaluation(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[bool, int]] = set()
    forward = PatchViT.forward

    def watch(self: PatchViT, patches: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        seen.add((self.training, patches.shape[1]))
        return forward(self, patches, *others)

    monkeypatch.setattr(PatchViT, "forward", watch)
    folder = quiet(phantom_store, tmp_path, small(training__epochs=1))
    predict(folder, say=lambda _: None)
    assert seen == {(True, 12), (False, 48)}


def test_predictions_follow_the_contract(run: Path) -> None:
    scored = predict(run, say=lambda _: None)
    table = pd.read_csv(scored.file)
    head = ["image_id", "patient_id", "exam_id", "laterality", "view", "label", "score", "split"]
    assert table.columns[: len(head)].tolist() == head
    assert set(table["split"]) == {"val", "test"}
    assert table["score"].between(0, 1).all()
    assert {"density", "vendor", "lesion"} <= set(table.columns)
    # The validation AUC of the best epoch is found again from the written scores.
    val = table[table["split"] == "val"]
    from sklearn.metrics import roc_auc_score

    history = pd.read_csv(run / "history.csv")
    assert roc_auc_score(val["label"], val["score"]) == pytest.approx(
        history["val_auc_image"].max()
    )
    context = context_of([scored])
    assert context.phantom
    assert context.label_definition == read_run(run)["label_definition"]
    assert context.split_hash == read_run(run)["split_hash"]


def test_scores_do_not_depend_on_how_they_are_batched(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mammo_pd.inference import predict as stage

    first = predict(run, say=lambda _: None).table["score"]
    monkeypatch.setattr(stage, "_IMAGES_AT_ONCE", 3)
    second = predict(run, say=lambda _: None).table["score"]
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_folds_are_joined_out_of_fold(phantom_store: Path, tmp_path: Path) -> None:
    paths = open_store(phantom_store)
    split_store(paths, name="three", folds=3, say=lambda _: None)
    folders = [
        quiet(
            phantom_store,
            tmp_path,
            small(data__split="three", data__fold=fold, training__epochs=1),
        )
        for fold in range(3)
    ]
    scored = [predict(folder, say=lambda _: None) for folder in folders]
    table = join_folds(scored)
    assert table["image_id"].is_unique
    assert len(table) == 48
    assert sorted(set(table["fold"])) == [0, 1, 2]
    with pytest.raises(InputError, match="folds"):
        join_folds([scored[0], scored[0]])


def test_weights_of_a_run_start_another(run: Path, phantom_store: Path) -> None:
    weights = str(run / "best.safetensors")
    model = build_vit("vit_tiny_patch16_224", (128, 96), weights=weights)
    trained = load_file(weights)
    assert torch.equal(model.vit.blocks[0].mlp.fc1.weight, trained["blocks.0.mlp.fc1.weight"])


def refusals() -> list[tuple[str, dict[str, object], str]]:
    return [
        ("other split", {"data__split": "nine"}, r"no split 'nine'.*--name nine"),
        ("fold of no folds", {"data__fold": 1}, "has no folds"),
        ("canvas", {"data__res": 100}, "the nearest are 96 and 112"),
        ("model", {"model__name": "resnet18"}, "plain vision transformer"),
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
    facts = json.loads(file.read_text())
    change(facts)
    file.write_text(json.dumps(facts))


def test_another_split_than_the_trained_one_is_refused_unless_told(
    run: Path, phantom_store: Path, tmp_path: Path
) -> None:
    copy = tmp_path / run.name
    copy.mkdir()
    for file in run.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    edit(copy / "run.json", lambda facts: facts.update(split_hash="0" * 64))
    with pytest.raises(InputError, match="--accept-other-split"):
        predict(copy, say=lambda _: None)
    assert len(predict(copy, accept_other_split=True, say=lambda _: None).table)
    with pytest.raises(InputError, match="started on another split"):
        quiet(phantom_store, tmp_path, load_config(), resume=copy)
    edit(copy / "run.json", lambda facts: facts.update(store_fingerprint="x"))
    with pytest.raises(InputError, match="store made with other settings"):
        predict(copy, accept_other_split=True, say=lambda _: None)


def test_labels_that_changed_under_a_run_are_refused(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    edit(copy / "run.json", lambda facts: facts.update(labels_hash="0" * 64))
    with pytest.raises(InputError, match=r"labels in .* have changed"):
        predict(copy, say=lambda _: None)
    with pytest.raises(InputError, match=r"labels in .* have changed"):
        quiet(None, tmp_path, load_config(), resume=copy)


def test_path_of_the_weights_stays_out_of_mlflow(
    run: Path, phantom_store: Path, tmp_path: Path
) -> None:
    weights = shutil.copy(run / "best.safetensors", tmp_path / "secret-place.safetensors")
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
    """A run of the command line in processes of its own, as a user starts it."""
    words = (
        "train --res 128x96 --model vit_tiny_patch16_224 --epochs 2 --batch-size 8 --keep 0.5 "
        "--set model.drop_path_rate=0.3 --set training.grad_accum_steps=2 "
        "--set device.precision=32-true "
        f"--set device.compile=false --set device.accelerator={accelerator}"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    subprocess.run(
        [*command[:-1], *words.split(), *command[-1].split(), "--store", store, "--runs", runs],
        check=True,
        env=environment,
        timeout=300,
        capture_output=True,
    )
    return latest_run(runs)


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_two_processes_equal_one(accelerator: str, phantom_store: Path, tmp_path: Path) -> None:
    """Started by --devices and by torchrun: the same draws, losses, scores and weights."""
    if accelerator == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    module = [sys.executable, "-m", "mammo_pd"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    alone = fitted(phantom_store, tmp_path / "one", accelerator, *module, "")
    pairs = [
        fitted(phantom_store, tmp_path / "two", accelerator, *module, "--devices 2"),
        fitted(phantom_store, tmp_path / "pair", accelerator, *torchrun, "-m", "mammo_pd", ""),
    ]
    columns = ["epoch", "train_loss", "val_auc_image", "val_auc_breast"]
    expected = pd.read_csv(alone / "history.csv")[columns]
    weights = load_file(alone / "best.safetensors")
    for pair in pairs:
        assert read_run(pair)["environment"]["devices"] == 2
        assert len(list(pair.parent.glob("*/run.json"))) == 1
        history = pd.read_csv(pair / "history.csv")[columns]
        pd.testing.assert_frame_equal(history, expected, rtol=1e-4)
        for name, weight in load_file(pair / "best.safetensors").items():
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
    forward = PatchViT.forward

    def watch(self: PatchViT, patches: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        if self.training:
            seen.append((patches.shape[0], patches.shape[1]))
        return forward(self, patches, *others)

    monkeypatch.setattr(PatchViT, "forward", watch)
    config = small(training__epochs=3, patch_dropout__keep_rate="0.125:0.25+1")
    quiet(phantom_store, tmp_path, config)
    assert set(seen) == {(8, 6), (8, 12), (2, 48)}
    assert seen == sorted(seen, key=lambda part: part[1])


@pytest.mark.parametrize("draw", ["tissue", "grid"])
def test_other_draws_train(phantom_store: Path, tmp_path: Path, draw: str) -> None:
    said: list[str] = []
    config = small(training__epochs=1, patch_dropout__draw=draw)
    folder = train(phantom_store, tmp_path, config, say=said.append)
    assert folder is not None
    assert load_config(folder / "config.yaml").patch_dropout.draw == draw
    assert any("of the canvas" in line and "of it is kept" in line for line in said) == (
        draw == "tissue"
    )


@pytest.mark.parametrize("gib", [2, 11, 24, 80, 141])
def test_gpu_of_any_size_refuses_too_large_a_batch_with_what_fits(gib: int) -> None:
    config = small(
        data__res="1024x1024", model__name="vit_small_patch16_224", training__batch_size=4096
    )
    model = build_vit("vit_small_patch16_224", (1024, 1024))
    said = what_fits(config, (1024, 1024), model, gib * 2**30, "a GPU")
    match = re.search(r"4096 images of 1024x1024 with 1023 patches .* about (\d+) fit", said)
    assert match is not None
    # Weights and moments take 0.28 GiB, each image 0.147, as measured (benchmarks/results).
    assert int(match[1]) == pytest.approx((0.9 * gib - 0.28) / 0.147, rel=0.05)
    assert f"--batch-size {match[1]}" in said


def test_gpu_too_small_for_one_image_says_what_else_to_change() -> None:
    config = small(data__res="3328x2560", patch_dropout__keep_rate=1.0)
    model = build_vit("vit_tiny_patch16_224", (3328, 2560))
    said = what_fits(config, (3328, 2560), model, 2**30, "a GPU")
    assert "not even one image fits; lower --keep or --res" in said


def test_search_for_the_batch_runs_true_steps_and_leaves_the_model_alone(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU of 600 pretended units, at 50 and 20 for each image of a step, and then trained."""
    seen: list[int] = []
    forward = PatchViT.forward

    def watch(self: PatchViT, patches: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        seen.append(len(patches))
        return forward(self, patches, *others)

    monkeypatch.setattr(PatchViT, "forward", watch)
    for name in ("reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: (50 + 20 * seen[-1]) << 20)
    config = small(training__grad_accum_steps=2, model__drop_path_rate=0.2)
    store = open_store(phantom_store)
    rows = pd.read_parquet(store.manifest)
    rows = rows[rows["status"] == "ok"]
    dataset = MammogramDataset(store, rows, (128, 96))
    model = build_vit("vit_tiny_patch16_224", (128, 96), drop_path_rate=0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fabric = make_fabric(config)
    measure = step_memory(fabric, model, dataset, (128, 96), config, False, 2)
    found = largest_batch(measure, 600 << 20, most=len(rows), share=2)
    # (0.92 * 600 - 50) / 20 = 25 images in each of two parts, but for 48 in all.
    assert found == 48
    assert largest_batch(measure, 300 << 20, most=len(rows), share=2) == 16
    assert set(seen) >= {2, 6, 24}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_last_epochs_that_keep_every_patch_are_planned_with() -> None:
    """One image at keep 1 can take more than a batch of eight at .05."""
    config = small(data__res="3328x2560", training__batch_size=8, patch_dropout__keep_rate="0.05+1")
    model = build_vit("vit_tiny_patch16_224", (3328, 2560))
    (kept, held), (every, last) = memory_of_stages(config, (3328, 2560), model)
    assert (kept, every) == (1663, 33280)
    assert last > 1.5 * held
    said = what_fits(config, (3328, 2560), model, int((held + last) / 1.8), "a GPU")
    assert "in the last epochs, in which --keep 0.05+1 keeps all 33280 patches" in said
    assert len(memory_of_stages(small(), (128, 96), model)) == 1


def test_memory_is_foreseen_for_the_pooling_that_was_asked_for() -> None:
    """Of 12 blocks one keeps less where the head reads the class token alone."""
    img_size = (1024, 1024)
    held = []
    for pool in ("token", "avg"):
        config = small(model__global_pool=pool, training__batch_size=64)
        model = build_vit(config.model.name, img_size, global_pool=pool)
        held.append(memory_of_stages(config, img_size, model)[0][1])
    assert held[1] == pytest.approx(held[0] * 388 / 358, rel=0.02)
    assert held[1] > held[0]


def test_gpu_that_is_shared_is_not_told_that_the_batch_fits() -> None:
    config = small(data__res="1024x1024", model__name="vit_small_patch16_224")
    model = build_vit("vit_small_patch16_224", (1024, 1024))
    said = what_fits(config, (1024, 1024), model, 24 * 2**30, "a GPU")
    assert re.search(r"a batch of 8 images .* though about 1\d\d should: something else", said)


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
    split_store(open_store(store), say=lambda _: None)
    pd.concat([manifest, late]).to_parquet(store / "manifest.parquet")
    said: list[str] = []
    folder = train(store, tmp_path, small(training__epochs=1), say=said.append)
    assert any("4 usable images are in no part" in line for line in said)
    assert folder is not None
    assert predict(folder, say=lambda _: None).exclusions == {"in no part of the split": 4}


def test_store_without_a_usable_image_is_not_split(phantom_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(phantom_store, store)
    manifest = pd.read_parquet(store / "manifest.parquet").assign(status="failed", reason="x")
    manifest.to_parquet(store / "manifest.parquet")
    with pytest.raises(InputError, match="no usable image"):
        split_store(open_store(store), say=lambda _: None)


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="there is no run in"):
        latest_run(tmp_path)


def test_run_ids_sort_by_time(run: Path) -> None:
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", run.name)
