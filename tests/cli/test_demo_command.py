from collections.abc import Sequence
from pathlib import Path

import pytest

from mammo_pd import phantoms
from mammo_pd.cli import app as command_line
from mammo_pd.cli.demo import demo


def test_demo_is_the_commands_themselves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it prints is what it runs, one step after the other on the same store."""
    run: list[Sequence[str]] = []
    parse = command_line.app.parse_args
    monkeypatch.setattr(phantoms, "write_phantoms", lambda folder, *_, **__: folder / "labels.csv")
    monkeypatch.setattr(command_line, "app", run.append)
    demo(out=tmp_path)
    assert [words[0] for words in run] == ["preprocess", "split", "train", "evaluate"]
    printed = capsys.readouterr().out
    assert [f"$ mammo-pd {' '.join(words)}" in printed for words in run] == [True] * 4
    given = [parse(words)[1].arguments for words in run]
    store, runs = tmp_path / "store", tmp_path / "runs"
    assert given[0]["out"] == given[1]["store"] == given[2]["store"] == store
    assert given[3]["store"] == (store,)
    assert given[2]["runs"] == given[3]["runs"] == runs
