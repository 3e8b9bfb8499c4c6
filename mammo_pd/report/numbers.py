"""Numbers as text, the same on the page, in figures and in the terminal."""

from collections.abc import Mapping
from decimal import Decimal

from mammo_pd.evaluation.compare import SIGNIFICANT
from mammo_pd.evaluation.measures import Scalar

NONE = "–"


# Beyond, a small number is written with an exponent.
_MOST_DIGITS = 6
# Of double precision: two numbers that differ are then written differently.
_ALL_DIGITS = 17
# The smallest numbers of double precision lose their digits, and then become 0.
_LEAST_P = 1e-300
_DIGITS_OF_ROUNDING, _ROUNDING = 12, 1e-12


def with_interval(row: Mapping[str, Scalar], name: str = "auc", digits: int = 3) -> str:
    """``0.812 [0.764, 0.858]``; a dash where the value is undefined, or missing from the row."""
    value = row.get(name)
    if value is None:
        return NONE
    interval = between(row, f"{name}_ci", digits)
    return fixed(value, digits) + (f" {interval}" if interval else "")


def between(row: Mapping[str, Scalar], name: str, digits: int = 3, sign: str = "") -> str:
    """``[0.764, 0.858]`` from ``NAME_low`` and ``NAME_high``; empty without an interval.

    As many digits are written as it takes to tell the limits apart.
    """
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    if low is None or high is None:
        return ""
    for more in range(digits, max(digits, _MOST_DIGITS) + 1):
        ends = fixed(low, more, sign), fixed(high, more, sign)
        if ends[0] != ends[1]:
            break
    return f"[{ends[0]}, {ends[1]}]"


def fixed(value: Scalar, digits: int = 3, sign: str = "") -> str:
    """``0.812``; a dash for None.

    Only 0 is written as 0 and only 1 as 1: 0.004 with two digits is 0.004, and 0.9996 with three
    is 0.9996; what six digits do not tell from 0 has an exponent.
    """
    if value is None:
        return NONE
    number = float(value)
    # What differs from 0 or 1 by rounding alone is 0 or 1.
    end = next((end for end in (-1.0, 0.0, 1.0) if abs(number - end) < 0.5), None)
    if end is None or abs(number - end) < _ROUNDING:
        return f"{number:{sign}.{digits}f}"
    most = _MOST_DIGITS if end == 0.0 else _DIGITS_OF_ROUNDING
    for more in range(digits, max(digits, most) + 1):
        text = f"{number:{sign}.{more}f}"
        if float(text) != end:
            return text
    return f"{number:{sign}.1g}"


def cutoff(threshold: float, digits: int = 4) -> str:
    """A threshold with this many significant digits: ``0.2346``.

    Only 0 is written as 0 and only 1 as 1, as ``fixed`` does: at 1.0000000000000002 no score of 1
    is flagged, and at 0.99998 more than those of 1 are.
    """
    for more in range(digits, _ALL_DIGITS + 1):
        text = f"{threshold:.{more}g}"
        if float(text) not in (0.0, 1.0) or float(text) == threshold:
            break
    return text


def in_100(share: Scalar) -> str:
    """A share as a count in 100: ``81``; only 1 is 100 and only 0 is 0, so 0.9996 is ``99.96``."""
    return NONE if share is None else f"{(Decimal(fixed(share, 2)) * 100).normalize():f}"


def plain(value: Scalar) -> str:
    """Counts with thousands separators, text as it is, a dash for None."""
    return NONE if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def significance(p: Scalar) -> str:
    """A p-value: ``0.0123``, a dash for None; no p is 0, so the least is ``<1e-300``.

    What is below the level of significance is written below it: 0.04996 has four digits.
    """
    if p is None:
        return NONE
    if float(p) < _LEAST_P:
        return f"<{_LEAST_P:g}"
    for more in range(3, _ALL_DIGITS + 1):
        text = f"{p:.{more}g}"
        if (float(text) < SIGNIFICANT) == (float(p) < SIGNIFICANT):
            break
    return text


def women(value: Scalar) -> str:
    """Women per 1,000, with the digits such a number supports: ``105``, ``5.1``, ``0.87``."""
    if value is None:
        return NONE
    number = float(value)
    size = abs(number)
    if size < 1e-9:
        return "0"
    if size < 0.005:
        return f"{number:.1g}"
    return f"{number:,.{0 if size >= 10.0 else 1 if size >= 1.0 else 2}f}"


def women_with_interval(row: Mapping[str, Scalar], name: str) -> str:
    """``5.1 [4.4, 5.6]``; a dash where the value is undefined.

    Args:
        row: with ``NAME, NAME_ci_low, NAME_ci_high``, in women per 1,000.
        name: of the value.
    """
    return " ".join(filter(None, [women(row.get(name)), women_between(row, name)]))


def women_between(row: Mapping[str, Scalar], name: str) -> str:
    """``[4.4, 5.6]``; empty without an interval."""
    low, high = row.get(f"{name}_ci_low"), row.get(f"{name}_ci_high")
    return "" if low is None or high is None else f"[{women(low)}, {women(high)}]"


def scaled(row: Mapping[str, Scalar], factor: float) -> dict[str, Scalar]:
    """All numbers of a row, times a factor."""
    return {
        name: value * factor if isinstance(value, float) else value for name, value in row.items()
    }
