"""Read a data set's own table, and explain what is wrong if it is a different one."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.table_file import column_names, read_csv, with_known_names


def read_table(
    path: Path, columns: Sequence[str], called: str, *, sheet: str | None = None
) -> pd.DataFrame:
    """Read a table and check that it has the set's columns.

    Args:
        path: CSV as `read_csv` takes it, or an Excel sheet.
        columns: the required ones.
        called: name of the set's own table, for errors.
        sheet: which one of an Excel file with several; by default the first.

    Returns:
        Every cell as stripped text, empty if missing.

    Raises:
        InputError: no such file, not a table, or a column is missing.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the table itself, {called}.")
    frame = _read_excel(path, sheet) if _is_excel(path) else read_csv(path)
    frame = with_known_names(frame, columns, path)
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise InputError(
            f"{path} has no column {', '.join(missing)}, so it is not {called}; give that table as "
            f"it was downloaded. It has: {column_names(frame.columns)}."
        )
    return frame


def read_cells(path: Path, called: str, *, sheet: str | None = None) -> pd.DataFrame:
    """Read a table whose header is not its first row, or that has none.

    Args:
        path: CSV in UTF-8, or an Excel sheet.
        called: name of the set's own table, for errors.
        sheet: which one of an Excel file with several; by default the first.

    Returns:
        Every cell as stripped text, empty if missing; rows and columns are numbered from 0.

    Raises:
        InputError: no such file, or not a table.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the table itself, {called}.")
    if _is_excel(path):
        return _read_excel(path, sheet, header=None)
    if not path.is_file():
        raise InputError(f"the label table {path} does not exist; give {called}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise InputError(f"{path} is not UTF-8 text; save it as 'CSV UTF-8'.") from error
    lines = text.splitlines()
    separator = max(",;\t", key=text.count)
    rows = list(csv.reader(lines, delimiter=separator))
    width = max(map(len, rows), default=0)
    return pd.DataFrame(
        [[cell.strip() for cell in row] + [""] * (width - len(row)) for row in rows],
        columns=range(width),
        dtype=str,
    )


def choose(frame: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Those columns that exist, renamed ({old: new})."""
    present = {old: new for old, new in names.items() if old in frame.columns}
    return frame[list(present)].rename(columns=present)


def codes(values: pd.Series) -> pd.Series:
    """Codes as whole numbers: tools save integer columns with gaps as 1.0, 2.0, ..."""
    return values.str.replace(r"\.0+$", "", regex=True)


def _is_excel(path: Path) -> bool:
    return path.suffix.lower() in (".xls", ".xlsx")


def _read_excel(path: Path, sheet: str | None = None, **options: Any) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"the label table {path} does not exist; give the sheet, or a CSV of it.")
    if sheet is not None:
        options["sheet_name"] = sheet
    try:
        frame = pd.read_excel(path, dtype=str, keep_default_na=False, **options)
    except ImportError as error:
        raise InputError(
            f"{path} is an Excel sheet, and its reader is not installed ({error}); save the "
            "sheet as CSV and give that, or: pip install openpyxl"
        ) from error
    except Exception as error:  # a damaged archive can raise almost anything
        # Not its words, which may quote a cell: "could not convert string to float: 'Doe'".
        raise InputError(
            f"{path} is not a readable Excel sheet ({type(error).__name__}); save it as CSV."
        ) from error
    if "header" not in options:
        frame.columns = frame.columns.str.strip()
    stripped: pd.DataFrame = frame.fillna("").apply(lambda column: column.str.strip())
    return stripped
