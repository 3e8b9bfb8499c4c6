"""From a folder of mammograms to a store: decode, grey scale, crop, pyramid, manifest.

The work on one image runs in worker processes; this process alone writes the record, so an image
is either wholly in the store or not at all. Killed and started again, it goes on where it was.
"""

import csv
import hashlib
import multiprocessing
import os
import shutil
import signal
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from mammo_pd.data.labels import LabelTable
from mammo_pd.data.manifest import write_manifest
from mammo_pd.data.record import ImageOrigin, Record, RecordedImage
from mammo_pd.data.store import (
    StorePaths,
    create_or_match,
    read_store_info,
    stored_bytes,
    take_in,
    write_pyramid,
    write_store_info,
)
from mammo_pd.errors import ImageError, InputError
from mammo_pd.files import atomic_write, each_file
from mammo_pd.imaging.geometry import Box
from mammo_pd.imaging.raster import RASTER_SUFFIXES
from mammo_pd.imaging.settings import ALGORITHM_VERSION, ImagingSettings
from mammo_pd.ingest.contact_sheet import draw_contact_sheet
from mammo_pd.ingest.walk import looks_like_image
from mammo_pd.terms import PYRAMID_LONG_SIDES, Frames, Reason, Status

# Images under way for each worker: enough to never wait, few enough to hold little.
_WINDOW = 4
# A kill costs at most this many images of work.
_COMMIT_EVERY = 16


@dataclass(frozen=True)
class Job:
    """One source file to be processed.

    Attributes:
        source: the file.
        version: its size in bytes and modification time in ns.
        named: the label table names it, so it is a mammogram whatever its tags lack.
        settings: what decides the pixels.
        partial: the folder in which workers write.
        thumbnail: whether a thumbnail of the whole frame is wanted.
    """

    source: Path
    version: tuple[int, int]
    named: bool
    settings: ImagingSettings
    partial: Path
    thumbnail: bool


@dataclass
class Outcome:
    """What a worker found in one file, or in one frame of it.

    Attributes:
        facts: columns of the manifest.
        frame: which, from 1, where the frames of a file are images of their own.
        identifiers: the original ones, for the owner-only record.
        levels: where the worker wrote the levels; None where there are none.
        pixel_digest: of the stored native pixels; empty where there are none.
        thumbnail: (h, w) uint8 whole frame, where wanted.
    """

    facts: dict[str, Any]
    frame: int | None = None
    identifiers: dict[str, str] = field(default_factory=dict)
    levels: Path | None = None
    pixel_digest: bytes = b""
    thumbnail: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class PreprocessSummary:
    """What a run did and what the store now holds.

    Attributes:
        found: image files in the folder.
        done_before: of them, those that needed no work.
        other_files: files passed over because they are no images.
        by_status: images of the folder by (status, reason); with ``--frames each`` every frame of
            a file is one.
        labelled: of the folder's ok images, those with a label.
        positive: of those, the positive ones.
        unmatched_labels: rows of the label table that match no image.
        disagreeing: images whose side by table and by tag differ.
        doubtful: of the folder's ok images, those whose breast could not be told from its
            surroundings with confidence, and which are kept whole.
        wrong_side: of the folder's ok images, those whose breast lies on the other side than the
            laterality tag leads to expect.
        burned_in: those whose tag says that text is burnt in.
        for_processing: those that the detector made for processing, not for display.
        closed_folders: folders that could not be listed.
        details: one example for each reason: image_id and sentence. No file's name, which can be a
            person's, or her image's UID: what is printed ends in logs.
        contact_sheets: the pages that were drawn.
    """

    found: int
    done_before: int
    other_files: int
    by_status: dict[tuple[str, str], int]
    labelled: int
    positive: int
    unmatched_labels: int
    disagreeing: int
    doubtful: int
    wrong_side: int
    burned_in: int
    for_processing: int
    closed_folders: int
    details: dict[str, str]
    contact_sheets: tuple[Path, ...]

    @property
    def ok(self) -> int:
        """Images of the folder that can be used."""
        return sum(n for (status, _), n in self.by_status.items() if status == Status.OK)


def preprocess(
    folder: Path,
    out: Path,
    *,
    labels: LabelTable | None = None,
    settings: ImagingSettings | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    contact_sheet: Path | None = None,
    crosswalk: Path | None = None,
    key: bytes | None = None,
    say: Callable[[str], None] = print,
) -> PreprocessSummary:
    """Take every mammogram under a folder into a store.

    Args:
        folder: DICOM files, or PNG, PGM and TIFF that the label table names.
        out: the store, made or added to.
        labels: the label table; without one, labels of an earlier run are kept.
        settings: what decides the pixels.
        workers: processes; by default one for each core.
        scheduler: address of a Dask scheduler, such as ``tcp://host:8786``, whose workers take the
            place of processes here; they must see the folder and the store under the same paths.
        contact_sheet: a PNG to draw every crop of the folder on.
        crosswalk: a CSV to write image_id, path and original identifiers to.
        key: of the hashes, 32 bytes, so that images get the names that they have in another store;
            by default a new store makes its own.
        say: takes one line for people.

    Raises:
        InputError: no images, a store with other settings, a full disk, an ambiguous label table,
            no worker.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers} is not 1 or above.")
    settings = settings or ImagingSettings()
    folder = folder.resolve()
    closed: list[OSError] = []
    sources, other_files = _find(folder, closed)
    described = {
        **{name: str(value) for name, value in asdict(settings).items()},
        "algorithm": ALGORITHM_VERSION,
        "levels": list(PYRAMID_LONG_SIDES),
    }
    paths = create_or_match(out.resolve(), described)
    fingerprint = read_store_info(paths)["fingerprint"]
    with Record(paths, key) as record:
        jobs: list[Job] = []
        rasters: list[Job] = []
        for source in sources:
            job = Job(
                source,
                _version(source),
                labels is not None and labels.find(source) is not None,
                settings,
                paths.partial,
                contact_sheet is not None,
            )
            if not _is_pending(job, paths, record):
                continue
            unnamed_raster = source.suffix.lower() in RASTER_SUFFIXES and not job.named
            (rasters if unnamed_raster else jobs).append(job)
        for job in rasters:
            _commit(job, [_not_in_table()], folder, paths, record, fingerprint)
        pending = len(jobs) + len(rasters)
        done = f", {len(sources) - pending} of them done before" if pending < len(sources) else ""
        other = f"; {other_files} other files passed over" if other_files else ""
        say(f"{len(sources)} images in {folder}{done}{other}")
        shutil.rmtree(paths.partial, ignore_errors=True)
        outcomes = (
            _run_here(jobs, max(1, min(workers or _cores(), len(jobs))))
            if scheduler is None
            else _run_on_cluster(jobs, scheduler)
        )
        with tqdm(
            total=len(jobs), unit="image", desc="preprocess", disable=not jobs or None
        ) as bar:
            for number, (job, found) in enumerate(outcomes, start=1):
                _commit(job, found, folder, paths, record, fingerprint)
                if number % _COMMIT_EVERY == 0:
                    record.commit()
                bar.update()
        record.commit()
        shutil.rmtree(paths.partial, ignore_errors=True)
        summary = _finish(folder, set(sources), paths, record, labels, pending, other_files, closed)
        if contact_sheet is not None:
            pages = _draw(contact_sheet, folder, paths, record)
            summary = replace(summary, contact_sheets=tuple(pages))
        if crosswalk is not None:
            _write_crosswalk(crosswalk, record)
    return summary


def _find(folder: Path, closed: list[OSError]) -> tuple[list[Path], int]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that holds the mammograms.")
    seen: Counter[bool] = Counter()
    sources = []
    for path in each_file(folder, closed.append):
        is_image = looks_like_image(path)
        seen[is_image] += 1
        if is_image:
            sources.append(path)
    if not sources:
        raise InputError(
            f"{folder} holds no images (DICOM by ending or preamble, PNG, PGM, TIFF) among "
            f"{seen[False]} files; give the folder that holds the mammograms."
        )
    return sources, seen[False]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _version(source: Path) -> tuple[int, int]:
    try:
        stat = source.stat()
    except OSError:
        return -1, -1  # a broken link: the worker says what is wrong with it
    return stat.st_size, stat.st_mtime_ns


def _is_pending(job: Job, paths: StorePaths, record: Record) -> bool:
    """Whether a file is new, changed, now named by the label table, or its pixels are gone."""
    known = record.known(job.source)
    return not known or any(_needs_work(job, paths, *image) for image in known)


def _needs_work(
    job: Job,
    paths: StorePaths,
    size: int,
    mtime_ns: int,
    image_id: str,
    status: str,
    reason: str | None,
    kept: int,
) -> bool:
    if (size, mtime_ns) != job.version:
        return True
    if reason is None:
        return stored_bytes(paths, image_id) != kept or (
            job.thumbnail and not _thumbnail(paths, image_id).is_file()
        )
    if job.named and reason in (Reason.NOT_MAMMOGRAPHY, Reason.NOT_IN_TABLE):
        return True
    return status == Status.FAILED and Reason(reason).may_pass


def _in_order(
    jobs: Iterable[Job], submit: Callable[[Job], "Future[list[Outcome]]"], ahead: int
) -> Iterator[tuple[Job, "Future[list[Outcome]]"]]:
    """Submit jobs, a few ahead, and give them in their order.

    In that order, so that which of two copies of an image is kept does not depend on timing.
    """
    under_way: deque[tuple[Job, Future[list[Outcome]]]] = deque()
    for job in jobs:
        under_way.append((job, submit(job)))
        if len(under_way) > ahead:
            yield under_way.popleft()
    yield from under_way


def _run_here(jobs: list[Job], workers: int) -> Iterator[tuple[Job, list[Outcome]]]:
    """Process the jobs in processes of this machine; one that dies loses its own image only."""
    done = 0
    while done < len(jobs):
        pool = _start_pool(workers)
        try:
            for job, future in _in_order(jobs[done:], _submitter(pool), workers * _WINDOW):
                yield job, future.result()
                done += 1
        except BrokenProcessPool:
            # One of those under way killed its worker, and which one is not known: each is tried
            # alone, so that only the culprit is lost.
            suspects = jobs[done : done + workers * _WINDOW + 1]
            yield from _run_alone(suspects)
            done += len(suspects)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _submitter(pool: ProcessPoolExecutor) -> "Callable[[Job], Future[list[Outcome]]]":
    return lambda job: pool.submit(_process, job)


def _run_alone(jobs: list[Job]) -> Iterator[tuple[Job, list[Outcome]]]:
    pool = _start_pool(1)
    try:
        for job in jobs:
            try:
                yield job, pool.submit(_process, job).result()
            except BrokenProcessPool:
                yield job, [_worker_died()]
                pool = _start_pool(1)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_pool(workers: int) -> ProcessPoolExecutor:
    # A fork server imports what all workers need once, and has no threads that a fork could freeze.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "mammo_pd.ingest.pipeline"])
    return ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )


def _run_on_cluster(jobs: list[Job], scheduler: str) -> Iterator[tuple[Job, list[Outcome]]]:
    """Process the jobs on a Dask cluster, which gives a dead worker's jobs to the others."""
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise InputError(
            "--scheduler needs Dask; install it with: pip install 'mammo-pd[cluster]'"
        ) from error
    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers at {scheduler} ({error}); start one with: dask scheduler"
        ) from error
    with client:
        threads = sum(client.nthreads().values())
        ahead = max(1, threads) * _WINDOW
        for job, future in _in_order(
            jobs, lambda job: client.submit(_process, job, pure=False), ahead
        ):
            try:
                yield job, future.result()
            except KilledWorker:
                yield job, [_worker_died()]


def _worker_died() -> Outcome:
    detail = "the process that read it died (a decoder crash, or out of memory)"
    return _failed(ImageError(Reason.WORKER_DIED, detail))


@lru_cache(maxsize=1)
def _prepare(settings: ImagingSettings, thumbnail: bool) -> Any:
    """Compose the steps once in each process."""
    from threadpoolctl import threadpool_limits

    from mammo_pd.ingest.pipeline import mammogram_steps

    # There is a worker for each core already; more threads only wait for one another.
    threadpool_limits(1)
    return mammogram_steps(settings, thumbnail=thumbnail)


def _process(job: Job) -> list[Outcome]:
    """Do the work on one file: one outcome, or with ``--frames each`` one for each frame."""
    from mammo_pd.ingest.pipeline import process_each_frame, process_mammogram

    steps = _prepare(job.settings, job.thumbnail)
    try:
        if job.settings.frames == Frames.EACH:
            found = process_each_frame(job.source, steps, assume_mammogram=job.named)
            return [
                _failed(sample, frame)
                if isinstance(sample, ImageError)
                else _write(job, sample, frame)
                for frame, sample in found
            ]
        sample = process_mammogram(job.source, steps, assume_mammogram=job.named)
    except ImageError as error:
        return [_failed(error)]
    return [_write(job, sample)]


def _write(job: Job, sample: dict[str, Any], frame: int | None = None) -> Outcome:
    levels = sample["image_levels"]
    # Of its own for each try: a worker that was given up for dead may still be writing.
    folder = job.partial / uuid.uuid4().hex
    write_pyramid(folder, levels)
    native = levels["native"]
    digest = hashlib.sha256(repr(native.shape).encode())
    digest.update(np.ascontiguousarray(native).data)
    return Outcome(
        {**sample["image_facts"], "status": str(Status.OK), "reason": None, "detail": None},
        frame,
        sample["image_identifiers"],
        folder,
        digest.digest(),
        sample["image_thumbnail"] if job.thumbnail else None,
    )


def _failed(error: ImageError, frame: int | None = None) -> Outcome:
    status = Status.EXCLUDED if error.reason.excludes else Status.FAILED
    facts = {"status": str(status), "reason": str(error.reason), "detail": error.detail}
    return Outcome(facts if frame is None else {**facts, "frame": str(frame)}, frame)


def _not_in_table() -> Outcome:
    detail = "an image file that is not DICOM and that no row of a label table names"
    return _failed(ImageError(Reason.NOT_IN_TABLE, detail))


def _commit(
    job: Job,
    outcomes: list[Outcome],
    folder: Path,
    paths: StorePaths,
    record: Record,
    fingerprint: str,
) -> None:
    """Take what was found in one file into the store and the record, pixels first."""
    images = [_take_in(job, outcome, folder, paths, record, fingerprint) for outcome in outcomes]
    # What a changed file no longer holds leaves the store with it.
    before = {image_id for _, _, image_id, *_ in record.known(job.source)}
    for gone in before - {image.image_id for image in images}:
        shutil.rmtree(paths.image(gone), ignore_errors=True)
        _thumbnail(paths, gone).unlink(missing_ok=True)
    record.put(job.source, job.version, images)


def _take_in(
    job: Job,
    outcome: Outcome,
    folder: Path,
    paths: StorePaths,
    record: Record,
    fingerprint: str,
) -> RecordedImage:
    """Name one image and move its pixels to their place."""
    source = ImageOrigin(job.source, outcome.frame)
    uid = outcome.identifiers.get("sop_instance_uid")
    hasher = record.hasher
    # Neither a UID nor a number holds "#", so no frame has the name of another file's image.
    part = "" if outcome.frame is None else f"#{outcome.frame}"
    name = uid or f"file:{job.source.relative_to(folder).as_posix()}"
    image_id = hasher.hash("image", name + part)
    facts = dict(outcome.facts)
    if outcome.pixel_digest:
        facts["pixel_hash"] = hasher.hash("pixels", outcome.pixel_digest)
    holder = record.source_of(image_id)
    if holder is not None and holder.path != job.source:
        # The name in the store is taken, so this one gets a name of its own.
        image_id = hasher.hash("image", f"file:{job.source}{part}")
        if facts["status"] == Status.OK and uid:
            # It keeps its patient, exam and pixel hash: they may show that two patients are one.
            detail = "has the SOP Instance UID of another image in the store"
            facts.update(_failed(ImageError(Reason.DUPLICATE, detail)).facts)
    if facts["status"] == Status.OK and outcome.levels is not None:
        take_in(paths, outcome.levels, image_id)
        if outcome.thumbnail is not None:
            file = _thumbnail(paths, image_id)
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            np.save(file, outcome.thumbnail, allow_pickle=False)
    facts["fingerprint"] = fingerprint
    size = stored_bytes(paths, image_id) if facts["status"] == Status.OK else 0
    return RecordedImage(source, image_id, facts, outcome.identifiers, size)


def _thumbnail(paths: StorePaths, image_id: str) -> Path:
    # The whole frame can show a burnt-in name, so it is for the owner only.
    return paths.private / "thumbnails" / image_id[:2] / f"{image_id}.npy"


def _finish(
    folder: Path,
    sources: set[Path],
    paths: StorePaths,
    record: Record,
    labels: LabelTable | None,
    pending: int,
    other_files: int,
    closed: list[OSError],
) -> PreprocessSummary:
    """Join the labels, write the manifest of the whole store, and count this folder's images."""
    facts = read_store_info(paths)
    unmatched = 0
    if labels is not None:
        unmatched = _join_labels(folder, labels, record)
        known = facts.get("labels", {}).get("columns", {})
        # Two tables can disagree on whether a column holds numbers; then it holds text.
        columns = {
            name: kind if known.get(name, kind) == kind else "text"
            for name, kind in {**known, **labels.column_types}.items()
        }
        facts["labels"] = {"definition": labels.definition, "columns": columns}
    further = facts.get("labels", {}).get("columns", {})
    by_status: Counter[tuple[str, str]] = Counter()
    details: dict[str, str] = {}
    counts: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for image in record.rows():
            row = _manifest_row(image, record)
            for name, kind in further.items():
                if kind == "text" and row.get(name) is not None:
                    row[name] = str(row[name])
            path = image.source.path
            if path in sources:
                by_status[row["status"], row.get("reason") or ""] += 1
                if row.get("reason"):
                    details.setdefault(row["reason"], f"{image.image_id}: {row['detail']}")
                if row["status"] == Status.OK and row["label"] is not None:
                    counts["labelled"] += 1
                    counts["positive"] += row["label"]
                if row["status"] == Status.OK:
                    counts["doubtful"] += row["breast_verdict"] != "ok"
                    counts["wrong_side"] += row["laterality_agrees"] is False
                    counts["burned_in"] += row["burned_in_annotation"] is True
                    counts["for_processing"] += row["processing"] == "FOR PROCESSING"
                tag, table = image.facts.get("laterality"), image.labels.get("laterality")
                counts["disagreeing"] += bool(tag and table and tag != table)
            yield row

    schema = pa.schema(
        [
            (name, pa.float64() if kind == "number" else pa.string())
            for name, kind in further.items()
        ]
    )
    write_manifest(paths.manifest, rows(), schema)
    write_store_info(paths, facts)
    return PreprocessSummary(
        found=len(sources),
        done_before=len(sources) - pending,
        other_files=other_files,
        by_status=dict(by_status),
        labelled=counts["labelled"],
        positive=counts["positive"],
        unmatched_labels=unmatched,
        disagreeing=counts["disagreeing"],
        doubtful=counts["doubtful"],
        wrong_side=counts["wrong_side"],
        burned_in=counts["burned_in"],
        for_processing=counts["for_processing"],
        closed_folders=len(closed),
        details=details,
        contact_sheets=(),
    )


def _join_labels(folder: Path, labels: LabelTable, record: Record) -> int:
    """Record each image's row of the label table; give the number of rows that match no image."""
    found: dict[Path, int | None] = {}
    duplicates: set[Path] = set()
    for image in record.rows():
        path = image.source.path
        # What another table said of images elsewhere in the store stays.
        if path.is_relative_to(folder):
            if image.facts.get("reason") == Reason.DUPLICATE:
                duplicates.add(path)
            # One row names a file, all of whose frames it speaks of. One that could not be decoded
            # has no UID to be found by.
            row = labels.find(path, image.identifiers.get("sop_instance_uid"))
            if row is None:
                row = found.get(path)
            found[path] = None if path in duplicates else row
    times = Counter(row for row in found.values() if row is not None)
    if not times:
        raise InputError(
            f"no row of {labels.source} names an image in {folder}; its path must be relative to "
            "the table or to that folder, or give sop_instance_uid or the data set's image_id. The "
            "images are in the store: run again with the mended table, and only it is read."
        )
    row, most = times.most_common(1)[0]
    if most > 1:
        names = sorted(source for source, at in found.items() if at == row)
        raise InputError(
            f"line {row + 2} of {labels.source} names {most} images ({names[0]}, {names[1]}, ...); "
            "give paths that tell them apart. The images are in the store: run again with the "
            "mended table, and only it is read."
        )
    for source, row in found.items():
        record.put_labels(source, None if row is None else labels.rows[row])
    record.commit()
    return len(labels.rows) - len(times)


def _manifest_row(image: RecordedImage, record: Record) -> dict[str, Any]:
    identifiers, labelled = image.identifiers, image.labels
    exam = labelled.get("exam_id") or identifiers.get("study_instance_uid")
    patient, source = labelled.get("patient_id"), "table"
    if not patient:
        patient, source = identifiers.get("patient_id"), "tag"
    if not patient:
        # The frames of one file are one woman's, whatever else is not known of her.
        only = image.image_id if image.source.frame is None else f"file:{image.source.path}"
        patient, source = (f"exam:{exam}", "exam") if exam else (f"image:{only}", "image")
    row = {
        **image.facts,
        **labelled.get("further", {}),
        "image_id": image.image_id,
        "patient_id": record.hasher.hash("patient", patient),
        "patient_id_source": source,
        "exam_id": record.hasher.hash("exam", exam) if exam else None,
        "label": labelled.get("label"),
    }
    for name in ("laterality", "view", "age", "implant"):
        if labelled.get(name) is not None:
            row[name] = labelled[name]
    return row


def _draw(file: Path, folder: Path, paths: StorePaths, record: Record) -> list[Path]:
    def items() -> Iterator[tuple[npt.NDArray[np.uint8], Box, str]]:
        for image in record.rows():
            facts = image.facts
            if facts["status"] == Status.OK and image.source.path.is_relative_to(folder):
                thumbnail = np.load(_thumbnail(paths, image.image_id), allow_pickle=False)
                scale = max(thumbnail.shape) / max(facts["rows"], facts["columns"])
                sides = (facts[f"crop_{side}"] for side in ("top", "left", "height", "width"))
                box = Box(*(round(side * scale) for side in sides))
                yield thumbnail, box, f"{image.image_id[:6]} {facts['breast_verdict']}"

    pages = draw_contact_sheet(items(), file)
    for page in pages:
        page.chmod(0o600)
    return pages


def _write_crosswalk(file: Path, record: Record) -> None:
    """Write which file each image_id came from; the caller asked for identifiers in the clear."""
    with (
        atomic_write(file, mode=0o600) as beside,
        beside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as opened,
    ):
        writer = csv.writer(opened)
        names = ("sop_instance_uid", "study_instance_uid", "patient_id", "accession_number")
        writer.writerow(("image_id", "path", "frame", *names))
        for image in record.rows():
            given = (image.identifiers.get(name, "") for name in names)
            writer.writerow((image.image_id, image.source.path, image.source.frame, *given))
