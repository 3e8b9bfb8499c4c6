import json
from pathlib import Path

import pytest
from few_steps import few_steps
from typed_commands import next_command

from mammo_pd.cli.app import app, main
from mammo_pd.perf import bench


def test_next_command_of_bench_and_of_budget_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    # On a CPU the usual batch is 2.
    monkeypatch.setattr(bench, "_SMALL_BATCH", 1)
    monkeypatch.setattr(bench, "_EPOCH_SECONDS", 0)
    tiny = "--res 64x48 --keep 0.5 --model test_vit --epochs"
    with few_steps():
        assert main(["bench", *tiny.split()]) == 0
    found = json.loads(Path("bench/bench.json").read_text())
    assert [row["batch_size"] for row in found["rows"]] == [2, 2]
    assert [row["batch_size"] for row in found["small_batches"]] == [1, 1]
    [epoch] = found["epochs"]
    assert (epoch["train_images"], epoch["val_images"]) == (40, 4)
    # Measured again, after the epochs.
    assert epoch["bare_images_per_second"] not in (0, found["rows"][0]["images_per_second"])
    # Validation and checkpoints come on top.
    assert epoch["epoch_images_per_second"] < epoch["train_images_per_second"]
    seconds = epoch["train_images"] / epoch["epoch_images_per_second"]
    assert epoch["epoch_seconds"] == pytest.approx(seconds, rel=0.05)
    page = Path("bench/bench.md").read_text()
    assert page.index("## Small batches") < page.index("## Whole epochs")
    assert "| 40 + 4 |" in page
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
