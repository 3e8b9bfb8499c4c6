"""CDD-CESM (The Cancer Imaging Archive): one row per image, contrast-enhanced and low-energy.

- Licence: stated as CC BY 4.0 by others; The Cancer Imaging Archive's page was not read.
- Counts (stated): 2,006 images of 326 women, 1,003 low-energy and 1,003 subtracted ones (Khaled et
  al., Scientific Data 9:122, 2022). We had no table.
- Label: ``cancer``, where the image's pathology or follow-up is Malignant; Benign and Normal are
  negative. Of an image with several rows the worst counts.
- Known faults: the subtracted images (Type CESM) are no mammograms and are left out; give the
  folder of low-energy images (DM). The images are JPEG of 8 bits. BI-RADS of an image with several
  findings reads 4$2: the highest is taken. Names carry stray spaces.
- Columns: of the sheet ``all`` of Radiology-manual-annotations.xlsx, as four public readers of it
  use them (Gaurav2543/Mammo-Bench among them).
"""

from pathlib import Path

import pandas as pd

from mammo_pd.data.sources.source import Source
from mammo_pd.data.sources.tables import choose, codes, read_table
from mammo_pd.errors import InputError

_TABLE = "the sheet all of CDD-CESM's Radiology-manual-annotations.xlsx (or saved as CSV)"
_PATHOLOGY = "Pathology Classification/ Follow up"
_COLUMNS = ("Image_name", "Patient_ID", "Side", "Type", "View", "BIRADS", _PATHOLOGY)
# In order of severity.
_RANKS = ("normal", "benign", "malignant")


def read(table: Path, definition: str) -> pd.DataFrame:
    """Read the annotations into one label row per low-energy image, matched by ``image_id``.

    Raises:
        InputError: a column is missing, or a pathology is none of the set's.
    """
    frame = read_table(table, _COLUMNS, _TABLE)
    pathology = frame[_PATHOLOGY].str.lower()
    for line, value in enumerate(pathology, start=2):
        if value not in _RANKS:
            raise InputError(
                f"{table}, row {line}: the pathology is none of Normal, Benign and Malignant; give "
                f"{_TABLE} as it was downloaded."
            )
    name = frame["Image_name"].str.replace(" ", "")
    # P1_L_DM_CC: spreadsheets leave merged cells empty below the first.
    woman = name.str.extract(r"^P(\d+)_", expand=False).fillna(codes(frame["Patient_ID"]))
    rows = pd.DataFrame(
        {
            "image_id": name,
            "patient_id": woman,
            "exam_id": woman,
            "laterality": frame["Side"],
            "view": frame["View"],
            "rank": pathology.map(_RANKS.index),
            "birads": frame["BIRADS"]
            .str.findall(r"[0-6]")
            .map(lambda found: max(found, default="")),
            **choose(
                frame, {"Age": "age", "Breast density (ACR)": "density", "Machine": "machine_id"}
            ),
        }
    )
    rows = rows[frame["Type"].str.upper() == "DM"]
    if rows.empty:
        raise InputError(f"{table} has no row of the type DM; give {_TABLE} as it was downloaded.")
    worst_of = {"rank": "max", "birads": "max"}
    images: pd.DataFrame = rows.groupby("image_id", sort=False, as_index=False).agg(
        {str(name): worst_of.get(str(name), "first") for name in rows if name != "image_id"}
    )
    worst = images.pop("rank")
    return images.assign(
        label=(worst == _RANKS.index("malignant")).map({True: "1", False: "0"}),
        pathology=worst.map(dict(enumerate(_RANKS))),
    )


SOURCE = Source(
    name="cdd-cesm",
    title="CDD-CESM",
    table=_TABLE,
    licence="CC BY 4.0 (as others state)",
    reference="Khaled et al., Scientific Data 9:122 (2022)",
    definitions={"cancer": "positive where this image was malignant at pathology or follow-up"},
    read=read,
    images=1_003,
    patients=326,
)
