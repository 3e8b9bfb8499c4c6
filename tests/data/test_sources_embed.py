from pathlib import Path
from typing import Any

import pytest

from mammo_pd.data.sources import read_source
from mammo_pd.errors import InputError

CLINICAL = (
    "empi_anon,acc_anon,desc,side,asses,numfind,bside,path_severity,tissueden,age_at_study,"
    "RACE_DESC,ETHNIC_GROUP_DESC\n"
)
METADATA = (
    "empi_anon,acc_anon,anon_dicom_path,ImageLateralityFinal,ViewPosition,FinalImageType,spot_mag\n"
)
SCREEN, DIAG = "MG Screening Bilateral", "MG Diagnostic Left w/CAD"


def tables(folder: Path, *findings: tuple[str, str, str, str, str, str]) -> Path:
    """Write both tables; a finding is exam, description, side, assessment, bside, severity."""
    clinical = "".join(
        f"77.0,{exam},{desc},{side},{asses},1,{bside},{severity},2.0,55.5,White,Not Hispanic\n"
        for exam, desc, side, asses, bside, severity in findings
    )
    exams = [*sorted({exam for exam, *_ in findings}), "999"]
    metadata = "".join(
        f"77,{exam},/mnt/NAS2/mammo/anon_dicom/cohort_1/77/{exam}/s/{exam}{side}.dcm,{side},CC,2D,\n"
        for exam in exams
        for side in ("L", "R")
    )
    (folder / "EMBED_OpenData_clinical.csv").write_text(CLINICAL + clinical)
    (folder / "EMBED_OpenData_metadata.csv").write_text(METADATA + metadata)
    return folder


def breast(folder: Path, exam: str, side: str) -> dict[str, Any]:
    labels = read_source("embed", folder, folder)
    found = labels.find(Path(f"images/cohort_1/77/{exam}/s/{exam}{side}.dcm"))
    assert found is not None
    return labels.rows[found]


def both(folder: Path, exam: str = "5") -> tuple[int | None, int | None]:
    return breast(folder, exam, "L")["label"], breast(folder, exam, "R")["label"]


@pytest.mark.parametrize(
    ("findings", "labels"),
    [
        # A cancer of one breast says nothing against the other, which was read as negative.
        ([("5", SCREEN, "L", "S", "L", "0"), ("5", SCREEN, "R", "N", "", "")], (1, 0)),
        ([("5", SCREEN, "L", "S", "L", "1.0"), ("5", SCREEN, "R", "B", "", "")], (1, 0)),
        # No row for the other breast of a bilateral exam implies that it was negative.
        ([("5", SCREEN, "R", "A", "R", "4.0")], (0, 0)),
        ([("5", DIAG, "L", "S", "L", "4")], (0, None)),
        # A side that is missing, or B, is both.
        ([("5", SCREEN, "", "N", "", "")], (0, 0)),
        ([("5", DIAG, "B", "M", "", "0")], (1, 1)),
        # The pathology's own side counts.
        ([("5", DIAG, "B", "S", "R", "0")], (0, 1)),
        ([("5", DIAG, "L", "S", "R", "0")], (0, 1)),
        # Recalled or suspicious and never settled: no label, be the rest benign.
        ([("5", SCREEN, "L", "A", "", "")], (None, 0)),
        ([("5", DIAG, "L", "P", "", "")], (None, None)),
        ([("5", DIAG, "L", "S", "L", "4"), ("5", DIAG, "L", "S", "", "")], (None, None)),
        ([("5", DIAG, "L", "S", "L", "4"), ("5", DIAG, "L", "S", "L", "0")], (1, None)),
        # A cancer of another organ is neither.
        ([("5", DIAG, "L", "S", "L", "6")], (None, None)),
        # Another exam's findings are another exam's.
        ([("5", SCREEN, "", "N", "", ""), ("6", DIAG, "L", "M", "L", "0")], (0, 0)),
    ],
)
def test_findings_are_joined_by_exam_and_side(
    tmp_path: Path,
    findings: list[tuple[str, str, str, str, str, str]],
    labels: tuple[int | None, int | None],
) -> None:
    assert both(tables(tmp_path, *findings)) == labels


def test_what_is_carried_along(tmp_path: Path) -> None:
    folder = tables(tmp_path, ("5", SCREEN, "L", "B", "", ""), ("5", SCREEN, "L", "A", "", ""))
    left, right = breast(folder, "5", "L"), breast(folder, "5", "R")
    assert (left["patient_id"], left["exam_id"], left["age"], left["view"]) == (
        "77",
        "5",
        55.5,
        "CC",
    )
    assert left["further"] == {
        "image_type": "2D",
        "spot_magnification": None,
        "birads": 0.0,
        "density": 2.0,
        "race": "White",
        "ethnicity": "Not Hispanic",
        "exam_type": "screening",
    }
    assert right["further"]["birads"] == 1.0
    # A file without any finding row is unlabelled.
    assert both(folder, "999") == (None, None)


def test_the_reduced_tables_serve_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    folder = tables(tmp_path, ("5", SCREEN, "L", "B", "", ""))
    for kind in ("clinical", "metadata"):
        whole = folder / f"EMBED_OpenData_{kind}.csv"
        whole.rename(folder / f"EMBED_OpenData_{kind}_reduced.csv")
    assert both(folder) == (0, 0)
    with pytest.raises(InputError, match="is not a folder; give the folder with EMBED_OpenData"):
        read_source("embed", folder / "EMBED_OpenData_clinical_reduced.csv", folder)
    reduced = folder / "EMBED_OpenData_clinical_reduced.csv"
    reduced.write_text(reduced.read_text().replace("path_severity", "path_group"))
    with pytest.raises(
        InputError, match=r"clinical_reduced\.csv has no column path_severity, so it is not EMBED"
    ):
        read_source("embed", folder, folder)
    reduced.unlink()
    with pytest.raises(InputError, match=r"EMBED_OpenData_clinical\.csv does not exist"):
        read_source("embed", folder, folder)
