import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mammo_pd.config import RunConfig, load_config
from mammo_pd.data.store import open_store
from mammo_pd.errors import InputError
from mammo_pd.models.vit import PatchViT, build_vit
from mammo_pd.stages.predict import context_of, join_folds, predict
from mammo_pd.stages.split import split_store
from mammo_pd.stages.train import latest_run, read_run, train
from mammo_pd.tracking import Run

SMALL = {
    "data.res": "128x96",
    "data.workers": 0,
    "model.name": "vit_tiny_patch16_224",
    "training.epochs": 4,
    "training.batch_size": 8,
    "device.accelerator": "cpu",
}


def small(**changes: object) -> RunConfig:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(None, {**SMALL, **named})


def quiet(*arguments: object, **options: object) -> Path:
    return train(*arguments, say=lambda _: None, **options)  # type: ignore[arg-type]


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


def test_resumed_run_equals_an_unbroken_one(
    run: Path, phantom_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KilledError in the third epoch, between two steps, and gone on with."""
    runs = run.parent.with_name(run.parent.name + "-broken")
    log = Run.log

    def log_until_killed(self: Run, metrics: dict[str, float], step: int) -> None:
        log(self, metrics, step)
        if step > 10:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log_until_killed)
        with pytest.raises(KilledError):
            quiet(phantom_store, runs, small())
    broken = latest_run(runs)
    assert "finished" not in read_run(broken)
    again = quiet(phantom_store, runs, load_config(), resume=broken)
    assert again == broken
    for name in ("best.safetensors", "last.safetensors"):
        whole, resumed = load_file(run / name), load_file(again / name)
        assert whole.keys() == resumed.keys()
        for key, tensor in whole.items():
            assert torch.equal(tensor, resumed[key]), (name, key)
    columns = ["epoch", "train_loss", "val_auc_image", "val_auc_breast"]
    histories = [pd.read_csv(folder / "history.csv")[columns] for folder in (run, again)]
    pd.testing.assert_frame_equal(*histories)
    assert read_run(broken)["mlflow_run_id"] == read_run(again)["mlflow_run_id"]


def test_finished_run_that_is_resumed_stays_as_it_is(run: Path, phantom_store: Path) -> None:
    before = (run / "last.safetensors").read_bytes()
    quiet(phantom_store, run.parent, load_config(), resume=run)
    assert (run / "last.safetensors").read_bytes() == before


def test_dropped_patches_are_not_touched_in_training_and_none_in_evaluation(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[bool, int]] = set()
    forward = PatchViT.forward

    def watch(self: PatchViT, patches: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        seen.add((self.training, patches.shape[1]))
        return forward(self, patches, positions)

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
    assert context.split_hash == read_run(run)["split_hash"]


def test_scores_do_not_depend_on_how_they_are_batched(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mammo_pd.stages import predict as stage

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
        ("canvas", {"data__res": 100}, "nearest heights are 96 and 112"),
        ("model", {"model__name": "resnet18"}, "plain vision transformer"),
        ("no GPU", {"device__accelerator": "cuda"}, "Lightning Fabric cannot use"),
    ]


@pytest.mark.parametrize(("changes", "message"), [r[1:] for r in refusals()])
def test_what_cannot_be_trained_is_refused(
    phantom_store: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    if "CUDA" in message and torch.cuda.is_available():
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


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="there is no run in"):
        latest_run(tmp_path)


def test_run_ids_sort_by_time(run: Path) -> None:
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", run.name)
