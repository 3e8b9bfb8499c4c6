"""The owner-only record of a store: which file each image came from, and its identifiers.

It lies in ``private/``: ``key``, the 32-byte key of the hashes that name images, exams and
patients, and ``images.sqlite``. Nothing else in a store holds a path or an original identifier.
"""

import hashlib
import json
import os
import secrets
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mammo_pd.data.lost_record import damaged_record, record_file, refuse_lost_record
from mammo_pd.data.store import StorePaths
from mammo_pd.errors import InputError
from mammo_pd.files import atomic_write
from mammo_pd.locks import lock

_AT_WORK = (
    "the record in the folder private cannot be written; is another mammo-pd preprocess working "
    "on this store, or a mammo-pd predict on this --out? Wait for it, or name another --out."
)
_READERS_MS = 60_000


class Hasher:
    """Keyed hashes of identifiers: equal within a store, unrelated between two."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def hash(self, kind: str, value: str | bytes) -> str:
        """80 bits as 20 hexadecimal digits.

        Args:
            kind: what is hashed; equal patient and exam IDs get different hashes.
            value: the identifier, or pixels. Of a patient's or an exam's identifier the Unicode
                form does not matter: systems write one umlaut in two ways.
        """
        if isinstance(value, str) and kind in ("patient", "exam"):
            value = unicodedata.normalize("NFC", value)
        data = os.fsencode(value) if isinstance(value, str) else value
        digest = hashlib.blake2b(digest_size=10, key=self._key, person=kind.encode()[:16])
        digest.update(data)
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageOrigin:
    """Where one image comes from; not shown in its ``repr``.

    Attributes:
        path: the file.
        frame: number of the frame, from 1 as in DICOM; None where the file is one image.
    """

    path: Path = field(repr=False)
    frame: int | None = None


@dataclass(frozen=True)
class RecordedImage:
    """What is recorded about one image; no identifier shows in its ``repr``.

    Attributes:
        source: the file and frame that it comes from.
        image_id: its name in the store.
        columns: of the manifest, with ``status`` and, unless ok, ``reason``.
        identifiers: the original ones, in the clear.
        stored_bytes: size of its levels' file, by which a lost or truncated one is noticed.
        labels: its row of the label table.
        checksums: of its levels, by name; empty in stores of earlier versions.
    """

    source: ImageOrigin
    image_id: str
    columns: Mapping[str, Any]
    identifiers: Mapping[str, str] = field(repr=False)
    stored_bytes: int
    labels: Mapping[str, Any] = field(default_factory=dict, repr=False)
    checksums: Mapping[str, int] = field(default_factory=dict)


class Record:
    """The owner-only database of a store: one row per image, written as the run goes on.

    It is what makes a run safe to kill: the rows of all images of a file are committed together,
    and only then does the file count as done. SQLite keeps a million rows out of memory and makes
    a commit atomic.

    Args:
        paths: the store.
        key: of the hashes, 32 bytes, to name images as another store does; by default the store's
            own, made on first use.

    Raises:
        InputError: another run is writing, the store has another key, or its record is lost or
            damaged.
    """

    def __init__(self, paths: StorePaths, key: bytes | None = None) -> None:
        refuse_lost_record(paths)
        paths.private.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = paths.private / "lock"
        file.touch(mode=0o600)
        # SQLite's own lock is free between a COMMIT and the next BEGIN, and while a key is made.
        self._lock = file.open("ab")
        try:
            lock(self._lock, _AT_WORK)
            self._open(paths, key)
        except BaseException:
            self._lock.close()
            raise

    def _open(self, paths: StorePaths, key: bytes | None) -> None:
        self.hasher = Hasher(_read_or_make_key(paths.private / "key", key))
        file = record_file(paths)
        file.touch(mode=0o600)
        self._database = sqlite3.connect(file, isolation_level=None, timeout=1)
        try:
            self._begin()
            # From here on it is only somebody who looks at the record, and soon done.
            self._database.execute(f"PRAGMA busy_timeout = {_READERS_MS}")
            self._make_tables()
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise damaged_record(paths, error) from error

    def _make_tables(self) -> None:
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS images (source BLOB PRIMARY KEY, size INTEGER, "
            "mtime_ns INTEGER, image_id TEXT, status TEXT, reason TEXT, stored_bytes INTEGER, "
            "facts TEXT, identifiers TEXT, labels TEXT, content BLOB, checksums TEXT)"
        )
        columns = {row[1] for row in self._database.execute("PRAGMA table_info(images)")}
        for column in ("content BLOB", "checksums TEXT"):
            if column.split()[0] not in columns:  # a store of an earlier version
                self._database.execute(f"ALTER TABLE images ADD COLUMN {column}")
        self._database.execute("CREATE INDEX IF NOT EXISTS by_image_id ON images (image_id)")
        self._database.execute(f"CREATE INDEX IF NOT EXISTS by_pixels ON images ({_PIXEL_HASH})")
        self._database.execute("CREATE TABLE IF NOT EXISTS folders (path BLOB PRIMARY KEY)")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS forgotten (name TEXT PRIMARY KEY, patient TEXT)"
        )

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.commit()
        finally:
            self._database.close()
            self._lock.close()

    def commit(self) -> None:
        """Make everything written so far survive a kill.

        Raises:
            InputError: another program holds the record.
        """
        try:
            # None if an interrupt came between the last commit and what begins after it.
            if self._database.in_transaction:
                self._database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise InputError(
                f"the record of the store cannot be written ({error}): another program, such as a "
                "backup, has it open; close it and run the same command again."
            ) from error
        self._begin()

    def discard(self) -> None:
        """Undo what was written since the last commit."""
        self._database.execute("ROLLBACK")
        self._begin()
        # Those of a new record are undone, too, if nothing was committed yet.
        self._make_tables()

    def _begin(self) -> None:
        try:
            # Takes the write lock now, so that a second run is refused before it does any work.
            self._database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise InputError(f"{_AT_WORK} ({error})") from error

    def known(
        self, path: Path
    ) -> list[tuple[int, int, str, str, str | None, int, str | None, str | None]]:
        """What is recorded about a file, one tuple per image; empty if the file is new.

        Returns:
            (size in bytes and modification time in ns of the file when it was read, image_id,
            status, reason, stored bytes, photometric interpretation, where that was found).
        """
        return self._database.execute(
            "SELECT size, mtime_ns, image_id, status, reason, stored_bytes, "
            "json_extract(facts, '$.photometric_interpretation'), "
            "json_extract(facts, '$.photometric_interpretation_source') FROM images "
            f"WHERE {_OF_FILE}",
            _of_file(path),
        ).fetchall()

    @property
    def holds_pixels(self) -> bool:
        """Whether any image is in the store with its pixels."""
        found = self._database.execute("SELECT 1 FROM images WHERE status = 'ok' LIMIT 1")
        return found.fetchone() is not None

    def source_of(self, image_id: str) -> ImageOrigin | None:
        """Where an image comes from; None if it is not recorded."""
        row = self._database.execute(
            "SELECT source FROM images WHERE image_id = ?", (image_id,)
        ).fetchone()
        return _as_source(row[0]) if row else None

    def pixel_hash_of(self, image_id: str) -> str | None:
        """The hash of an image's pixels; None if it has none or is not recorded."""
        row = self._database.execute(
            "SELECT json_extract(facts, '$.pixel_hash') FROM images WHERE image_id = ?", (image_id,)
        ).fetchone()
        return row[0] if row else None

    def with_pixels(self, pixel_hash: str, besides: Path) -> str | None:
        """An image_id of the ok images of other files that have these pixels; None without one.

        Args:
            pixel_hash: of the pixels.
            besides: the file whose own images do not count.
        """
        row = self._database.execute(
            f"SELECT image_id FROM images WHERE {_PIXEL_HASH} = :pixels AND status = 'ok' "
            f"AND NOT {_OF_FILE} ORDER BY source LIMIT 1",
            {"pixels": pixel_hash, **_of_file(besides)},
        ).fetchone()
        return row[0] if row else None

    def put(
        self,
        path: Path,
        version: tuple[int, int],
        images: Iterable[RecordedImage],
        content: bytes = b"",
    ) -> None:
        """Record all images of one file in place of earlier ones; its labels are kept.

        Args:
            path: the file.
            version: its size in bytes and modification time in ns when it was read.
            images: of that file. Their own ``labels`` are ignored: label tables name files, so all
                images of a file share the labels recorded for it.
            content: digest of the file's content, by which it is recognised elsewhere; empty if
                unknown.
        """
        labels = self._database.execute(
            f"SELECT labels FROM images WHERE {_OF_FILE} LIMIT 1", _of_file(path)
        ).fetchone() or (None,)
        self._database.execute(f"DELETE FROM images WHERE {_OF_FILE}", _of_file(path))
        self._database.executemany(
            "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    _as_key(image.source),
                    *version,
                    image.image_id,
                    image.columns["status"],
                    image.columns.get("reason"),
                    image.stored_bytes,
                    json.dumps(image.columns),
                    json.dumps(image.identifiers),
                    *labels,
                    content,
                    json.dumps(image.checksums),
                )
                for image in images
            ),
        )

    def add_columns(self, image_id: str, columns: Mapping[str, Any]) -> None:
        """Add columns to those of an image."""
        self._database.execute(
            "UPDATE images SET facts = json_patch(facts, ?) WHERE image_id = ?",
            (json.dumps(columns), image_id),
        )

    def put_levels(self, image_id: str, checksums: Mapping[str, int], stored_bytes: int) -> None:
        """Record the levels that an image has now.

        Args:
            image_id: the image.
            checksums: of its levels, by name.
            stored_bytes: size of their file.
        """
        self._database.execute(
            "UPDATE images SET checksums = ?, stored_bytes = ? WHERE image_id = ?",
            (json.dumps(checksums), stored_bytes, image_id),
        )

    def put_column(self, path: Path, name: str, value: str) -> None:
        """Record one column of the manifest for all images of one file, beside those it has."""
        self._database.execute(
            f"UPDATE images SET facts = json_set(facts, '$.' || :name, :value) WHERE {_OF_FILE}",
            {"name": name, "value": value, **_of_file(path)},
        )

    def put_labels(self, path: Path, labels: Mapping[str, Any] | None) -> None:
        """Record the label table's row for all images of one file."""
        self._database.execute(
            f"UPDATE images SET labels = :labels WHERE {_OF_FILE}",
            {"labels": None if labels is None else json.dumps(labels), **_of_file(path)},
        )

    def contents(self) -> Iterator[tuple[Path, int, bytes]]:
        """Every file: its path, its size in bytes when it was read, the digest of its content.

        The digest is empty in stores of earlier versions, and of files that could not be read.
        """
        cursor = self._database.execute("SELECT source, size, content FROM images ORDER BY source")
        with closing(cursor):
            last = None
            for source, size, content in cursor:
                path = _as_source(source).path
                if path != last:  # several images of one file follow one another
                    yield path, size, content or b""
                last = path

    def move(self, before: Path, after: Path, mtime_ns: int) -> None:
        """Record that a file lies elsewhere now; its images, their names and labels stay.

        Args:
            before: where it was.
            after: where it is; no image is recorded of a file there.
            mtime_ns: its modification time there.
        """
        keys = self._database.execute(
            f"SELECT source FROM images WHERE {_OF_FILE}", _of_file(before)
        ).fetchall()
        self._database.executemany(
            "UPDATE images SET source = ?, mtime_ns = ? WHERE source = ?",
            (
                (_as_key(ImageOrigin(after, _as_source(key).frame)), mtime_ns, key)
                for (key,) in keys
            ),
        )

    def put_folder(self, folder: Path) -> None:
        """Record a folder that images were read from."""
        self._database.execute("INSERT OR IGNORE INTO folders VALUES (?)", (os.fsencode(folder),))

    def folders(self) -> list[Path]:
        """The folders that images were read from; stores of earlier versions name none."""
        rows = self._database.execute("SELECT path FROM folders ORDER BY path")
        return [Path(os.fsdecode(path)) for (path,) in rows]

    def remove(self, image_ids: Iterable[str]) -> None:
        """Remove images, and what is left of them in the database's file."""
        # Otherwise SQLite only marks the space as free, and the identifiers can still be read.
        self._database.execute("PRAGMA secure_delete = ON")
        self._database.executemany(
            "DELETE FROM images WHERE image_id = ?", ((image_id,) for image_id in image_ids)
        )

    def keep_out(self, names: Mapping[str, str | None]) -> None:
        """Take in no image of these names any more.

        Args:
            names: image_id or patient_id, and for an image that goes with a patient her patient_id.
        """
        self._database.executemany("INSERT OR REPLACE INTO forgotten VALUES (?, ?)", names.items())

    def let_in(self, names: Iterable[str]) -> int:
        """Take in images of these names again, those of patients among them included.

        Returns:
            How many of the names were kept out.
        """
        count = 0
        for name in names:
            count += self._database.execute(
                "DELETE FROM forgotten WHERE name = ?", (name,)
            ).rowcount
            self._database.execute("DELETE FROM forgotten WHERE patient = ?", (name,))
        return count

    def is_kept_out(self, name: str) -> bool:
        """Whether an image_id or a patient_id was forgotten."""
        found = self._database.execute("SELECT 1 FROM forgotten WHERE name = ?", (name,))
        return found.fetchone() is not None

    @property
    def keeps_anyone_out(self) -> bool:
        """Whether anything was forgotten."""
        return self._database.execute("SELECT 1 FROM forgotten").fetchone() is not None

    def rows(self) -> Iterator[RecordedImage]:
        """Every image, sorted by image_id."""
        cursor = self._database.execute(
            "SELECT source, image_id, facts, identifiers, stored_bytes, labels, checksums "
            "FROM images ORDER BY image_id, source"
        )
        with closing(cursor):
            for source, image_id, columns, identifiers, size, labels, checksums in cursor:
                yield RecordedImage(
                    _as_source(source),
                    image_id,
                    json.loads(columns),
                    json.loads(identifiers),
                    size,
                    json.loads(labels) if labels else {},
                    json.loads(checksums) if checksums else {},
                )


# An image's primary key is the path of its file as bytes, since a file name need not be text. Where
# each frame is an image, a NUL, which no path contains, and the frame's number follow. All images
# of one file are therefore the path itself and the range behind "path NUL".
_PIXEL_HASH = "json_extract(facts, '$.pixel_hash')"
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
            f"{path} is not a key of 32 bytes; restore it from a copy, or rebuild the store: "
            "without the key, new images would get different identifiers."
        )
    if wanted is not None and key != wanted:
        raise InputError(
            "the store has a key other than the one given, and its images are named with its own; "
            "drop --key, or make another store with --out."
        )
    return key
