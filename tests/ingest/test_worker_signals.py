"""Ctrl-C is answered by the process that uses the workers, and by it alone."""

import os
import signal
from multiprocessing import forkserver

import pytest

from mammo_pd.ingest import workers
from mammo_pd.ingest.workers import run_in_processes


def blocked(_: int) -> set[int]:
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])}


def test_workers_get_no_interrupt_from_their_first_moment() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    ((_, of_worker),) = run_in_processes([1], blocked, 1)
    assert of_worker == before | {signal.SIGINT}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_nor_do_those_of_a_server_that_is_started_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one ended between the start of the pool and that of its first worker."""
    start = workers._start_pool

    def start_and_end_the_server(count: int):
        pool = start(count)
        server = forkserver._forkserver._forkserver_pid
        os.kill(server, signal.SIGKILL)
        os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
        return pool

    monkeypatch.setattr(workers, "_start_pool", start_and_end_the_server)
    ((_, of_worker),) = run_in_processes([1], blocked, 1)
    assert signal.SIGINT in of_worker
