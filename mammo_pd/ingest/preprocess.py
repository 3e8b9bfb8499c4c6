"""From a folder of mammograms to a store: plan, run, commit, summarise.

The work on each file runs in worker processes (`process`, handed out by `workers`). This process
alone writes the record, so an image is in the store as a whole or not at all, and a run that was
killed continues where it stopped.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mammo_pd.cores import available_cores
from mammo_pd.data.kept_levels import ALL_LEVELS, keep_levels, kept_levels
from mammo_pd.data.labels import LabelTable
from mammo_pd.data.manifest import write_manifest
from mammo_pd.data.manifest_row import manifest_row
from mammo_pd.data.record import ImageOrigin, Record, RecordedImage
from mammo_pd.data.store import (
    StorePaths,
    create_or_match,
    keep_compression,
    kept_compression,
    read_store_info,
    remove_image,
    stored_bytes,
    take_in,
    upgrade_store,
    write_array,
    write_store_info,
)
from mammo_pd.errors import ImageError, InputError
from mammo_pd.files import atomic_write, is_gone, remove_leftovers
from mammo_pd.imaging.box import Box
from mammo_pd.imaging.dicom_file import read_header
from mammo_pd.imaging.header import read_identifiers, reading_quietly
from mammo_pd.imaging.raster import RASTER_SUFFIXES
from mammo_pd.imaging.settings import ALGORITHM_VERSION, ImagingSettings
from mammo_pd.ingest.add_levels import (
    LevelJob,
    MadeLevels,
    make_levels,
    plan_levels,
    take_in_levels,
)
from mammo_pd.ingest.contact_sheet import draw_contact_sheet
from mammo_pd.ingest.content import content_digest
from mammo_pd.ingest.label_join import (
    count_contradicted,
    join_labels,
    refuse_losing_labels,
    refuse_naming_none,
)
from mammo_pd.ingest.moved import recognise_moved
from mammo_pd.ingest.names import image_name, name_by_path
from mammo_pd.ingest.prefer import LeftOut, leave_out
from mammo_pd.ingest.process import (
    Job,
    Outcome,
    failed,
    not_in_table,
    process_file,
    worker_died,
)
from mammo_pd.ingest.space import Space, expected_space, tell_space
from mammo_pd.ingest.summary import FolderTally, PreprocessSummary
from mammo_pd.ingest.verify import find_damaged
from mammo_pd.ingest.walk import FoundFiles, find_images
from mammo_pd.ingest.workers import run_in_processes, run_on_cluster
from mammo_pd.machines import machine_column
from mammo_pd.main_guard import refuse_unguarded_script
from mammo_pd.progress import Progress
from mammo_pd.table_file import write_rows
from mammo_pd.terms import PYRAMID_LONG_SIDES, Compression, Prefer, Reason, Status
from mammo_pd.wording import counted

J = TypeVar("J")
R = TypeVar("R")

# A kill loses at most this many files' work.
_COMMIT_EVERY = 16
# Refused images on a contact sheet: five pages, held in 13 MB.
_MOST_REFUSED = 200


@dataclass(frozen=True)
class _Target:
    """What a run writes to: the folder's images go into this store and its record.

    Attributes:
        refused: thumbnails and captions of images that are not used for what their pixels show, for
            the contact sheet of this run; the store keeps nothing of them.
        written: how many images were ``decoded`` in this run, and how many ``extended``.
    """

    folder: Path
    paths: StorePaths
    record: Record
    fingerprint: str
    labels: LabelTable | None = None
    kept: tuple[str, ...] = ALL_LEVELS
    compression: Compression = Compression.NONE
    damaged: frozenset[str] = frozenset()
    to_decode: frozenset[str] = frozenset()
    refused: list[tuple[npt.NDArray[np.uint8], str]] = field(default_factory=list)
    written: Counter[str] = field(default_factory=Counter)


def preprocess(
    folder: Path | str,
    out: Path | str,
    *,
    labels: LabelTable | None = None,
    replace_labels: bool = False,
    settings: ImagingSettings | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    contact_sheet: Path | str | None = None,
    crosswalk: Path | str | None = None,
    key: bytes | None = None,
    verify: bool = False,
    levels: tuple[str, ...] | None = None,
    compression: Compression | None = None,
    prefer: Prefer | None = None,
    say: Callable[[str], None] = print,
) -> PreprocessSummary:
    """Put every mammogram under a folder into a store.

    Args:
        folder: DICOM files, or PNG, PGM, TIFF and JPEG that the label table names.
        out: the store, created or added to.
        labels: the label table; without one, labels of an earlier run are kept.
        replace_labels: let it take labels of an earlier run away, and turn them round.
        settings: what decides the pixels.
        workers: processes; by default one for each core.
        scheduler: address of a Dask scheduler, such as ``tcp://host:8786``, whose workers replace
            the processes; they must see the folder and the store under the same paths.
        contact_sheet: a PNG to draw every crop of the folder on.
        crosswalk: a CSV to write image_id, path and original identifiers to.
        key: of the hashes, 32 bytes, so that images get the names that they have in another store;
            by default a new store makes its own.
        levels: that the store is to keep, beside those that it keeps already; by default a new
            store keeps all.
        compression: of what is written from now on; by default that of the store, or none.
        verify: read every level of the store, and make those anew whose content is damaged.
        prefer: which image to take of a view that has an exposure and a synthetic image; by default
            as the store's runs before.
        say: is given each line that is meant for the user.

    Raises:
        InputError: no images, a store with other settings, a full disk, an ambiguous label table,
            one that names no image or would lose labels, no worker, a script that asks from its top
            level.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers} is below 1.")
    if scheduler is None:
        refuse_unguarded_script()  # before anything is written
    settings = settings or ImagingSettings()
    folder = Path(folder).resolve()
    found = find_images(folder)
    if labels is not None:
        refuse_naming_none(labels, folder, found.images)
    paths = create_or_match(Path(out).resolve(), _what_decides_pixels(settings))
    with Record(paths, key) as record:
        upgrade_store(paths)
        record.put_folder(folder)
        moved = recognise_moved(found.images, record)
        record.commit()
        if moved:
            say(
                counted(
                    moved,
                    "file has moved since it was read, and is",
                    "files have moved since they were read, and are",
                )
                + " not decoded again"
            )
        if labels is not None and not replace_labels:
            refuse_losing_labels(labels, folder, record)
        # What a killed run left half written.
        shutil.rmtree(paths.partial, ignore_errors=True)
        remove_leftovers(paths.root, paths.manifest.name, paths.info.name)
        damaged = find_damaged(paths, record) if verify else frozenset()
        if verify:
            say(
                "--verify: "
                + counted(len(damaged), "image of the store has", "images of the store have")
                + " damaged or lost levels"
            )
        kept = _levels_to_keep(paths, record, levels, say)
        compression = _compression_to_keep(paths, record, compression, say)
        do = partial(_do, workers=workers, scheduler=scheduler, record=record, say=say)
        to_decode, extended = _add_levels(paths, record, kept, damaged, compression, do, say)
        target = _Target(
            folder,
            paths,
            record,
            read_store_info(paths)["fingerprint"],
            labels,
            kept,
            compression,
            damaged,
            to_decode,
            written=Counter(extended=extended),
        )
        jobs, unnamed_rasters = _plan(found, target, labels, settings, contact_sheet is not None)
        pending = len(jobs) + len(unnamed_rasters)
        redrawn = 0 if contact_sheet is None else _count_lacking_thumbnail(jobs, target)
        say(_opening_line(found, folder, pending, redrawn))
        if jobs:
            space = expected_space(
                [job.source for job in jobs],
                settings.frames,
                kept,
                compression,
                is_left_out=partial(_is_of_forgotten, target=target),
            )
            say(tell_space(paths, space))
        keep_levels(paths, kept)
        for job in unnamed_rasters:
            outcome = replace(failed(not_in_table()), file_content=content_digest(job.source))
            _commit(job, [outcome], target)
        for job, done in do("preprocess", jobs, process_file):
            _commit(job, [failed(worker_died())] if done is None else done, target)
        shutil.rmtree(paths.partial, ignore_errors=True)
        summary, left_out = _finish(found, target, labels, pending, replace_labels, prefer)
        if contact_sheet is not None:
            pages = _draw(Path(contact_sheet), target, left_out)
            summary = replace(summary, contact_sheets=tuple(pages))
        if crosswalk is not None:
            write_crosswalk(Path(crosswalk), record)
    return summary


def _what_decides_pixels(settings: ImagingSettings) -> dict[str, Any]:
    return {
        **settings.recorded(),
        "algorithm": ALGORITHM_VERSION,
        "levels": list(PYRAMID_LONG_SIDES),
    }


def _plan(
    found: FoundFiles,
    target: _Target,
    labels: LabelTable | None,
    settings: ImagingSettings,
    thumbnail: bool,
) -> tuple[list[Job], list[Job]]:
    """Jobs for the files that need work, and for those that no table names and so are not read."""
    jobs: list[Job] = []
    unnamed_rasters: list[Job] = []
    for source in found.images:
        is_raster = source.suffix.lower() in RASTER_SUFFIXES
        row = None if labels is None else labels.find(source)
        photometric = None
        if is_raster and labels is not None and row is not None:
            photometric = labels.photometric_interpretation(row)
        job = Job(
            source,
            file_version(source),
            row is not None,
            settings,
            target.paths.partial,
            thumbnail,
            photometric,
            target.kept,
            target.compression,
        )
        if _is_pending(job, target):
            # Any picture can be a PNG; only a table tells that one is a mammogram.
            unnamed = is_raster and not job.named
            (unnamed_rasters if unnamed else jobs).append(job)
    return jobs, unnamed_rasters


def _count_lacking_thumbnail(jobs: list[Job], target: _Target) -> int:
    """How many files are done, and are read again for their picture on a contact sheet alone."""
    return sum(not _is_pending(replace(job, thumbnail=False), target) for job in jobs)


def _opening_line(found: FoundFiles, folder: Path, pending: int, redrawn: int) -> str:
    count = len(found.images)
    if redrawn:
        new = pending - redrawn
        return (
            f"{counted(count, 'image')} in {folder}, {count - new} of them done before; "
            f"{redrawn} of these read again for the contact sheet" + _others(found)
        )
    done = f", {count - pending} of them done before" if pending < count else ""
    return f"{counted(count, 'image')} in {folder}{done}{_others(found)}"


def _others(found: FoundFiles) -> str:
    return f"; {counted(found.other, 'other file')} skipped" if found.other else ""


def _do(
    name: str,
    jobs: list[J],
    work: Callable[[J], R],
    *,
    workers: int | None,
    scheduler: str | None,
    record: Record,
    say: Callable[[str], None],
) -> Iterator[tuple[J, R | None]]:
    """Do jobs, and commit what is made of their results, which come in order."""
    results = (
        run_in_processes(jobs, work, max(1, min(workers or available_cores(), len(jobs))))
        if scheduler is None
        else run_on_cluster(jobs, work, scheduler)
    )
    with Progress(name, len(jobs), say) as progress:
        for number, result in enumerate(results, start=1):
            yield result
            if number % _COMMIT_EVERY == 0:
                record.commit()
            progress.update()
    record.commit()


def _levels_to_keep(
    paths: StorePaths,
    record: Record,
    asked: tuple[str, ...] | None,
    say: Callable[[str], None],
) -> tuple[str, ...]:
    """The levels that were asked for, beside those that the store's images have already."""
    if asked is None:
        return kept_levels(paths)
    if not record.holds_pixels:
        return asked
    before = kept_levels(paths)
    together = tuple(level for level in ALL_LEVELS if level in {*before, *asked})
    if not {*before} <= {*asked}:
        say(
            f"the store keeps {', '.join(together)}: --levels only adds levels; to keep fewer, "
            "make another store with --out"
        )
    return together


def _compression_to_keep(
    paths: StorePaths,
    record: Record,
    asked: Compression | None,
    say: Callable[[str], None],
) -> Compression:
    """The compression that was asked for, written down, or that of the store."""
    before = kept_compression(paths)
    if asked is None or asked == before:
        return before
    if record.holds_pixels:
        say(
            f"--compression {asked} applies to images written from now on; those already in the "
            "store stay as they are"
        )
    keep_compression(paths, asked)
    return asked


def _add_levels(
    paths: StorePaths,
    record: Record,
    kept: tuple[str, ...],
    damaged: frozenset[str],
    compression: Compression,
    do: Callable[..., Iterator[tuple[LevelJob, MadeLevels | None]]],
    say: Callable[[str], None],
) -> tuple[frozenset[str], int]:
    """Add levels that larger ones give.

    Returns:
        image_id of the images that must be decoded for theirs; and how many others were extended.
    """
    jobs, to_decode = plan_levels(paths, record, kept, damaged, compression)
    if not jobs:
        return to_decode, 0
    say(
        counted(
            len(jobs),
            "image gets further levels, computed from larger ones, and is",
            "images get further levels, computed from larger ones, and are",
        )
        + " not decoded again"
    )
    size = sum(job.size for job in jobs)
    say(tell_space(paths, Space(size, size)))
    # From now on the images need not have the same levels, and the next run is to know which.
    keep_levels(paths, kept)
    made = do("levels", jobs, make_levels)
    unreadable = {*take_in_levels(made, paths, record)}
    return to_decode | unreadable, len(jobs) - len(unreadable)


def file_version(source: Path) -> tuple[int, int]:
    """A file's size in bytes and its modification time in ns."""
    try:
        stat = source.stat()
    except OSError:
        return -1, -1  # a broken link: the worker reports what is wrong with it
    return stat.st_size, stat.st_mtime_ns


def _is_pending(job: Job, target: _Target) -> bool:
    """Whether a file is new, changed, now named by the label table, or its pixels are gone."""
    known = target.record.known(job.source)
    return not known or any(_needs_work(job, target, *image) for image in known)


def _needs_work(
    job: Job,
    target: _Target,
    size: int,
    mtime_ns: int,
    image_id: str,
    status: str,
    reason: str | None,
    kept: int,
    photometric: str | None,
    told_by: str | None,
) -> bool:
    if (size, mtime_ns) != job.version:
        return True
    before = photometric if told_by == "table" else None
    if job.named and reason is None and job.photometric_interpretation != before:
        # The table says now, or no longer, which of white and black is 0.
        return True
    if reason is None:
        # A level can be lost or truncated, as after a full disk.
        return (
            stored_bytes(target.paths, image_id) != kept
            or image_id in target.damaged
            or image_id in target.to_decode
            or (job.thumbnail and not target.paths.thumbnail(image_id).is_file())
        )
    if job.named and reason in (Reason.NOT_MAMMOGRAPHY, Reason.NOT_IN_TABLE):
        return True
    if job.thumbnail and Reason(reason).is_seen:
        return True
    return status == Status.FAILED and Reason(reason).may_pass


def _commit(job: Job, outcomes: list[Outcome], target: _Target) -> None:
    """Put what one file gave into the store and the record, pixels first."""
    for outcome in outcomes:
        _follow(job, outcome, target)
    images = [_store_image(job, outcome, target) for outcome in outcomes]
    for image, outcome in zip(images, outcomes, strict=True):
        _show_refused(job, image, outcome, target)
    # Images that a changed file no longer holds leave the store.
    before = {image_id for _, _, image_id, *_ in target.record.known(job.source)}
    for gone in before - {image.image_id for image in images}:
        remove_image(target.paths, gone)
    content = outcomes[0].file_content if outcomes else b""
    target.record.put(job.source, job.version, images, content)


def _show_refused(job: Job, image: RecordedImage, outcome: Outcome, target: _Target) -> None:
    """Put an image that is refused for what it shows on the contact sheet, if there is to be one.

    Not one of a woman who was taken out: the record of a refused image has no patient.
    """
    reason = outcome.columns.get("reason")
    if reason is None or outcome.thumbnail is None or len(target.refused) == _MOST_REFUSED:
        return
    seen = replace(outcome, identifiers=outcome.shown_of)
    if not _is_forgotten(job.source, _name(job, seen, target), seen.identifiers, target):
        target.refused.append((outcome.thumbnail, f"{image.image_id[:6]} refused: {reason}"))


def _is_of_forgotten(source: Path, target: _Target) -> bool:
    """Whether a file that is still to be decoded is of who was taken out, by its header."""
    if not target.record.keeps_anyone_out:
        return False
    identifiers: Mapping[str, str] = {}
    if source.suffix.lower() not in RASTER_SUFFIXES:
        try:
            with reading_quietly():
                identifiers = read_identifiers(read_header(source).dataset)
        except ImageError:
            return False
    image_id = image_name(source, target.folder, identifiers, None, target.record.hasher)
    return _is_forgotten(source, image_id, identifiers, target)


def _is_forgotten(
    source: Path, image_id: str, identifiers: Mapping[str, str], target: _Target
) -> bool:
    """Whether an image, or its patient by the file's tag or the label table, was taken out."""
    record, labels = target.record, target.labels
    if not record.keeps_anyone_out:
        return False
    names = [image_id]
    patients = [identifiers.get("patient_id")]
    row = None
    if labels is not None:
        row = labels.find(source, identifiers.get("sop_instance_uid"))
    if labels is not None and row is not None:
        patients.append(labels.rows[row]["patient_id"])
    names += [record.hasher.hash("patient", patient) for patient in patients if patient]
    return any(record.is_kept_out(name) for name in names)


def _follow(job: Job, outcome: Outcome, target: _Target) -> None:
    """Take a file whose pixels are recorded of one that is gone for that one, not for a copy.

    `recognise_moved` has found the files that are the same to the byte; others moved, too, and had
    their headers rewritten, or were recorded by an earlier version.
    """
    record, image_id = target.record, _name(job, outcome, target)
    holder = record.source_of(image_id)
    if (
        holder is not None
        and holder.path != job.source
        and outcome.pixel_digest
        and record.pixel_hash_of(image_id) == record.hasher.hash("pixels", outcome.pixel_digest)
        and is_gone(holder.path)
        and not record.known(job.source)
    ):
        record.move(holder.path, job.source, job.version[1])


def _name(job: Job, outcome: Outcome, target: _Target) -> str:
    """The image_id of an image, unless another has that name."""
    hasher = target.record.hasher
    return image_name(job.source, target.folder, outcome.identifiers, outcome.frame, hasher)


def _store_image(job: Job, outcome: Outcome, target: _Target) -> RecordedImage:
    """Name one image and move its pixels to their place."""
    paths, hasher = target.paths, target.record.hasher
    origin = ImageOrigin(job.source, outcome.frame)
    uid = outcome.identifiers.get("sop_instance_uid")
    image_id = _name(job, outcome, target)
    if _is_forgotten(job.source, image_id, outcome.identifiers, target):
        detail = "was removed by mammo-pd forget; delete its file, or see forget --take-again"
        columns = failed(ImageError(Reason.FORGOTTEN, detail), outcome.frame).columns
        # Nothing more is kept of it than where it lies, to pass it over next time.
        image_id = name_by_path(job.source, outcome.frame, hasher)
        return RecordedImage(origin, image_id, columns, {}, 0)
    columns = {**outcome.columns, "fingerprint": target.fingerprint}
    if outcome.pixel_digest:
        columns["pixel_hash"] = hasher.hash("pixels", outcome.pixel_digest)
    holder = target.record.source_of(image_id)
    if holder is not None and holder.path != job.source:
        # The name is taken in this store, so the image gets one made of its path.
        image_id = name_by_path(job.source, outcome.frame, hasher)
    # A file without a UID is there because a row of the table names it: as an image of its own.
    if columns["status"] == Status.OK and outcome.pixel_digest and uid:
        twin = target.record.with_pixels(columns["pixel_hash"], job.source)
        if twin is not None:
            # It keeps its patient, exam and pixel hash: they may show that two patients are one.
            detail = f"has the pixels of {twin}"
            columns |= failed(ImageError(Reason.DUPLICATE, detail)).columns
    size = 0
    if columns["status"] == Status.OK and outcome.pyramid is not None:
        take_in(paths, outcome.pyramid, image_id)
        size = stored_bytes(paths, image_id)
        target.written["decoded"] += 1
        if outcome.thumbnail is not None:
            file = paths.thumbnail(image_id)
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_array(file, outcome.thumbnail)
    return RecordedImage(
        origin, image_id, columns, outcome.identifiers, size, checksums=outcome.checksums
    )


def _finish(
    found: FoundFiles,
    target: _Target,
    labels: LabelTable | None,
    pending: int,
    replace_labels: bool,
    prefer: Prefer | None,
) -> tuple[PreprocessSummary, LeftOut]:
    """Join the labels, write the manifest of the whole store, and count this folder's images."""
    info = read_store_info(target.paths)
    unmatched, changes = 0, None
    if labels is not None:
        unmatched, changes = join_labels(
            labels, target.folder, target.record, replace=replace_labels
        )
        info["labels"] = {
            "definition": labels.definition,
            "columns": _merged_types(info.get("labels", {}).get("columns", {}), labels),
        }
    if prefer is not None:
        info["prefer"] = str(prefer)
    left_out = leave_out(target.record, Prefer(info.get("prefer", Prefer.BOTH)))
    further: dict[str, str] = {
        # In stores of earlier versions codes of machines were numbers.
        name: "text" if machine_column(name) else kind
        for name, kind in info.get("labels", {}).get("columns", {}).items()
    }
    sources = set(found.images)
    tally = FolderTally()
    elsewhere: Counter[str] = Counter()

    # Counted while the rows pass by on their way to the file: a million are never held at once.
    def rows() -> Iterator[dict[str, Any]]:
        for image in target.record.rows():
            row = manifest_row(image, target.record.hasher)
            if image.image_id in left_out.details:
                # Its pixels stay, so that another choice decodes nothing again.
                error = ImageError(Reason.NOT_PREFERRED, left_out.details[image.image_id])
                row |= failed(error).columns
            for name, kind in further.items():
                if kind == "text" and row.get(name) is not None:
                    row[name] = str(row[name])
            if image.source.path in sources:
                tally.add(row, image, target.record.hasher)
            else:
                elsewhere["damaged"] += image.image_id in target.damaged
                elsewhere["lacking"] += image.image_id in target.to_decode
                elsewhere["gone"] += is_gone(image.source.path)
            yield row

    schema = pa.schema(
        [
            (name, pa.float64() if kind == "number" else pa.string())
            for name, kind in further.items()
        ]
    )
    write_manifest(target.paths.manifest, rows(), schema)
    write_store_info(target.paths, info)
    summary = PreprocessSummary(
        found=len(found.images),
        done_before=len(found.images) - pending,
        decoded=target.written["decoded"],
        extended=target.written["extended"],
        passed_over=found.passed_over,
        repeated_folders=found.repeated_folders,
        unmatched_labels=unmatched,
        label_changes=changes,
        # A pass over the whole record, which folders without a duplicate are spared.
        contradicted=(
            count_contradicted(labels, target.record)
            if labels is not None and (Status.EXCLUDED, Reason.DUPLICATE) in tally.by_status
            else 0
        ),
        closed_folders=found.unreadable_folders,
        damaged=elsewhere["damaged"],
        lacking=elsewhere["lacking"],
        gone=elsewhere["gone"],
        only_label=left_out.only_label,
        views_of_both=left_out.both,
        repeated_views=left_out.repeated,
        unknown_kind=left_out.unknown,
        contact_sheets=(),
        **tally.fields(),
    )
    return summary, left_out


def _merged_types(known: Mapping[str, str], labels: LabelTable) -> dict[str, str]:
    """Types of the label columns of all tables; where two disagree, the column holds text."""
    return {
        name: kind if known.get(name, kind) == kind else "text"
        for name, kind in {**known, **labels.column_types}.items()
    }


def _draw(sheet: Path, target: _Target, left_out: LeftOut) -> list[Path]:
    refused: list[tuple[npt.NDArray[np.uint8], Box | None, str]] = [
        (thumbnail, None, caption) for thumbnail, caption in target.refused
    ]

    def items(*, doubtful: bool) -> Iterator[tuple[npt.NDArray[np.uint8], Box, str]]:
        for image in target.record.rows():
            columns = image.columns
            taken = columns["status"] == Status.OK and image.image_id not in left_out.details
            asked_for = taken and (columns["breast_verdict"] != "ok") == doubtful
            if asked_for and image.source.path.is_relative_to(target.folder):
                file = target.paths.thumbnail(image.image_id)
                thumbnail = np.load(file, allow_pickle=False)
                scale = max(thumbnail.shape) / max(columns["rows"], columns["columns"])
                sides = (columns[f"crop_{side}"] for side in ("top", "left", "height", "width"))
                box = Box(*(round(side * scale) for side in sides))
                yield thumbnail, box, f"{image.image_id[:6]} {columns['breast_verdict']}"

    # What has to be looked at comes first: the rest may be hundreds of pages.
    shown = chain(refused, items(doubtful=True), items(doubtful=False))
    pages = draw_contact_sheet(shown, sheet, last_line=_not_shown(target, left_out))
    for page in pages:
        page.chmod(0o600)
    return pages


def _not_shown(target: _Target, left_out: LeftOut) -> str:
    """How many images of the folder are not on its contact sheet, by reason; empty if none."""
    reasons: Counter[str] = Counter()
    for image in target.record.rows():
        if image.source.path.is_relative_to(target.folder):
            left = image.image_id in left_out.details
            reason = Reason.NOT_PREFERRED if left else image.columns.get("reason")
            reasons.update([] if reason is None else [str(reason)])
    reasons.subtract(caption.rpartition(" ")[2] for _, caption in target.refused)
    counts = [f"{count} {reason}" for reason, count in reasons.most_common() if count > 0]
    return f"not shown: {', '.join(counts)}" if counts else ""


def write_crosswalk(file: Path, record: Record) -> None:
    """Write which file each image_id came from; the user asked for identifiers in the clear."""
    with (
        atomic_write(file, mode=0o600) as beside,
        beside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as opened,
    ):
        names = ("sop_instance_uid", "study_instance_uid", "patient_id", "accession_number")
        write_rows(opened, [("image_id", "path", "frame", *names)])
        write_rows(
            opened,
            (
                (
                    image.image_id,
                    str(image.source.path),
                    image.source.frame,
                    *(image.identifiers.get(name, "") for name in names),
                )
                for image in record.rows()
            ),
        )
