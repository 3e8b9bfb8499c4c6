import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import set_up, small
from torch import nn

from mammo_pd.cli.app import main
from mammo_pd.data.cohort import Cohort
from mammo_pd.training.checkpoint import weights_of
from mammo_pd.training.loop import fit
from mammo_pd.training.train import start_run


def test_checkpoints_say_what_they_are_without_their_run(
    phantom_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = set_up(phantom_store, small(training__epochs=1))
    run = start_run(tmp_path / "runs", setup)
    history = fit(setup, run)
    for file in (run.chosen, run.last):
        alone = file.rename(tmp_path / file.name)
        assert main(["show", str(alone), "--json"]) == 0
        printed = capsys.readouterr().out
        found = json.loads(printed)
        assert found["metrics"] == history[-1]
        card = found["card"]
        assert card["split_hash"] == run.info.split_hash
        assert card["labels_hash"] == run.info.labels_hash
        assert card["store_fingerprint"] == run.info.store_fingerprint
        assert card["config"] == run.config.model_dump(mode="json")
        cohort: Cohort = setup.cohort
        for part, counts in card["counts"].items():
            rows = cohort.rows[cohort.rows["split"] == part].dropna(subset=["label"])
            assert counts["images"] == len(rows)
            assert counts["patients"] == rows["patient_id"].nunique()
            assert counts["positives"] == {"label": rows["label"].sum()}
        for column in ("patient_id", "exam_id", "image_id"):
            assert not any(value in printed for value in cohort.rows[column])
        assert str(tmp_path) not in printed
        assert str(phantom_store) not in printed
        assert main(["show", str(alone)]) == 0
        text = capsys.readouterr().out
        assert "image size: 64x48 pixels" in text
        assert f"split hash: {run.info.split_hash}" in text
        assert "val_auc" in text
        assert not re.search(r": [{(\[]|\b(?:None|True|False|nan)\b", text)  # no Python is shown
        # What JSON has no value of is missing by the same word, whether null or text.
        assert text.count(": none\n") == sum(map(_is_missing, _leaves(found)))
        assert _imported_by_showing(alone) == []


def _imported_by_showing(file: Path) -> list[str]:
    """Of what takes seconds to load, and a header has no use for; in a process of its own."""
    program = (
        "import sys\n"
        "from mammo_pd.cli.app import main\n"
        f"assert main(['show', {str(file)!r}]) == 0\n"
        "heavy = ('torch', 'torchvision', 'timm', 'monai', 'lightning', 'mlflow')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    imported: list[str] = ast.literal_eval(done.stderr)
    return imported


def _leaves(found: object) -> list[object]:
    if isinstance(found, dict) and found:
        return [leaf for one in found.values() for leaf in _leaves(one)]
    return [found]


def _is_missing(leaf: object) -> bool:
    return leaf in (None, "None", "", {}, []) or leaf != leaf


def test_no_text_of_a_checkpoint_steers_the_terminal(
    phantom_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each text of its header, names included, with a control sequence and a line of its own."""
    evil = "\x1b]0;owned\x07\x1b[2K\nnext: mammo-pd forget --missing"

    def spoilt(value: object) -> object:
        if isinstance(value, str):
            return value + evil
        if isinstance(value, dict):
            return {**value, "further" + evil: "more" + evil} | {
                name: spoilt(one) for name, one in value.items()
            }
        return [*map(spoilt, value)] if isinstance(value, list) else value

    setup = set_up(phantom_store, small(training__epochs=1))
    run = start_run(tmp_path, setup)
    fit(setup, run)
    with safe_open(run.chosen, "pt") as file:
        header = file.metadata()
    card = json.loads(header["model_card"])
    card = {
        name: spoilt(value) if name != "normalization" else value for name, value in card.items()
    }
    facts = spoilt(json.loads(header["facts"]))
    spoilt_header = {"model_card": json.dumps(card), "facts": json.dumps(facts)}
    save_file(load_file(run.chosen), tmp_path / "bad.safetensors", spoilt_header)
    capfd.readouterr()
    assert main(["show", str(tmp_path / "bad.safetensors")]) == 0
    printed = capfd.readouterr().out
    assert "owned" in printed
    lines = printed.splitlines()
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if line.startswith("next:")] == lines[-1:]


def test_older_and_foreign_and_damaged_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Linear(2, 1)
    old = tmp_path / "old.safetensors"
    weights_of(model, model, {"epoch": 3}).write(old)
    assert main(["show", str(old)]) == 0
    printed = capsys.readouterr().out
    assert "earlier version" in printed
    assert "epoch: 3" in printed
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.ones(1)}, foreign)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(old.read_bytes()[:50])
    for file in (foreign, damaged, tmp_path / "none.safetensors"):
        assert main(["show", str(file)]) == 2
        error = capsys.readouterr().err
        assert file.name in error
        assert error.count("\n") == 1
