"""The names of images: keyed hashes of what identifies them."""

from collections.abc import Mapping
from pathlib import Path

from mammo_pd.data.record import Hasher


def image_name(
    source: Path, folder: Path, identifiers: Mapping[str, str], frame: int | None, hasher: Hasher
) -> str:
    """The image_id of an image, unless another has that name.

    Args:
        source: the file.
        folder: that was given, within which the file lies.
        identifiers: the image's original ones.
        frame: its number, from 1, if the frames of the file are images of their own.
        hasher: of the record.
    """
    name = identifiers.get("sop_instance_uid") or f"file:{source.relative_to(folder).as_posix()}"
    return hasher.hash("image", name + frame_suffix(frame))


def name_by_path(source: Path, frame: int | None, hasher: Hasher) -> str:
    """The image_id of an image whose name another has."""
    return hasher.hash("image", f"file:{source}{frame_suffix(frame)}")


def frame_suffix(frame: int | None) -> str:
    """What tells the frames of one file apart in a name."""
    # Neither a UID nor a number contains "#", so no frame gets the name of another file's image.
    return "" if frame is None else f"#{frame}"
