"""Check disks, permissions, the workers' time limit, and MLflow's database."""

import errno
import fcntl
import mmap
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mammo_pd.data.store import StorePaths
from mammo_pd.doctor.finding import Finding, fails, ok, warning
from mammo_pd.errors import ImageError, InputError
from mammo_pd.wording import counted

# Space for the checkpoints, reports and MLflow database of a few runs.
_LEAST_FREE = 5e9
_LEAST_INODES = 100_000
# Seconds that a message to MLflow may wait.
_PATIENCE = 60
# Seconds after which a worker must give up.
_LIMIT = 0.1


def check_places(*folders: tuple[str, Path]) -> Iterator[Finding]:
    """Check that files can be written, renamed, mapped and locked where results go.

    Args:
        folders: each folder's purpose, and where it is or will be.
    """
    for what, folder in folders:
        yield _check_place(f"{what} ({folder})", folder)


def check_temporary() -> Iterator[Finding]:
    """Check the folder for temporary files, and that for caches if the environment names one."""
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError:
        yield fails(
            "temporary files",
            "no folder takes any: TMPDIR and /tmp cannot be written to",
            "in Docker on a read-only root: --tmpfs /tmp:exec; elsewhere name one in TMPDIR.",
        )
    else:
        yield _check_place(f"temporary files ({folder})", folder)
    # Importing torchvision makes it.
    if cache := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        yield _check_place(f"caches ({cache})", Path(cache))


def _check_place(name: str, folder: Path) -> Finding:
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return fails(name, f"{existing} is not a folder", "remove it, or name another folder.")
    try:
        with tempfile.TemporaryDirectory(prefix=".mammo-pd-", dir=existing) as made:
            problem = _write_and_rename(Path(made))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space."
        elif error.errno == errno.EROFS:
            remedy = (
                "mount it so that it can be written to (in Docker: --volume, for /tmp --tmpfs "
                "/tmp:exec), or name another folder."
            )
        else:
            remedy = "get write permission there, or name another folder."
        return fails(name, f"cannot write to {existing} ({error.strerror})", remedy)
    free = shutil.disk_usage(existing).free
    status = os.statvfs(existing)
    if problem:
        return warning(name, *problem)
    if free < _LEAST_FREE:
        return warning(name, f"{free / 1e9:.1f} GB free", "free some, or name another folder.")
    if status.f_files and status.f_favail < _LEAST_INODES:
        return warning(
            name,
            f"room for {counted(status.f_favail, 'more file')}",
            "delete small files: each image takes one file per level of its pyramid.",
        )
    return ok(name, f"writable, {free / 1e9:.0f} GB free")


def check_private(store: Path) -> Iterator[Finding]:
    """Check that only the owner of an existing store can read what identifies women."""
    private = StorePaths(store).private
    if not private.is_dir():
        return
    name = f"permissions of {private}"
    try:
        files = [private, *private.rglob("*")]
        is_open = bool(private.stat().st_mode & 0o077)
        unreadable = [file for file in files if not os.access(file, os.R_OK | os.W_OK)]
    except OSError as error:
        yield fails(name, f"cannot be inspected ({error.strerror})", "ask the store's owner.")
        return
    if is_open:
        yield fails(
            name,
            "other users can enter it, and it holds paths and original identifiers",
            f"chmod -R go-rwx {shlex.quote(str(private))}",
        )
    elif unreadable:
        yield warning(
            name,
            f"you cannot read and write {counted(len(unreadable), 'file')} in it",
            "train does not need them; only the store's owner can run preprocess.",
        )
    else:
        yield ok(name, "only its owner has access")


def _write_and_rename(folder: Path) -> tuple[str, str] | None:
    """Use files as the commands do; returns what failed and its remedy, or None."""
    first, second = folder / "a", folder / "b"
    with first.open("w+b") as file:
        file.write(b"mammo-pd")
        file.flush()
        os.fsync(file.fileno())
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert mapped[:] == b"mammo-pd"
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return (
                "the file system does not support locks",
                "run only one command at a time there, or use a local disk.",
            )
    first.replace(second)
    second.chmod(0o600)
    if second.stat().st_mode & 0o077:
        return (
            "the file system does not store permissions, so others may read private files",
            "use a disk with POSIX permissions for the store.",
        )
    return None


def check_room(folder: Path, store: Path) -> Iterator[Finding]:
    """Check that the store's disk has room for what ``preprocess`` would make of a folder."""
    from mammo_pd.data.kept_levels import ALL_LEVELS
    from mammo_pd.ingest.space import expected_space
    from mammo_pd.ingest.walk import find_images
    from mammo_pd.terms import Frames

    name = f"room for the images of {folder}"
    try:
        images = find_images(folder).images
    except InputError as error:
        yield fails(name, str(error), "name the folder that holds the mammograms.")
        return
    space = expected_space(images, Frames.EXCLUDE, ALL_LEVELS)
    disk = store.absolute()
    while not disk.exists():
        disk = disk.parent
    free = shutil.disk_usage(disk).free
    found = (
        f"{counted(len(images), 'image')}, about {space.likely / 1e9:.1f} GB and at most "
        f"{space.most / 1e9:.1f} GB of store; {free / 1e9:.1f} GB free"
    )
    remedy = f"free some, name another --out than {store}, or keep fewer levels (--levels 1024)."
    if space.likely > free:
        yield fails(name, found, remedy)
    elif space.most > free:
        yield warning(name, found, remedy)
    else:
        yield ok(name, found)


def check_workers() -> Iterator[Finding]:
    """Check that worker processes start, and give up on a file that takes too long."""
    from mammo_pd.ingest.workers import run_in_processes

    name, started = "workers", time.monotonic()
    try:
        # None if the worker was killed along with its task, as in a decoder that never returns.
        ((_, state),) = run_in_processes([_LIMIT], overstay, 1)
    except InputError:
        yield fails(
            name,
            "die before they read any file",
            "free memory, or raise the container's limit; if that does not help, reinstall "
            "mammo-pd and its dependencies.",
        )
        return
    if state in (None, "ended"):
        yield ok(
            name, f"start, and stop files that take too long ({time.monotonic() - started:.1f} s)"
        )
    else:
        yield fails(
            name,
            "a file that takes too long is not stopped: a damaged one can hang preprocess",
            "SIGALRM must reach processes here: check what starts this one.",
        )


def overstay(limit: float) -> str:
    """Exceed a limit of some seconds, in a worker; returns ``ended`` if that is noticed."""
    from mammo_pd.ingest.time_limit import time_limit

    try:
        with time_limit(limit):
            time.sleep(20 * limit)
    except ImageError:
        return "ended"
    return "overstayed"


def check_time_outs() -> Iterator[Finding]:
    """Report how long commands wait for a file or a server that may never respond."""
    from mammo_pd.ingest.process import time_limit_of
    from mammo_pd.tracking import patience_with_server

    name, patience = "time-outs", patience_with_server()
    found = (
        f"a file of 10 MB {time_limit_of(10_000_000):.0f} s, a message to MLflow's server "
        f"{patience:.0f} s"
    )
    if patience > _PATIENCE:
        yield warning(
            name,
            found,
            "training waits that long whenever the server is unreachable: lower "
            "MLFLOW_HTTP_REQUEST_TIMEOUT or MLFLOW_HTTP_REQUEST_MAX_RETRIES.",
        )
    else:
        yield ok(name, found)


def check_mlflow(runs: Path) -> Iterator[Finding]:
    """Check that MLflow accepts a run where this folder's runs are or would be recorded.

    A local database is tried beside, since a run of the doctor is none of the user's.
    """
    from mammo_pd.tracking import TRACKING_VARIABLE, reason_of, try_store

    name = "MLflow"
    server = os.environ.get(TRACKING_VARIABLE)
    try:
        found = try_store(runs)
    except Exception as error:  # of a server, a database, a library
        remedy = (
            f"start the server that {TRACKING_VARIABLE} names, or unset it for a local database."
            if server
            else f"move {runs / 'mlflow.db'} away, or pip install --force-reinstall mlflow"
        )
        yield fails(name, reason_of(error), remedy)
        return
    yield ok(name, found)
