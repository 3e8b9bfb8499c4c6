"""The store: where its files lie, what it was made with, and its pixels as pyramid levels.

    store/
      store.json            the settings that made the pixels, their fingerprint, the levels kept
      manifest.parquet      one row per image found
      pixels/ab/abcd…/      native.npy, 4096.npy, 2048.npy, …: uint16, chest wall on the left
      splits/               NAME.csv and NAME.json
      private/              owner only, see `record`: the key of the hashes and the original files

Paths and original identifiers are in ``private/`` and nowhere else: leave that folder out when you
hand a store on. A level is named by its long side in pixels, or ``native``; an image has the levels
smaller than its native size, or those of them that the store keeps (`kept_levels`).
"""

import hashlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mammo_pd.errors import InputError
from mammo_pd.files import sync_folder, write_text
from mammo_pd.terms import PYRAMID_LONG_SIDES

FORMAT = 1

# Bytes of a level read at once to sum them up.
_CHUNK = 2**20


@dataclass(frozen=True)
class StorePaths:
    """The paths of everything in a store."""

    root: Path

    @property
    def manifest(self) -> Path:
        """One row per image found."""
        return self.root / "manifest.parquet"

    @property
    def info(self) -> Path:
        """The file that says what the store was made with."""
        return self.root / "store.json"

    @property
    def splits(self) -> Path:
        """The folder of splits."""
        return self.root / "splits"

    @property
    def private(self) -> Path:
        """The owner-only folder."""
        return self.root / "private"

    @property
    def partial(self) -> Path:
        """Where workers write an image before it is moved to its place."""
        return self.root / "pixels" / ".partial"

    @cached_property
    def pixels(self) -> str:
        """The folder of all images."""
        return str(self.root / "pixels")

    def image(self, image_id: str) -> Path:
        """The folder of one image's levels."""
        return self.root / "pixels" / image_id[:2] / image_id

    def thumbnail(self, image_id: str) -> Path:
        """The whole frame of one image, small: it can show a burned-in name, so owner only."""
        return self.private / "thumbnails" / image_id[:2] / f"{image_id}.npy"


def open_store(root: Path) -> StorePaths:
    """Open an existing store.

    Raises:
        InputError: there is none.
    """
    paths = StorePaths(root)
    if not paths.info.is_file():
        raise InputError(
            f"there is no store at {root}; make it with: mammo-pd preprocess DICOM_DIR --out {root}"
            " (or name another with --store or the environment variable MAMMO_PD_STORE)"
        )
    return paths


def read_store_info(paths: StorePaths) -> dict[str, Any]:
    """Read what the store was made with: ``format``, ``settings``, ``fingerprint``, ``labels``.

    Raises:
        InputError: it cannot be read, or has another format.
    """
    try:
        info: dict[str, Any] = json.loads(paths.info.read_text(encoding="utf-8"))
        found = info["format"]
        if not isinstance(info["settings"], dict) or not isinstance(info["fingerprint"], str):
            raise TypeError("settings or fingerprint are damaged")
        info.get("labels", {}).get("definition")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{paths.info} is damaged ({error!r}); restore it from a copy, or make the store again "
            f"with another --out and --key {paths.private / 'key'}, by which every image gets its "
            "name again."
        ) from error
    if found != FORMAT:
        raise InputError(
            f"{paths.root} has store format {found}, and this version reads {FORMAT}; make it "
            "again with: mammo-pd preprocess DICOM_DIR --out ANOTHER"
        )
    return info


def fingerprint_of(settings: Mapping[str, Any]) -> str:
    """A short hash of every setting that affects the pixels."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def create_or_match(root: Path, settings: Mapping[str, Any]) -> StorePaths:
    """Create a store, or open one that was made with the same settings.

    Raises:
        InputError: the folder holds something else, or a store made with other settings.
    """
    paths = StorePaths(root)
    if paths.info.is_file():
        made_with = read_store_info(paths)
        wanted = fingerprint_of(settings)
        if made_with["fingerprint"] != wanted:
            before = made_with["settings"]
            changed = [
                f"{name} was {before.get(name)!r}, is {settings.get(name)!r}"
                for name in sorted({*before, *settings})
                if before.get(name) != settings.get(name)
            ]
            raise InputError(
                f"the store {root} was made with other settings ({'; '.join(changed)}: "
                f"fingerprint {made_with['fingerprint']}, now {wanted}), and one store never mixes "
                "two; use the same settings, or another --out."
            )
        return paths
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(
            f"{root} exists and is not a mammo-pd store; name a new or empty folder with --out."
        )
    root.mkdir(parents=True, exist_ok=True)
    write_store_info(paths, {"settings": dict(settings), "fingerprint": fingerprint_of(settings)})
    return paths


def write_store_info(paths: StorePaths, info: Mapping[str, Any]) -> None:
    """Write what the store was made with."""
    write_text(paths.info, json.dumps({"format": FORMAT, **info}, indent=2) + "\n")


def write_pyramid(folder: Path, levels: Mapping[str, npt.NDArray[np.uint16]]) -> dict[str, int]:
    """Write the pyramid of one image, each level as (height, width) uint16 in ``NAME.npy``.

    Returns:
        The checksum of each level's file, by which `is_damaged` finds what a disk got wrong.
    """
    folder.mkdir(parents=True)
    checksums = {
        name: write_array(folder / f"{name}.npy", pixels) for name, pixels in levels.items()
    }
    sync_folder(folder)
    return checksums


def write_array(file: Path, array: npt.NDArray[Any]) -> int:
    """Write an array as ``numpy.save`` does, and wait until it is on the disk.

    Without that wait a power cut could leave a file of the right size and of zeros, which the
    record, written later, says to be done.

    Returns:
        The CRC-32 of the file.
    """
    array = np.ascontiguousarray(array)
    with file.open("wb") as stream:
        stream.write(_array_header(array))
        stream.write(array.data)
        stream.flush()
        os.fsync(stream.fileno())
    return array_checksum(array)


def array_checksum(array: npt.NDArray[Any]) -> int:
    """The CRC-32 of the file that `write_array` makes of an array."""
    array = np.ascontiguousarray(array)
    return zlib.crc32(array.data, zlib.crc32(_array_header(array)))


def is_damaged(file: Path, checksum: int) -> bool:
    """Whether a level is missing, cannot be read, or no longer has its checksum."""
    found = 0
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                found = zlib.crc32(chunk, found)
    except OSError:  # a bad sector, too
        return True
    return found != checksum


def take_in(paths: StorePaths, partial: Path, image_id: str) -> None:
    """Move a finished image from where a worker wrote it to its place; an older one is replaced."""
    place = paths.image(image_id)
    if not place.parent.is_dir():
        place.parent.mkdir(parents=True)
        sync_folder(place.parent.parent)
    if place.exists():
        shutil.rmtree(place)
    partial.rename(place)
    sync_folder(place.parent)


def put_levels(paths: StorePaths, partial: Path, image_id: str) -> None:
    """Move further levels from where a worker wrote them to the other levels of their image."""
    place = paths.image(image_id)
    for file in sorted(partial.iterdir()):
        file.replace(place / file.name)
    partial.rmdir()
    sync_folder(place)


def stored_bytes(paths: StorePaths, image_id: str) -> int:
    """The total size of an image's levels; 0 if there are none."""
    return sum(file.stat().st_size for file in paths.image(image_id).glob("*.npy"))


def choose_pyramid_level(height: int, width: int, img_size: tuple[int, int]) -> str:
    """The smallest level that need not be enlarged to fill the model's input.

    Args:
        height: of the native level, pixels.
        width: of the native level, pixels.
        img_size: (height, width) of the model's input, pixels.

    Returns:
        The level's name.
    """
    # The image fills the input in one direction; that direction decides the scale.
    wanted = min(img_size[0] / height, img_size[1] / width)
    long_side = max(height, width)
    for level in sorted(PYRAMID_LONG_SIDES):
        # Half a pixel of tolerance: a level is rounded to whole pixels.
        if level < long_side and level >= wanted * long_side - 0.5:
            return str(level)
    return "native"


def read_pyramid_level(paths: StorePaths, image_id: str, level: str) -> npt.NDArray[np.uint16]:
    """Memory-map one level of one image.

    Returns:
        (height, width) uint16, read-only.

    Raises:
        InputError: the file is missing or damaged.
    """
    file = paths.image(image_id) / f"{level}.npy"
    try:
        pixels: npt.NDArray[np.uint16] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _lost_level(file, error) from error
    return pixels


def pyramid_level_shape(paths: StorePaths, image_id: str, level: str) -> tuple[int, int, int]:
    """Height and width of one level in pixels, and the offset of its pixels in the file, in bytes.

    Raises:
        InputError: the file is missing or damaged.
    """
    file = paths.image(image_id) / f"{level}.npy"
    try:
        with file.open("rb") as stream:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError("another version of the format")
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
            if fortran_order or dtype != np.uint16 or len(shape) != 2:
                raise ValueError(f"{dtype} of shape {shape}")
            return shape[0], shape[1], stream.tell()
    except (OSError, ValueError) as error:
        raise _lost_level(file, error) from error


def read_pyramid_level_into(
    paths: StorePaths, image_id: str, level: str, start: int, out: npt.NDArray[np.int16]
) -> None:
    """Copy the pixels of one level from the file, or the page cache, into allocated memory.

    Args:
        paths: the store.
        image_id: the image.
        level: name of the level.
        start: offset of the pixels in the file, in bytes, from `pyramid_level_shape`.
        out: (height * width,) int16, contiguous; receives the bytes of the uint16 pixels.

    Raises:
        InputError: the file is missing or too short.
    """
    # No Path: making one takes longer than opening the file, and holds the interpreter's lock.
    file = f"{paths.pixels}/{image_id[:2]}/{image_id}/{level}.npy"
    rest = out.data.cast("B")
    try:
        handle = os.open(file, os.O_RDONLY)
        try:
            while rest:
                # Releases the interpreter lock while it copies, which a page fault does not.
                count = os.preadv(handle, [rest], start)
                if not count:
                    raise ValueError("it is too short")
                rest, start = rest[count:], start + count
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        raise _lost_level(Path(file), error) from error


def _array_header(array: npt.NDArray[Any]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue()


def _lost_level(file: Path, error: Exception) -> InputError:
    return InputError(
        f"{file} cannot be read ({error}); run the same mammo-pd preprocess again to mend it."
    )
