"""Which files of a folder may be images: a cheap look at the name, and at byte 128."""

from pathlib import Path

from mammo_pd.imaging.raster import RASTER_SUFFIXES

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
# Names that carry DICM where they are images, and that archives keep beside images where not.
_NEVER_IMAGES = frozenset({"DICOMDIR"})


def looks_like_image(path: Path) -> bool:
    """Say whether a file may hold an image, without parsing it.

    Known endings are taken by name; any other file by ``DICM`` at byte 128.

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
