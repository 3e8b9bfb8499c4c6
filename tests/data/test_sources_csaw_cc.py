from pathlib import Path

import pytest

from mammo_pd.data.sources import read_source

HEADER = (
    "anon_patientid,exam_year,x_case,x_cancer_laterality,x_type,x_lymphnode_met,x_age,rad_timing,"
    "rad_recall,imagelaterality,viewposition,libra_percentdensity,anon_filename\n"
)
# A woman whose cancer was found on the left: prior exam, interval, then found at screening.
CASE = [
    ("case", "2010", "1.0", "Left", "3.0"),
    ("case", "2012", "1.0", "Left", "2.0"),
    ("case", "2013", "1.0", "Left", "1.0"),
]


def table(folder: Path, exams: list[tuple[str, str, str, str, str]]) -> Path:
    path = folder / "CSAW-CC_breast_cancer_screening_data.csv"
    path.write_text(
        HEADER
        + "".join(
            f"{woman},{year},{case},{side},2.0,,1,{timing},0.0,{breast},CC,24.5,"
            f"{woman}_20990909_{breast[0]}_CC_{year}.dcm\n"
            for woman, year, case, side, timing in exams
            for breast in ("Left", "Right")
        )
    )
    return path


@pytest.mark.parametrize(
    ("definition", "left"),
    [
        (None, [None, None, 1]),
        ("screen_detected", [None, None, 1]),
        ("within_2_years", [0, 1, 1]),
        ("ever", [1, 1, 1]),
    ],
)
def test_detection_and_risk_are_labels_of_the_cancers_breast(
    tmp_path: Path, definition: str | None, left: list[int | None]
) -> None:
    labels = read_source("csaw-cc", table(tmp_path, CASE), tmp_path, definition=definition)
    by_side = {
        side: [row["label"] for row in labels.rows[index::2]] for index, side in enumerate("LR")
    }
    assert by_side == {"L": left, "R": [0, 0, 0]}


@pytest.mark.parametrize("definition", ["screen_detected", "within_2_years", "ever"])
def test_controls_are_negative_and_what_is_not_told_has_no_label(
    tmp_path: Path, definition: str
) -> None:
    exams = [
        ("control", "2010", "0.0", "", ""),
        ("no_side", "2010", "1", "", "1"),
        ("no_case", "2010", "", "", ""),
    ]
    labels = read_source("csaw-cc", table(tmp_path, exams), tmp_path, definition=definition)
    assert [row["label"] for row in labels.rows] == [0, 0, None, None, None, None]


def test_rows_find_their_images_and_carry_what_to_stratify_by(tmp_path: Path) -> None:
    labels = read_source("csaw-cc", table(tmp_path, CASE), tmp_path)
    found = labels.find(tmp_path / "elsewhere" / "case_20990909_R_CC_2012.dcm")
    assert found == 3
    row = labels.rows[found]
    assert (row["patient_id"], row["exam_id"], row["laterality"], row["view"]) == (
        "case",
        "case/2012",
        "R",
        "CC",
    )
    assert row["further"] == {
        "exam_year": 2012.0,
        "case": 1.0,
        "time_to_diagnosis": "60 to 729 days",
        "recalled": 0.0,
        "lymph_node": None,
        "percent_density": 24.5,
        "age_band": "40-55",
        "cancer_type": "invasive <=15 mm",
    }
    assert len({row["exam_id"] for row in labels.rows}) == 3
