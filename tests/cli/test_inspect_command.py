"""``mammo-pd inspect`` as a user runs it."""

import csv
from pathlib import Path

import numpy as np
import pytest
from dicom_files import make_dataset, write_dicom
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
    assert "next: mammo-pd preprocess" in capsys.readouterr().out.splitlines()[-1]
