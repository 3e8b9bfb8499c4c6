"""Trained on one store, tested on others, whose images have no split and need none."""

import json
import os
import shutil
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from blank_figures import figures_left_blank
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import small

from mammo_pd.cli.app import main
from mammo_pd.cli.scored_runs import choices_for
from mammo_pd.data.labels import read_labels
from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.inference import external as scoring
from mammo_pd.inference import predict as predicting
from mammo_pd.ingest.preprocess import preprocess
from mammo_pd.phantoms import PhantomSettings, write_phantoms
from mammo_pd.report import external as report
from mammo_pd.terms import VoiPolicy
from mammo_pd.training import runs
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.train import train


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of eight other women; not to be changed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    settings = PhantomSettings(patients=8, scale=0.1, prevalence=0.5, seed=7)
    write_phantoms(folder / "dicom", settings, processes=1)
    labels = read_labels(folder / "dicom" / "labels.csv")
    preprocess(folder / "dicom", folder / "other", labels=labels, say=lambda _: None)
    return folder / "other"


@pytest.fixture(scope="module")
def run(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    trained = train(
        phantom_store,
        tmp_path_factory.mktemp("runs"),
        small(training__epochs=1),
        say=lambda _: None,
    )
    assert trained is not None
    return trained.path


@pytest.fixture(autouse=True)
def _no_figures() -> object:
    with figures_left_blank():
        yield


def metrics_of(folder: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((folder / "metrics.json").read_text())
    return found


def note_calls(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, happened: list[str]
) -> None:
    function = getattr(module, name)

    def noted(*given: object, **how: object) -> object:
        happened.append(name)
        return function(*given, **how)

    monkeypatch.setattr(module, name, noted)


def test_a_store_without_a_split_is_tested_whole(
    run: Path,
    elsewhere: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not list((elsewhere / "splits").glob("*"))
    out = tmp_path / "report"
    happened: list[str] = []
    note_calls(monkeypatch, report, "lock", happened)
    note_calls(monkeypatch, scoring, "score_images", happened)
    wanted = ["--store", str(elsewhere), "--out", str(out), "--within", "manufacturer", "age"]
    assert main(["evaluate", str(run), *wanted]) == 0
    assert happened == ["lock", "score_images"]
    printed = capsys.readouterr().out
    found = metrics_of(out)
    assert list(found["sets"]) == ["store", "other"]
    assert found["sets"]["other"]["image"]["n"] == 32
    assert found["locked"]["part"] == "val"
    assert found["shared_patients"] == {"store": 0, "other": 0}
    assert found["shared_images"] == {"store": 0, "other": 0}
    assert "different keys" in found["notes"]["other"][0]
    assert "note: other: Compared with every image" in printed
    page = (out / "index.html").read_text()
    assert "locked before any other set was read" in page
    assert "Patient IDs could not be compared" in page
    # The tables that were written give the same, as anyone's predictions do.
    for one in found["sets"].values():
        assert [row["columns"] for row in one["within"]] == 4 * ["manufacturer, age"]
    (table,) = (run / "external").glob("other-*.csv")
    tables = [str(run / "predictions.csv"), str(table)]
    assert main(["evaluate", "--predictions", *tables, "--out", str(tmp_path / "again")]) == 0
    again = metrics_of(tmp_path / "again")
    assert again["locked"] == found["locked"]
    for one, other in zip(found["sets"].values(), again["sets"].values(), strict=True):
        for level in ("image", "breast", "exam", "patient"):
            assert one[level] == other[level]


def test_weights_that_training_replaces_between_two_stores_are_refused(
    run: Path,
    elsewhere: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    predict_store = scoring.predict_store

    def replaced(folder: RunFolder, *given: object, **named: object) -> object:
        tensors = load_file(folder.chosen)
        first = next(iter(tensors))
        with safe_open(folder.chosen, "pt") as file:
            header = file.metadata()
        save_file({**tensors, first: tensors[first] + 1}, folder.chosen, header)
        return predict_store(folder, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(scoring, "predict_store", replaced)
    words = ["evaluate", str(copy), "--store", str(elsewhere), "--out", str(tmp_path / "report")]
    assert main(words) == 2
    assert "were replaced while it was evaluated" in capsys.readouterr().err
    assert not (tmp_path / "report" / "metrics.json").exists()


def test_a_column_to_compare_within_is_looked_for_before_scoring(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    happened: list[str] = []
    note_calls(monkeypatch, predicting, "score_dataset", happened)
    assert main(["evaluate", str(run), "--within", "age", "parity"]) == 2
    error = capsys.readouterr().err
    assert "no column parity to compare within" in error
    assert happened == []
    predicted = predicting.predict(RunFolder.open(run), say=lambda _: None)
    assert list(predicted.table) == predicting.columns_of_predictions(RunFolder.open(run))


@pytest.mark.parametrize("other_store", [False, True])
def test_a_folder_that_the_report_cannot_replace_is_refused_before_scoring(
    other_store: bool,
    run: Path,
    elsewhere: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    happened: list[str] = []
    note_calls(monkeypatch, predicting, "score_dataset", happened)
    words = ["evaluate", str(run), *(["--store", str(elsewhere)] if other_store else []), "--out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert main([*words, str(tmp_path / "mine")]) == 2
    assert "holds files that are not a report" in capsys.readouterr().err
    # The report is made beside the one that it replaces.
    (tmp_path / "closed" / "report").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path / "closed")
    assert main([*words, str(tmp_path / "closed" / "report")]) == 2
    assert f"no permission to write in {tmp_path / 'closed'}" in capsys.readouterr().err
    assert happened == []


def test_a_target_is_not_compared_within_its_own_column(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it would have positives or negatives alone; the other targets are."""
    learnt = {"training__objective": "findings", "training__targets": ("density:4", "cancer")}
    choices = {"within": ("cancer", "density", "age"), "miss_cost": 10.0}
    for fusion in ({}, {"training__fusion": "breast"}):
        objective = build_objective(small(**learnt, **fusion).training)
        for target, others in (
            ("density_from_3", ["cancer", "age"]),
            ("cancer", ["density", "age"]),
        ):
            found = choices_for(target, objective, choices)
            assert found == {**choices, "within": others}
            told = f"note: {target} is not compared within its own column\n"
            assert capsys.readouterr().out == told
    assert choices_for(None, objective, choices) == choices
    assert choices_for("cancer", objective, {"within": ["age"]}) == {"within": ["age"]}

    # A run of that column alone is refused before it is scored.
    settings = small(training__objective="findings", training__targets=("density:4",))
    monkeypatch.setattr(runs, "load_config", lambda *_, **__: settings)
    happened: list[str] = []
    note_calls(monkeypatch, predicting, "score_dataset", happened)
    assert main(["evaluate", str(run), "--within", "density"]) == 2
    assert "positives or negatives alone; name columns" in capsys.readouterr().err
    assert happened == []


def trained_on_six_targets(store: Path, folder: Path) -> RunFolder:
    vendors = ",".join(f"Phantom vendor {letter}" for letter in "ABCDEF")
    config = small(
        training__epochs=1,
        training__objective="findings",
        training__targets=(f"vendor:{vendors}", "label"),
    )
    trained = train(store, folder, config, say=lambda _: None)
    assert trained is not None
    return trained


@pytest.mark.slow
def test_targets_are_reported_on_within_one_anothers_columns(
    phantom_store: Path, tmp_path: Path
) -> None:
    trained = trained_on_six_targets(phantom_store, tmp_path / "runs")
    words = ["evaluate", str(trained.path), "--out", str(tmp_path / "out"), "--resamples", "20"]
    assert main([*words, "--within", "vendor", "age"]) == 0
    reports = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert len(reports) == 6
    for target in reports:
        columns = [row["columns"] for row in metrics_of(tmp_path / "out" / target)["within"]]
        assert columns == 4 * ["vendor, age" if target == "label" else "age"]


@pytest.mark.slow
def test_a_target_that_cannot_be_locked_leaves_the_others_their_reports(
    phantom_store: Path,
    elsewhere: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained = trained_on_six_targets(phantom_store, tmp_path / "runs")
    decide, asked = report.lock, []

    def no_threshold_but_for_the_last(rows: pd.DataFrame, **how: object) -> object:
        asked.append(rows)
        return decide(rows.assign(label=0.0) if len(asked) < 6 else rows, **how)

    monkeypatch.setattr(report, "lock", no_threshold_but_for_the_last)
    out = tmp_path / "report"
    words = ["evaluate", str(trained.path), "--store", str(elsewhere), "--out", str(out)]
    assert main(words) == 0
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["label"]
    table = pd.read_csv(out / "targets.csv")
    assert table.groupby("set")["target"].unique().map(list).to_dict() == {
        "store": ["label"],
        "other": ["label"],
    }
    printed = capsys.readouterr().out
    assert printed.count("note: no report, the set store has labels of one class only") == 5
    assert f"look at: {out / 'label' / 'index.html'}" in printed


def test_a_target_alone_is_tested_on_another_store(
    phantoms: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its table has no columns label and score, and what a store's label is says nothing of it."""
    for name, dicom in (("own", phantoms), ("other", elsewhere.parent / "dicom")):
        table = pd.read_csv(dicom / "labels.csv")
        table["marked"] = table["label"]
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        labels = read_labels(tmp_path / f"{name}.csv", carry=("marked",))
        preprocess(dicom, tmp_path / name, labels=labels, say=lambda _: None)
    info = json.loads((tmp_path / "other" / "store.json").read_text())
    info["labels"]["definition"] = "positive where another column says so"
    (tmp_path / "other" / "store.json").write_text(json.dumps(info))
    config = small(
        training__epochs=1, training__objective="findings", training__targets=("marked",)
    )
    trained = train(tmp_path / "own", tmp_path / "runs", config, say=lambda _: None)
    assert trained is not None
    out = tmp_path / "report"
    words = ["evaluate", str(trained.path), "--store", str(tmp_path / "other")]
    assert main([*words, "--out", str(out)]) == 0
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["marked"]
    assert pd.read_csv(out / "targets.csv").groupby("set")["n"].max().to_dict() == {
        "own": int((pd.read_csv(trained.path / "predictions.csv")["split"] == "test").sum()),
        "other": 32,
    }
    assert "The label is marked." in (out / "marked" / "2-other" / "index.html").read_text()
    assert "another column" not in capsys.readouterr().out


def test_what_is_in_both_stores_is_told_of(
    run: Path, phantoms: Path, elsewhere: Path, phantom_store: Path, tmp_path: Path
) -> None:
    """Two of the women trained on, in an archive of another key, and in one of the same."""
    mixed = tmp_path / "dicom"
    shutil.copytree(elsewhere.parent / "dicom", mixed / "a")
    for woman in sorted(phantoms.glob("PHANTOM*"))[:2]:
        shutil.copytree(woman, mixed / "b" / woman.name)
    tables = [
        pd.read_csv(folder / "labels.csv") for folder in (elsewhere.parent / "dicom", phantoms)
    ]
    both = pd.concat(tables).drop(columns="path").drop_duplicates("sop_instance_uid")
    both.to_csv(tmp_path / "labels.csv", index=False)
    labels = read_labels(tmp_path / "labels.csv")
    key = (phantom_store / "private" / "key").read_bytes()
    for name, given in (("another-key", None), ("same-key", key)):
        preprocess(mixed, tmp_path / name, labels=labels, key=given, say=lambda _: None)
    out = tmp_path / "report"
    stores = [w for name in ("another-key", "same-key") for w in ("--store", str(tmp_path / name))]
    assert main(["evaluate", str(run), *stores, "--out", str(out)]) == 0
    found = metrics_of(out)
    assert found["shared_images"] == {"store": 0, "another-key": 8, "same-key": 8}
    # Phantoms are numbered from 1 in every archive: one key gives all eight the IDs of others.
    assert found["shared_patients"] == {"store": 0, "another-key": 0, "same-key": 8}
    page = (out / "index.html").read_text()
    assert "8 images of another-key are, pixel by pixel" in page
    assert "same-key shares 8 patient IDs" in page


@pytest.mark.parametrize("kind", ["voi", "unlabelled", "copy", "steps"])
def test_stores_that_test_nothing_are_refused_before_scoring(
    kind: str,
    run: Path,
    elsewhere: Path,
    phantom_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = tmp_path / "store"
    if kind == "copy":
        shutil.copytree(phantom_store, store, ignore=shutil.ignore_patterns("splits"))
        said = "it is not an external set"
    elif kind == "steps":
        info = json.loads((shutil.copytree(elsewhere, store) / "store.json").read_text())
        info["settings"]["steps"] = ["brighten"]
        (store / "store.json").write_text(json.dumps(info))
        said = "steps was None there and is ['brighten'] here"
    else:
        labels = read_labels(elsewhere.parent / "dicom" / "labels.csv")
        preprocess(
            elsewhere.parent / "dicom",
            store,
            labels=labels if kind == "voi" else None,
            settings=ImagingSettings(voi=VoiPolicy.RAW if kind == "voi" else VoiPolicy.AUTO),
            say=lambda _: None,
        )
        said = (
            "voi was auto there and is raw here"
            if kind == "voi"
            else "no usable image with a label"
        )
    assert main(["evaluate", str(run), "--store", str(store)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_settings_that_may_differ_are_told_of(run: Path, elsewhere: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(elsewhere, tmp_path / "older"))
    info = json.loads((store / "store.json").read_text())
    for name, value, said in (
        ("bits_stored", "12", "bits_stored was None there and is 12 here (these settings follow"),
        ("algorithm_version", "6", "preprocess the older store again"),
    ):
        info["settings"][name] = value
        (store / "store.json").write_text(json.dumps(info))
        (note,) = scoring.check_external(RunFolder.open(run), None, store)
        assert said in note


def test_a_store_that_has_moved_is_the_runs_own(
    run: Path,
    elsewhere: Path,
    phantom_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    moved = Path(shutil.copytree(phantom_store, tmp_path / "moved"))
    copy = Path(shutil.copytree(run, tmp_path / run.name))
    RunFolder.open(copy).update(store=str(tmp_path / "gone"))
    words = ["evaluate", str(copy), "--out", str(tmp_path / "r")]
    assert main([*words, "--store", str(moved)]) == 0
    assert "sets" not in metrics_of(tmp_path / "r")
    both = [*words, "--store", str(elsewhere), "--store", str(moved)]
    assert main(both) == 0
    assert list(metrics_of(tmp_path / "r")["sets"]) == ["moved", "other"]
    capsys.readouterr()
    assert main([*words, "--store", str(elsewhere)]) == 2
    assert "no split 'default'" in capsys.readouterr().err
    assert (
        main([*words, "--store", str(elsewhere), "--store", str(elsewhere.parent / "other")]) == 2
    )
    assert "name it with another --store" in capsys.readouterr().err
