"""EMBED, the Emory Breast Imaging Dataset (open data): a table of findings and a table of files.

- Licence: non-commercial research (docs.hitilab.com/datasets/embed).
- Counts (stated): 22,382 women, 76,373 exams, 480,323 images, 24 % of them synthetic (README of
  Emory-HITI/EMBED_Open_Data). We had no table.
- Label, for a breast in an exam: positive where a finding's ``path_severity`` is 0 (invasive) or 1
  (in situ). Negative where every finding was settled without cancer: assessed N or B (BI-RADS 1,
  2), or with a pathology of 2 to 5. Anything else is unknown: recalled (A) or suspicious (P, S, M,
  K) without a pathology in that row, or a cancer of another organ (6).
- Known faults: a row of the clinical table is one finding, so findings are joined by exam *and*
  side; otherwise those of one breast become labels of the other. A side of B, or none, means both.
  ``bside``, the side of the pathology, can differ from the finding's. An exam of both breasts with
  a finding in one implies that the other is negative. Pathology is entered by hand, often for the
  diagnostic exam only: a recalled screening exam without pathology is not negative. C-views
  (synthetic) are images too: ``image_type`` tells.
- Columns: README and screening_label_assignment.ipynb of Emory-HITI/EMBED_Open_Data. Jeong et al.,
  Radiology: Artificial Intelligence 5:e220047 (2023).
"""

from pathlib import Path

import pandas as pd

from mammo_pd.data.sources.source import Source
from mammo_pd.data.sources.tables import choose, codes, read_table
from mammo_pd.errors import InputError

_TABLE = "the folder with EMBED_OpenData_clinical.csv and EMBED_OpenData_metadata.csv"
_CLINICAL = ("acc_anon", "desc", "side", "asses", "bside", "path_severity", "tissueden")
_METADATA = (
    "empi_anon",
    "acc_anon",
    "anon_dicom_path",
    "ImageLateralityFinal",
    "ViewPosition",
    "FinalImageType",
)
_BREAST = ["exam_id", "laterality"]
# BI-RADS by EMBED's letter, from the mildest.
_BIRADS = {"N": "1", "B": "2", "P": "3", "A": "0", "S": "4", "M": "5", "K": "6"}
_CANCER = ("0", "1")
_NO_CANCER = ("2", "3", "4", "5")


def read(table: Path, definition: str) -> pd.DataFrame:
    """Join findings to files by exam and side; rows are matched by ``path``.

    Args:
        table: the folder that holds both tables, whole or reduced.
        definition: ``cancer``, the only one.

    Raises:
        InputError: a table or a column is missing.
    """
    if not table.is_dir():
        raise InputError(f"{table} is not a folder; give {_TABLE}.")
    clinical = _read_one(table, "clinical", _CLINICAL)
    files = _read_one(table, "metadata", _METADATA)
    # What precedes the cohort's folder is a path on the authors' machine.
    path = files["anon_dicom_path"].str.replace(r"^.*?(?=cohort_\d)", "", regex=True)
    rows = pd.DataFrame(
        {
            "path": path,
            "patient_id": codes(files["empi_anon"]),
            "exam_id": files["exam_id"],
            "laterality": files["ImageLateralityFinal"],
            "view": files["ViewPosition"],
            "image_type": files["FinalImageType"],
            **choose(files, {"spot_mag": "spot_magnification"}),
        }
    )
    joined = rows.merge(_breasts(clinical), on=_BREAST, how="left")
    return joined.merge(_exams(clinical), on="exam_id", how="left").fillna("")


def _breasts(clinical: pd.DataFrame) -> pd.DataFrame:
    """The label and worst BI-RADS of each (exam, side)."""
    severity = clinical["path_severity"]
    settled = severity.isin((*_CANCER, *_NO_CANCER)) | (
        (severity == "") & clinical["asses"].isin(("N", "B"))
    )
    grade = clinical["asses"].map({letter: rank for rank, letter in enumerate(_BIRADS)}).fillna(-1)
    findings = _on_each_side(
        clinical.assign(settled=settled, grade=grade.astype(int)), clinical["side"]
    )
    breasts = findings.groupby(_BREAST).agg(settled=("settled", "all"), grade=("grade", "max"))

    # A bilateral exam with findings in one breast only implies that the other is negative.
    bilateral = clinical.loc[clinical["desc"].str.contains("bilat", case=False), "exam_id"]
    imaged = pd.MultiIndex.from_product([bilateral.unique(), ["L", "R"]], names=_BREAST)

    sided = clinical["bside"].where(clinical["bside"].isin(("L", "R")), clinical["side"])
    has_cancer = severity.isin(_CANCER)
    cancers = _on_each_side(clinical[has_cancer], sided[has_cancer]).set_index(_BREAST).index

    known = breasts.index
    breasts = breasts.reindex(known.union(imaged).union(cancers.unique()))
    implied = breasts.index.isin(imaged) & ~breasts.index.isin(known)
    label = pd.Series("", index=breasts.index)
    label[breasts["settled"].eq(True) | implied] = "0"
    label[breasts.index.isin(cancers)] = "1"
    birads = breasts["grade"].map(dict(enumerate(_BIRADS.values()))).fillna("")
    birads[implied] = _BIRADS["N"]
    return pd.DataFrame({"label": label, "birads": birads}).reset_index()


def _on_each_side(findings: pd.DataFrame, side: pd.Series) -> pd.DataFrame:
    """One row for each breast that a finding concerns; a side of B, or none, means both."""
    return pd.concat(
        [
            findings[side != "R"].assign(laterality="L"),
            findings[side != "L"].assign(laterality="R"),
        ]
    )


def _exams(clinical: pd.DataFrame) -> pd.DataFrame:
    screening = clinical["desc"].str.contains("screen", case=False)
    exams = choose(
        clinical,
        {
            "exam_id": "exam_id",
            "tissueden": "density",
            "age_at_study": "age",
            "RACE_DESC": "race",
            "ETHNIC_GROUP_DESC": "ethnicity",
        },
    ).assign(exam_type=screening.map({True: "screening", False: "other"}))
    # The first value that is not empty, over all findings of the exam.
    return exams.replace("", pd.NA).groupby("exam_id", as_index=False).first()


def _read_one(folder: Path, kind: str, columns: tuple[str, ...]) -> pd.DataFrame:
    whole = folder / f"EMBED_OpenData_{kind}.csv"
    reduced = folder / f"EMBED_OpenData_{kind}_reduced.csv"
    path = reduced if reduced.is_file() and not whole.is_file() else whole
    frame = read_table(path, columns, f"EMBED's {whole.name}")
    coded = [name for name in ("path_severity", "tissueden") if name in frame.columns]
    return frame.assign(
        exam_id=codes(frame["acc_anon"]), **{name: codes(frame[name]) for name in coded}
    )


SOURCE = Source(
    name="embed",
    title="EMBED open data",
    table=_TABLE,
    licence="non-commercial research",
    reference="Jeong et al., Radiology: Artificial Intelligence 5:e220047 (2023)",
    definitions={
        "cancer": "positive where a finding of this exam and breast was invasive or in-situ cancer "
        "at pathology; no label where its findings were not settled"
    },
    read=read,
    images=480_323,
    patients=22_382,
)
