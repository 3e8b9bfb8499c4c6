"""A run that starts from pretrained weights: their normalisation goes wherever the run goes."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from mammo_pd.backbones.weights.report import WeightsReport
from mammo_pd.config import load_config
from mammo_pd.inference.predict import Scored, predict
from mammo_pd.normalization import Normalization
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.train import reopen_run, train

SMALL = {
    "data.res": "64x48",
    "data.workers": 1,
    "model.name": "deit_tiny_patch16_224",
    "training.epochs": 1,
    "device.accelerator": "cpu",
}
# ImageNet's, over its three channels.
GREY = Normalization(pytest.approx(0.449), pytest.approx(0.226))


def silent(line: str) -> None:
    pass


def header(file: Path) -> Any:
    with safe_open(file, "pt") as tensors:
        return json.loads(tensors.metadata()["model_card"])


def scored(folder: Path) -> Scored:
    return predict(RunFolder.open(folder), say=silent)


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def run(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    state = timm.create_model("deit_tiny_patch16_224").state_dict()
    save_file(state, folder / "weights.safetensors")
    config = load_config(None, SMALL | {"model.weights": str(folder / "weights.safetensors")})
    trained = train(phantom_store, folder / "runs", config, say=said.append)
    assert trained is not None
    # From here on the run stands on its own.
    (folder / "weights.safetensors").unlink()
    return trained.path


def test_what_became_of_the_weights_is_said_and_kept(run: Path, said: list[str]) -> None:
    info = RunFolder.open(run).info
    assert info.weights is not None
    report = WeightsReport.from_dict(info.weights)
    lines = list(report.lines())
    first = said.index(lines[0])
    assert said[first : first + len(lines)] == lines
    assert report.source == "weights.safetensors"
    assert {row.part: row.outcome for row in report.rows}["blocks"] == "loaded"
    assert str(run.parents[1]) not in json.dumps(info.weights)


def test_normalization_is_in_the_run_and_in_both_checkpoints(run: Path) -> None:
    assert RunFolder.open(run).info.normalization == GREY
    for name in ("model.safetensors", "last.safetensors"):
        card = header(run / name)
        assert card["normalization"] == asdict(GREY)
        assert card["grid_size"] == [4, 3]
        assert card["weights"] == RunFolder.open(run).info.weights


def test_evaluation_reads_the_input_as_training_did(run: Path, tmp_path: Path) -> None:
    table = scored(run).table
    val = table[table["split"] == "val"]
    told = RunFolder.open(run).info.validation["val_auc_image"]
    assert roc_auc_score(val["label"], val["score"]) == pytest.approx(told)
    # A run of an earlier version says nothing, and was trained with .5 and .5.
    earlier = Path(shutil.copytree(run, tmp_path / run.name))
    values = json.loads((earlier / "run.json").read_text())
    del values["normalization"], values["weights"]
    (earlier / "run.json").write_text(json.dumps(values))
    assert RunFolder.open(earlier).info.normalization == Normalization(0.5, 0.5)
    assert not np.allclose(scored(earlier).table["score"], table["score"], atol=1e-5)


def test_run_goes_on_with_its_normalization_and_without_the_weights(run: Path) -> None:
    setup, reopened = reopen_run(run, say=silent)
    assert setup.backbone.normalization == reopened.info.normalization == GREY


def test_another_run_takes_it_over_from_the_checkpoint(
    run: Path, phantom_store: Path, tmp_path: Path
) -> None:
    changes = {"model.weights": str(run / "model.safetensors"), "data.res": "96x64"}
    trained = train(phantom_store, tmp_path, load_config(None, SMALL | changes), say=silent)
    assert trained is not None
    assert trained.info.normalization == GREY
    assert trained.info.weights is not None
    report = WeightsReport.from_dict(trained.info.weights)
    assert "as in the run" in report.normalization_origin
    assert any("grid of 4x3 to 6x4" in row.detail for row in report.rows)
