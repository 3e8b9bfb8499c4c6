import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.special import logit as log_odds
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from test_roc import PAIRED_A, PAIRED_LABEL, random_units

from mammo_pd.evaluation.calibration import (
    calibration_line,
    reliability_bins,
    smooth_calibration,
)
from mammo_pd.evaluation.intervals import Spread
from mammo_pd.evaluation.roc import Ranking


def test_equals_rs_glm_with_errors_clustered_in_threes():
    line = calibration_line(PAIRED_LABEL, PAIRED_A, np.arange(60) // 3)
    slope, intercept = line.slope, line.intercept
    # R 4.2.2: glm(y ~ qlogis(a)), glm(y ~ 1 + offset(qlogis(a))), sandwich summed over clusters.
    assert slope.value == pytest.approx(1.73531306790927, rel=1e-8)
    assert slope.standard_error == pytest.approx(0.440143073656047, rel=1e-6)
    assert intercept.value == pytest.approx(-0.649483172629834, rel=1e-8)
    assert intercept.standard_error == pytest.approx(0.464872520967017, rel=1e-6)


def test_scores_that_are_the_truths_own_probabilities_are_calibrated():
    draw = np.random.default_rng(0)
    score = 1 / (1 + np.exp(-draw.normal(-2, 1.5, 40_000)))
    label = (draw.random(len(score)) < score).astype(int)
    line = calibration_line(label, score, np.arange(len(score)))
    slope, intercept = line.slope, line.intercept
    assert slope.value == pytest.approx(1, abs=4 * slope.standard_error)
    assert intercept.value == pytest.approx(0, abs=4 * intercept.standard_error)
    overconfident = 1 / (1 + np.exp(-3 * np.log(score / (1 - score)) - 1))
    line = calibration_line(label, overconfident, np.arange(len(score)))
    assert line.slope.value == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize(
    ("label", "score", "why"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], "one class"),
        ([0, 1, 1], [0.4, 0.4, 0.4], "all scores are equal"),
        ([0, 1, 1], [1.0, 1.0, 1.0], "all scores are equal"),
        ([0, 0, 1], [0.1, 0.2, 0.3], "separates"),
        ([0, 1, 1], [0.3, 0.3, 0.4], "separates"),
        ([1, 0, 0], [0.1, 0.2, 0.3], "separates"),
    ],
)
def test_no_finite_slope_is_a_sentence_and_the_intercept_stays(label, score, why):
    line = calibration_line(label, score, np.arange(3))
    assert line.slope is None
    assert why in line.remark
    assert (line.intercept is None) == (why == "one class")


@pytest.mark.parametrize(
    "change",
    [
        lambda score: 0.3 + 1e-12 * score,
        lambda score: 1e-6 * score,
        lambda score: 1 - 1e-6 * (1 - score),
        lambda score: score.round(),
        lambda score: np.where(score > 0.9, 1.0, score.round(1)),
        lambda score: np.where(score > 0.9, 0.7, 1e-12),
    ],
)
def test_slope_and_intercept_solve_the_likelihoods_equations(change):
    label, score = random_units(0, n=400)
    score = np.clip(change(score), 1e-7, 1 - 1e-7)
    logit = np.log(score) - np.log1p(-score)
    line = calibration_line(label, score, np.arange(len(score)))
    # At the maximum as many positives are expected as there are.
    expected = 1 / (1 + np.exp(-(logit + line.intercept.value)))
    assert expected.sum() == pytest.approx(label.sum())
    # The slope's own intercept makes the sums equal; then the scores' mean must be equal, too.
    away = logit - logit.mean()
    low, high = -60.0, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        expected = 1 / (1 + np.exp(-(line.slope.value * away + middle)))
        low, high = (middle, high) if expected.sum() < label.sum() else (low, middle)
    reach = np.ptp(away)
    assert (expected - label) @ away / reach == pytest.approx(0, abs=1e-4)
    assert np.isfinite([line.slope.standard_error, line.intercept.standard_error]).all()
    assert (line.remark is not None) == (np.ptp(logit) < 1e-3)


def test_bins_equal_scikit_learns_quantiles():
    label, score = random_units(2, n=1000)
    ranking = Ranking.of(label, score)
    bins = reliability_bins(ranking, score, 10)
    observed, mean = calibration_curve(label, score, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(bins.mean_score[::-1], mean, atol=1e-3)
    np.testing.assert_allclose(bins.observed(ranking.curve())[::-1], observed, atol=0.011)
    assert bins.n.tolist() == [100] * 10


def test_ties_are_not_parted():
    label = np.array([0, 1] * 50)
    score = np.repeat([0.1, 0.2, 0.9], [60, 30, 10])
    ranking = Ranking.of(label, score)
    bins = reliability_bins(ranking, score, 10)
    assert bins.n.tolist() == [10, 30, 60]
    np.testing.assert_allclose(bins.mean_score, [0.9, 0.2, 0.1])
    np.testing.assert_allclose(bins.observed(ranking.curve()), 0.5)


def test_the_smooth_curve_of_calibrated_scores_is_the_diagonal_and_of_squares_their_root():
    draw = np.random.default_rng(0)
    score = 1 / (1 + np.exp(-draw.normal(-1, 1.2, 40_000)))
    label = (draw.random(len(score)) < score).astype(int)
    for change in (lambda s: s, np.square):
        curve = smooth_calibration(label, change(score), np.arange(len(score)))
        assert curve.remark is None
        expected = np.interp(curve.score, np.sort(change(score)), np.sort(score))
        np.testing.assert_allclose(curve.observed, expected, atol=0.015)
        assert ((curve.low < curve.observed) & (curve.observed < curve.high)).all()


def test_the_smooth_curve_solves_the_likelihoods_equations():
    # As many positives are expected as there are, whatever the spline.
    label, score = random_units(1, n=300)
    logit = np.log(score) - np.log1p(-score)
    curve = smooth_calibration(label, score, np.arange(300))
    inside = (score >= curve.score[0]) & (score <= curve.score[-1])
    expected = np.interp(score[inside], curve.score, curve.observed)
    assert expected.sum() == pytest.approx(label[inside].sum(), abs=0.03 * label.sum())
    # Its knots are quantiles of the logit, so another slope of the logit changes nothing.
    steeper = 1 / (1 + np.exp(-2 * logit))
    np.testing.assert_allclose(
        smooth_calibration(label, steeper, np.arange(300)).observed, curve.observed, atol=1e-7
    )


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda s: s * 0 + 0.5, "all scores are equal"),
        (lambda s: 0.3 + 1e-9 * s, "nearly constant"),
        (lambda s: np.where(s > 0.5, 0.7, 0.2), "straight line"),
        (lambda s: s.round(), "straight line"),
    ],
)
def test_tied_and_extreme_scores_have_a_curve_or_a_sentence(score, said):
    label, given = random_units(0, n=400)
    curve = smooth_calibration(label, score(given), np.arange(400))
    assert said in curve.remark
    assert np.isfinite(curve.observed).all()
    assert (len(curve.score) > 0) == (said == "straight line")
    assert not len(smooth_calibration(label * 0, given, np.arange(400)).score)
    separated = smooth_calibration(label, label * 0.5 + 0.2 * given, np.arange(400))
    assert "separates the classes" in separated.remark


def natural_splines(x, knots):
    """Scipy's natural cubic splines of 1 at one knot and 0 at the others, linear beyond."""
    spline = CubicSpline(knots, np.eye(len(knots)), bc_type="natural")
    inside = np.clip(x, knots[0], knots[-1])
    return spline(inside) + spline(inside, 1) * (x - inside)[:, None]


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(
    ("rare", "quantiles"), [(49, (0.1, 0.5, 0.9)), (50, (0.05, 0.35, 0.65, 0.95))]
)
def test_the_smooth_curve_equals_scikit_learns_fit_of_scipys_natural_splines(
    rare, quantiles, flipped
):
    draw = np.random.default_rng(7)
    label = np.repeat([1, 0], [rare, 230])
    score = 1 / (1 + np.exp(-(label * 1.2 - 1 + draw.normal(size=len(label)))))
    # Bent, so that a line or other knots would fit otherwise.
    score = np.where(score > 0.4, score**2, score)
    patient = draw.integers(0, 60, len(label))
    if flipped:
        label, score = 1 - label, 1 - score
    x = log_odds(score)
    knots = np.quantile(x, quantiles)
    design = natural_splines(x, knots)
    # The splines sum up to 1: they hold the intercept.
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=10_000)
    fit.fit(design, label)
    curve = smooth_calibration(label, score, patient)
    grid = log_odds(curve.score)
    np.testing.assert_allclose(grid[[0, -1]], np.quantile(x, (0.01, 0.99)))
    np.testing.assert_allclose(np.diff(grid), np.ptp(grid) / (len(grid) - 1))
    on_grid = natural_splines(grid, knots)
    np.testing.assert_allclose(
        curve.observed, fit.predict_proba(on_grid)[:, 1], rtol=1e-4, atol=1e-6
    )
    # The sandwich: gradients summed by patient, through the inverse of the information.
    found = fit.predict_proba(design)[:, 1]
    by_patient = np.zeros((len(knots), patient.max() + 1))
    np.add.at(by_patient.T, patient, design * (label - found)[:, None])
    information = design.T @ (design * (found * (1 - found))[:, None])
    influence = on_grid @ np.linalg.solve(information, by_patient)
    reach = [Spread.of(of_point).reach for of_point in influence]
    middle = log_odds(curve.observed)
    np.testing.assert_allclose(log_odds(curve.high) - middle, reach, rtol=1e-3)
    np.testing.assert_allclose(middle - log_odds(curve.low), reach, rtol=1e-3)


@pytest.mark.parametrize("n", [101, 104, 106, 108])
def test_bins_end_at_the_unit_nearest_to_their_share(n):
    label, score = random_units(3, n=n)
    bins = reliability_bins(Ranking.of(label, score), score, 10)
    assert bins.n.tolist() == np.diff(np.rint(np.arange(11) * n / 10)).tolist()
