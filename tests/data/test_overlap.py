"""What two stores share: a copy of one, under other names and keys, is the store again."""

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from mammo_pd.data import overlap
from mammo_pd.data.image_file import SUFFIX
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.overlap import Overlap, find_overlap
from mammo_pd.data.store import StorePaths

SHAPE = ["crop_height", "crop_width", "breast_area_fraction"]


@pytest.fixture
def mine(phantom_store: Path) -> StorePaths:
    return StorePaths(phantom_store)


@pytest.fixture
def rows(mine: StorePaths) -> pd.DataFrame:
    return read_manifest(mine.manifest)


@pytest.fixture
def copy(mine: StorePaths, tmp_path: Path) -> StorePaths:
    """The store with each image under another name, too."""
    paths = StorePaths(tmp_path / "copy")
    shutil.copytree(mine.root, paths.root)
    for file in sorted(Path(paths.pixels).glob(f"*/*{SUFFIX}")):
        name = renamed(file.stem)
        (Path(paths.pixels) / name[:2]).mkdir(exist_ok=True)
        shutil.copy(file, Path(paths.pixels) / name[:2] / f"{name}{SUFFIX}")
    return paths


def renamed(image_id: str) -> str:
    return image_id[::-1]


def under_other_names(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(image_id=rows["image_id"].map(renamed), view="other")


def test_only_the_women_and_pictures_of_both_are_shared(
    mine: StorePaths, copy: StorePaths, rows: pd.DataFrame
) -> None:
    first = rows["patient_id"].isin(rows["patient_id"].unique()[:5])
    tested = under_other_names(rows)
    for part, women in ((rows, 12), (rows[first], 5)):
        assert find_overlap(mine, part, copy, tested) == Overlap(women, len(part), True)
        # Each picture of the tested ones counts once, however many are like it.
        twice = pd.concat([part, under_other_names(part)])
        assert find_overlap(copy, twice, mine, rows) == Overlap(women, len(part), True)
    assert find_overlap(mine, rows[~first], copy, tested[first]) == Overlap(0, 0, True)
    # Size and area do not make a picture: pixels do.
    alike = rows[SHAPE].iloc[[0] * len(rows)].set_axis(rows.index)
    found = find_overlap(mine, rows[first].assign(**alike), copy, tested.assign(**alike))
    assert found == Overlap(5, int(first.sum()), True)


def test_what_is_not_known_is_not_shared(
    mine: StorePaths, copy: StorePaths, rows: pd.DataFrame
) -> None:
    unknown = rows.index < 7
    part = rows.assign(patient_id=rows["patient_id"].mask(unknown))
    part["breast_area_fraction"] = part["breast_area_fraction"].mask(unknown)
    expected = Overlap(part["patient_id"].nunique(), len(rows) - 7, True)
    assert find_overlap(mine, part, copy, under_other_names(part)) == expected
    name = renamed(rows["image_id"].iloc[-1])
    (Path(copy.pixels) / name[:2] / f"{name}{SUFFIX}").unlink()
    found = find_overlap(mine, rows, copy, under_other_names(rows))
    assert found == Overlap(12, len(rows) - 1, True)


def test_keys_are_compared_where_both_are_there(
    mine: StorePaths, copy: StorePaths, rows: pd.DataFrame
) -> None:
    tested = under_other_names(rows)
    strangers = tested.assign(patient_id="other")
    (copy.private / "key").write_bytes(b"another")
    found = find_overlap(mine, rows, copy, strangers)
    assert found == Overlap(0, len(rows), False)
    assert "have different keys" in found.sentence()
    (copy.private / "key").unlink()
    for stores in ((mine, rows, copy, strangers), (copy, strangers, mine, rows)):
        found = find_overlap(*stores)
        assert found == Overlap(0, len(rows), None)
        assert "do not both include the key" in found.sentence()
    # IDs that agree nonetheless, as those of a data set that has none of its own to hide.
    assert "of the patient IDs 12 are in both" in find_overlap(mine, rows, copy, tested).sentence()


@pytest.mark.parametrize(
    ("kept", "read"),
    [
        ([("native", "512"), ("1024", "512")], "512"),
        ([("native", "2048", "512"), ("native", "2048")], "native"),
        ([("2048", "512"), ("2048", "1024", "512")], "2048"),
        ([("4096", "2048"), ("native",)], "native"),  # in the place of a level that is larger
        ([("1024",), ("512",)], None),
    ],
)
def test_the_largest_level_that_both_keep_is_read(
    kept: list[tuple[str, ...]], read: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [StorePaths(Path(name)) for name in ("development", "external")]
    levels: list[str] = []

    def note(paths: StorePaths, image_id: str, level: str) -> npt.NDArray[np.uint16]:
        levels.append(level)
        return np.zeros((3, 2), np.uint16)

    monkeypatch.setattr(overlap, "read_pyramid_level", note)
    monkeypatch.setattr(overlap, "kept_levels", lambda paths: kept[stores.index(paths)])
    rows = pd.DataFrame({"image_id": ["a", "b", "c"], "patient_id": ["x", "y", "z"]})
    rows[SHAPE] = 3000, 1500, 0.4
    # The two that are alike are one picture, which need not be read twice.
    found = find_overlap(stores[0], rows[:2], stores[1], rows[2:])
    assert levels == ([] if read is None else [read, read])
    assert found.images == len(levels) / 2
