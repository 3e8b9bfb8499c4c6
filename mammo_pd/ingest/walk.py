"""Which files of a folder may be images, judged by the name and by byte 128."""

from dataclasses import dataclass
from pathlib import Path

from mammo_pd.errors import InputError
from mammo_pd.files import each_file
from mammo_pd.imaging.raster import RASTER_SUFFIXES

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
# Archives keep these beside images; they begin as DICOM files do and hold none.
_NEVER_IMAGES = frozenset({"DICOMDIR"})


@dataclass(frozen=True)
class FoundFiles:
    """What a folder holds.

    Attributes:
        images: files that may be images, sorted by path.
        other: how many files are none.
        unreadable_folders: how many folders could not be listed.
    """

    images: list[Path]
    other: int
    unreadable_folders: int


def find_images(folder: Path) -> FoundFiles:
    """Find every file under a folder that may be an image.

    Raises:
        InputError: it is not a folder, or holds no images.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that holds the mammograms.")
    closed: list[OSError] = []
    images, other = [], 0
    for path in each_file(folder, closed.append):
        if looks_like_image(path):
            images.append(path)
        else:
            other += 1
    if not images:
        raise InputError(
            f"{folder} holds no images (DICOM by suffix or preamble, PNG, PGM, TIFF, JPEG) among "
            f"{other} files; give the folder that holds the mammograms."
        )
    return FoundFiles(images, other, len(closed))


def looks_like_image(path: Path) -> bool:
    """Say whether a file may hold an image, without parsing it.

    Known suffixes count by name; any other file must have ``DICM`` at byte 128.

    Source: DICOM PS3.10 7.1.
    """
    if path.name.upper() in _NEVER_IMAGES or path.name.startswith("."):
        return False
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES or suffix in RASTER_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            file.seek(128)
            return file.read(4) == b"DICM"
    except OSError:
        return False
