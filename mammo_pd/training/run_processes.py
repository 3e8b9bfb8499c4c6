"""Runs as processes: a few at a time, each with a log of its own, and none outlives this one."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mammo_pd.locks import lock

_POLL_SECONDS = 0.2
# For a run to close its record in MLflow.
_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class RunProcess:
    """A run to be made by a process.

    Attributes:
        name: for people.
        command: words, the first of which is the program.
        log: takes what the process prints, after what is there.
    """

    name: str
    command: tuple[str, ...]
    log: Path


def run_processes(
    runs: Sequence[RunProcess],
    *,
    at_once: int,
    environment: Mapping[str, str],
    ended: Callable[[RunProcess, int], bool],
    tick: Callable[[Sequence[RunProcess]], None],
) -> None:
    """Start the processes in order, some at a time, and wait for all of them.

    Where this ends by an error or a signal, those that run are ended too: by SIGINT, and after a
    grace period by SIGKILL.

    Args:
        runs: to be made.
        at_once: how many.
        environment: of each.
        ended: is told of each that ended and its exit status; False to start no further one.
        tick: is told several times a second which ones run.

    Raises:
        InputError: another process, left over from an earlier one of these, is at one of them.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP.
    """
    waiting = list(runs)
    running: dict[RunProcess, subprocess.Popen[bytes]] = {}
    with _signals_interrupt():
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    run = waiting.pop(0)
                    running[run] = _start(run, environment)
                tick(list(running))
                time.sleep(_POLL_SECONDS)
                for run, process in list(running.items()):
                    status = process.poll()
                    if status is not None:
                        del running[run]
                        if not ended(run, status):
                            waiting.clear()
        finally:
            _end(running.values())


def last_line(log: Path) -> str:
    """The last line that a process printed, without what a progress bar drew over."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _start(run: RunProcess, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with run.log.open("ab") as log:
        # The process and its own children inherit the lock with the file: should this process be
        # killed outright, nobody begins the run a second time while it is being trained.
        lock(
            log,
            f"{run.name} is still being trained by a process left behind by an earlier command; "
            "wait for it, or stop it.",
        )
        return subprocess.Popen(
            run.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            # Ctrl-C reaches this process alone, which ends the others.
            start_new_session=True,
        )


def _end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """End processes and their children: whichever does not heed SIGINT in time is killed."""
    processes = list(processes)
    for number, grace in ((signal.SIGINT, _GRACE_SECONDS), (signal.SIGKILL, None)):
        for process in processes:
            # The group goes with its last process.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        limit = None if grace is None else time.monotonic() + grace
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(None if limit is None else max(0.0, limit - time.monotonic()))


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt within, unless they are ignored, as by nohup."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {}
    # Only the main thread may set handlers.
    with contextlib.suppress(ValueError):
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
