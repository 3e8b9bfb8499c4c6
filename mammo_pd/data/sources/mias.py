"""mini-MIAS (Suckling 1994): a text table with one line per abnormality.

- Licence: research only (its Licence.txt).
- Counts (counted in its own table): 322 films of 161 women, all MLO; 52 films malignant, 63 benign,
  207 normal; tissue D 112, F 106, G 104.
- Label: ``cancer``, severity M; benign lesions and normal films are negative. ``dense``, for work
  on breast density: tissue D against F and G.
- Known faults: digitised film, 8 bits, 0.2 mm. The README calls odd numbers right breasts, but on
  the films that we looked at the markers of odd numbers read L. Laterality is therefore left empty,
  and the two readings are ``laterality_readme`` and ``laterality_film_marker``, each a rule for
  all films; ``--column laterality=...`` takes one of them. Some films have several lesions, some
  lesions no coordinates. Strips and markers are burnt in. There are too few malignant films to
  train a detector on.
- Columns: as in the set's README; we had the whole table.
"""

import re
from pathlib import Path

import pandas as pd

from mammo_pd.data.sources.source import Source
from mammo_pd.data.sources.tables import read_table
from mammo_pd.errors import InputError

_TABLE = "mini-MIAS's table (labels.original, or Info.txt), or a CSV made of it"
_CSV_COLUMNS = (
    "image_id",
    "patient_id",
    "laterality_readme",
    "tissue",
    "abnormality",
    "severity",
    "radius",
)
_MAY_HAVE = ("laterality_film_marker",)
# Film, tissue, class; then the severity of an abnormality, and its x, y and radius in pixels.
_LINE = re.compile(r"mdb(\d{3}) ([FGD]) ([A-Z]{4})(?: ([BM])(?: \d+ \d+ (\d+))?)?\b")


def read(table: Path, definition: str) -> pd.DataFrame:
    """Read the set's text, or a CSV made of it, into one label row per film.

    Args:
        table: lines such as ``mdb001 G CIRC B 535 425 197`` (others are passed over), or a CSV
            with the columns image_id, patient_id, laterality_readme, tissue, abnormality,
            severity (M, B or N) and radius, and perhaps laterality_film_marker.
        definition: ``cancer`` or ``dense``.

    Raises:
        InputError: no such file, or it is neither of the two.
    """
    if table.suffix.lower() == ".csv":
        frame = read_table(table, _CSV_COLUMNS, _TABLE)
        frame = frame[[name for name in (*_CSV_COLUMNS, *_MAY_HAVE) if name in frame.columns]]
    else:
        frame = _read_text(table)
    column, positive = ("severity", "M") if definition == "cancer" else ("tissue", "D")
    return frame.assign(
        # Both films of a woman were taken on one occasion.
        exam_id=frame["patient_id"],
        view="MLO",
        label=(frame[column] == positive).map({True: "1", False: "0"}),
    )


def _read_text(table: Path) -> pd.DataFrame:
    if not table.is_file():
        raise InputError(f"{table} is not a file; give {_TABLE}.")
    films: dict[str, dict[str, str]] = {}
    for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        film, tissue, abnormality, severity, radius = match.groups(default="")
        number = int(film)
        row = {
            "image_id": f"mdb{film}",
            "patient_id": f"P{(number + 1) // 2:03}",
            "laterality_readme": "R" if number % 2 else "L",
            "laterality_film_marker": "L" if number % 2 else "R",
            "tissue": tissue,
            "abnormality": abnormality,
            "severity": severity or "N",
            "radius": radius,
        }
        known = films.setdefault(row["image_id"], row)
        # The first malignant lesion represents the film, otherwise the first of any kind.
        if row["severity"] == "M" and known["severity"] != "M":
            films[row["image_id"]] = row
    if not films:
        raise InputError(f"{table} has no line such as mdb001 G CIRC B 535 425 197; give {_TABLE}.")
    return pd.DataFrame(films.values())


SOURCE = Source(
    name="mias",
    title="mini-MIAS",
    table=_TABLE,
    licence="research only",
    reference="Suckling et al., Excerpta Medica International Congress Series 1069:375 (1994)",
    definitions={
        "cancer": "positive where the film shows a malignant abnormality",
        "dense": "positive where the background tissue is dense-glandular (D)",
    },
    read=read,
    images=322,
    patients=161,
    positives=52,
)
