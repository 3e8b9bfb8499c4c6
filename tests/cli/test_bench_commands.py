from pathlib import Path

import pytest
from few_steps import few_steps
from typed_commands import next_command

from mammo_pd.cli.app import app, main


def test_next_command_of_bench_and_of_budget_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    tiny = "--res 64x48 --keep 0.5 --model test_vit --batch-size 2"
    with few_steps():
        assert main(["bench", *tiny.split()]) == 0
    command = next_command(capsys)
    assert command.startswith("mammo-pd budget --bench bench/bench.json")
    assert main(command.split()[1:]) == 0
    command = next_command(capsys)
    assert command.startswith("mammo-pd train --res ")
    app.parse_args(command.split()[1:])


def test_lists_take_one_value_or_several(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--memory", "24GB", "--model", "vit_tiny_patch16_224"]
    assert main(["budget", *given, "--res", "512", "1024", "--keep", "0.25", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "| vit_tiny" in line]
    assert len(rows) == 4
    assert main(["budget", *given, "--res=512", "--keep", "0.25"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "| vit_tiny" in line]
    assert len(rows) == 1
