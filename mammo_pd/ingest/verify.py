"""Which images of a store have levels whose content is damaged."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from mammo_pd.cores import available_cores
from mammo_pd.data.record import Record, RecordedImage
from mammo_pd.data.store import StorePaths, is_damaged
from mammo_pd.terms import Status


def find_damaged(paths: StorePaths, record: Record) -> frozenset[str]:
    """Read every level of every image.

    Args:
        paths: the store.
        record: of the store.

    Returns:
        image_id of each image of which a level is lost or damaged.
    """
    return frozenset(
        image.image_id for image, damaged in _each_checked(paths, record) if damaged.result()
    )


def _each_checked(
    paths: StorePaths, record: Record
) -> Iterator[tuple[RecordedImage, Future[bool]]]:
    threads = available_cores()
    under_way: deque[tuple[RecordedImage, Future[bool]]] = deque()
    # Threads, since reading and summing up release the interpreter's lock.
    with ThreadPoolExecutor(threads) as executor:
        for image in record.rows():
            if image.columns["status"] == Status.OK:
                damaged = executor.submit(is_damaged, paths, image.image_id, image.checksums)
                under_way.append((image, damaged))
            if len(under_way) > 2 * threads:
                yield under_way.popleft()
        yield from under_way
