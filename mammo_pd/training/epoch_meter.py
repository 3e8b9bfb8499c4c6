"""How far an epoch has come: measured step by step, shown, logged, and saved in checkpoints."""

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mammo_pd.data.loader import BatchLoader
from mammo_pd.errors import InputError
from mammo_pd.progress import Progress
from mammo_pd.tracking import Tracker
from mammo_pd.training.setup import RunSetup

# Steps between reads of the loss: reading it waits for the device.
LOG_EVERY = 20


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


class EpochMeter:
    """Measures how far an epoch has come, for the progress bar, the tracker and checkpoints.

    Args:
        setup: of the run.
        tracker: receives losses and learning rates.
        loader: of the epoch's batches; measures how long the steps waited for it.
        epoch: counted from 0.
        steps: of the whole epoch.
        before: the part of the epoch done before the run was stopped.
        at: number and learning rate of the last step of that part.
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
        self.shown = Progress(
            f"epoch {epoch + 1}",
            steps,
            setup.say if setup.fabric.is_global_zero else None,
            unit="step",
            done=before.steps,
            leave=False,
        )

    def add(self, loss: Tensor, number: int, rate: float, images: int) -> None:
        """Count one step; its loss is read later, since reading it waits for the device."""
        self._images += images
        self._losses.add(loss, number, rate)
        self.shown.update()

    def finish(self) -> None:
        """Read the losses that are left."""
        self._losses.finish()

    def progress(self, steps: int) -> EpochProgress:
        """How far the epoch has come after that many steps, for a checkpoint.

        To be called by all processes.
        """
        total, window = self._losses.state()
        seconds = time.perf_counter() - self._started
        waited = self._before.waited + self._loader.waited
        return EpochProgress(steps, self._images, seconds, waited, total, window)

    def _report(self, mean: float, number: int, rate: float) -> None:
        if not math.isfinite(mean):
            raise no_longer_finite("the loss is", f"epoch {self._epoch + 1}, by step {number + 1}")
        step = self._epoch * self._steps + number + 1
        self._tracker.log({"step_loss": mean, "learning_rate": rate}, step=step)
        images_per_second = self._images / (time.perf_counter() - self._started)
        memory = peak_memory_gib(self._device)
        self.shown.note(f"loss {mean:.3f}, {images_per_second:.0f} images/s, {memory:.1f} GiB")


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
        if len(self._window) == LOG_EVERY:
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
        if not self._window:
            return self._total, []
        window = self._mean_of_processes()
        return self._total, window.tolist()

    def _copy(self) -> None:
        # The previous window was computed long ago, so reading it does not wait.
        self._read()
        values = self._mean_of_processes()
        self._window.clear()
        event = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            event = torch.cuda.current_stream().record_event()
        self._copied = (values, event, *self._at)

    def _mean_of_processes(self) -> Tensor:
        # Each holds an equal share of the images.
        mean: Tensor = self._fabric.all_reduce(torch.stack(self._window), reduce_op="mean")
        return mean

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


def no_longer_finite(what: str, when: str) -> InputError:
    """The error for a run that has diverged."""
    return InputError(
        f"{what} no longer finite in {when}; "
        "start again with a lower --lr (or from the last checkpoint: --resume)."
    )


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: by the GPU's allocator, or resident on a CPU; in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
