"""The order of a table's rows is no information, and changes no number."""

import pytest
from prediction_tables import equal_on_paper, tables

from mammo_pd.evaluation.levels import Aggregation
from mammo_pd.report import evaluate
from mammo_pd.report.content import ReportContext
from mammo_pd.report.folder import metrics_of

TABLES = tables()
CONTEXT = ReportContext(created="2026-01-01T00:00:00+00:00")


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    """Keep all that was computed, the listed errors too, and draw nothing."""
    monkeypatch.setattr(
        evaluate,
        "write_report",
        lambda made, out: metrics_of(made) | {"errors": made.errors},
    )


@pytest.mark.parametrize(
    ("name", "aggregation"),
    [
        *((name, Aggregation.MEAN) for name in TABLES),
        ("equal on paper", Aggregation.NOISY_OR),
        ("tied", Aggregation.MAX),
    ],
)
def test_every_table_gives_the_same_report_when_shuffled(name, aggregation, tmp_path):
    table = TABLES[name]
    how = {"context": CONTEXT, "aggregation": aggregation}
    given = evaluate.evaluate_predictions(table, tmp_path, **how)
    shuffled = table.sample(frac=1, random_state=0)
    assert evaluate.evaluate_predictions(shuffled, tmp_path, **how) == given


@pytest.mark.parametrize("aggregation", [Aggregation.MEAN, Aggregation.NOISY_OR])
def test_scores_that_are_equal_on_paper_tie(tmp_path, aggregation):
    metrics = evaluate.evaluate_predictions(
        equal_on_paper(), tmp_path, context=CONTEXT, aggregation=aggregation
    )
    # By hand, mean: positives 6 of .325, .875, .15; negatives 6 (and "even") of .325, .125.
    # Noisy-or: 6 of .8488 against 6 of .8488, .8194 ("even") and .4168; "odd" is .4897.
    assert metrics["exam"]["auc"] == pytest.approx(
        {
            Aggregation.MEAN: (6 * (7 / 2 + 1) + 8 + 1) / 64,
            Aggregation.NOISY_OR: (6 * (6 / 2 + 2) + 8 + 1) / 64,
        }[aggregation]
    )
