"""Rows of a label table to the images of a store: matched, checked, recorded."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mammo_pd.data.labels import LabelTable
from mammo_pd.data.record import Record, RecordedImage
from mammo_pd.errors import InputError
from mammo_pd.terms import Reason, Status
from mammo_pd.wording import counted

# The label of a duplicate is with the image that it repeats; of who was forgotten none is kept.
_WITHOUT_LABEL = (Reason.DUPLICATE, Reason.FORGOTTEN)


@dataclass(frozen=True)
class LabelChanges:
    """What a label table does to labels that are recorded.

    Attributes:
        labelled: images of the folder that have a label.
        removed: of them, those that would have none.
        turned: of them, those that would have another.
    """

    labelled: int
    removed: int
    turned: int

    def __bool__(self) -> bool:
        return bool(self.removed or self.turned)


def join_labels(
    labels: LabelTable, folder: Path, record: Record, *, replace: bool
) -> tuple[int, LabelChanges]:
    """Record each image's row of the label table.

    Args:
        labels: the table.
        folder: of its images; those from elsewhere keep what another table said of them.
        record: of the store.
        replace: the user means it to take labels away or to turn them round.

    Returns:
        The number of rows without an image, and what became of earlier labels. A row of a
        duplicate, or of who was forgotten, has an image, if none that takes its label.

    Raises:
        InputError: no row names an image, one names several, or labels would be lost.
    """
    found, unused = _match(labels, folder, record)
    unused |= _rows_of_forgotten(labels, record)
    times = Counter(row for row in found.values() if row is not None)
    if not times and not unused:
        raise InputError(
            f"{naming_none(labels, folder)} The images are in the store: run again with the "
            "corrected table, and only it is read."
        )
    row, most = max(times.items(), key=lambda item: item[1], default=(0, 0))
    if most > 1:
        # Not their paths, which may hold a woman's name: what is printed ends up in logs.
        paths = sorted(source for source, at in found.items() if at == row)
        names = [record.known(path)[0][2] for path in paths[:2]]
        raise InputError(
            f"line {row + 2} of {labels.source} names {most} images, such as {names[0]} and "
            f"{names[1]}; give paths that distinguish them (a run without --labels and with "
            "--crosswalk FILE lists which file is which). The images are in the store: run again "
            "with the corrected table, and only it is read."
        )
    changes = _compare(labels, found, record)
    if not replace:
        _refuse(labels, changes)
    for source, at in found.items():
        record.put_labels(source, None if at is None else labels.rows[at])
    record.commit()
    return len(labels.rows) - len(unused.union(times)), changes


def refuse_naming_none(labels: LabelTable, folder: Path, files: Iterable[Path]) -> None:
    """Check, before hours of decoding, that a table names one of the files at least.

    A table of UIDs is taken as it is, since only headers tell these.

    Raises:
        InputError: no row names a file.
    """
    if not labels.needs_headers and all(labels.find(file) is None for file in files):
        raise InputError(f"{naming_none(labels, folder)} Nothing was decoded.")


def naming_none(labels: LabelTable, folder: Path) -> str:
    """The sentence on a table that names none of the images."""
    return (
        f"no row of {labels.source} names an image in {folder}; its path must be relative to the "
        "table or to that folder, or give sop_instance_uid or the data set's image_id (a public "
        "data set's own table: --source NAME)."
    )


def refuse_losing_labels(labels: LabelTable, folder: Path, record: Record) -> None:
    """Check, before hours of decoding, what a table does to the labels of images that are there.

    Raises:
        InputError: labels would be lost.
    """
    found, _ = _match(labels, folder, record)
    # A table that names none of the images may be of new ones; if not, `join_labels` says so.
    if any(row is not None for row in found.values()):
        _refuse(labels, _compare(labels, found, record))


def count_contradicted(labels: LabelTable, record: Record) -> int:
    """Count the duplicates to which a table gives another label than to the image that is kept."""
    copies: dict[str, list[int]] = {}
    for image in record.rows():
        if image.columns.get("reason") == Reason.DUPLICATE and image.columns.get("pixel_hash"):
            label = _own_label(labels, image)
            if label is not None:
                copies.setdefault(image.columns["pixel_hash"], []).append(label)
    count = 0
    if copies:
        for image in record.rows():
            if image.columns["status"] == Status.OK:
                label = _own_label(labels, image)
                given = copies.get(image.columns.get("pixel_hash", ""), [])
                count += sum(label is not None and other != label for other in given)
    return count


def _own_label(labels: LabelTable, image: RecordedImage) -> int | None:
    row = labels.find(image.source.path, image.identifiers.get("sop_instance_uid"))
    return None if row is None else labels.rows[row]["label"]


def _rows_of_forgotten(labels: LabelTable, record: Record) -> set[int]:
    """Rows of who was forgotten, by what the table itself tells: her files may be gone."""
    if not record.keeps_anyone_out:
        return set()
    hasher = record.hasher
    names = [
        *((row["patient_id"], "patient", at) for at, row in enumerate(labels.rows)),
        *((uid, "image", at) for uid, at in labels.rows_by_uid.items()),
    ]
    return {at for name, kind, at in names if name and record.is_kept_out(hasher.hash(kind, name))}


def _match(
    labels: LabelTable, folder: Path, record: Record
) -> tuple[dict[Path, int | None], set[int]]:
    """The row of each file of the folder, None without one; and rows of files without a label."""
    found: dict[Path, int | None] = {}
    unused: set[int] = set()
    without_label: set[Path] = set()
    for image in record.rows():
        path = image.source.path
        if path.is_relative_to(folder):
            if image.columns.get("reason") in _WITHOUT_LABEL:
                without_label.add(path)
            # A row names a file, and so all its frames; a frame that could not be decoded has no
            # UID to be found by.
            row = labels.find(path, image.identifiers.get("sop_instance_uid"))
            if row is None:
                row = found.get(path)
            if path in without_label and row is not None:
                unused.add(row)
                row = None
            found[path] = row
    return found, unused


def _compare(labels: LabelTable, found: dict[Path, int | None], record: Record) -> LabelChanges:
    labelled = removed = turned = 0
    for image in record.rows():
        before = image.labels.get("label")
        if (
            before is None
            or image.source.path not in found
            or image.columns.get("reason") in _WITHOUT_LABEL
        ):
            continue
        row = found[image.source.path]
        after = None if row is None else labels.rows[row]["label"]
        labelled += 1
        removed += after is None
        turned += after is not None and after != before
    return LabelChanges(labelled, removed, turned)


def _refuse(labels: LabelTable, changes: LabelChanges) -> None:
    if changes:
        raise InputError(
            f"of {counted(changes.labelled, 'image')} with a label, {labels.source} removes the "
            f"label of {changes.removed} and reverses it for {changes.turned}; no label was "
            "changed. Give one table that holds every label (and the --label-column, --positive "
            "or --definition of before), or --replace-labels if that is what you want."
        )
