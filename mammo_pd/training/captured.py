"""Work on a batch launched as one CUDA graph, so that small batches do not wait for the host.

A step of a ViT is some two thousand kernels. Launching them one by one takes the host longer than
the kernels of a small batch take the GPU, whatever share of the patches is kept. A graph holds them
all: the host copies the batch to where the graph reads it, and launches once.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mammo_pd.batch import ImageBatch
from mammo_pd.errors import cause_of
from mammo_pd.training.devices import memory_of

Work = Callable[[ImageBatch, Tensor], Tensor]

# The first calls compile the code, and make the optimiser's state; the last of them, with the sizes
# of what is captured: code that is compiled anew while it is captured breaks the capture.
_WARM_UP_CALLS = 3
# Each holds descriptions of its kernels. A keep rate drawn anew for each step needs too many.
_MOST_GRAPHS = 8
# A graph keeps its memory. Batches that fill a GPU keep it busy for longer than launching takes.
_LARGEST_SHARE = 0.4


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def on_capture_stream(device: torch.device) -> AbstractContextManager[object]:
    """Within the block, what is set up is used by captured work later.

    DDP takes hold of where gradients are added up, on the stream on which it is set up. That must
    not be the default one, for which no capture can wait. (Lightning enters one of its own.)
    """
    # Steps before the capture compute on another stream, as is meant; torch waits where it must.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    stream = _capture_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


class CapturedWork:
    """Runs work on batches as CUDA graphs: one for each shape, captured once it has warmed up.

    What is captured has to do the same for every batch of one shape, without waiting for the
    device. Its result equals that of the work itself: the same kernels run on the same values.

    Args:
        device: a GPU.
        most_pixels: of any one image.
        say: takes one line for people, if something cannot be captured and runs as it did.
    """

    def __init__(self, device: torch.device, most_pixels: int, say: Callable[[str], None]) -> None:
        self._device = device
        self._most_pixels = most_pixels
        self._say = say
        self._calls: dict[object, int] = {}
        # Of what is captured next; a graph holds its own.
        self._memory: dict[object, _Memory] = {}
        self._graphs: dict[object, _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._gave_up = False

    def run(self, name: object, work: Work, batch: ImageBatch, keys: Tensor) -> Tensor:
        """Do the work, captured where that is possible.

        Args:
            name: of the work, with all that changes what is launched but the number of images; the
                same name means the same work.
            work: from a batch on the device and its keys to one tensor.
            batch: B images, on the device.
            keys: (B,) int64, on the device.

        Returns:
            What the work returns, in memory of its own.
        """
        shape = (name, len(batch))
        graph = self._graphs.get(shape)
        if graph is None:
            calls = self._calls[shape] = self._calls.get(shape, 0) + 1
            if calls < _WARM_UP_CALLS or self._gave_up:
                return work(batch, keys)
            memory = self._memory.pop(shape, None)
            if not self._has_room():
                return work(batch, keys)
            try:
                if memory is None:
                    most_pixels = len(batch) * self._most_pixels
                    memory = self._memory[shape] = _Memory.like(batch, keys, most_pixels)
                    if memory.holds(batch):
                        memory.copy(batch, keys)
                        return work(memory.batch, memory.keys)
                    return work(batch, keys)
                graph = self._graphs[shape] = _Graph.capture(work, memory, self._pool)
            # Of what memory there is as well: the steps before have shown that one by one they fit.
            except RuntimeError as error:
                reason = cause_of(error)
            if graph is None:
                # Not before: the error's traceback held what the failed work had allocated.
                memory = None
                self._give_up(reason)
                return work(batch, keys)
        if not graph.memory.holds(batch):
            return work(batch, keys)
        return graph.replay(batch, keys)

    def _give_up(self, reason: str) -> None:
        self._gave_up = True
        self._memory.clear()
        torch.cuda.empty_cache()
        self._say(f"warning: steps run without CUDA graphs, which is slower: {reason}")

    def _has_room(self) -> bool:
        peak = torch.cuda.max_memory_allocated(self._device)
        graphs = len(self._graphs) + len(self._memory)
        if graphs >= _MOST_GRAPHS or peak > _LARGEST_SHARE * memory_of(self._device):
            return False
        # Others may compute on the same GPU.
        free, _ = torch.cuda.mem_get_info(self._device)
        cached = torch.cuda.memory_reserved(self._device)
        return peak < free + cached


@dataclass(frozen=True)
class _Memory:
    """Where captured work reads its batch."""

    batch: ImageBatch
    keys: Tensor

    @classmethod
    def like(cls, batch: ImageBatch, keys: Tensor, most_pixels: int) -> "_Memory":
        """Memory for batches of as many images, with so many pixels at most."""
        own = replace(
            batch,
            pixels=torch.zeros(most_pixels, dtype=batch.pixels.dtype, device=batch.pixels.device),
            # Of no value here: what would read them must not take this batch's for another's.
            rows=torch.empty(len(batch), dtype=torch.int64, device="meta"),
            **{name: getattr(batch, name).clone() for name in batch.numbers},
        )
        return cls(own, keys.clone())

    def holds(self, batch: ImageBatch) -> bool:
        return len(batch.pixels) <= len(self.batch.pixels)

    def copy(self, batch: ImageBatch, keys: Tensor) -> None:
        self.batch.pixels[: len(batch.pixels)].copy_(batch.pixels)
        torch._foreach_copy_(
            [*(getattr(self.batch, name) for name in batch.numbers), self.keys],
            [*(getattr(batch, name) for name in batch.numbers), keys],
        )


@dataclass(frozen=True)
class _Graph:
    """One captured piece of work, and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    memory: _Memory
    result: Tensor

    @classmethod
    def capture(cls, work: Work, memory: _Memory, pool: Any) -> "_Graph":
        """Record the work without doing it."""
        graph, result = _record(work, memory.batch, memory.keys, pool)
        return cls(graph, memory, result)

    def replay(self, batch: ImageBatch, keys: Tensor) -> Tensor:
        """Do the work on another batch of the same number of images."""
        self.memory.copy(batch, keys)
        self.graph.replay()
        # The next replay writes to the same place.
        return self.result.clone()


def _record(
    work: Work, batch: ImageBatch, keys: Tensor, pool: Any
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    graph = torch.cuda.CUDAGraph()
    device = keys.device
    before = torch.cuda.current_stream(device)
    try:
        with _capturing(graph, device, pool):
            result = work(batch, keys)
    except RuntimeError:
        torch.cuda.set_stream(before)
        _end_failed_capture(device, pool)
        raise
    return graph, result


def _capturing(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> Any:
    # Other threads, which read ahead into pinned memory, may go on meanwhile.
    stream = _capture_stream(device)
    return torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")


def _end_failed_capture(device: torch.device, pool: Any) -> None:
    """Undo what torch undoes only after a capture that succeeds.

    Otherwise nothing that is cached would be freed in this process any more, and the next random
    number on the device be refused.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    # RuntimeError: the capture itself ended properly, and its graph lets go of the pool. To do so a
    # second time would free what other graphs of the pool use. AttributeError: a torch without.
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(index, pool)
        torch._C._cuda_releasePool(index, pool)
    with _capturing(torch.cuda.CUDAGraph(), device, torch.cuda.graph_pool_handle()):
        torch.zeros((), device=device)
