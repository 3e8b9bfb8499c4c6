"""Files that moved, recognised by their content: they are neither decoded nor counted twice."""

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from mammo_pd.cores import available_cores
from mammo_pd.data.record import Record
from mammo_pd.files import is_gone
from mammo_pd.ingest.content import content_digest


def recognise_moved(files: Iterable[Path], record: Record) -> int:
    """Let the record follow files that lie elsewhere than when they were read.

    A file has moved if it is new, has the content of a recorded one, and that one is gone; as long
    as it is there, the new one is a copy. Labels and names of its images stay.

    Args:
        files: of the folder.
        record: of the store; the caller commits.

    Returns:
        How many files have moved.
    """
    if next(record.contents(), None) is None:
        return 0
    sizes = {file: _size(file) for file in files if not record.known(file)}
    wanted = set(sizes.values())
    gone: dict[tuple[int, bytes], list[Path]] = defaultdict(list)
    # Where sizes differ, so do contents: most files of an archive need no look at the disk.
    for path, size, digest in record.contents() if sizes else ():
        if digest and size in wanted and is_gone(path):
            gone[size, digest].append(path)
    if not gone:
        return 0
    lost = {size for size, _ in gone}
    candidates = [file for file, size in sizes.items() if size in lost]
    moved = 0
    with ThreadPoolExecutor(available_cores()) as pool:
        digests = pool.map(content_digest, candidates)
        for file, digest in tqdm(
            zip(candidates, digests, strict=True),
            total=len(candidates),
            unit="file",
            desc="recognise moved files",
            disable=None,
        ):
            content = sizes[file], digest
            if not gone.get(content):
                continue
            # Of several with one content, the one whose path agrees from its end on.
            before = max(gone[content], key=lambda old: _common_end(old, file))
            gone[content].remove(before)
            record.move(before, file, file.stat().st_mtime_ns)
            moved += 1
    return moved


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _common_end(one: Path, other: Path) -> int:
    pairs = zip(reversed(one.parts), reversed(other.parts), strict=False)
    for number, (mine, theirs) in enumerate(pairs):
        if mine != theirs:
            return number
    return min(len(one.parts), len(other.parts))
