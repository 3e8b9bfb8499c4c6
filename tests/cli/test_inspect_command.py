"""``mammo-pd inspect`` as a user runs it."""

import csv
from pathlib import Path

import pytest

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
    assert rows["Files", "of them that preprocess would decode"] == "48"
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
