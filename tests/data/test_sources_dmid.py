from pathlib import Path

import pytest

from mammo_pd.data.sources import read_source
from mammo_pd.errors import InputError

# As the sheet is: what its codes mean first, then rows without a header, with stray spaces.
EXPLAINED = "DMID,,,\nF,Fatty,,\nCALC,Calcification,,\n\n"
ROWS = """\
IMG001,MLOLT,G,CIRC, M ,535,425,197
IMG001,MLOLT,G,CALC,B,100,100,20
IMG 002,CCRT,F,CLAC,B ,1,2,3
IMG003,CCLT,D,NORM,N,,,
IMG004,MLORT,D,ASYM,,,,
"""


def table(folder: Path, rows: str = ROWS) -> Path:
    path = folder / "Metadata.csv"
    path.write_text(EXPLAINED + rows)
    return path


def test_images_are_rows_and_any_malignant_lesion_counts(tmp_path: Path) -> None:
    labels = read_source("dmid", table(tmp_path), tmp_path)
    assert [row["label"] for row in labels.rows] == [1, 0, 0, None]
    first = labels.rows[labels.find(tmp_path / "IMG001.dcm")]
    assert (first["laterality"], first["view"]) == ("L", "MLO")
    assert first["further"] == {"tissue": "G", "lesion_type": "CALC+CIRC"}
    # No woman is named: each image is its own.
    assert len({row["patient_id"] for row in labels.rows}) == 4
    second = labels.rows[labels.find(tmp_path / "IMG002.tif")]
    assert (second["laterality"], second["view"]) == ("R", "CC")
    assert second["further"]["lesion_type"] == "CALC"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("mdb001,MLOLT,G,CIRC,M\n", "no row that begins"),
        ("IMG001,ML,G,CIRC,M\n", "row 5: the view"),
    ],
)
def test_another_table_is_refused(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_source("dmid", table(tmp_path, rows), tmp_path)
