"""Tables as people save them: read CSV files of any common separator and encoding, and write them.

Formats of spreadsheets from other countries or systems are recognised (semicolons, tabs, UTF-16,
``sep=;``, the case of a header). Anything that would need a guess is refused, with the cause.
"""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.wording import counted, on_one_line

_SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Longest byte order mark first: UTF-32's begins like UTF-16's.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# The first bytes of Excel files, new and old: a ZIP archive and a compound file.
_SHEET_MARKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
# Enough for any header.
_HEAD_BYTES = 2**18
# A first line that names the separator: spreadsheets understand it, and some programs write it.
_NAMED_SEPARATOR = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
# Characters that spreadsheets read as the start of a formula (East Asian ones also the full-width
# forms); some skip tabs and line ends before them.
_FORMULA_MARKS = r"[=+\-@\t\r\n＝＋－＠]"
_FORMULA = re.compile(_FORMULA_MARKS)
_GUARDED = re.compile(f"^'(?={_FORMULA_MARKS})")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# Values that are never a column's name: a number, a date, a path or a file name.
_IS_VALUE = re.compile(
    r"^[+-]?[\d.,:/-]+$|[/\\]|\.(?:dcm|dicom|png|pgm|tiff?|jpe?g)$", re.IGNORECASE
)
_ROWS_AT_ONCE = 5_000
_WRONG_FIELDS = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")


def read_csv(path: Path, called: str = "the label table", *, whole: bool = False) -> pd.DataFrame:
    """Read a CSV with a header, every cell as stripped text, empty if missing.

    Cells are separated by commas, semicolons, tabs or bars, whichever the header holds most of;
    the text is UTF-8, UTF-16 or UTF-32.

    Args:
        path: of the table.
        called: what the table is, for errors.
        whole: also refuse rows shorter than the header: a cell missing from the middle shifts all
            that follow.

    Raises:
        InputError: no such file, not CSV, rows longer than the header, or no rows.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{called} {path} {problem}; give a CSV file with a header.")
    called = f"{called} {path}"
    encoding = _encoding(path, called)
    separator, to_skip = _separator(path, encoding)
    try:
        frame = pd.read_csv(
            path,
            sep=separator,
            skiprows=to_skip,
            dtype=str,
            keep_default_na=False,
            encoding=encoding,
        )
    except UnicodeError as error:
        raise InputError(
            f"{called} is not UTF-8 text (spreadsheets on Windows save a CSV in the "
            "country's own code page); save it as 'CSV UTF-8'."
        ) from error
    except ValueError as error:
        raise _not_csv(called, separator, error) from error
    if frame.empty:
        raise InputError(f"{called} has no rows; give one row per image.")
    frame = _refuse_long_rows(frame, called, separator)
    if whole:
        _refuse_short_rows(path, called, encoding, separator, to_skip)
    frame.columns = frame.columns.map(on_one_line).str.strip()
    # A short row has missing values at its end, even though empty cells are read as text.
    stripped = frame.fillna("").apply(unless_equal, args=(lambda cells: cells.str.strip(),))
    # A separator at the end of the header makes an empty column, which pandas names.
    nothing = [
        name
        for name in stripped
        if str(name).startswith("Unnamed: ") and (stripped[name] == "").all()
    ]
    return stripped.drop(columns=nothing)


def with_known_names(frame: pd.DataFrame, names: Iterable[str], path: Path) -> pd.DataFrame:
    """Rename columns that equal one of ``names`` apart from case and punctuation.

    Args:
        frame: the table; ``PatientID`` becomes ``patient_id`` where that is among the names.
        names: as spelt in the code; columns already spelt that way are left alone.
        path: of the table, for the error.

    Raises:
        InputError: two columns map to the same name.
    """
    names = tuple(names)
    for name in names:
        # Pandas' name for the second of two equal columns.
        if f"{name}.1" in frame.columns:
            raise InputError(f"{path} has two columns named {name}; rename or remove one.")
    absent = {plain_name(name): name for name in names if name not in frame.columns}
    found: dict[str, str] = {}
    for column in frame.columns:
        meant = absent.get(plain_name(column))
        if meant is None:
            continue
        if meant in found.values():
            twice = [*(old for old, new in found.items() if new == meant), column]
            raise InputError(
                f"{path} has more than one candidate for the column {meant} ({', '.join(twice)}); "
                "rename or remove all but one."
            )
        found[column] = meant
    return frame.rename(columns=found)


def without_formulas(cell: str) -> str:
    """Text that no spreadsheet reads as a formula: an apostrophe is put before = + - @.

    Numbers are left alone. A formula can run programs on the computer of whoever opens the table. A
    lone carriage return becomes a line feed: pandas does not quote it, so it would end the row.
    """
    cell = cell.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def write_csv(frame: pd.DataFrame, file: Path) -> None:
    """Write a table without its index and without formulas; ``with_formulas`` undoes the latter.

    All tables for people must be written by this, `csv_text` or `write_rows`.
    """
    with file.open("w", encoding="utf-8", newline="") as opened:
        _write(frame, opened)


def write_rows(opened: TextIO, rows: Iterable[Iterable[object]]) -> None:
    """Write rows to an open CSV file one at a time, without formulas.

    Args:
        opened: for writing, with ``newline=""``.
        rows: of text and numbers.
    """
    csv.writer(opened).writerows(
        [without_formulas(cell) if isinstance(cell, str) else cell for cell in row] for row in rows
    )


def csv_text(frame: pd.DataFrame) -> str:
    """A table as `write_csv` writes it."""
    text = io.StringIO()
    _write(frame, text)
    return text.getvalue()


def _write(frame: pd.DataFrame, opened: TextIO) -> None:
    # A few rows at a time: guarded cells are Python strings, many times larger than the table.
    for start in range(0, max(len(frame), 1), _ROWS_AT_ONCE):
        some = _harmless(frame.iloc[start : start + _ROWS_AT_ONCE])
        some.to_csv(opened, index=False, header=start == 0)


def _harmless(frame: pd.DataFrame) -> pd.DataFrame:
    harmless = frame.copy(deep=False)
    for name, kind in frame.dtypes.items():
        if not pd.api.types.is_numeric_dtype(kind):
            cells = frame[name]
            harmless[name] = cells.map(lambda c: without_formulas(c) if isinstance(c, str) else c)
    harmless.columns = pd.Index([without_formulas(str(name)) for name in frame.columns])
    return harmless


def with_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """Undo the apostrophes that ``write_csv`` put before cells of text."""
    cells = frame.apply(
        unless_equal, args=(lambda column: column.str.replace(_GUARDED, "", regex=True),)
    )
    cells.columns = frame.columns.str.replace(_GUARDED, "", regex=True)
    return cells


def unless_equal(
    column: "pd.Series[str]", change: "Callable[[pd.Series[str]], pd.Series[str]]"
) -> "pd.Series[str]":
    """The changed column, or the original if nothing changed.

    So a large table's text is in memory once, not once per step.
    """
    changed = change(column)
    return column if changed.equals(column) else changed


def column_names(columns: Iterable[str]) -> str:
    """Column names for an error message, withheld if the first row seems to be data."""
    names = [str(name) for name in columns]
    if any(_IS_VALUE.search(name) for name in names):
        return "values instead of names in its first line: the header may be missing"
    return ", ".join(names)


def plain_name(name: str) -> str:
    """A column's name without case and punctuation: ``PatientID`` equals ``patient_id``."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _encoding(path: Path, called: str) -> str:
    with path.open("rb") as opened:
        head = opened.read(64)
    if head.startswith(_SHEET_MARKS):
        raise InputError(f"{called} is a spreadsheet file; save it as CSV.")
    for mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return name
    # Only UTF-16 text holds zero bytes: in a header of Latin letters, every second byte.
    if head[1::2].count(0) > len(head) // 4:
        return "utf-16-le"
    if head[::2].count(0) > len(head) // 4:
        return "utf-16-be"
    return "utf-8-sig"


def _separator(path: Path, encoding: str) -> tuple[str, int]:
    """The separator, and the number of lines before the header that only name it."""
    with path.open(encoding=encoding, errors="replace") as opened:
        header = opened.readline(_HEAD_BYTES)
    named = _NAMED_SEPARATOR.fullmatch(header.rstrip("\r\n"))
    if named:
        return named[1], 1
    # Within quotes it separates nothing.
    outside = re.sub(r'"[^"]*"', "", header)
    return max(_SEPARATORS, key=outside.count), 0


def _refuse_long_rows(frame: pd.DataFrame, called: str, separator: str) -> pd.DataFrame:
    """Undo how pandas reads rows longer than the header: it turns their first cells into the index.

    A separator at the end of each row adds an empty cell, which is dropped.

    Raises:
        InputError: the cells beyond the header hold something.
    """
    if isinstance(frame.index, pd.RangeIndex):
        return frame
    names = list(frame.columns)
    cells = frame.reset_index()
    beyond = cells.iloc[:, len(names) :].fillna("")
    if (beyond != "").to_numpy().any():
        raise _other_length(called, separator, len(names), cells.shape[1])
    cells = cells.iloc[:, : len(names)]
    cells.columns = pd.Index(names)
    return cells


def _refuse_short_rows(
    path: Path, called: str, encoding: str, separator: str, to_skip: int
) -> None:
    """Refuse rows shorter than the header, which pandas silently pads.

    Raises:
        InputError: there is one.
    """
    with path.open(encoding=encoding, newline="") as opened:
        rows = csv.reader(opened, delimiter=separator)
        for _ in range(to_skip):
            next(rows)
        expected = len([name for name in next(rows) if name.strip()])
        for number, row in enumerate(rows, start=1):
            if row and len(row) < expected:
                where = f"row {number} below the header"
                raise _other_length(called, separator, expected, len(row), where)


def _not_csv(called: str, separator: str, error: ValueError) -> InputError:
    fields = _WRONG_FIELDS.search(str(error))
    if fields:
        expected, line, found = fields.groups()
        return _other_length(called, separator, int(expected), int(found), f"line {line}")
    return InputError(
        f"{called} cannot be read as CSV ({error}); save it as comma-separated "
        "UTF-8 with one header line."
    )


def _other_length(
    called: str, separator: str, expected: int, found: int, where: str = "a row"
) -> InputError:
    cause = (
        "a decimal comma, or a comma within a cell, must be quoted"
        if separator == ","
        else "a separator within a cell must be quoted"
    )
    return InputError(
        f"{called}: {where} has {counted(found, 'cell')} and the header {expected} (separated "
        f"by {_SEPARATOR_NAMES.get(separator, repr(separator))}); {cause}. Correct it, or save the "
        "table with semicolons."
    )
