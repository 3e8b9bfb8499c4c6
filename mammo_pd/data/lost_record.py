"""A store whose owner-only part is lost or damaged: refused before anything is written to it.

The manifest is made from the record. With a new and empty record in the place of a lost one, the
next `preprocess` would throw every image out of the manifest that its folder does not hold, and
with a new key, name those that it does hold anew.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mammo_pd.data.store import StorePaths
from mammo_pd.errors import InputError

_SQLITE_HEADER_BYTES = 100


def refuse_lost_record(paths: StorePaths) -> None:
    """Check that the record and the key of a store are there if it has images.

    Raises:
        InputError: one of them is not.
    """
    key, record = paths.private / "key", record_file(paths)
    is_there = has_record(paths)
    if not is_there and not _names_images(paths.manifest):
        return
    if not is_there and not key.is_file():
        raise InputError(
            f"the store {paths.root} was copied without its folder private, so it can be used for "
            "training and scoring but not changed; put that folder back, or name another --out."
        )
    if not is_there:
        raise InputError(
            f"{record} is missing or truncated, although the store has images; {remedy(paths)}"
        )
    if not key.is_file():
        raise InputError(
            f"{key} is missing, and the names of the store's images depend on it; restore it from "
            "a copy, or rebuild the store with another --out."
        )


def damaged_record(paths: StorePaths, error: Exception) -> InputError:
    """The error that a record's file is damaged."""
    return InputError(f"{record_file(paths)} is damaged ({error}); {remedy(paths)}")


def has_record(paths: StorePaths) -> bool:
    """Whether there is a record; it may still be damaged."""
    record = record_file(paths)
    # SQLite takes what is shorter than its header for a new database.
    return record.is_file() and record.stat().st_size >= _SQLITE_HEADER_BYTES


def record_file(paths: StorePaths) -> Path:
    """The record's file."""
    return paths.private / "images.sqlite"


def remedy(paths: StorePaths) -> str:
    """What helps against a record that is lost."""
    return (
        "restore it from a copy, or rebuild the store with another --out and --key "
        f"{paths.private / 'key'}, which gives every image the same name as before."
    )


def _names_images(manifest: Path) -> bool:
    """Whether a manifest names images; one that cannot be read may."""
    if not manifest.is_file():
        return False
    try:
        return bool(pq.read_metadata(manifest).num_rows)
    except (pa.ArrowException, OSError):
        return True
