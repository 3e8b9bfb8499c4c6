"""What a run of ``preprocess`` comes to: manifest rows are counted as they pass by."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mammo_pd.data.record import Hasher, RecordedImage
from mammo_pd.ingest.label_join import LabelChanges
from mammo_pd.ingest.names import frame_suffix
from mammo_pd.ingest.walk import PassedOver
from mammo_pd.terms import Status

# What `stretch_raster` says of its image.
_RASTER_DEPTH = re.compile(r"full_range:(?P<depth>\d+)bit(?::reaches_(?P<reached>\d+)bit)?$")
# As CBIS-DDSM's patient IDs, which name an image: Mass-Training_P_00001_LEFT_CC.
_SIDE_AND_VIEW = re.compile(r"(?<![A-Z])(?:L|R|LEFT|RIGHT)[\W_]?(?:CC|MLO)(?![A-Z])")


@dataclass(frozen=True)
class PreprocessSummary:
    """What a run did and what the store now holds.

    Attributes:
        found: image files in the folder.
        done_before: of them, those that needed no work.
        decoded: images whose pixels were written in this run.
        extended: images of the whole store that got further levels, computed from larger ones.
        passed_over: files that are not images, by reason.
        repeated_folders: linked folders that were not read, being read already.
        by_status: images of the folder by (status, reason); with ``--frames each`` every frame of
            a file is one.
        labelled: of the folder's ok images, those with a label.
        positive: of those, the positive ones.
        unmatched_labels: rows of the label table that match no image.
        label_changes: what the label table did to labels of before; None without a table.
        contradicted: images that were left out as duplicates of one that the label table labels
            otherwise.
        disagreeing: images whose laterality differs between table and tag.
        doubtful: of the folder's ok images, those in which it is doubtful what is breast; they are
            kept whole.
        two_breasts: of the folder's ok images, those that show another breast beside the one found;
            they are kept whole, too, and not counted as doubtful.
        sides: of the folder's ok images, how many have each ``SideVerdict`` but ``ok``.
        turned_upright: of the folder's ok images, those that Patient Orientation says to have been
            upside down.
        burned_in: of the folder's ok images, those whose tag says that text is burned in.
        shared_uid: of the folder's ok images, those whose SOP Instance UID another image has, with
            other pixels.
        raster_depths: of the folder's ok images that are not DICOM, how many have each bit depth.
        shallow: of those of 16 bits without a depth given, the number of images that reach to each
            smaller depth.
        patients: of the folder's ok images.
        ids_with_view: of the folder's ok images, those whose patient ID names a side and a view.
        for_processing: of the folder's ok images, those whose Presentation Intent Type is FOR
            PROCESSING.
        odd_headers: of the folder's ok images, those whose grey scale rests on header values that
            were mended or ignored.
        hardly_filled: of the folder's ok images that are DICOM, those that span less than a quarter
            of black to white.
        mixed_voi: machines (manufacturer and model) of whose ok images some have one kind of
            value-of-interest transformation and some another, with the count of each kind.
        closed_folders: folders that could not be listed.
        damaged: images of the whole store that ``verify`` found damaged and that are not in the
            folder, so that they could not be made anew.
        lacking: images of the whole store that lack a level, must be decoded for it, and are not in
            the folder.
        gone: images of the whole store whose file is no longer where it was read.
        only_label: images of the whole store that ``prefer`` leaves out and that have a label which
            the image taken instead lacks.
        views_of_both: views of the whole store that have images of both kinds; None where
            ``prefer`` takes both.
        repeated_views: views of the whole store of which ``prefer`` leaves several images.
        unknown_kind: images of the whole store whose file is needed to tell how they were made, and
            cannot be read.
        details: one example for each reason: image_id and sentence. Never a file's name, which can
            be a patient's name or an image's UID: what is printed ends up in logs.
        contact_sheets: the pages that were drawn.
    """

    found: int
    done_before: int
    decoded: int
    extended: int
    passed_over: Mapping[PassedOver, int]
    repeated_folders: int
    by_status: dict[tuple[str, str], int]
    labelled: int
    positive: int
    unmatched_labels: int
    label_changes: LabelChanges | None
    contradicted: int
    disagreeing: int
    doubtful: int
    two_breasts: int
    sides: dict[str, int]
    turned_upright: int
    burned_in: int
    shared_uid: int
    raster_depths: dict[int, int]
    shallow: dict[int, int]
    patients: int
    ids_with_view: int
    for_processing: int
    odd_headers: int
    hardly_filled: int
    mixed_voi: dict[str, dict[str, int]]
    closed_folders: int
    damaged: int
    lacking: int
    gone: int
    only_label: int
    views_of_both: int | None
    repeated_views: int
    unknown_kind: int
    details: dict[str, str]
    contact_sheets: tuple[Path, ...]

    @property
    def other_files(self) -> int:
        """Files of the folder that are not images."""
        return sum(self.passed_over.values())

    @property
    def ok(self) -> int:
        """Images of the folder that can be used."""
        return sum(n for (status, _), n in self.by_status.items() if status == Status.OK)


@dataclass
class FolderTally:
    """Counts of a folder's images, of which a million are never held at once.

    Attributes are those of `PreprocessSummary`, but for ``counts``, which has its plain numbers.
    """

    by_status: Counter[tuple[str, str]] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    patients: set[str] = field(default_factory=set)
    sides: Counter[str] = field(default_factory=Counter)
    raster_depths: Counter[int] = field(default_factory=Counter)
    shallow: Counter[int] = field(default_factory=Counter)
    voi: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any], image: RecordedImage, hasher: Hasher) -> None:
        """Count an image of the folder by its row of the manifest."""
        self.by_status[row["status"], row.get("reason") or ""] += 1
        if row.get("reason"):
            self.details.setdefault(row["reason"], f"{image.image_id}: {row['detail']}")
        self.counts.update(_counted(row, image))
        if row["status"] != Status.OK:
            return
        self.counts["shared_uid"] += _has_anothers_uid(image, hasher)
        self.patients.add(row["patient_id"])
        if row.get("side_verdict") not in (None, "ok"):
            self.sides[row["side_verdict"]] += 1
        voi = row.get("voi_applied") or ""
        if depth := _RASTER_DEPTH.match(voi):
            self.raster_depths[int(depth["depth"])] += 1
            if depth["reached"]:
                self.shallow[int(depth["reached"])] += 1
        if voi:
            self.voi.setdefault(_machine(row), Counter())[voi.partition(":")[0]] += 1

    def fields(self) -> dict[str, Any]:
        """What `PreprocessSummary` takes from here, by name."""
        plain = (
            *("labelled", "positive", "disagreeing", "doubtful", "two_breasts"),
            *("turned_upright", "burned_in", "shared_uid", "ids_with_view", "for_processing"),
            *("odd_headers", "hardly_filled"),
        )
        mixed = {machine: kinds for machine, kinds in sorted(self.voi.items()) if len(kinds) > 1}
        return {name: self.counts[name] for name in plain} | {
            "by_status": dict(self.by_status),
            "details": self.details,
            "patients": len(self.patients),
            "sides": dict(self.sides),
            "raster_depths": dict(self.raster_depths),
            "shallow": dict(self.shallow),
            "mixed_voi": {machine: dict(kinds) for machine, kinds in mixed.items()},
        }


def _counted(row: Mapping[str, Any], image: RecordedImage) -> dict[str, int]:
    """What one image adds to the counts of the summary."""
    tag, table = image.columns.get("laterality"), image.labels.get("laterality")
    disagreeing = {"disagreeing": int(bool(tag and table and tag != table))}
    if row["status"] != Status.OK:
        return disagreeing
    return disagreeing | {
        "labelled": int(row["label"] is not None),
        "positive": row["label"] or 0,
        "doubtful": int(row["breast_verdict"] not in ("ok", "two_breasts")),
        "two_breasts": int(row["breast_verdict"] == "two_breasts"),
        "turned_upright": int(row.get("turned_upright") is True),
        "burned_in": int(row.get("burned_in_annotation") is True),
        "ids_with_view": int(_SIDE_AND_VIEW.search(_given_patient_id(image)) is not None),
        "for_processing": int(row.get("presentation_intent") == "FOR PROCESSING"),
        "odd_headers": int(
            any(
                note.startswith(("no_number_", "unusable_", "unknown_", "incomplete_"))
                for note in (row.get("voi_applied") or "").replace("|", ":").split(":")
            )
        ),
        "hardly_filled": int((row.get("voi_applied") or "").endswith(":spans_under_25_percent")),
    }


def _given_patient_id(image: RecordedImage) -> str:
    given = image.labels.get("patient_id") or image.identifiers.get("patient_id")
    return str(given or "").upper()


def _has_anothers_uid(image: RecordedImage, hasher: Hasher) -> bool:
    """Whether an image could not be named by its UID, since another is."""
    uid = image.identifiers.get("sop_instance_uid")
    suffix = frame_suffix(image.source.frame)
    return bool(uid) and image.image_id != hasher.hash("image", f"{uid}{suffix}")


def _machine(row: Mapping[str, Any]) -> str:
    """What is expected to come in one kind of grey scale: a machine's images of one intent."""
    known = [row[name] for name in ("manufacturer", "model") if row.get(name)]
    intent = row.get("presentation_intent")
    return (" ".join(known) or "an unnamed machine") + (f", {intent}" if intent else "")
