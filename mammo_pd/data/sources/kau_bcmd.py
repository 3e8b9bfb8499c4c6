"""KAU-BCMD (King Abdulaziz University, Jeddah): one row per image in correctSheetlast.xlsx.

- Licence: not found stated.
- Counts: none stated in a source that we could read. Others counted 2,206 files of 478 women in the
  copy on Kaggle. We had no sheet.
- Label: the set has none. The label is a threshold on the BI-RADS of the row; 4 is the usual one.
- Known faults: the folders of the copy on Kaggle (Birad1, Birad3, Birad4, Birad5) are the BI-RADS
  too, and hold four images in two of them (2018_BC005421 and 2018_BC0022482, right): the sheet's
  row counts, and of two rows of an image the higher BI-RADS. The sheet names .dcm files where the
  copy has .jpg: a file is found by its name without the ending, which also tells woman, view and
  side (2018_BC005421_CC_R), where the sheet's cells may be empty.
- Columns: of the sheet ``correctSheet``, as two public readers of it use them
  (Gaurav2543/Mammo-Bench among them). Alsolami et al., Data 6:111 (2021), describes the set.
"""

import re
from pathlib import Path, PurePosixPath

import pandas as pd

from mammo_pd.data.sources.source import Source
from mammo_pd.data.sources.tables import read_table
from mammo_pd.errors import InputError
from mammo_pd.wording import counted

_TABLE = "the sheet correctSheet of KAU-BCMD's correctSheetlast.xlsx (or saved as CSV)"
_DENSITY_PERCENT = "Percentage of\n grandular tissue(density)"
_COLUMNS = (
    _DENSITY_PERCENT,
    "PatientID",
    "Patient age",
    "Breast  type",
    "Breast view",
    "Assesment",
    "Image path",
)
_DENSITY = {"0%-25%": "A", "26%-50%": "B", "51%-75%": "C", ">75%": "D"}
# Year and number of the woman, view, side.
_NAME = re.compile(r"^(?P<woman>\d{4}_[A-Za-z]+\d+)_(?P<view>CC|MLO)_(?P<side>[LR])$")
_THRESHOLDS = {"birads_4": 4, "birads_5": 5}


def read(table: Path, definition: str) -> pd.DataFrame:
    """Read the sheet into one label row per image, matched by ``image_id`` (the file's name).

    Args:
        table: the sheet.
        definition: ``birads_4`` (4 or 5 is positive) or ``birads_5``.

    Raises:
        InputError: the table lacks a column, or no row names an image.
    """
    frame = read_table(table, _COLUMNS, _TABLE, sheet="correctSheet")
    path = frame["Image path"].str.replace("\\", "/")
    frame = frame.assign(
        image_id=path.map(lambda name: PurePosixPath(name).stem.replace(" ", "")),
        birads=frame["Assesment"].str.extract(r"(\d)", expand=False).fillna(""),
    )[path != ""]
    if frame.empty:
        raise InputError(f"{table} names no image in its column Image path; give {_TABLE}.")
    # Spreadsheets leave merged cells empty below the first: the name says more than the cell.
    named = frame["image_id"].str.extract(_NAME)
    frame = frame.assign(
        woman=named["woman"].fillna(frame["PatientID"]),
        side=named["side"].fillna(frame["Breast  type"]),
        view=named["view"].fillna(frame["Breast view"]),
    )
    nameless = int((frame["woman"] == "").sum())
    if nameless:
        raise InputError(
            f"{table} has {counted(nameless, 'image')} for which neither the file name (such as "
            "2018_BC005421_CC_R) nor PatientID identifies the woman, so her images could not be "
            "kept together; fill in PatientID."
        )
    frame = frame.sort_values("birads", kind="stable", ascending=False)
    frame = frame.drop_duplicates("image_id").sort_index()
    positive = pd.to_numeric(frame["birads"]) >= _THRESHOLDS[definition]
    # 0 asks for further images, which is neither positive nor negative.
    known = ~frame["birads"].isin(("", "0"))
    return pd.DataFrame(
        {
            "image_id": frame["image_id"],
            "patient_id": frame["woman"],
            "exam_id": frame["woman"],
            "laterality": frame["side"],
            "view": frame["view"],
            "age": frame["Patient age"].str.extract(r"(\d+)", expand=False).fillna(""),
            "label": positive.map({True: "1", False: "0"}).where(known, ""),
            "birads": frame["birads"],
            "density": frame[_DENSITY_PERCENT].str.replace(" ", "").map(_DENSITY).fillna(""),
        }
    )


SOURCE = Source(
    name="kau-bcmd",
    title="KAU-BCMD",
    table=_TABLE,
    licence="not found stated",
    reference="Alsolami et al., Data 6:111 (2021)",
    definitions={
        "birads_4": "positive where this image was given BI-RADS 4 or 5; no outcome known",
        "birads_5": "positive where this image was given BI-RADS 5; no outcome known",
    },
    read=read,
)
