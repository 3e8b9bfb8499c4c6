"""CMMD, the Chinese Mammography Database (The Cancer Imaging Archive): one row per breast.

- Licence: CC BY 4.0 (The Cancer Imaging Archive).
- Counts (stated): 1,775 women, 3,728 mammographies, 749 women with a molecular subtype (The Cancer
  Imaging Archive). Others counted 5,202 files, of which 3,744 have a row (1,316 malignant and 556
  benign breasts). We had neither table nor images at hand.
- Label: the breast's ``classification``, Malignant or Benign, at biopsy. There are no normal women
  in the set.
- Known faults: the table names women and sides, not files, so both are read from each file's
  header. The other breast of most women of the second part (D2) has images but no row: it is
  unlabelled, not negative. Others report the side tag of 15 images of 9 women to disagree with the
  side on which the breast lies; the manifest says where (``laterality_agrees``). Nearly all files
  hold 8 bits.
- Columns: ID1, LeftRight, Age, number, abnormality, classification, subtype, as reported by several
  public readers of CMMD_clinicaldata_revision.xlsx. Cui et al., The Cancer Imaging Archive,
  doi:10.7937/tcia.eqde-4b16 (2021).
"""

import warnings
from pathlib import Path

import pandas as pd
import pydicom
from pydicom import config

from mammo_pd.data.sources.images import image_files
from mammo_pd.data.sources.source import Source
from mammo_pd.data.sources.tables import choose, read_table
from mammo_pd.errors import InputError
from mammo_pd.wording import counted

_TABLE = "CMMD_clinicaldata_revision (xlsx, or saved as CSV)"
_COLUMNS = ("ID1", "LeftRight", "Age", "abnormality", "classification")
_LABELS = {"malignant": "1", "benign": "0"}
_BREAST = ["patient_id", "laterality"]


def read(table: Path, definition: str) -> pd.DataFrame:
    """Read the clinical table into one row per breast; `locate` finds its images.

    Raises:
        InputError: a column is missing, a breast is there twice, or a classification is unknown.
    """
    frame = read_table(table, _COLUMNS, _TABLE)
    kind = frame["classification"].str.lower()
    for line, value in enumerate(kind, start=2):
        if value and value not in _LABELS:
            raise InputError(
                f"{table}, row {line}: the classification is neither Benign nor "
                "Malignant; give the table as it was downloaded."
            )
    rows = pd.DataFrame(
        {
            "patient_id": frame["ID1"],
            "laterality": frame["LeftRight"].str.upper().str[:1],
            "age": frame["Age"],
            "label": kind.map(_LABELS).fillna(""),
            "lesion_type": frame["abnormality"].str.lower(),
            **choose(frame, {"subtype": "subtype"}),
            "cohort": frame["ID1"].str.partition("-")[0],
        }
    )
    repeated = rows[rows.duplicated(_BREAST)]
    if not repeated.empty:
        raise InputError(
            f"{table}: {counted(len(repeated), 'row repeats', 'rows repeat')} a woman and side, "
            f"the first is row {repeated.index[0] + 2}; keep one row for each breast."
        )
    return rows


def locate(rows: pd.DataFrame, images: Path) -> pd.DataFrame:
    """Expand the rows to one per image, matched by Patient ID and Image Laterality in its header.

    A breast without images keeps a row without a path, and is counted as unmatched.

    Raises:
        InputError: no header names a breast of the table.
    """
    headers = pd.DataFrame(
        [(*_breast_of(file), str(file)) for file in image_files(images)],
        columns=[*_BREAST, "path"],
        dtype=str,
    )
    located = rows.merge(headers, on=_BREAST, how="left").fillna({"path": ""})
    if not (located["path"] != "").any():
        raise InputError(
            f"no DICOM file under {images} has a Patient ID (such as D1-0001) and an Image "
            "Laterality of the clinical table; give the folder with CMMD's own DICOM files."
        )
    return located


def _breast_of(file: Path) -> tuple[str, str]:
    """(Patient ID, Image Laterality) of a file, empty if missing."""
    try:
        # Warnings would quote values of the header.
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(
                file, stop_before_pixels=True, specific_tags=["PatientID", "ImageLaterality"]
            )
            found = (header.get("PatientID"), header.get("ImageLaterality"))
    except Exception:  # a bad file can raise almost anything; preprocess says what is wrong with it
        return "", ""
    return str(found[0] or "").strip(), str(found[1] or "").strip()


SOURCE = Source(
    name="cmmd",
    title="CMMD",
    table=_TABLE,
    licence="CC BY 4.0",
    reference="Cui et al., The Cancer Imaging Archive, doi:10.7937/tcia.eqde-4b16 (2021)",
    definitions={"cancer": "positive where this breast's tumour was malignant at biopsy"},
    read=read,
    locate=locate,
    patients=1_775,
)
