"""Ctrl-C is answered by the process that uses the workers, and by it alone."""

import signal
import subprocess
import sys

import pytest

from mammo_pd.ingest.workers import run_in_processes


def blocked(_: int) -> set[int]:
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])}


def test_workers_get_no_interrupt_from_their_first_moment() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    ((_, of_worker),) = run_in_processes([1], blocked, 1)
    assert of_worker == {signal.SIGINT}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.parametrize(
    ("error", "printed"), [("FileNotFoundError", False), ("EOFError", False), ("ValueError", True)]
)
def test_worker_that_starts_too_late_is_no_traceback(error: str, printed: bool) -> None:
    """The parent is gone, and with it the semaphores that a worker begins with."""
    program = f"import mammo_pd.ingest.preload\nraise {error}('late')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ("Traceback" in done.stderr) == printed
