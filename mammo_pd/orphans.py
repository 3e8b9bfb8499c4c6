"""End processes when their parent dies, however it died, so that no orphan keeps working."""

import ctypes
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait

_PR_SET_PDEATHSIG = 1


def signal_when_parent_dies(number: int) -> None:
    """Have the kernel send this process a signal when its parent dies (Linux).

    Args:
        number: of the signal.
    """
    # On other systems, a process that is killed outright leaves its children behind.
    call = getattr(ctypes.CDLL(None), "prctl", None)
    if call is not None:
        call(_PR_SET_PDEATHSIG, number)


def end_with_parent() -> None:
    """End this worker when the process that uses it dies.

    The kernel would watch the fork server, the worker's actual parent, which lives as long as there
    are workers.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
