"""Score the validation and test images of a run with its checkpoint."""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import nn

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import build_backbone
from mammo_pd.config import RunConfig
from mammo_pd.data.cohort import Cohort
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.manifest import MANIFEST_SCHEMA, read_manifest
from mammo_pd.data.split_store import count_parts
from mammo_pd.data.splits import read_split_and_past
from mammo_pd.data.store import open_store
from mammo_pd.errors import InputError
from mammo_pd.files import atomic_write, load_json, write_text
from mammo_pd.inference.score import score_dataset, scoring_sampler
from mammo_pd.table_file import with_formulas, write_csv
from mammo_pd.terms import ScoredPatches, Split, Status
from mammo_pd.training.checkpoint import open_checkpoint
from mammo_pd.training.devices import make_fabric
from mammo_pd.training.objectives import Objective, build_objective
from mammo_pd.training.run_data import labels_hash, targets_hash
from mammo_pd.training.runs import RunFolder, RunInfo, weights_in
from mammo_pd.wording import counted

# What a report can stratify by; the manifest's other columns are of no use to it.
_STRATA = ("manufacturer", "model", "age", "presentation_intent", "implant")


@dataclass(frozen=True)
class Scored:
    """A run's predictions and what a reader must know of them.

    Attributes:
        file: ``predictions.csv`` of the run.
        table: what it holds.
        info: what the run was made with.
        epoch: whose weights were used.
        digest: SHA-256 of these weights.
        parts: patients, images and positives of each part of the split.
        exclusions: images of the store that were left out, by reason.
        cohort: the store and split that were scored.
        images: manifest rows of the images that were scored; those of one patient, whatever IDs
            she has in the archive, have one.
        objective: that the run learnt.
        backbone: in evaluation mode, on its device.
        score_on: which patches of the images were read.
        draw: how training drew the patches that it kept.
        caveats: what makes results on them doubtful, in sentences.
    """

    file: Path
    table: pd.DataFrame
    info: RunInfo
    epoch: int
    digest: str
    parts: list[dict[str, int | str]]
    exclusions: dict[str, int]
    cohort: Cohort
    images: pd.DataFrame
    objective: Objective
    backbone: Backbone
    score_on: ScoredPatches
    draw: str
    caveats: Sequence[str] = ()

    @property
    def phantom(self) -> bool:
        """Whether any image of the store is a phantom."""
        return bool(self.cohort.manifest["phantom"].fillna(False).any())


def predict(
    run: RunFolder,
    *,
    store: Path | None = None,
    checkpoint: str = "model",
    accept_other_split: bool = False,
    reuse: bool = False,
    say: Callable[[str], None] = print,
) -> Scored:
    """Score the validation and test images of a run and write ``predictions.csv`` into it.

    Args:
        run: to be scored.
        store: where the store lies now; None for where the run was trained from.
        checkpoint: ``model``, or ``last`` for the last epoch.
        accept_other_split: score the split as it is now, though the run was trained on another.
        reuse: take the ``predictions.csv`` that is there, if these weights made it of these images.
        say: takes one line for people.

    Raises:
        InputError: no checkpoint yet, or a store or split other than the run was trained on.
    """
    cohort, labels, targets = _checked(run, store, accept_other_split=accept_other_split)
    if run.info.finished is None:
        say(
            f"warning: the run {run.info.run_id} did not finish training; scoring the weights "
            "learnt so far"
        )
    images = cohort.rows[cohort.rows["split"] != Split.TRAIN].reset_index(drop=True)
    scored = score_images(run, cohort, images, checkpoint, run.predictions, reuse=reuse, say=say)
    return replace(scored, caveats=_caveats(run, cohort, labels, targets))


def check_runs(
    runs: Sequence[RunFolder], *, store: Path | None = None, accept_other_split: bool = False
) -> None:
    """Refuse, before hours of scoring, runs of which one cannot be scored or fits no other.

    Args:
        runs: to be scored and reported on together.
        store: as for `predict`.
        accept_other_split: as for `predict`.

    Raises:
        InputError: as `predict` and `join_folds`, or the runs learnt different targets.
    """
    _refuse_joining([run.info for run in runs])
    learnt = {tuple(build_objective(run.config.training).score_columns) for run in runs}
    if len(learnt) > 1:
        raise InputError("the runs learnt different targets; evaluate them one by one.")
    for run in runs:
        _checked(run, store, accept_other_split=accept_other_split)


def _checked(
    run: RunFolder, store: Path | None, *, accept_other_split: bool
) -> tuple[Cohort, str, str | None]:
    """What a run is to be scored on, with the hashes of its labels and of its training targets.

    Refused as `predict` says. The last is None where the store has lost a column.
    """
    paths = open_store(store or Path(run.info.store))
    cohort = Cohort.read(paths, run.config.data.split, run.config.data.fold)
    objective = build_objective(run.config.training)
    labels = labels_hash(cohort, objective)
    try:
        targets = targets_hash(cohort, objective, run.config.training)
    except InputError:
        targets = None
    run.refuse_scoring_on(cohort, labels, targets, accept_other_split=accept_other_split)
    if run.info.finished is None and not run.chosen.is_file():
        raise InputError(
            f"the run {run.info.run_id} stopped before its first checkpoint, so there are no "
            "weights to score; continue it with: mammo-pd train --resume "
            f"{shlex.quote(str(run.path))}"
        )
    return cohort, labels, targets


def _caveats(run: RunFolder, cohort: Cohort, labels: str, targets: str | None) -> list[str]:
    """What the user vouched for with --accept-other-split, for whoever reads the results."""
    caveats, trained = [], run.info
    # A split that lost images has kept its sides.
    _, hashes = read_split_and_past(cohort.paths.splits, cohort.split.name)
    if trained.split_hash not in hashes:
        caveats.append(
            f"The run {trained.run_id} was trained on another split than the one evaluated here, "
            "so it may have learnt from patients who are evaluated, which makes results too good: "
            "nothing but the word of whoever gave --accept-other-split says that it has not."
        )
    if trained.labels_hash != labels:
        caveats.append(
            f"The labels are not those that the run {trained.run_id} was trained by: they have "
            "changed since, or images were removed."
        )
    elif run.has_other_targets(targets):
        caveats.append(
            f"The targets that the run {trained.run_id} was trained by are no longer in the store: "
            "they have changed since."
        )
    return caveats


def columns_of_predictions(run: RunFolder, store: Path | None = None) -> list[str]:
    """The columns that ``predictions.csv`` of a run has, or will have.

    Args:
        run: that was trained.
        store: that is scored; None for where the run was trained from.
    """
    rows = read_manifest(open_store(store or Path(run.info.store)).manifest, status=None)
    objective = build_objective(run.config.training)
    none = rows[:0].assign(split=Split.TEST.value)
    scores = np.empty((0, len(objective.score_columns)))
    return list(_as_predictions(none, scores, objective, run.config).columns)


def score_images(
    run: RunFolder,
    cohort: Cohort,
    images: pd.DataFrame,
    checkpoint: str,
    file: Path,
    *,
    reuse: bool = False,
    say: Callable[[str], None] | None = None,
) -> Scored:
    """Score some images of a store and write the predictions.

    Args:
        run: whose model scores them.
        cohort: they are of; not checked.
        images: manifest rows, with the column ``split``.
        checkpoint: ``model``, or ``last`` for the last epoch.
        file: CSV of the predictions; a JSON file beside it says what they were made of.
        reuse: take the file that is there, if these weights made it of these images.
        say: takes lines for people: how far it is, and how many of each part were scored; None to
            print the first alone.

    Raises:
        InputError: no checkpoint yet.
    """
    objective = build_objective(run.config.training)
    model, backbone, epoch, digest = load_model(run, objective, checkpoint)
    # As in training: what is judged together is found by the IDs as they are.
    views = objective.views(images)
    images = cohort.by_patient(images)
    made_of = {
        # By its file: scores of earlier runs are found again by the name that it had.
        "checkpoint": weights_in(run.path, checkpoint).stem,
        "epoch": epoch,
        "weights": digest,
        "split_hash": cohort.split.hash,
        "labels_hash": labels_hash(cohort, objective),
    }
    # One device is enough, and it need not be of the kind that trained.
    config = run.config.replace(device=run.config.device.replace(devices=1, accelerator="auto"))
    score_on = ScoredPatches(config.patch_dropout.score_on)
    fabric = make_fabric(config)
    scores = _read_scores(file, made_of, images, objective) if reuse else None
    if scores is not None:
        fabric.setup_module(model).eval()
        table = _as_predictions(images, scores, objective, run.config)
    else:
        scores = score_dataset(
            fabric,
            model,
            scoring_sampler(backbone, run.info.img_size, run.info.normalization, score_on),
            objective,
            MammogramDataset(cohort.paths, images, run.info.img_size, views=views),
            workers=config.data.workers,
            say=say or print,
        )
        table = _as_predictions(images, scores, objective, run.config)
        _write_predictions(file, table, made_of)
        tested = int((table["split"] == Split.TEST).sum())
        if say is not None:
            reported = " for the report" if objective.target_columns else ""
            read = score_on.in_words(backbone.num_tokens)
            say(
                f"scored {counted(tested, 'test image')}{reported} and "
                f"{counted(len(table) - tested, 'validation image')}, on {read}, with the weights "
                f"of epoch {epoch}"
            )
    return Scored(
        file=file,
        table=table,
        info=run.info,
        epoch=epoch,
        digest=digest,
        parts=count_parts(cohort.manifest, cohort.split),
        exclusions=_count_exclusions(cohort),
        cohort=cohort,
        images=images,
        objective=objective,
        backbone=backbone,
        score_on=score_on,
        draw=run.config.patch_dropout.draw,
    )


class LoadedModel(NamedTuple):
    """A run's model as a checkpoint has it.

    Attributes:
        model: what was trained, on the CPU.
        backbone: in it.
        epoch: that its weights are of.
        digest: SHA-256 of its weights.
    """

    model: nn.Module
    backbone: Backbone
    epoch: int
    digest: str


def load_model(run: RunFolder, objective: Objective, checkpoint: str = "model") -> LoadedModel:
    """Build a run's model from its checkpoint.

    Args:
        run: that has one.
        objective: of the run.
        checkpoint: ``model``, or ``last`` for the last epoch.

    Raises:
        InputError: there is no such checkpoint, or it is of another model.
    """
    backbone = build_backbone(
        run.config.model.name,
        run.info.img_size,
        num_outputs=objective.num_outputs,
        global_pool=run.config.model.global_pool,
    )
    model = objective.build_model(backbone)
    with open_checkpoint(weights_in(run.path, checkpoint)) as opened:
        opened.load_into(model, backbone.timm_model)
        return LoadedModel(model, backbone, opened.header().epochs, opened.digest())


def _as_predictions(
    images: pd.DataFrame, scores: np.ndarray, objective: Objective, config: RunConfig
) -> pd.DataFrame:
    """The columns of predictions.csv: identifiers, targets, scores, then what can stratify."""
    table = images[["image_id", "patient_id", "exam_id", "laterality", "view"]]
    reported = objective.targets(images).T[: len(objective.target_columns)]
    for name, target in zip(objective.target_columns, reported, strict=True):
        # 0 and 1 as integers, and empty where one is missing.
        table = table.assign(**{name: pd.Series(target, dtype="Float32").convert_dtypes()})
    table = table.assign(
        **dict(zip(objective.score_columns, scores.T, strict=True)), split=images["split"]
    )
    if config.data.fold is not None:
        table["fold"] = config.data.fold
    # A column fold of the label table is not the fold of this split.
    kept_apart = (*MANIFEST_SCHEMA.names, *table.columns, "fold")
    further = [name for name in images if name not in kept_apart]
    for column in (*_STRATA, *further):
        table[column] = images[column]
    return table


def _write_predictions(file: Path, table: pd.DataFrame, made_of: dict[str, object]) -> None:
    told = file.with_suffix(".json")
    file.parent.mkdir(exist_ok=True)
    # Told last, and forgotten first: what is told is never another table's.
    told.unlink(missing_ok=True)
    with atomic_write(file) as beside:
        write_csv(table, beside)
    write_text(told, json.dumps(made_of, indent=2) + "\n")


def _read_scores(
    file: Path, made_of: dict[str, object], images: pd.DataFrame, objective: Objective
) -> npt.NDArray[np.float64] | None:
    """The scores (images, T) that ``predictions.csv`` holds; None where it is of something else."""
    try:
        told = load_json(file.with_suffix(".json").read_text(encoding="utf-8"))
        # Earlier versions tell the epoch alone.
        if {"weights": made_of["weights"], **told} != made_of:
            return None
        # As text, since pandas' own reading of numbers may be off by a bit.
        table = with_formulas(pd.read_csv(file, dtype=str))
        if table["image_id"].tolist() != images["image_id"].tolist():
            return None
        scores: npt.NDArray[np.float64] = (
            table[list(objective.score_columns)].to_numpy(dtype=object).astype(np.float64)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return scores


def _count_exclusions(cohort: Cohort) -> dict[str, int]:
    manifest = cohort.manifest
    exclusions = Counter(manifest.loc[manifest["status"] != Status.OK, "reason"])
    if cohort.unassigned:
        exclusions["in no part of the split"] = cohort.unassigned
    return exclusions


def join_folds(scored: Sequence[Scored]) -> pd.DataFrame:
    """The predictions to judge: of one run all, of several the test images of each.

    Raises:
        InputError: the runs rest on different splits, or two test the same fold.
    """
    if len(scored) == 1:
        return scored[0].table
    _refuse_joining([one.info for one in scored])
    tested = [one.table[one.table["split"] == Split.TEST] for one in scored]
    return pd.concat(tested, ignore_index=True).drop(columns="split")


def _refuse_joining(runs: Sequence[RunInfo]) -> None:
    if len({run.split_hash for run in runs}) > 1:
        raise InputError("the runs use different splits; evaluate them one by one.")
    folds = [run.fold for run in runs]
    if len(set(folds)) == len(folds):
        return
    if set(folds) == {None}:
        raise InputError(
            "the runs test the same images, since their split has no folds; evaluate them one by "
            "one, and compare their predictions: mammo-pd compare RUN RUN"
        )
    raise InputError(
        f"the runs test the folds {', '.join(map(str, folds))}; give one run for each fold, or "
        "one run alone."
    )


def validation_by_fold(scored: Sequence[Scored]) -> dict[str, pd.DataFrame] | None:
    """What each fold's model makes of its own validation images; None of one run alone.

    The images are tested in other folds.
    """
    if len(scored) == 1:
        return None
    return {
        str(one.info.fold): one.table[one.table["split"] == Split.VAL].drop(columns="split")
        for one in scored
    }
