"""Numbers as text, the same on the page, in figures and in the terminal."""

from collections.abc import Mapping

from mammo_pd.evaluation.measures import Scalar

NONE = "–"


def with_interval(row: Mapping[str, Scalar], name: str = "auc", digits: int = 3) -> str:
    """``0.812 [0.764, 0.858]``; a dash where the value is undefined, or missing from the row."""
    value = row.get(name)
    if value is None:
        return NONE
    interval = between(row, f"{name}_ci", digits)
    return f"{value:.{digits}f}" + (f" {interval}" if interval else "")


def between(row: Mapping[str, Scalar], name: str, digits: int = 3, sign: str = "") -> str:
    """``[0.764, 0.858]`` from ``NAME_low`` and ``NAME_high``; empty without an interval."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return "" if low is None else f"[{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def fixed(value: Scalar, digits: int = 3, sign: str = "") -> str:
    """``0.812``; a dash for None."""
    return NONE if value is None else f"{value:{sign}.{digits}f}"


def plain(value: Scalar) -> str:
    """Counts with thousands separators, text as it is, a dash for None."""
    return NONE if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def significance(p: Scalar) -> str:
    """A p-value: ``0.0123``; a dash for None."""
    return NONE if p is None else f"{p:.3g}"


def women(value: Scalar) -> str:
    """Women per 1,000, with the digits that such a number bears: ``105``, ``5.1``, ``0.87``."""
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
