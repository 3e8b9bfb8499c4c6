"""CBIS-DDSM (The Cancer Imaging Archive): four tables, one row per abnormality.

- Licence: CC BY 3.0 (The Cancer Imaging Archive).
- Counts (stated): 1,566 women, 10,239 images, many of them masks and cut-outs (The Cancer Imaging
  Archive); 753 calcification and 891 mass cases (Lee et al., Scientific Data 4:170177, 2017).
  Others counted 3,103 mammograms with 3,568 abnormalities in the four tables, 465 mammograms with
  more than one (README of sposso/CBIS-DDSM-DATASET). We had no complete table.
- Label: positive where any abnormality marked on this film is MALIGNANT at biopsy. BENIGN and
  BENIGN_WITHOUT_CALLBACK are negative; there are no normal women in the set.
- Known faults: PatientID and study are those of a single film (``Calc-Test_P_00038_LEFT_CC``), so
  the woman's number (``P_00038``, the same in all four tables) is used as patient and exam. A film
  with a mass and a calcification exists twice, once in each collection: both copies get one label,
  from all its abnormalities. Masses and calcifications have separate training and test tables, so
  ``published_split`` does not keep a woman on one side. The tables name files that the archive's
  downloads do not have (``000000.dcm`` where there is ``1-1.dcm``); a film is therefore found by
  the folder named after it. The archive's masks and cut-outs (folders that end in ``_1``, ``_2``,
  ...) get no label.
- Columns: read in the copies of the tables in Slaysenfite/CBIS-DDSM-PNG. Density is spelt
  ``breast_density`` in the mass tables and ``breast density`` in the calcification tables.
"""

from pathlib import Path

import pandas as pd

from mammo_pd.data.sources.images import one_file_each
from mammo_pd.data.sources.source import Source
from mammo_pd.data.sources.tables import read_table
from mammo_pd.errors import InputError

_TABLES = {
    f"{kind}_case_description_{part}_set.csv": part
    for kind in ("mass", "calc")
    for part in ("train", "test")
}
_TABLE = f"the folder with CBIS-DDSM's tables {', '.join(_TABLES)}"
_COLUMNS = (
    "patient_id",
    "left or right breast",
    "image view",
    "abnormality type",
    "assessment",
    "pathology",
    "subtlety",
    "image file path",
)
_DENSITY = ("breast_density", "breast density")
# In order of severity.
_PATHOLOGY = ("BENIGN_WITHOUT_CALLBACK", "BENIGN", "MALIGNANT")
_FILM = ["patient_id", "laterality", "view"]


def read(table: Path, definition: str) -> pd.DataFrame:
    """Read the four tables into one label row per copy of a film, matched by ``image_id``.

    Args:
        table: the folder that holds all four.
        definition: ``cancer``, the only one.

    Raises:
        InputError: a table or a column is missing, or a pathology is none of the set's.
    """
    if not table.is_dir():
        raise InputError(f"{table} is not a folder; give {_TABLE}: a film can be in two of them.")
    marked = pd.concat([_read_one(table / name, part) for name, part in _TABLES.items()])
    films = marked.groupby(_FILM, sort=False).agg(
        worst=("severity", "max"),
        lesion_type=("abnormality type", lambda kinds: "+".join(sorted(set(kinds)))),
        lesions=("severity", "size"),
        birads=("assessment", "max"),
        subtlety=("subtlety", "min"),
    )
    copies = marked.groupby("image_id", sort=False, as_index=False).first()
    rows = copies[["image_id", *_FILM, "density", "published_split"]].join(films, on=_FILM)
    return pd.DataFrame(
        {
            **{name: rows[name] for name in ("image_id", *_FILM)},
            "exam_id": rows["patient_id"],
            "label": (rows["worst"] == _PATHOLOGY.index("MALIGNANT")).map({True: "1", False: "0"}),
            "pathology": rows["worst"].map(lambda rank: _PATHOLOGY[rank].lower()),
            "lesion_type": rows["lesion_type"],
            "lesions": rows["lesions"].astype(str),
            "birads": rows["birads"],
            "subtlety": rows["subtlety"],
            "density": rows["density"],
            "published_split": rows["published_split"],
        }
    )


def locate(rows: pd.DataFrame, images: Path) -> pd.DataFrame:
    """Add the ``path`` of each film: the file in the folder named after it.

    Raises:
        InputError: no folder is named after a film, or one holds two files.
    """
    names = set(rows["image_id"])
    found = one_file_each(
        images,
        lambda file: next((part for part in (*file.parts[:-1], file.stem) if part in names), None),
        "in a folder named after a film, such as Mass-Training_P_00001_LEFT_CC",
    )
    return rows.assign(path=[str(found.get(name, "")) for name in rows["image_id"]])


def _read_one(path: Path, part: str) -> pd.DataFrame:
    frame = read_table(path, _COLUMNS, path.name)
    density = next((name for name in _DENSITY if name in frame.columns), None)
    if density is None:
        raise InputError(
            f"{path} has no column {_DENSITY[0]}, so it is not CBIS-DDSM's {path.name}; give that "
            "table as it was downloaded."
        )
    # Older tables have the film's name here, which contains the woman's number.
    woman = frame["patient_id"].str.extract(r"(P_\d+)", expand=False).fillna("")
    for line, (number, pathology) in enumerate(zip(woman, frame["pathology"], strict=True), 2):
        if not number:
            raise InputError(
                f"{path}, row {line}: patient_id names no woman (such as P_00001), so her "
                "films could not be kept together; give the table as it was downloaded."
            )
        if pathology not in _PATHOLOGY:
            raise InputError(
                f"{path}, row {line}: the pathology is none of "
                f"{', '.join(_PATHOLOGY)}; give the table as it was downloaded."
            )
    return frame.assign(
        patient_id=woman,
        laterality=frame["left or right breast"],
        view=frame["image view"],
        severity=[_PATHOLOGY.index(pathology) for pathology in frame["pathology"]],
        image_id=frame["image file path"].str.partition("/")[0],
        density=frame[density],
        published_split=part,
    )


SOURCE = Source(
    name="cbis-ddsm",
    title="CBIS-DDSM",
    table=_TABLE,
    licence="CC BY 3.0",
    reference="Lee et al., Scientific Data 4:170177 (2017)",
    definitions={"cancer": "positive where an abnormality on this film was malignant at biopsy"},
    read=read,
    locate=locate,
    patients=1_566,
)
