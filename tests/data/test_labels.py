from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

import pytest

from mammo_pd.data.labels import _READ_AS, read_labels
from mammo_pd.errors import InputError


def table(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def test_image_is_found_by_path_uid_or_the_sets_own_id(tmp_path: Path) -> None:
    by_path = read_labels(table(tmp_path, "path,label\na/1.png,1\nb/1.png,0\n"))
    assert by_path.find(tmp_path / "b" / "1.png") == 1
    assert by_path.find(Path("elsewhere/a/1.png")) == 0
    assert by_path.find(Path("elsewhere/1.png")) is None
    by_uid = read_labels(table(tmp_path, "sop_instance_uid,label\n1.2.3,0\n1.2.34,1\n"))
    assert by_uid.find(Path("x.dcm"), "1.2.34") == 1
    assert by_uid.find(Path("x.dcm")) is None
    by_id = read_labels(table(tmp_path, "image_id,label\n220375232,1\n"))
    for name in ("220375232.dcm", "train_images_10011_220375232.dcm"):
        assert by_id.find(Path(name)) == 0


@pytest.mark.parametrize(
    "written",
    ["a/1.png", "./a/1.png", "a//1.png", "b/../a/1.png", "a\\1.png", "../{folder}/a/1.png"],
)
def test_a_path_is_found_however_it_is_written(tmp_path: Path, written: str) -> None:
    labels = read_labels(table(tmp_path, f"path,label\n{written.format(folder=tmp_path.name)},1\n"))
    assert labels.find(tmp_path / "a" / "1.png") == 0
    assert labels.find(tmp_path / "b" / "1.png") is None


@pytest.mark.parametrize("in_table", ["NFC", "NFD"])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("column", ["path", "image_id"])
def test_accents_are_the_same_in_either_form(
    tmp_path: Path, in_table: Literal["NFC", "NFD"], on_disk: Literal["NFC", "NFD"], column: str
) -> None:
    name = "Zoé/Müller"
    cell = f"{name}.png" if column == "path" else "Müller"
    labels = read_labels(table(tmp_path, f"{column},label\n{normalize(in_table, cell)},1\n"))
    for folder in (tmp_path, Path("elsewhere")):
        assert labels.find(folder / normalize(on_disk, f"{name}.png")) == 0


@pytest.mark.parametrize(
    "text",
    [
        "Path,LABEL,Patient ID,Age,dose\na.png,1,p,61.5,1.25\n",
        "PATH;Label;PatientID;AGE;dose\na.png;1,0;p;61,5;1,25\n",
        "file name\tlabel\tpatient-id\tage\tdose\na.png\t1.0\tp\t61,5\t1,25\n",
        'path,label,patient_id,age,dose\na.png,1,p,"61,5","1,25"\n',
    ],
)
def test_spelling_separators_and_decimal_commas_of_any_country_are_read(
    tmp_path: Path, text: str
) -> None:
    labels = read_labels(table(tmp_path, text), carry=["dose"])
    found = labels.find(tmp_path / "a.png")
    assert found == 0
    row = labels.rows[found]
    assert (row["label"], row["patient_id"], row["age"]) == (1, "p", 61.5)
    assert row["further"] == {"dose": 1.25}


def test_what_may_be_a_thousands_separator_stays_text(tmp_path: Path) -> None:
    path = table(tmp_path, 'path,label,volume,share\na.png,1,"1,250","0,250"\n')
    labels = read_labels(path, carry=["volume", "share"])
    assert labels.rows[0]["further"] == {"volume": "1,250", "share": 0.25}


def test_the_chosen_label_column_is_found_whatever_its_case(tmp_path: Path) -> None:
    path = table(tmp_path, "path,Pathology\na.png,M\nb.png,B\n")
    labels = read_labels(path, label_column="pathology", positive=["M"])
    assert [row["label"] for row in labels.rows] == [1, 0]


@pytest.mark.parametrize("image_id", ["100001", "7", "20230101123000"])
def test_a_uid_that_ends_like_an_image_number_is_not_that_image(
    tmp_path: Path, image_id: str
) -> None:
    labels = read_labels(table(tmp_path, f"image_id,label\n{image_id},1\n"))
    assert labels.find(Path("scan.dcm"), f"1.2.826.0.1.99.7.{image_id}") is None
    assert labels.find(Path("scan.dcm"), image_id) is None


def test_label_column_and_positive_values_are_chosen(tmp_path: Path) -> None:
    path = table(tmp_path, "path,tissue\na.png,D\nb.png,F\nc.png,\nd.png,G\n")
    labels = read_labels(path, label_column="tissue", positive=["D"])
    assert [row["label"] for row in labels.rows] == [1, 0, None, 0]
    assert "tissue is D" in labels.definition


def test_label_falls_back_to_cancer_and_reads_words(tmp_path: Path) -> None:
    labels = read_labels(table(tmp_path, "path,cancer\na.png,True\nb.png,0\nc.png,\n"))
    assert [row["label"] for row in labels.rows] == [1, 0, None]


@pytest.mark.parametrize(
    "column",
    [
        *("pid", "nhs_number", "Nachname", "geburtsdatum", "image", "comment", "PatientName"),
        *("AccessionNumber", "series_id", "nom", "DNI", "Befund", "free_text", "hospital_no"),
        *("PatientBirthDate", "image file path", "filenumbering"),
    ],
)
def test_a_column_that_is_not_known_stays_out_unless_it_is_asked_for(
    tmp_path: Path, column: str
) -> None:
    path = table(tmp_path, f"path,label,BI-RADS,{column}\na.png,1,4,Doe\n")
    labels = read_labels(path)
    assert (labels.rows[0]["further"], labels.left_out) == ({"BI-RADS": 4.0}, (column,))
    assert "Doe" not in repr(labels.rows)
    asked = read_labels(path, carry=[column])
    assert (asked.rows[0]["further"][column], asked.left_out) == ("Doe", ())
    with pytest.raises(InputError, match="has no column other to carry"):
        read_labels(path, carry=["other"])


def test_further_columns_are_carried_but_not_what_may_identify(tmp_path: Path) -> None:
    labels = read_labels(
        table(
            tmp_path,
            "path,label,density,radius,patient_name,accession_number,series_id,site_id\n"
            "a.png,1,B,3.5,Doe^Jane,77,9,2\nb.png,0,,,x,1,2,1\n",
        )
    )
    assert labels.column_types == {"density": "text", "radius": "number", "site_id": "text"}
    assert labels.rows[0]["further"] == {"density": "B", "radius": 3.5, "site_id": "2"}
    assert labels.rows[1]["further"] == {"density": None, "radius": None, "site_id": "1"}


def test_laterality_and_view_are_read_in_the_sets_words(tmp_path: Path) -> None:
    labels = read_labels(
        table(tmp_path, "image_id,label,laterality,view_position,age\na,1,LEFT,CC,061\n")
    )
    row = labels.rows[0]
    assert (row["laterality"], row["view"], row["age"]) == ("L", "CC", 61.0)


def test_columns_of_other_names_are_read_as_what_they_are(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label,Side,who,laterality\na.dcm,1,Right,P1,\nb.dcm,0,,P2,\n")
    labels = read_labels(path, columns={"laterality": "Side", "patient_id": "who"})
    assert [row["laterality"] for row in labels.rows] == ["R", None]
    assert [row["patient_id"] for row in labels.rows] == ["P1", "P2"]
    assert labels.left_out == ()
    for columns, message in (
        ({"side": "Side"}, "side is not a column that can be read; choose one of laterality, view"),
        ({"laterality": "side"}, "has no column side; it has: path, label, Side"),
        ({"laterality": "who"}, r"of 2 rows of .* 2 are neither .* \(the first in line 2\)"),
    ):
        with pytest.raises(InputError, match=message):
            read_labels(path, columns=columns)
    path.write_text("path,label,laterality,side\na.dcm,1,L,R\n")
    with pytest.raises(InputError, match="already has the laterality"):
        read_labels(path, columns={"laterality": "side"})


def test_counters_find_no_image_by_accident(tmp_path: Path) -> None:
    labels = read_labels(table(tmp_path, "image_id,label\n1,1\n2,0\n"))
    assert labels.find(Path("x.dcm"), "1.2.840.1") is None
    assert labels.find(Path("womanA_2.png")) is None
    assert labels.find(Path("2.png")) == 1


def test_image_that_two_rows_claim_is_refused(tmp_path: Path) -> None:
    labels = read_labels(table(tmp_path, "path,image_id,label\na.png,,1\n,a,0\n"))
    with pytest.raises(InputError, match=r"more than one row .*lines 2, 3"):
        labels.find(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as CSV"),
        ("path,label\n", "no rows"),
        ("file_no,label\n1,1\n", "no column that identifies an image"),
        ("path,malignant\na.png,1\n", "--label-column"),
        ("path,label\na.png,2\n", r"line 2: the label is neither 0 nor 1 \(the column holds 2\)"),
        ("path,label\na.png,1\nb.png,0\na.png,1\n", "lines 2, 4 repeat"),
        ("path,label\na.png,1\na.png,0\n", "lines 2, 3 contradict"),
        ("path,label\na.png,1\n./a.png,0\n", "lines 2 and 3 name the same"),
        ("path,label\na/é.png,1\na/e\u0301.png,0\n", "lines 2 and 3 name the same"),
        ("path,label,age\na.png,1,61,5\n", "a row has 4 cells and the header 3"),
        ("path,label,age\na.png,1,61\nb.png,1,61,5\n", "line 3 has 4 cells.*decimal comma"),
        ("path,label,label\na.png,1,0\n", "has two columns named label"),
        (
            "path,Label,LABEL\na.png,1,0\n",
            r"more than one candidate for the column label \(Label, L",
        ),
    ],
)
def test_bad_tables_are_refused_with_cause_and_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_labels(table(tmp_path, text))


@pytest.mark.parametrize("other", ["Malignant", "MALIGNANT", "malignant "])
def test_a_positive_value_in_another_spelling_is_never_negative(tmp_path: Path, other: str) -> None:
    path = table(tmp_path, f"image_id,label\na,malignant\nb,{other}\nc,benign\n")
    if other.strip() == "malignant":
        assert [row["label"] for row in read_labels(path, positive=["malignant"]).rows] == [1, 1, 0]
        return
    with pytest.raises(
        InputError, match=rf"{other}, which would be negative; .* --positive {other}"
    ):
        read_labels(path, positive=["malignant"])
    both = read_labels(path, positive=["malignant", other])
    assert [row["label"] for row in both.rows] == [1, 1, 0]


def test_positive_letters_with_accents_are_the_same_in_either_form(tmp_path: Path) -> None:
    word = "b\u00f6sartig"
    path = tmp_path / "labels.csv"
    path.write_text(f"image_id,label\na,{word}\nb,{normalize('NFD', word)}\n", encoding="utf-8")
    with pytest.raises(InputError, match="would be negative"):
        read_labels(path, positive=[word])


def test_digits_with_an_underscore_are_no_number(tmp_path: Path) -> None:
    labels = read_labels(table(tmp_path, "image_id,label,density\na,1,1_2\nb,0,2\n"))
    assert labels.column_types["density"] == "text"
    with pytest.raises(InputError, match="neither 0 nor 1"):
        read_labels(table(tmp_path, "image_id,label\na,0_1\n"))


def test_missing_table_and_positive_that_never_occurs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_labels(tmp_path / "none.csv")
    path = table(tmp_path, "path,tissue\na.png,D\n")
    with pytest.raises(InputError, match="no row's tissue is dense; the column holds D"):
        read_labels(path, label_column="tissue", positive=["dense"])
    # A value that does occur stands beside it: not all would be negative, and that is not claimed.
    with pytest.raises(
        InputError, match="no row's tissue is C or E; the column holds D"
    ) as refused:
        read_labels(path, label_column="tissue", positive=["D", "E", "C"])
    assert "nothing would be positive" not in str(refused.value)


_WOMEN = ("Ursula Vandermeer-Kowalczyk", *(f"Doe^Jane{number}" for number in range(12)))


@pytest.mark.parametrize(
    "text",
    [
        "path,label\n" + "".join(f"{n}.png,{name}\n" for n, name in enumerate(_WOMEN)),
        f"path,label\na.png,{_WOMEN[0]}\n",
        f"path,label\n{_WOMEN[0]}/a.png,1\n{_WOMEN[0]}/a.png,0\n",
        f"path,label\n{_WOMEN[0]}/a.png,1\n./{_WOMEN[0]}/a.png,0\n",
        f"path,label,note\na.png,1,{_WOMEN[0]},1\n",
        f"path,label,note\na.png,1,{_WOMEN[0]},1\nb.png,1\n",
        f"image_id,label\n{_WOMEN[0]},1\n{_WOMEN[0]},0\n",
        # Without a header.
        f"a/1.dcm,1,{_WOMEN[0]}\na/2.dcm,0,{_WOMEN[1]}\n",
        f"4711,{_WOMEN[0]},1950-01-31\n4712,{_WOMEN[1]},1951-01-31\n",
    ],
)
def test_no_cell_that_may_name_a_woman_is_told(tmp_path: Path, text: str) -> None:
    """What is printed ends up in logs."""
    for positive in ((), ("malignant",)):
        with pytest.raises(InputError) as refused:
            read_labels(table(tmp_path, text), positive=positive)
        assert not [name for name in _WOMEN if name in str(refused.value)]


# Few and short, as categories are: of one woman each, or of several images of hers.
_IDENTIFIERS = (
    "Yilmaz",
    "Doe^Jane",
    "19500131",
    "31.01.50",
    "A-4711",
    "MRN 12",
    "P1",
    "j@x.org",
)


@pytest.mark.parametrize("times", [1, 30])
@pytest.mark.parametrize(
    "options",
    [
        {"label_column": "who"},
        {"label_column": "who", "positive": ["malignant"]},
        *[{"columns": {name: "who"}} for name in _READ_AS],
        {"columns": {"laterality": "who"}, "label_column": "who"},
        {"carry": ["who"], "label_column": "who"},
    ],
)
def test_a_column_named_by_mistake_is_not_told(
    tmp_path: Path, options: dict[str, Any], times: int
) -> None:
    """Whichever option names it; where nothing is refused, nothing is said."""
    names = [name for name in _IDENTIFIERS for _ in range(times)]
    rows = "".join(f"{n}.png,1,{name}\n" for n, name in enumerate(names))
    told = ""
    try:
        read_labels(table(tmp_path, f"path,label,who\n{rows}"), **options)
    except InputError as refused:
        told = str(refused)
    assert bool(told) == ("label_column" in options or "laterality" in options.get("columns", {}))
    assert not [name for name in _IDENTIFIERS if name in told]


def test_values_of_a_label_are_told_and_where_the_others_stand(tmp_path: Path) -> None:
    for cells, told in (
        (
            ("0", "1", "maybe"),
            r"line 4: the label is neither 0 nor 1 \(the column holds 0, 1, maybe\)",
        ),
        (
            ("4A", "benign", "Yilmaz"),
            r"line 2: .* \(the column holds 4A, benign and 1 other value \(line 4\)",
        ),
        (("Yilmaz", "", "Doe"), r"line 2: .* \(the column holds 2 different values \(lines 2, 4\)"),
    ):
        rows = "".join(f"{n}.png,{cell}\n" for n, cell in enumerate(cells))
        with pytest.raises(InputError, match=told):
            read_labels(table(tmp_path, f"path,label\n{rows}"))


@pytest.mark.corpus
def test_published_counts_of_rsna_and_mias(corpus: Path) -> None:
    rsna = read_labels(corpus / "labels" / "rsna_train.csv")
    assert len(rsna.rows) == 54_706
    assert sum(row["label"] for row in rsna.rows) == 1_158
    assert len({row["patient_id"] for row in rsna.rows}) == 11_913
    mias = read_labels(corpus / "mias" / "labels.csv", label_column="tissue", positive=["D"])
    assert sum(row["label"] for row in mias.rows) == 78
    first = mias.find(corpus / "mias" / "images" / "mdb001.png")
    assert first == 0
