import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from mammo_pd.evaluation.roc import (
    Ranking,
    auc,
    delong_standard_error,
    f1_of_sums,
    normal_interval,
    placements,
)

# Sixty made-up units with ties; the expected values below are those of R 4.2.2, pROC 1.18.0.
PAIRED_LABEL = np.r_[np.ones(18, int), np.zeros(42, int)]
PAIRED_A = np.fromstring(
    """0.43,0.37,0.77,0.83,0.35,0.48,0.60,0.49,0.73,0.43,0.61,0.61,0.50,0.85,0.72,0.56,0.63,0.46,
    0.62,0.30,0.38,0.18,0.54,0.28,0.16,0.36,0.39,0.43,0.50,0.50,0.82,0.27,0.22,0.21,0.25,0.36,0.18,
    0.13,0.27,0.35,0.44,0.65,0.21,0.51,0.26,0.37,0.38,0.35,0.61,0.17,0.47,0.51,0.11,0.15,0.28,0.19,
    0.34,0.65,0.42,0.51""",
    sep=",",
)
PAIRED_B = np.fromstring(
    """0.38,0.33,0.68,0.85,0.27,0.31,0.76,0.25,0.39,0.21,0.61,0.42,0.62,0.68,0.34,0.20,0.63,0.46,
    0.82,0.80,0.39,0.14,0.25,0.37,0.18,0.24,0.35,0.40,0.62,0.46,0.73,0.16,0.10,0.17,0.46,0.82,0.35,
    0.36,0.17,0.29,0.34,0.34,0.59,0.27,0.52,0.26,0.68,0.46,0.46,0.36,0.30,0.55,0.11,0.15,0.13,0.27,
    0.57,0.67,0.20,0.59""",
    sep=",",
)


def random_units(seed, n=500, ties=False, prevalence=0.2):
    draw = np.random.default_rng(seed)
    label = (draw.random(n) < prevalence).astype(int)
    label[:2] = (0, 1)
    score = 1 / (1 + np.exp(-(label + draw.normal(size=n))))
    return label, score.round(1) if ties else score


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_curve_equals_scikit_learns(seed, ties):
    label, score = random_units(seed, ties=ties)
    curve = Ranking.of(label, score).curve()
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    np.testing.assert_allclose(curve.false_positive_rate, fpr, atol=1e-12)
    np.testing.assert_allclose(curve.sensitivity, tpr, atol=1e-12)
    expected = average_precision_score(label, score)
    assert curve.average_precision() == pytest.approx(expected, abs=1e-12)
    # Ten copies of every positive and one of each negative: re-weighted to their prevalence.
    copies = np.where(label == 1, 10, 1)
    share = 10 * label.sum() / copies.sum()
    expected = average_precision_score(np.repeat(label, copies), np.repeat(score, copies))
    assert curve.average_precision(share) == pytest.approx(expected, abs=1e-12)


def test_laws_of_the_auc():
    label, score = random_units(3)
    assert auc(label, score) == pytest.approx(1 - auc(label, -score))
    assert auc(label, score) == pytest.approx(auc(1 - label, -score))
    assert auc(label, score) == auc(label, np.log(score))
    assert auc([0, 1], [0.3, 0.3]) == 0.5
    assert auc([0, 0, 1], [0.1, 0.2, 0.3]) == 1.0
    assert np.isnan(auc([1, 1], [0.1, 0.2]))


def test_placements_are_the_components_of_the_auc():
    label, score = random_units(4, ties=True)
    of_positives, of_negatives = placements(label, score)
    assert of_positives.mean() == pytest.approx(auc(label, score))
    assert of_negatives.mean() == pytest.approx(auc(label, score))
    negatives = score[label == 0]
    one = score[label == 1][0]
    assert of_positives[0] == pytest.approx(
        ((negatives < one).sum() + 0.5 * (negatives == one).sum()) / len(negatives)
    )


@pytest.mark.parametrize(
    ("score", "estimate", "variance", "low", "high", "partial"),
    [
        (
            PAIRED_A,
            0.819444444444444,
            0.00291034435454399,
            0.713709076700154,
            0.925179812188735,
            0.607630186577555,
        ),
        (
            PAIRED_B,
            0.611111111111111,
            0.00608381714625025,
            0.4582362176853,
            0.763986004536922,
            0.511556669451406,
        ),
    ],
)
def test_delong_equals_proc(score, estimate, variance, low, high, partial):
    error = delong_standard_error(PAIRED_LABEL, score)
    assert auc(PAIRED_LABEL, score) == pytest.approx(estimate, rel=1e-12)
    assert error**2 == pytest.approx(variance, rel=1e-10)
    assert normal_interval(estimate, error) == pytest.approx((low, high), rel=1e-9)
    limited = roc_auc_score(PAIRED_LABEL, score, max_fpr=0.1)  # as the report has it
    assert limited == pytest.approx(partial, rel=1e-10)


@pytest.mark.parametrize(("positives", "negatives"), [(2, 2), (2, 9), (9, 2), (5, 7)])
def test_delong_against_comparing_every_pair(positives, negatives):
    draw = np.random.default_rng(positives + negatives)
    label = draw.permutation([1] * positives + [0] * negatives)
    score = draw.integers(0, 6, len(label)) / 6
    one, other = score[label == 1][:, None], score[label == 0][None]
    above = (one > other) + (one == other) / 2
    variance = above.mean(1).var(ddof=1) / positives + above.mean(0).var(ddof=1) / negatives
    assert delong_standard_error(label, score) == pytest.approx(variance**0.5)


@pytest.mark.parametrize("label", [[1, 0, 0], [1, 1, 0], [1, 0], [1, 1], [0, 0]])
def test_delong_needs_two_of_each(label):
    if sum(label) == len(label) or not sum(label):
        assert np.isnan(auc(label, [0.1, 0.2]))
    assert np.isnan(delong_standard_error(label, [0.1, 0.2, 0.3][: len(label)]))


def test_limits_of_a_proportion_end_at_1():
    assert normal_interval(0.98, 0.05) == pytest.approx((0.882, 1.0), abs=1e-3)


@pytest.mark.parametrize("rate", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("ties", [False, True])
def test_fixed_rates_against_trying_every_threshold(rate, ties):
    label, score = random_units(7, n=200, ties=ties)
    tried = [
        ((score[label == 1] >= t).mean(), (score[label == 0] < t).mean())
        for t in [*np.unique(score), 2.0]
    ]
    curve = Ranking.of(label, score).curve()
    sensitivity, _ = curve.rates(curve.at_specificity(rate))
    assert sensitivity == pytest.approx(max(s for s, c in tried if c >= rate - 1e-9))
    _, specificity = curve.rates(curve.at_sensitivity(rate))
    assert specificity == pytest.approx(max(c for s, c in tried if s >= rate - 1e-9))


def test_a_specificity_that_is_met_exactly_counts():
    # 1 of 10 negatives flagged is a specificity of 90 %, though (1 - 0.9) * 10 is below 1.
    label = [0] * 10 + [1]
    score = [0.9] + [0.1] * 9 + [0.5]
    curve = Ranking.of(label, score).curve()
    assert curve.rates(curve.at_specificity(0.9)) == (1.0, 0.9)


def test_index_of_a_threshold():
    ranking = Ranking.of([0, 1, 1], [0.2, 0.2, 0.7])
    assert [ranking.index_of(t) for t in (0.71, 0.7, 0.5, 0.2, 0.0)] == [0, 1, 1, 2, 2]


def test_average_precision_at_another_prevalence_is_that_of_copied_negatives():
    label, score = random_units(9, ties=True)
    copies = np.where(label == 1, 1, 7)
    copied_label, copied_score = np.repeat(label, copies), np.repeat(score, copies)
    assert Ranking.of(label, score).curve().average_precision(copied_label.mean()) == pytest.approx(
        average_precision_score(copied_label, copied_score)
    )


def competition_pf1(labels, predictions):
    # The evaluation page of the RSNA Screening Mammography competition, 2022, written as it says.
    hits = sum(p for y, p in zip(labels, predictions, strict=True) if y)
    false = sum(p for y, p in zip(labels, predictions, strict=True) if not y)
    if hits == 0:
        return 0.0
    precision, recall = hits / (hits + false), hits / sum(labels)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("seed", range(3))
def test_probabilistic_f1_is_the_competitions(seed):
    label, score = random_units(seed)
    found = f1_of_sums((label * score).sum(), score.sum(), label.sum())
    assert found == pytest.approx(competition_pf1(label, score))
    assert f1_of_sums(3.0, 3.0, 3.0) == 1.0
    assert f1_of_sums(0.0, 0.0, 1.0) == 0.0
    assert f1_of_sums(0.0, 0.0, 0.0) == 0.0
