"""What `preprocess` reports about the store it has made: one line per item, warnings last."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mammo_pd.cli.options import default_store
from mammo_pd.wording import counted

if TYPE_CHECKING:
    from mammo_pd.ingest.summary import PreprocessSummary

# With no more patients than this, one image per patient is not suspicious.
_FEW_IMAGES = 4


def summary_lines(summary: "PreprocessSummary", out: Path, *, has_table: bool) -> Iterator[str]:
    """Report what was found, and what to check.

    Args:
        summary: of the store.
        out: the store, for the commands that are named.
        has_table: whether labels were given.
    """
    yield from _counts(summary, has_table)
    yield from _missing(summary, out)
    yield from _chosen(summary)
    yield from _doubtful(summary)
    yield from _misleading(summary)


def pixels_written(summary: "PreprocessSummary") -> str:
    """What of the pixels this run wrote, to follow the name of the manifest."""
    written = []
    if summary.decoded:
        written.append(f"the pixels of {counted(summary.decoded, 'image')}")
    if summary.extended:
        written.append(f"further levels of {counted(summary.extended, 'image')}")
    return "".join(f" and {each}" for each in written) or "; all pixels were there already"


def _counts(summary: "PreprocessSummary", has_table: bool) -> Iterator[str]:
    """What was found, and how much of it has a label."""
    for (status, reason), count in sorted(summary.by_status.items(), key=lambda item: -item[1]):
        line = f"{count:>8}  {status}" + (f"  {reason}" if reason else "")
        yield line + (f"   such as {summary.details[reason]}" if reason else "")
    if summary.passed_over:
        counts = sorted(summary.passed_over.items(), key=lambda item: -item[1])
        yield "skipped: " + "; ".join(f"{count} {reason}" for reason, count in counts)
    if summary.repeated_folders:
        yield (
            f"{counted(summary.repeated_folders, 'link')} not followed: they lead to folders "
            "already read, or back to their own"
        )
    if summary.labelled or has_table:
        yield (
            f"{summary.labelled} of "
            f"{counted(summary.ok, 'usable image has', 'usable images have')} a label; "
            f"{counted(summary.positive, 'of them is', 'of them are')} positive"
        )
    if summary.label_changes:
        yield (
            "--replace-labels: "
            + counted(
                summary.label_changes.removed, "image lost its label", "images lost their label"
            )
            + f", {summary.label_changes.turned} changed it"
        )


def _missing(summary: "PreprocessSummary", out: Path) -> Iterator[str]:
    """What may be missing from the store, and what it has whose file is gone."""
    from mammo_pd.ingest.walk import PassedOver

    if summary.unmatched_labels:
        yield (
            f"warning: {counted(summary.unmatched_labels, 'row matches', 'rows match')} no image; "
            "if that is more than you expect, compare its paths or identifiers with the folder"
        )
    if PassedOver.UNREADABLE in summary.passed_over:
        yield (
            f"warning: {counted(summary.passed_over[PassedOver.UNREADABLE], 'file')} cannot be "
            "opened, and images may be missing; make them readable and run again"
        )
    if summary.closed_folders:
        yield (
            f"warning: {counted(summary.closed_folders, 'folder')} could not be listed, and images "
            "may be missing; make them readable and run again"
        )
    if summary.damaged:
        yield (
            "warning: "
            + counted(
                summary.damaged,
                "image is damaged and comes from another folder",
                "images are damaged and come from other folders",
            )
            + "; run the same command with each folder that this store was made from"
        )
    if summary.lacking:
        yield (
            "warning: "
            + counted(
                summary.lacking,
                "image lacks a level that no other level can supply, and comes from another folder",
                "images lack a level that no other level can supply, and come from other folders",
            )
            + "; run the same command with each folder that this store was made from"
        )
    if summary.gone:
        store = "" if out == default_store() else f" {shlex.quote(str(out))}"
        yield (
            "warning: "
            + counted(
                summary.gone,
                "image of the store has lost the file that it came from",
                "images of the store have lost the files that they came from",
            )
            + " (deleted, moved, or on a disk that is not mounted); to remove deleted ones from "
            f"the store: mammo-pd forget{store} --missing"
        )


def _chosen(summary: "PreprocessSummary") -> Iterator[str]:
    """Which image or source was used where two contradict each other."""
    if summary.contradicted:
        yield (
            f"warning: {counted(summary.contradicted, 'image was', 'images were')} left out as a "
            "duplicate of an image with a different label in the label table, and the other "
            "image's label was used; find out which is right"
        )
    if summary.only_label:
        yield (
            f"warning: --prefer leaves out {counted(summary.only_label, 'image')} with a label, "
            "whose view's other image has none; label that one in the table"
        )
    if summary.unknown_kind:
        yield (
            "warning: "
            + counted(summary.unknown_kind, "image is", "images are")
            + " used whatever the kind: there is no file to show how it was made"
        )
    if summary.repeated_views:
        yield (
            f"{counted(summary.repeated_views, 'view has', 'views have')} several images of one "
            "kind (repeated exposures, parts of a breast, FOR PROCESSING beside FOR "
            "PRESENTATION); all of them are kept"
        )
    if summary.disagreeing:
        yield (
            "warning: the label table and DICOM disagree on the side of "
            f"{counted(summary.disagreeing, 'image')}; the table's was used"
        )


def _doubtful(summary: "PreprocessSummary") -> Iterator[str]:
    """Images to check, by what is doubtful about them."""
    for count, what in (
        (
            summary.doubtful,
            "breast and background cannot be separated, so the image is kept whole "
            "(breast_verdict)",
        ),
        (
            summary.two_breasts,
            "there is a second breast beside the first, so the image is kept whole, with its one "
            "label and side; if two films were scanned together, cut them apart "
            "(breast_verdict two_breasts)",
        ),
        (sum(summary.sides.values()), _contradictions(summary.sides)),
        (
            summary.turned_upright,
            "Patient Orientation says that it is upside down, so it was turned (turned_upright)",
        ),
        (
            summary.shared_uid,
            "another image has the same SOP Instance UID but different pixels; both are kept, and "
            "a label table must name them by path",
        ),
        (summary.burned_in, "the tag says that text is burned in (burned_in_annotation)"),
        (
            summary.for_processing,
            "the image is FOR PROCESSING, not for display (presentation_intent)",
        ),
        (
            summary.odd_headers,
            "a grey-scale value in the header was corrected or ignored (voi_applied)",
        ),
        (
            summary.hardly_filled,
            "the grey scale uses less than a quarter of black to white, as where header or window "
            "are of another bit depth than the pixels (voi_applied)",
        ),
    ):
        if count:
            yield (
                f"warning: in {count} of {counted(summary.ok, 'usable image')} {what}; see the "
                "manifest"
            )
    if len(summary.raster_depths) > 1:
        shares = ", ".join(f"{n} of {depth}" for depth, n in sorted(summary.raster_depths.items()))
        yield (
            f"warning: images that are not DICOM differ in bit depth ({shares} bits), so the same "
            "grey value means different things; convert them all the same way"
        )
    if summary.shallow:
        yield (
            f"warning: {counted(sum(summary.shallow.values()), 'image')} of 16 bits with values up "
            f"to {max(summary.shallow)} bits only, which come out dark; if that is the data set's "
            f"bit depth, rebuild the store with --bits-stored {max(summary.shallow)}"
        )


def _misleading(summary: "PreprocessSummary") -> Iterator[str]:
    """How images' names and origins could mislead a model or a split."""
    # One woman may well have a single image, but hardly every one of many women.
    if summary.ok == summary.patients > _FEW_IMAGES or summary.ids_with_view > summary.ok // 2:
        reason = (
            f"every one of the {summary.patients} patients has just one image"
            if summary.ok == summary.patients
            else f"{summary.ids_with_view} of {summary.ok} patient IDs name a side and a view"
        )
        yield (
            f"warning: {reason}, so images of one woman may end up on both sides of a split; give "
            "the true patient in a column patient_id of the label table, or let --source read a "
            "public data set's own table"
        )
    for machine, kinds in summary.mixed_voi.items():
        shares = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        yield (
            f"warning: images of {machine} come in different kinds of grey scale ({shares}; "
            "voi_applied), which a model can learn instead of the disease; see --voi"
        )


def _contradictions(sides: dict[str, int]) -> str:
    told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(sides.items()))
    return (
        "laterality, Patient Orientation and the side on which the breast lies contradict one "
        f"another (side_verdict: {told})"
    )
