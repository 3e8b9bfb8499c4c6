import hashlib
import json
import shlex
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from typed_commands import next_command

from mammo_pd.cli.app import main
from mammo_pd.cli.options import AggregationOption
from mammo_pd.evaluation.levels import Aggregation


def test_aggregations_offered_are_those_there_are() -> None:
    """Typed out, since the module that defines them imports pandas."""
    assert get_args(AggregationOption) == tuple(Aggregation)


@pytest.mark.usefixtures("blank_figures")
def test_report_on_a_table_is_written_beside_it(
    predictions: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "theirs.csv"
    predictions.to_csv(file, index=False)
    stated = tmp_path / "study.yaml"
    stated.write_text("study: {intended_use: Reads second., follow_up: Two years.}")
    choices = ["--aggregation", "noisy_or", "--reader", "0.8", "0.9"]
    words = ["evaluate", "--predictions", str(file), "--config", str(stated), *choices]
    assert main(words) == 0
    assert next_command(capsys) == f"mammo-pd compare {file} OTHER_MODEL.csv"
    metrics = json.loads((tmp_path / "theirs-report" / "metrics.json").read_text())
    assert metrics["context"]["study"] == {
        "intended_use": "Reads second.",
        "reference_standard": None,
        "follow_up": "Two years.",
    }
    hashed = metrics["context"]["provenance"]["theirs.csv, SHA-256"]
    assert hashed == hashlib.sha256(file.read_bytes()).hexdigest()
    assert hashed in (tmp_path / "theirs-report" / "index.html").read_text()


def test_several_tables_are_one_report_on_external_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def evaluate_sets(files: tuple[Path, ...], out: Path, **how: object) -> dict[str, object]:
        asked.update(files=files, out=out, **how)
        locked = {"images": 7, "digest": "0" * 64}
        return {"sets": {}, "shared_patients": {}, "locked": locked}

    monkeypatch.setattr("mammo_pd.report.external.evaluate_sets", evaluate_sets)
    files = [str(tmp_path / name) for name in ("own.csv", "b.csv", "c.csv")]
    assert main(["evaluate", "--predictions", *files, "--prevalence", "0.006"]) == 0
    assert [str(file) for file in asked["files"]] == files
    assert asked["out"] == tmp_path / "own-report"
    assert asked["prevalence"] == 0.006
    assert "locked before the others were read" in capsys.readouterr().out


@pytest.mark.parametrize("choice", [["--miss-cost", "0"], ["--reader", "80", "90"]])
def test_choices_are_checked_before_hours_of_scoring(
    choice: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which would first say that there is no run."""
    assert main(["evaluate", *choice, "--runs", str(tmp_path)]) == 2
    assert "there is no run" not in capsys.readouterr().err


@pytest.mark.usefixtures("blank_figures")
def test_models_of_one_name_are_told_apart(
    predictions: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / folder / "predictions.csv" for folder in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        predictions.to_csv(file, index=False)
    out = tmp_path / "out"
    words = ["compare", *map(str, files), "--out", str(out)]
    assert main(words) == 0
    page = (out / "index.html").read_text()
    assert "Comparison of one/predictions and two/predictions" in page
    assert str(tmp_path) not in page


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("named_first", ["good", "poor"])
def test_compare_goes_on_with_the_better_model(
    named_first: str, predictions: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or with each of those between which the comparison does not decide, whatever their order."""
    random = np.random.default_rng(3)
    # By what the label counts in their scores.
    for name, weight in {"good": 0.4, "alike": 0.4, "poor": 0.0}.items():
        noise = random.uniform(0, 0.6, len(predictions))
        run = tmp_path / name
        run.mkdir()
        (run / "run.json").write_text("{}")
        scores = weight * predictions["label"] + noise
        predictions.assign(score=scores).to_csv(run / "predictions.csv", index=False)

    def compared(*names: str) -> str:
        folders = [str(tmp_path / name) for name in names]
        assert main(["compare", *folders, "--out", str(tmp_path / "out")]) == 0
        return capsys.readouterr().out.partition("look at: ")[2].partition("\n")[2]

    def applying(name: str) -> str:
        return f"mammo-pd predict {tmp_path / name} DICOM_DIR\n"

    other = ({"good", "poor"} - {named_first}).pop()
    assert compared(named_first, other) == f"next: {applying('good')}"
    undecided = "undecided between good and alike: at some level their difference may be due to "
    both = f"{undecided}chance\nnext: {applying('good')}  or: {applying('alike')}"
    assert compared("good", "alike") == both
    order = [named_first, other, "alike"]
    assert compared(*order) == both
    # One model is one command.
    twice = compared(named_first, named_first)
    assert twice.partition("\n")[2] == f"next: {applying(named_first)}"


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("told_by", ["cv.json", "run.json"])
def test_of_models_of_other_columns_the_reports_are_named(
    told_by: str, predictions: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not that they never finished, nor that columns are to be renamed; each file named will do."""
    model = tmp_path / "a model"
    files = [model / "report" / name / "predictions.csv" for name in ("birads", "dense")]
    for file in files:
        file.parent.mkdir(parents=True)
        predictions.to_csv(file, index=False)
    (model / told_by).write_text("{}")
    if told_by == "run.json":
        table = predictions.rename(columns={"label": "dense", "score": "dense_score"})
        table.to_csv(model / "predictions.csv", index=False)
    out = ["--out", str(tmp_path / "out")]
    assert main(["compare", str(model), str(model), *out]) == 2
    advice = capsys.readouterr().err.partition("name the predictions of one: ")[2]
    assert shlex.split(advice.replace(" or ", " ")) == [str(file) for file in files]
    assert main(["compare", *map(str, files), *out]) == 0
    # A run that learnt the label, too, has it in its own table.
    if told_by == "run.json":
        (model / "report" / "label").mkdir()
        for file in (model / "report" / "label" / "predictions.csv", model / "predictions.csv"):
            predictions.to_csv(file, index=False)
        assert main(["compare", str(model), str(model), *out]) == 0


@pytest.mark.usefixtures("blank_figures")
def test_cross_validations_are_compared_by_their_folders(
    predictions: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or by their files, which all have one name in folders of one name."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        (folder / "report").mkdir(parents=True)
        (folder / "cv.json").write_text("{}")
    out = ["--out", str(tmp_path / "out")]
    assert main(["compare", *map(str, folders), *out]) == 2
    assert "one has no predictions yet: the cross-validation did not finish" in (
        capsys.readouterr().err
    )
    files = [folder / "report" / "predictions.csv" for folder in folders]
    folds = predictions["patient_id"].factorize()[0] % 2
    for file in files:
        predictions.assign(fold=folds).to_csv(file, index=False)
    page = tmp_path / "out" / "index.html"
    assert main(["compare", *map(str, folders), *out]) == 0
    assert "Comparison of one and two" in page.read_text()
    # The table says what it shows, and has no column of a test that knows no folds.
    assert "AUC within folds of one minus that of two" in page.read_text()
    assert "DeLong" not in page.read_text()
    printed = capsys.readouterr().out
    for lead, file in zip(("next", "  or"), files, strict=True):
        assert f"{lead}: mammo-pd evaluate --predictions {file}\n" in printed
    assert main(["compare", *map(str, files), *out]) == 0
    named = "Comparison of one/report/predictions and two/report/predictions"
    assert named in page.read_text()
    assert str(tmp_path) not in page.read_text()
