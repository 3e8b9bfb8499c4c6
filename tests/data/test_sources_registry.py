import inspect
import re
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from mammo_pd.cli.preprocess import preprocess
from mammo_pd.data.sources import SOURCES, read_source
from mammo_pd.data.sources.images import one_file_each
from mammo_pd.data.sources.tables import read_table
from mammo_pd.errors import InputError


def test_the_sets_that_the_documentation_names_are_there() -> None:
    assert set(SOURCES) == {
        *("bmcd", "cbis-ddsm", "cdd-cesm", "cmmd", "csaw-cc", "dmid", "embed", "inbreast"),
        *("kau-bcmd", "mias", "nlbs", "optimam", "rsna", "vindr-mammo"),
    }
    for name, source in SOURCES.items():
        assert source.name == name
        assert all(
            sentence.startswith("positive where") for sentence in source.definitions.values()
        )


def test_every_set_and_every_definition_has_its_place_on_the_page_and_in_the_help() -> None:
    root = Path(__file__).parents[2]
    lines = (root / "data_manifests" / "README.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    said = inspect.getdoc(preprocess)
    assert said is not None
    for name, source in SOURCES.items():
        assert name in rows, f"data_manifests/README.md has no row {name}"
        for definition in source.definitions:
            assert f"`{definition}`" in rows[name]
        assert re.search(rf"[ \n]{name}[ ,.\n]", said), f"preprocess --help does not name {name}"


def test_unknown_set_and_unknown_label_are_refused_with_the_choice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data set 'ddsm'; choose one of bmcd, cbis-ddsm"):
        read_source("ddsm", tmp_path / "x.csv", tmp_path)
    with pytest.raises(InputError, match=r"no label 'birads_3'; choose one of birads_4, birads_5"):
        read_source("vindr-mammo", tmp_path / "x.csv", tmp_path, definition="birads_3")


@pytest.mark.parametrize(
    ("name", "file", "missing"),
    [
        ("rsna", "train.csv", "cancer"),
        ("vindr-mammo", "breast-level_annotations.csv", "breast_birads"),
        ("cmmd", "CMMD_clinicaldata_revision.csv", "classification"),
        ("inbreast", "INbreast.csv", "Bi-Rads"),
        ("csaw-cc", "CSAW-CC_breast_cancer_screening_data.csv", "rad_timing"),
        ("mias", "labels.csv", "severity"),
        ("cdd-cesm", "Radiology-manual-annotations.csv", "Image_name"),
        ("kau-bcmd", "correctSheet.csv", "Assesment"),
        ("nlbs", "NLBSD_Metadata.csv", "Cancer"),
    ],
)
def test_a_table_without_a_column_is_refused_naming_file_column_and_table(
    tmp_path: Path, name: str, file: str, missing: str
) -> None:
    path = tmp_path / file
    path.write_text("something,else\n1,2\n")
    with pytest.raises(InputError) as refused:
        read_source(name, path, tmp_path)
    message = str(refused.value)
    assert str(path) in message
    assert missing in message.partition("so it is not")[0]
    assert SOURCES[name].table in message
    assert "It has: something, else." in message


@pytest.mark.parametrize("name", SOURCES)
def test_a_missing_table_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"does not exist|is not a f"):
        read_source(name, tmp_path / "absent.csv", tmp_path)


@pytest.mark.parametrize(
    "name", ["rsna", "vindr-mammo", "cmmd", "inbreast", "csaw-cc", "nlbs", "dmid"]
)
def test_a_folder_in_the_place_of_one_table_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is a folder; give the table itself"):
        read_source(name, tmp_path, tmp_path)


def test_semicolons_and_excel_are_read_as_commas_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commas, semicolons = tmp_path / "a.csv", tmp_path / "b.csv"
    commas.write_text("one,two\n1, x\n,y\n")
    semicolons.write_text("one;two\n1; x\n;y\n", encoding="utf-8-sig")
    expected = pd.DataFrame({"one": ["1", ""], "two": ["x", "y"]}, dtype="str")
    for path in (commas, semicolons):
        pd.testing.assert_frame_equal(read_table(path, ["one"], "a table"), expected)

    def excel(path: Path, **options: object) -> pd.DataFrame:
        assert options == {"dtype": str, "keep_default_na": False}
        return pd.DataFrame({" one": ["1", ""], "two ": [" x", "y"]}, dtype="str")

    sheet = tmp_path / "c.xlsx"
    sheet.touch()
    monkeypatch.setattr(pd, "read_excel", excel)
    pd.testing.assert_frame_equal(read_table(sheet, ["two"], "a table"), expected)


def test_an_excel_sheet_that_cannot_be_read_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = tmp_path / "clinical.xlsx"
    with pytest.raises(InputError, match="does not exist"):
        read_table(sheet, [], "a table")
    sheet.write_bytes(b"no archive")
    with pytest.raises(InputError, match="is not a readable Excel sheet"):
        read_table(sheet, [], "a table")
    with zipfile.ZipFile(sheet, "w") as archive:
        archive.writestr("xl/workbook.xml", "")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(InputError, match="pip install openpyxl"):
        read_table(sheet, [], "a table")


def test_what_a_reader_of_sheets_quotes_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, **_: object) -> pd.DataFrame:
        raise ValueError("could not convert string to float: 'Doe^Jane'")

    sheet = tmp_path / "clinical.xlsx"
    sheet.touch()
    monkeypatch.setattr(pd, "read_excel", read)
    with pytest.raises(InputError, match=r"ValueError.*save it as CSV") as refused:
        read_table(sheet, [], "a table")
    assert "Doe" not in str(refused.value)


def test_an_image_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a/7_x.dcm", "a/7_x.png", "a/8_x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"1 file under .* has the name of an image that another"):
        one_file_each(tmp_path, lambda file: file.name[0], "numbered")
    with pytest.raises(InputError, match="is numbered; keep the names"):
        one_file_each(tmp_path, lambda file: None, "numbered")
    with pytest.raises(InputError, match="is not a folder"):
        one_file_each(tmp_path / "absent", lambda file: None, "numbered")
