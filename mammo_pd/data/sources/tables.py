"""Read a data set's own table, and explain what is wrong if it is a different one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.table_file import column_names, read_csv, with_known_names


def read_table(path: Path, columns: Sequence[str], called: str) -> pd.DataFrame:
    """Read a table and check that it has the set's columns.

    Args:
        path: CSV as `read_csv` takes it, or an Excel sheet.
        columns: the required ones.
        called: name of the set's own table, for errors.

    Returns:
        Every cell as stripped text, empty if missing.

    Raises:
        InputError: no such file, not a table, or a column is missing.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the table itself, {called}.")
    is_sheet = path.suffix.lower() in (".xls", ".xlsx")
    frame = with_known_names(_read_excel(path) if is_sheet else read_csv(path), columns, path)
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise InputError(
            f"{path} has no column {', '.join(missing)}, so it is not {called}; give that table as "
            f"it was downloaded. It has: {column_names(frame.columns)}."
        )
    return frame


def choose(frame: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Those columns that exist, renamed ({old: new})."""
    present = {old: new for old, new in names.items() if old in frame.columns}
    return frame[list(present)].rename(columns=present)


def codes(values: pd.Series) -> pd.Series:
    """Codes as whole numbers: tools save integer columns with gaps as 1.0, 2.0, ..."""
    return values.str.replace(r"\.0+$", "", regex=True)


def _read_excel(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"the label table {path} does not exist; give the sheet, or a CSV of it.")
    try:
        frame = pd.read_excel(path, dtype=str, keep_default_na=False)
    except ImportError as error:
        raise InputError(
            f"{path} is an Excel sheet, and its reader is not installed ({error}); save the "
            "sheet as CSV and give that, or: pip install openpyxl"
        ) from error
    except Exception as error:  # a damaged archive can raise almost anything
        raise InputError(f"{path} is no Excel sheet ({error}); save it as CSV.") from error
    frame.columns = frame.columns.str.strip()
    stripped: pd.DataFrame = frame.apply(lambda column: column.str.strip())
    return stripped
