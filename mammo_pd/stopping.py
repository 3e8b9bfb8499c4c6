"""Signals that end a process: SIGTERM does so as Ctrl-C does, and a training saves itself first."""

import atexit
import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, Self

# The step under way may take so long to end; then it is interrupted where it is.
_PATIENCE_SECONDS = 2.0
# One request may come twice: SLURM signals every process of a job, and Apptainer passes it on.
_SAME_REQUEST_SECONDS = 0.5
# After SIGTERM, a process that answers nothing is ended; docker stop kills after ten seconds.
_LIMIT_SECONDS = 8.0


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came: from docker stop, SLURM or Kubernetes."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within the block, SIGTERM raises `TerminatedError`, unless it is ignored or handled.

    As the first process of a container, one would not even end by it otherwise.
    """
    # Only the main thread may set handlers.
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _Terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def pass_over_save_requests() -> None:
    """Let SIGUSR1 do nothing while there is nothing to save; by default it would end the process.

    SLURM sends it to every process of a job, also to one that is importing, or scores.
    """
    if _in_main_thread() and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, _nothing_to_save)


def end_at_once(status: int) -> NoReturn:
    """End a process that a signal has asked to, once all that it had to do is done.

    The interpreter would clear up every object first. With torch and MLflow imported that is 2 s of
    a core, and several times as much on a machine that is busy, where docker stop kills after ten
    seconds.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


class StopSignals:
    """Within the block, a signal asks for a checkpoint and does not break a step in half.

    SIGINT and SIGTERM ask for a checkpoint and the end, SIGUSR1, by which SLURM announces a
    requeue, for a checkpoint alone. What does not answer within seconds, or is asked a second time,
    is interrupted where it is.
    """

    def __init__(self) -> None:
        self._asked = False
        self._ending: type[KeyboardInterrupt] | None = None
        self._asked_at = -math.inf
        self._answered = threading.Event()
        self._is_saving = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if not _in_main_thread():
            return self
        terminate = signal.getsignal(signal.SIGTERM)
        if isinstance(terminate, _Terminate) and terminate.came:
            raise TerminatedError
        for number, handler in (
            (signal.SIGINT, self._end),
            (signal.SIGTERM, self._end),
            (signal.SIGUSR1, self._save),
        ):
            before = signal.getsignal(number)
            # One that is ignored, as by nohup, or the caller's own, stays.
            default = before in (signal.SIG_DFL, signal.default_int_handler, _nothing_to_save)
            if default or isinstance(before, _Terminate):
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        self._answered.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take_request(self) -> bool:
        """Whether a checkpoint was asked for since the last call; it is then the caller's to do."""
        asked, self._asked = self._asked, False
        if asked:
            self._answered.set()
        return asked

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Within the block a first signal interrupts nothing for as long as there is time.

        What is being written would be lost, and it is what the signal asks for.
        """
        self._is_saving = True
        try:
            yield
        finally:
            self._is_saving = False

    def raise_if_ending(self) -> None:
        """End what is under way, if that was asked for.

        Raises:
            KeyboardInterrupt: after Ctrl-C; `TerminatedError` after SIGTERM.
        """
        if self._ending is not None:
            self._answered.set()
            raise self._ending

    def _save(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def _end(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._ending is not None and now - self._asked_at < _SAME_REQUEST_SECONDS:
            return
        self.raise_if_ending()
        self._asked = True
        self._asked_at = now
        self._answered.clear()
        self._ending = TerminatedError if number == signal.SIGTERM else KeyboardInterrupt
        threading.Thread(target=self._insist, args=(number,), daemon=True).start()

    def _insist(self, number: int) -> None:
        if self._answered.wait(_PATIENCE_SECONDS):
            return
        if self._is_saving and self._answered.wait(_LIMIT_SECONDS - _PATIENCE_SECONDS):
            return
        # This time it is meant.
        self._asked_at = -math.inf
        # To the main thread, which may be waiting for something that only a signal interrupts.
        with contextlib.suppress(ProcessLookupError):
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        if number != signal.SIGTERM or self._answered.wait(_LIMIT_SECONDS - _PATIENCE_SECONDS):
            return
        # A device that waits for another that is gone returns to Python never.
        os._exit(128 + number)


class _Terminate:
    """Handles SIGTERM, and knows later that it came: an import may swallow what is raised in it."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise TerminatedError


def _nothing_to_save(number: int, frame: FrameType | None) -> None:
    pass


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
