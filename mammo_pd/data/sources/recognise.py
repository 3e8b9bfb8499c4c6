"""Which public data set a folder looks like, by the names of files and folders, and its table.

A guess for people, who confirm it with --source; nothing is read differently because of it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# How a file's path ends, with forward slashes, as the set is downloaded.
_PATHS: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        # train_images/10006/462822612.dcm
        "rsna": r"(?:train|test)_images(?:[/_]\d{1,6})[/_]\d{6,10}\.\w+$",
        # images/STUDY/IMAGE.dicom, both of 32 hexadecimal digits
        "vindr-mammo": r"(?:^|/)[0-9a-f]{32}/[0-9a-f]{32}\.dicom$",
        # Mass-Training_P_00001_LEFT_CC/…
        "cbis-ddsm": r"(?:calc|mass)-(?:training|test)_P_\d{5}_(?:LEFT|RIGHT)_(?:CC|MLO)",
        # D1-0001/…
        "cmmd": r"(?:^|/)D[12]-\d{4}/",
        # 20586908_6c613a14b80a8591_MG_R_CC_ANON.dcm
        "inbreast": r"(?:^|/)\d{8}_[0-9a-f]{16}_MG_[LR]_\w+_ANON\.\w+$",
        # images/cohort_1/10000048/…
        "embed": r"(?:^|/)cohort_\d+/\d+/",
        # 00001_20990909_L_CC_1.dcm
        "csaw-cc": r"(?:^|/)\d{5}_2099\d{4}_[LR]_(?:CC|MLO)_\d+\.\w+$",
        # mdb001.pgm
        "mias": r"(?:^|/)mdb\d{3}(?:[a-z]{2})?\.\w+$",
    }.items()
}
# Names of the sets' own tables; of sets with several, the folder of all of them is given.
_TABLES: dict[str, tuple[str, ...]] = {
    "rsna": ("train.csv",),
    "vindr-mammo": ("breast-level_annotations.csv",),
    "cbis-ddsm": ("mass_case_description_train_set.csv",),
    "cmmd": ("CMMD_clinicaldata_revision.xlsx", "CMMD_clinicaldata_revision.csv"),
    "inbreast": ("INbreast.csv",),
    "embed": ("EMBED_OpenData_clinical.csv",),
    "csaw-cc": ("CSAW-CC_breast_cancer_screening_data.csv",),
    "mias": ("labels.original", "Info.txt"),
}
_OF_FOLDERS = frozenset({"cbis-ddsm", "embed"})
# Of the files, those that must be named so.
_MOST = 0.5


@dataclass(frozen=True)
class Recognised:
    """What a folder looks like.

    Attributes:
        source: the set's name, as of --source.
        named: how many of the files that were looked at are named as its files are.
        of: how many files were looked at.
        table: its own table, or the folder of its tables, if one lies in the folder or beside it.
    """

    source: str
    named: int
    of: int
    table: Path | None


def recognise(folder: Path, files: Iterable[Path]) -> Recognised | None:
    """Guess which public set a folder holds.

    Args:
        folder: of images.
        files: some of them.

    Returns:
        The set after which most of the files are named; None if there is none.
    """
    # From the folder's own name on, since a user may give one of the set's.
    paths = [file.relative_to(folder.parent).as_posix() for file in files]
    counts = {
        name: sum(pattern.search(path) is not None for path in paths)
        for name, pattern in _PATHS.items()
    }
    source, named = max(counts.items(), key=lambda entry: entry[1])
    if not paths or named <= _MOST * len(paths):
        return None
    return Recognised(source, named, len(paths), _find_table(source, folder))


def _find_table(source: str, folder: Path) -> Path | None:
    for place in (folder, folder.parent, folder.parent.parent):
        for name in _TABLES[source]:
            if (place / name).is_file():
                return place if source in _OF_FOLDERS else place / name
    return None
