"""Hand out jobs to processes of this machine or to a Dask cluster; results come back in order.

A worker that dies (a decoder crash, or out of memory), or the server that forks them, costs its own
job only.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from typing import TypeVar

from mammo_pd.errors import InputError, cause_of
from mammo_pd.main_guard import refuse_unguarded_script
from mammo_pd.orphans import end_with_parent

J = TypeVar("J")
R = TypeVar("R")

# Jobs under way for each worker: enough that none waits, few enough to hold little.
_JOBS_PER_WORKER = 4
# Workers that may die before they can do anything, one after the other.
_STARTS = 5


def run_in_processes(
    jobs: list[J], work: Callable[[J], R], workers: int
) -> Iterator[tuple[J, R | None]]:
    """Do the jobs in processes forked from a server that has loaded MONAI once.

    Args:
        jobs: in the order in which their results are wanted.
        work: a function that can be pickled.
        workers: number of processes.

    Yields:
        Each job and its result; None if its worker died.

    Raises:
        InputError: a script asks for it from its top level, or no worker can be started.
        Exception: whatever ``work`` raises.
    """
    refuse_unguarded_script()
    ahead = workers * _JOBS_PER_WORKER
    done = 0
    while done < len(jobs):
        pool = _start_pool(workers)
        try:
            for job, future in _in_order(jobs[done:], _submitter(pool, work), ahead):
                yield job, future.result()
                done += 1
        except BrokenProcessPool:
            # One of the jobs under way killed its worker, and there is no telling which: each is
            # tried alone, so that only the culprit is lost.
            suspects = jobs[done : done + ahead + 1]
            yield from _run_one_by_one(suspects, work)
            done += len(suspects)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def run_on_cluster(
    jobs: list[J], work: Callable[[J], R], scheduler: str
) -> Iterator[tuple[J, R | None]]:
    """Do the jobs on a Dask cluster, which gives a dead worker's jobs to the others.

    Args:
        jobs: in the order in which their results are wanted.
        work: a function that can be pickled.
        scheduler: address, such as ``tcp://host:8786``.

    Yields:
        Each job and its result; None if it killed one worker after the other.

    Raises:
        InputError: Dask is not installed, or no scheduler answers.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise InputError(
            "--scheduler needs Dask; install it with: pip install 'mammo-pd[cluster]'"
        ) from error
    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler responds at {scheduler} ({cause_of(error)}); start one with: dask "
            "scheduler"
        ) from error
    with client:
        ahead = max(1, sum(client.nthreads().values())) * _JOBS_PER_WORKER
        # Not pure: the same job twice is work to be done twice, after a file has changed.
        submit = lambda job: client.submit(work, job, pure=False)  # noqa: E731
        for job, future in _in_order(jobs, submit, ahead):
            try:
                yield job, future.result()
            except KilledWorker:
                yield job, None


def _in_order(
    jobs: Iterable[J], submit: Callable[[J], "Future[R]"], ahead: int
) -> Iterator[tuple[J, "Future[R]"]]:
    """Submit jobs, a few ahead, and give them back in their order.

    In that order, so that which of two copies of an image is kept does not depend on timing.
    """
    under_way: deque[tuple[J, Future[R]]] = deque()
    for job in jobs:
        under_way.append((job, submit(job)))
        if len(under_way) > ahead:
            yield under_way.popleft()
    yield from under_way


def _submitter(pool: ProcessPoolExecutor, work: Callable[[J], R]) -> "Callable[[J], Future[R]]":
    def submit(job: J) -> "Future[R]":
        try:
            # It starts workers, and another fork server if the first is gone.
            with _interrupt_blocked():
                return pool.submit(work, job)
        except (EOFError, ConnectionError) as error:
            # Where memory runs out, the kernel ends the largest process first: the fork server,
            # here while it starts a worker.
            raise BrokenProcessPool("the fork server was killed") from error

    return submit


def _run_one_by_one(jobs: list[J], work: Callable[[J], R]) -> Iterator[tuple[J, R | None]]:
    pool = _start_ready_pool(work)
    try:
        for job in jobs:
            try:
                done = _submitter(pool, work)(job).result()
            except BrokenProcessPool:
                done = None
                pool = _start_ready_pool(work)
            yield job, done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_ready_pool(work: Callable[[J], R]) -> ProcessPoolExecutor:
    """Start one worker that is known to live, so that whatever job it dies of is to blame."""
    for _ in range(_STARTS):
        pool = _start_pool(1)
        try:
            _submitter(pool, _take)(work).result()
        except BrokenProcessPool:
            pool.shutdown(wait=True, cancel_futures=True)
        else:
            return pool
    raise InputError(
        f"worker processes die before they read any file ({_STARTS} in a row), for want of memory "
        "or because the installation is damaged; free memory, raise the container's limit, or run: "
        "mammo-pd doctor"
    )


def _take(work: object) -> None:
    """Nothing is done but what comes before all work: its modules are imported."""


def _start_pool(workers: int) -> ProcessPoolExecutor:
    # Importing MONAI takes seconds and hundreds of MiB: the fork server does it once, and workers
    # share its memory. Forking this process instead would copy its threads' locks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mammo_pd.ingest.preload"])
    resource_tracker.ensure_running()  # which would unblock the interrupt
    with _interrupt_blocked():
        forkserver.ensure_running()
    return ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=end_with_parent,
    )


@contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Block SIGINT, which a fork server started meanwhile and all that it forks inherit.

    The interrupt is for the process that uses the pool, which then stops it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
