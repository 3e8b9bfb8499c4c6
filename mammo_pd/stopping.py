"""Signals that end a process: SIGTERM acts like Ctrl-C, and training saves itself first."""

import atexit
import contextlib
import errno
import io
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import Any, NoReturn, Self

# Seconds that the current step may take to finish before it is interrupted.
_PATIENCE_SECONDS = 2.0
# One request may arrive twice: SLURM signals every process of a job, and Apptainer forwards it.
_SAME_REQUEST_SECONDS = 0.5
# Until an interrupt that Python swallowed is raised again.
_SWALLOWED_SECONDS = 0.01
# After SIGTERM, an unresponsive process is ended; docker stop kills after ten seconds.
_LIMIT_SECONDS = 8.0
# For what others have registered to be done at the end.
_EXIT_SECONDS = 2.0


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came, from docker stop, SLURM or Kubernetes; or SIGHUP, to a training."""


class Request(IntEnum):
    """What signals ask of a training, the most urgent last; the two last ones also to be saved."""

    NOTHING = 0
    SAVE = 1
    INTERRUPT = 2
    TERMINATE = 3

    def raise_if_ending(self) -> None:
        """End the training, if that is what is asked.

        Raises:
            KeyboardInterrupt: after Ctrl-C; `TerminatedError` after SIGTERM or SIGHUP.
        """
        if self is Request.INTERRUPT:
            raise KeyboardInterrupt
        if self is Request.TERMINATE:
            raise TerminatedError


class FollowedError(KeyboardInterrupt):
    """This process of several ends together with the first, which has saved and tells why."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within the block, SIGTERM raises `TerminatedError`, unless it is ignored or handled.

    Otherwise the first process of a container would not even end on SIGTERM.
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
    """Ignore SIGUSR1 while there is nothing to save; by default it would end the process.

    SLURM sends it to every process of a job, including one that is still importing or is scoring.
    """
    if _in_main_thread() and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, _nothing_to_save)


def repeat_swallowed_interrupts() -> None:
    """Raise Ctrl-C and SIGTERM again where Python swallows the exception, instead of going on.

    That is in what the garbage collector and the import system call back. Python would print a
    traceback, and what was asked for would be lost.
    """
    otherwise = sys.unraisablehook

    def hook(swallowed: "sys.UnraisableHookArgs") -> None:
        if not issubclass(swallowed.exc_type, KeyboardInterrupt):
            otherwise(swallowed)
            return
        if sys.is_finalizing():  # when no thread starts any more
            return
        number = (
            signal.SIGTERM if issubclass(swallowed.exc_type, TerminatedError) else signal.SIGINT
        )
        # Not at once: raised within this function, it would be swallowed again.
        main = threading.main_thread().ident or 0
        again = threading.Timer(_SWALLOWED_SECONDS, signal.pthread_kill, (main, number))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook


def outlive_terminal() -> None:
    """Let what is written to a terminal that is gone vanish, instead of raising an error.

    It goes when an SSH connection breaks off, or without a signal when a shell ends that started
    the command in the background.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.isatty():
            # The stream that was there keeps the terminal open, as Python refers to it further on.
            terminal = io.BufferedWriter(_Terminal(stream.fileno(), "wb", closefd=False))
            lasting = io.TextIOWrapper(
                terminal,
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, lasting)


class _Terminal(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(data)


def pass_over_interrupts() -> None:
    """Ignore Ctrl-C while the interpreter cleans up, after all that was asked for is done.

    That takes seconds, and each cleaning that was cut short would print a traceback of its own.
    """
    if _in_main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_at_once(status: int) -> NoReturn:
    """End a process at once that a signal asked to end, after it has done all it had to.

    The interpreter would first clean up every object. With torch and MLflow imported that takes 2 s
    of a core, and several times as long on a busy machine, while docker stop kills after ten
    seconds. What is to be done at exit gets some seconds: torch 2.11 waits until each of its
    processes has compiled its kernel, and they end by themselves when this one is gone.
    """
    pass_over_interrupts()
    limit = threading.Timer(_EXIT_SECONDS, _flush_and_end, (status,))
    limit.daemon = True
    limit.start()
    # In this thread: Lightning, as it leaves NCCL, sets signal handlers, which no other may do.
    atexit._run_exitfuncs()
    _flush_and_end(status)


def _flush_and_end(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


class StopSignals:
    """Within the block, a signal requests a checkpoint instead of interrupting a step.

    SIGINT, SIGTERM and SIGHUP, which comes when the terminal goes, request a checkpoint and then
    the end; SIGUSR1, with which SLURM announces a requeue, only a checkpoint. If the training does
    not respond within seconds, or is asked a second time, it is interrupted where it is.
    """

    def __init__(self) -> None:
        # Since the last time that it was taken.
        self._is_asked_to_save = False
        # For good. Apart, so that no handler writes what another has written in between.
        self._ending = Request.NOTHING
        self._asked_at = -math.inf
        self._answered = threading.Event()
        self._is_saving = False
        self._handlers = {
            signal.SIGINT: self._end,
            signal.SIGTERM: self._end,
            signal.SIGHUP: self._hang_up,
            signal.SIGUSR1: self._save,
        }
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if not _in_main_thread():
            return self
        terminate = signal.getsignal(signal.SIGTERM)
        if isinstance(terminate, _Terminate) and terminate.came:
            raise TerminatedError
        for number, handler in self._handlers.items():
            before = signal.getsignal(number)
            # A handler that ignores the signal, as with nohup, or the caller's own, stays in place.
            default = before in (signal.SIG_DFL, signal.default_int_handler, _nothing_to_save)
            if default or isinstance(before, _Terminate):
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        self._answered.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take_back(self) -> None:
        """Handle the signals as before, where native code has installed its own handlers since.

        Triton's compiler does so, by LLVM, when it first compiles in a process: from then on
        SIGUSR1 does nothing, and the second of two SIGINT or SIGTERM at once, as ``timeout`` and
        SLURM send them, ends the process before Python hears of either. The caller's own handlers
        are lost likewise, and the second SIGHUP ends the process even under nohup. Costs some
        20 microseconds. Source: LLVM, lib/Support/Unix/Signals.inc.
        """
        if not _in_main_thread():
            return
        for number in self._handlers:
            # None if it was not Python that installed it.
            if (handler := signal.getsignal(number)) is not None:
                signal.signal(number, handler)

    def take_request(self) -> Request:
        """What is asked; the caller must then do it. A request to save is told once."""
        save, self._is_asked_to_save = self._is_asked_to_save, False
        asked = max(self._ending, Request.SAVE if save else Request.NOTHING)
        if asked:
            self._answered.set()
        return asked

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Within the block, a first signal does not interrupt as long as there is time.

        Otherwise the file being written, which is what the signal asks for, would be lost.
        """
        self._is_saving = True
        try:
            yield
        finally:
            self._is_saving = False

    def _save(self, number: int, frame: FrameType | None) -> None:
        self._is_asked_to_save = True

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        # Shell and kernel tell it one after the other, which is no second request.
        is_told_again = self._ending and self._asked_at != -math.inf
        if not is_told_again:
            self._end(number, frame)

    def _end(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._ending and now - self._asked_at < _SAME_REQUEST_SECONDS:
            return
        if self._ending:
            self._answered.set()
            self._ending.raise_if_ending()
        self._asked_at = now
        self._answered.clear()
        self._ending = Request.INTERRUPT if number == signal.SIGINT else Request.TERMINATE
        threading.Thread(target=self._insist, args=(number,), daemon=True).start()

    def _insist(self, number: int) -> None:
        if self._answered.wait(_PATIENCE_SECONDS):
            return
        if self._is_saving and self._answered.wait(_LIMIT_SECONDS - _PATIENCE_SECONDS):
            return
        # This time it is meant.
        self._asked_at = -math.inf
        # Sent to the main thread, which may be blocked in a call that only a signal interrupts.
        with contextlib.suppress(ProcessLookupError):
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        if number == signal.SIGINT or self._answered.wait(_LIMIT_SECONDS - _PATIENCE_SECONDS):
            return
        # A device waiting for another that is gone never returns to Python.
        os._exit(128 + number)


class _Terminate:
    """Handles SIGTERM and remembers it: an import may swallow the exception raised during it."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise TerminatedError


def _nothing_to_save(number: int, frame: FrameType | None) -> None:
    pass


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
