"""Add levels to images that are in the store: out of a larger level where one is kept.

A level made so equals, to the bit, the one that would have been made with the image, since a
pyramid is always built from level to level.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mammo_pd.data.kept_levels import ALL_LEVELS, NATIVE, levels_of
from mammo_pd.data.record import Record, RecordedImage
from mammo_pd.data.store import StorePaths, is_damaged, put_levels, stored_bytes, write_pyramid
from mammo_pd.imaging.pyramid import fitted_size, smaller_levels
from mammo_pd.terms import Status


@dataclass(frozen=True)
class LevelJob:
    """Levels to be made of another one.

    Attributes:
        image_id: of the image.
        source: the file of the smallest level that they can be made of.
        checksum: of that file.
        native: (height, width) of the native pixels.
        missing: names of the levels.
        known: checksums of the levels that there are.
        partial: the folder in which workers write.
    """

    image_id: str
    source: Path
    checksum: int
    native: tuple[int, int]
    missing: tuple[str, ...]
    known: Mapping[str, int]
    partial: Path

    @property
    def size(self) -> int:
        """How many bytes the levels will take."""
        return bytes_of(self.native, self.missing)


@dataclass(frozen=True)
class MadeLevels:
    """What a worker made: the folder of the levels' files, and their checksums."""

    folder: Path
    checksums: Mapping[str, int]


def bytes_of(native: tuple[int, int], levels: Iterable[str]) -> int:
    """The size of some levels of an image whose native pixels are (height, width)."""
    shapes = (native if level == NATIVE else fitted_size(native, int(level)) for level in levels)
    return sum(2 * height * width for height, width in shapes)


def plan_levels(
    paths: StorePaths, record: Record, kept: tuple[str, ...], damaged: frozenset[str]
) -> tuple[list[LevelJob], frozenset[str]]:
    """Find the images that lack a level which the store is to keep.

    Args:
        paths: the store.
        record: of the store.
        kept: the levels that it is to keep.
        damaged: images of which nothing is to be made.

    Returns:
        Jobs for the levels that a kept one gives; image_id of those that must be decoded again.
    """
    jobs: list[LevelJob] = []
    to_decode: set[str] = set()
    for image in record.rows():
        # Images that are recorded without checksums are of earlier versions, which kept all levels.
        if image.columns["status"] != Status.OK or not image.checksums:
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
                image.image_id,
                paths.image(image.image_id) / f"{source}.npy",
                image.checksums[source],
                native,
                tuple(missing),
                image.checksums,
                paths.partial,
            )
        )
    return jobs, frozenset(to_decode)


def make_levels(job: LevelJob) -> MadeLevels | None:
    """Make levels of a larger one, in a worker; None if that one is damaged.

    Raises:
        OSError: they cannot be written.
    """
    if is_damaged(job.source, job.checksum):
        return None
    made = smaller_levels(np.load(job.source, allow_pickle=False), job.native)
    folder = job.partial / uuid.uuid4().hex
    return MadeLevels(folder, write_pyramid(folder, {name: made[name] for name in job.missing}))


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
            put_levels(paths, levels.folder, job.image_id)
            size = stored_bytes(paths, job.image_id)
            record.put_levels(job.image_id, {**job.known, **levels.checksums}, size)


def _source_of(image: RecordedImage, missing: list[str]) -> str | None:
    """The smallest level of an image that is larger than all that it lacks."""
    largest_missing = min(ALL_LEVELS.index(level) for level in missing)
    larger = [level for level in image.checksums if ALL_LEVELS.index(level) < largest_missing]
    return max(larger, key=ALL_LEVELS.index, default=None)
