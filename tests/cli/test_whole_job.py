import re
from pathlib import Path

import pandas as pd
import pydicom
import pytest
from blank_figures import figures_left_blank
from typed_commands import next_command

from mammo_pd.cli.app import main


def test_whole_job_by_the_three_commands(
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each command names what it wrote and the next command, which is then typed."""
    monkeypatch.chdir(tmp_path)
    assert main(["preprocess", str(phantoms), "--labels", str(phantoms / "labels.csv")]) == 0
    assert next_command(capsys) == "mammo-pd train --res 224 --keep 0.25"
    small = "--res 128 --keep 0.25 --model vit_tiny_patch16_224 --epochs 1 --batch-size 8"
    assert main(["train", *small.split(), "--set", "data.workers=1"]) == 0
    command = next_command(capsys)
    assert command.startswith("mammo-pd evaluate runs/")
    assert main(command.split()[1:]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch("next: mammo-pd predict runs/[^ ]+ DICOM_DIR", printed[-1])
    report = printed[-2].removeprefix("look at: ")
    assert Path(report).is_file()
    page = Path(report).read_text()
    assert "phantom" in page.lower()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "store"]
    # A run is found by its ID, too, and wherever one is typed; the report may go elsewhere.
    run = next((tmp_path / "runs").glob("2*"))
    by_id = [
        "evaluate",
        run.name,
        "--out",
        "elsewhere",
        "--checkpoint",
        "last",
    ]
    with figures_left_blank():
        assert main(by_id) == 0
    assert run.name in (tmp_path / "elsewhere" / "index.html").read_text()
    # Nothing but the owner's own folder holds what went in: no name, identifier or path.
    table = pd.read_csv(phantoms / "labels.csv", dtype=str)
    columns = ("patient_id", "sop_instance_uid", "exam_id", "path")
    forbidden = {value for name in columns for value in table[name]} | {"PHANTOM^"}
    for file in tmp_path.rglob("*"):
        if file.is_file() and "private" not in file.relative_to(tmp_path).parts:
            content = file.read_bytes()
            if file.suffix == ".parquet":
                content = pd.read_parquet(file).to_csv().encode()
            assert not [value for value in forbidden if value.encode() in content], file


def test_nothing_printed_holds_an_identifier(
    phantoms: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is printed ends in a cluster's log; file names are often a UID or a name."""
    folder = tmp_path / "archive"
    folder.mkdir()
    woman = sorted(phantoms.glob("PHANTOM*"))[0]
    forbidden = {"Jane_Doe"}
    for number, file in enumerate(sorted(woman.rglob("*.dcm"))):
        dataset = pydicom.dcmread(file)
        forbidden |= {str(dataset.PatientID), str(dataset.PatientName), dataset.SOPInstanceUID}
        if number == 0:
            # Too long for their kind, of which pydicom warns.
            dataset.AccessionNumber = dataset.StudyID = "Jane_Doe, born in 1950, of this address"
        dataset.save_as(folder / f"{dataset.SOPInstanceUID}.dcm")
    content = next(folder.glob("*.dcm")).read_bytes()
    (folder / "Jane_Doe.dcm").write_bytes(content[: len(content) // 2])
    (folder / "Jane_Doe_2.dcm").write_bytes(content)
    assert main(["preprocess", str(folder), "--out", str(tmp_path / "s")]) == 0
    printed = capfd.readouterr()
    assert "duplicate_image" in printed.out
    assert "failed" in printed.out
    assert not [value for value in forbidden if value in printed.out + printed.err]


def test_default_places_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MAMMO_PD_STORE", str(tmp_path / "here"))
    monkeypatch.setenv("MAMMO_PD_RUNS", str(tmp_path / "there"))
    for command, place in (("split", "here"), ("train", "here"), ("evaluate", "there")):
        assert main([command]) == 2
        assert str(tmp_path / place) in capsys.readouterr().err
    # What is typed wins.
    assert main(["split", str(tmp_path / "typed")]) == 2
    assert str(tmp_path / "typed") in capsys.readouterr().err
