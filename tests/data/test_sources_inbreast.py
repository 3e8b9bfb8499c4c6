from pathlib import Path
from typing import Any

import pytest

from mammo_pd.data.labels import LabelTable
from mammo_pd.data.sources import read_source
from mammo_pd.errors import InputError

# Header and rows in the forms of the real file: a blank density, the view FB, 4a to 4c.
TABLE = """\
Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads
removed;removed;R;CC;201001;22678622;4;1
removed;removed;L;CC;201001;22678646;4;3
removed;removed;R;MLO;201001;53582540;                    ;1
removed;removed;R;FB;200901;50994300;3;4a
removed;removed;R;MLO;200901;22670094;1;6
removed;removed;L;CC;200901;22670124;1;0
"""
FILES = (
    "22678622_61b13c59bcba149d_MG_R_CC_ANON.dcm",
    "22678646_61b13c59bcba149d_MG_L_CC_ANON.dcm",
    "53582540_6c613a14b80a8591_MG_R_ML_ANON.dcm",
    "50994300_61b13c59bcba149d_MG_R_FB_ANON.dcm",
    "22670094_036aff49b8ac84f0_MG_R_ML_ANON.dcm",
)


def release(folder: Path, *files: str) -> Path:
    (folder / "AllDICOMs").mkdir()
    for name in files:
        (folder / "AllDICOMs" / name).touch()
    path = folder / "INbreast.csv"
    path.write_text(TABLE)
    return path


def row_of(labels: LabelTable, path: Path) -> dict[str, Any]:
    found = labels.find(path)
    assert found is not None
    return labels.rows[found]


def test_women_come_from_the_files_names(tmp_path: Path) -> None:
    path = release(tmp_path, *FILES, "._22678622_61b13c59bcba149d_MG_R_CC_ANON.dcm", "notes.txt")
    labels = read_source("inbreast", path, tmp_path)
    rows = [row_of(labels, tmp_path / "AllDICOMs" / name) for name in FILES]
    assert [row["label"] for row in rows] == [0, 0, 0, 1, 1]
    first, second, third, fourth, _ = rows
    assert first["patient_id"] == second["patient_id"] == fourth["patient_id"] == "61b13c59bcba149d"
    assert third["patient_id"] == "6c613a14b80a8591"
    # The same woman in another month: another exam.
    assert first["exam_id"] == second["exam_id"] != fourth["exam_id"]
    assert (third["laterality"], third["view"], third["further"]["density"]) == ("R", "MLO", None)
    assert fourth["further"]["birads"] == "4a"
    assert fourth["view"] == "FB"


def test_an_image_without_its_woman_is_not_found(tmp_path: Path) -> None:
    path = release(tmp_path, *FILES[:1], "22678646.png")
    labels = read_source("inbreast", path, tmp_path)
    assert labels.find(tmp_path / "AllDICOMs" / FILES[0]) == 0
    assert labels.find(tmp_path / "AllDICOMs" / "22678646.png") is None
    # BI-RADS 0 asks for more pictures and is no label.
    assert [row["label"] for row in labels.rows] == [0, 0, 0, 1, 1, None]


def test_renamed_files_are_refused(tmp_path: Path) -> None:
    path = release(tmp_path, "22678622.dcm")
    with pytest.raises(InputError, match=r"is named like 20586908_.*keep the names"):
        read_source("inbreast", path, tmp_path)
