"""Checkpoints of versions that kept the best epoch unasked, and stopped by patience."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import set_up, small

from mammo_pd.inference.bundle import fine_tune, write_bundle
from mammo_pd.inference.embed import encoder_of_checkpoint
from mammo_pd.inference.mlflow_model import ScoringModel
from mammo_pd.inference.trained_model import TrainedModel
from mammo_pd.training.loop import fit
from mammo_pd.training.train import start_run


@pytest.fixture(scope="module")
def earlier(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose header knows no choice of the epoch."""
    config = small(training__epochs=1, training__patience=1, training__choose_epoch="best")
    setup = set_up(phantom_store, config)
    run = start_run(tmp_path_factory.mktemp("runs"), setup)
    fit(setup, run)
    with safe_open(run.chosen, "pt") as file:
        header = file.metadata()
    (key,) = (name for name, text in header.items() if "choose_epoch" in text)
    card = json.loads(header[key])
    del card["config"]["training"]["choose_epoch"]
    path = run.path / "best.safetensors"
    save_file(load_file(run.chosen), path, {**header, key: json.dumps(card)})
    return path


@pytest.mark.parametrize("read", [TrainedModel.load, ScoringModel, encoder_of_checkpoint])
def test_checkpoint_of_an_earlier_version_is_read(
    read: Callable[[Path], Any], earlier: Path
) -> None:
    assert read(earlier)


def test_bundle_of_an_earlier_version_trains_as_that_did(
    earlier: Path, phantom_store: Path, tmp_path: Path
) -> None:
    write_bundle(earlier, tmp_path / "bundle")
    told = json.loads((tmp_path / "bundle" / "configs" / "train.json").read_text())
    settings = told["settings"]
    assert settings["training"].pop("choose_epoch") == "best"
    often = {name: told[name] for name in ("batch_size", "lr", "seed")}
    settings["training"] |= often | {"epochs": 0}
    settings["model"]["weights"] = None
    # The epochs are what is wrong, not patience without a best epoch.
    with pytest.raises(SystemExit, match="epochs is 0; it must be at least 1"):
        fine_tune(str(phantom_store), str(tmp_path / "runs"), settings)
