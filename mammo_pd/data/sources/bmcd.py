"""BMCD, the Breast Micro-Calcifications Dataset (Zenodo 5036062): one row per case of four images.

- Licence: stated as CC BY 4.0 by others, quoting Zenodo.
- Counts (stated): 100 pairs of mammograms of two rounds, CC and MLO of one breast, so 400 images;
  biopsy results of 32 suspicious cases. We had no sheet.
- Label: a threshold on the BI-RADS of the *recent* round: 4 and 5 are positive. Prior images have
  no label: the sheet's BI-RADS is not theirs, and nobody knows whether a calcification
  was there already.
- Known faults: **the biopsy results are not read**: in no source could we see what their column is
  called. Normal and suspicious cases have sheets and folders of their own, and numbers that start
  at 1 in both. One breast for each case; whether a woman is two cases is not said.
- Columns: of the sheets ``Normal_cases`` and ``Suspicious_cases`` of Description.xlsx, whose
  header follows two rows of titles, and files ``Suspicious_cases/7/CC_recent.dcm``, as three public
  readers of it use them. Loizidou et al., European Radiology Experimental 5:40 (2021).
"""

from pathlib import Path

import pandas as pd

from mammo_pd.data.sources.images import one_file_each
from mammo_pd.data.sources.source import Source
from mammo_pd.data.sources.tables import codes, read_cells
from mammo_pd.errors import InputError
from mammo_pd.table_file import plain_name

_TABLE = (
    "BMCD's Description.xlsx, or a folder with its sheets as Normal_cases.csv and "
    "Suspicious_cases.csv"
)
_SHEETS = ("Normal_cases", "Suspicious_cases")
_FOLDER = "Folder #"
_COLUMNS = {
    _FOLDER: "folder",
    "Breast (Right/Left)": "laterality",
    "Age (at the time of the recent mammogram)": "age",
    "BI-RADS categories for breast density": "density",
    "BI-RADS categories for classification": "birads",
}
_SIDES = {"right": "R", "left": "L", "r": "R", "l": "L"}
_IMAGES = [(view, round_) for view in ("CC", "MLO") for round_ in ("recent", "prior")]


def read(table: Path, definition: str) -> pd.DataFrame:
    """Read both sheets into four label rows per case; `locate` finds their files.

    Raises:
        InputError: a sheet or a column is missing.
    """
    cases = pd.concat([_read_one(table, sheet) for sheet in _SHEETS], ignore_index=True)
    grade = cases["birads"].str.extract(r"^([0-6])", expand=False).fillna("")
    label = (pd.to_numeric(grade) >= 4).map({True: "1", False: "0"})
    cases = cases.assign(label=label.where(~grade.isin(("", "0")), ""))
    images = cases.merge(pd.DataFrame(_IMAGES, columns=["view", "round"]), how="cross")
    prior = images["round"] == "prior"
    return pd.DataFrame(
        {
            "image_id": images["case"] + "/" + images["view"] + "_" + images["round"],
            "patient_id": images["case"],
            "exam_id": images["case"] + "/" + images["round"],
            "laterality": images["laterality"].str.lower().map(_SIDES).fillna(""),
            "view": images["view"],
            "age": images["age"].where(~prior, ""),
            "label": images["label"].where(~prior, ""),
            "birads": images["birads"].where(~prior, ""),
            "density": images["density"].str.upper().where(~prior, ""),
            "round": images["round"],
        }
    )


def locate(rows: pd.DataFrame, images: Path) -> pd.DataFrame:
    """Add the ``path`` of each image: the file of its name in its case's folder.

    Raises:
        InputError: no file lies where the set has them, or two are the same image.
    """
    known = set(rows["image_id"])

    def name_of(file: Path) -> str | None:
        name = "/".join((*file.parts[-3:-1], file.stem))
        return name if name in known else None

    found = one_file_each(images, name_of, "named like Suspicious_cases/7/CC_recent.dcm")
    path = rows["image_id"].map({name: str(file) for name, file in found.items()})
    return rows.drop(columns="image_id").assign(path=path.fillna(""))


def _read_one(table: Path, sheet: str) -> pd.DataFrame:
    path = table / f"{sheet}.csv" if table.is_dir() else table
    cells = read_cells(path, _TABLE, sheet=sheet)
    header = cells.index[(cells == _FOLDER).any(axis=1)]
    if header.empty:
        raise InputError(
            f"{path} has no row with the cell {_FOLDER}, so it is not the sheet {sheet}; give "
            f"{_TABLE}."
        )
    names = {plain_name(cell): number for number, cell in cells.loc[header[0]].items() if cell}
    missing = [name for name in _COLUMNS if plain_name(name) not in names]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}; give {_TABLE}.")
    below = cells.loc[header[0] + 1 :]
    frame = pd.DataFrame({new: below[names[plain_name(old)]] for old, new in _COLUMNS.items()})
    frame = frame.assign(folder=codes(frame["folder"]), birads=codes(frame["birads"].str.lower()))
    frame = frame[frame["folder"].str.fullmatch(r"\d+")]
    return frame.assign(case=f"{sheet}/" + frame["folder"])


SOURCE = Source(
    name="bmcd",
    title="BMCD",
    table=_TABLE,
    licence="CC BY 4.0 (as others state)",
    reference="Loizidou et al., European Radiology Experimental 5:40 (2021)",
    definitions={
        "birads_4": "positive where the recent mammogram of this breast was given BI-RADS 4 or 5; "
        "no label for the prior one"
    },
    read=read,
    locate=locate,
    images=400,
)
