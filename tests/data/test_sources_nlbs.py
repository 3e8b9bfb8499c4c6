from pathlib import Path

import pytest

from mammo_pd.data.sources import read_source
from mammo_pd.errors import InputError

HEADER = "File Path,Image Laterality,View Position,Age,Cancer,False Positive\n"
ROWS = (
    "\\abnormal\\p_0001\\left\\CC\\1.dcm,L,CC,57,1,0\n"
    "\\abnormal\\p_0001\\right-c\\MLO\\2.dcm,R,MLO,57,1.0,0\n"
    "\\False Positive\\p_0002\\left\\CC\\3.dcm,L,CC,60,0,1\n"
    "\\normal\\p_0003\\left\\CC\\4.dcm,L,CC,,0,0\n"
)


def table(folder: Path, rows: str = ROWS, header: str = HEADER) -> Path:
    path = folder / "NLBSD_Metadata.csv"
    path.write_text(header + rows)
    return path


def test_the_exams_flag_is_the_label_of_all_its_images(tmp_path: Path) -> None:
    labels = read_source("nlbs", table(tmp_path), tmp_path)
    assert [row["label"] for row in labels.rows] == [1, 1, 0, 0]
    row = labels.rows[labels.find(tmp_path / "False Positive" / "p_0002" / "left" / "CC" / "3.dcm")]
    assert (row["patient_id"], row["laterality"], row["view"], row["age"]) == (
        "p_0002",
        "L",
        "CC",
        60.0,
    )
    assert row["further"] == {"recalled": 1.0}
    # Whoever judges it must be told at which level.
    assert "judge by exam" in labels.definition


def test_a_version_without_age_and_false_positives_is_read(tmp_path: Path) -> None:
    header = "File Path,Image Laterality,View Position,Cancer\n"
    path = table(tmp_path, "normal/p_1/left/CC/4.dcm,L,CC,0\n", header)
    assert [row["label"] for row in read_source("nlbs", path, tmp_path).rows] == [0]


def test_a_path_without_a_woman_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row 2: the path names no woman"):
        read_source("nlbs", table(tmp_path, "1.dcm,L,CC,57,1,0\n"), tmp_path)
