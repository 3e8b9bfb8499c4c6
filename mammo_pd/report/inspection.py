"""The page on what a folder holds: tables of counts in, one self-contained HTML file out."""

from collections.abc import Sequence
from dataclasses import dataclass

from mammo_pd.report.render import render_template


@dataclass(frozen=True)
class CountTable:
    """One table of the inspection; it holds no name of a file and no identifier.

    Attributes:
        title: of the table.
        columns: names of its columns; the first column names the row.
        rows: one text or number for each column.
        note: how to read it, or what to do; empty if nothing is to be said.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str | int, ...]]
    note: str = ""


def inspection_page(
    tables: Sequence[CountTable], tiles: Sequence[tuple[str, str, str]], made: str
) -> str:
    """Write the page.

    Args:
        tables: in their order.
        tiles: the figures at the head: name, value, and a line below it.
        made: when and by which version.
    """
    shown = [[[_shown(cell) for cell in row] for row in table.rows] for table in tables]
    return render_template(
        "inspection.html", tables=list(zip(tables, shown, strict=True)), tiles=tiles, made=made
    )


def _shown(cell: str | int) -> tuple[str, bool]:
    """A cell's text, and whether it is a number."""
    return (f"{cell:,}", True) if isinstance(cell, int) else (cell, False)
