import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import half_disk, make_dataset, write_dicom
from pydicom.dataset import Dataset
from typed_commands import next_command

from mammo_pd.cli.app import main
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.sources import SOURCES
from mammo_pd.data.store import open_store, read_pyramid_level


def test_next_command_of_preprocess_can_be_typed(
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where the settings are not the default ones, which the store would refuse to change."""
    monkeypatch.chdir(tmp_path)
    given = ["--frames", "each", "--voi", "raw", "--out", "other store"]
    assert main(["preprocess", str(phantoms), *given]) == 0
    command = next_command(capsys).split("   (")[0]
    assert command == (
        f"mammo-pd preprocess {phantoms} --out 'other store' --frames each --voi raw "
        "--labels TABLE.csv"
    )
    words = ["preprocess", str(phantoms), *given, "--labels", str(phantoms / "labels.csv")]
    assert main(words) == 0
    assert next_command(capsys).startswith("mammo-pd train --store 'other store' --res 224")


def pixel_files(store: Path) -> dict[Path, tuple[int, int]]:
    """Each image's file, and what tells whether it was written anew."""
    found = {}
    for file in (store / "pixels").rglob("*"):
        if file.is_file():
            status = file.stat()
            found[file] = status.st_ino, status.st_mtime_ns
    return found


def test_pixels_are_said_to_be_written_only_where_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many as there are files that changed, whatever made the run write them."""
    folder, store = tmp_path / "dicom", tmp_path / "store"
    folder.mkdir()

    def one_more() -> None:
        number = len(list(folder.iterdir()))
        dataset = make_dataset(half_disk((900 + number, 500)), SOPInstanceUID=f"1.2.{number}")
        write_dicom(folder / f"{number}.dcm", dataset)

    for _ in range(3):
        one_more()

    def lose_one() -> None:
        next(iter(pixel_files(store))).unlink()

    def damage_one() -> None:
        file = next(iter(pixel_files(store)))
        content = bytearray(file.read_bytes())
        content[-100] ^= 255
        file.write_bytes(content)

    table = tmp_path / "labels.csv"
    table.write_text("path,label\n0.dcm,1\n1.dcm,0\n")
    steps: list[tuple[Callable[[], None] | None, list[str], int]] = [
        (None, ["--levels", "1024"], 3),
        (None, [], 0),
        (None, ["--labels", str(table)], 0),
        (one_more, [], 1),
        (None, ["--levels", "512"], 4),
        (lose_one, [], 1),
        (damage_one, ["--verify"], 1),
        (None, ["--contact-sheet", str(tmp_path / "crops.png")], 4),
        (None, [], 0),
    ]
    for happens, options, changed in steps:
        if happens is not None:
            happens()
        before = pixel_files(store)
        assert main(["preprocess", str(folder), "--out", str(store), *options]) == 0
        said = next(
            line for line in capsys.readouterr().out.splitlines() if "manifest.parquet" in line
        )
        written = sum(before.get(file) != now for file, now in pixel_files(store).items())
        assert (written, sum(map(int, re.findall(" of ([0-9]+) image", said)))) == (
            changed,
            changed,
        ), (options, said)
        assert ("all pixels were there already" in said) == (changed == 0)


def test_positive_takes_several_values(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["--labels", str(phantoms / "labels.csv"), "--label-column", "view"]
    out = ["--out", str(tmp_path / "s")]
    assert main(["preprocess", str(phantoms), *labels, "--positive", "CC", "MLO", *out]) == 0
    assert "48 of 48 usable images have a label; 48 of them are positive" in capsys.readouterr().out
    words = ["preprocess", str(phantoms), *labels, "--positive", "CC", *out]
    assert main(words) == 2
    assert "removes the label of 0 and reverses it for 24" in capsys.readouterr().err
    assert main([*words, "--replace-labels"]) == 0
    printed = capsys.readouterr().out
    assert "24 of them are positive" in printed
    assert "0 images lost their label, 24 changed it" in printed


@pytest.mark.parametrize("command", ["preprocess", "inspect"])
def test_help_names_every_format(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "DICOM files, or of PNG, PGM, TIFF and JPEG files" in printed


def test_help_names_every_public_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preprocess", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert all(name in printed for name in SOURCES)


@pytest.mark.parametrize(
    ("patients", "warned"),
    [
        ([f"P{number}" for number in range(6)], "every one of the 6 patients has just one"),
        ([f"P{number // 2}" for number in range(6)], None),
        ([f"Mass_P_{number // 2}_LEFT_{'CC' if number % 2 else 'MLO'}" for number in range(6)],
         "every one of the 6"),
        (["A_L_CC", "A_L_CC", "B-RMLO", "B-RMLO", "C_RIGHT_CC", "C_RIGHT_CC"],
         "6 of 6 patient IDs name a side and a view"),
    ],
)  # fmt: skip
def test_patient_ids_that_are_none_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], patients: list[str], warned: str | None
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for number, patient in enumerate(patients):
        pixels = half_disk() + np.uint16(number)
        dataset = make_dataset(pixels, PatientID=patient, SOPInstanceUID=f"1.2.{number + 1}")
        dataset.StudyInstanceUID = f"1.3.{number + 1}"
        write_dicom(folder / f"{number}.dcm", dataset)
    assert main(["preprocess", str(folder), "--out", str(tmp_path / "s"), "--workers", "1"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert (warned in printed) if warned else ("both sides of a split" not in printed)


def test_two_films_on_one_image_are_kept_whole_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = np.maximum(half_disk((480, 320)), 20)
    two = np.hstack([one, np.zeros((480, 40), np.uint16), one[:, ::-1]])
    folder = tmp_path / "d"
    folder.mkdir()
    for number, pixels in enumerate((one, two)):
        tags = {"ImageLaterality": "L", "SOPInstanceUID": f"1.2.{number + 1}"}
        write_dicom(folder / f"{number}.dcm", make_dataset(pixels, **tags))
    out = tmp_path / "s"
    assert main(["preprocess", str(folder), "--out", str(out), "--workers", "1"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "warning: in 1 of 2 usable images there is a second breast beside the first" in printed
    assert "breast and background cannot be separated" not in printed
    rows = read_manifest(out / "manifest.parquet").set_index("breast_verdict")
    assert set(rows.index) == {"ok", "two_breasts"}
    pair = rows.loc["two_breasts"]
    assert (pair["crop_top"], pair["crop_left"]) == (0, 0)
    assert (pair["crop_height"], pair["crop_width"]) == two.shape
    native = read_pyramid_level(open_store(out), pair["image_id"], "native")
    np.testing.assert_allclose(native, two / 4095 * 65535, atol=1)


def test_a_modality_lut_that_turns_back_fails_with_its_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for number, turn in enumerate((4096, 1500)):
        pixels = half_disk((480, 320))
        entries = turn - np.abs(np.arange(4096) - turn)
        table = Dataset()
        table.LUTDescriptor = [4096, 0, 16]
        table.LUTData = (entries - entries.min()).astype("<u2").tobytes()
        tags = {"ModalityLUTSequence": [table], "SOPInstanceUID": f"1.2.{number + 1}"}
        write_dicom(folder / f"{number}.dcm", make_dataset(pixels, **tags))
    out = tmp_path / "s"
    assert main(["preprocess", str(folder), "--out", str(out), "--workers", "1"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 failed header_contradicts_pixels such as" in printed
    rows = read_manifest(out / "manifest.parquet", status=None)
    assert sorted(rows["status"]) == ["failed", "ok"]
    (detail,) = rows.loc[rows["status"] == "failed", "detail"]
    assert detail in printed and "Modality LUT Sequence both rises and falls" in detail
