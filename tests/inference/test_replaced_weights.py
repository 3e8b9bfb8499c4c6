"""Training replaces a run's weights while others read them: what is recorded is what was read."""

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from small_runs import set_up, small

from mammo_pd.cli.scored_runs import provenance_of
from mammo_pd.errors import InputError
from mammo_pd.inference import bundle, embed, predict
from mammo_pd.inference.trained_model import TrainedModel
from mammo_pd.training import checkpoint, model_card
from mammo_pd.training.averaging import WeightAverage
from mammo_pd.training.checkpoint import state_of, weights_digest, weights_of
from mammo_pd.training.model_card import CheckpointHeader
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.train import start_run

# The epochs of the two versions.
EPOCHS = (1, 2)
# What a reader gave: a weight that tells the version, and epoch and digest as recorded.
Read = tuple[float, int | None, str | None]


@pytest.fixture(scope="module")
def run(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with two versions of both of its files, whose every weight is their epoch."""
    setup = set_up(phantom_store, small())
    run = start_run(tmp_path_factory.mktemp("versions") / "runs", setup)
    optimizer = torch.optim.SGD(setup.model.parameters())
    for epoch in EPOCHS:
        with torch.no_grad():
            for parameter in setup.model.parameters():
                parameter.fill_(epoch)
        metrics = {"epoch": epoch}
        weights_of(setup.model, setup.backbone.timm_model, metrics, setup.card).write(
            run.path / f"model-{epoch}.safetensors"
        )
        history = {"history": [metrics] * epoch}
        average = WeightAverage(setup.model, 0)
        state_of(setup.model, optimizer, average, history, setup.card).write(
            run.path / f"last-{epoch}.safetensors"
        )
    return run


def version(file: Path, epoch: int) -> Path:
    return file.with_name(f"{file.stem}-{epoch}.safetensors")


@pytest.fixture
def replaced(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each opening of a file finds another version than the one before it."""
    files = (run.chosen, run.last)
    following = {file: cycle(EPOCHS) for file in files}

    def replace(file: Path) -> None:
        beside = file.with_name("beside")
        shutil.copyfile(version(file, next(following[file])), beside)
        beside.replace(file)

    def opening(function: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Path, *given: Any, **named: Any) -> Any:
            found = function(path, *given, **named)
            for file in files:
                replace(file)
            return found

        return opened

    for file in files:
        replace(file)
    for module in (checkpoint, model_card, embed):
        monkeypatch.setattr(module, "safe_open", opening(safe_open))
    plain = Path.open

    def open_path(path: Path, *given: Any, **named: Any) -> Any:
        return (opening(plain) if path in files else plain)(path, *given, **named)

    monkeypatch.setattr(Path, "open", open_path)
    yield
    monkeypatch.undo()
    for file in files:
        file.unlink()


def weight_of(model: torch.nn.Module) -> float:
    (value,) = {float(parameter.detach().mean()) for parameter in model.parameters()}
    return value


def trained_model(file: Path) -> Read:
    model = TrainedModel.load(file)
    return weight_of(model.trained), model.epoch, model.digest


def evaluated(run: RunFolder, name: str) -> Read:
    given = predict.predict(run, checkpoint=name, say=lambda _: None)
    told = provenance_of([given])["weights, SHA-256"]
    return weight_of(given.backbone.timm_model), given.epoch, told


def embedded(encoder: embed.Encoder) -> Read:
    epoch = int(encoder.weights.rpartition("epoch ")[2])
    return weight_of(encoder.backbone.timm_model), epoch, None


def bundled(file: Path, folder: Path) -> Read:
    bundle.write_bundle(file, folder)
    held = folder / "models" / "model.safetensors"
    told = json.loads((folder / "configs" / "metadata.json").read_text())["description"]
    digest = told.rpartition("weights ")[2]
    return float(CheckpointHeader.read(held).epochs), None, digest


READERS: dict[str, Callable[[RunFolder, Path], Read]] = {
    "predict": lambda run, _: trained_model(run.chosen),
    "predict the last epoch": lambda run, _: trained_model(run.last),
    "evaluate": lambda run, _: evaluated(run, "model"),
    "evaluate the last epoch": lambda run, _: evaluated(run, "last"),
    "embed a run": lambda run, _: embedded(embed.encoder_of_run(run)),
    "embed a run's last epoch": lambda run, _: embedded(embed.encoder_of_run(run, "last")),
    "embed a file": lambda run, _: embedded(embed.encoder_of_checkpoint(run.chosen)),
    "export": lambda run, folder: bundled(run.chosen, folder / "bundle"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.usefixtures("replaced")
def test_what_is_recorded_is_of_the_weights_that_were_read(
    reader: str, run: RunFolder, tmp_path: Path
) -> None:
    weight, epoch, digest = READERS[reader](run, tmp_path)
    assert weight in EPOCHS
    assert epoch in (None, weight)
    file = run.last if reader.endswith("last epoch") else run.chosen
    assert digest in (None, weights_digest(version(file, int(weight))))


@pytest.mark.usefixtures("replaced")
def test_weights_are_not_started_from_where_others_were_checked(
    run: RunFolder, phantom_store: Path
) -> None:
    """The women that they learnt from are read in their header, before the model is built."""
    with pytest.raises(InputError, match=r"model\.safetensors were replaced while they were read"):
        set_up(phantom_store, small(model__weights=str(run.chosen)))
