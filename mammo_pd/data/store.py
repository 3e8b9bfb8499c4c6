"""The store: where its files lie, what it was made with, and its pixels as pyramid levels.

    store/
      store.json                    the settings that made the pixels, their fingerprint, the levels
      manifest.parquet              one row per image found
      pixels/ab/abcd….safetensors   one image's levels: uint16, chest wall on the left
      splits/                       NAME.csv and NAME.json
      private/                      owner only, see `record`: key of the hashes, original files

Paths and original identifiers are in ``private/`` and nowhere else: leave that folder out when you
hand a store on. A level is named by its long side in pixels, or ``native``; an image has the levels
smaller than its native size, or those of them that the store keeps (`kept_levels`).

Stores of format 1 have a folder of files for each image (`image_folder`). These are read as they
are. Once this version writes to such a store its format is 2, and each image that is written anew,
or gets a further level, becomes one file; the others stay as they lie.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mammo_pd.data import image_file, image_folder
from mammo_pd.data.image_file import LevelPlace
from mammo_pd.errors import InputError, cause_of
from mammo_pd.files import load_json, sync_folder, write_text
from mammo_pd.terms import PYRAMID_LONG_SIDES, Compression

FORMAT = 2

# What an image's name must not hold: with it, its file would not be in the folder named by the
# first two characters.
LEADS_AWAY = r"/|\x00|^\.{0,2}$|^\.\."

_READ_FORMATS = (1, FORMAT)


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
        """The file of one image's levels."""
        return self.root / "pixels" / _folder_of(image_id) / f"{image_id}{image_file.SUFFIX}"

    def image_folder(self, image_id: str) -> Path:
        """The folder of one image's levels in stores of format 1."""
        return self.root / "pixels" / _folder_of(image_id) / image_id

    def thumbnail(self, image_id: str) -> Path:
        """The whole frame of one image, small: it can show a burned-in name, so owner only."""
        return self.private / "thumbnails" / _folder_of(image_id) / f"{image_id}.npy"


def _folder_of(image_id: str) -> str:
    """The folder that an image's file lies in.

    Raises:
        InputError: it would lie elsewhere: whoever made a store has made its record and manifest.
    """
    if re.search(LEADS_AWAY, image_id):
        raise InputError(
            f"the store names an image {image_id!r}, a path that leads away from its pixels; "
            "mammo-pd makes no such names, so do not trust the store: get it anew from its owner."
        )
    return image_id[:2]


def open_store(root: Path | str) -> StorePaths:
    """Open an existing store.

    Raises:
        InputError: there is none.
    """
    root = Path(root)
    paths = StorePaths(root)
    if not paths.info.is_file():
        if _is_foreign(root):
            # preprocess would refuse to write there, too.
            raise InputError(
                f"{root} is not a mammo-pd store; name one with --store or the environment "
                "variable MAMMO_PD_STORE, or make one with: mammo-pd preprocess DICOM_DIR --out NEW"
            )
        raise InputError(
            f"there is no store at {root}; make it with: mammo-pd preprocess DICOM_DIR --out "
            f"{shlex.quote(str(root))} (or name another with --store or the environment variable "
            "MAMMO_PD_STORE)"
        )
    return paths


def _is_foreign(root: Path) -> bool:
    """Whether something is at ``root`` that is neither a store nor an empty folder."""
    return root.exists() and (not root.is_dir() or any(root.iterdir()))


def read_store_info(paths: StorePaths) -> dict[str, Any]:
    """Read what the store was made with: ``format``, ``settings``, ``fingerprint``, ``labels``.

    Raises:
        InputError: it cannot be read, or has another format.
    """
    try:
        info: dict[str, Any] = load_json(paths.info.read_text(encoding="utf-8"))
        found = info["format"]
        if not isinstance(info["settings"], dict) or not isinstance(info["fingerprint"], str):
            raise TypeError("settings or fingerprint are damaged")
        info.get("labels", {}).get("definition")
        Compression(info.get("compression", Compression.NONE))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{paths.info} is damaged ({cause_of(error)}); restore it from a copy, or rebuild the "
            f"store with another --out and --key {paths.private / 'key'}, which gives every image "
            "the same name as before."
        ) from error
    if found not in _READ_FORMATS:
        raise InputError(
            f"{paths.root} has store format {found}, and this version reads "
            f"{' and '.join(map(str, _READ_FORMATS))}; rebuild it with: mammo-pd preprocess "
            "DICOM_DIR --out ANOTHER"
        )
    return info


def fingerprint_of(settings: Mapping[str, Any]) -> str:
    """A short hash of every setting that affects the pixels."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def create_or_match(root: Path, settings: Mapping[str, Any]) -> StorePaths:
    """Create a store, or open one that was made with the same settings.

    Raises:
        InputError: the folder holds something else, or a store made with other settings, or its
            path is no text.
    """
    paths = StorePaths(root)
    if str(root.absolute()) != os.fsencode(root.absolute()).decode(errors="replace"):
        # Parquet's reader and writer take no other paths: it would fail once all is decoded.
        raise InputError(
            f"the path {root.absolute()} is not text in UTF-8, in which a store cannot be written; "
            "name another --out."
        )
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
                f"the store {root} was made with other settings ({'; '.join(changed)}: fingerprint "
                f"{made_with['fingerprint']}, now {wanted}), and a store never mixes settings; use "
                "the same ones, or another --out."
            )
        return paths
    if _is_foreign(root):
        raise InputError(
            f"{root} exists and is not a mammo-pd store; name a new or empty folder with --out."
        )
    root.mkdir(parents=True, exist_ok=True)
    write_store_info(paths, {"settings": dict(settings), "fingerprint": fingerprint_of(settings)})
    return paths


def kept_compression(paths: StorePaths) -> Compression:
    """How the images that are written to a store are compressed."""
    return Compression(read_store_info(paths).get("compression", Compression.NONE))


def keep_compression(paths: StorePaths, compression: Compression) -> None:
    """Write down how images that are written to a store from now on are compressed."""
    if compression != kept_compression(paths):
        write_store_info(paths, {**read_store_info(paths), "compression": compression})


def upgrade_store(paths: StorePaths) -> None:
    """Let earlier versions refuse a store before it gets the first image that they cannot read."""
    info = read_store_info(paths)
    if info["format"] != FORMAT:
        write_store_info(paths, info)


def write_store_info(paths: StorePaths, info: Mapping[str, Any]) -> None:
    """Write what the store was made with, and that this version has written to it."""
    write_text(paths.info, json.dumps({**info, "format": FORMAT}, indent=2) + "\n")


def write_array(file: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as ``numpy.save`` does, and wait until it is on the disk."""
    with file.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())


def take_in(paths: StorePaths, partial: Path, image_id: str) -> None:
    """Move a finished image from where a worker wrote it to its place; an older one is replaced."""
    place = paths.image(image_id)
    if not place.parent.is_dir():
        place.parent.mkdir(parents=True)
        sync_folder(place.parent.parent)
    partial.replace(place)
    sync_folder(place.parent)
    before = paths.image_folder(image_id)
    if before.is_dir():
        # Only now: at every moment one of the two is whole on the disk.
        shutil.rmtree(before, ignore_errors=True)


def remove_image(paths: StorePaths, image_id: str) -> None:
    """Remove an image's pixels, and its thumbnail.

    Raises:
        InputError: they lie elsewhere than in the store.
        OSError: something of it cannot be removed.
    """
    for place in (paths.image(image_id).parent, paths.thumbnail(image_id).parent):
        if place.is_symlink():
            raise InputError(
                f"{place} is a link, and mammo-pd makes none: what it leads to may not be the "
                "store's to remove; put the folder itself in its place."
            )
    paths.image(image_id).unlink(missing_ok=True)
    folder = paths.image_folder(image_id)
    if folder.is_dir():
        # An error is raised: who asked for it must not be told that pixels are gone which stay.
        shutil.rmtree(folder)
    paths.thumbnail(image_id).unlink(missing_ok=True)


def stored_bytes(paths: StorePaths, image_id: str) -> int:
    """The total size of an image's levels; 0 if there are none."""
    try:
        return paths.image(image_id).stat().st_size
    except FileNotFoundError:
        return image_folder.stored_bytes(paths.image_folder(image_id))


def is_damaged(paths: StorePaths, image_id: str, checksums: Mapping[str, int]) -> bool:
    """Whether an image's levels are missing, cannot be read, or no longer have their checksums.

    Args:
        paths: the store.
        image_id: the image.
        checksums: of its levels, by name.
    """
    place = paths.image(image_id)
    if place.exists():
        return image_file.is_damaged(place, checksums)
    return image_folder.is_damaged(paths.image_folder(image_id), checksums)


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
    """Memory-map one level of one image, or read it where it is compressed.

    Returns:
        (height, width) uint16, read-only.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        handle, place = _open_level(paths, image_id, level)
        with os.fdopen(handle, "rb") as stream:
            shape = (place.height, place.width)
            if not place.compressed:
                return np.memmap(stream, "<u2", "r", place.start, shape)
            pixels = np.empty(shape, "<u2")
            image_file.read_level_into(handle, place, pixels.data.cast("B"))
            pixels.flags.writeable = False
            return pixels
    except (OSError, ValueError) as error:
        raise _lost_level(paths, image_id, level, error) from error


def find_pyramid_level(paths: StorePaths, image_id: str, level: str) -> LevelPlace:
    """Find where the pixels of one level lie.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        handle, place = _open_level(paths, image_id, level)
        os.close(handle)
    except (OSError, ValueError) as error:
        raise _lost_level(paths, image_id, level, error) from error
    return place


def read_pyramid_level_into(
    paths: StorePaths,
    image_id: str,
    level: str,
    place: LevelPlace,
    out: npt.NDArray[np.int16],
    *,
    check: bool = False,
) -> None:
    """Copy the pixels of one level from the file, or the page cache, into allocated memory.

    Args:
        paths: the store.
        image_id: the image.
        level: name of the level.
        place: of the level, from `find_pyramid_level`.
        out: (height * width,) int16, contiguous; receives the bytes of the uint16 pixels.
        check: whether to compare them with the checksum that the file holds; 2 ms for 8 MiB.

    Raises:
        InputError: it is missing or damaged, or has another size by now.
    """
    try:
        handle, find = _open_image(paths, image_id, level)
        try:
            if image_file.version_of(os.fstat(handle)) != place.version:
                # Further levels were added to the image meanwhile, and this one lies elsewhere.
                before, place = place, find(handle)
                if place[:2] != before[:2]:
                    raise ValueError("it was rebuilt with another size while it was in use")
            pixels = out.data.cast("B")
            image_file.read_level_into(handle, place, pixels)
            if check and not image_file.has_checksum(pixels, place):
                raise ValueError("its pixels were damaged after they were written")
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        raise _lost_level(paths, image_id, level, error) from error


def _open_level(paths: StorePaths, image_id: str, level: str) -> tuple[int, LevelPlace]:
    """Open the file that holds a level, and find it there; the caller closes it."""
    handle, find = _open_image(paths, image_id, level)
    try:
        return handle, find(handle)
    except BaseException:
        os.close(handle)
        raise


def _open_image(
    paths: StorePaths, image_id: str, level: str
) -> tuple[int, Callable[[int], LevelPlace]]:
    """Open the file that holds a level, and tell how to find it there; the caller closes it."""

    def find(handle: int) -> LevelPlace:
        found = image_file.find_levels(handle)
        if level not in found:
            raise ValueError(f"it has {', '.join(found)} only")
        return found[level]

    # No Path: making one takes longer than opening the file, and holds the interpreter's lock.
    place = f"{paths.pixels}/{image_id[:2]}/{image_id}"
    try:
        return os.open(place + image_file.SUFFIX, os.O_RDONLY), find
    except FileNotFoundError:
        try:
            return os.open(f"{place}/{level}.npy", os.O_RDONLY), image_folder.find_level
        except FileNotFoundError:
            # Also for a folder that became a file between the two.
            return os.open(place + image_file.SUFFIX, os.O_RDONLY), find


def _lost_level(paths: StorePaths, image_id: str, level: str, error: Exception) -> InputError:
    # Of a file that is there preprocess looks at the size alone, unless it is told to read it.
    verifying = "" if isinstance(error, FileNotFoundError) else " with --verify"
    return InputError(
        f"the level {level} of {paths.image(image_id)} cannot be read ({cause_of(error)}); run the "
        f"same mammo-pd preprocess again{verifying} to repair it."
    )
