import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mammo_pd.evaluation.compare import SIGNIFICANT
from mammo_pd.report.numbers import between, cutoff, fixed, in_100, significance, with_interval


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.812, 2, "0.81"),
        (0.004, 2, "0.004"),
        (0.0049, 2, "0.005"),
        (0.00004, 3, "0.00004"),
        (3e-9, 3, "3e-09"),
        (-0.0004, 3, "-0.0004"),
        (0.9996, 3, "0.9996"),
        (0.996, 2, "0.996"),
        (1 - 1e-9, 3, "0.999999999"),
        (1.0004, 3, "1.0004"),
        (0.0, 2, "0.00"),
        (1.0, 3, "1.000"),
        (1 - 1e-16, 3, "1.000"),
        (41.25, 1, "41.2"),
        (None, 3, "–"),
    ],
)
def test_only_0_is_written_as_0_and_only_1_as_1(value, digits, text):
    assert fixed(value, digits) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.8126, "81"), (0.8, "80"), (0.9996, "99.96"), (1.0, "100"), (0.001, "0.1"), (0.0, "0")],
)
def test_only_all_are_100_in_100(share, text):
    assert in_100(share) == text


def test_limits_that_differ_are_written_differently():
    row = {"x": 0.41213, "x_ci_low": 0.41211, "x_ci_high": 0.41216}
    assert with_interval(row, "x") == "0.412 [0.4121, 0.4122]"
    row = {"x": 1.0, "x_ci_low": 0.9996, "x_ci_high": 1.0}
    assert with_interval(row, "x") == "1.000 [0.9996, 1.000]"
    row = {"d_low": -0.0004, "d_high": 0.01}
    assert between(row, "d", sign="+") == "[-0.0004, +0.010]"
    assert between({"d_low": None, "d_high": None}, "d") == ""
    assert between({}, "d") == ""


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.01234, "0.0123"), (1.0, "1"), (3e-9, "3e-09"), (4e-320, "<1e-300"), (0.0, "<1e-300")],
)
def test_no_p_is_0(p, text):
    assert significance(p) == text


@given(st.floats(1e-12, 1) | st.floats(0.0499, 0.0501))
@example(np.nextafter(SIGNIFICANT, 0))
def test_a_p_is_written_on_its_side_of_the_level(p):
    assert (float(significance(p)) < SIGNIFICANT) == (p < SIGNIFICANT)
    assert float(significance(p)) == pytest.approx(p, rel=5e-3)


@pytest.mark.parametrize(
    ("threshold", "text"),
    [
        (0.234567, "0.2346"),
        (0.99998, "0.99998"),
        (1.0, "1"),
        (0.0, "0"),
        (1e-9, "1e-09"),
        (1.0000000000000002, "1.0000000000000002"),
    ],
)
def test_a_threshold_decides_on_scores_of_0_and_1_as_it_is_written(threshold, text):
    assert cutoff(threshold) == text
    for score in (0.0, 1.0):
        assert (score >= float(text)) == (score >= threshold)
