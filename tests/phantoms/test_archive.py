from pathlib import Path

import pandas as pd
import pydicom
from phantom_images import SMALL
from scipy import stats

from mammo_pd.phantoms import PhantomSettings, write_phantoms
from mammo_pd.phantoms.women import draw_woman
from mammo_pd.terms import Laterality


def test_files_are_the_same_bytes_however_many_processes(archive: Path, tmp_path: Path) -> None:
    again = write_phantoms(tmp_path, SMALL, processes=2)
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert names == sorted(p.relative_to(archive.parent) for p in archive.parent.rglob("*.*"))
    assert len(names) == 4 * SMALL.patients + 1
    for name in names:
        assert (tmp_path / name).read_bytes() == (archive.parent / name).read_bytes(), name
    assert again == tmp_path / "labels.csv"


class TestLabels:
    def test_table_tells_of_every_file(self, archive: Path) -> None:
        table = pd.read_csv(archive, dtype=str)
        assert list(table.columns) == [
            "path", "sop_instance_uid", "patient_id", "exam_id", "laterality", "view", "label",
            "lesion", "density", "vendor", "lesion_row", "lesion_column", "lesion_radius",
        ]  # fmt: skip
        written = {path.relative_to(archive.parent) for path in archive.parent.rglob("*.dcm")}
        assert {Path(path) for path in table["path"]} == written
        for row in table.itertuples():
            ds = pydicom.dcmread(archive.parent / row.path, stop_before_pixels=True)
            assert row.sop_instance_uid == ds.SOPInstanceUID
            assert (row.patient_id, row.exam_id) == (ds.PatientID, ds.StudyInstanceUID)
            side = ds.get("ImageLaterality") or ds.Laterality
            assert (row.laterality, row.vendor) == (side, ds.Manufacturer)
        assert table["sop_instance_uid"].is_unique
        assert (table.groupby("patient_id")["exam_id"].nunique() == 1).all()
        assert (table.groupby("vendor").size() == 4).all()

    def test_label_is_of_the_breast_and_a_case_has_one(self, archive: Path) -> None:
        table = pd.read_csv(archive)
        breasts = table.groupby(["patient_id", "laterality"])
        assert (breasts["label"].nunique() == 1).all()
        assert (breasts["lesion"].nunique() == 1).all()
        assert (table.groupby("patient_id")["label"].sum().isin([0, 2])).all()
        assert set(table["label"]) == {0, 1}
        assert ((table["lesion"] == "none") == (table["label"] == 0)).all()
        assert (table["lesion_row"].isna() == (table["label"] == 0)).all()

    def test_share_of_cases_is_the_prevalence(self) -> None:
        settings = PhantomSettings(patients=3000, prevalence=0.3)
        women = [draw_woman(settings, patient) for patient in range(settings.patients)]
        cases = [woman for woman in women if woman.case_laterality]
        left = sum(woman.case_laterality is Laterality.LEFT for woman in cases)
        assert stats.binomtest(len(cases), len(women), 0.3).pvalue > 0.01
        assert stats.binomtest(left, len(cases), 0.5).pvalue > 0.01
