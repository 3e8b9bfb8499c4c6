from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mammo_pd.data.labels import LabelTable
from mammo_pd.data.sources import SOURCES, read_source
from mammo_pd.errors import InputError

# The lines' own forms, traps and all: no coordinates, a note, a trailing blank, two lesions.
TEXT = """\
INFORMATION:
mdb001 G CIRC B 535 425 197
mdb002 G CIRC B 522 280 69
mdb003 D NORM\x20
mdb059 F CIRC B
mdb144 F MISC B 233 994 29
mdb144 F MISC M 313 540 27
mdb216 D CALC M *NOTE 3*\x20
"""


def row_of(labels: LabelTable, path: Path) -> dict[str, Any]:
    found = labels.find(path)
    assert found is not None
    return labels.rows[found]


def test_the_sets_text_is_read_with_all_its_forms(tmp_path: Path) -> None:
    path = tmp_path / "Info.txt"
    path.write_text(TEXT)
    labels = read_source("mias", path, tmp_path)
    by_film = {
        name: row_of(labels, Path(f"all-mias/{name}.pgm"))
        for name in ("mdb001", "mdb002", "mdb003", "mdb059", "mdb144", "mdb216")
    }
    assert len(labels.rows) == len(by_film)
    assert [row["label"] for row in by_film.values()] == [0, 0, 0, 0, 1, 1]
    # Odd and even film of a pair are one woman.
    assert by_film["mdb001"]["patient_id"] == by_film["mdb002"]["patient_id"]
    assert by_film["mdb002"]["patient_id"] != by_film["mdb003"]["patient_id"]
    assert by_film["mdb001"]["exam_id"] == by_film["mdb002"]["exam_id"]
    assert by_film["mdb144"]["further"]["radius"] == 27.0
    assert by_film["mdb059"]["further"]["radius"] is None
    assert by_film["mdb003"]["further"]["severity"] == "N"
    assert {row["laterality"] for row in by_film.values()} == {None}
    assert by_film["mdb001"]["further"]["laterality_readme"] == "R"
    assert by_film["mdb001"]["further"]["laterality_film_marker"] == "L"
    dense = read_source("mias", path, tmp_path, definition="dense")
    assert [row["label"] for row in dense.rows] == [0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize(("reading", "odd"), [("readme", "R"), ("film_marker", "L")])
def test_either_reading_of_the_sides_can_be_taken(tmp_path: Path, reading: str, odd: str) -> None:
    """None is by default; with one of them the two films of a woman are her two breasts."""
    path = tmp_path / "Info.txt"
    path.write_text(TEXT)
    columns = {"laterality": f"laterality_{reading}"}
    labels = read_source("mias", path, tmp_path, columns=columns)
    films = ("mdb001", "mdb002")
    sides = [row_of(labels, Path(f"{film}.pgm"))["laterality"] for film in films]
    assert sides == [odd, "L" if odd == "R" else "R"]
    with pytest.raises(InputError, match="already has the view; drop this option"):
        read_source("mias", path, tmp_path, columns={"view": "tissue"})


def test_another_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("nothing of the kind\n")
    with pytest.raises(InputError, match="has no line such as mdb001"):
        read_source("mias", path, tmp_path)


@pytest.mark.corpus
def test_counts_of_the_whole_table(corpus: Path) -> None:
    labels = read_source("mias", corpus / "mias" / "labels.original", corpus)
    rows = pd.DataFrame(labels.rows)
    source = SOURCES["mias"]
    # Suckling et al. 1994: 322 films of 161 women, in pairs.
    assert len(rows) == source.images == 322
    assert rows["patient_id"].nunique() == source.patients == 161
    assert set(rows["patient_id"].value_counts()) == {2}
    further = pd.DataFrame(list(rows["further"]))
    assert further["severity"].value_counts().to_dict() == {"N": 207, "B": 63, "M": 52}
    assert further["tissue"].value_counts().to_dict() == {"D": 112, "F": 106, "G": 104}
    assert rows["label"].sum() == source.positives == 52


@pytest.mark.corpus
def test_the_text_says_what_the_corpus_table_says(corpus: Path) -> None:
    text = read_source("mias", corpus / "mias" / "labels.original", corpus)
    table = read_source("mias", corpus / "mias" / "labels.csv", corpus)
    files = sorted((corpus / "mias" / "images").glob("*.png"))
    assert len(files) == len(table.rows) == 212
    for file in files:
        by_text, by_table = text.find(file), table.find(file)
        assert by_text is not None
        assert by_table is not None
        assert text.rows[by_text] == table.rows[by_table]
    assert sum(row["label"] for row in table.rows) == 34
