"""Files: written whole or not at all, next to the target and then renamed; read though damaged."""

import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Give a temporary path beside ``path``, renamed onto it if the block ends without error.

    A reader therefore sees the old file or the new one, never half of it; a killed writer leaves
    the old file as it was.

    Args:
        path: the file to be written.
        mode: its permissions, before the process's umask; 0o600 restricts it to the owner.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent
        )
    except OSError as error:
        error.filename = str(path)  # as it was asked for, and not a name that nobody has seen
        raise
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


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove temporary files that killed writers of `atomic_write` left in a folder.

    Args:
        folder: of the files.
        names: of files that no other process is writing, or glob patterns.
    """
    for name in names:
        for beside in folder.glob(f".{name}.????????{Path(name).suffix}"):
            beside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a folder's new entries survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_json(text: str | bytes) -> Any:
    """Read JSON that may be damaged or another's.

    Raises:
        ValueError: it is none, or is nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _umask() -> int:
    # os.umask can only read the umask by setting it, and another thread would then write without.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def each_file(
    folder: Path,
    closed: Callable[[OSError], None],
    read_before: Callable[[Path], None] = lambda _: None,
) -> Iterator[Path]:
    """Every file under ``folder`` in sorted order, then those of the folders that it links to.

    Each folder is read once: links to folders that are read anyway add nothing, and links back to
    an enclosing folder are not followed.

    Args:
        folder: where to begin.
        closed: called with each folder that cannot be listed.
        read_before: called with each link, or folder behind one, that is skipped.
    """
    seen: set[tuple[int, int]] = set()
    # Links are followed after the tree itself, so that a file in the tree keeps its own path.
    waiting = deque([folder])
    while waiting:
        for root, folders, names in os.walk(waiting.popleft(), onerror=closed):
            try:
                status = Path(root).stat()
            except OSError as error:  # removed while the others were being read
                closed(error)
                folders.clear()
                continue
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                read_before(Path(root))
                continue
            seen.add((status.st_dev, status.st_ino))
            for link in sorted(name for name in folders if Path(root, name).is_symlink()):
                folders.remove(link)
                if Path(root).resolve().is_relative_to(Path(root, link).resolve()):
                    read_before(Path(root, link))
                else:
                    waiting.append(Path(root, link))
            folders.sort()
            for name in sorted(names):
                yield Path(root, name)


def is_gone(path: Path) -> bool:
    """Whether a file was deleted or moved; one that merely cannot be reached is not gone."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
