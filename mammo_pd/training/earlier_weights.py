"""Weights of an earlier run of ours, and whether they have seen the women that are to be tested."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from mammo_pd.backbones.weights.report import LearntFrom, WeightsReport
from mammo_pd.data.cohort import Cohort
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.overlap import find_overlap
from mammo_pd.data.splits import patient_groups, read_split_and_past
from mammo_pd.data.store import StorePaths
from mammo_pd.errors import InputError
from mammo_pd.terms import Split
from mammo_pd.training.model_card import CheckpointHeader, ModelCard
from mammo_pd.training.runs import RunFolder
from mammo_pd.wording import counted


def refuse_seen_test_women(weights: str | None, cohort: Cohort, say: Callable[[str], None]) -> None:
    """Refuse initial weights of a run that learnt from women whom this one is tested on.

    Also where it knew no label of theirs: figures would be too good. A run's training and
    validation parts count, since the latter chose its epoch, and so do those of the runs whose
    weights it started from itself.

    Args:
        weights: as ``model.weights`` has it; only a file of ours says what it has seen.
        cohort: that is to be trained and tested on.
        say: takes one line for people, where it cannot be told.

    Raises:
        InputError: some women are in both.
    """
    if weights is None or not Path(weights).is_file():
        return
    name = Path(weights).name
    try:
        card = CheckpointHeader.read(Path(weights)).card
    except InputError:
        return  # not of ours
    if card is None:
        say(
            f"warning: the weights {name} are of a run of an earlier version, which does not say "
            "what they learnt from: make sure that it was no woman of the test part of the split "
            f"{cohort.split.name}"
        )
        return
    own = LearntFrom(card.split, card.split_hash, card.fold)
    if not _refuse_of_this_store(own, f"the weights {name} are of a run", cohort):
        other = _store_of(Path(weights), card)
        if other is not None:
            _compare(name, *other, cohort, say)
        else:
            say(
                f"warning: the weights {name} are of a run on {_named(own)}, which this store does "
                "not have, and the store that they were made on is not to be found: make sure that "
                f"none of its women is in the test part of the split {cohort.split.name}"
            )
    # What those weights were started from has left its trace in them.
    for earlier in WeightsReport.from_dict(card.weights).learnt_from if card.weights else ():
        told = f"the weights {name} are of a run that started from those of another"
        if not _refuse_of_this_store(earlier, told, cohort):
            say(
                f"warning: {told}, on {_named(earlier)}, which this store does not have: make sure "
                "that none of its women is in the test part of the split "
                f"{cohort.split.name}"
            )


def version_of(weights: str | None) -> tuple[int, ...] | None:
    """What tells a file of weights from one that takes its place; None where there is no file.

    Args:
        weights: as ``model.weights`` has it.
    """
    if weights is None:
        return None
    try:
        found = Path(weights).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def refuse_replaced(weights: str | None, before: tuple[int, ...] | None) -> None:
    """Refuse weights that may be others than those that were checked.

    Args:
        weights: as ``model.weights`` has it; they have been loaded.
        before: its `version_of` before it was first read.

    Raises:
        InputError: the file was replaced in between.
    """
    if weights is not None and version_of(weights) != before:
        raise InputError(
            f"the weights {Path(weights).name} were replaced while they were read, so nothing says "
            "that those loaded have seen no woman of the test part; start again, and if their own "
            "run is still training, once that has ended."
        )


def _named(learnt: LearntFrom) -> str:
    return f"the split {learnt.split}" + ("" if learnt.fold is None else f", fold {learnt.fold}")


def _refuse_of_this_store(learnt_from: LearntFrom, told: str, cohort: Cohort) -> bool:
    """Refuse weights by a split of this store; False where it is none of this store."""
    name, fold = learnt_from.split, learnt_from.fold
    if (learnt_from.split_hash, fold) == (cohort.split.hash, cohort.fold):
        return True
    try:
        split, hashes = read_split_and_past(cohort.paths.splits, name)
    except InputError:
        return False
    if learnt_from.split_hash not in hashes:
        return False
    learnt = split.table["image_id"][split.parts(fold) != Split.TEST]
    groups = patient_groups(cohort.manifest)
    ids = cohort.manifest["image_id"]
    seen = set(groups[ids.isin(learnt)])
    tested = set(groups[ids.isin(cohort.part(Split.TEST)["image_id"])])
    if seen & tested:
        raise InputError(
            f"{told} that learnt from {len(seen & tested)} of the {len(tested)} women of the test "
            f"part ({_named(learnt_from).removeprefix('the ')}), so figures on them would be too "
            f"good; make weights on the split {cohort.split.name}"
            + ("" if cohort.fold is None else f" and its fold {cohort.fold}")
            + (f", or train with --split {name}")
            + ("." if fold is None else f" --fold {fold}.")
        )
    return True


def _store_of(weights: Path, card: ModelCard) -> tuple[StorePaths, pd.DataFrame] | None:
    """The store that weights were made on, and the rows that they learnt from, where it still is.

    Only the run folder beside the file says where that was: a checkpoint itself tells no paths.
    """
    try:
        paths = StorePaths(Path(RunFolder.open(weights.parent).info.store))
        split, hashes = read_split_and_past(paths.splits, card.split)
        manifest = read_manifest(paths.manifest)
    except InputError:
        return None
    if card.split_hash not in hashes:
        return None
    learnt = split.table["image_id"][split.parts(card.fold) != Split.TEST]
    return paths, manifest[manifest["image_id"].isin(learnt)]


def _compare(
    name: str, paths: StorePaths, learnt: pd.DataFrame, cohort: Cohort, say: Callable[[str], None]
) -> None:
    """Refuse women, or pictures, that the weights of another store's run have seen."""
    tested = cohort.part(Split.TEST)
    overlap = find_overlap(paths, learnt, cohort.paths, tested)
    if overlap.patients or overlap.images:
        raise InputError(
            f"the weights {name} are of a run on another store, {paths.root}, that learnt from "
            f"{counted(overlap.patients, 'woman', 'women')} of the test part here (by patient ID) "
            f"and from {counted(overlap.images, 'image')} of it (by pixels), so figures on them "
            "would be too good; make weights on this store and the split "
            f"{cohort.split.name}, or take them out of the test part."
        )
    if overlap.one_key:
        return
    say(
        f"warning: the weights {name} are of a run on another store, {paths.root}: none of its "
        "images has the pixels of one of the test part here, but the patient IDs of two stores "
        "without a common key cannot be compared: make sure that none of its women is in the test "
        f"part of the split {cohort.split.name}"
    )
