"""Ctrl-C is answered by the process that uses the workers, and by it alone."""

import signal

from mammo_pd.ingest.workers import run_in_processes


def blocked(_: int) -> set[int]:
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])}


def test_workers_get_no_interrupt_from_their_first_moment() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    ((_, of_worker),) = run_in_processes([1], blocked, 1)
    assert of_worker == before | {signal.SIGINT}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
