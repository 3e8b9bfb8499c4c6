"""Add levels to images that are in the store: out of a larger level where one is kept.

A level made so equals, to the bit, the one that would have been made with the image, since a
pyramid is always built from level to level. The image's file is written anew with all its levels,
beside the one that there is, and then put in its place.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mammo_pd.data.image_file import SUFFIX, write_image_file
from mammo_pd.data.kept_levels import ALL_LEVELS, NATIVE, levels_of
from mammo_pd.data.record import Record, RecordedImage
from mammo_pd.data.store import StorePaths, is_damaged, read_pyramid_level, stored_bytes, take_in
from mammo_pd.imaging.pyramid import fitted_size, smaller_levels
from mammo_pd.terms import Compression, Status


@dataclass(frozen=True)
class LevelJob:
    """Levels to be made of another one.

    Attributes:
        paths: the store.
        image_id: of the image.
        source: the smallest level that they can be made of.
        native: (height, width) of the native pixels.
        missing: names of the levels.
        known: checksums of the levels that there are.
        compression: of the image's file from now on.
    """

    paths: StorePaths
    image_id: str
    source: str
    native: tuple[int, int]
    missing: tuple[str, ...]
    known: Mapping[str, int]
    compression: Compression

    @property
    def size(self) -> int:
        """How many bytes the levels will take."""
        return bytes_of(self.native, self.missing)


@dataclass(frozen=True)
class MadeLevels:
    """What a worker made: the image's file with all its levels, and their checksums."""

    file: Path
    checksums: Mapping[str, int]


def bytes_of(native: tuple[int, int], levels: Iterable[str]) -> int:
    """The size of some levels of an image whose native pixels are (height, width)."""
    shapes = (native if level == NATIVE else fitted_size(native, int(level)) for level in levels)
    return sum(2 * height * width for height, width in shapes)


def plan_levels(
    paths: StorePaths,
    record: Record,
    kept: tuple[str, ...],
    damaged: frozenset[str],
    compression: Compression,
) -> tuple[list[LevelJob], frozenset[str]]:
    """Find the images that lack a level which the store is to keep.

    Args:
        paths: the store.
        record: of the store.
        kept: the levels that it is to keep.
        damaged: images of which nothing is to be made.
        compression: of what is written.

    Returns:
        Jobs for the levels that a kept one gives; image_id of those that must be decoded again.
    """
    jobs: list[LevelJob] = []
    to_decode: set[str] = set()
    for image in record.rows():
        if image.columns["status"] != Status.OK:
            continue
        native = int(image.columns["crop_height"]), int(image.columns["crop_width"])
        missing = [name for name in levels_of(max(native), kept) if name not in image.checksums]
        if not missing:
            continue
        source = _source_of(image, missing)
        if source is None or image.image_id in damaged:
            to_decode.add(image.image_id)
            continue
        jobs.append(
            LevelJob(
                paths,
                image.image_id,
                source,
                native,
                tuple(missing),
                image.checksums,
                compression,
            )
        )
    return jobs, frozenset(to_decode)


def make_levels(job: LevelJob) -> MadeLevels | None:
    """Make levels of a larger one, in a worker; None if a level that there is is damaged.

    Raises:
        OSError: they cannot be written.
    """
    if is_damaged(job.paths, job.image_id, job.known):
        return None
    levels = {name: read_pyramid_level(job.paths, job.image_id, name) for name in job.known}
    made = smaller_levels(np.asarray(levels[job.source]), job.native)
    levels |= {name: made[name] for name in job.missing}
    job.paths.partial.mkdir(parents=True, exist_ok=True)
    file = job.paths.partial / f"{uuid.uuid4().hex}{SUFFIX}"
    ordered = {name: levels[name] for name in ALL_LEVELS if name in levels}
    compressed = job.compression != Compression.NONE
    return MadeLevels(file, write_image_file(file, ordered, compressed=compressed))


def take_in_levels(
    made: Iterable[tuple[LevelJob, MadeLevels | None]],
    paths: StorePaths,
    record: Record,
) -> Iterator[str]:
    """Put levels that workers made into the store and the record.

    Args:
        made: by each job; None where nothing could be made.
        paths: the store.
        record: of the store.

    Yields:
        image_id of each image of which nothing could be made, and which must be decoded again.
    """
    for job, levels in made:
        if levels is None:
            yield job.image_id
        else:
            take_in(paths, levels.file, job.image_id)
            size = stored_bytes(paths, job.image_id)
            record.put_levels(job.image_id, levels.checksums, size)


def _source_of(image: RecordedImage, missing: list[str]) -> str | None:
    """The smallest level of an image that is larger than all that it lacks."""
    largest_missing = min(ALL_LEVELS.index(level) for level in missing)
    larger = [level for level in image.checksums if ALL_LEVELS.index(level) < largest_missing]
    return max(larger, key=ALL_LEVELS.index, default=None)
