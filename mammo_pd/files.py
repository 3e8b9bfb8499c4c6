"""Files that are whole or absent: write beside, then rename."""

import os
import tempfile
from collections import deque
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


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove what killed writers left in a folder, which `atomic_write` would have renamed.

    Args:
        folder: of the files.
        names: of files that no other process writes now, or patterns of them.
    """
    for name in names:
        for beside in folder.glob(f".{name}.????????{Path(name).suffix}"):
            beside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make names that were put into a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, as UTF-8."""
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _umask() -> int:
    # Not by os.umask, which reads it by setting it: another thread would write without one.
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

    Each folder is read once: a link to one that is read anyway adds nothing, and one that leads
    back to a folder around itself is not followed.

    Args:
        folder: where to begin.
        closed: is told of each folder that cannot be listed.
        read_before: is told of each link, or folder behind one, that is passed over.
    """
    seen: set[tuple[int, int]] = set()
    # Links wait until the tree itself is read, so that a file keeps its own path.
    waiting = deque([folder])
    while waiting:
        for root, folders, names in os.walk(waiting.popleft(), onerror=closed):
            try:
                status = Path(root).stat()
            except OSError as error:  # removed while the rest was read
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
