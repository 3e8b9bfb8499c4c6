"""Time steps on one device without waiting for it between them: seconds out."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch

from mammo_pd.batch import ImageBatch
from mammo_pd.data.loader import BatchLoader
from mammo_pd.training.data_supply import elapsed, mark

# The first steps compile, and wake a CPU's threads.
_WARM_UP_STEPS = 5
# A GPU throttles within seconds under load; the sustained speed is what counts. Of short steps more
# are timed, as many as a short epoch has: over 20 of 8 ms an H200 was up to 5 % faster than over
# 400 (benchmarks/results/whole_epoch_phases_h200_2026-11-27.md).
_WARM_UP_SECONDS = 5.0
_TIMED_SECONDS = 2.0
_WARM_UP_BATCHES = 3


class Timer:
    """Times work on one device.

    Args:
        device: that the work runs on.
        steps: timed for each result, at least.
    """

    def __init__(self, device: torch.device, steps: int) -> None:
        self._on_gpu = device.type == "cuda"
        self._steps = steps

    def seconds_per_step(
        self, step: Callable[[], object], *, warm_up_seconds: float = _WARM_UP_SECONDS
    ) -> float:
        """Median time from the end of one step to the end of the next, queued as in training.

        Args:
            step: to repeat.
            warm_up_seconds: to run a GPU for beforehand; a CPU takes the first few steps alone.
        """
        for _ in range(_WARM_UP_STEPS):
            step()
        steps = self._steps
        if self._on_gpu:
            steps = max(steps, self._steps_in(_TIMED_SECONDS, step, warm_up_seconds))
        marks = [mark(on_gpu=self._on_gpu)]
        for _ in range(steps):
            step()
            marks.append(mark(on_gpu=self._on_gpu))
        self._synchronize()
        return statistics.median(elapsed(start, end) for start, end in pairwise(marks))

    def _steps_in(self, seconds: float, step: Callable[[], object], warm_up_seconds: float) -> int:
        """Keep a GPU busy for some time, to learn how many steps it does in so many seconds."""
        self._synchronize()
        done, started, taken = 0, time.perf_counter(), 0.0
        while taken < warm_up_seconds:
            # Several at a time: waiting for each would let the GPU rest in between.
            for _ in range(_WARM_UP_STEPS):
                step()
            self._synchronize()
            done, taken = done + _WARM_UP_STEPS, time.perf_counter() - started
        return round(seconds * done / taken) if done else 0

    def host_seconds(self, step: Callable[[], object], rounds: int = 10) -> float:
        """Median time until a step is launched, each on an idle device; it has warmed up."""
        taken = []
        for _ in range(rounds):
            self._synchronize()
            started = time.perf_counter()
            step()
            taken.append(time.perf_counter() - started)
        self._synchronize()
        return statistics.median(taken)

    def kernel_seconds(self, work: Callable[[], object]) -> float:
        """Time spent in GPU kernels; on a CPU the time of the work.

        In a training step these kernels are queued ahead, so launch overhead does not count.
        """
        if not self._on_gpu:
            return self.seconds_per_step(work)
        from torch.profiler import ProfilerActivity, profile

        work()
        # There is one cycle; without acc_events torch warns that a second would clear it.
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
            for _ in range(3):
                work()
            torch.cuda.synchronize()
        return float(sum(row.self_device_time_total for row in profiler.key_averages())) / 3e6

    def seconds_per_batch(
        self, loader: BatchLoader, step: Callable[[ImageBatch], object]
    ) -> tuple[float, float]:
        """Mean time of a step with the loader, and how much of it was spent waiting for data."""
        batches = iter(loader)
        for _ in range(_WARM_UP_BATCHES):
            step(next(batches))
        waited, count, start = loader.waited, 0, mark(on_gpu=self._on_gpu)
        for batch in batches:
            step(batch)
            count += 1
        end = mark(on_gpu=self._on_gpu)
        self._synchronize()
        return elapsed(start, end) / count, (loader.waited - waited) / count

    def batches_needed(self) -> int:
        """Batches for `seconds_per_batch`: warm-up, then twice the timed steps."""
        return _WARM_UP_BATCHES + 2 * self._steps

    def _synchronize(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
