"""A limit to the time that one file may take, for workers."""

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
    """End what takes too long, in the main thread of a worker; elsewhere nothing is limited.

    Python code is interrupted. A decoder that does not come back to Python is ended with its
    process, a fifth of the time later.

    Args:
        seconds: the limit.

    Raises:
        ImageError: the time is up (``took_too_long``).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _interrupt)
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(seconds * _GRACE, exit=True, file=nowhere)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        except _TimeIsUp:
            raise ImageError(
                Reason.TOO_SLOW, f"The file took more than {seconds:.0f} seconds; is it damaged?"
            ) from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, before)


def _interrupt(*_: object) -> None:
    raise _TimeIsUp
