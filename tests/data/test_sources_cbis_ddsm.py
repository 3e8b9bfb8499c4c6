from pathlib import Path
from typing import Any

import pytest

from mammo_pd.data.labels import LabelTable
from mammo_pd.data.sources import read_source
from mammo_pd.errors import InputError

# The headers as shipped: density is spelt in two ways.
MASS = (
    "patient_id,breast_density,left or right breast,image view,abnormality id,abnormality type,"
    "mass shape,mass margins,assessment,pathology,subtlety,image file path,"
    "cropped image file path,ROI mask file path\n"
)
CALC = MASS.replace("breast_density", "breast density").replace(
    "mass shape,mass margins", "calc type,calc distribution"
)
NAMES = {
    "mass": ("mass_case_description_train_set.csv", "mass_case_description_test_set.csv"),
    "calc": ("calc_case_description_train_set.csv", "calc_case_description_test_set.csv"),
}


def line(film: str, kind: str, pathology: str, number: int = 1, subtlety: int = 3) -> str:
    _, _, woman, side, view = film.split("_")
    # The last path of the real tables ends in a line break inside the quotes.
    return (
        f"P_{woman},3,{side},{view},{number},{kind},X,Y,4,{pathology},{subtlety},"
        f'{film}/1.3.1/1.3.2/000000.dcm,{film}_1/1.3.3/1.3.4/000001.dcm,"{film}_1/x.dcm\n"\n'
    )


def tables(folder: Path, **rows: str) -> Path:
    for kind, header in (("mass", MASS), ("calc", CALC)):
        for part, name in zip(("train", "test"), NAMES[kind], strict=True):
            filler = line(f"{kind.title()}-{part}_P_0090{len(part)}_LEFT_CC", kind, "BENIGN")
            (folder / name).write_text(header + rows.get(f"{kind}_{part}", filler))
    return folder


def download(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / "CBIS-DDSM" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def row_of(labels: LabelTable, path: Path) -> dict[str, Any]:
    found = labels.find(path)
    assert found is not None
    return labels.rows[found]


def test_abnormalities_of_a_film_are_merged_to_one_row(tmp_path: Path) -> None:
    film = "Mass-Training_P_00001_LEFT_CC"
    benign = "Mass-Training_P_00001_LEFT_MLO"
    folder = tables(
        tmp_path,
        mass_train=line(film, "mass", "BENIGN", 1, subtlety=5)
        + line(film, "mass", "MALIGNANT", 2, subtlety=2)
        + line(benign, "mass", "BENIGN_WITHOUT_CALLBACK"),
    )
    images = download(
        tmp_path / "images",
        f"{film}/07-20-2016-DDSM-NA-94942/1.000000-full mammogram images-05943/1-1.dcm",
        f"{film}_1/07-20-2016-DDSM-NA-94942/1.000000-cropped images-05943/1-1.dcm",
        f"{film}_1/07-20-2016-DDSM-NA-94942/1.000000-cropped images-05943/1-2.dcm",
        f"{benign}/1.3.6/1.3.7/1-1.dcm",
    )
    labels = read_source("cbis-ddsm", folder, images)
    files = sorted(images.rglob("*.dcm"))
    found = {file.relative_to(images).parts[1]: labels.find(file) for file in files}
    # Masks and cut-outs have no label.
    assert found[f"{film}_1"] is None
    row = labels.rows[found[film]]
    assert (row["label"], row["patient_id"], row["exam_id"]) == (1, "P_00001", "P_00001")
    assert (row["laterality"], row["view"]) == ("L", "CC")
    assert row["further"] == {
        "pathology": "malignant",
        "lesion_type": "mass",
        "lesions": 2.0,
        "birads": 4.0,
        "subtlety": 2.0,
        "density": 3.0,
        "published_split": "train",
    }
    other = labels.rows[found[benign]]
    assert (other["label"], other["further"]["pathology"]) == (0, "benign_without_callback")
    assert other["exam_id"] == row["exam_id"]


def test_a_film_in_two_collections_has_one_label_and_one_woman(tmp_path: Path) -> None:
    mass, calc = "Mass-Training_P_00005_RIGHT_MLO", "Calc-Test_P_00005_RIGHT_MLO"
    folder = tables(
        tmp_path,
        mass_train=line(mass, "mass", "BENIGN"),
        calc_test=line(calc, "calcification", "MALIGNANT")
        + line("Calc-Test_P_00005_LEFT_MLO", "calcification", "BENIGN"),
    )
    images = download(tmp_path / "images", f"{mass}/a/b/1-1.dcm", f"{calc}/a/b/1-1.dcm")
    labels = read_source("cbis-ddsm", folder, images)
    copies = [row_of(labels, file) for file in sorted(images.rglob("*.dcm"))]
    assert [row["label"] for row in copies] == [1, 1]
    assert {row["patient_id"] for row in copies} == {"P_00005"}
    assert {row["further"]["lesion_type"] for row in copies} == {"calcification+mass"}
    assert [row["further"]["published_split"] for row in copies] == ["test", "train"]
    assert [row["further"]["density"] for row in copies] == [3.0, 3.0]
    # Her other breast is not touched.
    assert row_of(labels, Path("Calc-Test_P_00005_LEFT_MLO.png"))["label"] == 0


def test_the_woman_is_found_inside_a_number_of_the_film(tmp_path: Path) -> None:
    films = "Mass-Training_P_00007_LEFT_CC", "Mass-Training_P_00007_LEFT_MLO"
    rows = "".join(
        line(film, "mass", "BENIGN").replace("P_00007,", f"{film},", 1) for film in films
    )
    folder = tables(tmp_path, mass_train=rows)
    assert (folder / NAMES["mass"][0]).read_text().count("\nMass-Training_P_00007_LEFT") == 2
    images = download(tmp_path / "images", *(f"{film}.png" for film in films))
    labels = read_source("cbis-ddsm", folder, images)
    found = [row_of(labels, file) for file in sorted(images.rglob("*.png"))]
    assert {row["patient_id"] for row in found} == {"P_00007"}


def test_what_is_not_the_sets_is_refused(tmp_path: Path) -> None:
    film = "Mass-Training_P_00001_LEFT_CC"
    folder = tables(tmp_path)
    with pytest.raises(InputError, match="in a folder named after a film"):
        read_source("cbis-ddsm", folder, tmp_path)
    with pytest.raises(InputError, match="a film can be in two of them"):
        read_source("cbis-ddsm", folder / NAMES["mass"][0], tmp_path)
    (folder / NAMES["mass"][0]).write_text(MASS + line(film, "mass", "UNPROVEN"))
    with pytest.raises(InputError, match="row 2: the pathology is none of"):
        read_source("cbis-ddsm", folder, tmp_path)
    (folder / NAMES["mass"][0]).write_text(MASS + line(film, "mass", "BENIGN").replace("P_", "", 1))
    with pytest.raises(InputError, match="row 2: patient_id names no woman"):
        read_source("cbis-ddsm", folder, tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    (tables(again) / NAMES["calc"][1]).write_text(
        CALC.replace("breast density", "thickness")
        + line("Calc-Test_P_00001_LEFT_CC", "calcification", "BENIGN")
    )
    with pytest.raises(
        InputError, match=r"calc_case_description_test_set\.csv has no column breas"
    ):
        read_source("cbis-ddsm", again, tmp_path)
    (again / NAMES["calc"][1]).unlink()
    with pytest.raises(InputError, match=r"calc_case_description_test_set\.csv does not exist"):
        read_source("cbis-ddsm", again, tmp_path)
