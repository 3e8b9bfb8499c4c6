r"""NLBS, the NL-Breast-Screening set (Newfoundland and Labrador): one row per image.

- Licence: not found stated in a source that we could read (the set is on FRDR).
- Counts (stated): 5,997 exams of four views (arXiv:2411.02710). Others counted 26,988 images of
  5,997 women in its table, 652 images of 149 women with cancer. We had no table.
- Label: ``cancer``, biopsy-confirmed after **this exam of this woman**: the table's flag says
  nothing of the breast, so images of her healthy breast are positive, too. Judge by exam, not by
  breast or image. Recalled in vain (False Positive) is negative.
- Known faults: paths have backslashes; a view may be there several times; a few files are
  damaged. Its folders (normal, abnormal, False Positive) tell the label: none may reach a model.
- Columns: File Path (``abnormal\p_0001\left\CC\1.dcm``), Image Laterality, View Position, Cancer,
  and in some versions Age and False Positive, of NLBSD_Metadata.csv or NLBSP-metadata.csv, as three
  public readers of it use them (fuxianghuang1/VersaMammo among them).
"""

from pathlib import Path

import pandas as pd

from mammo_pd.data.sources.source import Source
from mammo_pd.data.sources.tables import choose, codes, read_table
from mammo_pd.errors import InputError

_TABLE = "NLBSD_Metadata.csv (or NLBSP-metadata.csv) of NL-Breast-Screening"
_COLUMNS = ("File Path", "Image Laterality", "View Position", "Cancer")


def read(table: Path, definition: str) -> pd.DataFrame:
    """Read the table into one label row per image, matched by ``path``.

    Raises:
        InputError: a column is missing, or a path names no woman.
    """
    frame = read_table(table, _COLUMNS, _TABLE)
    path = frame["File Path"].str.replace("\\", "/").str.strip("/")
    parts = path.str.split("/")
    for line, found in enumerate(parts, start=2):
        if len(found) < 3:
            raise InputError(
                f"{table}, row {line}: the path names no woman (such as abnormal/p_0001/left/CC/"
                "1.dcm), so her images could not be kept together; give the table as it was "
                "downloaded."
            )
    false_positive = choose(frame, {"False Positive": "recalled"})
    return pd.DataFrame(
        {
            "path": path,
            "patient_id": parts.str[1],
            # The table has no dates; one screening exam for each woman.
            "exam_id": parts.str[1],
            "laterality": frame["Image Laterality"],
            "view": frame["View Position"],
            "label": codes(frame["Cancer"]),
            **choose(frame, {"Age": "age"}),
            **{name: codes(column) for name, column in false_positive.items()},
        }
    )


SOURCE = Source(
    name="nlbs",
    title="NL-Breast-Screening",
    table=_TABLE,
    licence="not found stated",
    reference="Kendall et al., Scientific Data 12:1479 (2025)",
    definitions={
        "cancer": "positive where cancer was confirmed after this exam, in either breast; judge by "
        "exam"
    },
    read=read,
    patients=5_997,
)
