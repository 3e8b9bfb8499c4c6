"""VinDr-Mammo (PhysioNet, 2022): one row per image in breast-level_annotations.csv.

- Licence: restricted access under PhysioNet's agreement (physionet.org/content/vindr-mammo).
- Counts (counted in the table): 20,000 images, 10,000 breasts, 5,000 studies of four images.
  BI-RADS 4 or 5: 988 images (4.9 %), 494 breasts, 481 studies; BI-RADS 5 alone: 226 images.
- Label: there is no outcome. The label is a threshold on the readers' BI-RADS of the breast, the
  same for all its images; 4 is the usual one.
- Known faults: the table names studies, not women, so each study counts as a woman; nothing in it
  links two studies of one woman. Density C is 15,292 of 20,000. One breast has two CC and no MLO.
- The set's own split (by study: 16,000 images for training, 4,000 for test) is kept as
  ``published_split``.
- Columns: as in the table, which we had. Nguyen et al., Scientific Data 10:277 (2023).
"""

from pathlib import Path

import pandas as pd

from mammo_pd.data.sources.source import Source
from mammo_pd.data.sources.tables import read_table

_TABLE = "breast-level_annotations.csv of VinDr-Mammo"
_COLUMNS = (
    "study_id",
    "image_id",
    "laterality",
    "view_position",
    "breast_birads",
    "breast_density",
    "split",
)
_THRESHOLDS = {"birads_4": 4, "birads_5": 5}


def read(table: Path, definition: str) -> pd.DataFrame:
    """Read the breast-level table into label rows, matched by ``image_id``.

    Args:
        table: breast-level_annotations.csv.
        definition: ``birads_4`` (4 or 5 is positive) or ``birads_5``.

    Raises:
        InputError: the table lacks a column.
    """
    frame = read_table(table, _COLUMNS, _TABLE)
    # Cells read "BI-RADS 4" and "DENSITY C".
    birads = frame["breast_birads"].str.extract(r"(\d)\s*$", expand=False).fillna("")
    positive = pd.to_numeric(birads) >= _THRESHOLDS[definition]
    return pd.DataFrame(
        {
            "image_id": frame["image_id"],
            "patient_id": frame["study_id"],
            "exam_id": frame["study_id"],
            "laterality": frame["laterality"],
            "view": frame["view_position"],
            "label": positive.map({True: "1", False: "0"}).where(birads != "", ""),
            "birads": birads,
            "density": frame["breast_density"].str.extract(r"(\w)\s*$", expand=False).fillna(""),
            "published_split": frame["split"],
        }
    )


SOURCE = Source(
    name="vindr-mammo",
    title="VinDr-Mammo",
    table=_TABLE,
    licence="restricted access, PhysioNet",
    reference="Nguyen et al., Scientific Data 10:277 (2023)",
    definitions={
        "birads_4": "positive where the readers gave this breast BI-RADS 4 or 5; no outcome known",
        "birads_5": "positive where the readers gave this breast BI-RADS 5; no outcome known",
    },
    read=read,
    images=20_000,
    positives=988,
)
