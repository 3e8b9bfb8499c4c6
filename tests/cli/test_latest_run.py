"""Commands that take the latest run where none is named say which that is, all alike."""

import json
import os
import re
from pathlib import Path

import pytest
from small_runs import set_up, small

from mammo_pd.cli.app import main
from mammo_pd.training.checkpoint import weights_of
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.train import start_run

# Some are refused thereafter, before any work.
COMMANDS = {
    "evaluate": ["evaluate", "--within", "parity"],
    "embed": ["embed", "--model", "test_vit"],
    "show": ["show"],
    "show as JSON": ["show", "--json"],
    "sync": ["sync"],
    "train": ["train", "--resume"],
    "pretrain": ["pretrain", "--resume"],
}


@pytest.fixture(scope="module")
def runs(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    """Two runs, both finished, the later one last."""
    place = tmp_path_factory.mktemp("latest") / "runs"
    setup = set_up(phantom_store, small())
    started = []
    for _ in range(2):
        run = start_run(place, setup).update(finished="now")
        weights_of(setup.model, setup.backbone.timm_model, {"epoch": 1}, setup.card).write(
            run.chosen
        )
        started.append(run)
    return started


@pytest.mark.parametrize("command", COMMANDS)
def test_the_latest_run_is_named(
    command: str,
    runs: list[RunFolder],
    phantom_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAMMO_PD_STORE", str(phantom_store))
    words = [*COMMANDS[command], "--runs", str(runs[0].path.parent)]
    main(words)
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == f"no run was named: taking the latest, {runs[1].path}"
    assert said.err.count("taking the latest") == 1
    # Once is enough: no second line for it, such as "evaluating RUN".
    assert not re.search(rf"^\w+ {re.escape(str(runs[1].path))}$", said.out, re.MULTILINE)
    if "--json" in words:
        json.loads(said.out)  # for other programs, so nothing else is in it
    # A run that was named need not be said.
    named = str(runs[0].path)
    after = words.index("--resume") + 1 if "--resume" in words else 1
    main([*words[:after], named, *words[after:]])
    assert "taking the latest" not in capsys.readouterr().err


def test_one_of_several_processes_says_it(
    runs: list[RunFolder], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, said in (("0", 1), ("1", 0)):
        monkeypatch.setitem(os.environ, "RANK", rank)
        main(["train", "--resume", "--runs", str(runs[0].path.parent)])
        assert capsys.readouterr().err.count("taking the latest") == said
