from pathlib import Path

import pandas as pd
import pytest

from mammo_pd.data.sources import read_source
from mammo_pd.errors import InputError

# Names as in the sheet: a line break, double spaces, a blank at the end.
COLUMNS = (
    "Percentage of\n grandular tissue(density)",
    "PatientID",
    "Patient age ",
    "Breast  type",
    "Breast view",
    "Assesment",
    "Image path",
)
ROWS = [
    ("26%-50%", "2018_BC005421", "45Y", "R", "CC", "BIRAD 1", "KAU/Birad1/2018_BC005421_CC_R.dcm"),
    ("26%-50%", "2018_BC005421", "45Y", "R", "CC", "BIRAD 5", "KAU/Birad5/2018_BC005421_CC_R.dcm"),
    (">75%", "2019_BC000001", "051Y", "L", "MLO", "BIRAD 4", "KAU/Birad4/2019_BC000001_MLO_L.dcm"),
    ("0%-25%", "2019_BC000002", "60", "L", "CC", "BIRAD 3", "KAU/Birad3/2019_BC000002_CC_L .dcm"),
    # As merged cells are saved.
    ("", "", "", "", "", "", "KAU/2019_BC000003_MLO_R.dcm"),
    ("", "2019_BC000004", "", "L", "CC", "BIRAD 1", ""),
]


def table(folder: Path, rows: list[tuple[str, ...]]) -> Path:
    path = folder / "correctSheet.csv"
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(path, index=False)
    return path


def test_birads_of_the_row_is_the_label_and_the_higher_of_two_counts(tmp_path: Path) -> None:
    path = table(tmp_path, ROWS)
    labels = read_source("kau-bcmd", path, tmp_path)
    assert [row["label"] for row in labels.rows] == [1, 1, 0, None]
    # The copy on Kaggle has JPEG files of the same names.
    row = labels.rows[labels.find(tmp_path / "Birad5" / "2018_BC005421_CC_R.jpg")]
    assert (row["patient_id"], row["view"], row["age"]) == ("2018_BC005421", "CC", 45.0)
    assert row["further"] == {"birads": 5.0, "density": "B"}
    assert labels.find(tmp_path / "2019_BC000002_CC_L.jpg") is not None
    unlabelled = labels.rows[labels.find(tmp_path / "2019_BC000003_MLO_R.jpg")]
    assert (unlabelled["patient_id"], unlabelled["view"], unlabelled["laterality"]) == (
        "2019_BC000003",
        "MLO",
        "R",
    )
    stricter = read_source("kau-bcmd", path, tmp_path, definition="birads_5")
    assert [row["label"] for row in stricter.rows] == [1, 0, 0, None]


def test_its_own_sheet_of_an_excel_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def excel(path: Path, **options: object) -> pd.DataFrame:
        assert options["sheet_name"] == "correctSheet"
        return pd.DataFrame(ROWS, columns=list(COLUMNS))

    sheet = tmp_path / "correctSheetlast.xlsx"
    sheet.touch()
    monkeypatch.setattr(pd, "read_excel", excel)
    assert len(read_source("kau-bcmd", sheet, tmp_path).rows) == 4


def test_a_sheet_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no image"):
        read_source("kau-bcmd", table(tmp_path, ROWS[-1:]), tmp_path)
    nameless = ("", "", "", "R", "CC", "BIRAD 1", "KAU/1.dcm")
    with pytest.raises(InputError, match="1 image for which neither the file name"):
        read_source("kau-bcmd", table(tmp_path, [nameless]), tmp_path)
