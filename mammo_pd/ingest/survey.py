"""What a folder of mammograms holds, from headers and a label table: counts out, no identifier.

Patients, exams and images are told apart by hashes under a key that is made for one survey and
kept nowhere.
"""

import hashlib
import heapq
import os
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

from pydicom import uid

from mammo_pd.cores import available_cores
from mammo_pd.data.labels import LabelTable
from mammo_pd.data.manifest_row import view_code
from mammo_pd.errors import ImageError, InputError
from mammo_pd.imaging.decode import check_before_decoding
from mammo_pd.imaging.dicom_file import DicomHeader, read_header
from mammo_pd.imaging.header import (
    check_is_mammogram,
    find_laterality,
    find_presentation_intent,
    find_view,
    find_view_modifiers,
    integer,
    number_of_frames,
    reading_quietly,
    text,
    whole_text,
)
from mammo_pd.imaging.image_kind import find_image_kind, names_synthetic_product
from mammo_pd.imaging.raster import RASTER_SUFFIXES, read_raster_header
from mammo_pd.ingest.label_join import naming_none, refuse_naming_none
from mammo_pd.ingest.process import failed, not_in_table, worker_died
from mammo_pd.ingest.walk import PassedOver, find_images
from mammo_pd.ingest.workers import run_in_processes
from mammo_pd.machines import OTHER, known_manufacturer, known_model
from mammo_pd.progress import Progress
from mammo_pd.terms import ImageKind, Laterality, Reason, Status

# Before the format of a file that is not DICOM, where others have a transfer syntax.
NOT_DICOM = "format:"
STANDARD_VIEWS = tuple((side, view) for side in Laterality for view in ("CC", "MLO"))
# Files that a worker reads before it reports: their headers take some tens of milliseconds.
_CHUNK = 64
# Files of each transfer syntax that are kept to be timed.
_SAMPLES = 8
# Bytes of each of the samples that tell pixel data apart, and where in it they lie: three to begin
# with, and then a row or two of each of 31 parts. Small pixel data are compared as a whole.
_PIECE, _WHOLE = 2**12, 2**18
_FEW_PIECES = (1 / 3, 1 / 2, 2 / 3)
_MANY_PIECES = tuple(number / 32 for number in range(1, 32))


@dataclass(frozen=True)
class FileFacts:
    """What one file's header tells; of identifiers only hashes, but one.

    Attributes:
        status: as ``preprocess`` would record it, as far as the header shows.
        reason: why it is not ok; None if it is.
        detail: the sentence on it; empty if it is ok.
        kind: how it was made; None where it is no mammogram, or not DICOM.
        syntax: transfer syntax, or the format of a file that is not DICOM (`NOT_DICOM`); None where
            the header cannot be read.
        manufacturer: its known name, ``other``, or None where it is not told.
        model: the same.
        intent: FOR PRESENTATION, FOR PROCESSING or None.
        side: L, R or None.
        view: such as CC; None where it is not told.
        special: whether the view has modifiers, such as magnification.
        frames: Number of Frames.
        size: (Rows, Columns).
        hinted: whether free text names software that makes synthetic images, and no code does.
        patient: hash; 0 where there is none.
        exam: hash; 0 where there is none.
        image: hash of the SOP Instance UID; 0 where there is none.
        sop_instance_uid: by which a label table finds it; None where none is asked.
        pixel_start: where the pixel data begin in the file.
        pixel_bytes: how long they are.
    """

    status: Status
    reason: Reason | None = None
    detail: str = ""
    kind: ImageKind | None = None
    syntax: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    intent: str | None = None
    side: str | None = None
    view: str | None = None
    special: bool = False
    frames: int = 0
    size: tuple[int, int] = (0, 0)
    hinted: bool = False
    patient: int = field(default=0, repr=False)
    exam: int = field(default=0, repr=False)
    image: int = field(default=0, repr=False)
    sop_instance_uid: str | None = field(default=None, repr=False)
    pixel_start: int = 0
    pixel_bytes: int = 0


@dataclass(frozen=True)
class Sample:
    """A file that stands for those of its transfer syntax when the work is timed.

    Attributes:
        path: the file.
        syntax: its transfer syntax.
        pixels: that it holds.
        named: whether the label table names it.
        photometric_interpretation: what the label table says of a file that is not DICOM.
    """

    path: Path = field(repr=False)
    syntax: str
    pixels: int
    named: bool = False
    photometric_interpretation: str | None = None


@dataclass(frozen=True)
class Survey:
    """What a folder holds. Counts are of files, unless they say otherwise.

    Attributes:
        files: that may be images.
        passed_over: files that are not, by reason.
        closed_folders: that could not be listed.
        seconds: from the first header to the last.
        start_seconds: that the workers took to start.
        workers: processes that read them.
        machines: by (manufacturer, model), of mammograms; None where it is not told.
        syntaxes: by transfer syntax, of mammograms.
        kinds: by how they were made, of mammograms.
        intents: by presentation intent, of mammograms.
        views: usable files by (side, view), None where it is not told; without view modifiers.
        special_views: usable files with view modifiers.
        excluded: by (status, reason), of files that preprocess would not use, with an example.
        usable: files that nothing in the header excludes.
        patients: of usable files.
        exams: of usable files.
        complete_exams: those that have all four standard views.
        missing_views: incomplete exams by the standard views that they lack.
        paired_views: views of an exam that have an image of one exposure and a synthetic one.
        repeated_views: views of an exam that have several usable images of one kind.
        hinted: mammograms that free text alone calls synthetic.
        repeated_uids: files whose SOP Instance UID an earlier file has.
        repeated_pixels: usable files whose pixel data an earlier one has, by their length and
            samples of 124 KiB.
        pixels: pixels of usable files by transfer syntax.
        samples: usable files to time the work on.
        shapes: usable files by (rows, columns).
        unmatched_rows: of the label table, that name no file; None without a table.
        ambiguous_rows: of the label table, that name several files.
    """

    files: int
    passed_over: Mapping[PassedOver, int]
    closed_folders: int
    seconds: float
    start_seconds: float
    workers: int
    machines: Mapping[tuple[str | None, str | None], int]
    syntaxes: Mapping[str, int]
    kinds: Mapping[ImageKind | None, int]
    intents: Mapping[str | None, int]
    views: Mapping[tuple[str | None, str | None], int]
    special_views: int
    excluded: Mapping[tuple[Status, Reason], tuple[int, str]]
    usable: int
    patients: int
    exams: int
    complete_exams: int
    missing_views: Mapping[tuple[tuple[str, str], ...], int]
    paired_views: int
    repeated_views: int
    hinted: int
    repeated_uids: int
    repeated_pixels: int
    pixels: Mapping[str, int]
    samples: Sequence[Sample]
    shapes: Mapping[tuple[int, int], int]
    unmatched_rows: int | None
    ambiguous_rows: int


@dataclass(frozen=True)
class _Chunk:
    """Files that one worker reads at a time, and the key of this survey's hashes.

    Attributes:
        paths: the files.
        named: whether the label table names each by its path.
        key: of the hashes.
        with_uid: whether the table may name them by their UID, too.
    """

    paths: tuple[Path, ...] = field(repr=False)
    named: tuple[bool, ...]
    key: bytes = field(repr=False)
    with_uid: bool


@dataclass(frozen=True)
class _PixelData:
    """Where a file's pixel data lie, to be compared with those of others."""

    path: Path = field(repr=False)
    start: int
    length: int


def survey(
    folder: Path,
    *,
    labels: LabelTable | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> Survey:
    """Read the headers of every image under a folder.

    Args:
        folder: to look through, as ``preprocess`` does.
        labels: the label table, which counts for more than a header, as it does there.
        workers: processes; by default one for each core.
        say: is given each line that is meant for the user.

    Raises:
        InputError: it is not a folder, or holds no images, or the table names none of them.
    """
    folder = folder.resolve()
    found = find_images(folder)
    files = found.images
    key = secrets.token_bytes(16)
    table = None if labels is None else _Table(labels, key)
    chunks = []
    for start in range(0, len(files), _CHUNK):
        paths = tuple(files[start : start + _CHUNK])
        named = tuple(labels is not None and labels.find(path) is not None for path in paths)
        chunks.append(_Chunk(paths, named, key, labels is not None and labels.needs_headers))
    if labels is not None:
        refuse_naming_none(labels, folder, files)
    workers = max(1, min(workers or available_cores(), len(chunks)))
    counts = _Counts()
    started, first = monotonic(), float("inf")
    with Progress("headers", len(files), say) as progress:
        for chunk, answer in run_in_processes(chunks, read_chunk, workers):
            began, facts = answer or (first, [_without_header(worker_died())] * len(chunk.paths))
            first = min(first, began)
            for path, of_file in zip(chunk.paths, facts, strict=True):
                row = None if table is None else table.find(path, of_file)
                if table is None or row is None:
                    counts.add(path, of_file)
                else:
                    photometric = table.photometric_interpretation(row, path)
                    counts.add(path, table.applied(row, of_file), True, photometric)
                progress.update()
        seconds = monotonic() - first
    if table is not None and not table.rows_found:
        raise InputError(naming_none(table.labels, folder))
    return counts.result(
        files=len(files),
        passed_over=found.passed_over,
        closed_folders=found.unreadable_folders,
        seconds=seconds,
        start_seconds=max(0.0, first - started),
        workers=workers,
        repeated_pixels=_count_repeated_pixels(counts.alike(), workers),
        unmatched_rows=None if table is None else len(table.labels.rows) - len(table.rows_found),
        ambiguous_rows=0 if table is None else sum(n > 1 for n in table.rows_found.values()),
    )


def read_chunk(chunk: _Chunk) -> tuple[float, list[FileFacts]]:
    """Read some headers in a worker.

    Returns:
        When it began, on the machine's own clock, and what each file tells, in their order.
    """
    began = monotonic()
    with reading_quietly():
        return began, [
            read_facts(path, chunk.key, named=named, with_uid=chunk.with_uid)
            for path, named in zip(chunk.paths, chunk.named, strict=True)
        ]


def read_facts(path: Path, key: bytes, *, named: bool = False, with_uid: bool = False) -> FileFacts:
    """Read what one file's header tells, and whether ``preprocess`` would use the file.

    Args:
        path: the file.
        key: of the hashes.
        named: the label table names the file.
        with_uid: return the SOP Instance UID as it is, too.
    """
    if path.suffix.lower() in RASTER_SUFFIXES:
        return _read_raster_facts(path) if named else _without_header(not_in_table())
    try:
        header = read_header(path)
    except ImageError as error:
        return _without_header(error)
    dataset = header.dataset
    refused = refusal(header, named=named)
    is_mammogram = refused is None or refused.reason != Reason.NOT_MAMMOGRAPHY
    kind = find_image_kind(dataset) if is_mammogram else None
    side = find_laterality(dataset)
    maker, model = text(dataset, "Manufacturer"), text(dataset, "ManufacturerModelName")

    return FileFacts(
        **_outcome(refused),
        kind=kind,
        syntax=str(dataset.file_meta.TransferSyntaxUID),
        manufacturer=_manufacturer(maker),
        model=_model(model),
        intent=find_presentation_intent(dataset),
        side=None if side is None else str(side),
        view=find_view(dataset),
        special=bool(find_view_modifiers(dataset)),
        frames=number_of_frames(dataset),
        size=(integer(dataset, "Rows") or 0, integer(dataset, "Columns") or 0),
        hinted=kind == ImageKind.FFDM and names_synthetic_product(dataset),
        patient=_hashed(whole_text(dataset, "PatientID"), key),
        exam=_hashed(whole_text(dataset, "StudyInstanceUID"), key),
        image=_hashed(whole_text(dataset, "SOPInstanceUID"), key),
        sop_instance_uid=whole_text(dataset, "SOPInstanceUID") if with_uid else None,
        pixel_start=header.pixel_start,
        pixel_bytes=header.pixel_bytes,
    )


def _read_raster_facts(path: Path) -> FileFacts:
    try:
        header = read_raster_header(path)
    except ImageError as error:
        return _without_header(error)
    return FileFacts(Status.OK, syntax=NOT_DICOM + header.file_format, size=header.size)


def _hashed(given: str | None, key: bytes) -> int:
    if not given:
        return 0
    digest = hashlib.blake2b(os.fsencode(given), digest_size=8, key=key)
    return int.from_bytes(digest.digest(), "big") or 1


def _manufacturer(given: str | None) -> str | None:
    return None if given is None else known_manufacturer(given) or OTHER


def _model(given: str | None) -> str | None:
    return None if given is None else known_model(given) or OTHER


def refusal(header: DicomHeader, *, named: bool = False) -> ImageError | None:
    """Why ``preprocess`` would not use a file, by the checks that it makes itself.

    What only the pixel data show, such as a damaged codestream, is not among them.
    """
    try:
        check_is_mammogram(header.dataset, assume_mammogram=named)
        check_before_decoding(
            header.dataset, header.pixel_bytes, header.codestream, header.codestream_bytes
        )
    except ImageError as error:
        return error
    return None


def _without_header(error: ImageError) -> FileFacts:
    return FileFacts(**_outcome(error))


def _outcome(error: ImageError | None) -> dict[str, Any]:
    if error is None:
        return {"status": Status.OK}
    columns = failed(error).columns
    return {
        "status": Status(columns["status"]),
        "reason": error.reason,
        "detail": error.detail,
    }


class _Table:
    """The label table's rows, applied to what headers tell as ``preprocess`` applies them.

    Attributes:
        labels: the table.
        rows_found: how many files each row names, of the rows that name any.
    """

    def __init__(self, labels: LabelTable, key: bytes) -> None:
        self.labels = labels
        self.rows_found: Counter[int] = Counter()
        self._key = key

    def find(self, path: Path, facts: FileFacts) -> int | None:
        # Of a file that is refused preprocess records no UID to find it by.
        uid = facts.sop_instance_uid if facts.status == Status.OK else None
        row = self.labels.find(path, uid)
        if row is not None:
            self.rows_found[row] += 1
        return row

    def photometric_interpretation(self, row: int, path: Path) -> str | None:
        if path.suffix.lower() not in RASTER_SUFFIXES:
            return None
        return self.labels.photometric_interpretation(row)

    def applied(self, row: int, facts: FileFacts) -> FileFacts:
        told = self.labels.rows[row]
        view = told["view"]
        return replace(
            facts,
            side=told["laterality"] or facts.side,
            view=facts.view if view is None else view_code(view),
            patient=_hashed(told["patient_id"], self._key) or facts.patient,
            exam=_hashed(told["exam_id"], self._key) or facts.exam,
            # Of machines the file knows more than the table.
            manufacturer=facts.manufacturer or _manufacturer(told["manufacturer"]),
            model=facts.model or _model(told["model"]),
        )


class _Counts:
    """Adds up files as they come; holds a few numbers for each, and no name of any."""

    def __init__(self) -> None:
        self._machines: Counter[tuple[str | None, str | None]] = Counter()
        self._syntaxes: Counter[str] = Counter()
        self._kinds: Counter[ImageKind | None] = Counter()
        self._intents: Counter[str | None] = Counter()
        self._views: Counter[tuple[str | None, str | None]] = Counter()
        self._excluded: dict[tuple[Status, Reason], tuple[int, str]] = {}
        self._patients: set[int] = set()
        # Images of which nothing tells the patient: to preprocess, each is a patient of its own.
        self._without_patient = 0
        # Of each exam, the kinds of its images of each view.
        self._exams: dict[int, dict[tuple[str | None, str | None], list[ImageKind | None]]] = {}
        self._images: set[int] = set()
        self._pixels: Counter[str] = Counter()
        self._shapes: Counter[tuple[int, int]] = Counter()
        self._samples: dict[str, list[tuple[int, str, Sample]]] = defaultdict(list)
        self._alike: dict[tuple[int, tuple[int, int]], list[_PixelData]] = defaultdict(list)
        self._usable = self._special = self._hinted = self._repeated_uids = 0

    def add(
        self,
        path: Path,
        facts: FileFacts,
        named: bool = False,
        photometric_interpretation: str | None = None,
    ) -> None:
        if facts.image:
            self._repeated_uids += facts.image in self._images
            self._images.add(facts.image)
        if facts.reason is not None:
            count, detail = self._excluded.get((facts.status, facts.reason), (0, facts.detail))
            self._excluded[facts.status, facts.reason] = count + 1, detail
        if facts.syntax is None or facts.reason == Reason.NOT_MAMMOGRAPHY:
            return
        self._machines[facts.manufacturer, facts.model] += 1
        self._syntaxes[facts.syntax] += 1
        self._kinds[facts.kind] += 1
        if facts.kind is not None:
            self._intents[facts.intent] += 1
        self._hinted += facts.hinted
        if facts.status == Status.OK:
            pixels = facts.size[0] * facts.size[1]
            sample = Sample(path, facts.syntax, pixels, named, photometric_interpretation)
            self._add_usable(facts, sample)

    def _add_usable(self, facts: FileFacts, sample: Sample) -> None:
        self._usable += 1
        self._pixels[sample.syntax] += sample.pixels
        self._shapes[facts.size] += 1
        # As preprocess does, where there is no Patient ID.
        patient = facts.patient or facts.exam
        if patient:
            self._patients.add(patient)
        else:
            self._without_patient += 1
        if facts.special:
            self._special += 1
        else:
            self._views[facts.side, facts.view] += 1
        views = self._exams.setdefault(facts.exam, {})
        if not facts.special:
            views.setdefault((facts.side, facts.view), []).append(facts.kind)
        if facts.pixel_start:
            self._alike[facts.pixel_bytes, facts.size].append(
                _PixelData(sample.path, facts.pixel_start, facts.pixel_bytes)
            )
        # Those whose name has the smallest digests: spread evenly, and the same every time.
        digest = hashlib.blake2b(os.fsencode(sample.path), digest_size=8).digest()
        kept = self._samples[sample.syntax]
        entry = (-int.from_bytes(digest, "big"), os.fsdecode(sample.path), sample)
        (heapq.heappush if len(kept) < _SAMPLES else heapq.heappushpop)(kept, entry)

    def alike(self) -> list[list[_PixelData]]:
        """Pixel data of one length and size, where there are several."""
        return [group for group in self._alike.values() if len(group) > 1]

    def result(self, **known: Any) -> Survey:
        exams = {exam: views for exam, views in self._exams.items() if exam}
        missing = Counter(
            tuple((str(side), view) for side, view in STANDARD_VIEWS if (side, view) not in views)
            for views in exams.values()
        )
        named = [
            Counter(kinds)
            for views in exams.values()
            for (side, view), kinds in views.items()
            if side and view and len(kinds) > 1
        ]
        syntaxes = [syntax for syntax, _ in self._syntaxes.most_common() if self._samples[syntax]]
        return Survey(
            **known,
            machines=self._machines,
            syntaxes=self._syntaxes,
            kinds=self._kinds,
            intents=self._intents,
            views=self._views,
            special_views=self._special,
            excluded=self._excluded,
            usable=self._usable,
            patients=len(self._patients) + self._without_patient,
            exams=len(exams),
            complete_exams=missing.pop((), 0),
            missing_views=missing,
            paired_views=sum({ImageKind.FFDM, ImageKind.SYNTHETIC} <= {*kinds} for kinds in named),
            repeated_views=sum(max(kinds.values()) > 1 for kinds in named),
            hinted=self._hinted,
            repeated_uids=self._repeated_uids,
            pixels=self._pixels,
            samples=[
                sample
                for syntax in syntaxes
                for _, _, sample in sorted(self._samples[syntax], reverse=True)
            ],
            shapes=self._shapes,
        )


def _count_repeated_pixels(groups: list[list[_PixelData]], workers: int) -> int:
    """How many pixel data repeat others of their length: by a few samples first, then by many."""
    for digest in (_roughly, _closely):
        groups = _regroup(groups, digest, workers)
    return sum(len(group) - 1 for group in groups)


def _regroup(
    groups: list[list[_PixelData]],
    digest: Callable[[list[_PixelData]], list[bytes]],
    workers: int,
) -> list[list[_PixelData]]:
    """Split groups by a digest; those of a single member are left out."""
    flat = [(number, data) for number, group in enumerate(groups) for data in group]
    jobs = [
        [data for _, data in flat[start : start + _CHUNK]] for start in range(0, len(flat), _CHUNK)
    ]
    found: dict[tuple[int, bytes], list[_PixelData]] = defaultdict(list)
    position = 0
    for job, digests in run_in_processes(jobs, digest, max(1, min(workers, len(jobs)))):
        for place, data in enumerate(job):
            number = flat[position + place][0]
            if digests is not None and digests[place]:
                found[number, digests[place]].append(data)
        position += len(job)
    return [group for group in found.values() if len(group) > 1]


def _roughly(job: list[_PixelData]) -> list[bytes]:
    """Digests of a few pieces of pixel data; empty where they cannot be read."""
    return [_digest(data, _FEW_PIECES) for data in job]


def _closely(job: list[_PixelData]) -> list[bytes]:
    """Digests of many pieces of pixel data, or of all; empty where they cannot be read."""
    return [_digest(data, _MANY_PIECES) for data in job]


def _digest(data: _PixelData, shares: tuple[float, ...]) -> bytes:
    pieces = [(data.start + int(data.length * share), _PIECE) for share in shares]
    if data.length <= _WHOLE:
        pieces = [(data.start, data.length)]
    digest = hashlib.blake2b(digest_size=16)
    try:
        with data.path.open("rb", buffering=0) as file:
            for start, length in pieces:
                file.seek(start)
                digest.update(file.read(min(length, data.start + data.length - start)))
    except OSError:
        return b""
    return digest.digest()


def syntax_name(syntax: str) -> str:
    """A transfer syntax's name in the standard, or a format's; ``other`` where it has none."""
    if syntax.startswith(NOT_DICOM):
        return f"{syntax.removeprefix(NOT_DICOM)}, not DICOM"
    named = uid.UID(syntax)
    return named.name if named.is_transfer_syntax and named.name != syntax else OTHER
