"""Whether reading keeps up with the training steps, and by how much the disk falls short."""

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mammo_pd.data.loader import ReadRate
from mammo_pd.wording import percent

# The last steps of an epoch: the first ones compile.
_STEPS = 200
# A smaller shortage than this is within measurement error.
_TOLERANCE = 0.95


class StepClock:
    """Times steps on their device without waiting for them.

    On a GPU the times come from CUDA events, so waiting on the host between two steps, mostly for
    data, is not included.

    Args:
        device: that the steps run on.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: deque[tuple[torch.cuda.Event | float, torch.cuda.Event | float]] = deque(
            maxlen=_STEPS
        )

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Time the step in the block."""
        start = mark(on_gpu=self._on_gpu)
        yield
        self._marks.append((start, mark(on_gpu=self._on_gpu)))

    def seconds(self) -> float | None:
        """The median step; None before the first. It waits for the device."""
        if not self._marks:
            return None
        if self._on_gpu:
            torch.cuda.synchronize()
        return statistics.median(elapsed(*marks) for marks in self._marks)


def describe_shortage(
    read: ReadRate, step_seconds: float | None, batch_size: float, images: int
) -> str | None:
    """Say by how much reading is too slow for the steps.

    Args:
        read: how fast the loader of one process read in its first pass: with the checksums, which
            take as long as reading from memory does.
        step_seconds: that a step takes when it need not wait.
        batch_size: images of a step in that process.
        images: of an epoch.

    Returns:
        A sentence; None if reading keeps up, or if too little was read to tell.
    """
    if step_seconds is None or not read.seconds:
        return None
    gives, takes = read.images / read.seconds, batch_size / step_seconds
    if gives >= _TOLERANCE * takes:
        return None
    size = read.bytes / read.images
    return (
        f"waited {percent(1 - gives / takes)} of the time for data: a first reading, in which each "
        f"image is checked, gives {gives * size / 1e6:.0f} MB/s ({gives:.0f} images/s), and the "
        f"steps of a process would take {takes * size / 1e6:.0f} MB/s ({takes:.0f} images/s). If "
        "later epochs wait as well, a faster disk would fix this, or enough free memory for the "
        f"{images * size / 1e9:.3g} GB that an epoch reads"
    )


def mark(*, on_gpu: bool) -> "torch.cuda.Event | float":
    """A time stamp of the GPU or the processor, for `elapsed`; does not wait."""
    if not on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def elapsed(start: "torch.cuda.Event | float", end: "torch.cuda.Event | float") -> float:
    """Seconds between two time stamps that the device has passed."""
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float) and isinstance(end, float)
        return end - start
    # CUDA gives milliseconds.
    return float(start.elapsed_time(end)) / 1000
