"""INbreast (Porto): one row per image in INbreast.csv.

- Licence: not found stated; the set was distributed on request.
- Counts (stated): 410 images, 115 cases, 90 of them with four images, 25 after mastectomy with two
  (Moreira et al., Academic Radiology 19:236, 2012).
- Label: the set has none. The label is a threshold on the BI-RADS of the image: 4, 5 and 6 (known
  cancer) are positive, as is usual.
- Known faults: the table's patient and age read "removed". The woman's ID is the second part of
  each file name (``20586908_6c613a14b80a8591_MG_R_CC_ANON.dcm``), as INbreast's README says (quoted
  in ispamm/PHBreast, issue 6), so the files must keep their names. Exams of one woman are
  distinguished by their month. One image has no density, one the view FB, and the two views of a
  breast can carry different BI-RADS.
- Columns: read in the copy of INbreast.csv in the repository
  wentaozhu/deep-mil-for-whole-mammogram-classification.
"""

import re
from pathlib import Path

import pandas as pd

from mammo_pd.data.sources.images import one_file_each
from mammo_pd.data.sources.source import Source
from mammo_pd.data.sources.tables import read_table

_TABLE = "INbreast.csv"
_COLUMNS = ("Laterality", "View", "Acquisition date", "File Name", "ACR", "Bi-Rads")
_FILE = re.compile(r"(\d+)_([0-9a-f]+)_MG_[LR]_", re.IGNORECASE)


def read(table: Path, definition: str) -> pd.DataFrame:
    """Read INbreast.csv into label rows; `locate` finds their files and women.

    Raises:
        InputError: the table lacks a column.
    """
    frame = read_table(table, _COLUMNS, _TABLE)
    birads = frame["Bi-Rads"].str.lower()
    category = pd.to_numeric(birads.str.extract(r"^([0-6])", expand=False))
    return pd.DataFrame(
        {
            "image_id": frame["File Name"],
            "laterality": frame["Laterality"],
            "view": frame["View"],
            # 0 asks for further images, which is neither positive nor negative.
            "label": (category >= 4).map({True: "1", False: "0"}).where(category >= 1, ""),
            "birads": birads,
            "density": frame["ACR"],
            "acquisition_month": frame["Acquisition date"],
        }
    )


def locate(rows: pd.DataFrame, images: Path) -> pd.DataFrame:
    """Add ``path``, ``patient_id`` and ``exam_id`` from the file names.

    Raises:
        InputError: no file has a name of INbreast's form, or two are the same image.
    """
    known = set(rows["image_id"])

    def name_of(file: Path) -> str | None:
        match = _FILE.match(file.name)
        return match[1] if match and match[1] in known else None

    found = one_file_each(images, name_of, "named like 20586908_6c613a14b80a8591_MG_R_CC_ANON.dcm")
    women = {name: file.name.split("_")[1].lower() for name, file in found.items()}
    patient = rows["image_id"].map(women).fillna("")
    # Matched by path alone: an image whose woman is unknown could leak across a split.
    return rows.drop(columns="image_id").assign(
        path=rows["image_id"].map({name: str(file) for name, file in found.items()}).fillna(""),
        patient_id=patient,
        exam_id=(patient + "/" + rows["acquisition_month"]).where(patient != "", ""),
    )


SOURCE = Source(
    name="inbreast",
    title="INbreast",
    table=_TABLE,
    licence="not found stated",
    reference="Moreira et al., Academic Radiology 19:236 (2012)",
    definitions={
        "birads_4": "positive where this image was given BI-RADS 4, 5 or 6; no outcome known"
    },
    read=read,
    locate=locate,
    images=410,
)
