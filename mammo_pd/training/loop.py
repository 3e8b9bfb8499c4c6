"""The training loop, top to bottom: epochs of steps, validation on all patches, checkpoints.

It knows the objective and the backbone by their protocols alone. Everything random follows from
(seed, epoch, image), so a resumed run equals an unbroken one.
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

# A training loss above this share of a constant score's is no progress.
_STANDSTILL = 0.98
# Reading the loss waits for the device, so it is read this seldom.
_LOG_EVERY = 20


@dataclass(frozen=True)
class EpochProgress:
    """How far an epoch has come, as a checkpoint within it says.

    Attributes:
        steps: that are done.
        images: that they have seen, over all processes.
        seconds: that they took.
        waited: seconds of these that the loader made them wait.
        loss: sum of the losses that were read.
        window: losses of the last steps, not read yet.
    """

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    loss: float = 0.0
    window: list[float] = field(default_factory=list)


def fit(setup: RunSetup, run: RunFolder) -> list[dict[str, float]]:
    """Train, validate and checkpoint; go on from the last checkpoint where there is one.

    Args:
        setup: of the run.
        run: takes checkpoints and history.

    Returns:
        One dictionary of metrics per epoch.

    Raises:
        InputError: the loss is no longer finite, or another process trains the run.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; what could be saved of the epoch is.
        DoesNotFitError: the batch does not fit in memory; a run without a checkpoint is removed, so
            that it is not taken for the latest.
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
    """The epochs of `fit` alone: no MLflow is told, nothing said, the best not scored once more.

    For measuring them; arguments, metrics and errors are those of `fit`.
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
    average = WeightAverage(setup.model, training.ema_decay)

    # ---- checkpoint
    history: list[dict[str, float]] = []
    progress = EpochProgress()
    card = setup.card
    newest = newest_state(run.last, run.midway)
    if newest is not None:
        state = load_state(newest, setup.model, step.optimizer, average)
        history, progress = state["history"], EpochProgress(**state.get("progress", {}))
        # Checkpoints of earlier versions lack the scale of the loss in fp16.
        if state.get("precision"):
            fabric.strategy.precision.load_state_dict(state["precision"])
        within = f" and {counted(progress.steps, 'step')}" if progress.steps else ""
        setup.say(f"resuming after epoch {len(history)} of {training.epochs}{within}")

    def contents(progress: EpochProgress | None = None) -> Contents:
        facts = {
            "history": history,
            "progress": asdict(progress or EpochProgress()),
            "precision": fabric.strategy.precision.state_dict(),
        }
        return state_of(setup.model, optimizer, average, facts, card)

    def save(progress: EpochProgress) -> None:
        """Save within an epoch, unless the weights are spoilt already: the loop will say so."""
        if fabric.is_global_zero and is_finite(setup.model):
            with signals.saving():
                writer.flush_best()
                contents(progress).write(run.midway)

    saver = _Saver(signals, save, training.checkpoint_minutes, alone=fabric.world_size == 1)

    # ---- data
    batches = setup.train_batches()
    train_loader = setup.loader(setup.train_set, batches)
    val_loader = setup.loader(setup.val_set, setup.val_batches(on_all=not setup.validates_on_some))

    # ---- epochs
    mark = time.perf_counter() - progress.seconds
    clock: StepClock | None = StepClock(setup.device)
    with CheckpointWriter(run) as writer:
        for epoch in range(len(history), training.epochs):
            if _is_stale(history, objective, training.patience):
                setup.say(f"stopping early: no better epoch in the last {training.patience}")
                break
            if setup.is_frozen(epoch) != frozen:
                frozen = setup.is_frozen(epoch)
                step = _make_step(setup, optimizer, backbone, frozen=frozen)
            batches.epoch, batches.first = epoch, progress.steps
            try:
                done = _train_epoch(
                    setup, step, train_loader, epoch, tracker, average, progress, saver, clock
                )
                with saver.saving_if_interrupted(done), average.in_place():
                    kept = setup.val_kept if setup.validates_on_some else None
                    scores = _validate(setup, step.model, val_loader, kept, step.captured)
            except torch.OutOfMemoryError as error:
                raise DoesNotFitError(setup) from error
            if not objective.is_pretext and np.isnan(scores).any():
                # The epoch's last update: the loss of each step was finite.
                raise _no_longer_finite("the scores of validation images are", f"epoch {epoch + 1}")
            progress = EpochProgress()
            loss, images = done.loss / done.steps, done.images
            metrics = {
                "epoch": epoch + 1,
                "train_loss": loss,
                "train_images_per_second": images / done.seconds,
                "train_wait_share": done.waited / done.seconds,
                "train_memory_gib": peak_memory_gib(setup.device),
                **objective.metrics(setup.parts[Split.VAL], scores),
            }
            # From the end of the epoch before: with validation and that epoch's checkpoints.
            metrics["epoch_seconds"] = time.perf_counter() - mark
            metrics["epoch_images_per_second"] = images / metrics["epoch_seconds"]
            mark += metrics["epoch_seconds"]
            history.append(metrics)
            tracker.log(metrics, step=(epoch + 1) * len(batches))
            setup.say(_epoch_line(metrics, objective.monitor, training.epochs))
            if clock is not None:
                own = images / done.steps / fabric.world_size
                shortage = describe_shortage(
                    train_loader.read, clock.seconds(), own, len(setup.train_set)
                )
                if shortage is not None:
                    setup.say(shortage)
                clock = None  # once is enough
            # Rates of the warm-up teach little, and of a run that is over there is no more to say.
            due = max(math.ceil(training.epochs / 3), math.floor(training.warmup_epochs) + 1)
            if epoch + 1 == due < training.epochs:
                _warn_if_nothing_is_learnt(setup, loss, due)
            if fabric.is_global_zero:
                with signals.saving():
                    if best_epoch(history, objective) == len(history):
                        with average.in_place():
                            writer.take_best(weights_of(setup.model, timm_model, metrics, card))
                    writer.save(contents)
            fabric.barrier()
            try:
                saver.after_epoch()
            except KeyboardInterrupt:
                writer.flush(contents)
                raise
        writer.flush(contents)
    return history


def _make_step(
    setup: RunSetup,
    optimizer: torch.optim.Optimizer,
    backbone: list[nn.Parameter],
    *,
    frozen: bool,
) -> TrainingStep:
    """Set model and optimiser up for a phase: DDP must know which weights learn in it."""
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
        # Anew in each phase: a graph holds what learns in it.
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
    """Score the validation images by the best epoch, on every patch: (images, T).

    On some, where the others are what is predicted. The model is left with its weights.
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


def _lock_operating_points(
    setup: RunSetup, run: RunFolder, scores: npt.NDArray[np.float64]
) -> None:
    """Lock them on the validation images; `predict` is given the checkpoint's file alone."""
    try:
        points = lock_operating_points(setup.objective, setup.parts[Split.VAL], scores)
    except InputError as error:
        # As of an objective whose scores are no probabilities.
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
    loader: Any,
    epoch: int,
    tracker: Tracker,
    average: WeightAverage,
    before: EpochProgress,
    saver: "_Saver",
    clock: StepClock | None,
) -> EpochProgress:
    """One pass over the training images, or what is left of it; all of it is then done."""
    training, world = setup.config.training, setup.fabric.world_size
    batches = setup.train_batches()
    batches.epoch = epoch
    steps, turns, sizes = len(batches), batches.turns(), batches.sizes()
    warmup = round(training.warmup_epochs * steps)
    images = before.images
    started = time.perf_counter() - before.seconds
    bar = tqdm(
        total=steps,
        initial=before.steps,
        desc=f"epoch {epoch + 1}",
        unit="step",
        leave=False,
        # None shows it on a terminal only.
        disable=None if setup.fabric.is_global_zero else True,
    )

    def report(mean: float, number: int, rate: float) -> None:
        if not math.isfinite(mean):
            raise _no_longer_finite("the loss is", f"epoch {epoch + 1}, by step {number + 1}")
        tracker.log({"step_loss": mean, "learning_rate": rate}, step=epoch * steps + number + 1)
        elapsed = time.perf_counter() - started
        memory = peak_memory_gib(setup.device)
        bar.set_postfix_str(f"loss {mean:.3f}, {images / elapsed:.0f} images/s, {memory:.1f} GiB")

    step.model.train()
    if setup.is_frozen(epoch):
        # Frozen features are those of evaluation: without stochastic depth.
        setup.backbone.eval()

    def rate_of(number: int) -> float:
        return learning_rate(epoch * steps + number, training.epochs * steps, warmup, training.lr)

    last = before.steps - 1
    losses = _AsyncLosses(setup.fabric, report, before, (last, rate_of(max(0, last))))

    def progress(steps: int) -> EpochProgress:
        total, window = losses.state()
        seconds, waited = time.perf_counter() - started, before.waited + loader.waited
        return EpochProgress(steps, images, seconds, waited, total, window)

    with bar:
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
            weight = len(batch) * world / sizes[number]
            with clock.timing() if clock is not None else nullcontext():
                loss = step(batch, keys, num_keep, parts, weight)
            average.update(done)
            images += sizes[number]
            losses.add(loss, number, rate)
            bar.update()
            saver.after_step(number + 1, progress)
        losses.finish()
        return progress(steps)


def _validate(
    setup: RunSetup,
    model: nn.Module,
    loader: Any,
    kept: Callable[[Tensor], Kept] | None,
    captured: CapturedWork | None = None,
) -> npt.NDArray[np.float64]:
    """Score every validation image, on all its patches or some: (images, T), in the set's order."""
    model.eval()
    columns = len(setup.objective.score_columns)
    # Not empty even where there are fewer images than processes.
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


class _Saver:
    """Saves within an epoch: when a signal asks for it, and when the last time is long ago.

    Args:
        signals: of this process.
        save: writes the checkpoint.
        minutes: between two of them; None for no limit.
        alone: whether this process trains by itself. Beside others it saves only where they have
            all read the same losses.
    """

    def __init__(
        self,
        signals: StopSignals,
        save: Callable[[EpochProgress], None],
        minutes: float | None,
        *,
        alone: bool,
    ) -> None:
        self._signals = signals
        self._save = save
        self._seconds = math.inf if minutes is None else 60 * minutes
        self._every = 1 if alone else _LOG_EVERY
        self._saved = time.perf_counter()

    def after_epoch(self) -> None:
        """Take the epoch's own checkpoint for what was asked for, and end if that was.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM.
        """
        self._signals.take_request()
        self._saved = time.perf_counter()
        self._signals.raise_if_ending()

    def after_step(self, steps: int, progress: Callable[[int], EpochProgress]) -> None:
        """Save if it is time to, and end the training if a signal asked for that.

        Args:
            steps: of the epoch that are done.
            progress: tells how far that is.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM.
        """
        if steps % self._every:
            return
        # In this order: a request is taken when it comes.
        if self._signals.take_request() or time.perf_counter() - self._saved > self._seconds:
            self._save(progress(steps))
            self._saved = time.perf_counter()
        self._signals.raise_if_ending()

    @contextmanager
    def saving_if_interrupted(self, done: EpochProgress) -> Iterator[None]:
        """Within the block, which validates, nothing more is learnt: an interrupt may come."""
        try:
            yield
        except KeyboardInterrupt:
            self._save(done)
            raise


class _AsyncLosses:
    """Asynchronous loss logging: a window of losses is copied while the next one is computed.

    Args:
        fabric: of the run.
        report: takes the mean of a window, the number of its last step, and the learning rate.
        before: the steps of the epoch that are done already.
        at: number and learning rate of the last of these.
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
        """Read what is left."""
        if self._window:
            self._copy()
        self._read()

    def state(self) -> tuple[float, list[float]]:
        """The sum of the losses that were read, and the window of those that are not."""
        # A window on its way is read now and not later, which changes no sum.
        self._read()
        return self._total, [loss.item() for loss in self._window]

    def _copy(self) -> None:
        # The window before has long been computed: reading it does not wait.
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
    """Log to MLflow what the run was made with; its metrics follow."""
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
    """The images of the split's parts, by hashes and counts."""
    cohort = setup.cohort
    fold = "" if cohort.fold is None else f", fold {cohort.fold}"
    # Another fold, or other labels, make other data sets of one split.
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
