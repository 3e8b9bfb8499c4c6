"""Which images of a store have levels whose content is damaged, and the checksums of older ones."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt

from mammo_pd.cores import available_cores
from mammo_pd.data.image_file import level_checksum
from mammo_pd.data.record import Record, RecordedImage
from mammo_pd.data.store import StorePaths, is_damaged, read_pyramid_level, stored_bytes
from mammo_pd.errors import InputError
from mammo_pd.imaging.pyramid import build_pyramid
from mammo_pd.ingest.content import pixel_digest
from mammo_pd.terms import Status


def find_damaged(paths: StorePaths, record: Record) -> frozenset[str]:
    """Read every level of every image, and record the checksums that an earlier version left out.

    Such a version's images are compared with the hash of their native pixels, and their smaller
    levels with those made of the native one anew.

    Args:
        paths: the store.
        record: of the store.

    Returns:
        image_id of each image of which a level is lost or damaged.
    """
    damaged: set[str] = set()
    known_now: dict[str, dict[str, int]] = {}
    for image, checksums in _each_checked(paths, record):
        if checksums is None:
            damaged.add(image.image_id)
        elif not image.checksums:
            known_now[image.image_id] = checksums
    # Not while the rows are read, since that would change what is being read.
    for image_id, checksums in known_now.items():
        record.put_levels(image_id, checksums, stored_bytes(paths, image_id))
    return frozenset(damaged)


def _each_checked(
    paths: StorePaths, record: Record
) -> Iterator[tuple[RecordedImage, dict[str, int] | None]]:
    check: Callable[[RecordedImage], dict[str, int] | None]
    check = partial(_checked, paths, partial(record.hasher.hash, "pixels"))
    threads = available_cores()
    under_way: deque[tuple[RecordedImage, Future[dict[str, int] | None]]] = deque()
    # Threads, since reading and summing up release the interpreter's lock.
    with ThreadPoolExecutor(threads) as executor:
        for image in record.rows():
            if image.columns["status"] == Status.OK:
                under_way.append((image, executor.submit(check, image)))
            if len(under_way) > 2 * threads:
                done, future = under_way.popleft()
                yield done, future.result()
        for done, future in under_way:
            yield done, future.result()


def _checked(
    paths: StorePaths, pixel_hash: Callable[[bytes], str], image: RecordedImage
) -> dict[str, int] | None:
    """The checksums of an image's levels; None if one is damaged."""
    if not image.checksums:
        return _checked_by_pixels(paths, pixel_hash, image)
    if is_damaged(paths, image.image_id, image.checksums):
        return None
    return dict(image.checksums)


def _checked_by_pixels(
    paths: StorePaths, pixel_hash: Callable[[bytes], str], image: RecordedImage
) -> dict[str, int] | None:
    try:
        native = read_pyramid_level(paths, image.image_id, "native")
        if pixel_hash(pixel_digest(native)) != image.columns.get("pixel_hash"):
            return None
        levels: Mapping[str, npt.NDArray[np.uint16]] = build_pyramid(np.asarray(native))
    except InputError:
        return None
    checksums = {name: level_checksum(pixels) for name, pixels in levels.items()}
    if is_damaged(paths, image.image_id, checksums):
        return None
    return checksums
