import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mammo_pd.backbones.base import Backbone
from mammo_pd.cli.app import main
from mammo_pd.cli.config_flags import CONFIG_KEYS
from mammo_pd.config import RunConfig
from mammo_pd.errors import InputError
from mammo_pd.locks import locked
from mammo_pd.training.loop import fit
from mammo_pd.training.runs import RunFolder, RunInfo, timestamp
from mammo_pd.training.setup import RunSetup


class NotTrainedError(InputError):
    """Raised in place of a training."""


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a run is set up with, in place of a training."""
    calls: list[dict[str, Any]] = []

    def note(store: Path, config: RunConfig, **options: Any) -> None:
        calls.append({"store": store, "config": config, **options})
        raise NotTrainedError("prepared")

    monkeypatch.setattr(RunSetup, "build", note)
    monkeypatch.setattr("mammo_pd.cli.train.check_training", lambda *_: None)
    return calls


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--res", "1001"], "1001 is not a multiple of the model's patch size of 16"),
        (["train", "--model", "vit_tiny_patch16_none"], "has no model 'vit_tiny_patch16_none'"),
        (["train", "--model", "resnet18"], "'resnet18' cannot drop patches"),
        (["train", "--fold", "1"], "the split default has no folds"),
        (["train", "--target", "none"], "the store has no such column"),
        (["train", "--weights", "FILE"], "the weights file FILE is truncated"),
        (["train", "--set", "device.precision=none"], "cannot use accelerator cpu"),
        (["train", "--set", "device.residual=bfloat16"], "needs bf16-mixed precision"),
        (["train", "--set", "training.monitor=none"], "training.monitor 'none' does not exist"),
        (["train", "--set", "model.global_pool=none"], "with global_pool 'none'"),
        (["train", "--batch-size", "auto"], "and there is none here; give a number"),
        (["train", "--batch-size", "3", "--set", "training.fusion=exam"], "give at least 4"),
        (["pretrain", "--keep", "1"], "keeps every patch in some steps"),
        (["pretrain", "--res", "1001"], "1001 is not a multiple"),
    ],
)
def test_what_is_refused_has_written_nothing(
    words: list[str],
    said: str,
    phantom_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither the default split of a store without any, nor a folder of runs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(phantom_store, "store", ignore=shutil.ignore_patterns("splits"))
    Path("FILE").write_text('12345678{"no": "weights"}')
    given = dict(zip(words[1::2], words[2::2], strict=True))
    options = {"--model": "test_vit", "--res": "64x48"} | given
    before = sorted(Path().rglob("*"))
    typed = [word for option in options.items() for word in option]
    assert main([words[0], *typed, "--set", "device.accelerator=cpu"]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.err.count("\n") == 1
    assert "making the default one" not in told.out
    assert sorted(Path().rglob("*")) == before


def make_run(folder: Path) -> RunFolder:
    info = RunInfo(
        run_id=folder.name,
        started=timestamp(),
        store=f"store of {folder.name}",
        store_fingerprint="",
        label_definition=None,
        split="default",
        split_hash="",
        labels_hash="",
        fold=None,
        model="vit_tiny_patch16_224",
        img_size=(128, 96),
        num_tokens=48,
        num_keep=12,
        environment={},
    )
    run = RunFolder(folder, info, RunConfig())
    run.create()
    return run


def test_flags_win_over_set_and_that_over_the_file(
    prepared: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text("training: {epochs: 3, lr: 0.1, seed: 4}\ndata: {split: five}\n")
    words = ["--config", str(file), "--set", "training.epochs=5", "--set", "training.lr=1e-3"]
    words += ["--lr", "1e-4", "--keep", "0.5:0.25+1", "--draw", "tissue", "--batch-size", "auto"]
    assert main(["train", *words, "--res", "512x416", "--devices", "2", "--fold", "1"]) == 2
    config = prepared[0]["config"]
    assert (config.training.epochs, config.training.lr, config.training.seed) == (5, 1e-4, 4)
    assert config.training.batch_size == "auto"
    assert config.patch_dropout.keep_rate == "0.5:0.25+1"
    assert (config.patch_dropout.draw, config.device.devices) == ("tissue", 2)
    assert (config.data.res, config.data.split, config.data.fold) == ("512x416", "five", 1)
    assert prepared[0]["store"] == Path("store")


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


def test_latest_run_is_the_one_that_was_started_last_whatever_the_clock_says(
    tmp_path: Path,
) -> None:
    for name in ("of an earlier version", "another of one"):
        run = make_run(tmp_path / name)
        described = json.loads((run.path / "run.json").read_text())
        del described["number"]
        (run.path / "run.json").write_text(json.dumps(described))
    assert RunFolder.latest(tmp_path).info.run_id == "of an earlier version"
    # A clock that is set back, or an hour that comes twice.
    for name in ("20261025-025900-ffff", "20261025-020100-0000", "20200101-000000-0000"):
        make_run(tmp_path / name)
        assert RunFolder.latest(tmp_path).info.run_id == name
    (tmp_path / "20261025-025900-ffff" / "run.json").write_text("{")
    with pytest.raises(InputError, match="25900-ffff is not a run"):
        RunFolder.latest(tmp_path)
    make_run(tmp_path / "made beside a damaged one")


def test_run_that_is_being_trained_is_not_trained_or_told_of_a_second_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "runs" / "one")
    with locked(run.lock):
        assert main(["sync", str(run.path)]) == 2
        assert "another process is using" in capsys.readouterr().err
        setup: Any = SimpleNamespace(
            introduce=lambda: None,
            fabric=SimpleNamespace(is_global_zero=True),
            say=print,
            config=RunConfig(),
        )
        with pytest.raises(InputError, match="another process is using"):
            fit(setup, run)


def test_resume_takes_the_latest_run_or_the_one_named(
    prepared: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, last = "20261124-000000-aaaa", "20261125-000000-bbbb"
    for name in (first, last):
        make_run(tmp_path / "runs" / name)
    assert main(["train", "--resume"]) == 2
    assert main(["train", "--resume", first]) == 2
    assert main(["train", f"--resume=runs/{first}"]) == 2
    assert main(["train", "--resume", "--runs", str(tmp_path / "runs")]) == 2
    # Where it was trained from is in the run.
    stores = [str(call["store"]) for call in prepared]
    assert stores == [f"store of {name}" for name in (last, first, first, last)]
    assert main(["train", "--resume", "--store", "moved"]) == 2
    assert prepared[-1]["store"] == Path("moved")


@pytest.mark.parametrize("problem", [None, "the server is away"])
def test_finished_run_that_is_resumed_is_only_told_to_mlflow(
    problem: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "one").update(finished=timestamp())
    before = {file: file.read_bytes() for file in run.path.iterdir()}
    synced = []

    def pass_on(one: RunFolder) -> str | None:
        synced.append(one.path.name)
        return problem

    monkeypatch.setattr("mammo_pd.cli.sync.pass_on_to_mlflow", pass_on)
    assert main(["train", "--resume"]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("the run one has finished: there is nothing left to train")
    assert last == "next: mammo-pd evaluate runs/one"
    assert synced == ["one"]
    assert {file: file.read_bytes() for file in run.path.iterdir()} == before
    assert main(["train", "--resume"]) == 0
    warned = "warning: MLflow cannot be reached (the server is away)" in capsys.readouterr().out
    assert warned == (problem is not None)


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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "ONE")
    monkeypatch.setattr("mammo_pd.cli.train.check_training", lambda *_: None)
    monkeypatch.setattr(RunSetup, "build", lambda *_: None)
    monkeypatch.setattr("mammo_pd.training.train.start_run", lambda *_: run)
    monkeypatch.setattr("mammo_pd.training.train.reopen_run", lambda *_, **__: (None, run))
    monkeypatch.setattr("mammo_pd.perf.memory_advice.memory_warning", interrupted)
    assert main(["train", *words]) == 130
    assert f", and {command} continues from there" in capsys.readouterr().err
    # Before there is a run of its own, --resume would go on with another.
    monkeypatch.setattr(RunSetup, "build", interrupted)
    assert main(["train"]) == 130
    assert ", and the same command continues from there" in capsys.readouterr().err


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
        (["--set", "=3"], "error: --set =3 names no key"),
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


def test_run_that_does_not_fit_is_told_which_batch_to_try(
    phantom_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Warned before it starts, tried all the same, and advised once memory really ran out."""
    from mammo_pd.perf import memory_advice

    tried = []

    def full(*_: object) -> None:
        tried.append(True)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Backbone, "forward", full)
    estimate = memory_advice.suggest_batch
    small = 2**27
    monkeypatch.setattr(
        memory_advice, "suggest_batch", lambda setup, memory=None: estimate(setup, small)
    )
    warn = memory_advice.memory_warning
    monkeypatch.setattr(memory_advice, "memory_warning", lambda setup: warn(setup, small))
    words = ["--res", "256x192", "--model", "vit_tiny_patch16_224", "--batch-size", "32"]
    words += ["--keep", "1", "--set", "device.accelerator=cpu"]
    places = ["--store", str(phantom_store), "--runs", str(tmp_path)]
    assert main(["train", *words, *places]) == 2
    shown = capsys.readouterr()
    assert "warning: a step is estimated to take" in shown.out
    assert tried
    assert re.search(r"does not fit in the memory.* try --batch-size \d+ first", shown.err)
