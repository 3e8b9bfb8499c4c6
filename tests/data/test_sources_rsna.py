from pathlib import Path

import pandas as pd
import pytest

from mammo_pd.data.labels import read_labels
from mammo_pd.data.sources import SOURCES, read_source
from mammo_pd.errors import InputError

HEADER = (
    "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,"
    "density,machine_id,difficult_negative_case\n"
)


def table(folder: Path, rows: str) -> Path:
    path = folder / "train.csv"
    path.write_text(HEADER + rows)
    return path


def test_rows_find_their_images_and_carry_what_to_stratify_by(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "2,10006,462822612,L,CC,61,0,0,0,,0,,29,False\n"
        "1,10130,613462606,R,MLO,,1,1,1,0,1,B,49,False\n",
    )
    labels = read_source("rsna", path, tmp_path)
    found = labels.find(Path("train_images/10130/613462606.dcm"))
    assert found == 1
    row = labels.rows[found]
    assert (row["label"], row["patient_id"], row["laterality"], row["view"], row["age"]) == (
        1,
        "10130",
        "R",
        "MLO",
        None,
    )
    assert row["further"] == {
        "site_id": "1",
        "machine_id": "49",
        "density": "B",
        "birads": 0.0,
        "has_implant": 1.0,
        "biopsy": 1.0,
        "invasive": 1.0,
        "difficult_negative_case": "False",
    }
    assert labels.rows[0]["further"]["density"] is None
    # Of this set alone the UIDs end in the image numbers.
    assert [source.name for source in SOURCES.values() if source.uid_ends_in_image_id] == ["rsna"]
    assert labels.find(Path("x.dcm"), "1.2.840.10009.1.2.3.10130.1.613462606") == 1
    assert read_labels(path).find(Path("x.dcm"), "1.2.840.10009.1.2.3.10130.1.613462606") is None


def test_a_label_that_is_none_and_an_image_twice_are_refused(tmp_path: Path) -> None:
    row = "2,10006,462822612,L,CC,61,{},0,0,,0,,29,False\n"
    with pytest.raises(InputError, match=r"line 2: the label is neither 0 nor 1"):
        read_source("rsna", table(tmp_path, row.format(2)), tmp_path)
    path = table(tmp_path, row.format(0) + row.format(1))
    with pytest.raises(InputError, match="lines 2, 3 contradict"):
        read_source("rsna", path, tmp_path)


@pytest.mark.corpus
def test_counts_of_the_whole_table(corpus: Path) -> None:
    path = corpus / "labels" / "rsna_train.csv"
    labels = read_source("rsna", path, corpus)
    rows = pd.DataFrame(labels.rows)
    source = SOURCES["rsna"]
    assert len(rows) == source.images == 54_706
    assert rows["patient_id"].nunique() == source.patients == 11_913
    assert rows["label"].sum() == source.positives == 1_158
    breasts = rows.groupby(["patient_id", "laterality"])["label"]
    # The label is the breast's, so all its images agree.
    assert (breasts.nunique() == 1).all()
    assert (len(breasts), breasts.max().sum()) == (23_826, 492)
    assert rows[rows["label"] == 1]["patient_id"].nunique() == 486
    assert rows["age"].isna().sum() == 37
    further = pd.DataFrame(list(rows["further"]))
    assert further["density"].isna().sum() == 25_236
    assert further["birads"].isna().sum() == 28_420
    assert further["has_implant"].sum() == 1_477
    assert (further["site_id"].nunique(), further["machine_id"].nunique()) == (2, 10)
    # No cancer without a biopsy, and invasive ones are cancers: the columns are not mixed up.
    assert (further["biopsy"] >= rows["label"]).all()
    assert (further["invasive"] <= rows["label"]).all()

    plain = read_labels(path)
    assert [row["label"] for row in plain.rows] == rows["label"].tolist()
    for number in ("462822612", "1864590858"):
        found = labels.find(Path("x.dcm"), f"1.2.840.10009.1.2.3.10006.1.{number}")
        assert found == plain.find(Path(f"{number}.dcm"))


@pytest.mark.corpus
def test_the_real_files_are_found(corpus: Path) -> None:
    labels = read_source("rsna", corpus / "labels" / "rsna_train.csv", corpus)
    files = sorted((corpus / "mg_dicom").glob("*"))
    found = [labels.rows[row] for row in map(labels.find, files) if row is not None]
    assert len(found) == 4
    assert len({row["patient_id"] for row in found}) == 1
    assert {(row["laterality"], row["view"]) for row in found} == {
        ("L", "CC"),
        ("L", "MLO"),
        ("R", "CC"),
        ("R", "MLO"),
    }
