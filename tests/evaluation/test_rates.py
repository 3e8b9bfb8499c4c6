import numpy as np
import pandas as pd
import pytest
from prediction_tables import made_up
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from mammo_pd.evaluation.levels import aggregate
from mammo_pd.evaluation.measures import assess
from mammo_pd.evaluation.rates import Decisions, predictive_value, rate_by_patient
from mammo_pd.evaluation.screening import OUTCOMES, per_thousand
from mammo_pd.evaluation.threshold_sweep import MOST_THRESHOLDS, sweep_thresholds
from mammo_pd.evaluation.thresholds import Reader, Threshold
from mammo_pd.terms import Level

RATES = ("sensitivity", "specificity", "recall_rate", "ppv", "npv")


@pytest.fixture(scope="module")
def exams():
    return aggregate(made_up(90), Level.EXAM)


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (1, 9), (12, 30), (9, 9), (170, 1000)])
def test_limits_lie_within_the_exact_ones(hits, n):
    rate = rate_by_patient([hits / n], n)
    exact = binomtest(hits, n).proportion_ci(method="exact")
    assert exact.low <= rate.low[0] <= hits / n <= rate.high[0] <= exact.high
    assert rate.high[0] > rate.low[0]


def test_nobody_makes_no_rate():
    assert np.isnan(rate_by_patient([0.5], 0).value).all()


def cover(rate, truth):
    """Share of the intervals that hold the truth."""
    return ((rate.low <= truth) & (truth <= rate.high)).mean()


@pytest.mark.parametrize(
    ("ill", "well", "share"), [(12, 110, 0.01), (30, 300, 0.3), (6, 400, 0.01)]
)
def test_what_is_made_of_two_rates_is_covered(ill, well, share):
    draw = np.random.default_rng(0)
    sensitivity, false_alarms, cost = 0.75, 0.1, 0.2 * (1 - share)
    units = pd.DataFrame({"patient_id": range(ill + well), "label": [1] * ill + [0] * well})
    made = Decisions.of(
        units, draw.binomial(ill, sensitivity, 4000), draw.binomial(well, false_alarms, 4000)
    )
    recalled = made.sensitivity * share + made.false_alarms * (1 - share)
    ppv = predictive_value(made.sensitivity, made.false_alarms, share)
    benefit = made.sensitivity * share - made.false_alarms * cost
    recall = share * sensitivity + (1 - share) * false_alarms
    assert 0.935 <= cover(recalled, recall) <= 0.985
    assert 0.935 <= cover(ppv, share * sensitivity / recall) <= 0.985
    assert 0.935 <= cover(benefit, share * sensitivity - cost * false_alarms) <= 0.985


@pytest.mark.parametrize("share", [0.01, 0.5])
@pytest.mark.parametrize(
    ("hits", "alarms", "at_end"), [(0, 5, 0.0), (7, 0, 1.0), (1, 60, None), (0, 0, np.nan)]
)
def test_predictive_value_at_its_ends_and_near_them(hits, alarms, at_end, share):
    """All that are called are wrong, or right, which bounds it on the other side alone."""
    units = pd.DataFrame({"patient_id": range(90), "label": [1] * 30 + [0] * 60})
    made = Decisions.of(units, hits, alarms)
    sensitivity, false_alarms = made.sensitivity, made.false_alarms
    ppv = predictive_value(sensitivity, false_alarms, share)
    if hits + alarms == 0:
        assert np.isnan([ppv.value, ppv.low, ppv.high]).all()
        return
    called = share * hits / 30 + (1 - share) * alarms / 60
    assert ppv.value == pytest.approx(share * hits / 30 / called)
    assert ppv.low < ppv.high
    assert (ppv.low[0] == 0.0) == (at_end == 0.0)
    assert (ppv.high[0] == 1.0) == (at_end == 1.0)

    # Both rates at an end of their limits at once lie beyond the limits of what is made of both.
    def bayes(right, wrong):
        return share * right / (share * right + (1 - share) * wrong)

    assert bayes(sensitivity.low, false_alarms.high) <= ppv.low
    assert ppv.high <= bayes(sensitivity.high, false_alarms.low)


class TestSweep:
    def test_every_row_is_sklearns_confusion_table(self, exams):
        rows = sweep_thresholds(exams, marked=[0.3])
        assert 0.3 in [row["threshold"] for row in rows]
        for row in rows[::7]:
            flagged = exams["score"] >= row["threshold"]
            (tn, fp), (fn, tp) = confusion_matrix(exams["label"], flagged, labels=[False, True])
            assert (row["tn"], row["fp"], row["fn"], row["tp"]) == (tn, fp, fn, tp)
            assert row["sensitivity"] == pytest.approx(tp / (tp + fn))
            assert row["specificity"] == pytest.approx(tn / (tn + fp))
            assert row["recall_rate"] == pytest.approx(flagged.mean())
            assert row["ppv"] == (pytest.approx(tp / (tp + fp)) if tp + fp else None)
            assert row["npv"] == (pytest.approx(tn / (tn + fn)) if tn + fn else None)

    @pytest.mark.parametrize("prevalence", [None, 0.006])
    def test_limits_hold_their_value_and_are_never_equal(self, exams, prevalence):
        for row in sweep_thresholds(exams, prevalence=prevalence):
            for name in RATES:
                if row[name] is not None:
                    low, high = row[f"{name}_ci_low"], row[f"{name}_ci_high"]
                    assert 0 <= low <= row[name] + 1e-12
                    assert row[name] <= high + 1e-12 <= 1 + 2e-12
                    assert low < high

    def test_a_large_table_keeps_the_curve_in_few_rows(self):
        units = aggregate(made_up(3000, prevalence=0.01), Level.EXAM)
        rows = sweep_thresholds(units)
        assert len(rows) <= MOST_THRESHOLDS
        assert (rows[0]["fn"], rows[0]["tn"]) == (0, 0)
        assert (rows[-1]["tp"], rows[-1]["fp"]) == (0, 0)
        tp = [row["tp"] for row in rows]
        # No step that only a rare positive makes is left out, and none of the other is long.
        assert set(tp) == set(range(max(tp) + 1))
        assert max(np.diff([row["fp"] for row in rows][::-1])) < 0.02 * rows[0]["fp"]

    def test_a_given_prevalence_moves_ppv_and_recall_alone(self, exams):
        for own, rare in zip(
            sweep_thresholds(exams), sweep_thresholds(exams, prevalence=0.006), strict=True
        ):
            assert {name: own[name] for name in ("tp", "fp", "sensitivity", "specificity")} == {
                name: rare[name] for name in ("tp", "fp", "sensitivity", "specificity")
            }
            s, f = rare["sensitivity"], 1 - rare["specificity"]
            assert rare["recall_rate"] == pytest.approx(0.006 * s + 0.994 * f)
            if rare["ppv"] is not None:
                assert rare["ppv"] == pytest.approx(0.006 * s / rare["recall_rate"])


class TestPerThousand:
    def test_by_hand(self, exams):
        results = assess(
            exams,
            thresholds=[Threshold("one", "a rule", 0.35)],
            prevalence=0.006,
            reader=Reader(0.85, 0.9),
        )
        model, reader, at_sensitivity, at_specificity = per_thousand(
            results.operating_points,
            exams,
            results.metrics,
            prevalence=0.006,
            reader=Reader(0.85, 0.9),
        )
        assert [reader[name] for name in OUTCOMES] == pytest.approx([5.1 + 99.4, 5.1, 0.9, 99.4])
        assert reader["recalled_ci_low"] is None
        point = results.operating_points[0]
        assert model["found"] == pytest.approx(6 * point["sensitivity"])
        # One exam each: the limits are those of the operating point.
        assert model["missed_ci_low"] == pytest.approx(6 * (1 - point["sensitivity_ci_high"]))
        assert model["recalled"] == pytest.approx(1000 * point["recall_rate"])
        for row in (model, at_sensitivity, at_specificity):
            assert row["found"] + row["missed"] == pytest.approx(6)
            assert row["recalled"] == pytest.approx(row["found"] + row["false_alarms"])
            # At few positives a rate at the reader's has no limits, and neither has what is made
            # of it.
            known = row["recalled_ci_low"] is not None
            assert known == (row["recalled_ci_high"] is not None)
            assert not known or row["recalled_ci_low"] < row["recalled"] < row["recalled_ci_high"]
        assert model["recalled_ci_low"] is not None
        assert at_sensitivity["found"] == pytest.approx(reader["found"])
        assert at_sensitivity["found_ci_low"] is None
        assert at_specificity["false_alarms"] == pytest.approx(reader["false_alarms"])

    def test_one_class_and_no_thresholds_give_no_rows(self, exams):
        assert (
            per_thousand([], exams, {"auc": None}, prevalence=0.006, reader=Reader(0.85, 0.9)) == []
        )


@pytest.mark.parametrize("others", [9, 60])
def test_a_woman_of_many_images_is_one_woman(others):
    """Whatever the number of her images, they may all be alike."""
    patient = [0] * 30 + list(range(1, others + 1))
    units = pd.DataFrame({"patient_id": patient, "label": 1})
    units = pd.concat([units, pd.DataFrame({"patient_id": range(100, 140), "label": 0})])
    flagged = (units["patient_id"] % 3 == 0).to_numpy()
    made = Decisions.where(units, flagged)
    share = flagged[: 30 + others].mean()
    equal = (30 + others) ** 2 / (30**2 + others)
    expected = rate_by_patient([share], equal)
    assert made.sensitivity.low[0] == pytest.approx(expected.low[0])
    assert made.sensitivity.high[0] == pytest.approx(expected.high[0])
    # One image each: the binomial limits of as many patients.
    plain = rate_by_patient(made.false_alarms.value, 40)
    assert made.false_alarms.low[0] == pytest.approx(plain.low[0])
