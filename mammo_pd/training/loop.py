"""The training loop, top to bottom: epochs of steps, validation on all patches, checkpoints.

Read `fit`, then `_fit` (a whole run), `_train_epoch` (an epoch) and `training.step` (a step); the
classes below them save, count and log. The loop knows the objective and the backbone only through
their base classes. Everything random follows from (seed, epoch, image), so a resumed run equals an
uninterrupted one.
"""

import hashlib
import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mammo_pd import __version__
from mammo_pd.config import dump_config
from mammo_pd.data.loader import BatchLoader
from mammo_pd.errors import InputError
from mammo_pd.files import write_text
from mammo_pd.locks import locked
from mammo_pd.patches.sampler import Kept
from mammo_pd.stopping import StopSignals
from mammo_pd.table_file import csv_text
from mammo_pd.terms import Level, Split
from mammo_pd.tracking import NoTracking, TrackedDataset, Tracker
from mammo_pd.training.averaging import WeightAverage
from mammo_pd.training.batch_size import DoesNotFitError
from mammo_pd.training.captured import CapturedWork, on_capture_stream
from mammo_pd.training.checkpoint import (
    Contents,
    is_finite,
    load_state,
    load_weights,
    newest_state,
    put_operating_points,
    state_of,
    weights_of,
)
from mammo_pd.training.checkpoint_writer import CheckpointWriter
from mammo_pd.training.data_supply import StepClock, describe_shortage
from mammo_pd.training.journal import Journal
from mammo_pd.training.model_card import without_paths
from mammo_pd.training.objectives import Objective
from mammo_pd.training.operating_points import lock_operating_points
from mammo_pd.training.optimizer import (
    backbone_parameters,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)
from mammo_pd.training.runs import RunFolder, timestamp
from mammo_pd.training.scoring import score_batches
from mammo_pd.training.setup import RunSetup
from mammo_pd.training.step import TrainingStep, can_fuse, image_keys
from mammo_pd.wording import counted

# A training loss above this fraction of a constant score's counts as no progress.
_STANDSTILL = 0.98
# Steps between reads of the loss: reading it waits for the device.
_LOG_EVERY = 20


@dataclass(frozen=True)
class EpochProgress:
    """How far an epoch has come, as recorded in a checkpoint.

    Attributes:
        steps: completed.
        images: seen in those steps, over all processes.
        seconds: spent on those steps.
        waited: the part of those seconds spent waiting for the loader.
        loss: sum of the losses that have been read from the device.
        window: losses of the latest steps, not yet read.
    """

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    loss: float = 0.0
    window: list[float] = field(default_factory=list)


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
    with StopSignals() as signals:
        if not setup.fabric.is_global_zero:
            history = _fit(setup, run, NoTracking(), signals)
            _score_best(setup, run)
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
    with StopSignals() as signals:
        return _fit(setup, run, NoTracking(), signals)


def _fit_tracked(setup: RunSetup, run: RunFolder, signals: StopSignals) -> list[dict[str, float]]:
    with locked(run.lock), Journal(run, setup.say) as tracker:
        run.remove_leftovers()
        _describe(setup, tracker)
        with tracker.watching_the_machine():
            history = _fit(setup, run, tracker, signals)
        scores = _score_best(setup, run)
        of_best = setup.objective.metrics(setup.parts[Split.VAL], scores)
        # Before MLflow takes a copy of the file.
        if not setup.objective.is_pretext:
            _lock_operating_points(setup, run, scores)
        tracker.log({f"best_{name}": value for name, value in of_best.items()}, step=0)
        table = csv_text(pd.DataFrame(history))
        write_text(run.history, table)
        tracker.keep("history.csv", table)
        # MLflow's form of a model scores image by image.
        scores_images = setup.objective.score_columns and setup.objective.judged is Level.IMAGE
        if scores_images and not setup.objective.is_pretext:
            tracker.keep_model(setup.objective.score_columns)
    tracker.run.update(finished=timestamp(), validation=of_best)
    best = best_epoch(history, setup.objective)
    setup.say(_best_line(best, of_best, setup.objective))
    _warn_if_best_had_learnt_nothing(setup, history, best)
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
    state = _RunState(setup, optimizer)
    history = state.history
    progress = state.restore(run, step.optimizer)
    writer = CheckpointWriter(run)
    saver = _MidwaySaver(setup, run, state, writer, signals)

    # ---- data
    batches = setup.train_batches()
    train_loader = setup.loader(setup.train_set, batches)
    val_loader = setup.loader(setup.val_set, setup.val_batches(on_all=not setup.validates_on_some))

    # ---- epochs
    mark = time.perf_counter() - progress.seconds
    clock: StepClock | None = StepClock(setup.device)
    with writer:
        for epoch in range(len(history), training.epochs):
            if _is_stale(history, objective, training.patience):
                setup.say(f"stopping early: no better epoch in the last {training.patience}")
                break
            if setup.is_frozen(epoch) != frozen:
                frozen = setup.is_frozen(epoch)
                step = _make_step(setup, optimizer, backbone, frozen=frozen)
            # Train, then validate with the averaged weights.
            batches.epoch, batches.first = epoch, progress.steps
            try:
                done = _train_epoch(
                    setup, step, train_loader, epoch, tracker, state.average, progress, saver, clock
                )
                with saver.saving_if_interrupted(done), state.average.in_place():
                    kept = setup.val_kept if setup.validates_on_some else None
                    scores = _validate(setup, step.model, val_loader, kept, step.captured)
            except torch.OutOfMemoryError as error:
                raise DoesNotFitError(setup) from error
            if not objective.is_pretext and np.isnan(scores).any():
                # The epoch's last update: the loss of each step was finite.
                raise _no_longer_finite("the scores of validation images are", f"epoch {epoch + 1}")
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
            # Not during warm-up, which learns little, nor at the end, when it is too late to act.
            due = max(math.ceil(training.epochs / 3), math.floor(training.warmup_epochs) + 1)
            if epoch + 1 == due < training.epochs:
                _warn_if_nothing_is_learnt(setup, metrics["train_loss"], due)
            # Hand the checkpoint to the writer; a signal then ends the run between two epochs.
            if fabric.is_global_zero:
                with signals.saving():
                    if best_epoch(history, objective) == len(history):
                        # The writer copies the weights, so the average need not stay in place.
                        with state.average.in_place():
                            writer.take_best(state.weights(metrics))
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


def best_epoch(history: list[dict[str, float]], objective: Objective) -> int:
    """The epoch, from 1, that the objective's monitor chooses; the last of equals."""
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


def _score_best(setup: RunSetup, run: RunFolder) -> npt.NDArray[np.float64]:
    """Score the validation images with the best epoch's weights, on every patch: (images, T).

    A pretext task, which predicts dropped patches, is scored on the kept ones. The model is left
    with the best weights.
    """
    if setup.fabric.is_global_zero:
        load_weights(run.best, setup.model, setup.backbone.timm_model)
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
    metrics = {
        "epoch": epoch + 1,
        "train_loss": done.loss / done.steps,
        "train_images_per_second": done.images / done.seconds,
        "train_wait_share": done.waited / done.seconds,
        "train_memory_gib": peak_memory_gib(setup.device),
        **setup.objective.metrics(setup.parts[Split.VAL], scores),
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
        put_operating_points(run.best, points)


def _no_longer_finite(what: str, when: str) -> InputError:
    return InputError(
        f"{what} no longer finite in {when}; "
        "start again with a lower --lr (or from the last checkpoint: --resume)."
    )


def _warn_if_nothing_is_learnt(setup: RunSetup, loss: float, epochs: int) -> None:
    chance = setup.objective.chance_loss(setup.train_set.judged_targets.numpy())
    if chance is not None and loss > _STANDSTILL * chance:
        start = "" if setup.config.model.weights else "--weights of a pretrained model with "
        setup.say(
            f"warning: after {epochs} epochs the training loss, {loss:.3f}, is hardly, if at all, "
            f"below that of a constant score, {chance:.3f}: the model has learnt nothing yet. Try "
            f"--lr ten times lower or higher, {start}training.layer_decay=0.65, weaker "
            "augmentation, a higher --keep, or more --epochs; and look at the images and labels "
            "(mammo-pd preprocess --contact-sheet)"
        )


def _warn_if_best_had_learnt_nothing(
    setup: RunSetup, history: list[dict[str, float]], best: int
) -> None:
    """Where validation images are few, an epoch before anything was learnt may rank them best."""
    chance = setup.objective.chance_loss(setup.train_set.judged_targets.numpy())
    if chance is None:
        return
    then, last = history[best - 1]["train_loss"], history[-1]["train_loss"]
    if last <= _STANDSTILL * chance < then:
        setup.say(
            f"warning: the best epoch by validation, {best} of {len(history)}, was chosen before "
            f"much was learnt: its training loss, {then:.3f}, has hardly fallen below that of a "
            f"constant score, {chance:.3f}; in the last epoch it is {last:.3f}. On few validation "
            "images such a choice is mostly chance; to score the last epoch: mammo-pd evaluate RUN "
            "--checkpoint last"
        )


def _train_epoch(
    setup: RunSetup,
    step: TrainingStep,
    loader: BatchLoader,
    epoch: int,
    tracker: Tracker,
    average: WeightAverage,
    before: EpochProgress,
    saver: "_MidwaySaver",
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
    meter = _EpochMeter(
        setup, tracker, loader, epoch, steps, before, at=(last, rate_of(max(0, last)))
    )
    with meter.bar:
        for number, batch in enumerate(loader, start=before.steps):
            done = epoch * steps + number
            # Dropout inside a model draws from torch's own generator.
            torch.manual_seed(_mix_seed(training.seed, done, setup.fabric.global_rank))
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
            saver.after_step(number + 1, meter.progress)
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
    for index, scores in score_batches(
        model, setup.sampler, setup.objective, loader, setup.device, kept, captured
    ):
        rows.append(index)
        scored.append(scores)
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


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: by the GPU's allocator, or resident on a CPU; in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class _RunState:
    """What a checkpoint holds: weights, their average, the optimiser's state and the history.

    Attributes:
        history: the metrics of each epoch that is done.
        average: of the weights.

    Args:
        setup: of the run, its model on its device.
        optimizer: as it was made, before Fabric wrapped it.
    """

    def __init__(self, setup: RunSetup, optimizer: torch.optim.Optimizer) -> None:
        self.history: list[dict[str, float]] = []
        self.average = WeightAverage(setup.model, setup.config.training.ema_decay)
        self._setup = setup
        self._optimizer = optimizer
        self._card = setup.card

    def restore(self, run: RunFolder, optimizer: torch.optim.Optimizer) -> EpochProgress:
        """Load the run's newest checkpoint into model, optimiser and this; nothing if it has none.

        Args:
            run: of the checkpoints.
            optimizer: set up by Fabric.

        Returns:
            How far the epoch has come that is to be trained next.
        """
        newest = newest_state(run.last, run.midway)
        if newest is None:
            return EpochProgress()
        setup = self._setup
        state = load_state(newest, setup.model, optimizer, self.average)
        self.history.extend(state["history"])
        progress = EpochProgress(**state.get("progress", {}))
        # Checkpoints of earlier versions lack the scale of the loss in fp16.
        if state.get("precision"):
            setup.fabric.strategy.precision.load_state_dict(state["precision"])
        within = f" and {counted(progress.steps, 'step')}" if progress.steps else ""
        epochs = setup.config.training.epochs
        setup.say(f"resuming after epoch {len(self.history)} of {epochs}{within}")
        return progress

    def after_epoch(self) -> Contents:
        """The state between two epochs."""
        return self.within_epoch(EpochProgress())

    def within_epoch(self, progress: EpochProgress) -> Contents:
        """The state after some steps of the epoch that follows the history."""
        facts = {
            "history": self.history,
            "progress": asdict(progress),
            "precision": self._setup.fabric.strategy.precision.state_dict(),
        }
        return state_of(self._setup.model, self._optimizer, self.average, facts, self._card)

    def weights(self, metrics: dict[str, float]) -> Contents:
        """The weights that are in the model now, not copied, with their epoch's metrics."""
        timm_model = self._setup.backbone.timm_model
        return weights_of(self._setup.model, timm_model, metrics, self._card)


class _MidwaySaver:
    """Saves within an epoch: when a signal asks for it, or the last save was too long ago.

    Args:
        setup: of the run.
        run: takes the checkpoint.
        state: what is saved.
        writer: of the checkpoints between epochs, which may still be writing the best weights.
        signals: of this process.
    """

    def __init__(
        self,
        setup: RunSetup,
        run: RunFolder,
        state: _RunState,
        writer: CheckpointWriter,
        signals: StopSignals,
    ) -> None:
        minutes = setup.config.training.checkpoint_minutes
        self._setup = setup
        self._run = run
        self._state = state
        self._writer = writer
        self._signals = signals
        self._seconds = math.inf if minutes is None else 60 * minutes
        # Beside other processes only where all of them have read the same losses.
        self._every = 1 if setup.fabric.world_size == 1 else _LOG_EVERY
        self._saved = time.perf_counter()

    def after_epoch(self) -> None:
        """Count the epoch's own checkpoint as the one requested, and end if that was requested.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM.
        """
        self._signals.take_request()
        self._saved = time.perf_counter()
        self._signals.raise_if_ending()

    def after_step(self, steps: int, progress: Callable[[int], EpochProgress]) -> None:
        """Save if it is time, and end the training if a signal asked for it.

        Args:
            steps: completed in this epoch.
            progress: describes the epoch after that many steps.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM.
        """
        if steps % self._every:
            return
        # In this order: the request must be taken even if a save is due anyway.
        if self._signals.take_request() or time.perf_counter() - self._saved > self._seconds:
            self._save(progress(steps))
            self._saved = time.perf_counter()
        self._signals.raise_if_ending()

    def _save(self, progress: EpochProgress) -> None:
        # Weights that are no longer finite are not saved; the loop will soon report the loss.
        if self._setup.fabric.is_global_zero and is_finite(self._setup.model):
            with self._signals.saving():
                # First the best weights: no saved history may name an epoch whose weights are lost.
                self._writer.flush_best()
                self._state.within_epoch(progress).write(self._run.midway)

    @contextmanager
    def saving_if_interrupted(self, done: EpochProgress) -> Iterator[None]:
        """Save the finished epoch if its validation, the block, is interrupted."""
        try:
            yield
        except KeyboardInterrupt:
            self._save(done)
            raise


class _EpochMeter:
    """How far an epoch has come: shown on a bar, logged, and told to checkpoints.

    Args:
        setup: of the run.
        tracker: takes losses and learning rates.
        loader: of the epoch's batches, which knows how long it was waited for.
        epoch: counted from 0.
        steps: of the whole epoch.
        before: what was done of it before the run was stopped.
        at: number and learning rate of the last step of that.
    """

    def __init__(
        self,
        setup: RunSetup,
        tracker: Tracker,
        loader: BatchLoader,
        epoch: int,
        steps: int,
        before: EpochProgress,
        *,
        at: tuple[int, float],
    ) -> None:
        self._device = setup.device
        self._tracker = tracker
        self._loader = loader
        self._epoch = epoch
        self._steps = steps
        self._before = before
        self._images = before.images
        self._started = time.perf_counter() - before.seconds
        self._losses = _AsyncLosses(setup.fabric, self._report, before, at)
        self.bar = tqdm(
            total=steps,
            initial=before.steps,
            desc=f"epoch {epoch + 1}",
            unit="step",
            leave=False,
            # None shows it on a terminal only.
            disable=None if setup.fabric.is_global_zero else True,
        )

    def add(self, loss: Tensor, number: int, rate: float, images: int) -> None:
        """Count one step; its loss is read later, since reading it waits for the device."""
        self._images += images
        self._losses.add(loss, number, rate)
        self.bar.update()

    def finish(self) -> None:
        """Read the losses that are left."""
        self._losses.finish()

    def progress(self, steps: int) -> EpochProgress:
        """What a checkpoint notes after that many steps of the epoch."""
        total, window = self._losses.state()
        seconds = time.perf_counter() - self._started
        waited = self._before.waited + self._loader.waited
        return EpochProgress(steps, self._images, seconds, waited, total, window)

    def _report(self, mean: float, number: int, rate: float) -> None:
        if not math.isfinite(mean):
            raise _no_longer_finite("the loss is", f"epoch {self._epoch + 1}, by step {number + 1}")
        step = self._epoch * self._steps + number + 1
        self._tracker.log({"step_loss": mean, "learning_rate": rate}, step=step)
        images_per_second = self._images / (time.perf_counter() - self._started)
        memory = peak_memory_gib(self._device)
        self.bar.set_postfix_str(
            f"loss {mean:.3f}, {images_per_second:.0f} images/s, {memory:.1f} GiB"
        )


class _AsyncLosses:
    """Asynchronous loss logging: a window of losses is copied while the next one is computed.

    Args:
        fabric: of the run.
        report: called with the mean of a window, the number of its last step and its learning rate.
        before: the part of the epoch done before the run was stopped.
        at: number and learning rate of its last step.
    """

    def __init__(
        self,
        fabric: Any,
        report: Callable[[float, int, float], None],
        before: EpochProgress,
        at: tuple[int, float],
    ) -> None:
        self._fabric = fabric
        self._report = report
        self._window = [torch.tensor(loss, device=fabric.device) for loss in before.window]
        self._at = at
        self._copied: tuple[Tensor, torch.cuda.Event | None, int, float] | None = None
        self._total = before.loss

    def add(self, loss: Tensor, number: int, rate: float) -> None:
        self._window.append(loss)
        self._at = (number, rate)
        if len(self._window) == _LOG_EVERY:
            self._copy()

    def finish(self) -> None:
        """Read the remaining losses."""
        if self._window:
            self._copy()
        self._read()

    def state(self) -> tuple[float, list[float]]:
        """The sum of the losses read so far, and the window of those not yet read."""
        # Reading a window in flight now rather than later changes no sum.
        self._read()
        return self._total, [loss.item() for loss in self._window]

    def _copy(self) -> None:
        # The previous window was computed long ago, so reading it does not wait.
        self._read()
        # The mean across ranks: each holds an equal share of the images.
        values = self._fabric.all_reduce(torch.stack(self._window), reduce_op="mean")
        self._window.clear()
        event = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            event = torch.cuda.current_stream().record_event()
        self._copied = (values, event, *self._at)

    def _read(self) -> None:
        if self._copied is None:
            return
        values, event, number, rate = self._copied
        self._copied = None
        if event is not None:
            event.synchronize()
        losses = values.tolist()
        self._total += sum(losses)
        self._report(sum(losses) / len(losses), number, rate)


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


def _best_line(epoch: int, metrics: dict[str, float], objective: Objective) -> str:
    on = "dropped patches" if objective.is_pretext else "all patches"
    return f"best epoch {epoch}; on {on}: {objective.monitor} {metrics[objective.monitor]:.3f}"
