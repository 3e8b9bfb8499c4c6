"""A run's model on another store than it was trained on: all images are scored, without a split."""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mammo_pd.data.cohort import Cohort
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.overlap import Overlap, find_overlap
from mammo_pd.data.splits import SplitTable, read_split_and_past
from mammo_pd.data.store import StorePaths, open_store, read_store_info
from mammo_pd.errors import InputError
from mammo_pd.inference.predict import Scored, score_images
from mammo_pd.terms import Split, Status
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.runs import RunFolder
from mammo_pd.wording import counted

# Settings that decide which files and frames are taken, or how deep the files are, and may differ
# as the archives do. The others give one file other pixels.
_OF_THE_ARCHIVE = ("bits_stored", "frames")


def tell_apart(run: RunFolder, stores: Sequence[Path]) -> tuple[Path | None, list[Path]]:
    """Which of some stores is the one that a run was trained on, perhaps moved.

    Args:
        run: that was trained.
        stores: as they were named.

    Returns:
        The run's own, None where it lies where it was trained from; and the others.

    Raises:
        InputError: one of them is no store, or the run's own is not to be found.
    """
    own = [store for store in stores if _is_own(run, open_store(store))]
    others = [store for store in stores if store not in own]
    if len(own) > 1:
        raise InputError(
            f"{own[0]} and {own[1]} are both the store that the run {run.info.run_id} was trained "
            "on; name it once."
        )
    if not own and others and not StorePaths(Path(run.info.store)).info.is_file():
        if len(others) == 1:
            # Then it is the only one that can be meant; what differs is said when it is read.
            return others[0], []
        raise InputError(
            f"the store that the run {run.info.run_id} was trained on is no longer at "
            f"{run.info.store}, and the run's thresholds are chosen on it: name it with another "
            "--store. (It is recognised by its split, which none of the stores given has.)"
        )
    return (own[0] if own else None), others


def _is_own(run: RunFolder, paths: StorePaths) -> bool:
    if paths.root.resolve() == Path(run.info.store).resolve():
        return True
    try:
        _, hashes = read_split_and_past(paths.splits, run.config.data.split)
    except InputError:
        return False
    return run.info.split_hash in hashes


def check_external(run: RunFolder, own: Path | None, store: Path) -> list[str]:
    """Refuse a store that a run's model cannot be tested on, before hours of scoring.

    Args:
        run: that was trained.
        own: its store, None for where it was trained from.
        store: another one.

    Returns:
        What differs from the run's own store and is tolerable: sentences for the reader.

    Raises:
        InputError: the grey values were made otherwise, nothing is labelled, or the store is a
            copy of the run's own.
    """
    developed, paths = open_store(own or Path(run.info.store)), open_store(store)
    before, after = (read_store_info(each)["settings"] for each in (developed, paths))
    changed = {
        name: f"{name} was {before.get(name)} there and is {after.get(name)} here"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    }
    if "voi" in changed:
        raise InputError(
            f"the grey values in {store} were made differently from those that the run "
            f"{run.info.run_id} was trained on ({changed['voi']}), so the model would see "
            f"different images; preprocess them with --voi {before.get('voi')}."
        )
    if "steps" in changed:
        raise InputError(
            f"the images in {store} were prepared with different custom steps from those that the "
            f"run {run.info.run_id} was trained on ({changed['steps']}); preprocess them with the "
            "program that has the run's steps."
        )
    rows = read_manifest(paths.manifest)
    objective = build_objective(run.config.training)
    try:
        targets = objective.targets(rows)[:, : len(objective.target_columns)]
    except KeyError as error:
        raise InputError(
            f"the store {store} has no column {error}, which the run {run.info.run_id} is judged "
            "by; add it with mammo-pd preprocess --labels."
        ) from error
    if np.isnan(targets).all():
        raise InputError(
            f"the store {store} has no usable image with a label, so there is nothing to test on; "
            "add labels with mammo-pd preprocess --labels."
        )
    if set(rows["image_id"]) <= set(read_manifest(developed.manifest)["image_id"]):
        raise InputError(
            f"all images of {store} are also in {developed.root}, which the run {run.info.run_id} "
            "was trained on: it is not an external set."
        )
    notes = []
    if changed:
        kind = "files" if {*changed} <= {*_OF_THE_ARCHIVE} else "version"
        why = (
            "these settings follow the archive's files"
            if kind == "files"
            else "some files may have come out differently; preprocess the older store again to be "
            "certain"
        )
        notes.append(
            f"Preprocessed with other settings than the development store: "
            f"{'; '.join(changed.values())} ({why})."
        )
    return notes


def predict_store(
    run: RunFolder,
    store: Path,
    *,
    checkpoint: str = "model",
    say: Callable[[str], None] = print,
) -> Scored:
    """Score all usable images of a store that a run was not trained on.

    The scores are written to ``external/NAME.csv`` in the run's folder, as ``evaluate
    --predictions`` reads them; every image counts as the split's part test.

    Args:
        run: to be tested.
        store: another store than its own.
        checkpoint: ``model``, or ``last`` for the last epoch.
        say: takes one line for people.

    Raises:
        InputError: no checkpoint yet, or the store cannot be read.
    """
    paths = open_store(store)
    manifest = read_manifest(paths.manifest, status=None)
    usable = manifest[manifest["status"] == Status.OK]
    every = usable[["image_id", "patient_id"]].assign(split=str(Split.TEST))
    split = SplitTable("all", every.sort_values("image_id", ignore_index=True), "")
    cohort = Cohort(paths, manifest, split, None)
    # Of two archives the folders may have one name, and a path may tell what nobody need know.
    place = hashlib.sha256(os.fsencode(paths.root.resolve())).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", paths.root.resolve().name).strip(".-") or "store"
    file = run.path / "external" / f"{name}-{place}.csv"
    scored = score_images(run, cohort, cohort.rows, checkpoint, file)
    # The fold that the run was tested on is none of this store's.
    scored = replace(scored, table=scored.table.drop(columns="fold", errors="ignore"))
    say(
        f"scored {counted(len(scored.table), 'usable image', 'usable images')} of {store} with the "
        f"weights of epoch {scored.epoch}: {file}"
    )
    return scored


def overlap_with(own: Cohort, external: Cohort) -> Overlap:
    """What an external store shares with all that a run's store holds."""
    usable = own.manifest[own.manifest["status"] == Status.OK]
    return find_overlap(own.paths, usable, external.paths, external.rows)
