"""The training loop, top to bottom: epochs of steps, validation on all patches, checkpoints.

It knows no store and no augmentation: batches and what makes the model's input of them are handed
in. Everything random follows from (seed, epoch), so a resumed run equals an unbroken one.
"""

import math
import resource
import time
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mammo_pd.errors import InputError
from mammo_pd.training.checkpoint import load_state, save_state, save_weights

# Reading the loss waits for the device, so it is read this seldom.
_LOG_EVERY = 20
MONITOR = "val_auc_image"


@dataclass(frozen=True)
class TrainingSettings:
    """How the model is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a step, over all devices.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW; on matrices, not on biases, norms, tokens or position embeddings.
        warmup_epochs: epochs of linear warm-up before the cosine; may be a fraction.
        clip_norm: largest norm of the gradient; 0 for no limit.
        positive_weight: weight of a positive image in the loss.
        seed: of the weights, the order, the draws and the augmentation.
    """

    epochs: int = 30
    batch_size: int = 32
    lr: float = 3e-4
    weight_decay: float = 0.05
    warmup_epochs: float = 2.0
    clip_norm: float = 1.0
    positive_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed is 1 and above")
        for name in ("lr", "positive_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed is above 0")
        for name in ("weight_decay", "warmup_epochs", "clip_norm", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed is 0 and above")


class Tracker(Protocol):
    """What takes the metrics."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Take metrics of one step or epoch."""


class TrainBatches(Sized, Iterable[Any], Protocol):
    """The training batches of the epoch that was set."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""


@dataclass(frozen=True)
class Task:
    """What is trained on, handed in by the stage.

    Attributes:
        train: batches for training.
        train_input: of a batch and an epoch, makes patches (B, K, P * P), positions (B, K) and
            labels (B,), on the device.
        val: batches for validation.
        val_input: of a batch, makes patches (B, N, P * P), positions (B, N) and rows of the
            validation set (B,).
        val_metrics: of scores in the validation set's order, makes metrics; one is ``MONITOR``.
    """

    train: TrainBatches
    train_input: Callable[[Any, int], tuple[Tensor, Tensor, Tensor]]
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
        InputError: the loss is no longer finite.
    """
    # ---- model and optimiser
    optimizer = torch.optim.AdamW(
        _decayed_and_not(weights, settings.weight_decay),
        lr=settings.lr,
        betas=(0.9, 0.95),
        fused=fabric.device.type == "cuda",
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
        # Stochastic depth draws from torch's own generator.
        torch.manual_seed(_mix_seed(settings.seed, epoch, fabric.global_rank))
        task.train.set_epoch(epoch)
        started = time.perf_counter()
        loss, images = _train_epoch(
            fabric, model, optimizer, positive_weight, task, settings, epoch, steps, tracker
        )
        seconds = time.perf_counter() - started
        scores = _validate(fabric, model, task)
        metrics = {
            "epoch": epoch + 1,
            "train_loss": loss,
            "train_images_per_second": images / seconds,
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
    losses: list[Tensor] = []
    total, images = 0.0, 0
    show = fabric.global_rank == 0
    bar = tqdm(
        total=steps,
        desc=f"epoch {epoch + 1}",
        unit="step",
        leave=False,
        disable=None if show else True,
    )
    with bar:
        for number, batch in enumerate(task.train):
            step = epoch * steps + number
            rate = learning_rate(step, settings.epochs * steps, warmup, settings.lr)
            for group in optimizer.param_groups:
                group["lr"] = rate
            patches, positions, labels = task.train_input(batch, epoch)
            logits = model(patches, positions)[:, 0].float()
            loss = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=positive_weight)
            fabric.backward(loss)
            if settings.clip_norm:
                # Checking the norm here would wait for the device; the loss is checked below.
                fabric.clip_gradients(
                    model, optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            losses.append(loss.detach())
            images += len(labels) * fabric.world_size
            if len(losses) == _LOG_EVERY or number + 1 == steps:
                values = torch.stack(losses).tolist()
                losses.clear()
                total += sum(values)
                if not math.isfinite(total):
                    raise InputError(
                        f"the loss is no longer finite in epoch {epoch + 1}, step {number + 1}; "
                        "start again with a lower --lr (or from the last checkpoint: --resume)."
                    )
                mean = sum(values) / len(values)
                tracker.log({"step_loss": mean, "learning_rate": rate}, step=step + 1)
                elapsed = bar.format_dict["elapsed"] or 1e-9
                memory = peak_memory_gib(fabric.device)
                bar.set_postfix_str(
                    f"loss {mean:.3f}, {images / elapsed:.0f} images/s, {memory:.1f} GiB"
                )
            bar.update()
    return total / steps, images


@torch.no_grad()
def _validate(fabric: Any, model: nn.Module, task: Task) -> npt.NDArray[np.float64]:
    """Score every validation image on all its patches, in the validation set's order."""
    model.eval()
    scored, rows = [], []
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
