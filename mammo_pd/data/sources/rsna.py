"""RSNA Screening Mammography Breast Cancer Detection (Kaggle 2022): one row per image.

- Licence: non-commercial use, no attempt to identify anyone (the wiki of RSNA/AI-Challenge-Data).
- Counts (counted in train.csv): 54,706 images, 23,826 breasts, 11,913 women, 2 sites, 10 machines;
  1,158 images (2.1 %) of 492 breasts of 486 women are positive.
- Label: cancer in this breast, the same for all its images.
- Known faults: the files give neither modality nor view, so both come from the table; density is
  missing for 25,236 images, BI-RADS for 28,420, age for 37; 1,477 images show an implant. The
  columns biopsy, invasive and BI-RADS are known only after the exam: use them as strata, never as
  model inputs.
- Columns: as in train.csv, which we had.
"""

from pathlib import Path

import pandas as pd

from mammo_pd.data.sources.source import Source
from mammo_pd.data.sources.tables import read_table

_TABLE = "train.csv of the RSNA 2022 challenge"
_KEPT = ("image_id", "patient_id", "laterality", "view", "age", "site_id", "machine_id", "density")
_RENAMED = {
    "cancer": "label",
    "BIRADS": "birads",
    # The label table reserves "implant" for the DICOM tag.
    "implant": "has_implant",
    "biopsy": "biopsy",
    "invasive": "invasive",
    "difficult_negative_case": "difficult_negative_case",
}


def read(table: Path, definition: str) -> pd.DataFrame:
    """Read train.csv into label rows, matched by ``image_id``.

    Raises:
        InputError: the table lacks a column (test.csv has no labels).
    """
    frame = read_table(table, [*_KEPT, *_RENAMED], _TABLE)
    return frame[[*_KEPT, *_RENAMED]].rename(columns=_RENAMED)


SOURCE = Source(
    name="rsna",
    title="RSNA Screening Mammography 2022",
    table=_TABLE,
    licence="non-commercial, no attempt to identify anyone",
    reference="RSNA Screening Mammography Breast Cancer Detection, Kaggle (2022)",
    definitions={"cancer": "positive where RSNA's table says cancer in this breast"},
    read=read,
    images=54_706,
    patients=11_913,
    positives=1_158,
    uid_ends_in_image_id=True,
)
