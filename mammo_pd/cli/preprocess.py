"""``mammo-pd preprocess``: a folder of images to a store."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from mammo_pd.cli.early_checks import check_output_file, read_key
from mammo_pd.cli.options import (
    DEFAULT_STORE,
    ColumnOption,
    LabelsOption,
    SourceOption,
    StoreOption,
    WholeNumber,
    WorkersOption,
    default_store,
    parse_columns,
    source_without_table,
    unless_default,
)
from mammo_pd.cli.preprocess_summary import pixels_written, summary_lines
from mammo_pd.cli.public_set import in_words, labels_of, look_like
from mammo_pd.errors import InputError
from mammo_pd.terms import Compression, Frames, Prefer, VoiPolicy
from mammo_pd.wording import counted

if TYPE_CHECKING:
    from mammo_pd.data.labels import LabelTable


def preprocess(
    folder: Annotated[Path, Parameter(name="DICOM_DIR")],
    /,
    *,
    out: StoreOption = DEFAULT_STORE,
    labels: LabelsOption = None,
    source: SourceOption = None,
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
    column: ColumnOption = None,
    replace_labels: bool = False,
    voi: VoiPolicy = VoiPolicy.AUTO,
    frames: Frames = Frames.EXCLUDE,
    bits_stored: Annotated[WholeNumber | None, Parameter(metavar="N", show_default="16")] = None,
    workers: WorkersOption = None,
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

    Run it again to add images or change labels; no image is decoded twice.

    For example:

        mammo-pd preprocess DICOM_DIR --labels labels.csv
        mammo-pd preprocess DICOM_DIR --labels train.csv --source rsna

    Args:
        folder: Folder of DICOM files, or of PNG, PGM, TIFF and JPEG files that TABLE names.
        out: The store to create or extend.
        labels: CSV with a column path, sop_instance_uid or image_id, and a label.
        source: Read TABLE as the original table of a public data set (for some, a folder of
            tables): rsna, vindr-mammo, cbis-ddsm, cdd-cesm, cmmd, inbreast, dmid, kau-bcmd, bmcd,
            nlbs, embed, csaw-cc, optimam or mias.
        definition: Which of the data set's label definitions to use, with --source.
        label_column: Column of TABLE that holds the label.
        positive: Values that count as positive; all others are negative.
        carry: Further columns of TABLE to copy to the manifest, such as hormone,ward. Columns not
            known to describe images, findings or machines are otherwise left out, because they may
            identify a woman.
        column: Read COLUMN of TABLE as NAME, such as laterality=side: laterality, view, patient_id,
            exam_id, age, implant, manufacturer or model. Repeatable.
        replace_labels: Allow TABLE to remove or reverse labels that images already have.
        voi: Grey scale: VOI LUT, else window, else the full stored range (auto); or only a LUT
            (lut), only a window (window), always the full range (raw).
        frames: What to use from multi-frame files (tomosynthesis): nothing, the middle frame, the
            maximum intensity projection (mip), or each frame as its own image.
        bits_stored: Number of bits actually used in 16-bit PNG, PGM and TIFF files, from 8 to 16.
        workers: Number of processes.
        scheduler: Use the workers of this Dask scheduler, such as tcp://host:8786.
        contact_sheet: Draw every crop to this file for visual checking; images refused for their
            pixels and doubtful ones come first.
        crosswalk: Write image_id, path and original identifiers to this file, in the clear.
        key: private/key of another store, so that images get the same names as there.
        levels: Pyramid levels to store, out of native,4096,2048,1024,512, in addition to those
            already in the store; 1024 is enough for --res 1024.
        compression: How pixels are written from now on; lz4 is lossless, takes about two thirds of
            the space, and decompresses faster than disks read.
        prefer: If a view has both a digital exposure and an image computed from tomosynthesis, use
            the former (ffdm) or the latter (synthetic). The store remembers the choice and keeps
            the pixels of both.
        verify: Read all pixels in the store and rebuild what is damaged.
    """
    check_output_file("--contact-sheet", contact_sheet)
    check_output_file("--crosswalk", crosswalk)
    given_key = read_key(key)
    from mammo_pd.data.kept_levels import parse_levels
    from mammo_pd.data.store import StorePaths
    from mammo_pd.data.usual_res import usual_res
    from mammo_pd.imaging.settings import STEPS, ImagingSettings
    from mammo_pd.ingest import preprocess as ingest

    if workers is not None and scheduler is not None:
        raise InputError("--workers and --scheduler exclude each other; give only one.")
    if bits_stored is not None and not 8 <= bits_stored <= 16:
        raise InputError(f"--bits-stored {bits_stored} is not between 8 and 16.")
    if replace_labels and labels is None:
        raise InputError("--replace-labels needs a table; name it with --labels.")
    columns = parse_columns(column or [])
    table = _read_labels(folder, labels, source, definition, label_column, positive, carry, columns)
    public = look_like(folder) if labels is None else None
    if public is not None:
        print(in_words(public))
    summary = ingest.preprocess(
        folder,
        out,
        labels=table,
        replace_labels=replace_labels,
        settings=ImagingSettings(voi, frames, bits_stored, tuple(STEPS)),
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
    print()
    for line in summary_lines(summary, out, has_table=table is not None):
        print(line)
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
    print(f"\nwrote {out / 'manifest.parquet'}{pixels_written(summary)}")
    for file in (*summary.contact_sheets, *([crosswalk] if crosswalk else [])):
        print(f"wrote {file}")
    if summary.labelled:
        store = unless_default("--store", out, default_store())
        print(f"next: mammo-pd train{store} --res {usual_res(StorePaths(out))} --keep 0.25")
    else:
        # Suggest the same settings: the store would refuse others.
        given = (
            unless_default("--out", out, default_store())
            + unless_default("--frames", frames, Frames.EXCLUDE)
            + unless_default("--voi", voi, VoiPolicy.AUTO)
            + ("" if bits_stored is None else f" --bits-stored {bits_stored}")
        )
        print("no image has a label yet; adding a label table decodes nothing again")
        print(f"next: mammo-pd preprocess {shlex.quote(str(folder))}{given}{labels_of(public)}")


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
            raise source_without_table(source)
        if label_column or positive or carry:
            raise InputError(
                "--source defines the label (--definition) and the columns of the data set's own "
                "table; drop --label-column, --positive and --carry."
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
            "not known to describe images, findings or machines, and an unknown column may "
            "identify a woman; add what you need with --carry A,B"
        )
    return table
