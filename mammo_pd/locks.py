"""File locks: one process at a time, released even if the process is killed."""

import fcntl
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
        lock(file, f"another process is using {path.parent}; wait for it, or stop it.")
        yield
