"""What a run is made of before a device is touched: the data, and all that they can refuse."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import describe_backbone
from mammo_pd.config import RunConfig, TrainingSettings, resolve_img_size
from mammo_pd.data.balanced import BalancedDraw
from mammo_pd.data.cohort import Cohort, hash_targets
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.manifest import MANIFEST_SCHEMA
from mammo_pd.data.split_store import draw_split
from mammo_pd.data.splits import SplitTable, write_split
from mammo_pd.data.store import StorePaths, open_store
from mammo_pd.data.unit_batches import check_units, members_of
from mammo_pd.errors import InputError
from mammo_pd.patches.sampler import check_draw, sampler_class
from mammo_pd.terms import ScoredPatches, Split
from mammo_pd.training.devices import count_devices
from mammo_pd.training.earlier_weights import refuse_seen_test_women
from mammo_pd.training.objectives import Objective, build_objective
from mammo_pd.training.objectives.contract import check_names, check_targets


@dataclass(frozen=True)
class NewSplit:
    """The split of a store that has none, before it is written.

    Attributes:
        table: the split.
        made_with: what it was made with.
        warnings: of its making.
    """

    table: SplitTable
    made_with: dict[str, Any]
    warnings: Sequence[str]

    @classmethod
    def draw(cls, paths: StorePaths, objective: Objective) -> "NewSplit":
        """Draw it; what there is to say of it is said once it is written."""
        warnings: list[str] = []
        unlabelled = "label" not in objective.target_columns
        split = draw_split(paths, may_lack_labels=unlabelled, say=warnings.append)
        return cls(*split, warnings)

    def write(self, paths: StorePaths, say: Callable[[str], None]) -> None:
        """Write it into the store, saying so."""
        say("there is no split yet; making the default one: 70/10/20 % of the patients, seed 0")
        for line in self.warnings:
            say(line)
        write_split(self.table, paths.splits, self.made_with)


@dataclass(frozen=True)
class RunData:
    """A run's data and their checked settings.

    Attributes:
        cohort: the store's images and their split.
        new_split: the cohort's, where it is not written yet; None where it is.
        objective: what is learnt.
        parts: of each part of the split, the manifest rows that the objective can use.
        img_size: (height, width) in pixels that the model sees.
        train_set: images to train on, with targets.
        val_set: images to validate on, with targets.
        draw: draws an epoch with a set share of positives; None for every image once.
    """

    cohort: Cohort
    new_split: NewSplit | None
    objective: Objective
    parts: Mapping[Split, pd.DataFrame]
    img_size: tuple[int, int]
    train_set: MammogramDataset
    val_set: MammogramDataset
    draw: BalancedDraw | None

    @classmethod
    def read(
        cls,
        store: Path,
        config: RunConfig,
        *,
        check_weights: bool = True,
        say: Callable[[str], None] = print,
    ) -> "RunData":
        """Read a store, and refuse whatever can be refused without a device; nothing is written.

        Args:
            store: made by preprocess.
            config: of the run.
            check_weights: whether the initial weights may have seen test women.
            say: takes one line for people.

        Raises:
            InputError: no store, a split with a leak or a class missing, no such model, an image
                size that does not fit it, a batch that the devices cannot share, or weights that
                have seen test women.
        """
        devices, nodes = count_devices(config)
        _refuse_uneven(config, devices * nodes)
        paths = open_store(store)
        objective = build_objective(config.training)
        if objective.is_pretext:
            _refuse_keeping_all(config)
        _refuse_scoring_own_patches(config, objective)
        model = _check_model(config)
        window = model.window if config.patch_dropout.schedule.drops else None
        resolve = partial(resolve_img_size, config.data.res, model.patch_size, window=window)
        resolve(largest=(1, 1))  # of an archive, reading the manifest takes seconds
        new = None
        if config.data.split == "default" and not (paths.splits / "default.csv").is_file():
            new = NewSplit.draw(paths, objective)
        cohort = Cohort.read(paths, new.table if new else config.data.split, config.data.fold)
        check_names(objective, [*MANIFEST_SCHEMA.names, "split", "fold"])
        check_targets(objective, cohort.rows)
        parts = usable_parts(cohort, objective)
        for part, rows in parts.items():
            fold = "" if cohort.fold is None else f"fold {cohort.fold} of "
            objective.check(rows, f"the {part} part of {fold}the split {cohort.split.name}")
        if check_weights:
            refuse_seen_test_women(config.model.weights, cohort, say)
        img_size = resolve(largest=_largest_crop(parts))
        train_set, val_set = (
            MammogramDataset(paths, rows, img_size, targets, objective.views(rows))
            for rows, targets in (
                (parts[Split.TRAIN], objective.training_targets(parts[Split.TRAIN])),
                (parts[Split.VAL], objective.targets(parts[Split.VAL])),
            )
        )
        draw = _balanced_draw(config, objective, parts[Split.TRAIN], train_set)
        if train_set.views is not None:
            size = config.training.batch_size
            check_units(train_set.views[:, 0], None if size == "auto" else size, devices * nodes)
        return cls(cohort, new, objective, parts, img_size, train_set, val_set, draw)


def _balanced_draw(
    config: RunConfig, objective: Objective, rows: pd.DataFrame, train_set: MammogramDataset
) -> BalancedDraw | None:
    training = config.training
    if training.positive_share is None:
        return None
    groups, column = None, training.balance_within
    if column is not None:
        groups = pd.factorize(_groups(rows, column))[0].astype(np.int64)
    positive = objective.positive(train_set.targets.numpy())
    if train_set.views is not None:
        members = members_of(train_set.views[:, 0])
        positive = np.array([positive[rows].any() for rows in members])
        if groups is not None:
            groups = np.array([groups[rows[0]] for rows in members])
    draw = BalancedDraw(positive, training.positive_share, groups)
    if not draw.drawn.any():
        within = f" within any {column}" if column else ""
        raise InputError(
            f"training.positive_share {training.positive_share:g} needs positive and negative "
            f"training images{within}, and there is only one class; drop it."
        )
    return draw


def _refuse_keeping_all(config: RunConfig) -> None:
    """Of a pretext task: where every patch is kept there is none left to predict."""
    schedule = config.patch_dropout.schedule
    if schedule.base == 1 or schedule.full_epochs:
        raise InputError(
            f"--keep {config.patch_dropout.keep_rate} keeps every patch in some steps, but "
            f"{config.training.objective} learns to predict dropped ones; give a rate below 1, "
            "such as --keep 0.25."
        )


def _refuse_scoring_own_patches(config: RunConfig, objective: Objective) -> None:
    """Of an objective that decides itself what is read: it would not be the breast alone."""
    own = type(objective).evaluation_inputs is not Objective.evaluation_inputs
    if own and (score_on := config.patch_dropout.score_on) != ScoredPatches.ALL:
        raise InputError(
            f"patch_dropout.score_on={score_on} decides which patches of an image are scored, and "
            f"so does the objective {config.training.objective}, by an evaluation_inputs of its "
            "own; leave patch_dropout.score_on out."
        )


def _refuse_uneven(config: RunConfig, devices: int) -> None:
    batch = config.training.batch_size
    if isinstance(batch, int) and batch % devices:
        raise InputError(
            f"--batch-size {batch} cannot be shared evenly by {devices} devices; the nearest "
            f"are {max(1, batch // devices) * devices} and {(batch // devices + 1) * devices}."
        )


def usable_parts(cohort: Cohort, objective: Objective) -> dict[Split, pd.DataFrame]:
    """Of each part of a split, the manifest rows that an objective can use."""
    parts = {part: cohort.part(part) for part in Split}
    return {
        part: rows[objective.usable(rows)].reset_index(drop=True) for part, rows in parts.items()
    }


def labels_hash(cohort: Cohort, objective: Objective) -> str:
    """Of the targets that an objective reads in all parts of a split."""
    rows = pd.concat(usable_parts(cohort, objective).values())
    return hash_targets(rows["image_id"], objective.targets(rows))


def targets_hash(cohort: Cohort, objective: Objective, training: TrainingSettings) -> str:
    """Of what a run is trained by beside its labels.

    These are the targets of the training images, which ``target_column`` may tell apart from their
    labels, and the groups within which ``balance_within`` balances them.

    Raises:
        InputError: the store lacks one of these columns, or has other values than targets in it.
    """
    rows = cohort.part(Split.TRAIN)
    rows = rows[objective.usable(rows)].reset_index(drop=True)
    column = training.balance_within
    groups = None if column is None else _groups(rows, column)
    return hash_targets(rows["image_id"], objective.training_targets(rows), groups)


def _groups(rows: pd.DataFrame, column: str) -> "pd.Series[str]":
    """The group of each row for ``balance_within``; an unknown value is a group of its own.

    Raises:
        InputError: there is no such column.
    """
    if column not in rows:
        raise InputError(
            f"training.balance_within {column!r} is not in the store; give the label table "
            f"that has it: mammo-pd preprocess --labels TABLE --carry {column}"
        )
    return rows[column].astype("string").fillna("")


def _check_model(config: RunConfig) -> Backbone:
    """The model's shape; a keep rate or a draw that it does not allow is refused here."""
    schedule = config.patch_dropout.schedule
    described = describe_backbone(config.model.name, global_pool=config.model.global_pool)
    dropout = config.patch_dropout
    sampler_class(dropout.draw)
    check_draw(dropout.draw, described.window, ScoredPatches(dropout.score_on))
    for rate in (schedule.first, schedule.last):
        described.allowed_keep(rate)
    return described


def _largest_crop(parts: Mapping[Split, pd.DataFrame]) -> tuple[int, int]:
    rows = pd.concat(parts.values())
    return int(rows["crop_height"].max()), int(rows["crop_width"].max())
