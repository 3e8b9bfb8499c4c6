"""The training loop, top to bottom: epochs of steps, validation on all patches, checkpoints.

It knows the objective and the backbone by their protocols alone. Everything random follows from
(seed, epoch, image), so a resumed run equals an unbroken one.
"""

import math
import resource
import time
from collections.abc import Callable
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
from mammo_pd.terms import Split
from mammo_pd.tracking import MlflowRun, NoTracking, Tracker
from mammo_pd.training.batch_size import DoesNotFitError
from mammo_pd.training.checkpoint import load_state, prefix_of, save_state, save_weights
from mammo_pd.training.model_card import ModelCard, without_paths
from mammo_pd.training.runs import RunFolder, timestamp
from mammo_pd.training.scoring import score_batches
from mammo_pd.training.setup import RunSetup
from mammo_pd.training.step import TrainingStep, can_fuse, image_keys

# Reading the loss waits for the device, so it is read this seldom.
_LOG_EVERY = 20


def fit(setup: RunSetup, run: RunFolder) -> list[dict[str, float]]:
    """Train, validate and checkpoint; go on from the last checkpoint where there is one.

    Args:
        setup: of the run.
        run: takes checkpoints and history.

    Returns:
        One dictionary of metrics per epoch.

    Raises:
        InputError: the loss is no longer finite.
        DoesNotFitError: the batch does not fit in memory; a run without a checkpoint is removed, so
            that it is not taken for the latest.
    """
    setup.introduce()
    if not setup.fabric.is_global_zero:
        return _fit(setup, run, NoTracking())
    try:
        return _fit_tracked(setup, run)
    except DoesNotFitError:
        if not run.last.is_file():
            run.remove()
        raise


def _fit_tracked(setup: RunSetup, run: RunFolder) -> list[dict[str, float]]:
    info = run.info
    with MlflowRun(
        run.path.parent,
        run.path.name,
        info.mlflow_run_id,
        parent_run_id=info.mlflow_parent_run_id,
    ) as tracker:
        run = run.update(mlflow_run_id=tracker.run_id)
        _describe(setup, tracker)
        history = _fit(setup, run, tracker)
        table = pd.DataFrame(history).to_csv(index=False)
        write_text(run.history, table)
        tracker.keep("history.csv", table)
    run.update(finished=timestamp())
    return history


def _fit(setup: RunSetup, run: RunFolder, tracker: Tracker) -> list[dict[str, float]]:
    fabric, training, monitor = setup.fabric, setup.config.training, setup.objective.monitor

    # ---- model and optimiser
    optimizer = torch.optim.AdamW(
        _parameter_groups(setup, training.weight_decay),
        lr=training.lr,
        betas=(0.9, 0.95),
        fused=can_fuse(fabric),
    )
    model, optimizer = fabric.setup(setup.model, optimizer)
    step = TrainingStep(
        fabric, model, optimizer, setup.sampler, setup.objective, training.clip_norm
    )

    # ---- checkpoint
    history: list[dict[str, float]] = []
    if run.last.is_file():
        history = load_state(run.last, setup.model, optimizer)["history"]
        setup.say(f"going on after epoch {len(history)} of {training.epochs}")

    # ---- data
    batches = setup.train_batches()
    train_loader = setup.loader(setup.train_set, batches)
    val_loader = setup.loader(setup.val_set, setup.val_batches())

    # ---- epochs
    card = ModelCard.of(setup)
    for epoch in range(len(history), training.epochs):
        # Dropout inside a model draws from torch's own generator.
        torch.manual_seed(_mix_seed(training.seed, epoch, fabric.global_rank))
        batches.epoch = epoch
        started = time.perf_counter()
        try:
            loss, images = _train_epoch(setup, step, train_loader, epoch, tracker)
            seconds = time.perf_counter() - started
            scores = _validate(setup, model, val_loader)
        except torch.OutOfMemoryError as error:
            raise DoesNotFitError(setup) from error
        metrics = {
            "epoch": epoch + 1,
            "epoch_seconds": time.perf_counter() - started,
            "train_loss": loss,
            "train_images_per_second": images / seconds,
            "train_wait_share": train_loader.waited / seconds,
            "train_memory_gib": peak_memory_gib(setup.device),
            **setup.objective.metrics(setup.parts[Split.VAL], scores),
        }
        history.append(metrics)
        tracker.log(metrics, step=(epoch + 1) * len(batches))
        setup.say(_epoch_line(metrics, monitor, training.epochs))
        if fabric.is_global_zero:
            if metrics[monitor] >= max(old[monitor] for old in history):
                save_weights(run.best, setup.model, setup.backbone.timm_model, metrics, card)
            save_state(run.last, setup.model, optimizer, {"history": history}, card)
        fabric.barrier()
    return history


def _train_epoch(
    setup: RunSetup, step: TrainingStep, loader: Any, epoch: int, tracker: Tracker
) -> tuple[float, int]:
    """One pass over the training images: the mean loss, and how many images it saw."""
    training, world = setup.config.training, setup.fabric.world_size
    steps = len(setup.train_batches())
    warmup = round(training.warmup_epochs * steps)
    images = 0
    bar = tqdm(
        total=steps,
        desc=f"epoch {epoch + 1}",
        unit="step",
        leave=False,
        # None shows it on a terminal only.
        disable=None if setup.fabric.is_global_zero else True,
    )

    def report(mean: float, number: int, rate: float) -> None:
        if not math.isfinite(mean):
            raise InputError(
                f"the loss is no longer finite in epoch {epoch + 1}, by step {number + 1}; "
                "start again with a lower --lr (or from the last checkpoint: --resume)."
            )
        tracker.log({"step_loss": mean, "learning_rate": rate}, step=epoch * steps + number + 1)
        elapsed = bar.format_dict["elapsed"] or 1e-9
        memory = peak_memory_gib(setup.device)
        bar.set_postfix_str(f"loss {mean:.3f}, {images / elapsed:.0f} images/s, {memory:.1f} GiB")

    step.model.train()
    losses = _AsyncLosses(setup.fabric, report)
    with bar:
        for number, batch in enumerate(loader):
            done = epoch * steps + number
            rate = learning_rate(done, training.epochs * steps, warmup, training.lr)
            for group in step.optimizer.param_groups:
                group["lr"] = rate
            keys = image_keys(setup.train_set, batch.rows, training.seed, epoch, setup.device)
            num_keep, parts = setup.keep_at(epoch, number)
            loss = step(batch, keys, num_keep, parts)
            images += len(batch) * world
            losses.add(loss, number, rate)
            bar.update()
        return losses.finish() / steps, images


def _validate(setup: RunSetup, model: nn.Module, loader: Any) -> npt.NDArray[np.float64]:
    """Score every validation image on all its patches: (images, T), in the set's order."""
    model.eval()
    columns = len(setup.objective.score_columns)
    # Not empty even where there are fewer images than processes.
    scored = [torch.empty(0, columns, device=setup.device)]
    rows = [torch.empty(0, dtype=torch.int64)]
    for index, scores in score_batches(model, setup.sampler, setup.objective, loader, setup.device):
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


class _AsyncLosses:
    """Asynchronous loss logging: a window of losses is copied while the next one is computed.

    Args:
        fabric: of the run.
        report: takes the mean of a window, the number of its last step, and the learning rate.
    """

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
            self._copy()

    def finish(self) -> float:
        """The sum of all losses."""
        if self._window:
            self._copy()
        self._read()
        return self._total

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


def _describe(setup: RunSetup, tracker: MlflowRun) -> None:
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


def _parameter_groups(setup: RunSetup, weight_decay: float) -> list[dict[str, Any]]:
    """With weight decay, and without: biases, norms, and what timm's model names beside them."""
    from timm.optim import param_groups_weight_decay

    timm_model: Any = setup.backbone.timm_model
    # Tokens and position embeddings, by their names within the whole model.
    prefix = prefix_of(timm_model, setup.model)
    spared = {prefix + name for name in timm_model.no_weight_decay()}
    groups: list[dict[str, Any]] = param_groups_weight_decay(setup.model, weight_decay, spared)
    return groups


def _mix_seed(seed: int, epoch: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1, np.uint64)[0] >> 1)


def _epoch_line(metrics: dict[str, float], monitor: str, epochs: int) -> str:
    return (
        f"epoch {metrics['epoch']:.0f}/{epochs}  loss {metrics['train_loss']:.3f}  "
        f"{monitor} {metrics[monitor]:.3f}  {metrics['train_images_per_second']:.0f} images/s  "
        f"{metrics['train_memory_gib']:.1f} GiB"
    )
