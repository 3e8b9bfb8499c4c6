"""Checkpoints of whole epochs: copied off the device at once, written while the next one trains."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from mammo_pd.training.checkpoint import Contents
from mammo_pd.training.runs import RunFolder

# As safetensors aligns them, at least.
_ALIGNMENT = 64


class CheckpointWriter:
    """Writes the weights that are kept and the state of each epoch in a thread.

    Epochs that end while another is still being written are skipped: the file on disk is always
    complete, and as recent as the disk's speed allows. `flush` brings it up to the last epoch. On
    exit the writer waits for the file being written.

    An epoch's weights are on disk before any state whose history includes that epoch.

    Args:
        run: takes the files.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job: Future[None] | None = None
        self._last_memory = _HostMemory()
        # The second one is filled while the first is being written, if that takes so long: pinned
        # memory takes as long to allocate as to fill many times.
        self._chosen_memory = (_HostMemory(), _HostMemory())
        self._filled = self._chosen_memory[0]
        self._written: _HostMemory | None = None
        self._chosen: Contents | None = None
        self._is_behind = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self._wait()

    def take_chosen(self, weights: Contents) -> None:
        """Copy the weights of the epoch that is kept so far; `save` writes them."""
        being_written = self._written if self._is_writing() else None
        self._filled = next(free for free in self._chosen_memory if free is not being_written)
        self._chosen = self._filled.copy(weights)

    def save(self, last: Callable[[], Contents]) -> None:
        """Copy the state after an epoch, to be written without waiting for the disk.

        Args:
            last: returns the state after the epoch; called only if it will be written.

        Raises:
            OSError: an earlier file could not be written.
        """
        self._is_behind = self._is_writing()
        if not self._is_behind:
            self._start(last)

    def flush(self, last: Callable[[], Contents]) -> None:
        """Wait until the last epoch passed to `save` is on disk.

        Args:
            last: returns the state after it.
        """
        self._wait()
        if self._is_behind:
            self._start(last)
            self._wait()
            self._is_behind = False

    def flush_chosen(self) -> None:
        """Wait until the weights that are kept are on disk."""
        self._wait()
        if self._chosen is not None:
            self._chosen.write(self._run.chosen)
            self._chosen = None

    def _start(self, last: Callable[[], Contents]) -> None:
        self._wait()
        state = self._last_memory.copy(last())
        self._job = self._thread.submit(self._write, self._chosen, state)
        self._written = None if self._chosen is None else self._filled
        self._chosen = None

    def _is_writing(self) -> bool:
        return self._job is not None and not self._job.done()

    def _wait(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def _write(self, chosen: Contents | None, last: Contents) -> None:
        if chosen is not None:
            chosen.write(self._run.chosen)
        last.write(self._run.last)
        self._run.midway.unlink(missing_ok=True)


def _allocate(size: int, *, pinned: bool) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError:
        # A container may limit pinned memory; copies are then slower.
        return torch.empty(size, dtype=torch.uint8)


class _HostMemory:
    """A reusable block of host memory, pinned for copies from a GPU."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def copy(self, contents: Contents) -> Contents:
        """The contents with all their tensors in this memory."""
        tensors = contents.tensors
        starts, end = [], 0
        for tensor in tensors.values():
            starts.append(end)
            end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        devices = {tensor.device for tensor in tensors.values() if tensor.is_cuda}
        if len(self._memory) < end:
            self._memory = _allocate(end, pinned=bool(devices))
        copies: dict[str, Tensor] = {}
        for start, (name, tensor) in zip(starts, tensors.items(), strict=True):
            flat = self._memory[start : start + tensor.nbytes].view(tensor.dtype)
            copies[name] = flat.view(tensor.shape)
            copies[name].copy_(tensor, non_blocking=True)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return replace(contents, tensors=copies)
