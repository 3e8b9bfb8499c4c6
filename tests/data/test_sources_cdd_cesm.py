from pathlib import Path

import pytest

from mammo_pd.data.sources import read_source
from mammo_pd.errors import InputError

# Header and rows in the forms of the real sheet: spaces in names, BI-RADS joined by $, _ for no
# density.
HEADER = (
    "Image_name,Patient_ID,Side,Type,Age,Breast density (ACR),BIRADS,Findings,View,Tags,Machine,"
    "Pathology Classification/ Follow up\n"
)
ROWS = """\
P1_L_DM_MLO,1,L,DM,48,C,4$2,Mass,MLO,,1,Benign
P1_L_DM_MLO,1,L,DM,48,C,5,Mass,MLO,,1,Malignant
P1_L_CM_MLO,1,L,CESM,48,_,5,Mass enhancement,MLO,,1,Malignant
 P1_R_DM_CC ,,R,DM,48,C,1,,CC,,1,Normal
P2_R_DM_CC,2,R,DM,61,B,2,Cyst,CC,,2,Benign
"""


def table(folder: Path, rows: str = ROWS) -> Path:
    path = folder / "Radiology-manual-annotations.csv"
    path.write_text(HEADER + rows)
    return path


def test_low_energy_images_are_rows_and_their_worst_finding_counts(tmp_path: Path) -> None:
    labels = read_source("cdd-cesm", table(tmp_path), tmp_path)
    assert len(labels.rows) == 3
    first = labels.rows[labels.find(tmp_path / "P1_L_DM_MLO.jpg")]
    assert (first["label"], first["patient_id"], first["laterality"]) == (1, "1", "L")
    assert first["further"]["birads"] == 5
    assert first["further"]["pathology"] == "malignant"
    assert [row["label"] for row in labels.rows] == [1, 0, 0]
    assert [row["patient_id"] for row in labels.rows] == ["1", "1", "2"]
    # The subtracted image is no mammogram, and no row of the table.
    assert labels.find(tmp_path / "P1_L_CM_MLO.jpg") is None
    assert labels.find(tmp_path / "P1_R_DM_CC.jpg") is not None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("P1_L_DM_CC,1,L,DM,48,C,4,Mass,CC,,1,Unsure\n", "row 2: the pathology is none of Normal"),
        ("P1_L_CM_CC,1,L,CESM,48,_,4,Mass,CC,,1,Benign\n", "no row of the type DM"),
    ],
)
def test_another_table_is_refused(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_source("cdd-cesm", table(tmp_path, rows), tmp_path)
