"""The training loop, top to bottom: epochs of steps, validation on all patches, checkpoints.

Read `fit`, then `_fit` (a whole run), `_train_epoch` (an epoch) and `step.TrainingStep` (a step);
`RunState` is what a checkpoint holds, and `EpochMeter` counts and logs. The loop knows objective
and backbone only through their base classes. Everything random follows from (seed, epoch, image),
so a resumed run equals an uninterrupted one.
"""

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.metrics import log_loss
from torch import Tensor, nn

from mammo_pd import __version__
from mammo_pd.config import dump_config
from mammo_pd.data.loader import BatchLoader
from mammo_pd.errors import InputError
from mammo_pd.files import write_text
from mammo_pd.locks import locked
from mammo_pd.patches.sampler import Kept
from mammo_pd.progress import Progress
from mammo_pd.stopping import StopSignals
from mammo_pd.table_file import csv_text
from mammo_pd.terms import Level, ScoredPatches, Split
from mammo_pd.tracking import NoTracking, TrackedDataset, Tracker
from mammo_pd.training.averaging import WeightAverage
from mammo_pd.training.batch_size import DoesNotFitError
from mammo_pd.training.captured import CapturedWork, on_capture_stream
from mammo_pd.training.checkpoint import (
    load_weights,
    put_operating_points,
)
from mammo_pd.training.checkpoint_writer import CheckpointWriter
from mammo_pd.training.data_supply import StepClock, describe_shortage
from mammo_pd.training.devices import deterministic_kernels, seed_generators
from mammo_pd.training.epoch_meter import (
    EpochMeter,
    EpochProgress,
    no_longer_finite,
    peak_memory_gib,
)
from mammo_pd.training.journal import Journal
from mammo_pd.training.model_card import without_paths
from mammo_pd.training.objectives import Objective
from mammo_pd.training.objectives.contract import check_monitor, check_scores
from mammo_pd.training.operating_points import lock_operating_points
from mammo_pd.training.optimizer import (
    backbone_parameters,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)
from mammo_pd.training.run_state import MidwaySaver, RunState
from mammo_pd.training.runs import RunFolder, timestamp
from mammo_pd.training.scoring import score_batches
from mammo_pd.training.setup import RunSetup
from mammo_pd.training.step import TrainingStep, can_fuse, image_keys
from mammo_pd.wording import counted

# A training loss above this fraction of a constant score's counts as no progress.
_STANDSTILL = 0.98


def fit(setup: RunSetup, run: RunFolder) -> list[dict[str, float]]:
    """Train, validate and checkpoint, resuming from the last checkpoint if there is one.

    Args:
        setup: of the run.
        run: where checkpoints and history are written.

    Returns:
        One dictionary of metrics per epoch.

    Raises:
        InputError: the loss is no longer finite, or another process is training the run.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with the epoch saved as far as possible.
        DoesNotFitError: the batch does not fit in memory. A run without a checkpoint is removed, so
            that it is not mistaken for the latest run.
    """
    setup.introduce()
    with StopSignals() as signals, deterministic_kernels(setup.config):
        if not setup.fabric.is_global_zero:
            history = _fit(setup, run, NoTracking(), signals)
            _score_chosen(setup, run)
            return history
        try:
            return _fit_tracked(setup, run, signals)
        except DoesNotFitError:
            if not run.has_checkpoint:
                run.remove()
            raise


def fit_untracked(setup: RunSetup, run: RunFolder) -> list[dict[str, float]]:
    """Only the epochs of `fit`, for timing them: no MLflow, no introduction, no final scoring.

    Arguments, return value and errors are those of `fit`.
    """
    with StopSignals() as signals, deterministic_kernels(setup.config):
        return _fit(setup, run, NoTracking(), signals)


def _fit_tracked(setup: RunSetup, run: RunFolder, signals: StopSignals) -> list[dict[str, float]]:
    with locked(run.lock), Journal(run, setup.say) as tracker:
        run.remove_leftovers()
        _describe(setup, tracker)
        with tracker.watching_the_machine():
            history = _fit(setup, run, tracker, signals)
        scores = _score_chosen(setup, run)
        of_chosen = setup.objective.metrics(setup.parts[Split.VAL], scores)
        # Before MLflow takes a copy of the file.
        if not setup.objective.is_pretext:
            _lock_operating_points(setup, run, scores)
        tracker.log({f"chosen_{name}": value for name, value in of_chosen.items()}, step=0)
        table = csv_text(pd.DataFrame(history))
        write_text(run.history, table)
        tracker.keep("history.csv", table)
        # MLflow's form of a model scores image by image.
        scores_images = setup.objective.score_columns and setup.objective.judged is Level.IMAGE
        if scores_images and not setup.objective.is_pretext:
            tracker.keep_model(setup.objective.score_columns)
    tracker.run.update(finished=timestamp(), validation=of_chosen)
    choice = setup.config.training.choose_epoch
    chosen = chosen_epoch(history, setup.objective, choice)
    score_on = ScoredPatches(setup.config.patch_dropout.score_on)
    setup.say(_chosen_line(choice, chosen, of_chosen, setup.objective, score_on))
    _warn_if_chosen_had_learnt_nothing(setup, history, chosen)
    return history


def _fit(
    setup: RunSetup, run: RunFolder, tracker: Tracker, signals: StopSignals
) -> list[dict[str, float]]:
    fabric, training, objective = setup.fabric, setup.config.training, setup.objective
    timm_model = setup.backbone.timm_model

    # ---- optimiser
    groups = parameter_groups(
        setup.model,
        timm_model,
        weight_decay=training.weight_decay,
        layer_decay=training.layer_decay,
    )
    captured_on = setup.device if setup.captures_steps else None
    optimizer = make_optimizer(groups, training.lr, fused=can_fuse(fabric), captured_on=captured_on)
    frozen, backbone = setup.is_frozen(0), backbone_parameters(timm_model)
    step = _make_step(setup, optimizer, backbone, frozen=frozen)

    # ---- checkpoint: resume where a stopped run left off
    state = RunState(setup, optimizer)
    history = state.history
    progress = state.restore(run, step.optimizer)
    writer = CheckpointWriter(run)
    saver = MidwaySaver(setup, run, state, writer, signals)

    # ---- data
    batches = setup.train_batches()
    train_loader = setup.loader(setup.train_set, batches)
    val_loader = setup.loader(setup.val_set, setup.val_batches(on_all=not setup.validates_on_some))

    # ---- epochs
    mark = time.perf_counter() - progress.seconds
    clock: StepClock | None = StepClock(setup.device)
    with writer, closing(train_loader), closing(val_loader):
        for epoch in range(len(history), training.epochs):
            if _is_stale(history, objective, training.patience):
                setup.say(f"stopping early: no better epoch in the last {training.patience}")
                break
            if setup.is_frozen(epoch) != frozen:
                frozen = setup.is_frozen(epoch)
                step = _make_step(setup, optimizer, backbone, frozen=frozen)
            # Train, then validate with the averaged weights.
            batches.epoch, batches.first = epoch, progress.steps
            val_loader.start()
            try:
                done = _train_epoch(
                    setup, step, train_loader, epoch, tracker, state.average, progress, saver, clock
                )
                if epoch + 1 < training.epochs:
                    batches.epoch, batches.first = epoch + 1, 0
                    train_loader.start()
                with saver.saving_if_interrupted(done), state.average.in_place():
                    kept = setup.val_kept if setup.validates_on_some else None
                    scores = _validate(setup, step.model, val_loader, kept, step.captured)
            except torch.OutOfMemoryError as error:
                raise DoesNotFitError(setup) from error
            if not objective.is_pretext and np.isnan(scores).any():
                # The epoch's last update: the loss of each step was finite.
                raise no_longer_finite("the scores of validation images are", f"epoch {epoch + 1}")
            progress = EpochProgress()
            # Record what came of it, and advise.
            metrics = _epoch_metrics(setup, epoch, done, scores, began=mark)
            mark += metrics["epoch_seconds"]
            history.append(metrics)
            tracker.log(metrics, step=(epoch + 1) * len(batches))
            setup.say(_epoch_line(metrics, objective.monitor, training.epochs))
            if clock is not None:
                _say_if_data_is_short(setup, train_loader, clock, done)
                clock = None  # once is enough
            due = _first_advice(setup)
            if epoch + 1 == due < training.epochs:
                _warn_if_nothing_is_learnt(setup, metrics["train_loss"], scores, due)
            # Hand the checkpoint to the writer; a signal then ends the run between two epochs.
            if fabric.is_global_zero:
                with signals.saving():
                    if chosen_epoch(history, objective, training.choose_epoch) == len(history):
                        # The writer copies the weights, so the average need not stay in place.
                        with state.average.in_place():
                            writer.take_chosen(state.weights(metrics))
                    writer.save(state.after_epoch)
            fabric.barrier()
            try:
                saver.after_epoch()
            except KeyboardInterrupt:
                writer.flush(state.after_epoch)
                raise
        writer.flush(state.after_epoch)
    return history


def _make_step(
    setup: RunSetup,
    optimizer: torch.optim.Optimizer,
    backbone: list[nn.Parameter],
    *,
    frozen: bool,
) -> TrainingStep:
    """Set up model and optimiser for a phase: DDP must know which weights are trained in it."""
    for weight in backbone:
        weight.requires_grad_(not frozen)
    with on_capture_stream(setup.device) if setup.captures_steps else nullcontext():
        model, wrapped = setup.fabric.setup(setup.model, optimizer)
    clip_norm = setup.config.training.clip_norm
    return TrainingStep(
        setup.fabric,
        model,
        wrapped,
        setup.sampler,
        setup.objective,
        clip_norm,
        # New in each phase: a graph is captured for a fixed set of trained weights.
        setup.make_captured() if setup.captures_steps else None,
    )


def chosen_epoch(history: list[dict[str, float]], objective: Objective, choice: str) -> int:
    """The epoch, from 1, whose weights are kept.

    Args:
        history: metrics of each epoch.
        objective: whose monitor judges them.
        choice: ``last``, or ``best`` by the monitor; of equals the last.
    """
    if choice == "last":
        return len(history)
    values = _monitored(history, objective)
    return len(values) - int(np.argmax(values[::-1]))


def _monitored(history: list[dict[str, float]], objective: Objective) -> list[float]:
    """The monitor's values, larger being better."""
    sign = -1 if objective.monitor.endswith("loss") else 1
    return [sign * metrics[objective.monitor] for metrics in history]


def _is_stale(history: list[dict[str, float]], objective: Objective, patience: int | None) -> bool:
    if patience is None or not history:
        return False
    # The first of equals: no change is no improvement.
    first_best = int(np.argmax(_monitored(history, objective))) + 1
    return len(history) - first_best >= patience


def _score_chosen(setup: RunSetup, run: RunFolder) -> npt.NDArray[np.float64]:
    """Score the validation images with the weights that are kept, as `predict` does: (images, T).

    A pretext task, which predicts dropped patches, is scored on the kept ones. The model is left
    with these weights.
    """
    if setup.fabric.is_global_zero:
        load_weights(run.chosen, setup.model, setup.backbone.timm_model)
    if setup.fabric.world_size > 1:
        for value in setup.model.state_dict().values():
            torch.distributed.broadcast(value, 0)
    on_all = not setup.objective.is_pretext
    loader = setup.loader(setup.val_set, setup.val_batches(on_all=on_all))
    model = setup.fabric.setup_module(setup.model)
    return _validate(setup, model, loader, None if on_all else setup.val_kept)


def _epoch_metrics(
    setup: RunSetup,
    epoch: int,
    done: EpochProgress,
    scores: npt.NDArray[np.float64],
    *,
    began: float,
) -> dict[str, float]:
    """One row of history.csv.

    Args:
        setup: of the run.
        epoch: counted from 0.
        done: all of its steps.
        scores: of the validation images.
        began: when the epoch before ended. The epoch's seconds count from there, so that they hold
            validation and the checkpoints of that epoch too.
    """
    judged = setup.objective.metrics(setup.parts[Split.VAL], scores)
    check_monitor(setup.objective, judged)
    metrics = {
        "epoch": epoch + 1,
        "train_loss": done.loss / done.steps,
        "train_images_per_second": done.images / done.seconds,
        "train_wait_share": done.waited / done.seconds,
        "train_memory_gib": peak_memory_gib(setup.device),
        **judged,
    }
    seconds = time.perf_counter() - began
    return metrics | {
        "epoch_seconds": seconds,
        "epoch_images_per_second": done.images / seconds,
    }


def _say_if_data_is_short(
    setup: RunSetup, loader: BatchLoader, clock: StepClock, done: EpochProgress
) -> None:
    """Say by how much the disk is too slow for the steps of the epoch that was timed."""
    images_per_step = done.images / done.steps / setup.fabric.world_size
    shortage = describe_shortage(
        loader.read, clock.seconds(), images_per_step, len(setup.train_set)
    )
    if shortage is not None:
        setup.say(shortage)


def _lock_operating_points(
    setup: RunSetup, run: RunFolder, scores: npt.NDArray[np.float64]
) -> None:
    """Choose them on the validation images and store them in the checkpoint, for `predict`."""
    try:
        points = lock_operating_points(setup.objective, setup.parts[Split.VAL], scores)
    except InputError as error:
        # For instance an objective whose scores are not probabilities.
        setup.say(f"warning: no thresholds were locked for predict: {error}")
        return
    if points:
        put_operating_points(run.chosen, points)


def _first_advice(setup: RunSetup) -> int:
    """Epoch after which it is said that nothing was learnt; not in warm-up, which learns little."""
    training = setup.config.training
    return max(math.ceil(training.epochs / 3), math.floor(training.warmup_epochs) + 1)


def _warn_if_nothing_is_learnt(
    setup: RunSetup, loss: float, scores: npt.NDArray[np.float64], epochs: int
) -> None:
    chance = setup.objective.chance_loss(setup.train_set.judged_targets.numpy())
    # The training loss is the mean over an epoch, of augmented images with some of their patches.
    if chance is not None and loss > _STANDSTILL * chance and not _beat_a_constant(setup, scores):
        start = "" if setup.config.model.weights else "--weights of a pretrained model with "
        setup.say(
            f"warning: after {epochs} epochs the training loss, {loss:.3f}, is hardly, if at all, "
            f"below that of a constant score, {chance:.3f}: the model has learnt nothing yet. Try "
            f"--lr ten times lower or higher, {start}training.layer_decay=0.65, weaker "
            "augmentation, a higher --keep, or more --epochs; and look at the images and labels "
            "(mammo-pd preprocess --contact-sheet)"
        )


def _beat_a_constant(setup: RunSetup, scores: npt.NDArray[np.float64]) -> bool:
    """Whether validation scores of a 0/1 target have a lower loss than its share of positives."""
    objective = setup.objective
    targets = objective.targets(setup.parts[Split.VAL])
    for _, target, score in zip(objective.target_columns, targets.T, scores.T, strict=False):
        known = ~np.isnan(target)
        target, score = target[known], score[known]
        if len(np.unique(target)) == 2:
            constant = np.full_like(score, target.mean())
            if log_loss(target, score) < _STANDSTILL * log_loss(target, constant):
                return True
    return False


def _warn_if_chosen_had_learnt_nothing(
    setup: RunSetup, history: list[dict[str, float]], chosen: int
) -> None:
    """Where validation images are few, an epoch before anything was learnt may rank them best."""
    chance = setup.objective.chance_loss(setup.train_set.judged_targets.numpy())
    if chance is None:
        return
    then, last = history[chosen - 1]["train_loss"], history[-1]["train_loss"]
    epochs = setup.config.training.epochs
    # Patience ended training before _warn_if_nothing_is_learnt had its turn.
    ended_first = len(history) < min(_first_advice(setup), epochs)
    if ended_first and min(then, last) > _STANDSTILL * chance:
        setup.say(
            f"warning: training.patience ended training after {len(history)} of "
            f"{counted(epochs, 'epoch')}, before anything was learnt: the training loss of the "
            f"best epoch by validation, {chosen}, is {then:.3f}, and that of a constant score "
            f"{chance:.3f}. Leave out training.patience, or raise it"
        )
    if last <= _STANDSTILL * chance < then:
        setup.say(
            f"warning: the best epoch by validation, {chosen} of {len(history)}, was chosen before "
            f"much was learnt: its training loss, {then:.3f}, has hardly fallen below that of a "
            f"constant score, {chance:.3f}; in the last epoch it is {last:.3f}. On few validation "
            "images such a choice is mostly chance; leave out training.choose_epoch=best, or score "
            "the last epoch: mammo-pd evaluate RUN --checkpoint last"
        )


def _train_epoch(
    setup: RunSetup,
    step: TrainingStep,
    loader: BatchLoader,
    epoch: int,
    tracker: Tracker,
    average: WeightAverage,
    before: EpochProgress,
    saver: MidwaySaver,
    clock: StepClock | None,
) -> EpochProgress:
    """One pass over the training images, or the rest of one; returns the finished epoch."""
    training, world = setup.config.training, setup.fabric.world_size
    batches = setup.train_batches()
    batches.epoch = epoch
    steps, turns, sizes = len(batches), batches.turns(), batches.sizes()
    warmup = round(training.warmup_epochs * steps)

    def rate_of(number: int) -> float:
        return learning_rate(epoch * steps + number, training.epochs * steps, warmup, training.lr)

    step.model.train()
    if setup.is_frozen(epoch):
        # Frozen features are those of evaluation: without stochastic depth.
        setup.backbone.eval()
    last = before.steps - 1
    meter = EpochMeter(
        setup, tracker, loader, epoch, steps, before, at=(last, rate_of(max(0, last)))
    )
    with meter.shown:
        for number, batch in enumerate(loader, start=before.steps):
            done = epoch * steps + number
            # Dropout inside a model draws from torch's own generator.
            seed_generators(_mix_seed(training.seed, done, setup.fabric.global_rank), setup.device)
            rate = rate_of(number)
            set_learning_rate(step.optimizer, rate)
            keys = image_keys(
                setup.train_set, batch.rows, training.seed, epoch, setup.device, turns[number]
            )
            num_keep, parts = setup.keep_at(epoch, number)
            # Whole breasts or exams cannot be shared evenly: each process counts by its images.
            weight = len(batch) * world / sizes[number]
            with clock.timing() if clock is not None else nullcontext():
                loss = step(batch, keys, num_keep, parts, weight)
            average.update(done)
            meter.add(loss, number, rate, sizes[number])
            saver.after_step(number + 1, meter.progress, last=number + 1 == steps)
        meter.finish()
        return meter.progress(steps)


def _validate(
    setup: RunSetup,
    model: nn.Module,
    loader: BatchLoader,
    kept: Callable[[Tensor], Kept] | None,
    captured: CapturedWork | None = None,
) -> npt.NDArray[np.float64]:
    """Score every validation image, on all or some patches: (images, T), in data set order."""
    model.eval()
    columns = len(setup.objective.score_columns)
    # An empty start, so that a process without any image has something to concatenate.
    scored = [torch.empty(0, columns, device=setup.device)]
    rows = [torch.empty(0, dtype=torch.int64)]
    say = setup.say if setup.fabric.is_global_zero else None
    with Progress("validation", len(setup.val_set), say, leave=False) as progress:
        for index, scores in score_batches(
            model, setup.sampler, setup.objective, loader, setup.device, kept, captured
        ):
            check_scores(setup.objective, tuple(scores.shape), len(index))
            rows.append(index)
            scored.append(scores)
            # The others are about as far.
            progress.update(len(index) * setup.fabric.world_size)
    own = (torch.cat(scored).cpu(), torch.cat(rows))
    gathered: list[Any] = [own]
    if setup.fabric.world_size > 1:
        # Each rank scores its own shard; shards may differ by one image.
        gathered = [None] * setup.fabric.world_size
        torch.distributed.all_gather_object(gathered, own)
    ordered = np.empty((len(setup.val_set), columns))
    for shard, index in gathered:
        ordered[index.numpy()] = shard.numpy()
    return ordered


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up over ``warmup`` steps, then half a cosine down to 0 at ``steps``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def _describe(setup: RunSetup, tracker: Journal) -> None:
    """Log the run's configuration, environment and data sets; its metrics follow."""
    config = without_paths(setup.config)
    tracker.describe(
        parameters={
            **config.model_dump(mode="json"),
            "img_size": f"{setup.img_size[0]}x{setup.img_size[1]}",
            "num_tokens": setup.backbone.num_tokens,
            "num_keep": setup.num_keep,
        },
        tags={
            "split_hash": setup.cohort.split.hash,
            "store_fingerprint": setup.cohort.fingerprint,
            "mammo_pd_version": __version__,
            **{f"environment.{name}": str(v) for name, v in setup.environment.items()},
        },
    )
    tracker.keep("config.yaml", dump_config(config))
    tracker.use(_tracked_datasets(setup))


def _tracked_datasets(setup: RunSetup) -> list[TrackedDataset]:
    """The training and validation parts of the split, identified by hashes and counts."""
    cohort = setup.cohort
    fold = "" if cohort.fold is None else f", fold {cohort.fold}"
    # The same split with another fold or other labels is a different data set.
    digest = hashlib.sha256(f"{cohort.split.hash}{fold}{setup.labels_hash}".encode()).hexdigest()
    counts = setup.counts
    return [
        TrackedDataset(
            name=f"{cohort.split.name}{fold}: {part}",
            digest=digest,
            context=context,
            source={"store_fingerprint": cohort.fingerprint, "split_hash": cohort.split.hash},
            profile=counts[part],
        )
        for part, context in ((Split.TRAIN, "training"), (Split.VAL, "validation"))
    ]


def _mix_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def _epoch_line(metrics: dict[str, float], monitor: str, epochs: int) -> str:
    return (
        f"epoch {metrics['epoch']:.0f}/{epochs}  loss {metrics['train_loss']:.3f}  "
        f"{monitor} {metrics[monitor]:.3f}  {metrics['train_images_per_second']:.0f} images/s "
        f"({metrics['epoch_images_per_second']:.0f} with validation)  "
        f"{metrics['train_memory_gib']:.1f} GiB"
    )


def _chosen_line(
    choice: str,
    epoch: int,
    metrics: dict[str, float],
    objective: Objective,
    score_on: ScoredPatches,
) -> str:
    on = "all patches" if score_on is ScoredPatches.ALL else "patches with breast"
    on = "dropped patches" if objective.is_pretext else on
    value = metrics[objective.monitor]
    return f"{choice} epoch, {epoch}; on {on}: {objective.monitor} {value:.3f}"
