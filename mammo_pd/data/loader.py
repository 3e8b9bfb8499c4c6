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
        self._started: _Pass | None = None

    def start(self) -> None:
        """Begin to read the next pass ahead, so that its first batch is there when asked for.

        Each of the passes has to be over before the next one is started.
        """
        if self._started is None:
            self._started = _Pass(
                self._dataset, self._batches, self._slots, self._threads, pinned=self._on_gpu
            )

    def close(self) -> None:
        """End a pass that was started and is not asked for any more."""
        if self._started is not None:
            self._started.end()
            self._started = None

    def __iter__(self) -> Iterator[ImageBatch]:
        self.start()
        running, self._started = self._started, None
        assert running is not None
        self.waited, self.read = 0.0, running.read
        try:
            while True:
                started = time.perf_counter()
                item = running.ready.get()
                self.waited += time.perf_counter() - started
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                slot, batch = item
                if self._on_gpu:
                    batch = self._copy(slot, batch)
                running.free.put(slot)
                yield batch
        finally:
            running.end()

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


class _Pass:
    """One pass over the batches, read by a thread of its own as far as there are slots."""

    def __init__(
        self,
        dataset: MammogramDataset,
        batches: Iterable[Sequence[int]],
        slots: Sequence[_Slot],
        threads: int,
        *,
        pinned: bool,
    ) -> None:
        self.free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self.ready: queue.SimpleQueue[_Ready] = queue.SimpleQueue()
        self.read = ReadRate()
        self._dataset = dataset
        self._batches = batches
        self._threads = threads
        self._pinned = pinned
        self._stop = threading.Event()
        for slot in slots:
            self.free.put(slot)
        self._reader = threading.Thread(target=self._read_ahead, daemon=True)
        self._reader.start()

    def end(self) -> None:
        """Wait for the thread, which reads no further batch."""
        self._stop.set()
        self.free.put(_Slot())
        self._reader.join()

    def _read_ahead(self) -> None:
        try:
            with ThreadPoolExecutor(self._threads) as executor:
                for number, rows in enumerate(self._batches):
                    slot = self.free.get()
                    if self._stop.is_set():
                        return
                    buffer = slot.pinned if self._pinned else None
                    started = time.perf_counter()
                    batch = self._dataset.read(
                        rows, buffer=buffer, executor=executor, tasks=self._threads
                    )
                    if number >= _SLOTS:  # those before wait for their slots' memory
                        seconds = time.perf_counter() - started
                        self.read.add(len(rows), self._dataset.stored_bytes(rows), seconds)
                    self.ready.put((slot, batch))
            self.ready.put(None)
        except BaseException as error:  # raised where the batch is asked for
            self.ready.put(error)
