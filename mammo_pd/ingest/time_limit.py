"""A limit to the time that one file may take, for workers."""

import ctypes
import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def _interrupt(*_: object) -> None:
    raise _TimeIsUp


class _ThreadAlarm:
    """The same for a thread, which no signal reaches."""

    def __init__(self, seconds: float) -> None:
        self._thread = ctypes.c_ulong(threading.get_ident())
        self._lock = threading.Lock()
        self._is_over = False
        self._timers = [
            threading.Timer(seconds, self._interrupt),
            # Without clean-up, as a decoder's crash would: the thread cannot be ended alone.
            threading.Timer(seconds * _GRACE, os._exit, [1]),
        ]

    def __enter__(self) -> None:
        for timer in self._timers:
            timer.daemon = True
            timer.start()

    def __exit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.cancel()
        with self._lock:
            self._is_over = True
            # What came too late must not go off in the caller's code.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, None)

    def _interrupt(self) -> None:
        with self._lock:
            if not self._is_over:
                exception = ctypes.py_object(_TimeIsUp)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, exception)
