"""Which files of a folder may be images, judged by the name and by the first bytes."""

import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path

from mammo_pd.errors import InputError
from mammo_pd.files import each_file
from mammo_pd.imaging.raster import RASTER_SUFFIXES
from mammo_pd.wording import counted

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
# Archives keep these beside images; they begin as DICOM files do and hold none.
_NEVER_IMAGES = frozenset({"DICOMDIR"})
# How a dataset without a preamble begins: the first group of a file, or of an image.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")


class PassedOver(StrEnum):
    """Why a file is not taken for an image, in words."""

    OTHER = "of another kind"
    NO_ENDING = "without an ending and not DICOM inside"
    HIDDEN = "hidden (its name begins with a dot)"
    INDEX = "an index of images (DICOMDIR)"
    UNREADABLE = "that cannot be opened"
    NO_FILE = "no file but a pipe, socket or device"


@dataclass(frozen=True)
class FoundFiles:
    """What a folder holds.

    Attributes:
        images: files that may be images, sorted by folder and name, those of linked folders last.
        passed_over: how many files are none, by reason.
        unreadable_folders: how many folders could not be listed.
        repeated_folders: how many linked folders were not read, since they are read already or
            lead back to where they lie.
    """

    images: list[Path]
    passed_over: Mapping[PassedOver, int] = field(default_factory=dict)
    unreadable_folders: int = 0
    repeated_folders: int = 0

    @property
    def other(self) -> int:
        """How many files are no images."""
        return sum(self.passed_over.values())


def find_images(folder: Path) -> FoundFiles:
    """Find every file under a folder that may be an image; linked folders are followed once.

    Raises:
        InputError: it is not a folder, or holds no images.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that holds the mammograms.")
    closed: list[OSError] = []
    repeated: list[Path] = []
    images: list[Path] = []
    passed_over: Counter[PassedOver] = Counter()
    for path in each_file(folder, closed.append, repeated.append):
        reason = why_no_image(path)
        if reason is None:
            images.append(path)
        else:
            passed_over[reason] += 1
    if not images:
        reasons = ", ".join(f"{count} {reason}" for reason, count in passed_over.most_common())
        raise InputError(
            f"{folder} holds no images (DICOM by suffix or first bytes, PNG, PGM, TIFF, JPEG) "
            f"among {counted(passed_over.total(), 'file')}"
            + (f" ({reasons})" if reasons else "")
            + (f", and {counted(len(closed), 'folder')} in it cannot be listed" if closed else "")
            + "; give the folder that holds the mammograms."
        )
    return FoundFiles(images, dict(passed_over), len(closed), len(repeated))


def some_images(folder: Path, most: int) -> list[Path]:
    """The first images of a folder, in the order of ``find_images``, without looking at all of it.

    Args:
        folder: to look through; nothing is found in what is no folder.
        most: how many, at most; of other files no more than ten times as many are passed over.
    """
    found: list[Path] = []
    for path in islice(each_file(folder, lambda _: None), 10 * most):
        if why_no_image(path) is None:
            found.append(path)
        if len(found) == most:
            break
    return found


def why_no_image(path: Path) -> PassedOver | None:
    """Why a file cannot hold an image, without parsing it; None if it may.

    Known suffixes count by name; any other file must have ``DICM`` at byte 128, or begin as a
    dataset without that preamble does.

    Source: DICOM PS3.10 7.1.
    """
    if path.name.startswith("."):
        return PassedOver.HIDDEN
    if path.name.upper() in _NEVER_IMAGES:
        return PassedOver.INDEX
    suffix = path.suffix.lower()
    is_named = suffix in DICOM_SUFFIXES or suffix in RASTER_SUFFIXES
    try:
        # Opening a pipe would wait for someone to write to it.
        if not stat.S_ISREG(path.stat().st_mode):
            return PassedOver.NO_FILE
        if is_named:
            return None
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        # An image that cannot be read is recorded with its reason, as any image is.
        return None if is_named else PassedOver.UNREADABLE
    if head[128:] == b"DICM" or _is_bare_dataset(head):
        return None
    # UIDs are file names, too; what follows their last dot is a number.
    has_ending = suffix and not suffix[1:].isdigit()
    return PassedOver.OTHER if has_ending else PassedOver.NO_ENDING


def _is_bare_dataset(head: bytes) -> bool:
    """Whether a file begins as a little-endian dataset: a low group, then a VR or a short length.

    Source: DICOM PS3.5 7.1.
    """
    if len(head) < 132 or head[:2] not in _FIRST_GROUPS:
        return False
    is_explicit = head[4:6].isalpha() and head[4:6].isupper()
    return is_explicit or int.from_bytes(head[4:8], "little") < len(head)
