"""What a message quotes of a table: findings and small numbers, nothing that may name a woman."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mammo_pd.data.sources.cbis_ddsm import _PATHOLOGY
from mammo_pd.quoting import may_be_quoted, such_as, values_in_words


@pytest.mark.parametrize(
    "cell",
    [
        *("0", "1", "2.0", "-1", "0.25", "0,25", "1.5", "12 %", "D", "4A", "B"),
        *("benign", "Malignant", "BI-RADS 4", "BIRADS_4a", "yes", "maybe", "in situ", "MLO"),
        *_PATHOLOGY,
    ],
)
def test_words_for_findings_and_small_numbers_are_quoted(cell: str) -> None:
    assert may_be_quoted(cell)


@pytest.mark.parametrize(
    "cell",
    [
        *("", "Yilmaz", "Doe^Jane", "Jane Doe", "benign Doe", "O'Neil", "İpek", "José", "J. D."),
        *("1950", "19500131", "1950-01-31", "31.1.50", "12/3/60", "1 2 60", "A B", "A1234"),
        *("4711", "1.2.840.10008", "999-99-9999", "a/b.dcm", "jane@x.org", "P1", "100"),
    ],
)
def test_what_may_name_a_woman_is_not(cell: str) -> None:
    assert not may_be_quoted(cell)
    assert such_as([cell]) == ""
    assert not cell or cell not in values_in_words(["", "benign", cell], first_line=700)


@given(st.text(string.digits + string.punctuation + " ", min_size=1))
def test_no_more_than_five_digits_are_quoted(cell: str) -> None:
    """A full date, a telephone and a social security number have more."""
    assert len(re.sub(r"\D", "", cell)) <= 5 or not may_be_quoted(cell)


def test_values_are_counted_and_found() -> None:
    assert values_in_words([]) == values_in_words(["", ""]) == "nothing"
    assert values_in_words(["1", "0", "", "1"]) == "0, 1"
    assert values_in_words(["x y", "0", "x y"]) == "0 and 1 other value (line 2)"
    assert values_in_words(["x y"]) == "1 value (line 2)"
    assert values_in_words(["", "p q", "x y"], first_line=1) == "2 different values (lines 2, 3)"
    assert values_in_words(map(str, range(12))) == "12 different values"
    assert such_as(["D", "Doe", "C", "D", "B", "A"]) == " (such as A, B, C)"
