"""``mammo-pd preprocess``: a folder of images to a store."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from mammo_pd.cli.early_checks import check_output_file, read_key
from mammo_pd.cli.options import DEFAULT_STORE, StoreOption, default_store, unless_default
from mammo_pd.cli.public_set import in_words, labels_of, look_like
from mammo_pd.errors import InputError
from mammo_pd.terms import Compression, Frames, Prefer, VoiPolicy
from mammo_pd.wording import counted

if TYPE_CHECKING:
    from mammo_pd.data.labels import LabelTable
    from mammo_pd.ingest.preprocess import PreprocessSummary

# Up to so many, one image of each patient is no surprise.
_FEW_IMAGES = 4


def preprocess(
    folder: Annotated[Path, Parameter(name="DICOM_DIR")],
    /,
    *,
    out: StoreOption = DEFAULT_STORE,
    labels: Annotated[Path | None, Parameter(metavar="TABLE")] = None,
    source: Annotated[str | None, Parameter(metavar="NAME")] = None,
    definition: Annotated[
        str | None, Parameter(metavar="NAME", show_default="the data set's first")
    ] = None,
    label_column: Annotated[
        str | None, Parameter(metavar="NAME", show_default="label, else cancer")
    ] = None,
    positive: Annotated[
        list[str] | None, Parameter(consume_multiple=1, metavar="VALUE...", show_default="1")
    ] = None,
    carry: Annotated[str | None, Parameter(metavar="A,B")] = None,
    column: Annotated[list[str] | None, Parameter(metavar="NAME=COLUMN")] = None,
    replace_labels: bool = False,
    voi: VoiPolicy = VoiPolicy.AUTO,
    frames: Frames = Frames.EXCLUDE,
    bits_stored: Annotated[int | None, Parameter(metavar="N", show_default="16")] = None,
    workers: Annotated[int | None, Parameter(metavar="N", show_default="one per core")] = None,
    scheduler: Annotated[str | None, Parameter(metavar="ADDRESS")] = None,
    contact_sheet: Annotated[Path | None, Parameter(metavar="PNG")] = None,
    crosswalk: Annotated[Path | None, Parameter(metavar="CSV")] = None,
    key: Annotated[Path | None, Parameter(metavar="FILE", show_default="a new key")] = None,
    levels: Annotated[
        str | None, Parameter(metavar="LEVEL,...", show_default="all of the store's")
    ] = None,
    compression: Annotated[
        Compression | None, Parameter(show_default="as the store's, or none")
    ] = None,
    prefer: Annotated[Prefer | None, Parameter(show_default="as before, else both")] = None,
    verify: bool = False,
) -> None:
    """Convert a folder of mammograms to a store of tensors.

    Run it again to add images or change labels: no image is decoded twice.

    For example:

        mammo-pd preprocess DICOM_DIR --labels labels.csv
        mammo-pd preprocess DICOM_DIR --labels train.csv --source rsna

    Args:
        folder: Folder of DICOM files, or of PNG, PGM and TIFF files that TABLE names.
        out: The store to create or extend.
        labels: CSV with a column path, sop_instance_uid or image_id, and a label.
        source: Read TABLE as a public data set's own table (for some, a folder of tables): rsna,
            vindr-mammo, cbis-ddsm, cdd-cesm, cmmd, inbreast, dmid, kau-bcmd, bmcd, nlbs, embed,
            csaw-cc, optimam or mias.
        definition: Which of the data set's label definitions to use, with --source.
        label_column: Column of TABLE that holds the label.
        positive: Values that count as positive; all others are negative.
        carry: Further columns of TABLE for the manifest, such as hormone,ward. Those that are not
            known to describe images, findings or machines are left out: they may identify a woman.
        column: Read COLUMN of TABLE as NAME, such as laterality=side: laterality, view, patient_id,
            exam_id, age, implant, manufacturer or model. Repeatable.
        replace_labels: Allow TABLE to remove or reverse labels that images already have.
        voi: Grey scale: VOI LUT, else window, else the full stored range (auto); or only a LUT
            (lut), only a window (window), always the full range (raw).
        frames: What to take of multi-frame files (tomosynthesis): nothing, the middle frame, the
            maximum intensity projection (mip), or each frame as an image.
        bits_stored: Bits in use of 16-bit PNG, PGM and TIFF files, from 8 to 16.
        workers: Number of processes.
        scheduler: Use the workers of this Dask scheduler, such as tcp://host:8786.
        contact_sheet: Draw every crop to this file, for you to look at.
        crosswalk: Write image_id, path and original identifiers to this file, in the clear.
        key: private/key of another store, to give images the same names as there.
        levels: Pyramid levels to keep, of native,4096,2048,1024,512, beside those that the store
            keeps already; 1024 is enough for --res 1024.
        compression: How pixels are written from now on; lz4 loses nothing, takes about two thirds
            of the disk, and is decompressed faster than disks read.
        prefer: Of a view that has an exposure and an image computed from tomosynthesis, take the
            one (ffdm) or the other (synthetic). The store remembers the choice and keeps the pixels
            of both.
        verify: Read all pixels of the store; make anew what is damaged.
    """
    check_output_file("--contact-sheet", contact_sheet)
    check_output_file("--crosswalk", crosswalk)
    given_key = read_key(key)
    from mammo_pd.data.kept_levels import parse_levels, usual_res
    from mammo_pd.data.store import StorePaths
    from mammo_pd.imaging.settings import ImagingSettings
    from mammo_pd.ingest import preprocess as ingest

    if workers is not None and scheduler is not None:
        raise InputError("--workers and --scheduler exclude each other; give one of them.")
    if bits_stored is not None and not 8 <= bits_stored <= 16:
        raise InputError(f"--bits-stored {bits_stored} is not from 8 to 16.")
    if replace_labels and labels is None:
        raise InputError("--replace-labels needs a table; name it with --labels.")
    columns = _parse_columns(column or [])
    table = _read_labels(folder, labels, source, definition, label_column, positive, carry, columns)
    public = look_like(folder) if labels is None else None
    if public is not None:
        print(in_words(public))
    summary = ingest.preprocess(
        folder,
        out,
        labels=table,
        replace_labels=replace_labels,
        settings=ImagingSettings(voi=voi, frames=frames, bits_stored=bits_stored),
        workers=workers,
        scheduler=scheduler,
        contact_sheet=contact_sheet,
        crosswalk=crosswalk,
        key=given_key,
        verify=verify,
        levels=None if levels is None else parse_levels(levels),
        compression=compression,
        prefer=prefer,
    )
    _print_summary(summary, out, has_table=table is not None)
    if prefer is not None and summary.views_of_both == 0:
        print(
            f"--prefer {prefer} leaves nothing out: no view of the store has both an ffdm and a "
            "synthetic image"
        )
    if summary.details and crosswalk is None:
        print("to see which files these are, run the same command with --crosswalk FILE")
    if not summary.ok:
        raise InputError(
            f"none of {counted(summary.found, 'image')} in {folder} can be used; the reasons are "
            f"listed above and in {out / 'manifest.parquet'}."
            + ("" if public is None else f" Try it with{labels_of(public)}.")
        )
    print(f"\nwrote {out / 'manifest.parquet'} and the pixels of {counted(summary.ok, 'image')}")
    for file in (*summary.contact_sheets, *([crosswalk] if crosswalk else [])):
        print(f"wrote {file}")
    if summary.labelled:
        store = unless_default("--store", out, default_store())
        print(f"next: mammo-pd train{store} --res {usual_res(StorePaths(out))} --keep 0.25")
    else:
        # Same settings: a store made with others would be refused.
        given = (
            unless_default("--out", out, default_store())
            + unless_default("--frames", frames, Frames.EXCLUDE)
            + unless_default("--voi", voi, VoiPolicy.AUTO)
            + ("" if bits_stored is None else f" --bits-stored {bits_stored}")
        )
        print("no image has a label yet; with a table of them nothing is decoded again")
        print(f"next: mammo-pd preprocess {shlex.quote(str(folder))}{given}{labels_of(public)}")


def _parse_columns(given: list[str]) -> dict[str, str]:
    """Read ``NAME=COLUMN`` pairs.

    Raises:
        InputError: no equals sign, or a name or a column given twice.
    """
    columns: dict[str, str] = {}
    for pair in given:
        name, equals, column = (part.strip() for part in pair.partition("="))
        if not (name and equals and column):
            raise InputError(f"--column {pair}: write NAME=COLUMN, such as laterality=side.")
        if name in columns or column in columns.values():
            raise InputError(f"--column {pair}: {name} or {column} was given before; give it once.")
        columns[name] = column
    return columns


def _read_labels(
    folder: Path,
    labels: Path | None,
    source: str | None,
    definition: str | None,
    label_column: str | None,
    positive: list[str] | None,
    carry: str | None,
    columns: dict[str, str],
) -> "LabelTable | None":
    if source is not None:
        from mammo_pd.data.sources import read_source

        if labels is None:
            raise InputError(
                f"--source {source} reads the data set's own table; name it with --labels."
            )
        if label_column or positive or carry:
            raise InputError(
                "--source defines the label (--definition) and the columns of the data set's own "
                "table; leave --label-column, --positive and --carry out."
            )
        return read_source(source, labels, folder, definition=definition, columns=columns)
    if labels is None:
        if label_column or positive or carry or columns:
            raise InputError(
                "--label-column, --positive, --carry and --column need a table; name it with "
                "--labels."
            )
        return None
    from mammo_pd.data.labels import read_labels
    from mammo_pd.table_file import column_names

    names = [name.strip() for name in (carry or "").split(",") if name.strip()]
    table = read_labels(
        labels,
        label_column=label_column,
        positive=positive or (),
        carry=names,
        columns=columns,
    )
    if table.left_out:
        print(
            f"columns of {labels} left out of the store: {column_names(table.left_out)}. They are "
            "not among those known to describe images, findings or machines, and an unknown one "
            "may identify a woman; take what you need with --carry A,B"
        )
    return table


def _print_summary(summary: "PreprocessSummary", out: Path, *, has_table: bool) -> None:
    from mammo_pd.ingest.walk import PassedOver

    print()
    for (status, reason), count in sorted(summary.by_status.items(), key=lambda item: -item[1]):
        line = f"{count:>8}  {status}" + (f"  {reason}" if reason else "")
        print(line + (f"   such as {summary.details[reason]}" if reason else ""))
    if summary.passed_over:
        counts = sorted(summary.passed_over.items(), key=lambda item: -item[1])
        print("passed over: " + "; ".join(f"{count} {reason}" for reason, count in counts))
    if summary.repeated_folders:
        print(
            f"{counted(summary.repeated_folders, 'link')} not followed: to folders that were read "
            "already, or back to where the link lies"
        )
    if summary.labelled or has_table:
        print(
            f"{summary.labelled} of "
            f"{counted(summary.ok, 'usable image has', 'usable images have')} a label; "
            f"{counted(summary.positive, 'of them is', 'of them are')} positive"
        )
    if summary.label_changes:
        print(
            "--replace-labels: "
            + counted(
                summary.label_changes.removed, "image lost its label", "images lost their label"
            )
            + f", {summary.label_changes.turned} changed it"
        )
    if summary.unmatched_labels:
        print(
            f"warning: {counted(summary.unmatched_labels, 'row matches', 'rows match')} no image; "
            "if that is more than you expect, compare its paths or identifiers with the folder"
        )
    if PassedOver.UNREADABLE in summary.passed_over:
        print(
            f"warning: {counted(summary.passed_over[PassedOver.UNREADABLE], 'file')} cannot be "
            "opened, and images may be missing; make them readable and run again"
        )
    if summary.closed_folders:
        print(
            f"warning: {counted(summary.closed_folders, 'folder')} could not be listed, and images "
            "may be missing; make them readable and run again"
        )
    if summary.damaged:
        print(
            "warning: "
            + counted(
                summary.damaged,
                "image is damaged and comes from another folder",
                "images are damaged and come from other folders",
            )
            + "; run the same command with each folder that this store was made from"
        )
    if summary.lacking:
        print(
            "warning: "
            + counted(
                summary.lacking,
                "image lacks a level that no other gives, and comes from another folder",
                "images lack a level that no other gives, and come from other folders",
            )
            + "; run the same command with each folder that this store was made from"
        )
    if summary.gone:
        store = "" if out == default_store() else f" {shlex.quote(str(out))}"
        print(
            "warning: "
            + counted(
                summary.gone,
                "image of the store has lost the file that it came from",
                "images of the store have lost the files that they came from",
            )
            + " (deleted, moved, or on a disk that is not mounted); to take out what "
            f"was deleted: mammo-pd forget{store} --missing"
        )
    if summary.contradicted:
        print(
            f"warning: {counted(summary.contradicted, 'image was', 'images were')} left out as a "
            "duplicate of one that the label table labels otherwise, and that one's label was "
            "taken; find out which is true"
        )
    if summary.only_label:
        print(
            f"warning: --prefer leaves out {counted(summary.only_label, 'image')} with a label, "
            "whose view's other image has none; label that one in the table"
        )
    if summary.unknown_kind:
        print(
            "warning: "
            + counted(summary.unknown_kind, "image is", "images are")
            + " taken whatever the kind: no file is there to tell how it was made"
        )
    if summary.repeated_views:
        print(
            f"{counted(summary.repeated_views, 'view has', 'views have')} several images of the "
            "kind that --prefer takes (repeated exposures, parts of a breast, FOR PROCESSING "
            "beside FOR PRESENTATION); all of these stay"
        )
    if summary.disagreeing:
        print(
            "warning: the label table and DICOM disagree on the side of "
            f"{counted(summary.disagreeing, 'image')}; the table's was taken"
        )
    for count, what in (
        (
            summary.doubtful,
            "breast and background cannot be told apart; these are kept whole (breast_verdict)",
        ),
        (sum(summary.sides.values()), _contradictions(summary.sides)),
        (
            summary.turned_upright,
            "Patient Orientation says that it was upside down, and it was turned (turned_upright)",
        ),
        (
            summary.shared_uid,
            "another image has the same SOP Instance UID and other pixels; both are kept, and a "
            "label table must name them by their paths",
        ),
        (summary.burned_in, "the tag says that text is burned in (burned_in_annotation)"),
        (
            summary.for_processing,
            "the image is FOR PROCESSING, not for display (presentation_intent)",
        ),
        (
            summary.odd_headers,
            "a number of the grey scale in the header was mended or ignored (voi_applied)",
        ),
    ):
        if count:
            print(
                f"warning: in {count} of {counted(summary.ok, 'usable image')} {what}; see the "
                "manifest"
            )
    if len(summary.raster_depths) > 1:
        shares = ", ".join(f"{n} of {depth}" for depth, n in sorted(summary.raster_depths.items()))
        print(
            f"warning: images that are not DICOM do not share one bit depth ({shares} bits), so "
            "that one grey means two things; convert them alike"
        )
    if summary.shallow:
        print(
            f"warning: {counted(sum(summary.shallow.values()), 'image')} of 16 bits with values up "
            f"to {max(summary.shallow)} bits only, which come out dark; if that is the depth of "
            f"the data set, make the store anew with --bits-stored {max(summary.shallow)}"
        )
    # One image is all that there may be of a woman, but not of every one of several.
    if summary.ok == summary.patients > _FEW_IMAGES or summary.ids_with_view > summary.ok // 2:
        reason = (
            f"every one of the {summary.patients} patients has just one image"
            if summary.ok == summary.patients
            else f"{summary.ids_with_view} of {summary.ok} patient IDs name a side and a view"
        )
        print(
            f"warning: {reason}, so that images of one woman may come to lie on both sides of a "
            "split; name the true patient in a column patient_id of the label table, or let "
            "--source read a public data set's own table"
        )
    for machine, kinds in summary.mixed_voi.items():
        shares = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        print(
            f"warning: images of {machine} do not share one kind of grey scale ({shares}; "
            "voi_applied), which a model can learn in place of the disease; see --voi"
        )


def _contradictions(sides: dict[str, int]) -> str:
    told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(sides.items()))
    return (
        "laterality, Patient Orientation and the side on which the breast lies contradict one "
        f"another (side_verdict: {told})"
    )
