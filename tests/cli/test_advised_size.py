"""The size that a next command names is one that the images have, and that train takes."""

import re
from pathlib import Path

import pytest
from dicom_files import half_disk, make_dataset, write_dicom
from PIL import Image
from typed_commands import next_command

from mammo_pd.cli.app import main
from mammo_pd.config import resolve_img_size
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.store import open_store

# By the shape of the largest image, whose breast is 0.8 of its height.
SHAPES = [(640, 640), (300, 220), (1000, 700), (1279, 900), (1290, 900), (40, 30), (500, 1600)]


@pytest.mark.parametrize("suffix", ["dcm", "png"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_are_as_large_as_the_size_that_is_advised(
    shape: tuple[int, int],
    suffix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("images")
    folder.mkdir()
    lines = ["path,patient_id,label"]
    for number in range(6):
        pixels = half_disk((shape[0] - number, shape[1]))
        file = folder / f"{number}.{suffix}"
        if suffix == "png":
            Image.fromarray(pixels).save(file)
        else:
            uids = {"SOPInstanceUID": f"1.2.{number}", "StudyInstanceUID": f"1.3.{number}"}
            write_dicom(file, make_dataset(pixels, PatientID=f"{number}", **uids))
        lines.append(f"{file.name},woman {number},{number % 2}")
    Path("labels.csv").write_text("\n".join(lines))
    # All of these name the size, and nothing but the images decides it.
    advised = set()
    for words in (
        ["preprocess", "images", "--labels", "labels.csv"],
        ["split", "--folds", "3", "--name", "three"],
        ["forget", "--missing"],
    ):
        assert main(words) == 0
        found = re.search(r"--res (\S+) --keep", next_command(capsys))
        assert found is not None
        advised.add(int(found[1]))
    (res,) = advised
    rows = read_manifest(open_store(Path("store")).manifest)
    longest = int(rows[["crop_height", "crop_width"]].to_numpy().max())
    assert resolve_img_size(res, 16, (longest, longest))[0] == res
    assert res == 1024 if longest >= 1024 else max(16, longest - 15) <= res <= max(16, longest)
