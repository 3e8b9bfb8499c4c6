import numpy as np
import pandas as pd
import pytest

from mammo_pd.evaluation.decision_curve import decision_curve
from mammo_pd.evaluation.thresholds import Reader

SCORE = [0.02, 0.03, 0.05, 0.05, 0.08, 0.1, 0.1, 0.12, 0.15, 0.18]
SCORE += [0.2, 0.22, 0.25, 0.3, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8]
LABEL = [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1]
UNITS = pd.DataFrame({"patient_id": range(20), "label": LABEL, "score": SCORE})


def column(rows, name):
    return [row[name] for row in rows]


# Both tables are of the Python package dcurves 1.1.7, whose authors introduced decision curves.
def test_net_benefit_is_that_of_dcurves():
    rows = decision_curve(UNITS, at=np.array([0.05, 0.1, 0.2, 0.3, 0.45, 0.6]))
    assert column(rows, "net_benefit") == pytest.approx(
        [0.268421052632, 0.25, 0.1875, 0.135714285714, 0.059090909091, 0.1], abs=1e-11
    )
    assert column(rows, "net_benefit_all") == pytest.approx(
        [0.263157894737, 0.222222222222, 0.125, 0.0, -0.272727272727, -0.75], abs=1e-11
    )


def test_at_a_prevalence_it_is_that_of_dcurves_on_scores_moved_to_it():
    rows = decision_curve(UNITS, prevalence=0.02, at=np.array([0.002, 0.01, 0.02, 0.05, 0.1]))
    assert column(rows, "net_benefit") == pytest.approx(
        [0.018316633267, 0.012424242424, 0.009047619048, 0.006666666667, 0.003333333333], abs=1e-11
    )
    assert column(rows, "net_benefit_all") == pytest.approx(
        [0.018036072144, 0.010101010101, 0.0, -0.031578947368, -0.088888888889], abs=1e-11
    )


def test_limits_hold_the_value_and_a_reader_decides_alike_everywhere():
    rows = decision_curve(UNITS, prevalence=0.006, reader=Reader(0.85, 0.9))
    assert column(rows, "threshold_probability")[-1] == pytest.approx(0.06)
    for row in rows:
        assert row["net_benefit_ci_low"] < row["net_benefit"] < row["net_benefit_ci_high"]
        odds = row["threshold_probability"] / (1 - row["threshold_probability"])
        expected = 0.006 * 0.85 - odds * 0.994 * 0.1
        assert row["net_benefit_reader"] == pytest.approx(expected)
