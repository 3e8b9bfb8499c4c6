"""From a folder of new studies to images ready for a model: nothing but the record is kept.

Files are read by `process`'s transforms in worker processes, as for a store, so a model is given
the pixels that it would read in one. What they are called and what became of each is in an
owner-only record, by which a run that was stopped continues.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mammo_pd.cores import available_cores
from mammo_pd.data.new_image import NewImage
from mammo_pd.data.record import ImageOrigin, Record, RecordedImage
from mammo_pd.data.store import choose_pyramid_level
from mammo_pd.errors import ImageError, InputError
from mammo_pd.imaging.dicom_file import read_header
from mammo_pd.imaging.header import read_identifiers, reading_quietly
from mammo_pd.imaging.raster import RASTER_SUFFIXES
from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.ingest.content import pixel_digest
from mammo_pd.ingest.names import image_name, name_by_path
from mammo_pd.ingest.preprocess import file_version
from mammo_pd.ingest.process import (
    Outcome,
    ProcessedImage,
    failed,
    prepare_transforms,
    process_each_frame,
    process_image,
    time_limit_of,
    worker_died,
)
from mammo_pd.ingest.time_limit import time_limit
from mammo_pd.ingest.walk import FoundFiles
from mammo_pd.ingest.workers import run_in_processes
from mammo_pd.progress import Progress
from mammo_pd.terms import Frames, Reason, Status
from mammo_pd.wording import counted

# What a sentence advises that only preprocess can do: here the model's own settings count.
_OPTION_OF_PREPROCESS = re.compile(r"[;,] [^;,]*--[a-z].*")


@dataclass(frozen=True)
class ReadJob:
    """One file to be read; its ``repr`` names no path.

    Attributes:
        source: the file.
        version: its size in bytes and modification time in ns.
        settings: what decides the pixels.
        img_size: (height, width) in pixels that the model sees.
    """

    source: Path = field(repr=False)
    version: tuple[int, int]
    settings: ImagingSettings
    img_size: tuple[int, int]


def read_file(job: ReadJob) -> list[Outcome]:
    """Read one file, in a worker.

    Returns:
        One outcome, or with ``Frames.EACH`` one for each frame, with the level that the model
        reads. A file that cannot be used is an outcome too.
    """
    transforms = prepare_transforms(job.settings, thumbnail=False, assume_mammogram=False)
    try:
        with time_limit(time_limit_of(job.version[0])):
            if job.settings.frames != Frames.EACH:
                return [_as_outcome(job, process_image(job.source, transforms))]
            return [
                failed(image, frame)
                if isinstance(image, ImageError)
                else _as_outcome(job, image, frame)
                for frame, image in process_each_frame(job.source, transforms)
            ]
    except ImageError as error:
        return [replace(failed(error), identifiers=_find_exam(job))]


def _find_exam(job: ReadJob) -> dict[str, str]:
    """Patient and study of a file without pixels: its exam is scored without it, and is to say so.

    Not the image's own UID, by which it is named: a good file may have that, too.
    """
    if job.source.suffix.lower() in RASTER_SUFFIXES:
        return {}
    try:
        with time_limit(time_limit_of(job.version[0])), reading_quietly():
            found = read_identifiers(read_header(job.source).dataset)
    except ImageError:
        return {}
    return {name: found[name] for name in ("patient_id", "study_instance_uid") if name in found}


def _as_outcome(job: ReadJob, image: ProcessedImage, frame: int | None = None) -> Outcome:
    return Outcome(
        {**image.columns, "status": str(Status.OK)},
        frame,
        image.identifiers,
        pixel_digest=pixel_digest(image.pyramid["native"]),
        level=_level_of(image, job.img_size),
    )


def _level_of(image: ProcessedImage, img_size: tuple[int, int]) -> npt.NDArray[np.uint16]:
    height, width = image.pyramid["native"].shape
    return image.pyramid[choose_pyramid_level(height, width, img_size)]


def read_image(
    source: Path | str, img_size: tuple[int, int], settings: ImagingSettings | None = None
) -> npt.NDArray[np.uint16]:
    """Read one file as ``predict`` does, in this process: the pixels that a model is given of it.

    Args:
        source: a DICOM file, or an image file of which it is known that it is a mammogram.
        img_size: (height, width) in pixels that the model sees: ``model.card.img_size``.
        settings: what decides the pixels: ``model.settings``, with which it was trained.

    Returns:
        (h, w), cropped, the chest wall on the left, at the pyramid level that the model reads.

    Raises:
        ImageError: it cannot be used; the reason is the one that ``preprocess`` records.
    """
    from mammo_pd.ingest.transforms import store_transforms

    transforms = store_transforms(settings or ImagingSettings())
    return _level_of(process_image(Path(source), transforms), img_size)


def read_new_images(
    found: FoundFiles,
    folder: Path,
    record: Record,
    settings: ImagingSettings,
    img_size: tuple[int, int],
    *,
    workers: int | None = None,
    lacks: Callable[[str], bool] = lambda _: False,
    say: Callable[[str], None] = print,
) -> Iterator[list[NewImage]]:
    """Read the files that the record does not know, or knows otherwise, and record each.

    Nothing is committed: what is done with an image is to be recorded with it.

    Args:
        found: the files.
        folder: in which they were found.
        record: takes what each is; files that are gone leave it.
        settings: what decides the pixels.
        img_size: (height, width) in pixels that the model sees.
        workers: processes; by default one for each core.
        lacks: whether an image that is done lacks something, and is to be read again.
        say: is given each line that is meant for the user.

    Yields:
        Of each file the images that can be used; none of one that cannot.

    Raises:
        InputError: ``workers`` is not positive.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers} is below 1.")
    lost = _drop_lost_files(found, record)
    jobs = []
    done = 0
    for source in found.images:
        job = ReadJob(source, file_version(source), settings, img_size)
        if not _is_pending(job, record, lacks, read_copies=lost):
            done += 1
            continue
        if source.suffix.lower() in RASTER_SUFFIXES:
            detail = "an image file that is not DICOM, so nothing says whose mammogram it is"
            outcome = failed(ImageError(Reason.NOT_DICOM, detail))
            _put(job, [outcome], folder, record)
        else:
            jobs.append(job)
    say(
        f"{counted(len(found.images), 'image')} in {folder}"
        + (f", {done} of them done before" * (done > 0))
    )
    results = run_in_processes(
        jobs, read_file, max(1, min(workers or available_cores(), len(jobs)))
    )
    with Progress("predict", len(jobs), say) as progress:
        for job, outcomes in results:
            outcomes = [failed(worker_died())] if outcomes is None else outcomes
            yield _put(job, outcomes, folder, record)
            progress.update()


def _drop_lost_files(found: FoundFiles, record: Record) -> bool:
    """Take files out of the record that the folder no longer has; whether there were any."""
    here = set(found.images)
    lost = [path for path, _, _ in record.contents() if path not in here]
    for path in lost:
        record.remove(image_id for _, _, image_id, *_ in record.known(path))
    return bool(lost)


def _is_pending(
    job: ReadJob, record: Record, lacks: Callable[[str], bool], *, read_copies: bool
) -> bool:
    known = record.known(job.source)
    if not known:
        return True
    for size, mtime_ns, image_id, status, reason, *_ in known:
        if (size, mtime_ns) != job.version:
            return True
        if status == Status.OK and lacks(image_id):
            return True
        # The file whose copy it was may be gone.
        if read_copies and reason == Reason.DUPLICATE:
            return True
        # Earlier versions spoke of a label table here, which predict does not take.
        if reason == Reason.NOT_IN_TABLE:
            return True
        if status == Status.FAILED and reason is not None and Reason(reason).may_pass:
            return True
    return False


def _put(job: ReadJob, outcomes: list[Outcome], folder: Path, record: Record) -> list[NewImage]:
    """Name and record what one file gave; its usable images."""
    recorded, usable = [], []
    for outcome in outcomes:
        image = _named(job, outcome, folder, record)
        recorded.append(image)
        if image.columns["status"] == Status.OK and outcome.level is not None:
            usable.append(NewImage(image.image_id, outcome.level, image.columns))
    record.put(job.source, job.version, recorded)
    return usable


def _named(job: ReadJob, outcome: Outcome, folder: Path, record: Record) -> RecordedImage:
    hasher, uid = record.hasher, outcome.identifiers.get("sop_instance_uid")
    image_id = image_name(job.source, folder, outcome.identifiers, outcome.frame, hasher)
    holder = record.source_of(image_id)
    if holder is not None and holder.path != job.source:
        image_id = name_by_path(job.source, outcome.frame, hasher)
    columns = dict(outcome.columns)
    if outcome.pixel_digest:
        columns["pixel_hash"] = hasher.hash("pixels", outcome.pixel_digest)
        # Counted once, as in a store: a breast's score is made of its images'.
        twin = record.with_pixels(columns["pixel_hash"], job.source) if uid else None
        if twin is not None:
            detail = f"has the pixels of {twin}"
            columns |= failed(ImageError(Reason.DUPLICATE, detail)).columns
    if columns.get("reason") == Reason.MULTI_FRAME:
        # There is no --frames here: the model's own setting counts.
        columns["detail"] = "The file holds several frames; the model was trained on single images."
    elif columns.get("reason"):
        columns["detail"] = _OPTION_OF_PREPROCESS.sub(".", columns["detail"])
    origin = ImageOrigin(job.source, outcome.frame)
    return RecordedImage(origin, image_id, columns, outcome.identifiers, 0)
