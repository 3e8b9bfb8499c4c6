"""A limit to the time that one file may take, for workers."""

import ctypes
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import ClassVar, TextIO

from mammo_pd.errors import ImageError
from mammo_pd.terms import Reason

# How much longer code that Python cannot interrupt is waited for.
_GRACE = 1.2


class _TimeIsUp(BaseException):
    """No Exception, so that nothing on the way takes it for a decoder's failure."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End what takes too long in a worker: in its main thread, or in one of its threads (Dask's).

    Python code is interrupted. A decoder that does not come back to Python is ended with its
    process, a fifth of the time later; a Dask worker's nanny then starts another.

    Args:
        seconds: the limit.

    Raises:
        ImageError: the time is up (``took_too_long``).
    """
    of_thread = threading.current_thread() is not threading.main_thread()
    try:
        with _ThreadAlarm(seconds) if of_thread else _process_alarm(seconds):
            yield
    except _TimeIsUp:
        raise ImageError(
            Reason.TOO_SLOW, f"The file took more than {seconds:.0f} seconds; is it damaged?"
        ) from None


@contextmanager
def _process_alarm(seconds: float) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _interrupt)
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(seconds * _GRACE, exit=True, file=nowhere)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, before)


@cache
def _nowhere() -> TextIO:
    return Path(os.devnull).open("w")


def _interrupt(*_: object) -> None:
    raise _TimeIsUp


class _ThreadAlarm:
    """The same for a thread, which no signal reaches; several of a process may run at a time.

    A thread cannot be ended alone. So the process ends when the last of the limits is over, by a
    watchdog that needs no interpreter: a decoder may hold its lock.
    """

    _deadlines: ClassVar[dict[int, float]] = {}
    _watch = threading.Lock()

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._thread = ctypes.c_ulong(threading.get_ident())
        self._lock = threading.Lock()
        self._is_over = False
        self._timer = threading.Timer(seconds, self._interrupt)
        self._timer.daemon = True

    def __enter__(self) -> None:
        with self._watch:
            self._deadlines[id(self)] = time.monotonic() + self._seconds * _GRACE
            self._set_watchdog()
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_over = True
            # What came too late must not go off in the caller's code.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, None)
        self._timer.cancel()
        with self._watch:
            del self._deadlines[id(self)]
            self._set_watchdog()

    def _set_watchdog(self) -> None:
        if not self._deadlines:
            faulthandler.cancel_dump_traceback_later()
            return
        left = max(self._deadlines.values()) - time.monotonic()
        faulthandler.dump_traceback_later(max(left, 0.01), exit=True, file=_nowhere())

    def _interrupt(self) -> None:
        with self._lock:
            if not self._is_over:
                exception = ctypes.py_object(_TimeIsUp)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, exception)
