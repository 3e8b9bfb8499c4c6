"""The manifest, one row per image found: its columns, reader and writer."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mammo_pd.data.store import LEADS_AWAY
from mammo_pd.errors import InputError, cause_of
from mammo_pd.files import atomic_write
from mammo_pd.machines import is_machine_name, machine_name
from mammo_pd.terms import Status

MANIFEST_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("patient_id", pa.string()),
        ("exam_id", pa.string()),
        ("laterality", pa.string()),
        ("view", pa.string()),
        ("view_modifiers", pa.string()),
        ("image_kind", pa.string()),
        ("label", pa.int8()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("decoder", pa.string()),
        ("transfer_syntax", pa.string()),
        ("photometric_interpretation", pa.string()),
        ("photometric_interpretation_source", pa.string()),
        ("lossy_image_compression", pa.bool_()),
        ("voi_applied", pa.string()),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("number_of_frames", pa.int32()),
        ("frame", pa.string()),
        ("crop_top", pa.int32()),
        ("crop_left", pa.int32()),
        ("crop_height", pa.int32()),
        ("crop_width", pa.int32()),
        ("flipped", pa.bool_()),
        ("image_side", pa.string()),
        ("laterality_agrees", pa.bool_()),
        ("patient_orientation", pa.string()),
        ("side_verdict", pa.string()),
        ("turned_upright", pa.bool_()),
        ("breast_verdict", pa.string()),
        ("breast_area_fraction", pa.float32()),
        ("breast_solidity", pa.float32()),
        ("imager_pixel_spacing_row", pa.float64()),
        ("imager_pixel_spacing_column", pa.float64()),
        ("manufacturer", pa.string()),
        ("model", pa.string()),
        ("age", pa.float32()),
        ("presentation_intent", pa.string()),
        ("burned_in_annotation", pa.bool_()),
        ("implant", pa.bool_()),
        ("phantom", pa.bool_()),
        ("patient_id_source", pa.string()),
        ("pixel_hash", pa.string()),
        ("fingerprint", pa.string()),
    ]
)

_ROWS_PER_GROUP = 20_000

# Columns that stores of earlier versions lack, and that read as unknown there.
_ADDED_LATER = ("image_kind",)

# Old name to new, for stores written before the column was renamed.
_RENAMED_COLUMNS = {"processing": "presentation_intent"}


def write_manifest(path: Path, rows: Iterable[dict[str, Any]], further: pa.Schema) -> int:
    """Write the manifest a group of rows at a time, so that a million rows are never in memory.

    Args:
        path: the Parquet file, replaced once the new one is complete.
        rows: one dictionary per image; missing columns become null.
        further: columns carried over from the label table, after the manifest's own.

    Returns:
        How many rows were written.
    """
    schema = pa.unify_schemas([MANIFEST_SCHEMA, further])
    count = 0
    group: list[dict[str, Any]] = []
    with atomic_write(path) as beside, pq.ParquetWriter(beside, schema) as writer:
        for row in rows:
            group.append(row)
            if len(group) == _ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                count, group = count + len(group), []
        writer.write_table(pa.Table.from_pylist(group, schema))
    return count + len(group)


def drop_from_manifest(path: Path, image_ids: Iterable[str]) -> None:
    """Write the manifest without some images; it keeps its other rows and columns as they are."""
    table = pq.read_table(path)
    dropped = pc.is_in(table["image_id"], pa.array(sorted(image_ids), pa.string()))
    with atomic_write(path) as beside:
        pq.write_table(table.filter(pc.invert(dropped)), beside, row_group_size=_ROWS_PER_GROUP)


def read_manifest(path: Path, *, status: Status | None = Status.OK) -> pd.DataFrame:
    """Read the manifest, by default its usable images, sorted by ``image_id``.

    Args:
        path: the Parquet file.
        status: rows of this status only; None for all.

    Returns:
        One row per image, with pandas' nullable types, so that a missing label stays missing.

    Raises:
        InputError: the file does not exist, is not Parquet, or lacks a column.
    """
    if not path.is_file():
        store = shlex.quote(str(path.parent))
        raise InputError(
            f"there is no manifest at {path}: preprocess did not finish, or the file was deleted; "
            f"run it again, with the options it had: mammo-pd preprocess DICOM_DIR --out {store}"
        )
    try:
        table = pq.read_table(
            path, filters=None if status is None else [("status", "=", str(status))]
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise InputError(
            f"{path} is not a manifest ({cause_of(error)}); recreate it with: mammo-pd preprocess "
            "DICOM_DIR"
        ) from error
    table = _with_current_names(table)
    for name in _ADDED_LATER:
        if name not in table.column_names:
            column = pa.nulls(len(table), MANIFEST_SCHEMA.field(name).type)
            table = table.add_column(MANIFEST_SCHEMA.get_field_index(name), name, column)
    missing = [name for name in MANIFEST_SCHEMA.names if name not in table.column_names]
    if missing:
        raise InputError(
            f"{path} lacks the columns {', '.join(missing)}; it was written by another version: "
            "recreate it with: mammo-pd preprocess DICOM_DIR"
        )
    _refuse_paths(path, table["image_id"])
    # pandas would turn integers with gaps into floats, and booleans into objects.
    types = {
        pa.string(): pd.StringDtype(),
        pa.int8(): pd.Int8Dtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(),
        pa.bool_(): pd.BooleanDtype(),
    }
    frame: pd.DataFrame = table.to_pandas(types_mapper=types.get)
    for name in ("manufacturer", "model"):
        frame[name] = _machine_names(name, frame[name])
    return frame.sort_values("image_id", ignore_index=True)


def _refuse_paths(path: Path, image_ids: pa.ChunkedArray) -> None:
    """Refuse names of images that are paths: files from anywhere would be read as pixels."""
    if pc.any(pc.match_substring_regex(image_ids, LEADS_AWAY)).as_py():
        raise InputError(
            f"{path} names an image by a path that leads away from its pixels; mammo-pd makes no "
            "such names, so do not trust the store: get it anew from its owner."
        )


def _machine_names(column: str, texts: pd.Series) -> pd.Series:
    """Replace the free text of a header that stores of earlier versions hold.

    Without the store's key what is not known is numbered, which tells machines apart, too.
    """
    given = sorted(text for text in texts.dropna().unique() if not is_machine_name(column, text))
    names = {
        text: machine_name(column, text, lambda *_, number=number: f"{number:x}")
        for number, text in enumerate(given, start=1)
    }
    return texts.replace(names) if names else texts


def _with_current_names(table: pa.Table) -> pa.Table:
    """Rename the columns of an older store's manifest; a label table may use the old names now."""
    renamed = {
        old: new
        for old, new in _RENAMED_COLUMNS.items()
        if old in table.column_names and new not in table.column_names
    }
    return table.rename_columns([renamed.get(name, name) for name in table.column_names])
