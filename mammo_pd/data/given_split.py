"""A split that the label table brought along, such as a data set's own: taken over, and checked.

A published split makes results comparable with others', and is not always one by patient:
CBIS-DDSM's has women on both sides. Such a split is refused here like any other.
"""

import shlex

import pandas as pd

from mammo_pd.data.manifest import MANIFEST_SCHEMA
from mammo_pd.data.splits import (
    VAL_SHARE,
    SplitTable,
    check_split,
    count_leaks,
    with_validation,
)
from mammo_pd.errors import InputError
from mammo_pd.quoting import such_as
from mammo_pd.table_file import column_names
from mammo_pd.terms import Split, Status
from mammo_pd.wording import counted

# What tables call the parts.
_WORDS = {
    Split.TRAIN: ("train", "training"),
    Split.VAL: ("val", "valid", "validation", "dev", "development"),
    Split.TEST: ("test", "testing", "holdout", "hold-out"),
}
_PARTS = {word: str(part) for part, words in _WORDS.items() for word in words}


def split_from_column(
    manifest: pd.DataFrame,
    column: str,
    *,
    name: str = "default",
    val: float | None = None,
    seed: int = 0,
) -> SplitTable:
    """Take over the parts, or the folds, that a column of the manifest names.

    Args:
        manifest: all rows, with the columns that the label table brought. Those with status ``ok``
            and a value in the column are split; the others are in no part, and still help to tell
            whether patients are one.
        column: one of these: words for train, val and test, case aside; or numbers of folds.
        name: of the split.
        val: share of the patients that are trained on that validates instead, where the column
            names no such part; `VAL_SHARE` by default.
        seed: of the draw of those.

    Returns:
        The split, checked for leaks. Folds are numbered from 0 in the order of their numbers.

    Raises:
        InputError: the label table brought no such column; a value that is no part, or fewer than
            two folds; nothing to train on or to test on; a share beside a part that validates; or a
            patient on two sides.
    """
    brought = [str(one) for one in manifest if one not in MANIFEST_SCHEMA.names]
    if column not in brought:
        raise InputError(
            f"the label table has brought the store no column {column!r} to take a split from "
            f"(it has brought: {column_names(brought) or 'none'}). Bring it with: mammo-pd "
            f"preprocess DICOM_DIR --labels TABLE --carry {shlex.quote(column)}"
        )
    cells = manifest[column].astype("string").str.strip()
    cells = cells.where((cells != "") & (manifest["status"] == Status.OK))
    if cells.isna().all():
        raise InputError(f"the column {column} is empty for all usable images.")
    named = manifest.assign(side=cells)[["image_id", "patient_id", "side"]].dropna(subset=["side"])
    numbers = pd.to_numeric(named["side"], errors="coerce")
    if numbers.notna().all():
        table = named.assign(fold=_folds(numbers, column)).drop(columns="side")
    else:
        table = named.assign(split=_parts(named["side"], column)).drop(columns="side")
    leaks = count_leaks(SplitTable.of(name, table), manifest)
    if leaks:
        raise InputError(
            f"by the column {column}, {counted(leaks, 'patient')} would be on more than one side "
            "(by patient, exam or identical pixels), and results too good; correct the label "
            "table, or leave that cell empty for all of such a patient's images on one side."
        )
    if "fold" not in table and (table["split"] == Split.VAL).any():
        if val is not None:
            raise InputError(
                f"--val {val:g}: the column {column} says itself which images validate; leave "
                "--val out."
            )
    else:
        table = with_validation(table, manifest, VAL_SHARE if val is None else val, seed)
    split = SplitTable.of(name, table)
    check_split(split, manifest)
    return split


def _folds(numbers: pd.Series, column: str) -> pd.Series:
    if (numbers % 1 != 0).any():
        raise InputError(
            f"the column {column} has numbers that are not whole"
            f"{such_as(numbers[numbers % 1 != 0])}; folds are whole numbers."
        )
    folds = sorted(numbers.unique())
    if len(folds) < 2:
        raise InputError(
            f"the column {column} names one fold alone, {folds[0]:g}; at least 2 are needed, one "
            "to train on and one to test on."
        )
    return numbers.map({number: place for place, number in enumerate(folds)})


def _parts(cells: pd.Series, column: str) -> pd.Series:
    parts = cells.str.lower().map(_PARTS)
    if parts.isna().any():
        unknown = cells[parts.isna()]
        raise InputError(
            f"the column {column} has {counted(unknown.nunique(), 'value')} naming no part"
            f"{such_as(unknown)}; the parts are train, val and test (or training, validation and "
            "testing), or folds by their numbers. An empty cell leaves an image out."
        )
    missing = [part for part in (Split.TRAIN, Split.TEST) if part not in set(parts)]
    if missing:
        raise InputError(
            f"the column {column} names no image of the part {missing[0]}; give it some in the "
            "label table, or make another split: mammo-pd split --fractions 0.7 0.1 0.2"
        )
    return parts
