from pathlib import Path

import pytest

from mammo_pd.data.sources import SOURCES
from mammo_pd.data.sources.recognise import _PATHS, _TABLES, recognise

# Paths as the sets' authors and readers write them.
NAMES = {
    "rsna": ["train_images/10006/462822612.dcm", "train_images/10006/1459541791.dcm"],
    "vindr-mammo": [
        f"images/{'4e3a578fe535ea4f5258d3f7f4419db8'}/{'dbca9d28baa3207b3187c4d07dc81a80'}.dicom"
    ],
    "cbis-ddsm": [
        "CBIS-DDSM/Mass-Training_P_00001_LEFT_CC/1.3.6.1/1-1.dcm",
        "CBIS-DDSM/Calc-Test_P_00038_LEFT_CC/08-29/1-1.dcm",
    ],
    "cmmd": ["CMMD/D1-0001/07-18-2010-NA-NA-79377/1.000000-NA-70244/1-1.dcm"],
    "inbreast": ["AllDICOMs/20586908_6c613a14b80a8591_MG_R_CC_ANON.dcm"],
    "embed": ["images/cohort_1/10000048/1.2.3/1.2.4/1.2.5.dcm"],
    "csaw-cc": ["CsawCC/00001_20990909_L_CC_1.dcm"],
    "mias": ["all-mias/mdb001.pgm", "all-mias/mdb322.pgm"],
}


def test_every_set_is_recognised_and_no_other() -> None:
    assert {*_PATHS} == {*_TABLES} == {*NAMES} <= {*SOURCES}
    root = Path("/data/set")
    for source, names in NAMES.items():
        found = recognise(root, [root / name for name in names])
        assert found is not None
        assert (found.source, found.named, found.table) == (source, len(names), None)
        matching = [
            name for name, pattern in _PATHS.items() if any(pattern.search(path) for path in names)
        ]
        assert matching == [source]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["PHANTOM0001/20000101/L_CC.dcm"],
        ["1.2.840.113619.2.55/1.2.3.dcm", "IM0001", "Doe^Jane/MG/1.dcm"],
        ["train_images/10006/462822612.dcm", "a.dcm", "b.dcm"],
    ],
)
def test_a_hospitals_archive_is_none_of_them(names: list[str]) -> None:
    root = Path("/data/archive")
    assert recognise(root, [root / name for name in names]) is None


def test_table_beside_the_images_is_found(tmp_path: Path) -> None:
    images = tmp_path / "train_images"
    (tmp_path / "train.csv").touch()
    found = recognise(images, [images / "10006" / "462822612.dcm"])
    assert found is not None
    assert found.table == tmp_path / "train.csv"
    (tmp_path / "EMBED_OpenData_clinical.csv").touch()
    found = recognise(tmp_path, [tmp_path / "images/cohort_1/10000048/1.dcm"])
    assert found is not None
    assert found.table == tmp_path
