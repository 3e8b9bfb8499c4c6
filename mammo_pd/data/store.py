"""The store: pixels as memory-mappable pyramids, the manifest, and the owner-only record.

    store/
      store.json            what the pixels were made with, and the fingerprint of that
      manifest.parquet      one row per image found
      pixels/ab/abcd…/      native.npy, 4096.npy, 2048.npy, …: uint16, chest wall on the left
      splits/               NAME.csv and NAME.json
      private/              owner only: the key of the hashes, and which file each image came from

Paths and original identifiers are in ``private/`` and nowhere else: leave it behind when the store
is handed on.
"""

import hashlib
import json
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mammo_pd.errors import InputError
from mammo_pd.files import atomic_write, write_text
from mammo_pd.terms import PYRAMID_LONG_SIDES

FORMAT = 1


@dataclass(frozen=True)
class StorePaths:
    """Where everything in a store lies."""

    root: Path

    @property
    def manifest(self) -> Path:
        """One row per image found."""
        return self.root / "manifest.parquet"

    @property
    def facts(self) -> Path:
        """What the store was made with."""
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
        """Where workers write before the image is taken into the store."""
        return self.root / "pixels" / ".partial"

    def image(self, image_id: str) -> Path:
        """The folder of one image's levels."""
        return self.root / "pixels" / image_id[:2] / image_id


def open_store(root: Path) -> StorePaths:
    """Find a store that was made before.

    Raises:
        InputError: there is none.
    """
    paths = StorePaths(root)
    if not paths.facts.is_file():
        raise InputError(
            f"there is no store at {root}; make it with: mammo-pd preprocess DICOM_DIR --out {root}"
            " (or name another with --store or the environment variable MAMMO_PD_STORE)"
        )
    return paths


def read_store_info(paths: StorePaths) -> dict[str, Any]:
    """What the store was made with: ``format``, ``settings``, ``fingerprint``, ``labels``.

    Raises:
        InputError: unreadable, or of another format.
    """
    try:
        facts: dict[str, Any] = json.loads(paths.facts.read_text(encoding="utf-8"))
        found = facts["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{paths.facts} cannot be read ({error}); make the store anew.") from error
    if found != FORMAT:
        raise InputError(
            f"{paths.root} has store format {found}, and this version reads {FORMAT}; make it anew "
            "with: mammo-pd preprocess DICOM_DIR --out ANOTHER"
        )
    return facts


def fingerprint_of(settings: Mapping[str, Any]) -> str:
    """A short hash of everything that decides the pixels."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def create_or_match(root: Path, settings: Mapping[str, Any]) -> StorePaths:
    """Make a store, or open one that was made with the same settings.

    Raises:
        InputError: the folder holds something else, or a store made with other settings.
    """
    paths = StorePaths(root)
    if paths.facts.is_file():
        facts = read_store_info(paths)
        wanted = fingerprint_of(settings)
        if facts["fingerprint"] != wanted:
            changed = [
                f"{name} was {facts['settings'].get(name)!r}, is {settings.get(name)!r}"
                for name in sorted({*facts["settings"], *settings})
                if facts["settings"].get(name) != settings.get(name)
            ]
            raise InputError(
                f"the store {root} was made with other settings ({'; '.join(changed)}: "
                f"fingerprint {facts['fingerprint']}, now {wanted}), and one store never mixes "
                "two; use the same settings, or another --out."
            )
        return paths
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(
            f"{root} exists and is not a store of mammo-pd; name an empty or new folder with --out."
        )
    root.mkdir(parents=True, exist_ok=True)
    write_store_info(paths, {"settings": dict(settings), "fingerprint": fingerprint_of(settings)})
    return paths


def write_store_info(paths: StorePaths, facts: Mapping[str, Any]) -> None:
    """Write what the store was made with."""
    write_text(paths.facts, json.dumps({"format": FORMAT, **facts}, indent=2) + "\n")


def write_pyramid(folder: Path, levels: Mapping[str, npt.NDArray[np.uint16]]) -> None:
    """Write one image's pyramid, each level as (height, width) uint16 in ``NAME.npy``."""
    folder.mkdir(parents=True)
    for name, pixels in levels.items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(pixels), allow_pickle=False)


def take_in(paths: StorePaths, partial: Path, image_id: str) -> None:
    """Move a finished image from where a worker wrote it to its place, replacing an older one."""
    place = paths.image(image_id)
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        shutil.rmtree(place)
    partial.rename(place)


def stored_bytes(paths: StorePaths, image_id: str) -> int:
    """The size of an image's levels together; 0 where there are none."""
    return sum(file.stat().st_size for file in paths.image(image_id).glob("*.npy"))


def choose_pyramid_level(height: int, width: int, img_size: tuple[int, int]) -> str:
    """The smallest level that is still at least as fine as the canvas.

    Args:
        height: of the native level, pixels.
        width: of the native level, pixels.
        img_size: (height, width) in pixels that the model sees.

    Returns:
        The level's name.
    """
    # The image fills the canvas in one direction; that one decides.
    wanted = min(img_size[0] / height, img_size[1] / width)
    long_side = max(height, width)
    for level in sorted(PYRAMID_LONG_SIDES):
        if level < long_side and level >= wanted * long_side - 0.5:
            return str(level)
    return "native"


def read_pyramid_level(paths: StorePaths, image_id: str, level: str) -> npt.NDArray[np.uint16]:
    """Memory-map one level of one image.

    Returns:
        (height, width) uint16, read-only.

    Raises:
        InputError: the file is missing or not what the store writes.
    """
    file = paths.image(image_id) / f"{level}.npy"
    try:
        pixels: npt.NDArray[np.uint16] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _lost_level(file, error) from error
    return pixels


def pyramid_level_shape(paths: StorePaths, image_id: str, level: str) -> tuple[int, int, int]:
    """Height and width of one level in pixels, and where in the file its pixels begin, in bytes.

    Raises:
        InputError: the file is missing or not what the store writes.
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
    """Copy one level's pixels from the file (the page cache, if warm) into memory that is there.

    Args:
        paths: the store.
        image_id: of the image.
        level: its name.
        start: of the pixels in the file, in bytes, from `pyramid_level_shape`.
        out: (height * width,) int16, contiguous: the uint16 pixels as they lie in the file.

    Raises:
        InputError: the file is missing or too short.
    """
    file = paths.image(image_id) / f"{level}.npy"
    rest = out.data.cast("B")
    try:
        handle = os.open(file, os.O_RDONLY)
        try:
            while rest:
                # Releases the interpreter while it copies, as memory-mapped reads do not.
                count = os.preadv(handle, [rest], start)
                if not count:
                    raise ValueError("it is too short")
                rest, start = rest[count:], start + count
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        raise _lost_level(file, error) from error


def _lost_level(file: Path, error: Exception) -> InputError:
    return InputError(
        f"{file} cannot be read ({error}); run the same mammo-pd preprocess again to mend it."
    )


class Hasher:
    """Keyed hashes of identifiers: the same input gives the same hash in this store only."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def hash(self, kind: str, value: str | bytes) -> str:
        """80 bits as 20 hexadecimal digits.

        Args:
            kind: what is hashed, so that equal patient and exam IDs do not show as equal.
            value: the identifier, or pixels.
        """
        data = os.fsencode(value) if isinstance(value, str) else value
        digest = hashlib.blake2b(digest_size=10, key=self._key, person=kind.encode()[:16])
        digest.update(data)
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageOrigin:
    """Where one image comes from.

    Attributes:
        path: the file.
        frame: which of its frames, from 1, as DICOM counts; None where the file is one image.
    """

    path: Path
    frame: int | None = None


@dataclass(frozen=True)
class RecordedImage:
    """What is recorded of one image.

    Attributes:
        source: where it comes from.
        image_id: its name in the store.
        facts: columns of the manifest; ``status`` and, where not ok, ``reason`` among them.
        identifiers: the original ones.
        stored_bytes: of its levels together, by which a lost or half one is seen.
        labels: what the label table says of it.
    """

    source: ImageOrigin
    image_id: str
    facts: Mapping[str, Any]
    identifiers: Mapping[str, str]
    stored_bytes: int
    labels: Mapping[str, Any] = field(default_factory=dict)


class Record:
    """The owner-only record: one row per image, kept as the run goes on.

    It is what makes a run safe to kill: a file counts as done when the rows of all its images are
    committed, and they are committed together. A SQLite file, so that a million rows need no
    memory and half a write is no write. Paths are kept as the bytes that they are: a file's name
    need not be text. Where a file's frames are images of their own, a NUL, which no path holds,
    and the frame's number follow.

    Args:
        paths: the store.
        key: of the hashes, 32 bytes, where they are to be those of another store.

    Raises:
        InputError: another run is writing, or the store has another key.
    """

    def __init__(self, paths: StorePaths, key: bytes | None = None) -> None:
        paths.private.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.hasher = Hasher(_read_or_make_key(paths.private / "key", key))
        file = paths.private / "images.sqlite"
        file.touch(mode=0o600)
        self._database = sqlite3.connect(file, isolation_level=None, timeout=1)
        self._begin()
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS images (source BLOB PRIMARY KEY, size INTEGER, "
            "mtime_ns INTEGER, image_id TEXT, status TEXT, reason TEXT, stored_bytes INTEGER, "
            "facts TEXT, identifiers TEXT, labels TEXT)"
        )
        self._database.execute("CREATE INDEX IF NOT EXISTS by_image_id ON images (image_id)")

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        self.commit()
        self._database.close()

    def commit(self) -> None:
        """Make everything put so far outlast a kill."""
        self._database.execute("COMMIT")
        self._begin()

    def _begin(self) -> None:
        try:
            self._database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise InputError(
                f"the record of the store cannot be written ({error}); is another mammo-pd "
                "preprocess at work on this store? Wait for it, or name another --out."
            ) from error

    def known(self, path: Path) -> list[tuple[int, int, str, str, str | None, int]]:
        """Of each image of a file: size and modification time in ns of the file as it was read.

        And image_id, status, reason and stored bytes. Empty where the file is new.
        """
        return self._database.execute(
            "SELECT size, mtime_ns, image_id, status, reason, stored_bytes FROM images "
            f"WHERE {_OF_FILE}",
            _of_file(path),
        ).fetchall()

    def source_of(self, image_id: str) -> ImageOrigin | None:
        """Where the image of this image_id comes from."""
        row = self._database.execute(
            "SELECT source FROM images WHERE image_id = ?", (image_id,)
        ).fetchone()
        return _as_source(row[0]) if row else None

    def put(self, path: Path, version: tuple[int, int], images: Iterable[RecordedImage]) -> None:
        """Record all images of one file, replacing what was known of it; its labels are kept.

        Args:
            path: the file.
            version: its size in bytes and modification time in ns, as it was read.
            images: of that file; a label table names files, so they all have the labels that the
                file had, and not their own.
        """
        labels = self._database.execute(
            f"SELECT labels FROM images WHERE {_OF_FILE} LIMIT 1", _of_file(path)
        ).fetchone() or (None,)
        self._database.execute(f"DELETE FROM images WHERE {_OF_FILE}", _of_file(path))
        self._database.executemany(
            "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    _as_key(image.source),
                    *version,
                    image.image_id,
                    image.facts["status"],
                    image.facts.get("reason"),
                    image.stored_bytes,
                    json.dumps(image.facts),
                    json.dumps(image.identifiers),
                    *labels,
                )
                for image in images
            ),
        )

    def put_labels(self, path: Path, labels: Mapping[str, Any] | None) -> None:
        """Record what the label table says of the images of one file."""
        self._database.execute(
            f"UPDATE images SET labels = :labels WHERE {_OF_FILE}",
            {"labels": None if labels is None else json.dumps(labels), **_of_file(path)},
        )

    def rows(self) -> Iterator[RecordedImage]:
        """Every image, by image_id."""
        cursor = self._database.execute(
            "SELECT source, image_id, facts, identifiers, stored_bytes, labels FROM images "
            "ORDER BY image_id, source"
        )
        with closing(cursor):
            for source, image_id, facts, identifiers, size, labels in cursor:
                yield RecordedImage(
                    _as_source(source),
                    image_id,
                    json.loads(facts),
                    json.loads(identifiers),
                    size,
                    json.loads(labels) if labels else {},
                )


# The keys of one file's images: its path alone, or with a NUL and more behind it.
_OF_FILE = "(source = :path OR (source > :first AND source < :after))"


def _of_file(path: Path) -> dict[str, bytes]:
    key = os.fsencode(path)
    return {"path": key, "first": key + b"\0", "after": key + b"\1"}


def _as_key(source: ImageOrigin) -> bytes:
    key = os.fsencode(source.path)
    return key if source.frame is None else key + b"\0" + str(source.frame).encode()


def _as_source(key: bytes) -> ImageOrigin:
    path, _, frame = key.partition(b"\0")
    return ImageOrigin(Path(os.fsdecode(path)), int(frame) if frame else None)


def _read_or_make_key(path: Path, wanted: bytes | None) -> bytes:
    if not path.exists():
        with atomic_write(path, mode=0o600) as beside:
            beside.write_bytes(secrets.token_bytes(32) if wanted is None else wanted)
    key = path.read_bytes()
    if len(key) != 32:
        raise InputError(
            f"{path} is not a key of 32 bytes; restore it from a copy, or make the store anew, "
            "since without it new images would get other identifiers."
        )
    if wanted is not None and key != wanted:
        raise InputError(
            "the store has another key than the one given, and its images are named by its own; "
            "leave --key away, or make another store with --out."
        )
    return key
