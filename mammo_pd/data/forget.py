"""Take images out of a store for good: pixels, thumbnails, rows of splits and manifest, record.

First `plan_forgetting` says what would go, so that a caller can tell which runs saw it; then
`forget` removes it. Killed in between and called again, it completes what it began: the record,
by which images are found, goes last.
"""

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pandas as pd

from mammo_pd.data.image_file import SUFFIX
from mammo_pd.data.manifest import drop_from_manifest, read_manifest
from mammo_pd.data.manifest_row import manifest_row
from mammo_pd.data.record import Record
from mammo_pd.data.splits import (
    SplitTable,
    list_splits,
    patient_groups,
    read_split_and_past,
    remove_from_split,
)
from mammo_pd.data.store import StorePaths, remove_image
from mammo_pd.errors import InputError
from mammo_pd.files import is_gone
from mammo_pd.terms import Reason
from mammo_pd.wording import counted

# As `mammo_pd.data.record.Hasher` writes it.
_HASH = re.compile("[0-9a-f]{20}")
# What decides which images go.
_COLUMNS = (
    "image_id",
    "path",
    "patient_id",
    "tag_patient",
    "exam_id",
    "pixel_hash",
    "uid",
    "is_duplicate",
)


@dataclass(frozen=True)
class ToForget:
    """What is to be taken out of a store.

    Attributes:
        image_ids: of the images.
        patients: how many patients they are of.
        files_left: how many of their files are still where they were read.
        relatives: patient_id of those who share an exam or pixels with the patients that are
            forgotten, and may be the same women.
        to_read_again: images that were left out as duplicates of one whose file is gone: their
            rows go, so that the next preprocess takes them in.
        splits: those of the store, with all hashes that each has had.
        unrecorded: how many images lie in the store that a stopped preprocess had placed and not
            yet recorded: nothing tells whose they are, so all of them go.
        not_found: how many of the patients who were named have no recorded image, where there are
            such unrecorded ones.
        keep_out: names that no later preprocess takes in, each with the patient that it goes with:
            of who was named, not of files that are missing, which may come back.
    """

    image_ids: frozenset[str]
    patients: int
    files_left: int
    relatives: tuple[str, ...]
    to_read_again: frozenset[str]
    splits: tuple[tuple[SplitTable, frozenset[str]], ...]
    unrecorded: int
    not_found: int
    keep_out: Mapping[str, str | None]


@dataclass(frozen=True)
class Forgotten:
    """What became of the store's splits.

    Attributes:
        shortened: name and number of rows removed.
        removed: names of those that were left without a part or a fold.
    """

    shortened: tuple[tuple[str, int], ...]
    removed: tuple[str, ...]


def plan_forgetting(
    paths: StorePaths,
    record: Record,
    *,
    patients: Sequence[str] = (),
    images: Sequence[str] = (),
    missing: bool = False,
    whole_folders: bool = False,
) -> ToForget:
    """Find the images that are to be forgotten, with the copies that were left out as duplicates.

    Args:
        paths: the store.
        record: of the store.
        patients: each the manifest's patient_id, or the original identifier that the label table
            or the file gives.
        images: each the manifest's image_id.
        missing: every image whose file was deleted.
        whole_folders: with ``missing``, also where nothing is left of a folder, as if its disk
            were not mounted.

    Raises:
        InputError: a patient or an image that the store does not hold, a folder of which nothing is
            left, or a split that was edited.
    """
    rows, unrecorded = _read_rows(record), _unrecorded(paths, record)
    left_over = len(unrecorded) + len(_half_written(paths))
    if rows.empty and not left_over:
        raise InputError("the store holds no image, so there is nothing to forget.")
    of_patients, patient_ids, not_found = _of_patients(rows, patients, record, bool(left_over))
    of_images = _of_images(rows, [given for given in images if given not in unrecorded])
    to_read_again: set[str] = set()
    # Copies go with the image that they repeat.
    chosen = of_patients | of_images | _duplicates_of(rows, of_patients | of_images)
    theirs = rows[rows["image_id"].isin(of_patients - of_images)]
    keep_out = {
        **dict.fromkeys([*chosen, *patient_ids, *chain(*not_found), *(unrecorded & set(images))]),
        **dict(zip(theirs["image_id"], theirs["patient_id"], strict=True)),
    }
    if missing:
        gone = rows["gone"] = [is_gone(path) for path in rows["path"]]
        if not whole_folders:
            _refuse_unmounted(rows, record.folders())
        lost = set(rows.loc[gone, "image_id"])
        to_read_again = _duplicates_of(rows, lost) - lost - chosen
        chosen |= lost
    is_chosen = rows["image_id"].isin(chosen)
    relatives: list[str] = []
    if patients:
        groups = patient_groups(rows)
        joined = rows[groups.isin(groups[is_chosen]) & ~is_chosen]
        relatives = sorted(joined["patient_id"].unique())
    return ToForget(
        frozenset(chosen),
        rows.loc[is_chosen, "patient_id"].nunique(),
        sum(not is_gone(path) for path in set(rows.loc[is_chosen, "path"])),
        tuple(relatives),
        frozenset(to_read_again),
        tuple(read_split_and_past(paths.splits, name) for name in list_splits(paths.splits)),
        left_over,
        len(not_found),
        keep_out,
    )


def forget(paths: StorePaths, record: Record, plan: ToForget) -> Forgotten:
    """Remove from a store what was planned.

    Args:
        paths: the store.
        record: of the store.
        plan: as `plan_forgetting` made it.

    Returns:
        What became of the splits.

    Raises:
        OSError: something cannot be removed. What is left of the plan is done by another call.
    """
    _remove_unrecorded(paths, record)
    for image_id in sorted(plan.image_ids):
        remove_image(paths, image_id)
    shortened, removed = [], []
    for split, _ in plan.splits:
        count = int(split.table["image_id"].isin(plan.image_ids).sum())
        if not count:
            continue
        if remove_from_split(paths.splits, split.name, plan.image_ids) is None:
            removed.append(split.name)
        else:
            shortened.append((split.name, count))
    rows = plan.image_ids | plan.to_read_again
    if paths.manifest.is_file():
        drop_from_manifest(paths.manifest, rows)
    record.remove(rows)
    record.keep_out(plan.keep_out)
    record.commit()
    return Forgotten(tuple(shortened), tuple(removed))


def _remove_unrecorded(paths: StorePaths, record: Record) -> None:
    """Remove pixels that a killed run left, and of which nothing tells whose they are.

    A later preprocess would make them anew of those who stay, but never again look at those of who
    is kept out. Only who holds the record writes pixels.
    """
    if paths.partial.is_dir():
        shutil.rmtree(paths.partial)
    for image_id in _unrecorded(paths, record):
        remove_image(paths, image_id)


def _unrecorded(paths: StorePaths, record: Record) -> set[str]:
    """The images that lie in the store and that neither record nor manifest knows."""
    known = {image.image_id for image in record.rows()}
    if paths.manifest.is_file():
        # A record that was restored from an older copy knows fewer.
        known |= set(read_manifest(paths.manifest, status=None)["image_id"])
    placed = (paths.root / "pixels").glob("??/*")
    return {place.name.removesuffix(SUFFIX) for place in placed} - known


def _half_written(paths: StorePaths) -> list[Path]:
    """What workers were writing when they were killed."""
    return list(paths.partial.rglob("*")) if paths.partial.is_dir() else []


def take_again(
    paths: StorePaths, record: Record, *, patients: Sequence[str] = (), images: Sequence[str] = ()
) -> None:
    """Let the next preprocess take in again who was forgotten.

    Args:
        paths: the store.
        record: of the store.
        patients: as for `plan_forgetting`.
        images: the image_id of those that were forgotten.

    Raises:
        InputError: one of them was not forgotten.
    """
    for number, given in enumerate(patients, start=1):
        if not record.let_in([given.strip(), record.hasher.hash("patient", given.strip())]):
            raise InputError(f"patient number {number} of --patient was not forgotten.")
    for given in images:
        if not record.let_in([given]):
            raise InputError(f"the image {given!r} was not forgotten.")
    # All are read again, and who is kept out still is left out once more.
    passed_over = [
        image.image_id for image in record.rows() if image.columns.get("reason") == Reason.FORGOTTEN
    ]
    if paths.manifest.is_file():
        drop_from_manifest(paths.manifest, passed_over)
    record.remove(passed_over)
    record.commit()


def _read_rows(record: Record) -> pd.DataFrame:
    """What decides which images go: one row per recorded image."""
    rows = []
    for image in record.rows():
        row = manifest_row(image, record.hasher)
        tag = image.identifiers.get("patient_id")
        rows.append(
            {
                "image_id": image.image_id,
                "path": image.source.path,
                "patient_id": row["patient_id"],
                "tag_patient": record.hasher.hash("patient", tag) if tag else None,
                "exam_id": row["exam_id"],
                "pixel_hash": row.get("pixel_hash"),
                "uid": image.identifiers.get("sop_instance_uid"),
                "is_duplicate": row.get("reason") == Reason.DUPLICATE,
            }
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


def _of_patients(
    rows: pd.DataFrame, patients: Sequence[str], record: Record, has_unrecorded: bool
) -> tuple[set[str], set[str], list[set[str]]]:
    """The images of the patients, the patients' IDs as hashes, and the names of who has no image.

    Where some images are of nobody knows whom, one without a recorded image is no error.
    """
    chosen: set[str] = set()
    patient_ids: set[str] = set()
    not_found: list[set[str]] = []
    for number, given in enumerate(dict.fromkeys(patients), start=1):
        hashed = record.hasher.hash("patient", given.strip())
        names = {given.strip(), hashed}
        column = "patient_id"
        if not rows[column].isin(names).any():
            # The label table names her otherwise than her files do.
            column = "tag_patient"
        found = rows[rows[column].isin(names)]
        if found.empty and has_unrecorded:
            # As a hash alone, since it may identify her. What looks like one may be the manifest's
            # patient_id, or an identifier that another system has made: both are kept out.
            not_found.append(names if _HASH.fullmatch(given.strip()) else {hashed})
            continue
        if found.empty:
            # Not what was given: it may identify her, and what is printed ends up in logs.
            which = "the patient" if len(patients) == 1 else f"patient number {number} of those"
            cause = (
                "she has already been forgotten"
                if any(record.is_kept_out(name) for name in names)
                else "give her identifier exactly as the label table or the files spell it, or the "
                "manifest's patient_id"
            )
            raise InputError(
                f"the store has no image of {which} given with --patient (not repeated here, since "
                f"it may identify her): {cause}. Nothing was removed."
            )
        chosen |= set(found["image_id"])
        patient_ids |= {*found[column], *found["patient_id"]}
    return chosen, patient_ids, not_found


def _of_images(rows: pd.DataFrame, images: Sequence[str]) -> set[str]:
    known = set(rows["image_id"])
    for given in images:
        if given not in known:
            raise InputError(
                f"the store has no image {given!r}; give the manifest's image_id. Nothing was "
                "removed."
            )
    return set(images)


def _duplicates_of(rows: pd.DataFrame, image_ids: Collection[str]) -> set[str]:
    """The images that were left out since they repeat one of these."""
    repeated = rows[rows["image_id"].isin(list(image_ids))]
    # A UID may be shared by images that differ; it counts only where pixels were never compared.
    same = rows["pixel_hash"].isin(repeated["pixel_hash"].dropna()) | (
        rows["pixel_hash"].isna() & rows["uid"].isin(repeated["uid"].dropna())
    )
    return set(rows.loc[same & rows["is_duplicate"], "image_id"])


def _refuse_unmounted(rows: pd.DataFrame, folders: Sequence[Path]) -> None:
    """Refuse to take a disk that is not there for files that were deleted."""
    # The whole store, too: earlier versions recorded no folders.
    for folder in (*folders, Path("/")):
        inside = rows[[path.is_relative_to(folder) for path in rows["path"]]]
        if len(inside) and inside["gone"].all():
            raise InputError(
                f"none of the files of the {counted(len(inside), 'image')} that came from {folder} "
                "is left; is its disk mounted? If the folder was moved, run mammo-pd preprocess "
                "on its new location, which recognises the images; if it was deleted for good, "
                "add --whole-folders. Nothing was removed."
            )
