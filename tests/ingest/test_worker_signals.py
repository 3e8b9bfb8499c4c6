"""Ctrl-C is answered by the process that uses the workers, and by it alone."""

import signal
import subprocess
import sys

from mammo_pd.ingest.workers import run_in_processes


def blocked(_: int) -> set[int]:
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])}


def test_workers_get_no_interrupt_from_their_first_moment() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    ((_, of_worker),) = run_in_processes([1], blocked, 1)
    assert of_worker == {signal.SIGINT}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_worker_that_starts_too_late_is_no_traceback() -> None:
    """The parent is gone, and with it the semaphores that a worker begins with."""
    program = (
        "import sys\n"
        "import mammo_pd.ingest.preload\n"
        "for error in (FileNotFoundError('late'), EOFError('late'), ValueError('ours')):\n"
        "    sys.excepthook(type(error), error, None)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() == "ValueError: ours"
