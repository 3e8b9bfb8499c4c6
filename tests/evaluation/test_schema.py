import json

import pytest
from prediction_tables import made_up

from mammo_pd.evaluation.schema import metrics_schema
from mammo_pd.report import evaluate
from mammo_pd.report.content import ReportContext
from mammo_pd.report.folder import metrics_of
from mammo_pd.terms import Level


@pytest.fixture
def metrics(monkeypatch, tmp_path):
    """What stands in metrics.json, for tables that differ in what they allow."""
    monkeypatch.setattr(evaluate, "write_report", lambda made, out: metrics_of(made))

    def of(table):
        made = evaluate.evaluate_predictions(
            table,
            tmp_path,
            context=ReportContext(parts=[{"part": "test"}]),
            within=["laterality"],
        )
        return json.loads(json.dumps(made, allow_nan=False))

    return of


def tables():
    whole = made_up(60)
    split = whole.assign(split=["val"] * 80 + ["test"] * 160, fold=whole.index // 4 % 2)
    return {"split and folds": split, "one class": whole.assign(label=0), "plain": whole}


@pytest.mark.parametrize("name", tables())
def test_metrics_keep_to_the_schema(metrics, name):
    validator = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    validator.Draft202012Validator.check_schema(metrics_schema())
    validator.validate(metrics(tables()[name]), metrics_schema())


def test_the_schema_promises_what_the_design_does(metrics):
    schema = metrics_schema()
    made = metrics(tables()["plain"])
    assert set(Level) <= set(schema["required"])
    within = schema["properties"]["within"]["items"]
    assert [set(row) for row in made["within"]] == [set(within["properties"])] * len(Level)
    for level in Level:
        promised = schema["properties"][level]
        assert {"n", "n_positive", "auc", "auc_ci_low", "auc_ci_high"} <= set(promised["required"])
        assert set(promised["required"]) <= made[level].keys()
        assert made[level].keys() <= promised["properties"].keys()
