"""The tables that a cross-validation prints."""

import re

import pytest

from mammo_pd.report.cross_validation import run_table, seed_table
from mammo_pd.terms import Level

AUCS = (0.75, 0.5, None, 1.0)
SEEDS = [
    {"seed": name, **dict(zip([level.value for level in Level], AUCS, strict=True))}
    for name in ("0", "1", "mean", "range")
]
RUNS = [
    {
        "fold": fold,
        "seed": seed,
        "epoch": 30,
        "seconds": 1234.5,
        **{f"{part}_auc_{level}": 0.5 for part in ("val", "test") for level in Level},
    }
    for fold in (0, 1)
    for seed in (0, 11)
]


def spans(line: str) -> list[tuple[int, int]]:
    """Where its cells begin and end."""
    return [match.span() for match in re.finditer(r"\S+(?: \S+)*", line)]


@pytest.mark.parametrize(
    ("table", "groups"), [(run_table(RUNS), 2), (seed_table(SEEDS), 1)], ids=["runs", "seeds"]
)
def test_every_heading_stands_over_its_columns(table: str, groups: int) -> None:
    over, heads, *rows = table.splitlines()
    ends = [end for _, end in spans(heads)]
    for row in rows:
        assert [end for _, end in spans(row)] == ends
    named = spans(over)
    assert len(named) == groups
    # Over columns of AUCs alone: after those that tell the run, before what else it tells.
    columns = [(start, end) for start, end in spans(heads) if heads[start:end] in list(Level)]
    each = len(columns) // groups
    for (start, end), at in zip(named, range(0, len(columns), each), strict=True):
        assert columns[at][0] <= start
        assert end <= columns[at + each - 1][1]
