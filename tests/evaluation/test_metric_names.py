"""A number of the report is computed in one place and named in another; neither is forgotten."""

import pytest
from prediction_tables import made_up

from mammo_pd.evaluation.levels import aggregate
from mammo_pd.evaluation.measures import assess
from mammo_pd.evaluation.metric_names import METRICS
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.schema import metrics_schema
from mammo_pd.evaluation.thresholds import Reader
from mammo_pd.terms import Level

# Beside the metrics: DeLong's interval of the AUC, which has a row of its own on the page.
_DELONG = {"auc_delong_se", "auc_delong_ci_low", "auc_delong_ci_high"}


@pytest.fixture(scope="module")
def computed():
    """Every number that a level can have: of many patients, with a prevalence and a reader."""
    units = aggregate(check_predictions(made_up(500)), Level.EXAM)
    return assess(units, thresholds=[], prevalence=0.3, reader=Reader(0.8, 0.8)).metrics


def test_every_number_that_is_computed_has_a_title_and_every_title_a_number(computed):
    beside = _DELONG | {"n", "n_positive", "n_patients", "n_positive_patients", "prevalence"}
    ends = ("_ci_low", "_ci_high")
    names = {name for name in computed.keys() - beside if not name.endswith(ends)}
    titled = {metric.name for metric in METRICS}
    assert not names - titled, "computed in measures.py, and not in METRICS of metric_names.py"
    assert not titled - names, "in METRICS of metric_names.py, and not computed in measures.py"
    assert len(titled) == len(METRICS), "twice in METRICS of metric_names.py"


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_number_has_the_values_and_the_interval_that_its_row_in_metrics_says(computed, metric):
    limits = [f"{metric.name}{end}" for end in ("_ci_low", "_ci_high")]
    if not metric.has_interval:
        assert not computed.keys() & set(limits), "has_interval in metric_names.py"
    else:
        missing = "no interval: forgotten in _intervals of measures.py, or in has_interval"
        assert all(computed[name] is not None for name in limits), missing
    values = [computed[name] for name in (metric.name, *limits) if name in computed]
    assert not metric.is_share or all(0 <= value <= 1 for value in values), "is_share"


def test_the_schema_knows_every_number(computed):
    for level in Level:
        assert computed.keys() <= metrics_schema()["properties"][level]["properties"].keys()
