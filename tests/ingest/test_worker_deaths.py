"""Processes that are killed while they read images, as where memory runs out."""

import importlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path

import pytest

from mammo_pd.errors import InputError
from mammo_pd.ingest import workers


def double(number: int) -> int:
    return 2 * number


def die_of_zero(number: int) -> int:
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


@pytest.fixture
def quick_servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fork servers that load nothing; the tests that follow get one that has loaded MONAI."""
    _end_server()
    monkeypatch.setattr(
        BaseContext,
        "set_forkserver_preload",
        lambda *_: forkserver.set_forkserver_preload([]),
    )
    yield
    _end_server()


def _end_server() -> None:
    if (server := forkserver._forkserver._forkserver_pid) is not None:
        os.kill(server, signal.SIGKILL)
        _wait_for(server)


def _wait_for(server: int) -> None:
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)


@pytest.mark.usefixtures("quick_servers")
@pytest.mark.parametrize(
    ("work", "struck", "lost"),
    [
        # The pool of all workers, and the one in which each job is tried alone.
        (double, {0}, set()),
        (double, {0, 1, 2, 3}, set()),
        (die_of_zero, {1}, {0}),
        (die_of_zero, {1, 2, 3}, {0}),
    ],
)
def test_fork_server_that_is_killed_while_it_starts_a_worker_costs_no_job(
    monkeypatch: pytest.MonkeyPatch, work, struck: set[int], lost: set[int]
) -> None:
    start, started, killed = workers._start_pool, [], []

    def start_and_strike(count: int) -> ProcessPoolExecutor:
        for server in killed:
            _wait_for(server)
        pool = start(count)
        if len(started) in struck:
            # It is the largest process, and so the first that the kernel ends. Stopped, it takes
            # the order for a worker and does not answer.
            server = forkserver._forkserver._forkserver_pid
            os.kill(server, signal.SIGSTOP)
            killed.append(server)
            threading.Timer(0.5, os.kill, (server, signal.SIGKILL)).start()
        started.append(pool)
        return pool

    monkeypatch.setattr(workers, "_start_pool", start_and_strike)
    results = list(workers.run_in_processes(list(range(8)), work, 2))
    assert results == [(job, None if job in lost else 2 * job) for job in range(8)]
    assert len(started) > max(struck)


@pytest.mark.usefixtures("quick_servers")
def test_where_no_worker_lives_the_run_ends_before_every_image_is_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory does not even suffice for what workers import."""
    (tmp_path / "never_imported_by_workers.py").write_text(
        "import multiprocessing, os\n"
        "if multiprocessing.parent_process() is not None:\n"
        "    os._exit(1)\n"
        "def work(job):\n"
        "    return job\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("never_imported_by_workers").work
    with pytest.raises(InputError, match="worker processes die before they read any file"):
        list(workers.run_in_processes(list(range(8)), work, 2))
