"""Weights of an earlier run of ours, and whether they have seen the women that are to be tested."""

from collections.abc import Callable
from pathlib import Path

from mammo_pd.data.cohort import Cohort
from mammo_pd.data.splits import patient_groups, read_split_and_past
from mammo_pd.errors import InputError
from mammo_pd.terms import Split
from mammo_pd.training.model_card import CheckpointHeader


def refuse_seen_test_women(weights: str | None, cohort: Cohort, say: Callable[[str], None]) -> None:
    """Refuse initial weights of a run that learnt from women whom this one is tested on.

    Also where it knew no label of theirs: figures would be too good. A run's training and
    validation parts count, since the latter chose its epoch.

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
    if (card.split_hash, card.fold) == (cohort.split.hash, cohort.fold):
        return
    fold = "" if card.fold is None else f", fold {card.fold}"
    try:
        split, hashes = read_split_and_past(cohort.paths.splits, card.split)
    except InputError:
        hashes = frozenset()
    if card.split_hash not in hashes:
        say(
            f"warning: the weights {name} are of a run on the split {card.split}{fold}, which this "
            "store does not have: make sure that none of its women is in the test part of the "
            f"split {cohort.split.name}"
        )
        return
    learnt = split.table["image_id"][split.parts(card.fold) != Split.TEST]
    groups = patient_groups(cohort.manifest)
    ids = cohort.manifest["image_id"]
    seen = set(groups[ids.isin(learnt)])
    tested = set(groups[ids.isin(cohort.part(Split.TEST)["image_id"])])
    if seen & tested:
        raise InputError(
            f"the weights {name} are of a run that learnt from {len(seen & tested)} of the "
            f"{len(tested)} women of the test part (split {card.split}{fold}), so figures on them "
            f"would be too good; make weights on the split {cohort.split.name}"
            + ("" if cohort.fold is None else f" and its fold {cohort.fold}")
            + (f", or train with --split {card.split}")
            + ("." if card.fold is None else f" --fold {card.fold}.")
        )
