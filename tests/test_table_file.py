import ast
import csv
from pathlib import Path

import pandas as pd
import pytest

import mammo_pd
from mammo_pd.errors import InputError
from mammo_pd.table_file import read_csv, with_formulas, write_csv, write_rows

TEXT = "path,label,site\nZoé/1.png,1,x\nb.png,0,\n"


@pytest.fixture
def expected() -> pd.DataFrame:
    return pd.DataFrame(
        {"path": ["Zoé/1.png", "b.png"], "label": ["1", "0"], "site": ["x", ""]}, dtype="str"
    )


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_encodings_and_separators_are_recognised(
    tmp_path: Path, expected: pd.DataFrame, encoding: str, separator: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(TEXT.replace(",", separator).encode(encoding))
    pd.testing.assert_frame_equal(read_csv(path), expected)


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\n" + TEXT.replace(",", ";"),
        TEXT.replace("\n", ",\n"),  # a separator too many at the end of each line
        TEXT.replace("\n", ",\n").replace("site,", "site", 1),  # of each but the header
        "path,label,site\nZoé/1.png,1,x\nb.png,0\n",  # a cell too few
        TEXT.replace("\n", "\r\n"),
        'path,label,"site"\n"Zoé/1.png",1,"x"\nb.png,0,\n',
    ],
)
def test_what_spreadsheets_write_is_read(tmp_path: Path, expected: pd.DataFrame, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    pd.testing.assert_frame_equal(read_csv(path), expected)


def test_a_separator_within_quotes_separates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('"a,b,c,d";label\nx;1\n')
    assert list(read_csv(path)) == ["a,b,c,d", "label"]


def test_a_code_page_is_named_as_the_cause(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(TEXT.encode("cp1252"))
    with pytest.raises(InputError, match=r"is not UTF-8 text .*save it as 'CSV UTF-8'"):
        read_csv(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(60), b"\xd0\xcf\x11\xe0" + bytes(60)])
def test_a_sheet_is_named_as_the_cause(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is a spreadsheet file; save it as CSV"):
        read_csv(path)


@pytest.mark.parametrize("short", ["Zoé/1.png,1", "Zoé/1.png", '"Zoé/1.png",1'])
def test_a_short_row_is_refused_where_tables_must_be_whole(tmp_path: Path, short: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"path,label,site\na.png,1,x\n{short}\n", encoding="utf-8")
    read_csv(path)
    with pytest.raises(InputError, match=r"row 2 below the header has \d cells? and the header 3"):
        read_csv(path, whole=True)


def test_no_cell_is_a_formula_and_reading_brings_the_text_back(tmp_path: Path) -> None:
    texts = ["=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "-1.5", "+2e-3", "a=b", "", "'q"]
    table = pd.DataFrame({"=name": texts, "number": -1.5, "none": None}, dtype=object)
    write_csv(table, tmp_path / "t.csv")
    written = pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)
    cells = [*written.columns, *written.to_numpy().ravel()]
    formulas = [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert set(formulas) == {"-1.5", "+2e-3"}
    assert list(table) == ["=name", "number", "none"]
    back = with_formulas(written)
    assert list(back) == list(table)
    assert back["=name"].tolist() == texts


_FORMULAS = ("=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\n=1", "\r=1", "＝1", "＋1", "－1", "＠A")
_NO_FORMULAS = ("a\n=1", "-5", "+5.5", "-.5e-3", "a=b", "", "'=1 quoted already")


@pytest.mark.parametrize("by", ["frame", "object frame", "rows"])
def test_no_cell_begins_a_formula(tmp_path: Path, by: str) -> None:
    cells = [*_FORMULAS, *_NO_FORMULAS]
    file = tmp_path / "t.csv"
    if by == "rows":
        with file.open("w", newline="", encoding="utf-8") as opened:
            write_rows(opened, [["=name", "number"], *([cell, -1.5] for cell in cells)])
    else:
        kind = "str" if by == "frame" else "object"
        write_csv(pd.DataFrame({"=name": pd.Series(cells, dtype=kind), "number": -1.5}), file)
    with file.open(newline="", encoding="utf-8") as opened:
        header, *rows = csv.reader(opened)
    assert header == ["'=name", "number"]
    guarded = [f"'{cell}".replace("\r", "\n") for cell in _FORMULAS]
    assert [name for name, _ in rows] == [*guarded, *_NO_FORMULAS]
    assert {float(number) for _, number in rows} == {-1.5}


def test_every_table_is_written_by_these() -> None:
    """A table written past them could begin a formula."""
    for file in Path(mammo_pd.__file__).parent.rglob("*.py"):
        if file.name == "table_file.py":
            continue
        nodes = ast.walk(ast.parse(file.read_text()))
        names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        assert not names & {"to_csv", "to_excel", "DictWriter", "writerow", "writerows"}, file


@pytest.mark.parametrize(
    "control", ["\x1b]0;owned\x07", "\x1b[2K", "\n", "\r\n", "\x9b2K", "\x7f\b"]
)
def test_a_name_of_a_column_steers_no_terminal_and_ends_no_line(
    tmp_path: Path, control: str
) -> None:
    """Names of columns are printed in errors and lists; spreadsheets break long ones into lines."""
    path = tmp_path / "t.csv"
    path.write_bytes(f'path,"site{control}code"\na.png,x\n'.encode())
    (name,) = set(read_csv(path).columns) - {"path"}
    assert name.isprintable() and name.startswith("site ") and name.endswith("code")
