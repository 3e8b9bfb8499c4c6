"""Locks of files: one process at a time, and none is left when a process dies, however it does."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mammo_pd.errors import InputError


def lock(file: IO[bytes], message: str) -> None:
    """Take an open file's lock, which is let go when the file is closed.

    Raises:
        InputError: with the message, where another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(message) from error
    except OSError:
        # A file system without locks: nothing can be told apart there.
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
