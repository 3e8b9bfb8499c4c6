import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from prediction_tables import made_up

from mammo_pd.errors import InputError
from mammo_pd.evaluation.calibration import calibration_line
from mammo_pd.evaluation.levels import Aggregation, aggregate
from mammo_pd.evaluation.locked import Recalibration, lock
from mammo_pd.evaluation.predictions import check_predictions, read_predictions
from mammo_pd.report import evaluate, external
from mammo_pd.report.content import ReportContext
from mammo_pd.report.evaluate import evaluate_file
from mammo_pd.report.external import evaluate_sets, sets_table
from mammo_pd.report.folder import metrics_of
from mammo_pd.report.render import _breakable
from mammo_pd.terms import Level

CONTEXT = ReportContext(title="Sets <of> women", created="2026-01-01T00:00:00+00:00")
HOW = {"context": CONTEXT}


@pytest.fixture(autouse=True)
def _no_single_reports(monkeypatch):
    """The reports of the single sets are tested elsewhere, and take seconds to draw."""
    monkeypatch.setattr(evaluate, "write_report", lambda made, out: metrics_of(made))


@pytest.fixture
def files(tmp_path):
    """A development set with validation rows, and two others of other women."""
    whole = made_up(60)
    tables = {"a": whole.assign(split=["val"] * 120 + ["test"] * 120)}
    for number, name in enumerate(("<b>", "c d")):
        table = made_up(50, seed=number + 1, shift=0.9)
        table["patient_id"] = name + table["patient_id"]
        tables[name] = table
    paths = []
    for name, table in tables.items():
        paths.append(tmp_path / f"{name}.csv")
        table.to_csv(paths[-1], index=False)
    return paths


def test_a_column_for_each_set(files, tmp_path):
    out = tmp_path / "out"
    metrics = evaluate_sets(files, out, **HOW)
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert list(metrics["sets"]) == ["a", "<b>", "c d"]
    assert list(metrics["folders"].values()) == ["1-a", "2-b", "3-c-d"]
    for path, (name, found) in zip(files, metrics["sets"].items(), strict=True):
        alone = evaluate_file(path, tmp_path / "r", **HOW)
        assert found["exam"]["auc"] == alone["exam"]["auc"]
        assert found["computation"]["locked"] == metrics["locked"]["digest"]
        for level in Level:
            points = {row["code"]: row["threshold"] for row in found[level]["operating_points"]}
            assert points == metrics["locked"]["thresholds"][level]
        assert f"{name[:24]:<24} exam" in sets_table(metrics)
    # They are the development set's own, chosen on its validation rows.
    own = evaluate_file(files[0], tmp_path / "r", **HOW)["exam"]["operating_points"]
    assert {row["code"]: row["threshold"] for row in own} == metrics["locked"]["thresholds"]["exam"]
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "locked before any other set was read" in text
    assert metrics["locked"]["digest"] in text
    assert "&lt;b&gt;" in text
    assert "<b>." not in text
    # A long name may break where its words end, and shows as it is.
    assert "a_<wbr>long" in str(_breakable("a_long"))
    assert str(_breakable("<b>_c")) == "&lt;b&gt;_<wbr>c"
    table = pd.read_csv(out / "sets.csv")
    assert len(table) == 12
    assert len(pd.read_csv(out / "operating_points.csv")) == 3 * 4 * 8


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("phantoms", [(), (0,), (1,), (0, 1)])
def test_the_sets_of_phantoms_are_named_whichever_they_are(files, tmp_path, phantoms):
    sources = [
        external.SetSource(
            name,
            name,
            partial(
                external.GivenSet,
                check_predictions(pd.read_csv(file)),
                replace(CONTEXT, phantom=number in phantoms),
            ),
        )
        for number, (name, file) in enumerate(zip("ab", files, strict=False))
    ]
    external.evaluate_sources(sources, tmp_path / "out", **HOW)
    body = (tmp_path / "out" / "index.html").read_text(encoding="utf-8").split("<body>")[1]
    assert ("These images are phantoms" in body) == (len(phantoms) == 2)
    for number, name in enumerate("ab"):
        assert (f"The images of {name} are phantoms" in body) == (phantoms == (number,))


@pytest.mark.usefixtures("blank_figures")
def test_no_external_set_is_read_before_the_lock(files, tmp_path, monkeypatch):
    order = []
    read, decide = external.read_predictions, external.lock
    monkeypatch.setattr(
        external, "read_predictions", lambda path: order.append(path.stem) or read(path)
    )
    monkeypatch.setattr(external, "lock", lambda *a, **k: order.append("lock") or decide(*a, **k))
    evaluate_sets(files, tmp_path / "out", **HOW)
    assert order == ["a", "lock", "<b>", "c d"]


@pytest.mark.usefixtures("blank_figures")
def test_without_validation_rows_all_of_the_first_decides_and_is_no_test(files, tmp_path):
    made_up(60).to_csv(files[0], index=False)
    metrics = evaluate_sets(files, tmp_path / "out", **HOW)
    assert (metrics["locked"]["part"], metrics["locked"]["images"]) == ("all", 240)
    assert metrics["sets"]["a"]["exam"]["operating_points"] == []
    assert metrics["recalibrated"]["a"] == {}
    assert "its own column does not test them" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.usefixtures("blank_figures")
def test_women_are_counted_at_one_prevalence_or_the_page_says_at_which(files, tmp_path):
    metrics = evaluate_sets(files[:2], tmp_path / "out", prevalence=0.006, **HOW)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "of 6 positives in 1,000 that was given" in page
    for one in metrics["sets"].values():
        (row,) = (r for r in one["programme"]["per_thousand"] if r["code"] == "specificity_90")
        assert row["found"] + row["missed"] == pytest.approx(6.0)
    evaluate_sets(files[:2], tmp_path / "out", **HOW)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "columns cannot be compared" in page


@pytest.mark.usefixtures("blank_figures")
def test_women_who_are_in_both_are_told_of(files, tmp_path):
    pd.read_csv(files[0]).drop(columns="split").to_csv(files[1], index=False)
    metrics = evaluate_sets(files[:2], tmp_path / "out", **HOW)
    assert metrics["shared_patients"] == {"a": 0, "<b>": 60}
    assert "shares 60 patient IDs" in (tmp_path / "out" / "index.html").read_text()
    assert "note: <b> shares 60 patient IDs" in sets_table(metrics)


@pytest.mark.usefixtures("blank_figures")
def test_thresholds_of_folds_are_not_shown_as_the_locked_ones(files, tmp_path):
    table = pd.read_csv(files[0]).drop(columns="split")
    table.assign(fold=table.index // 4 % 3).to_csv(files[0], index=False)
    metrics = evaluate_sets(files[:2], tmp_path / "out", **HOW)
    assert metrics["sets"]["a"]["exam"]["operating_points"]
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    rows = re.findall(
        r'<tr><th scope="row" class="wrap">specificity of 90 %</th>(.*?)</tr>', page, re.S
    )
    with_columns = [cells for row in rows if len(cells := re.findall(r"<td>(.*?)</td>", row)) < 4]
    # Women recalled, found and missed, and at each level three rates: of the other set alone.
    assert len(with_columns) == 3 + 3 * len(Level)
    for cells in with_columns:
        assert cells[-2] == "–" != cells[-1]


@pytest.mark.usefixtures("blank_figures")
def test_a_first_set_of_one_class_is_refused(files, tmp_path):
    made_up(20).assign(label=0).to_csv(files[0], index=False)
    with pytest.raises(InputError, match="one class only"):
        evaluate_sets(files, tmp_path / "out", **HOW)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("blank_figures")
def test_a_recalibrated_set_has_the_intervals_of_a_report_on_its_recalibrated_scores(
    files, tmp_path
):
    metrics = evaluate_sets(files[:2], tmp_path / "out", **HOW)
    table = read_predictions(files[1])
    moved = Recalibration(*metrics["locked"]["calibration"]["image"])(table["score"].to_numpy())
    table.assign(score=moved).to_csv(tmp_path / "moved.csv", index=False)
    alone = evaluate_file(tmp_path / "moved.csv", tmp_path / "r", **HOW)["image"]
    found = metrics["recalibrated"]["<b>"]["image"]
    for name in ("brier", "expected_observed_ratio", "slope", "intercept"):
        long = f"calibration_{name}" if name in ("slope", "intercept") else name
        for end in ("", "_ci_low", "_ci_high"):
            assert found[name + end] == pytest.approx(alone[long + end], rel=1e-6), name + end


def test_the_recalibration_calibrates_what_it_was_fitted_on():
    table = check_predictions(made_up(150))
    locked = lock(table, part="all", aggregation=Aggregation.MEAN, miss_cost=10, prevalence={})
    for level, line in locked.calibration.items():
        units = aggregate(table, level)
        label, score = units["label"].to_numpy(float), units["score"].to_numpy()
        patient, _ = pd.factorize(units["patient_id"])
        assert line.slope == pytest.approx(
            calibration_line(label, score, patient).slope.value, rel=1e-4
        )
        moved = line(score)
        assert moved.mean() == pytest.approx(label.mean(), rel=1e-4)
        again = calibration_line(label, moved, patient)
        assert again.slope.value == pytest.approx(1.0, abs=1e-3)
        assert again.intercept.value == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("score", [[0.4] * 4, [0.1, 0.2, 0.8, 0.9]])
def test_there_is_no_line_without_overlap_or_difference(score):
    assert Recalibration.fit(np.array([0.0, 0.0, 1.0, 1.0]), np.array(score)) is None
