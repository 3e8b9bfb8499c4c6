"""``mammo-pd inspect`` as a user runs it."""

import csv
from pathlib import Path

import numpy as np
import pytest
from dicom_files import half_disk, make_dataset, write_dicom
from PIL import Image
from pydicom.uid import CTImageStorage

from mammo_pd.cli.app import main


def test_inspect_tells_writes_and_names_the_next_command(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, page = tmp_path / "a.csv", tmp_path / "a.html"
    assert main(["inspect", str(phantoms), "--csv", str(table), "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"next: mammo-pd preprocess {phantoms} --labels TABLE.csv"
    with table.open() as opened:
        rows = {(row["table"], row["name"]): row["value"] for row in csv.DictReader(opened)}
    assert rows["Patients and exams", "exams with all four standard views"] == "12"
    # Every vendor of the phantoms, as preprocess takes them all.
    assert rows["Files", "of these, preprocess would decode"] == "48"
    assert rows["Files", "image files"] == "48"
    assert rows["Views of usable images", "L MLO"] == "12"
    assert rows["What preprocess would take", "size of the store, all levels"].endswith("MB")
    assert rows["Copies", "with the SOP Instance UID of an earlier file"] == "0"
    written = page.read_text()
    for text in (printed, table.read_text(), written):
        # Neither a patient's ID nor the path of a file.
        assert "PHANTOM0" not in text
        assert ".dcm" not in text
    assert "12 exams" in written


def test_what_preprocess_would_not_take_is_not_proposed_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = make_dataset(np.zeros((10, 10), np.uint16), Modality="CT", SOPClassUID=CTImageStorage)
    (tmp_path / "scans").mkdir()
    write_dicom(tmp_path / "scans" / "a.dcm", scan)
    assert main(["inspect", str(tmp_path / "scans")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("preprocess could use nothing")
    # Pictures are left out only until a table names them.
    Image.fromarray(np.zeros((30, 20), np.uint16)).save(tmp_path / "scans" / "b.png")
    assert main(["inspect", str(tmp_path / "scans")]) == 0
    *_, hint, proposed = capsys.readouterr().out.splitlines()
    assert "next: mammo-pd preprocess" in proposed
    assert "--labels" in hint


def test_a_label_table_counts_as_it_does_for_preprocess(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, labels, table = tmp_path / "scans", tmp_path / "my labels.csv", tmp_path / "t.csv"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(half_disk()).save(folder / f"{name}.png")
    labels.write_text("file,woman,side,view,density\na.png,1,R,CC,C\nb.png,1,L,CC,B\n")
    given = ["--labels", str(labels), "--column", "patient_id=woman", "--column", "laterality=side"]
    assert main(["inspect", str(folder), *given, "--csv", str(table)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"next: mammo-pd preprocess {folder} --labels '{labels}' --column patient_id=woman "
        "--column laterality=side"
    )
    with table.open() as opened:
        rows = {(row["table"], row["name"]): row["value"] for row in csv.DictReader(opened)}
    assert rows["Files", "of these, preprocess would decode"] == "2"
    assert rows["Files", "rows of the label table that name none of them"] == "0"
    assert rows["What preprocess would leave out", "not_in_label_table / excluded"] == "1"
    assert rows["Views of usable images", "R CC"] == "1"
    assert rows["Patients and exams", "patients"] == "1"
    assert rows["Transfer syntaxes and formats", "PNG, not DICOM"] == "2"
    assert rows["What preprocess would take", "size of the store, all levels"].endswith("kB")
    for options, said in (
        (["--source", "mias"], "name it with --labels"),
        (["--column", "view=v"], "name it with --labels"),
        (["--labels", str(labels), "--column", "view"], "write NAME=COLUMN"),
        (["--labels", str(tmp_path / "none.csv")], "none.csv"),
    ):
        assert main(["inspect", str(folder), *options]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.corpus
def test_public_sets_of_pictures_are_forecast_as_they_are_preprocessed(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Their files, patients and views as the sets' own pages count them.
    table = tmp_path / "t.csv"
    for name, labels, usable, patients, mlo in (
        ("rsna_640", ["labels.csv"], "2319", "666", "602"),
        ("mias", ["labels.original", "--source", "mias"], "212", "106", "0"),
    ):
        folder = corpus / name
        given = ["--labels", str(folder / labels[0]), *labels[1:]]
        assert main(["inspect", str(folder), *given, "--csv", str(table)]) == 0
        capsys.readouterr()
        with table.open() as opened:
            rows = {(row["table"], row["name"]): row["value"] for row in csv.DictReader(opened)}
        assert rows["Files", "of these, preprocess would decode"] == usable
        assert rows["Patients and exams", "patients"] == patients
        assert rows["Views of usable images", "L MLO"] == mlo
