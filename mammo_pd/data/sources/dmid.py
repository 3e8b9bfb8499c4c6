"""DMID, the Digital Mammography Dataset (figshare): a sheet without a header, one row a lesion.

- Licence: stated as CC BY 4.0 by others; figshare's page was not read.
- Counts (stated): 510 images (Oza et al., Biomedical Engineering Letters, 2023). We had no sheet.
- Label: ``cancer``, where a lesion of the image is malignant (M); benign (B) and normal (N) are
  negative. An image without a class has no label.
- Known faults: **the set names no women**, so each image counts as one, and two images of a woman
  can be on two sides of a split: figures are too good, and nothing in the files can show by how
  much. The masks (ROI Masks) have the images' names: give the folder of images alone. CALC is also
  spelt CLAC.
- Columns: Metadata.xlsx explains its codes in about 30 rows, then has rows that begin with IMG and
  a number: image, view (CCLT, CCRT, MLOLT, MLORT), background tissue, abnormality, class, x, y,
  radius. So two public readers take it (Gaurav2543/Mammo-Bench among them).
"""

from pathlib import Path

import pandas as pd

from mammo_pd.data.sources.source import Source
from mammo_pd.data.sources.tables import read_cells
from mammo_pd.errors import InputError

_TABLE = "DMID's Metadata.xlsx (or saved as CSV)"
_COLUMNS = ("image_id", "projection", "tissue", "abnormality", "class")
_PROJECTIONS = {
    "CCLT": ("L", "CC"),
    "CCRT": ("R", "CC"),
    "MLOLT": ("L", "MLO"),
    "MLORT": ("R", "MLO"),
}
_LABELS = {"M": "1", "B": "0", "N": "0"}


def read(table: Path, definition: str) -> pd.DataFrame:
    """Read the sheet into one label row per image, matched by ``image_id`` (IMG001).

    Raises:
        InputError: no row begins with an image, or a view is none of the set's.
    """
    cells = read_cells(table, _TABLE)
    lesions = cells[cells[0].str.fullmatch(r"IMG\s*\d+", case=False)]
    if lesions.empty or len(cells.columns) < len(_COLUMNS):
        raise InputError(f"{table} has no row that begins with IMG001 or the like; give {_TABLE}.")
    lesions = lesions.iloc[:, : len(_COLUMNS)].set_axis(list(_COLUMNS), axis=1)
    lesions = lesions.apply(lambda column: column.str.replace(r"\s", "", regex=True).str.upper())
    for line, projection in zip(lesions.index, lesions["projection"], strict=True):
        if projection not in _PROJECTIONS:
            raise InputError(
                f"{table}, row {line + 1}: the view is none of {', '.join(_PROJECTIONS)}; give "
                f"{_TABLE} as it was downloaded."
            )
    label = lesions["class"].map(_LABELS).fillna("")
    images: pd.DataFrame = (
        lesions.assign(label=label, abnormality=lesions["abnormality"].replace("CLAC", "CALC"))
        .groupby("image_id", sort=False, as_index=False)
        .agg(
            projection=("projection", "first"),
            # "1" above "0" above unknown.
            label=("label", "max"),
            tissue=("tissue", "first"),
            lesion_type=("abnormality", lambda kinds: "+".join(sorted({*kinds} - {"", "NORM"}))),
        )
    )
    places = images.pop("projection").map(_PROJECTIONS)
    labelled: pd.DataFrame = images.assign(
        patient_id=images["image_id"],
        exam_id=images["image_id"],
        laterality=places.str[0],
        view=places.str[1],
    )
    return labelled


SOURCE = Source(
    name="dmid",
    title="DMID",
    table=_TABLE,
    licence="CC BY 4.0 (as others state)",
    reference="Oza et al., Biomedical Engineering Letters (2023)",
    definitions={"cancer": "positive where a lesion of this image is malignant"},
    read=read,
    images=510,
)
