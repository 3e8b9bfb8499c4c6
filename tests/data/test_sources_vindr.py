from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mammo_pd.data.labels import LabelTable
from mammo_pd.data.sources import SOURCES, read_source

HEADER = (
    "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,"
    "breast_density,split\n"
)


def row_of(labels: LabelTable, path: Path) -> dict[str, Any]:
    found = labels.find(path)
    assert found is not None
    return labels.rows[found]


def test_thresholds_and_a_missing_birads(tmp_path: Path) -> None:
    path = tmp_path / "breast-level_annotations.csv"
    path.write_text(
        HEADER
        + "".join(
            f"s{row},x,image{row},{side},CC,3518,2800,{birads},DENSITY C,{part}\n"
            for row, (side, birads, part) in enumerate(
                [
                    ("L", "BI-RADS 3", "training"),
                    ("R", "BI-RADS 4", "training"),
                    ("L", "BI-RADS 5", "test"),
                    ("R", "", "test"),
                ]
            )
        )
    )
    by_four = read_source("vindr-mammo", path, tmp_path)
    assert [row["label"] for row in by_four.rows] == [0, 1, 1, None]
    assert "BI-RADS 4 or 5" in by_four.definition
    by_five = read_source("vindr-mammo", path, tmp_path, definition="birads_5")
    assert [row["label"] for row in by_five.rows] == [0, 0, 1, None]
    row = row_of(by_four, Path("images/s2/image2.dicom"))
    assert (row["patient_id"], row["exam_id"], row["view"]) == ("s2", "s2", "CC")
    assert row["further"] == {"birads": 5.0, "density": "C", "published_split": "test"}


@pytest.mark.corpus
def test_counts_of_the_whole_table(corpus: Path) -> None:
    path = corpus / "labels" / "vindr_breast_level_annotations.csv"
    labels = read_source("vindr-mammo", path, corpus)
    rows = pd.DataFrame(labels.rows)
    source = SOURCES["vindr-mammo"]
    assert len(rows) == source.images == 20_000
    assert rows["label"].sum() == source.positives == 988
    assert rows["exam_id"].nunique() == 5_000
    positive = rows[rows["label"] == 1]
    assert len(positive.groupby(["exam_id", "laterality"])) == 494
    assert positive["exam_id"].nunique() == 481
    assert (rows.groupby(["exam_id", "laterality"])["label"].nunique() == 1).all()
    further = pd.DataFrame(list(rows["further"]))
    # Nguyen et al., Scientific Data 10:277 (2023): 4,000 exams for training, 1,000 for test.
    studies = rows.assign(part=further["published_split"]).groupby("exam_id")["part"]
    assert (studies.nunique() == 1).all()
    assert studies.first().value_counts().to_dict() == {"training": 4_000, "test": 1_000}
    assert further["density"].value_counts().to_dict() == {
        "C": 15_292,
        "D": 2_700,
        "B": 1_908,
        "A": 100,
    }
    five = read_source("vindr-mammo", path, corpus, definition="birads_5")
    assert sum(row["label"] for row in five.rows) == 226
