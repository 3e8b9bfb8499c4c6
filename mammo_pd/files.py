"""Files that are whole or absent: write beside, then rename."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Give a temporary path beside ``path``, renamed onto it if the block ends without error.

    A reader therefore sees the old file or the new one, never half of it; a killed writer leaves
    the old file as it was.

    Args:
        path: the file to be written.
        mode: its rights, less the process's umask; 0o600 is for the owner alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(mode & ~_umask())
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, as UTF-8."""
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _umask() -> int:
    # There is no way to read it without setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def each_file(folder: Path, closed: Callable[[OSError], None]) -> Iterator[Path]:
    """Every file under ``folder`` in sorted order; links to folders are not followed.

    Args:
        folder: where to begin.
        closed: is told of each folder that cannot be listed.
    """
    for root, folders, names in os.walk(folder, onerror=closed):
        folders.sort()
        for name in sorted(names):
            yield Path(root, name)
