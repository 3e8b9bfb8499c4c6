"""The work on one file, done in a worker: run MONAI's transforms, write the pyramid, report.

Importing this module loads neither MONAI nor a decoder, since the process that hands out the work
needs neither.
"""

import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mammo_pd.data.image_file import SUFFIX, write_image_file
from mammo_pd.data.kept_levels import ALL_LEVELS, levels_of
from mammo_pd.errors import ImageError, RefusedPixelsError
from mammo_pd.imaging.raster import RASTER_SUFFIXES
from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.ingest.content import content_digest, pixel_digest
from mammo_pd.ingest.time_limit import time_limit
from mammo_pd.terms import Compression, Frames, Reason, Status

if TYPE_CHECKING:
    from mammo_pd.ingest.mammogram import DicomFrame, FileHeader

# A monai.transforms.Compose of dictionary transforms.
Transforms = Callable[[dict[str, Any]], Mapping[Any, Any]]


# The longest that a file may take: JPEG 2000, the slowest, takes a second for 3 MB.
_SECONDS = 300.0
_SECONDS_PER_MB = 1.0


@dataclass(frozen=True)
class Job:
    """One file to be processed; its ``repr``, which a cluster logs of failed work, names no path.

    Attributes:
        source: the file.
        version: its size in bytes and modification time in ns.
        named: the label table names it, so it is a mammogram whatever its tags lack.
        settings: what decides the pixels.
        partial: the folder in which workers write.
        thumbnail: whether a thumbnail of the whole frame is wanted.
        photometric_interpretation: what the label table says of a file that is not DICOM.
        levels: those that the store keeps.
        compression: of the pyramid.
    """

    source: Path = field(repr=False)
    version: tuple[int, int]
    named: bool
    settings: ImagingSettings
    partial: Path
    thumbnail: bool
    photometric_interpretation: str | None = None
    levels: tuple[str, ...] = ALL_LEVELS
    compression: Compression = Compression.NONE


@dataclass(frozen=True)
class Outcome:
    """What became of one file, or of one frame of it.

    Attributes:
        columns: of the manifest; ``status`` and, if not ok, ``reason`` and ``detail`` among them.
        frame: which, from 1, if the frames of a file are images of their own.
        identifiers: the original ones, for the owner-only record.
        pyramid: the file into which the worker wrote it; None if there is none.
        pixel_digest: of the native pixels; empty if there are none.
        thumbnail: (h, w) uint8 whole frame, if wanted.
        shown_of: identifiers of a refused image that has a thumbnail, which are not recorded.
        file_content: digest of the whole file's content; empty if unknown.
        checksums: of the levels in ``pyramid``, by name.
        level: (h, w) uint16, the level that a model reads, where nothing is to be stored.
    """

    columns: Mapping[str, Any]
    frame: int | None = None
    identifiers: Mapping[str, str] = field(default_factory=dict, repr=False)
    pyramid: Path | None = None
    pixel_digest: bytes = b""
    thumbnail: npt.NDArray[np.uint8] | None = None
    file_content: bytes = b""
    checksums: Mapping[str, int] = field(default_factory=dict)
    level: npt.NDArray[np.uint16] | None = None
    shown_of: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class ProcessedImage:
    """One image as the transforms leave it.

    Attributes:
        pyramid: (h, w) uint16 by level, ``native`` first.
        columns: of the manifest, those that are known.
        identifiers: the original ones, for the owner-only record.
        thumbnail: (h, w) uint8 whole frame, if the transforms draw it.
    """

    pyramid: Mapping[str, npt.NDArray[np.uint16]]
    columns: Mapping[str, Any]
    identifiers: Mapping[str, str] = field(repr=False)
    thumbnail: npt.NDArray[np.uint8] | None = None


def time_limit_of(size: int) -> float:
    """Seconds that a file may take.

    Args:
        size: of the file in bytes; negative if it cannot be told.
    """
    return _SECONDS + _SECONDS_PER_MB * max(0, size) / 1e6


def process_file(job: Job) -> list[Outcome]:
    """Process one file.

    Returns:
        One outcome, or with ``Frames.EACH`` one for each frame. A file that cannot be used is an
        outcome too.

    Raises:
        OSError: the pyramid cannot be written.
    """
    try:
        with time_limit(time_limit_of(job.version[0])):
            content = content_digest(job.source)
            return [replace(outcome, file_content=content) for outcome in _outcomes(job)]
    except ImageError as error:
        return [failed(error)]


def _outcomes(job: Job) -> list[Outcome]:
    transforms = prepare_transforms(job.settings, job.thumbnail, job.named)
    photometric = job.photometric_interpretation
    try:
        if job.settings.frames != Frames.EACH:
            return [_write(job, process_image(job.source, transforms, photometric))]
        return [
            failed(image, frame) if isinstance(image, ImageError) else _write(job, image, frame)
            for frame, image in process_each_frame(
                job.source,
                transforms,
                assume_mammogram=job.named,
                photometric_interpretation=photometric,
            )
        ]
    except ImageError as error:
        return [failed(error)]


def process_image(
    source: "Path | DicomFrame",
    transforms: Transforms,
    photometric_interpretation: str | None = None,
) -> ProcessedImage:
    """Run the transforms on one image.

    Args:
        source: the file, or one frame of it.
        transforms: as ``store_transforms`` composes them.
        photometric_interpretation: of a file that is not DICOM, where something else tells it.

    Raises:
        ImageError: the image cannot be used. Nothing else is raised for a bad file.
    """
    try:
        # Warnings about a bad header can quote it; the manifest says what matters.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            known = {"image_photometric_interpretation": photometric_interpretation}
            done = transforms({"image": source, **known})
    except Exception as error:
        raise _as_image_error(error) from error
    header: FileHeader = done["image_header"]
    columns = {name: value for name, value in done["image_meta_dict"].items() if name != "affine"}
    if "photometric_interpretation" in columns:
        told = "tag" if photometric_interpretation is None else "table"
        columns["photometric_interpretation_source"] = told
    return ProcessedImage(
        done["image_pyramid"],
        columns,
        header.identifiers,
        done.get("image_thumbnail"),
    )


def process_each_frame(
    path: Path,
    transforms: Transforms,
    *,
    assume_mammogram: bool = False,
    photometric_interpretation: str | None = None,
) -> Iterator[tuple[int | None, ProcessedImage | ImageError]]:
    """Run the transforms on every frame of a file, one at a time; the file is read once.

    Args:
        path: the file.
        transforms: as ``store_transforms`` composes them.
        assume_mammogram: accept a header that lacks a Modality.
        photometric_interpretation: as for ``process_image``.

    Yields:
        The frame's number from 1, as DICOM counts, and the image, or why it cannot be used. The
        number is None if the file holds one frame.

    Raises:
        ImageError: the file cannot be used, whatever the frame.
    """
    from mammo_pd.ingest.mammogram import read_frames

    if path.suffix.lower() in RASTER_SUFFIXES:
        yield None, process_image(path, transforms, photometric_interpretation)
        return
    for frame in read_frames(path, assume_mammogram=assume_mammogram):
        if frame.number is None:
            yield None, process_image(frame, transforms)
            return
        try:
            yield frame.number + 1, process_image(frame, transforms)
        except ImageError as error:
            yield frame.number + 1, error


def failed(error: ImageError, frame: int | None = None) -> Outcome:
    """The outcome of an image that cannot be used."""
    status = Status.EXCLUDED if error.reason.excludes else Status.FAILED
    columns = {"status": str(status), "reason": str(error.reason), "detail": error.detail}
    columns = columns if frame is None else {**columns, "frame": str(frame)}
    if not isinstance(error, RefusedPixelsError):
        return Outcome(columns, frame)
    return Outcome(columns, frame, thumbnail=error.thumbnail, shown_of=error.identifiers)


def worker_died() -> ImageError:
    """Why a file has no outcome: whatever read it is gone."""
    detail = "the process that read it died (a decoder crash, out of memory, or stuck for too long)"
    return ImageError(Reason.WORKER_DIED, detail)


def not_in_table() -> ImageError:
    """Why a picture is not read: only a label table tells that a PNG is a mammogram."""
    detail = "an image file that is not DICOM and that no row of a label table names"
    return ImageError(Reason.NOT_IN_TABLE, detail)


@lru_cache(maxsize=2)
def prepare_transforms(
    settings: ImagingSettings, thumbnail: bool, assume_mammogram: bool
) -> Transforms:
    """Compose the transforms once in each process."""
    from threadpoolctl import threadpool_limits

    from mammo_pd.ingest import transforms

    # On a Dask worker, which no fork server prepared: one thread for each library.
    threadpool_limits(1)
    composed: Transforms = transforms.store_transforms(
        settings, thumbnail=thumbnail, assume_mammogram=assume_mammogram
    )
    return composed


def _write(job: Job, image: ProcessedImage, frame: int | None = None) -> Outcome:
    # A file for each attempt: a worker that was given up for dead may still be writing.
    job.partial.mkdir(parents=True, exist_ok=True)
    file = job.partial / f"{uuid.uuid4().hex}{SUFFIX}"
    native = image.pyramid["native"]
    kept = levels_of(max(native.shape), job.levels)
    checksums = write_image_file(
        file,
        {name: image.pyramid[name] for name in kept},
        compressed=job.compression != Compression.NONE,
    )
    return Outcome(
        {**image.columns, "status": str(Status.OK)},
        frame,
        image.identifiers,
        file,
        pixel_digest(native),
        image.thumbnail,
        checksums=checksums,
    )


def _as_image_error(error: BaseException) -> ImageError:
    """The ImageError that MONAI wrapped in its RuntimeError, or one that says what else it was."""
    cause: BaseException | None = error
    root = error
    while cause is not None:
        if isinstance(cause, ImageError):
            return cause
        root = cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(root, MemoryError):
        return ImageError(Reason.DECODE_FAILED, "Memory ran out while the image was prepared.")
    # Not the error's own words, which may quote the header.
    return ImageError(
        Reason.UNREADABLE, f"The image could not be prepared ({type(root).__name__})."
    )
