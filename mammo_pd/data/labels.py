"""The label table: a CSV with one row per image, its label, and whatever else is known.

The whole table is checked before any image is read. Rows are matched to images by ``path``,
``sop_instance_uid`` or the data set's own ``image_id``.
"""

import os.path
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mammo_pd.data.manifest import MANIFEST_SCHEMA
from mammo_pd.errors import InputError
from mammo_pd.machines import machine_column
from mammo_pd.quoting import values_in_words
from mammo_pd.table_file import column_names, plain_name, read_csv, with_known_names
from mammo_pd.wording import counted

_PATH_COLUMNS = ("path", "file", "filename", "image_path")
_KEYS = (*_PATH_COLUMNS, "sop_instance_uid", "image_id")
_LABELS = ("label", "cancer")
_PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2")
_OVERRIDES = ("laterality", "view", "age", "implant", "manufacturer", "model")
# What a column of another name may be read as.
_READ_AS = (*_OVERRIDES, "patient_id", "exam_id")
# Every column that means something here, whatever its case.
_NAMES = (
    *_KEYS,
    *_OVERRIDES,
    "patient_id",
    "exam_id",
    "study_id",
    "view_position",
    "photometric_interpretation",
)
# Columns of anyone's table that are taken over: what describes an image, a finding or a machine, in
# the words of the public data sets. Whatever else a hospital's table holds may identify a woman, in
# any language, and stays out unless it is asked for by name.
_KNOWN_COLUMNS = (
    *("cancer", "pathology", "malignant", "invasive", "biopsy", "cancer_type", "cancer_size_mm"),
    *("birads", "bi_rads", "assessment", "density", "breast_density", "tissue", "subtlety"),
    *("abnormality", "severity", "difficult_negative_case", "lesion", "lesion_type", "finding"),
    *("lesion_row", "lesion_column", "lesion_radius", "x", "y_from_bottom", "radius"),
    *("site_id", "machine_id", "vendor", "scanner", "published_split", "split", "fold"),
)
# The last component of a UID is taken for an image_id only if it is longer than a counter.
_FEWEST_DIGITS = 5
# Not what may be a thousands separator: 1,250 is two numbers.
_DECIMAL_COMMA = re.compile(r"[+-]?(?!0*[1-9]\d{0,2}(?:,\d{3})+$)\d*,\d+")
_BOOLEAN = {"0": False, "1": True, "no": False, "yes": True, "false": False, "true": True}
_LATERALITY = {"l": "L", "left": "L", "r": "R", "right": "R"}


@dataclass(frozen=True)
class LabelTable:
    """The rows of a label table, indexed by three keys.

    Attributes:
        source: the file or folder it was read from.
        definition: what makes an image positive, in a sentence for reports.
        column_types: "number" or "text" for each column that the manifest takes over.
        rows: one dictionary per image: ``label`` (0, 1 or None), ``patient_id``, ``exam_id``,
            ``laterality``, ``view``, ``age``, ``photometric_interpretation`` (or None each) and
            ``further``.
        left_out: columns that the manifest does not take over, since they may identify a woman.
        uid_ends_in_image_id: the set's SOP Instance UIDs end in its image numbers. Of any other
            file a UID that ends like one is a coincidence.
    """

    source: Path
    definition: str
    column_types: dict[str, str]
    rows: tuple[dict[str, Any], ...] = field(repr=False)
    left_out: tuple[str, ...]
    uid_ends_in_image_id: bool
    _by_path: dict[str, int] = field(repr=False)
    _by_name: dict[str, int] = field(repr=False)
    _by_uid: dict[str, int] = field(repr=False)
    _by_image_id: dict[str, int] = field(repr=False)

    @property
    def needs_headers(self) -> bool:
        """Whether a row may name its image by a UID, which only the file's header tells."""
        return bool(self._by_uid) or self.uid_ends_in_image_id

    @property
    def rows_by_uid(self) -> Mapping[str, int]:
        """The index in `rows` of each SOP Instance UID that a row names."""
        return self._by_uid

    def find(self, path: Path, sop_instance_uid: str | None = None) -> int | None:
        """The index in `rows` of an image, or None.

        A path in the table is relative to the table or to the folder of images. The data set's
        ``image_id`` is the file's stem, the last part of one (``train_images_10011_1031443799``),
        or, where `uid_ends_in_image_id`, the last component of the SOP Instance UID.
        """
        # Every way in which a row may name this image; two different rows are a contradiction.
        stem = _composed(path.stem)
        found = {
            self._by_path.get(_composed(os.path.normpath(path.absolute()))),
            self._by_path.get(_composed(str(path.resolve()))),
            self._by_image_id.get(stem),
            self._by_image_id.get(_long_number(stem.rpartition("_")[2])),
        }
        if self._by_name:
            # A relative path matches from any folder on: a/b/c.dcm, b/c.dcm and c.dcm.
            parts = _composed(str(path)).split("/")
            found |= {self._by_name.get("/".join(parts[start:])) for start in range(len(parts))}
        if sop_instance_uid:
            found.add(self._by_uid.get(sop_instance_uid))
        if sop_instance_uid and self.uid_ends_in_image_id:
            found.add(self._by_image_id.get(_long_number(sop_instance_uid.rpartition(".")[2])))
        found.discard(None)
        if len(found) > 1:
            lines = ", ".join(str(row + 2) for row in sorted(found, key=str) if row is not None)
            raise InputError(
                f"more than one row of {self.source} names the same image (lines {lines}); keep "
                "one row per image."
            )
        return found.pop() if found else None

    def photometric_interpretation(self, row: int) -> str | None:
        """Which of white and black is 0 in the file of a row; None where the table does not say.

        Raises:
            InputError: neither MONOCHROME1 nor MONOCHROME2.
        """
        given = self.rows[row]["photometric_interpretation"]
        if given is None or given.upper() in _PHOTOMETRIC:
            return None if given is None else str(given).upper()
        raise InputError(
            f"{self.source}, line {row + 2}: the photometric_interpretation of a file that "
            "is not DICOM is neither MONOCHROME1 (0 is white) nor MONOCHROME2 (0 is black); "
            "correct it, or leave it empty for MONOCHROME2."
        )


def read_labels(
    path: Path | str,
    *,
    label_column: str | None = None,
    positive: Iterable[str] = (),
    carry: Iterable[str] = (),
    columns: Mapping[str, str] | None = None,
) -> LabelTable:
    """Read and check a label table.

    Args:
        path: CSV with a header.
        label_column: the column with the label; by default ``label``, else ``cancer``.
        positive: the values that count as positive; by default 1 (and true, yes). If given, every
            other value is negative. An empty cell is always a missing label.
        carry: further columns for the manifest, beside those that are known to describe images,
            findings or machines (case and punctuation aside).
        columns: by the name here, the table's own name of a column; see `read_as`.

    Returns:
        The table.

    Raises:
        InputError: no such file, no such column to carry, no column to match images by, an image
            named twice, or a label that is neither 0 nor 1.
    """
    path = Path(path)
    names = (*_NAMES, *([label_column] if label_column else _LABELS))
    frame = with_known_names(read_as(read_csv(path), columns or {}, path), names, path)
    carry = tuple(carry)
    absent = [name for name in carry if name not in frame.columns]
    if absent:
        raise InputError(
            f"{path} has no column {', '.join(absent)} to carry; it has: "
            f"{column_names(frame.columns)}."
        )
    label = _read_label(frame, path, label_column, tuple(positive))
    name = _label_column(frame, path, label_column)
    meaning = ", ".join(positive) if positive else "1"
    return label_table(
        frame,
        label,
        source=path,
        definition=f"positive where the label table's column {name} is {meaning}",
        # The label's own column says no more than the label does.
        carry=[*carry, *([label_column] if label_column else []), *_known(frame.columns)],
    )


def read_rows(path: Path, *, columns: Mapping[str, str] | None = None) -> LabelTable:
    """Read which images a table names and what it says of them, whatever its label is.

    Args:
        path: CSV with a header.
        columns: as for `read_labels`.

    Returns:
        The table, without labels and further columns.

    Raises:
        InputError: no such file, no column to match images by, or an image named twice.
    """
    frame = with_known_names(read_as(read_csv(path), columns or {}, path), _NAMES, path)
    return label_table(frame, [None] * len(frame), source=path, definition="", carry=())


def label_table(
    frame: pd.DataFrame,
    label: Sequence[int | None],
    *,
    source: Path | str,
    definition: str,
    uid_ends_in_image_id: bool = False,
    carry: Collection[str] | None = None,
) -> LabelTable:
    """Check rows in memory, and index them by the columns that name images.

    Args:
        frame: one row per image, every cell text, empty if unknown.
        label: for each row 1, 0, or None if unknown.
        source: where the rows came from; relative paths are resolved beside it.
        definition: what makes an image positive, in a sentence.
        uid_ends_in_image_id: as in `LabelTable`.
        carry: the columns that the manifest takes over; None for all, where the reader of a data
            set has chosen them.

    Returns:
        The table.

    Raises:
        InputError: no column to match images by, or an image named twice.
    """
    source = Path(source)
    keys = [name for name in _KEYS if name in frame.columns]
    if not keys:
        raise InputError(
            f"{source} has no column that identifies an image; add path, sop_instance_uid or "
            f"image_id. It has: {column_names(frame.columns)}."
        )
    for name in keys:
        _refuse_repeats(frame, name, source)
    reserved = {*MANIFEST_SCHEMA.names, *keys, "patient_id", "exam_id"}
    carried: dict[str, list[Any]] = {
        name: [value or None for value in frame[name]]
        for name in frame.columns
        if name not in reserved and (carry is None or name in carry)
    }
    meant = {*reserved, *carried, *_NAMES, *_LABELS}
    column_types = dict.fromkeys(carried, "text")
    for column, values in carried.items():
        # A column is numeric if it has a number and every cell that is not empty is one; codes of
        # sites and machines are none.
        if machine_column(column) is not None:
            continue
        numbers = [None if value is None else _number(value) for value in values]
        if any(number is not None for number in numbers) and numbers.count(None) == values.count(
            None
        ):
            carried[column] = numbers
            column_types[column] = "number"
    rows = []
    for index, record in enumerate(frame.to_dict("records")):
        row: dict[str, Any] = {
            "label": label[index],
            "patient_id": record.get("patient_id") or None,
            "exam_id": record.get("exam_id") or record.get("study_id") or None,
            "photometric_interpretation": record.get("photometric_interpretation") or None,
            "further": {name: values[index] for name, values in carried.items()},
        }
        for key in _OVERRIDES:
            row[key] = record.get(key) or None
        row["view"] = row["view"] or record.get("view_position") or None
        if row["laterality"] is not None:
            row["laterality"] = _LATERALITY.get(row["laterality"].strip().lower())
        if row["age"] is not None:
            row["age"] = _number(row["age"])
        if row["implant"] is not None:
            row["implant"] = _BOOLEAN.get(row["implant"].strip().lower())
        rows.append(row)
    beside = source.parent.resolve()
    return LabelTable(
        source=source,
        definition=definition,
        column_types=column_types,
        rows=tuple(rows),
        left_out=tuple(name for name in frame.columns if name not in meant),
        uid_ends_in_image_id=uid_ends_in_image_id,
        _by_path=_index(
            frame,
            _PATH_COLUMNS,
            lambda value: os.path.normpath(_composed(str(beside / _with_slashes(value)))),
            source,
        ),
        _by_name=_index(
            frame,
            _PATH_COLUMNS,
            lambda value: os.path.normpath(_composed(_with_slashes(value))),
            source,
        ),
        _by_uid=_index(frame, ("sop_instance_uid",), str, source),
        _by_image_id=_index(frame, ("image_id",), _composed, source),
    )


def read_as(frame: pd.DataFrame, columns: Mapping[str, str], path: Path) -> pd.DataFrame:
    """Rename columns that a table has under names of its own.

    Args:
        frame: one row per image, every cell text, empty if unknown.
        columns: by the name here, such as ``laterality``, that of the table's own.
        path: of the table, for the error.

    Raises:
        InputError: a name that means nothing here, a column that the table does not have, one that
            it has under that name already, or sides that are neither left nor right.
    """
    for name, column in columns.items():
        given = f"--column {name}={column}"
        if name not in _READ_AS:
            raise InputError(
                f"{given}: {name} is not a column that can be read; choose one of "
                f"{', '.join(_READ_AS)}."
            )
        if column not in frame.columns:
            raise InputError(
                f"{given}: {path} has no column {column}; it has: {column_names(frame.columns)}."
            )
        if name in frame.columns and name != column:
            if (frame[name] != "").any():
                raise InputError(f"{given}: {path} already has the {name}; drop this option.")
            frame = frame.drop(columns=name)
        if name == "laterality":
            _refuse_other_sides(frame[column], given, path)
    return frame.rename(columns={column: name for name, column in columns.items()})


def _refuse_other_sides(cells: pd.Series, given: str, path: Path) -> None:
    other = ~cells.str.strip().str.lower().isin(["", *_LATERALITY])
    if not other.any():
        return
    # Not what they hold: a column that was named by mistake is one of names as likely as any.
    raise InputError(
        f"{given}: of {counted(len(cells), 'row')} of {path} {int(other.sum())} "
        f"{'is' if other.sum() == 1 else 'are'} neither L, R, left nor right (the first in line "
        f"{int(other.to_numpy().argmax()) + 2}); correct what is no side, or name the column "
        "that holds the side."
    )


def _refuse_repeats(frame: pd.DataFrame, key: str, path: Path) -> None:
    named = frame[frame[key] != ""]
    repeated = named[named[key].duplicated(keep=False)]
    if repeated.empty:
        return
    value = repeated[key].iloc[0]
    same = repeated[repeated[key] == value]
    lines = ", ".join(str(index + 2) for index in same.index[:4])
    kind = "repeat" if len(same.drop_duplicates()) == 1 else "contradict"
    raise InputError(
        f"{path}: {len(repeated)} rows share their {key} with another row; lines {lines} {kind} "
        "each other. Keep one row per image."
    )


def _label_column(frame: pd.DataFrame, path: Path, wanted: str | None) -> str:
    for name in (wanted,) if wanted else _LABELS:
        if name in frame.columns:
            return name
    raise InputError(
        f"{path} has no column {wanted or 'label'!r}; name one with --label-column. "
        f"It has: {column_names(frame.columns)}."
    )


def _read_label(
    frame: pd.DataFrame, path: Path, label_column: str | None, positive: tuple[str, ...]
) -> list[int | None]:
    name = _label_column(frame, path, label_column)
    values = frame[name]
    if positive:
        unknown = sorted(set(positive) - set(values))
        if unknown:
            raise InputError(
                f"{path}: no row's {name} is {' or '.join(unknown)}; the column holds "
                f"{values_in_words(values)}. Give --positive only values that it holds."
            )
        _refuse_other_spellings(values, positive, f"{path}: the column {name}")
        return [None if value == "" else int(value in positive) for value in values]
    labels: list[int | None] = []
    for line, value in enumerate(values, start=2):
        known = _BOOLEAN.get(value.lower(), _number(value))
        if value and known not in (0, 1):
            raise InputError(
                f"{path}, line {line}: the {name} is neither 0 nor 1 (the column holds "
                f"{values_in_words(values)}); say which values are positive with --positive VALUE."
            )
        labels.append(None if known is None else int(known))
    return labels


def _refuse_other_spellings(values: pd.Series, positive: tuple[str, ...], column: str) -> None:
    """Refuse a value that is a positive one but for case or Unicode form: it would be negative."""
    meant = {_composed(value).casefold(): value for value in positive}
    for value in sorted(set(values) - set(positive)):
        same = meant.get(_composed(value).casefold())
        if same is not None:
            raise InputError(
                f"{column} holds {same} and, otherwise spelt, {value}, which would be negative; "
                f"spell them alike, or give both: --positive {same} --positive {value}"
            )


def _known(columns: Iterable[str]) -> list[str]:
    known = {plain_name(name) for name in _KNOWN_COLUMNS}
    return [name for name in columns if plain_name(name) in known]


def _number(text: str) -> float | None:
    if "_" in text:  # Python reads 1_2 as 12
        return None
    try:
        return float(text.replace(",", ".") if _DECIMAL_COMMA.fullmatch(text) else text)
    except ValueError:
        return None


def _with_slashes(path: str) -> str:
    return path.replace("\\", "/")


def _composed(text: str) -> str:
    """One spelling for letters with accents: macOS writes them in two characters, others in one."""
    return unicodedata.normalize("NFC", text)


def _long_number(text: str) -> str:
    return text if text.isdigit() and len(text) >= _FEWEST_DIGITS else ""


def _index(
    frame: pd.DataFrame, columns: Iterable[str], make_key: Callable[[str], Any], source: Path
) -> dict[Any, int]:
    found: dict[Any, int] = {}
    for name in columns:
        if name not in frame.columns:
            continue
        for row, value in enumerate(frame[name]):
            if value and found.setdefault(make_key(value), row) != row:
                raise InputError(
                    f"{source}: lines {found[make_key(value)] + 2} and {row + 2} name the same "
                    "image; keep one row per image."
                )
    return found
