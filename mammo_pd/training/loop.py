"""The training loop, top to bottom: epochs of steps, validation on all patches, checkpoints.

It knows no store and no augmentation: batches and what makes the model's input of them are handed
in. Everything random follows from (seed, epoch), so a resumed run equals an unbroken one.
"""

import math
import resource
import time
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mammo_pd.config import TrainingSettings
from mammo_pd.errors import InputError
from mammo_pd.training.checkpoint import load_state, save_state, save_weights

# Reading the loss waits for the device, so it is read this seldom.
_LOG_EVERY = 20
MONITOR = "val_auc_image"


class Tracker(Protocol):
    """What takes the metrics."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Take metrics of one step or epoch."""


class TrainBatches(Sized, Iterable[Any], Protocol):
    """The training batches of the epoch that was set."""

    @property
    def waited(self) -> float:
        """Seconds that the last pass waited for data."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""


class Part(NamedTuple):
    """A part of a step's batch, computed by itself.

    Attributes:
        images: how many.
        inputs: makes what the model is called with, and the labels (images,), on the device.
    """

    images: int
    inputs: Callable[[], tuple[tuple[Tensor, ...], Tensor]]


@dataclass(frozen=True)
class Task:
    """What is trained on, handed in by the stage.

    Attributes:
        train: batches for training.
        train_parts: of a batch, the epoch and the step in it, both from 0: the parts it is
            computed in.
        does_not_fit: says what to do about a batch that does not fit in the device's memory.
        val: batches for validation.
        val_input: of a batch, makes patches (B, N, P * P), positions (B, N) and rows of the
            validation set (B,).
        val_metrics: of scores in the validation set's order, makes metrics; one is ``MONITOR``.
    """

    train: TrainBatches
    train_parts: Callable[[Any, int, int], Sequence[Part]]
    does_not_fit: Callable[[], str]
    val: Iterable[Any]
    val_input: Callable[[Any], tuple[Tensor, Tensor, Tensor]]
    val_metrics: Callable[[npt.NDArray[np.float64]], dict[str, float]]


def fit(
    fabric: Any,
    model: nn.Module,
    weights: nn.Module,
    task: Task,
    settings: TrainingSettings,
    folder: Path,
    tracker: Tracker,
    *,
    say: Callable[[str], None] = print,
) -> list[dict[str, float]]:
    """Train, validate and checkpoint; go on from the last checkpoint where there is one.

    Args:
        fabric: a launched Lightning Fabric.
        model: takes patches and positions, gives (B, 1) logits.
        weights: the part of ``model`` whose weights are saved under their own names.
        task: what is trained on.
        settings: how.
        folder: takes ``best.safetensors`` (weights) and ``last.safetensors`` (everything).
        tracker: takes the metrics.
        say: takes one line for people.

    Returns:
        One dictionary of metrics for each epoch.

    Raises:
        InputError: the loss is no longer finite, or the batch does not fit in memory.
    """
    # ---- model and optimiser
    optimizer = torch.optim.AdamW(
        _decayed_and_not(weights, settings.weight_decay),
        lr=settings.lr,
        betas=(0.9, 0.95),
        fused=can_fuse(fabric),
    )
    bare = model
    model, optimizer = fabric.setup(model, optimizer)
    positive_weight = torch.tensor(settings.positive_weight, device=fabric.device)

    # ---- checkpoint
    last = folder / "last.safetensors"
    history: list[dict[str, float]] = []
    if last.is_file():
        history = load_state(last, bare, optimizer)["history"]
        say(f"going on after epoch {len(history)} of {settings.epochs}")

    # ---- loop
    steps = len(task.train)
    for epoch in range(len(history), settings.epochs):
        # Dropout, of models that have it, draws from torch's own generator.
        torch.manual_seed(_mix_seed(settings.seed, epoch, fabric.global_rank))
        task.train.set_epoch(epoch)
        started = time.perf_counter()
        try:
            loss, images = _train_epoch(
                fabric, model, optimizer, positive_weight, task, settings, epoch, steps, tracker
            )
            seconds = time.perf_counter() - started
            scores = _validate(fabric, model, task)
        except torch.OutOfMemoryError as error:
            raise InputError(task.does_not_fit()) from error
        metrics = {
            "epoch": epoch + 1,
            "train_loss": loss,
            "train_images_per_second": images / seconds,
            "train_wait_share": task.train.waited / seconds,
            "train_memory_gib": peak_memory_gib(fabric.device),
            **task.val_metrics(scores),
        }
        history.append(metrics)
        tracker.log(metrics, step=(epoch + 1) * steps)
        say(_line(metrics, settings.epochs))
        if fabric.global_rank == 0:
            if metrics[MONITOR] >= max(old[MONITOR] for old in history):
                save_weights(folder / "best.safetensors", weights, metrics)
            save_state(last, bare, optimizer, {"history": history})
        fabric.barrier()
    return history


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up over ``warmup`` steps, then half a cosine down to 0 at ``steps``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: of the GPU's allocator, or resident on a CPU; in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def can_fuse(fabric: Any) -> bool:
    """Whether AdamW may be fused: on a GPU, but in fp16, where it unscales gradients by itself.

    Then Lightning cannot clip them.
    """
    precision: str = fabric.strategy.precision.precision
    on_gpu: bool = fabric.device.type == "cuda"
    return on_gpu and precision != "16-mixed"


def train_step(
    fabric: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Part],
    *,
    positive_weight: Tensor | None = None,
    clip_norm: float = 0.0,
) -> Tensor:
    """One step: forward and backward of each part, then the optimiser. Nothing waits for a GPU.

    Args:
        fabric: a launched Lightning Fabric.
        model: set up by it.
        optimizer: set up by it.
        parts: of this process's share of the batch.
        positive_weight: () of a positive image in the loss; None for 1.
        clip_norm: largest norm of the gradient; 0 for no limit.

    Returns:
        () the mean loss over this process's share, on the device.
    """
    images = sum(part.images for part in parts)
    losses = []
    for number, part in enumerate(parts, 1):
        inputs, labels = part.inputs()
        with fabric.no_backward_sync(model, enabled=number < len(parts)):
            logits = model(*inputs)[:, 0].float()
            loss = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=positive_weight)
            loss = loss * (part.images / images)
            fabric.backward(loss)
        losses.append(loss.detach())
    if clip_norm:
        # Checking the norm here would wait for the device; the loss is checked later.
        fabric.clip_gradients(model, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack(losses).sum()


def _train_epoch(
    fabric: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    positive_weight: Tensor,
    task: Task,
    settings: TrainingSettings,
    epoch: int,
    steps: int,
    tracker: Tracker,
) -> tuple[float, int]:
    """One pass over the training images; gives the mean loss and how many images it saw."""
    model.train()
    warmup = round(settings.warmup_epochs * steps)
    images = 0
    show = fabric.global_rank == 0
    bar = tqdm(
        total=steps,
        desc=f"epoch {epoch + 1}",
        unit="step",
        leave=False,
        disable=None if show else True,
    )

    def report(mean: float, number: int, rate: float) -> None:
        if not math.isfinite(mean):
            raise InputError(
                f"the loss is no longer finite in epoch {epoch + 1}, by step {number + 1}; "
                "start again with a lower --lr (or from the last checkpoint: --resume)."
            )
        tracker.log({"step_loss": mean, "learning_rate": rate}, step=epoch * steps + number + 1)
        elapsed = bar.format_dict["elapsed"] or 1e-9
        memory = peak_memory_gib(fabric.device)
        bar.set_postfix_str(f"loss {mean:.3f}, {images / elapsed:.0f} images/s, {memory:.1f} GiB")

    losses = _LateLosses(fabric, report)
    with bar:
        for number, batch in enumerate(task.train):
            step = epoch * steps + number
            rate = learning_rate(step, settings.epochs * steps, warmup, settings.lr)
            for group in optimizer.param_groups:
                group["lr"] = rate
            parts = task.train_parts(batch, epoch, number)
            loss = train_step(
                fabric,
                model,
                optimizer,
                parts,
                positive_weight=positive_weight,
                clip_norm=settings.clip_norm,
            )
            images += sum(part.images for part in parts) * fabric.world_size
            losses.add(loss, number, rate)
            bar.update()
        return losses.finish() / steps, images


class _LateLosses:
    """Losses of the steps, read when they have long been computed: no step waits for the device."""

    def __init__(self, fabric: Any, report: Callable[[float, int, float], None]) -> None:
        self._fabric = fabric
        self._report = report
        self._window: list[Tensor] = []
        self._at = (0, 0.0)
        self._copied: tuple[Tensor, torch.cuda.Event | None, int, float] | None = None
        self._total = 0.0

    def add(self, loss: Tensor, number: int, rate: float) -> None:
        self._window.append(loss)
        self._at = (number, rate)
        if len(self._window) == _LOG_EVERY:
            self._hand_over()

    def finish(self) -> float:
        """The sum of all losses."""
        if self._window:
            self._hand_over()
        self._read()
        return self._total

    def _hand_over(self) -> None:
        self._read()
        # The mean over the processes: each holds an equal share of the images.
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


@torch.no_grad()
def _validate(fabric: Any, model: nn.Module, task: Task) -> npt.NDArray[np.float64]:
    """Score every validation image on all its patches, in the validation set's order."""
    model.eval()
    # Not empty even where there are fewer images than processes.
    scored = [torch.empty(0, device=fabric.device)]
    rows = [torch.empty(0, dtype=torch.int64)]
    for batch in task.val:
        patches, positions, index = task.val_input(batch)
        scored.append(torch.sigmoid(model(patches, positions)[:, 0].float()))
        rows.append(index)
    scores, index = torch.cat(scored), torch.cat(rows)
    if fabric.world_size > 1:
        # Every process scores the whole validation set's share in turn; shares may differ by one.
        gathered: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(gathered, (scores.cpu(), index.cpu()))
        scores = torch.cat([part[0] for part in gathered])
        index = torch.cat([part[1] for part in gathered])
    ordered = np.empty(len(index))
    ordered[index.cpu().numpy()] = scores.cpu().numpy()
    return ordered


def _decayed_and_not(weights: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    from timm.optim import param_groups_weight_decay

    # timm's models name what else is to be spared: tokens and position embeddings.
    named: Any = getattr(weights, "no_weight_decay", set)
    groups: list[dict[str, Any]] = param_groups_weight_decay(weights, weight_decay, named())
    return groups


def _mix_seed(seed: int, epoch: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1, np.uint64)[0] >> 1)


def _line(metrics: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {metrics['epoch']:.0f}/{epochs}  loss {metrics['train_loss']:.3f}  "
        f"val AUC {metrics[MONITOR]:.3f}  {metrics['train_images_per_second']:.0f} images/s  "
        f"{metrics['train_memory_gib']:.1f} GiB"
    )
