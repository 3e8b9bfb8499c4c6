import numpy as np
import pandas as pd
import pytest
from prediction_tables import made_up

from mammo_pd.errors import InputError
from mammo_pd.evaluation.predictions import read_predictions
from mammo_pd.report.content import ReportContext
from mammo_pd.report.evaluate import evaluate_predictions

CONTEXT = ReportContext(created="2026-01-01T00:00:00+00:00")


@pytest.fixture
def predictions():
    return made_up(30)


def evaluated(table, out, **how):
    return evaluate_predictions(table, out, context=CONTEXT, **how)


@pytest.mark.usefixtures("blank_figures")
class TestTheOldReport:
    def test_is_replaced_whole(self, predictions, tmp_path):
        out = tmp_path / "report"
        evaluated(predictions.assign(fold=predictions["patient_id"].str[-1]), out)
        assert (out / "folds.csv").exists()
        evaluated(predictions, out)
        assert not (out / "folds.csv").exists()
        assert [entry.name for entry in tmp_path.iterdir()] == ["report"]

    def test_stays_when_writing_fails(self, predictions, tmp_path, monkeypatch):
        out = tmp_path / "report"
        evaluated(predictions, out)
        before = {entry.name: entry.read_bytes() for entry in out.iterdir()}
        monkeypatch.setattr(
            pd.DataFrame, "to_csv", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full"))
        )
        with pytest.raises(OSError, match="full"):
            evaluated(predictions.assign(score=0.5), out)
        assert {entry.name: entry.read_bytes() for entry in out.iterdir()} == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["report"]

    def test_comes_back_after_a_kill_between_the_renames(self, predictions, tmp_path):
        out = tmp_path / "report"
        evaluated(predictions, out)
        out.rename(tmp_path / ".report.old")
        (tmp_path / ".report.new").mkdir()
        (tmp_path / ".report.new" / "half.csv").touch()
        evaluated(predictions, out)
        assert [entry.name for entry in tmp_path.iterdir()] == ["report"]
        assert not (out / "half.csv").exists()

    def test_is_not_confused_with_other_files(self, predictions, tmp_path):
        (tmp_path / "thesis.docx").touch()
        with pytest.raises(InputError, match="not a report"):
            evaluated(predictions, tmp_path)
        assert (tmp_path / "thesis.docx").exists()

    def test_a_file_of_that_name_is_refused(self, predictions, tmp_path):
        (tmp_path / "report").touch()
        with pytest.raises(InputError, match="is a file"):
            evaluated(predictions, tmp_path / "report")


@pytest.mark.usefixtures("blank_figures")
def test_the_reliability_table_counts_every_unit_once(predictions, tmp_path):
    metrics = evaluated(predictions, tmp_path / "r")
    table = pd.read_csv(tmp_path / "r" / "reliability.csv")
    for level, bins in table.groupby("level"):
        assert bins["n"].sum() == metrics[level]["n"]
        positives = (bins["n"] * bins["observed"]).sum()
        assert positives == pytest.approx(metrics[level]["n_positive"])
    known = table.dropna()
    assert (known["observed_ci_low"] <= known["observed"] + 1e-6).all()
    assert (known["observed"] <= known["observed_ci_high"] + 1e-6).all()
    assert np.diff(table[table["level"] == "image"]["mean_score"]).max() < 0


@pytest.mark.usefixtures("blank_figures")
def test_no_table_holds_a_formula_and_the_predictions_read_the_same(predictions, tmp_path):
    for name in ("image_id", "patient_id", "exam_id"):
        predictions[name] = "=cmd|" + predictions[name]
    predictions["site"] = np.where(predictions.index % 8 < 4, "@a", "+b")
    predictions["logit"] = -1.5
    first = evaluated(predictions.assign(fold=predictions.index // 4 % 2), tmp_path / "r")
    for path in (tmp_path / "r").glob("*.csv"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        cells = pd.Series([*table.columns, *table.to_numpy().ravel()])
        formulas = cells[cells.str.match(r"[=+\-@]")]
        assert pd.to_numeric(formulas, errors="coerce").notna().all(), path.name
    again = read_predictions(tmp_path / "r" / "predictions.csv")
    assert again["image_id"].tolist() == predictions["image_id"].tolist()
    assert evaluated(again, tmp_path / "s") == first
