"""Split a store by patient, and count what each part holds."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from mammo_pd.data.given_split import split_from_column
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.splits import (
    VAL_SHARE,
    SplitTable,
    check_name,
    make_split,
    patient_groups,
    read_split,
    write_split,
)
from mammo_pd.data.store import StorePaths
from mammo_pd.errors import InputError
from mammo_pd.terms import Status
from mammo_pd.wording import counted

FRACTIONS = (0.7, 0.1, 0.2)


def split_store(
    paths: StorePaths,
    *,
    name: str = "default",
    fractions: tuple[float, float, float] = FRACTIONS,
    folds: int | None = None,
    column: str | None = None,
    val: float | None = None,
    seed: int = 0,
    may_lack_labels: bool = False,
    say: Callable[[str], None] = print,
) -> SplitTable:
    """Split the usable images of a store by patient and write the split into it.

    Arguments and errors are those of `draw_split`.
    """
    split, made_with = draw_split(
        paths,
        name=name,
        fractions=fractions,
        folds=folds,
        column=column,
        val=val,
        seed=seed,
        may_lack_labels=may_lack_labels,
        say=say,
    )
    write_split(split, paths.splits, made_with)
    return split


def draw_split(
    paths: StorePaths,
    *,
    name: str = "default",
    fractions: tuple[float, float, float] = FRACTIONS,
    folds: int | None = None,
    column: str | None = None,
    val: float | None = None,
    seed: int = 0,
    may_lack_labels: bool = False,
    say: Callable[[str], None] = print,
) -> tuple[SplitTable, dict[str, Any]]:
    """Split the usable images of a store by patient; nothing is written.

    Args:
        paths: the store.
        name: of the split; an existing split is never replaced by a different one.
        fractions: shares of patients in train, val and test.
        folds: number of equal folds, in place of fractions.
        column: of the manifest, which names the part or fold of each image, in place of both.
        val: with folds, the share of the patients of the other folds that validates, and with a
            column that names no such part that of the patients that are trained on; `VAL_SHARE`
            by default.
        seed: of the shuffle.
        may_lack_labels: accept a store without any label, for what learns from none.
        say: called with each message, one line.

    Returns:
        The split, and what it was made with, as `write_split` takes them.

    Raises:
        InputError: the name cannot be one, or is that of a different split; there are too few
            patients of a class; or as `split_from_column`.
    """
    check_name(name)
    manifest = read_manifest(paths.manifest, status=None)
    if not (manifest["status"] == Status.OK).any():
        raise InputError(
            f"{paths.root} has no usable image; the manifest's columns reason and detail say why."
        )
    if column is not None:
        split = split_from_column(manifest, column, name=name, val=val, seed=seed)
        left_out = int((manifest["status"] == Status.OK).sum()) - len(split.table)
        if left_out:
            say(
                f"warning: the column {column} is empty for {counted(left_out, 'usable image')}, "
                f"which {'is' if left_out == 1 else 'are'} in no part of the split"
            )
    else:
        split = make_split(
            manifest,
            name=name,
            fractions=fractions,
            folds=folds,
            val=VAL_SHARE if val is None else val,
            seed=seed,
            may_lack_labels=may_lack_labels,
        )
    if (paths.splits / f"{name}.csv").is_file() and read_split(
        paths.splits, name
    ).hash != split.hash:
        raise InputError(
            f"there is another split {name!r} in {paths.splits}, and runs may depend on it; give "
            "this one another --name."
        )
    usable = manifest[manifest["status"] == Status.OK]
    unknown = usable["patient_id_source"].isin(["exam", "image"])
    if unknown.any():
        say(
            f"warning: of {counted(len(usable), 'image')} {unknown.sum()} lack a patient ID, so "
            "each exam or image counts as a patient of its own; give patient_id in the label "
            "table."
        )
    if usable["label"].isna().all():
        say(
            f"warning: no image has a label yet, so the split {name} cannot be balanced by label, "
            "and one of its parts may turn out to have no positive image. If the store will be "
            "labelled, do that first: a model pretrained on one split must not be tested on "
            "another"
        )
    return split, {"seed": seed, **_made_with(fractions, folds, column, val)}


def _made_with(
    fractions: tuple[float, float, float], folds: int | None, column: str | None, val: float | None
) -> dict[str, Any]:
    if column is not None:
        return {"column": column, "val": val}
    if folds is not None:
        return {"folds": folds, "val": VAL_SHARE if val is None else val}
    return {"fractions": list(fractions)}


def count_parts(manifest: pd.DataFrame, split: SplitTable) -> list[dict[str, int | str]]:
    """Patients, images and positives of each part or fold.

    Args:
        manifest: all rows.
        split: the split.

    Returns:
        One row per part: ``part``, ``patients`` (joined where they are one), ``images``,
        ``unlabelled``, ``positives`` (images).
    """
    column = "fold" if split.folds else "split"
    manifest = manifest.assign(group=patient_groups(manifest))
    joined = manifest.merge(split.table[["image_id", column]], on="image_id")
    return [
        {
            "part": str(part),
            "patients": int(rows["group"].nunique()),
            "images": len(rows),
            "unlabelled": int(rows["label"].isna().sum()),
            "positives": int(rows["label"].sum()),
        }
        for part, rows in joined.groupby(column, sort=bool(split.folds))
    ]


def count_flow(
    manifest: pd.DataFrame, parts: "pd.Series[str]"
) -> list[dict[str, int | str | None]]:
    """How the images found came to be in a part of the split, or not: a STARD flow.

    Args:
        manifest: all rows, usable or not.
        parts: of the images that the split names, by ``image_id``.

    Returns:
        One row per step: ``found``, ``excluded`` (one per ``reason``), ``usable``, ``unassigned``
        (usable, but not named by the split) and each part by its name. ``step, reason, patients,
        exams`` (of those known), ``images, unlabelled, positives`` (images).
    """
    usable = manifest[manifest["status"] == Status.OK]
    excluded = manifest[manifest["status"] != Status.OK]
    part = usable["image_id"].map(parts)
    rows = [_counted(manifest, "found")]
    reasons = excluded["reason"].fillna("unknown")
    rows += [
        _counted(of_reason, "excluded", str(reason))
        for reason, of_reason in excluded.groupby(reasons, sort=True)
    ]
    rows.append(_counted(usable, "usable"))
    if part.isna().any():
        rows.append(_counted(usable[part.isna()], "unassigned"))
    order = {name: place for place, name in enumerate(("train", "val", "test"))}
    for name in sorted(part.dropna().unique(), key=lambda one: (order.get(one, len(order)), one)):
        rows.append(_counted(usable[part == name], str(name)))
    return rows


def _counted(
    rows: pd.DataFrame, step: str, reason: str | None = None
) -> dict[str, int | str | None]:
    exam = rows["patient_id"].fillna("") + "/" + rows["exam_id"].fillna("")
    return {
        "step": step,
        "reason": reason,
        "patients": int(rows["patient_id"].nunique()),
        "exams": int(exam.nunique()),
        "images": len(rows),
        "unlabelled": int(rows["label"].isna().sum()),
        "positives": int(rows["label"].sum()),
    }
