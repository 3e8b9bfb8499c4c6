"""``mammo-pd inspect``: what a folder of mammograms holds, from headers alone."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from mammo_pd.cli.early_checks import check_output_file
from mammo_pd.cli.options import (
    ColumnOption,
    LabelsOption,
    SourceOption,
    WorkersOption,
    parse_columns,
    source_without_table,
    unless_default,
)
from mammo_pd.errors import InputError
from mammo_pd.wording import counted

if TYPE_CHECKING:
    from mammo_pd.data.labels import LabelTable
    from mammo_pd.ingest.estimate import Estimate
    from mammo_pd.ingest.survey import Survey
    from mammo_pd.report.inspection import CountTable

# Maximum rows of a table on the terminal; the CSV and the page have all rows.
_MOST_ROWS = 12
# With fewer files than this, the speed means nothing.
_FEW = 1000
# Characters of a line of text, and of a cell.
_WIDTH, _WIDEST_CELL = 100, 60


def inspect(
    folder: Annotated[Path, Parameter(name="DICOM_DIR")],
    /,
    *,
    labels: LabelsOption = None,
    source: SourceOption = None,
    column: ColumnOption = None,
    csv: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    html: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    workers: WorkersOption = None,
) -> None:
    """Show what a folder of mammograms holds before you spend hours on it.

    Reads only headers: machines, transfer syntaxes, views, exams, copies, and what
    preprocess would leave out. Then processes a few files to estimate time and disk
    space.

    For example:

        mammo-pd inspect DICOM_DIR
        mammo-pd inspect DICOM_DIR --labels labels.csv
        mammo-pd inspect DICOM_DIR --csv folder.csv --html folder.html

    Args:
        folder: Folder of DICOM files, or of PNG, PGM, TIFF and JPEG files that TABLE names.
        labels: The label table that you will give to preprocess: it says which files that are not
            DICOM are mammograms, and may say of any image the patient, exam, side and view.
        source: Read TABLE as the original table of a public data set, as preprocess does.
        column: Read COLUMN of TABLE as NAME, such as laterality=side, as preprocess does.
            Repeatable.
        csv: Write the tables to a CSV file.
        html: Write the tables as a web page.
        workers: Number of processes.
    """
    check_output_file("--csv", csv)
    check_output_file("--html", html)
    from mammo_pd.cores import available_cores
    from mammo_pd.files import write_text
    from mammo_pd.ingest.estimate import estimate
    from mammo_pd.ingest.survey import survey

    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers} is below 1.")
    label_table = _read_table(folder, labels, source, column or [])
    found = survey(folder, labels=label_table, workers=workers)
    expected = estimate(
        found.samples,
        found.pixels,
        found.usable,
        workers or available_cores(),
        repeated=found.repeated_pixels,
    )
    tables = _tables(found, expected)
    for table in tables:
        _print(table)
    print()
    if csv is not None:
        _write_csv(csv, tables)
        print(f"wrote {csv}")
    if html is not None:
        write_text(html, _page(found, expected, tables))
        print(f"wrote {html}")
    given = (
        unless_default("--labels", labels, None)
        + unless_default("--source", source, None)
        + "".join(f" --column {shlex.quote(pair)}" for pair in column or [])
    )
    print(_next(folder, found, given))


def _read_table(
    folder: Path, labels: Path | None, source: str | None, columns: list[str]
) -> "LabelTable | None":
    """The label table, of which only labels do not matter here.

    Raises:
        InputError: it cannot be used, or options about it without it.
    """
    if labels is None:
        if source is not None:
            raise source_without_table(source)
        if columns:
            raise InputError("--column needs a table; name it with --labels.")
        return None
    if source is not None:
        from mammo_pd.data.sources import read_source

        return read_source(source, labels, folder, columns=parse_columns(columns))
    from mammo_pd.data.labels import read_rows

    return read_rows(labels, columns=parse_columns(columns))


def _tables(found: "Survey", expected: "Estimate | None") -> list["CountTable"]:
    return [
        _files(found),
        _excluded(found),
        _machines(found),
        _kinds(found),
        _syntaxes(found),
        _sizes(found),
        _views(found),
        _exams(found),
        _doubles(found),
        _estimate(expected, found.start_seconds),
    ]


def _files(found: "Survey") -> "CountTable":
    from mammo_pd.report.inspection import CountTable

    rows: list[tuple[str | int, ...]] = [
        ("image files", found.files),
        ("of these, preprocess would decode", found.usable),
        *((f"skipped: {reason}", count) for reason, count in found.passed_over.items()),
    ]
    if found.closed_folders:
        rows.append(("folders that could not be listed", found.closed_folders))
    if found.unmatched_rows is not None:
        rows.append(("rows of the label table that name none of them", found.unmatched_rows))
    if found.ambiguous_rows:
        rows.append(
            (
                "rows that name several, which preprocess refuses: give longer paths",
                found.ambiguous_rows,
            )
        )
    note = (
        f"{found.files:,} {'header' if found.files == 1 else 'headers'} read in "
        f"{found.seconds:.1f} s by {_processes(found.workers)}"
        # A process takes as long for its first files as for hundreds of later ones.
        + (f": {found.files / found.seconds:,.0f} files/s." if found.files > _FEW else ".")
    )
    return CountTable("Files", ("what", "files"), rows, note)


def _excluded(found: "Survey") -> "CountTable":
    from mammo_pd.report.inspection import CountTable

    ordered = sorted(found.excluded.items(), key=lambda entry: -entry[1][0])
    rows = [
        (str(reason), str(status), count, detail) for (status, reason), (count, detail) in ordered
    ]
    return CountTable(
        "What preprocess would leave out",
        ("reason", "status", "files", "such as"),
        rows,
        "Uses the same checks as preprocess. Copies are listed below; problems that only the "
        "pixels reveal are found when they are decoded.",
    )


def _machines(found: "Survey") -> "CountTable":
    from mammo_pd.report.inspection import CountTable

    ordered = sorted(found.machines.items(), key=lambda entry: (-entry[1], str(entry[0])))
    rows = [
        (maker or "not stated", model or "not stated", count) for (maker, model), count in ordered
    ]
    return CountTable(
        "Machines",
        ("manufacturer", "model", "files"),
        rows,
        "Names that are not in mammo-pd's own list are shown as 'other': free text may identify a "
        "woman.",
    )


def _kinds(found: "Survey") -> "CountTable":
    from mammo_pd.report.inspection import CountTable
    from mammo_pd.terms import ImageKind

    words: dict[ImageKind | None, str] = {
        ImageKind.FFDM: "full-field digital (ffdm)",
        ImageKind.SYNTHETIC: "computed from tomosynthesis (synthetic)",
        ImageKind.TOMOSYNTHESIS: "tomosynthesis slices or projections",
        ImageKind.OTHER: "scanned film, computed radiography, secondary captures",
        None: "not told: the file is not DICOM",
    }
    rows: list[tuple[str | int, ...]] = [
        (word, found.kinds[kind]) for kind, word in words.items() if found.kinds.get(kind)
    ]
    rows += [
        (intent.lower() if intent else "presentation intent not stated", count)
        for intent, count in sorted(found.intents.items(), key=lambda entry: -entry[1])
    ]
    if found.paired_views:
        rows.append(
            ("views of an exam with both an ffdm and a synthetic image", found.paired_views)
        )
    note = (
        "Decided by SOP class, Image Type, number of frames and source images, never by free text."
    )
    if found.hinted:
        note += (
            f" {found.hinted:,} of those counted as ffdm have free text that names a synthetic "
            "product (C-View, Insight 2D, ...): look at some of them."
        )
    return CountTable("How the images were made", ("what", "files"), rows, note)


def _syntaxes(found: "Survey") -> "CountTable":
    from mammo_pd.ingest.survey import syntax_name
    from mammo_pd.report.inspection import CountTable

    ordered = sorted(found.syntaxes.items(), key=lambda entry: -entry[1])
    rows = [(syntax_name(syntax), count) for syntax, count in ordered]
    return CountTable("Transfer syntaxes and formats", ("transfer syntax", "files"), rows)


def _sizes(found: "Survey") -> "CountTable":
    from mammo_pd.report.inspection import CountTable

    ordered = sorted(found.shapes.items(), key=lambda entry: (-entry[1], entry[0]))
    rows = [(f"{rows} x {columns}", count) for (rows, columns), count in ordered]
    return CountTable("Sizes of usable images", ("rows x columns", "files"), rows)


def _views(found: "Survey") -> "CountTable":
    from mammo_pd.ingest.survey import STANDARD_VIEWS
    from mammo_pd.report.inspection import CountTable

    standard = [(str(side), view) for side, view in STANDARD_VIEWS]
    rows: list[tuple[str | int, ...]] = [
        (f"{side} {view}", found.views.get((side, view), 0)) for side, view in standard
    ]
    others = {view: count for view, count in found.views.items() if view not in standard}
    rows += [
        (f"{side or 'side not stated'} {view or 'view not stated'}", count)
        for (side, view), count in sorted(others.items(), key=lambda entry: -entry[1])
    ]
    if found.special_views:
        rows.append(("with a view modifier (magnification, spot, ...)", found.special_views))
    return CountTable("Views of usable images", ("view", "files"), rows)


def _exams(found: "Survey") -> "CountTable":
    from mammo_pd.report.inspection import CountTable

    rows: list[tuple[str | int, ...]] = [
        ("patients", found.patients),
        ("exams", found.exams),
        ("exams with all four standard views", found.complete_exams),
        ("views of an exam with several images of one kind", found.repeated_views),
    ]
    ordered = sorted(found.missing_views.items(), key=lambda entry: (-entry[1], entry[0]))
    rows += [
        ("exams without " + ", ".join(f"{side} {view}" for side, view in missing), count)
        for missing, count in ordered
    ]
    return CountTable(
        "Patients and exams",
        ("what", "count"),
        rows,
        "Usable images only. An exam of one breast counts as incomplete.",
    )


def _doubles(found: "Survey") -> "CountTable":
    from mammo_pd.report.inspection import CountTable

    return CountTable(
        "Copies",
        ("what", "files"),
        [
            ("with the SOP Instance UID of an earlier file", found.repeated_uids),
            (
                "usable DICOM, with the pixel data of an earlier usable file",
                found.repeated_pixels,
            ),
        ],
        "Compared by the length of the pixel data and 31 samples of it. Of images with identical "
        "pixels preprocess keeps the first and leaves the others out as duplicate_image. Two "
        "images that share a UID but differ in pixels are both kept.",
    )


def _estimate(expected: "Estimate | None", start_seconds: float) -> "CountTable":
    from mammo_pd.ingest.survey import syntax_name
    from mammo_pd.report.inspection import CountTable

    title = "What preprocess would take"
    if expected is None:
        return CountTable(
            title, ("what", "about"), [], "No file could be processed, so there is no estimate."
        )
    rows: list[tuple[str | int, ...]] = [
        (
            f"time, with {_processes(expected.workers)}",
            f"{_duration(expected.seconds + start_seconds)} (including {_duration(start_seconds)} "
            "to start)",
        ),
        ("size of the store, all levels", _size(expected.stored_bytes)),
    ]
    rows += [
        (f"measured: {syntax_name(syntax)}", f"{1000 * seconds:.0f} ms per megapixel")
        for syntax, seconds in expected.seconds_per_megapixel.items()
    ]
    rows.append(
        ("measured: stored bytes per pixel of a file", f"{expected.bytes_per_pixel:.2f} bytes")
    )
    return CountTable(
        title,
        ("what", "about"),
        rows,
        f"Measured just now: {expected.timed} of {counted(expected.of_files, 'usable file')} were "
        "read, decoded, cropped and written as preprocess does, and the result was scaled by the "
        "number of pixels. It does not allow for files that come from a slower disk or network.",
    )


def _print(table: "CountTable") -> None:
    import textwrap

    print(f"\n{table.title}")
    if not table.rows:
        print("  none")
    rows = [
        [f"{cell:,}" if isinstance(cell, int) else _shortened(cell) for cell in row]
        for row in table.rows[:_MOST_ROWS]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, given in zip(rows, table.rows, strict=False):
        padded = [
            cell.rjust(width) if isinstance(value, int) else cell.ljust(width)
            for cell, width, value in zip(row, widths, given, strict=True)
        ]
        print("  " + "  ".join(padded).rstrip())
    if len(table.rows) > _MOST_ROWS:
        print(f"  and {len(table.rows) - _MOST_ROWS} more (--csv and --html hold all)")
    if table.note:
        print(textwrap.indent(textwrap.fill(table.note, _WIDTH), "  "))


def _shortened(text: str) -> str:
    return text if len(text) <= _WIDEST_CELL else text[: _WIDEST_CELL - 1] + "…"


def _write_csv(file: Path, tables: list["CountTable"]) -> None:
    from mammo_pd.files import atomic_write
    from mammo_pd.table_file import write_rows

    rows = []
    for table in tables:
        for row in table.rows:
            # The cells before the count are its name; those after it explain it.
            count = next((at for at, cell in enumerate(row) if isinstance(cell, int)), len(row) - 1)
            name = " / ".join(map(str, row[:count]))
            rows.append((table.title, name, row[count], " ".join(map(str, row[count + 1 :]))))
    with atomic_write(file) as beside, beside.open("w", newline="", encoding="utf-8") as opened:
        write_rows(opened, [("table", "name", "value", "detail")])
        write_rows(opened, rows)


def _page(found: "Survey", expected: "Estimate | None", tables: list["CountTable"]) -> str:
    from datetime import date

    from mammo_pd import __version__
    from mammo_pd.report.inspection import inspection_page

    left_out = sum(count for count, _ in found.excluded.values())
    tiles = [
        ("files", f"{found.files:,}", f"{found.usable:,} usable, {left_out:,} left out"),
        (
            "patients",
            f"{found.patients:,}",
            f"{found.exams:,} {'exam' if found.exams == 1 else 'exams'}",
        ),
        ("complete exams", f"{found.complete_exams:,}", "with all four standard views"),
    ]
    if expected is not None:
        tiles += [
            (
                "time",
                _duration(expected.seconds + found.start_seconds),
                f"with {_processes(expected.workers)}",
            ),
            ("store", _size(expected.stored_bytes), "all levels"),
        ]
    return inspection_page(tables, tiles, f"mammo-pd {__version__} · {date.today().isoformat()}")


def _next(folder: Path, found: "Survey", given: str) -> str:
    from mammo_pd.cli.public_set import in_words, labels_of, look_like
    from mammo_pd.terms import Reason

    # Images that are not DICOM become usable once a table names them.
    if not found.usable and not any(reason == Reason.NOT_IN_TABLE for _, reason in found.excluded):
        return "preprocess could use nothing in this folder; the reasons are listed above"
    if given:
        public, options = None, given
    else:
        public = look_like(folder)
        options = labels_of(public)
    told = "" if public is None else in_words(public) + "\n"
    if not given and any(reason == Reason.NOT_IN_TABLE for _, reason in found.excluded):
        told += (
            "images that are not DICOM count if a label table names them; give it to inspect, "
            f"too: mammo-pd inspect {shlex.quote(str(folder))}{options}\n"
        )
    prefer = " --prefer ffdm" if found.paired_views else ""
    return f"{told}next: mammo-pd preprocess {shlex.quote(str(folder))}{options}{prefer}"


def _processes(count: int) -> str:
    return counted(count, "process", "processes")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
