"""Batches on the device before they are asked for: threads, pinned memory, a stream of its own.

Threads and not processes: reading releases the interpreter, so a file's pixels go from the page
cache to pinned memory in one copy, and from there to the GPU while it computes.
"""

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from mammo_pd.batch import ImageBatch
from mammo_pd.data.dataset import MammogramDataset

# One is being read, one is ready, one is on its way to the device.
_SLOTS = 3
# Batches of ragged images differ in size: pinned memory grows seldom, since making it is slow.
_SLACK = 1.1


@dataclass
class ReadRate:
    """What was read in how much time, while nothing but the reading itself was waited for.

    Attributes:
        images: how many.
        bytes: of their files.
        seconds: that it took.
    """

    images: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def add(self, images: int, size: int, seconds: float) -> None:
        """Count a batch."""
        self.images += images
        self.bytes += size
        self.seconds += seconds


class BatchLoader:
    """Reads batches ahead; each comes on the device.

    Args:
        dataset: of a store.
        batches: rows of each batch; asked anew for each pass.
        device: where batches go. On a GPU they go through pinned memory on a stream of their own.
        threads: how many read.
    """

    def __init__(
        self,
        dataset: MammogramDataset,
        batches: Iterable[Sequence[int]],
        device: torch.device,
        threads: int,
    ) -> None:
        self._dataset = dataset
        self._batches = batches
        self._device = device
        self._threads = threads
        self._on_gpu = device.type == "cuda"
        self._slots = [_Slot() for _ in range(_SLOTS)]
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None  # type: ignore[no-untyped-call]
        self.waited = 0.0
        """Seconds that the last pass waited for data."""
        self.read = ReadRate()
        """How fast the last pass was read."""

    def __iter__(self) -> Iterator[ImageBatch]:
        free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for slot in self._slots:
            free.put(slot)
        ready: queue.SimpleQueue[tuple[_Slot, ImageBatch] | BaseException | None] = (
            queue.SimpleQueue()
        )
        stop = threading.Event()
        reader = threading.Thread(target=self._read_ahead, args=(free, ready, stop), daemon=True)
        reader.start()
        self.waited, self.read = 0.0, ReadRate()
        try:
            while True:
                started = time.perf_counter()
                item = ready.get()
                self.waited += time.perf_counter() - started
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                slot, batch = item
                if self._on_gpu:
                    batch = self._copy(slot, batch)
                free.put(slot)
                yield batch
        finally:
            stop.set()
            free.put(self._slots[0])
            reader.join()

    def _read_ahead(
        self,
        free: "queue.SimpleQueue[_Slot]",
        ready: "queue.SimpleQueue[_Ready]",
        stop: threading.Event,
    ) -> None:
        try:
            with ThreadPoolExecutor(self._threads) as executor:
                for number, rows in enumerate(self._batches):
                    slot = free.get()
                    if stop.is_set():
                        return
                    buffer = slot.pinned if self._on_gpu else None
                    started = time.perf_counter()
                    batch = self._dataset.read(
                        rows, buffer=buffer, executor=executor, tasks=self._threads
                    )
                    if number >= _SLOTS:  # those before wait for their slots' memory
                        seconds = time.perf_counter() - started
                        self.read.add(len(rows), self._dataset.stored_bytes(rows), seconds)
                    ready.put((slot, batch))
            ready.put(None)
        except BaseException as error:  # raised where the batch is asked for
            ready.put(error)

    def _copy(self, slot: "_Slot", batch: ImageBatch) -> ImageBatch:
        """Start the copy to the device; what is computed next waits for it, the host does not."""
        assert self._stream is not None
        numbers = torch.stack([batch.offsets, batch.heights, batch.widths]).pin_memory()
        targets = batch.targets.pin_memory()
        views = None if batch.views is None else batch.views.pin_memory()
        with torch.cuda.stream(self._stream):
            moved = [
                tensor.to(self._device, non_blocking=True)
                for tensor in (batch.pixels, numbers, targets, views)
                if tensor is not None
            ]
            slot.copied = self._stream.record_event()
        current = torch.cuda.current_stream(self._device)
        current.wait_event(slot.copied)
        for tensor in moved:
            tensor.record_stream(current)
        pixels, (offsets, heights, widths), targets, *of_units = moved
        views = of_units[0] if of_units else None
        return ImageBatch(pixels, offsets, heights, widths, targets, batch.rows, views, batch.units)


@dataclass
class _Slot:
    """Pinned memory of one batch, and when the last copy out of it was over."""

    memory: Tensor | None = None
    copied: torch.cuda.Event | None = None

    def pinned(self, count: int) -> Tensor:
        if self.copied is not None:
            self.copied.synchronize()
        if self.memory is None or len(self.memory) < count:
            self.memory = torch.empty(int(count * _SLACK), dtype=torch.int16, pin_memory=True)
        return self.memory[:count]


# A batch in its slot, what went wrong, or None at the end of a pass.
_Ready = tuple[_Slot, ImageBatch] | BaseException | None
