from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from prediction_tables import made_up
from scipy.stats import norm
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from mammo_pd.evaluation.bootstrap import (
    corrected_interval,
    patient_weights,
    percentile_interval,
)
from mammo_pd.evaluation.extremes import independent_pairs
from mammo_pd.evaluation.levels import aggregate
from mammo_pd.evaluation.measures import assess, auc_with_interval
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.roc import Ranking, auc, auc_influence
from mammo_pd.evaluation.thresholds import choose_thresholds
from mammo_pd.terms import Level


def units_of(label, score, patient=None):
    patient = np.arange(len(label)) if patient is None else patient
    return pd.DataFrame({"patient_id": patient, "label": label, "score": score})


def assessed(units, **how):
    return assess(units, **({"thresholds": [], "resamples": 200, "seed": 0} | how))


def test_the_interval_is_that_of_copied_patients(predictions):
    # The slow, obvious way: copy the rows of every patient drawn, then ask scikit-learn.
    images = aggregate(check_predictions(predictions), Level.IMAGE)
    patients = np.sort(images["patient_id"].unique())
    groups = dict(tuple(images.groupby("patient_id")))

    def measured(rows):
        label, score = rows["label"], rows["score"]
        return (
            roc_auc_score(label, score),
            average_precision_score(label, score),
            brier_score_loss(label, score),
        )

    drawn = []
    for weight in patient_weights(len(patients), 50, seed=3):
        times = dict(zip(patients, weight.astype(int), strict=True))
        drawn.append(measured(pd.concat([groups[p] for p in patients for _ in range(times[p])])))
    drawn = np.array(drawn)
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    metrics = assessed(images, resamples=50, seed=3).metrics
    for place, name in ((1, "average_precision"), (2, "brier")):
        found = metrics[f"{name}_ci_low"], metrics[f"{name}_ci_high"]
        assert found == pytest.approx((low[place], high[place]))

    # BCa as Efron and Tibshirani 1993, 14.3, has it, with the jackknife over patients.
    left_out = [measured(images[images["patient_id"] != p])[0] for p in patients]
    away = np.mean(left_out) - left_out
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    bias = norm.ppf((drawn[:, 0] < measured(images)[0]).mean())
    moved = bias + norm.ppf([0.025, 0.975])
    share = norm.cdf(bias + moved / (1 - acceleration * moved))
    expected = np.quantile(drawn[:, 0], share)
    assert (metrics["auc_ci_low"], metrics["auc_ci_high"]) == pytest.approx(expected, abs=2e-3)
    lean = auc_with_interval(images, resamples=50, seed=3)
    assert lean["auc_ci_low"] == metrics["auc_ci_low"]
    assert lean["auc_ci_high"] == metrics["auc_ci_high"]


def test_correcting_a_symmetric_statistic_changes_nothing():
    values = np.r_[np.linspace(-1, 1, 2001), np.nan]
    assert corrected_interval(values, 0.0, np.array([-1.0, 1.0])) == pytest.approx(
        percentile_interval(values)
    )
    # An estimate below most of its resamples: they run too high, and both ends come down.
    low, high = corrected_interval(values, -0.2, np.array([-1.0, 1.0]))
    assert low < percentile_interval(values)[0]
    assert high < percentile_interval(values)[1]


@pytest.mark.parametrize("digits", [1, 9])
def test_point_estimates_are_what_one_resample_of_everyone_gives(predictions, digits):
    # scikit-learn computes the estimates, our weighted curve the resamples: both must agree.
    images = aggregate(check_predictions(predictions), Level.IMAGE)
    images["score"] = images["score"].round(digits)
    label, score = images["label"].to_numpy(), images["score"].to_numpy()
    metrics = assessed(images).metrics
    curve = Ranking.of(label, score).curve()
    assert metrics["auc"] == pytest.approx(curve.auc(), abs=1e-12)
    assert metrics["partial_auc_90"] == pytest.approx(curve.partial_auc(0.9), abs=1e-12)
    assert metrics["average_precision"] == pytest.approx(curve.average_precision(), abs=1e-12)
    assert metrics["brier"] == pytest.approx(((score - label) ** 2).mean(), abs=1e-12)
    pairs = np.sign(score[label == 1][:, None] - score[label == 0])
    assert metrics["auc"] == pytest.approx((pairs.mean() + 1) / 2, abs=1e-12)
    assert metrics["resamples_used"] == 200


@pytest.mark.parametrize(("n", "seed"), [(6, 43), (6, 57), (8, 1), (8, 52), (10, 31)])
def test_resamples_that_tie_with_the_estimate_are_counted_exactly(n, seed):
    # Few patients and coarse scores: many resamples have exactly the estimate's AUC, and an error
    # in its last bit would move BCa's bias, which moves these limits by 0.02 to 0.12.
    # The oracle counts pairs in whole numbers.
    table = made_up(n, seed=seed)
    table["score"] = table["score"].round(1)
    units = aggregate(check_predictions(table), Level.PATIENT)
    label, score = units["label"].to_numpy(), units["score"].to_numpy()
    patient, patients = pd.factorize(units["patient_id"], sort=True)
    halves = 1 + np.sign(score[label == 1][:, None] - score[label == 0]).astype(int)

    def exact(weight):
        positive, negative = weight[label == 1], weight[label == 0]
        pairs = int(positive.sum() * negative.sum())
        return Fraction(int(positive @ halves @ negative), 2 * pairs) if pairs else None

    estimate = exact(np.ones(len(label), dtype=int))
    drawn = [exact(w.astype(int)[patient]) for w in patient_weights(len(patients), 200, seed)]
    away = np.array([np.nan if auc is None else float(auc - estimate) for auc in drawn])
    expected = corrected_interval(away, 0.0, auc_influence(label, score, patient))
    found = auc_with_interval(units, resamples=200, seed=seed)
    assert found["auc"] == pytest.approx(float(estimate), abs=1e-12)
    assert (found["auc_ci_low"], found["auc_ci_high"]) == pytest.approx(
        [float(estimate) + end for end in expected], abs=1e-9
    )


def test_the_same_seed_gives_the_same_interval(predictions):
    images = aggregate(check_predictions(predictions), Level.IMAGE)
    assert assessed(images).metrics == assessed(images).metrics
    assert assessed(images, seed=1).metrics["auc_ci_low"] != assessed(images).metrics["auc_ci_low"]


def test_images_of_one_patient_widen_the_interval():
    # Ten images that are copies of one another know no more than one.
    draw = np.random.default_rng(0)
    label = np.r_[np.ones(40, int), np.zeros(40, int)]
    score = 1 / (1 + np.exp(-(label + draw.normal(size=80))))
    copied = units_of(np.repeat(label, 10), np.repeat(score, 10), np.repeat(np.arange(80), 10))
    alone = assessed(units_of(label, score)).metrics
    together = assessed(copied).metrics
    assert together["auc_ci_low"] == pytest.approx(alone["auc_ci_low"])
    width = together["auc_delong_ci_high"] - together["auc_delong_ci_low"]
    assert width < 0.5 * (together["auc_ci_high"] - together["auc_ci_low"])


def test_at_patient_level_bootstrap_and_delong_agree():
    patients = aggregate(check_predictions(made_up(400)), Level.PATIENT)
    metrics = assessed(patients, resamples=2000).metrics
    assert metrics["auc_ci_low"] == pytest.approx(metrics["auc_delong_ci_low"], abs=0.01)
    assert metrics["auc_ci_high"] == pytest.approx(metrics["auc_delong_ci_high"], abs=0.01)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only_is_a_sentence(label):
    one = assessed(units_of([label] * 5, np.linspace(0, 1, 5)))
    assert one.metrics["auc"] is None
    assert one.metrics["n"] == 5
    assert "need both classes" in one.remarks[0]
    assert (
        "need both classes"
        in auc_with_interval(units_of([label] * 5, [0.5] * 5), resamples=10, seed=0)["remark"]
    )


def test_all_scores_tied():
    one = assessed(units_of([0, 1] * 20, [0.5] * 40))
    assert (one.metrics["auc"], one.metrics["auc_ci_low"]) == (0.5, None)
    assert one.metrics["calibration_slope"] is None
    # One positive in two, and a score of .5 for all.
    assert one.metrics["calibration_intercept"] == pytest.approx(0)
    assert one.metrics["expected_observed_ratio"] == pytest.approx(1)
    assert any("All scores are equal" in remark for remark in one.remarks)
    assert any("No calibration slope" in remark for remark in one.remarks)


def test_one_patient_has_an_auc_and_no_interval():
    one = assessed(units_of([0, 1, 1, 0], [0.1, 0.8, 0.3, 0.4], ["p"] * 4))
    assert one.metrics["auc"] == 0.75
    assert one.metrics["auc_ci_low"] is None
    assert any("at least two patients" in remark for remark in one.remarks)
    assert np.isnan(one.roc_band.low).all()


def no_interval_without_width(row):
    low = {name: row[name] for name in row if name.endswith("_ci_low") and row[name] is not None}
    assert low
    return all(row[name.replace("_low", "_high")] - low[name] > 1e-9 for name in low)


def test_classes_that_do_not_overlap_are_no_certainty():
    # Ten patients of each class are ten pairs: all in order with probability AUC ** 10.
    units = units_of([0] * 10 + [1] * 10, np.linspace(0.01, 0.99, 20))
    thresholds = choose_thresholds(units["label"], units["score"], miss_cost=10)
    one = assessed(units, thresholds=thresholds)
    assert (one.metrics["auc"], one.metrics["auc_ci_high"]) == (1.0, 1.0)
    assert one.metrics["auc_ci_low"] == pytest.approx(0.025**0.1)
    assert one.metrics["auc_delong_ci_low"] is None
    assert any("exact one for the 10 independent pair" in remark for remark in one.remarks)
    assert all(map(no_interval_without_width, [one.metrics, *one.operating_points]))
    youden = one.operating_points[0]
    assert youden["sensitivity_ci_low"] == pytest.approx(0.025**0.1)
    assert youden["npv_ci_low"] == pytest.approx(0.025**0.1)
    lean = auc_with_interval(units, resamples=200, seed=0)
    assert lean["auc_ci_low"] == one.metrics["auc_ci_low"]
    assert "exact" in lean["remark"]
    turned = assessed(units.assign(label=1 - units["label"]))
    assert turned.metrics["auc"] == turned.metrics["auc_ci_low"] == 0.0
    assert turned.metrics["auc_ci_high"] == pytest.approx(1 - 0.025**0.1)


@pytest.mark.parametrize("shape", ["plain", "tied", "few", "separated", "constant", "saturated"])
def test_no_interval_has_zero_width(shape):
    units = aggregate(check_predictions(made_up(8 if shape == "few" else 40)), Level.BREAST)
    score = {
        "plain": units["score"],
        "tied": units["score"].round(1).clip(0.1, 0.9),
        "few": units["score"],
        "separated": (units["score"] + units["label"]) / 2.01,
        "constant": units["score"] * 0 + 0.5,
        "saturated": units["score"].round(),
    }[shape]
    units = units.assign(score=score)
    thresholds = choose_thresholds(units["label"], units["score"], miss_cost=10)
    one = assessed(units, thresholds=thresholds, prevalence=None if shape == "tied" else 0.01)
    assert no_interval_without_width(one.metrics)
    for row in [*one.operating_points, *one.lift]:
        if any(row[name] is not None for name in row if name.endswith("_ci_low")):
            assert no_interval_without_width(row)
    ends = np.isin(one.reliability.y, (0.0, 1.0))
    assert (one.reliability.high - one.reliability.low)[ends].min(initial=1) > 0.01
    said = " ".join(one.remarks)
    assert ("exactly 0 or 1" in said) == (shape == "saturated")


def test_few_patients_and_few_resamples_are_sentences():
    few = assessed(units_of([1] * 4 + [0] * 9, np.linspace(0, 1, 13) % 0.7), resamples=199)
    assert "4 with positives and 9 with negatives" in few.remarks[0]
    assert "199 resamples" in few.remarks[1]
    enough = assessed(units_of([1] * 5 + [0] * 9, np.linspace(0.1, 1, 14) % 0.7), resamples=200)
    assert not any("patients" in remark or "200" in remark for remark in enough.remarks)


def test_pairs_share_no_patient():
    # Every patient has a negative; two have a positive, too.
    assert independent_pairs([0, 1, 0, 1, 0, 0], [0, 0, 1, 1, 2, 2]) == 1
    assert independent_pairs([0, 1, 0, 1, 0, 0], [0, 0, 1, 1, 2, 3]) == 2
    assert independent_pairs([1, 0], [0, 0]) == 0


def test_resamples_with_one_class_are_left_out_and_counted():
    one = assessed(units_of([1, 1] + [0] * 30, np.linspace(0, 1, 32)), resamples=2000)
    # (1 - 2/32) ** 32 = .127 of the resamples hold no positive.
    assert one.metrics["resamples_used"] == pytest.approx(2000 * (1 - 0.127), rel=0.03)
    assert any("one class only" in remark for remark in one.remarks)


def test_operating_points_are_applied_not_chosen_again(predictions):
    validation = aggregate(check_predictions(made_up(80, seed=5)), Level.IMAGE)
    images = aggregate(check_predictions(predictions), Level.IMAGE)
    thresholds = choose_thresholds(validation["label"], validation["score"], miss_cost=10)
    points = assessed(images, thresholds=thresholds).operating_points
    assert [point["threshold"] for point in points] == [chosen.value for chosen in thresholds]
    for point in points:
        flagged = images["score"] >= point["threshold"]
        assert point["tp"] == (flagged & (images["label"] == 1)).sum()
        assert point["tn"] == (~flagged & (images["label"] == 0)).sum()
        assert point["tp"] + point["fp"] + point["fn"] + point["tn"] == len(images)
        assert point["sensitivity_ci_low"] <= point["sensitivity"] <= point["sensitivity_ci_high"]


def test_percentile_interval():
    values = np.r_[np.arange(101.0), np.nan]
    assert percentile_interval(values, level=0.9) == pytest.approx((5.0, 95.0))
    assert percentile_interval(np.full(200, np.nan)) is None
    assert percentile_interval(np.r_[np.ones(99), np.full(901, np.nan)]) is None


def test_patient_weights_draw_with_replacement():
    weights = np.array(list(patient_weights(50, 400, seed=0)))
    assert (weights.sum(axis=1) == 50).all()
    assert weights.mean() == 1.0
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("level", [Level.IMAGE, Level.BREAST, Level.PATIENT])
def test_the_interval_covers_the_truth_95_times_in_100(level):
    # The truth: the AUC of very many patients drawn in the same way.
    truth_rows = aggregate(check_predictions(made_up(100_000, seed=99)), level)
    truth = auc(truth_rows["label"], truth_rows["score"])
    trials, inside = 1200, 0
    for trial in range(trials):
        units = aggregate(check_predictions(made_up(150, seed=1000 + trial)), level)
        metrics = auc_with_interval(units, resamples=400, seed=trial)
        inside += metrics["auc_ci_low"] <= truth <= metrics["auc_ci_high"]
    assert 0.93 <= inside / trials <= 0.97
