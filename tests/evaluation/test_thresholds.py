import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix
from test_roc import PAIRED_A, PAIRED_LABEL, random_units

from mammo_pd.evaluation.roc import Ranking
from mammo_pd.evaluation.thresholds import choose_thresholds, lift, rates_at


def by_code(label, score, **choices):
    choices = {"miss_cost": 10} | choices
    return {chosen.code: chosen.value for chosen in choose_thresholds(label, score, **choices)}


def test_youden_equals_procs_best():
    # pROC names the middle, 0.425, of the scores 0.42 and 0.43; we name the lowest score flagged.
    threshold = by_code(PAIRED_LABEL, PAIRED_A)["youden"]
    assert threshold == 0.43
    score = PAIRED_A
    flagged = score >= threshold
    assert flagged[PAIRED_LABEL == 1].mean() == pytest.approx(0.888888888888889)
    assert (~flagged)[PAIRED_LABEL == 0].mean() == pytest.approx(0.666666666666667)


@pytest.mark.parametrize("miss_cost", [0.5, 3, 10, 100])
def test_the_cost_threshold_is_the_cheapest_of_all(miss_cost):
    label, score = random_units(5, ties=True)
    chosen = by_code(label, score, miss_cost=miss_cost)["cost"]

    def cost(threshold):
        flagged = score >= threshold
        return miss_cost * (label & ~flagged).sum() + ((1 - label) & flagged).sum()

    assert cost(chosen) == min(cost(t) for t in [*np.unique(score), 2.0])


@pytest.mark.parametrize("prevalence", [0.006, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_the_cost_threshold_at_a_prevalence_is_the_cheapest_of_all(prevalence, seed):
    label, score = random_units(seed, ties=True)
    chosen = by_code(label, score, miss_cost=3, prevalence=prevalence)["cost"]

    def cost(threshold):
        flagged = score >= threshold
        missed, alarms = (~flagged)[label == 1].mean(), flagged[label == 0].mean()
        return 3 * prevalence * missed + (1 - prevalence) * alarms

    assert cost(chosen) == pytest.approx(min(cost(t) for t in [*np.unique(score), 2.0]))


@pytest.mark.parametrize("n", [20, 100, 300, 700, 1000])
def test_a_share_that_is_met_exactly_is_flagged_and_no_more_than_it(n):
    """Of n scores without ties, for any number of positives."""
    draw = np.random.default_rng(n)
    for positives in range(1, n, max(1, n // 40)):
        label = draw.permutation(np.arange(n) < positives).astype(int)
        score = draw.permutation(n) / n
        table = lift(Ranking.of(label, score).curve())
        for share, row in table.items():
            flagged = np.argsort(-score)[: math.floor(round(share * n, 9))]
            hits = label[flagged].sum()
            assert row["sensitivity"] == pytest.approx(hits / positives), (positives, share)
            if len(flagged):
                assert row["ppv"] == pytest.approx(hits / len(flagged))
                assert row["lift"] == pytest.approx(row["ppv"] / label.mean())
            else:
                assert np.isnan([row["ppv"], row["lift"]]).all()


@pytest.mark.parametrize("prevalence", [0.006, 0.5])
def test_a_share_at_a_prevalence_is_that_of_the_units_as_they_would_be_there(prevalence):
    """Each negative repeated as often as the prevalence asks for, and no weight."""
    label, score = random_units(2)
    negatives = round((1 - prevalence) / prevalence * label.sum() / (1 - label).sum() * 60)
    times = np.where(label == 1, 60, negatives)
    many = Ranking.of(np.repeat(label, times), np.repeat(score, times)).curve()
    share = many.positives / (many.positives + many.negatives)
    weighted = lift(Ranking.of(label, score).curve(), share)
    for of_share, row in lift(many).items():
        assert weighted[of_share] == pytest.approx(row, nan_ok=True)


def test_dear_misses_flag_all_and_dear_alarms_none():
    label, score = random_units(6)
    assert by_code(label, score, miss_cost=1e9)["cost"] <= score[label == 1].min()
    assert by_code(label, score, miss_cost=1e-9)["cost"] > score[label == 0].max()


def test_a_rarer_disease_raises_the_cost_threshold():
    label, score = random_units(6)
    common, rare = (by_code(label, score, prevalence=p)["cost"] for p in (0.3, 0.006))
    assert rare > common


def test_fixed_rates_are_met():
    label, score = random_units(8, ties=True)
    chosen = by_code(label, score)
    for rate in (80, 90, 95):
        assert (score < chosen[f"specificity_{rate}"])[label == 0].mean() >= rate / 100
        assert (score >= chosen[f"sensitivity_{rate}"])[label == 1].mean() >= rate / 100


def test_one_class_gives_no_threshold():
    assert choose_thresholds([1, 1], [0.2, 0.3], miss_cost=10) == []


def test_rates_against_scikit_learns_confusion_matrix():
    label, score = random_units(3, ties=True)
    ranking = Ranking.of(label, score)
    curve = ranking.curve()
    rates = rates_at(curve, ranking.index_of(0.6))
    tn, fp, fn, tp = confusion_matrix(label, score >= 0.6).ravel()
    assert rates["sensitivity"] == pytest.approx(tp / (tp + fn))
    assert rates["specificity"] == pytest.approx(tn / (tn + fp))
    assert rates["recall_rate"] == pytest.approx((tp + fp) / len(label))
    assert rates["ppv"] == pytest.approx(tp / (tp + fp))
    assert rates["npv"] == pytest.approx(tn / (tn + fn))


def test_rates_at_a_prevalence_follow_bayes():
    label, score = random_units(3)
    ranking = Ranking.of(label, score)
    rates = rates_at(ranking.curve(), ranking.index_of(0.6), prevalence=0.006)
    sensitivity, specificity = rates["sensitivity"], rates["specificity"]
    expected = 0.006 * sensitivity / (0.006 * sensitivity + 0.994 * (1 - specificity))
    assert rates["ppv"] == pytest.approx(expected)
    nobody = rates_at(ranking.curve(), 0)
    assert np.isnan(nobody["ppv"])
    assert nobody["recall_rate"] == 0
