import re
from pathlib import Path
from typing import Any

import pytest

from mammo_pd.cli.app import main
from mammo_pd.cli.train import CONFIG_KEYS
from mammo_pd.config import RunConfig


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What training is called with, in place of a training."""
    calls: list[dict[str, Any]] = []

    def note(store: Path, runs: Path, config: RunConfig, *, resume: Path | None = None) -> None:
        calls.append({"store": store, "runs": runs, "config": config, "resume": resume})

    monkeypatch.setattr("mammo_pd.training.train.train", note)
    return calls


def test_flags_win_over_set_and_that_over_the_file(
    trained: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("training: {epochs: 3, lr: 0.1, seed: 4}\ndata: {split: five}\n")
    words = ["--config", str(file), "--set", "training.epochs=5", "--set", "training.lr=1e-3"]
    words += ["--lr", "1e-4", "--keep", "0.5:0.25+1", "--draw", "tissue", "--batch-size", "auto"]
    assert main(["train", *words, "--res", "512x416", "--devices", "2", "--fold", "1"]) == 0
    config = trained[0]["config"]
    assert (config.training.epochs, config.training.lr, config.training.seed) == (5, 1e-4, 4)
    assert config.training.batch_size == "auto"
    assert config.patch_dropout.keep_rate == "0.5:0.25+1"
    assert (config.patch_dropout.draw, config.device.devices) == ("tissue", 2)
    assert (config.data.res, config.data.split, config.data.fold) == ("512x416", "five", 1)
    assert trained[0]["resume"] is None
    assert (trained[0]["store"], trained[0]["runs"]) == (Path("store"), Path("runs"))


def test_help_states_the_defaults_of_the_configuration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "--help"]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out.partition("Parameters:")[2])
    texts = {option.split()[0]: option for option in re.findall(r"--.*?(?= --[a-z]|$)", shown)}
    for flag, key in CONFIG_KEYS.items():
        section, _, field = key.partition(".")
        default = getattr(getattr(RunConfig(), section), field)
        if default is not None:
            assert f"[default: {default}]" in texts[flag]


def test_resume_takes_the_latest_run_or_the_one_named(
    trained: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("20261124-000000-aaaa", "20261125-000000-bbbb"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    first, last = sorted((tmp_path / "runs").iterdir())
    assert main(["train", "--resume"]) == 0
    assert main(["train", "--resume", first.name]) == 0
    assert main(["train", f"--resume=runs/{first.name}"]) == 0
    assert main(["train", "--resume", "--runs", str(tmp_path / "runs")]) == 0
    resumed = [call["resume"].resolve() for call in trained]
    assert resumed == [last, first, first, last]
    # Where it was trained from is in the run.
    assert {call["store"] for call in trained} == {None}


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([], "mammo-pd train --resume"),
        (["--runs", "else where"], "mammo-pd train --runs 'else where' --resume"),
        (["--resume", "ONE"], "mammo-pd train --resume ONE"),
    ],
)
def test_interrupted_training_says_how_to_go_on(
    words: list[str],
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mammo_pd.training.train.train", interrupted)
    assert main(["train", *words]) == 130
    assert f", and {command} continues from there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", "abc"], "error: --keep abc is not a keep rate"),
        (["--keep", "0.5+30"], "error: --keep 0.5+30 keeps every patch in the last 30 epochs"),
        (["--batch-size", "0"], "error: --batch-size is 0; it must be at least 1"),
        (["--devices", "0"], "error: --devices is 0; it must be at least 1"),
        (["--lr", "-1"], "error: --lr is -1.0; it must be above 0"),
        (["--set", "training.lr=-1"], "error: --set training.lr is -1; it must be above 0"),
        (["--set", "nowhere.lr=-1"], "error: --set nowhere.lr: there is no key nowhere"),
        (["--set", "training.lr"], "error: --set training.lr has no '='"),
    ],
)
def test_error_speaks_of_the_flag_that_was_typed(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words]) == 2
    assert said in capsys.readouterr().err


def test_error_in_a_file_speaks_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("training: {epochs: 0}\n")
    assert main(["train", "--config", str(file), "--lr", "0.1"]) == 2
    assert f"error: {file}: training.epochs is 0; it must be" in capsys.readouterr().err
