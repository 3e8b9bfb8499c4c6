from pathlib import Path

import pandas as pd
import pytest

from mammo_pd.data.sources import read_source
from mammo_pd.errors import InputError

# Two rows of titles above the header, as in the sheets.
HEADER = (
    "Breast Micro-Calcifications Dataset,,,,\n,,,,\n"
    "Folder #,Breast (Right/Left),Age (at the time of the recent mammogram),"
    "BI-RADS categories for breast density,BI-RADS categories for classification \n"
)
NORMAL = "1,Right,50,b,1\n2,Left,61.0,c,2\n"
SUSPICIOUS = "1,Left,57,b,4a\n2,Right,44,d,5.0\n,,,,\n"


def sheets(folder: Path, header: str = HEADER) -> Path:
    (folder / "Normal_cases.csv").write_text(header + NORMAL)
    (folder / "Suspicious_cases.csv").write_text(header + SUSPICIOUS)
    return folder


def images(folder: Path) -> Path:
    for case in ("Normal_cases/1", "Normal_cases/2", "Suspicious_cases/1", "Suspicious_cases/2"):
        for name in ("CC_recent", "CC_prior", "MLO_recent", "MLO_prior"):
            path = folder / "Dataset" / case / f"{name}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return folder / "Dataset"


def test_recent_images_are_labelled_and_prior_ones_are_not(tmp_path: Path) -> None:
    dataset = images(tmp_path)
    labels = read_source("bmcd", sheets(tmp_path), dataset)
    assert len(labels.rows) == 16

    def row(name: str) -> dict:
        return labels.rows[labels.find((dataset / name).resolve())]

    suspicious = row("Suspicious_cases/1/CC_recent.dcm")
    assert (suspicious["label"], suspicious["laterality"], suspicious["age"]) == (1, "L", 57.0)
    assert suspicious["further"] == {"birads": "4a", "density": "B", "round": "recent"}
    assert row("Suspicious_cases/2/MLO_recent.dcm")["label"] == 1
    assert row("Normal_cases/1/MLO_recent.dcm")["label"] == 0
    prior = row("Suspicious_cases/1/CC_prior.dcm")
    assert prior["label"] is None
    # Both rounds are one woman's, and two exams; case 1 of the other sheet is another woman's.
    assert prior["patient_id"] == suspicious["patient_id"]
    assert prior["exam_id"] != suspicious["exam_id"]
    assert row("Normal_cases/1/CC_recent.dcm")["patient_id"] != suspicious["patient_id"]


def test_both_sheets_of_an_excel_file_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def excel(path: Path, **options: object) -> pd.DataFrame:
        assert options["header"] is None
        read.append(options["sheet_name"])
        text = HEADER + (NORMAL if read[-1] == "Normal_cases" else SUSPICIOUS)
        return pd.DataFrame([line.split(",") for line in text.splitlines()])

    sheet = tmp_path / "Description.xlsx"
    sheet.touch()
    monkeypatch.setattr(pd, "read_excel", excel)
    assert len(read_source("bmcd", sheet, images(tmp_path)).rows) == 16
    assert read == ["Normal_cases", "Suspicious_cases"]


def test_another_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row with the cell Folder #"):
        read_source("bmcd", sheets(tmp_path, "a,b\n"), images(tmp_path))
    with pytest.raises(InputError, match=r"no column BI-RADS categories for classification"):
        read_source("bmcd", sheets(tmp_path, HEADER.replace("classification", "x")), tmp_path)
    with pytest.raises(InputError, match="is named like Suspicious_cases/7/CC_recent"):
        (tmp_path / "elsewhere").mkdir()
        read_source("bmcd", sheets(tmp_path), tmp_path / "elsewhere")
