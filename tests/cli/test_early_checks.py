"""What needs no torch is refused before torch, MONAI or MLflow is imported."""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from mammo_pd.cli.app import main
from mammo_pd.cli.options import OperatingPointOption
from mammo_pd.evaluation.thresholds import choose_thresholds

# In the order in which they are run: the first that imports something heavy is named.
REFUSED = [
    (["train", "--store", "NOWHERE"], "there is no store at NOWHERE"),
    (["train", "--store", "STORE", "--split", "none"], "split --store STORE --name none"),
    (["train", "--store", "FILE"], "FILE is not a mammo-pd store"),
    (["train", "--store", "CV"], "CV is not a mammo-pd store"),
    (["train", "--store", "STORE", "--split", "parts", "--fold", "1"], "has no folds"),
    (["train", "--store", "STORE", "--weights", "none.safetensors"], "does not exist"),
    (["train", "--store", "STORE", "--split", "parts", "--weights", ""], "'' does not exist"),
    (["train", "--store", "STORE", "--res", "12y"], "--res 12y is not understood"),
    (["train", "--store", "STORE", "--res", "0"], "--res 0: an image cannot have 0 pixels"),
    (["train", "--store", "STORE", "--split", "parts", "--model", "vit_0"], "no model 'vit_0'"),
    (["train", "--store", "STORE", "--keep", "3"], "--keep 3"),
    (["train", "--store", "STORE", "--epochs", "0"], "--epochs is 0"),
    (["train", "--batch-size", "many"], "neither a number nor auto"),
    (["train", "--nonsense"], "Unknown option"),
    (["train", "--config", "none.yaml"], "none.yaml cannot be read"),
    (["train", "--resume", "NOWHERE"], "NOWHERE is not a run"),
    (["pretrain", "--store", "NOWHERE"], "there is no store at NOWHERE"),
    (["cv", "--store", "NOWHERE"], "there is no store at NOWHERE"),
    (["cv", "--store", "STORE", "--split", "parts"], "split --store STORE --folds 5"),
    (["cv", "--store", "STORE", "--seeds", "none"], "--seeds none is not understood"),
    (["evaluate", "NOWHERE"], "NOWHERE is not a run"),
    (["evaluate", "CV"], "CV is a cross-validation; name one of its runs"),
    (["evaluate", "--predictions", "NOWHERE"], "no predictions file at NOWHERE"),
    (["evaluate", "--store", "STORE", "--predictions", "x.csv"], "--store applies to runs"),
    (
        ["evaluate", "--checkpoint", "last", "--predictions", "x.csv"],
        "--checkpoint applies to runs",
    ),
    (["evaluate", "--prevalence", "2", "--predictions", "x.csv"], "prevalence"),
    (["predict", "NOWHERE", "."], "NOWHERE is not a run"),
    (["predict", "none.safetensors", "."], "there is no checkpoint at none.safetensors"),
    (["predict", "STORE/store.json", "NOWHERE"], "NOWHERE is not a folder"),
    (["predict", "x", ".", "--key", "NOWHERE"], "the key NOWHERE does not exist"),
    (["predict", "x", ".", "--key", "STORE/store.json"], "store.json is not a key of 32 bytes"),
    (["predict", "x", ".", "--operating-point", "best"], "best"),
    (["export", "NOWHERE", "--onnx", "x.onnx"], "NOWHERE is not a run"),
    (["evaluate", "FILE"], "FILE is not a run: it is a file"),
    (["compare", "STORE", "STORE"], "STORE is no run, cross-validation or file of predictions"),
    (["compare", "a run", "a run"], "mammo-pd evaluate 'a run'"),
    (["train", "--store", "no store"], "--out 'no store' (or"),
    (["train", "--store", "STORE", "--split", "a b"], "--store STORE --name 'a b'"),
    (["compare", "one.csv", "two.csv"], "no run or file of predictions one.csv"),
    (["embed", "--store", "NOWHERE"], "there is no store at NOWHERE"),
    (["embed", "none/run", "--store", "STORE"], "none/run"),
    (["embed", "--store", "STORE", "--keep", "2"], "--keep 2"),
    (["embed", "timm", "--store", "STORE", "--model", "vit_none"], "has no model 'vit_none'"),
    (["show", "NOWHERE"], "NOWHERE is not a run"),
    (["show", "none.safetensors"], "there is no checkpoint at none.safetensors"),
    (["sync", "NOWHERE"], "NOWHERE is not a run"),
    (["split", "NOWHERE"], "there is no store at NOWHERE"),
    (["forget", "NOWHERE", "--missing"], "there is no store at "),
    (["bench", "--store", "NOWHERE"], "there is no store at NOWHERE"),
    (["bench", "--keep", "2"], "--keep 2"),
    (["bench", "--model", "vit_none"], "has no model 'vit_none'"),
    (["budget", "--memory", "many"], "--memory many is not understood"),
    (["budget", "--bench", "NOWHERE"], "there is no bench at NOWHERE"),
    (["budget", "--res", "big"], "--res big is not understood"),
    (["budget", "--model", "vit_none"], "has no model 'vit_none'"),
    (["doctor", "NOWHERE"], "NOWHERE is not a folder"),
    (["inspect", "NOWHERE"], "is not a folder"),
    (["preprocess", "NOWHERE"], "is not a folder"),
    (["preprocess", ".", "--workers", "0"], "--workers 0"),
    (["preprocess", ".", "--key", "STORE/store.json"], "store.json is not a key of 32 bytes"),
    (["preprocess", ".", "--source", "mias"], "own table; name it with --labels"),
    # A file where a folder is to be made, and the other way round.
    (["demo", "--out", "FILE"], "--out FILE: FILE is a file"),
    (["demo", "--out", "FILE/demo"], "FILE is a file; name a folder"),
    (["train", "--runs", "FILE", "--store", "STORE"], "--runs FILE: FILE is a file"),
    (["cv", "--out", "FILE"], "--out FILE: FILE is a file"),
    (["evaluate", "--out", "FILE"], "--out FILE: FILE is a file"),
    (["predict", "x", ".", "--out", "FILE"], "--out FILE: FILE is a file"),
    (["compare", "x", "y", "--out", "FILE"], "--out FILE: FILE is a file"),
    (["bench", "--out", "FILE"], "--out FILE: FILE is a file"),
    (["export", "x", "--bundle", "FILE"], "--bundle FILE: FILE is a file"),
    (["export", "x", "--onnx", "STORE"], "--onnx STORE is a folder"),
    (["inspect", ".", "--csv", "STORE"], "--csv STORE is a folder"),
    (["inspect", ".", "--csv", "FILE/x.csv"], "--csv FILE/x.csv: "),
    (["preprocess", ".", "--contact-sheet", "STORE"], "--contact-sheet STORE is a folder"),
]

_PROGRAM = """
import contextlib, io, sys
from mammo_pd.cli.app import main
for words in %r:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(words)
    heavy = {"torch", "monai", "mlflow", "timm", "lightning"} & set(sys.modules)
    print(repr((words, status, said.getvalue(), sorted(heavy))))
    if heavy:
        break
"""


def test_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "FILE").touch()
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "run.json").touch()
    (tmp_path / "CV").mkdir()
    (tmp_path / "CV" / "cv.json").write_text("{}")
    (tmp_path / "STORE" / "splits").mkdir(parents=True)
    (tmp_path / "STORE" / "store.json").write_text(
        '{"format": 2, "settings": {}, "fingerprint": "f"}'
    )
    (tmp_path / "STORE" / "splits" / "parts.csv").write_text(
        "image_id,patient_id,split\na,p,train\n"
    )
    digest = hashlib.sha256(b"a,train").hexdigest()
    (tmp_path / "STORE" / "splits" / "parts.json").write_text(json.dumps({"hash": digest}))
    program = _PROGRAM % ([words for words, _ in REFUSED],)
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = ran.stdout.splitlines()
    for line, (words, message) in zip(lines, REFUSED, strict=False):
        done, status, said, heavy = ast.literal_eval(line)
        assert (done, status, heavy) == (words, 2, []), said
        assert message in said, words
    assert len(lines) == len(REFUSED)


# Without demo and bench, which would work for minutes where they are not refused.
WRITING = [
    words
    for words, message in REFUSED
    if message.startswith("--") and " is a f" in message and words[0] not in ("demo", "bench")
]


@pytest.mark.parametrize("words", WRITING)
def test_what_cannot_be_written_is_refused_where_a_file_in_its_place_is(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    # Its mode says nothing to root, who may run the tests.
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != closed)
    named = str(closed / "new")
    assert main([re.sub("^(FILE|STORE)[^ ]*", named, word) for word in words]) == 2
    error = capsys.readouterr().err
    assert f" {named}: there is no permission to write in {closed}" in error
    assert not any(closed.iterdir())


def test_operating_points_of_predict_are_those_that_are_locked() -> None:
    label = np.array([0, 1, 0, 1])
    chosen = choose_thresholds(label, np.array([0.1, 0.2, 0.3, 0.4]), miss_cost=1.0)
    assert list(get_args(OperatingPointOption)) == [threshold.code for threshold in chosen]
