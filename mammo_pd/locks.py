"""File locks: one process at a time, released even if the process is killed."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mammo_pd.errors import InputError


def lock(file: IO[bytes], message: str) -> None:
    """Lock an open file; the lock is released when the file is closed.

    Raises:
        InputError: with this message, if another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(message) from error
    except OSError:
        # A file system without locks: nothing can be checked there.
        return


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock within the block.

    Raises:
        InputError: another process holds it.
    """
    with path.open("ab") as file:
        lock(file, _in_use(path))
        yield


@contextmanager
def locked_while_there(path: Path) -> Iterator[None]:
    """Hold the lock of a file that is made for the block and removed after it.

    Raises:
        InputError: another process holds it.
    """
    while True:
        with path.open("ab") as file:
            lock(file, _in_use(path))
            # Its holder may have removed it since it was opened: then the next process would lock
            # a new file of this name, beside this one.
            if not _is_at(path, file):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _in_use(path: Path) -> str:
    return f"another process is using {path.parent}; wait for it, or stop it."
