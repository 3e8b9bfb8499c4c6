"""Processes whose parent is killed outright; no test here touches others than its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mammo_pd.phantoms import PhantomSettings, write_phantoms

CHILD = """
import signal, sys, time
from mammo_pd.orphans import signal_when_parent_dies
signal_when_parent_dies(signal.SIGTERM)
print("ready", flush=True)
time.sleep(60)
"""
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""
POOL = """
import os, sys, time
from mammo_pd.ingest import workers

def note(job):
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    list(workers.run_in_processes([1, 2], note, 2))
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def soon(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    limit = time.monotonic() + seconds
    while not true():
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


def assert_none_is_left(program: list[str], children: int, cwd: Path) -> None:
    """Start a program that prints its children's IDs; kill it, and see them go."""
    parent = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=cwd)
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(children)]
    try:
        assert all(is_alive(pid) for pid in pids)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert soon(lambda: not any(is_alive(pid) for pid in pids))
    finally:
        parent.kill()
        for pid in filter(is_alive, pids):
            os.kill(pid, signal.SIGKILL)


def test_child_is_told_that_its_parent_was_killed(tmp_path: Path) -> None:
    assert_none_is_left([sys.executable, "-c", PARENT], 1, tmp_path)


def test_workers_end_with_the_process_that_uses_them(tmp_path: Path) -> None:
    (tmp_path / "pool.py").write_text(POOL)
    assert_none_is_left([sys.executable, "pool.py"], 2, tmp_path)


@pytest.mark.slow
def test_killed_preprocess_leaves_no_process(tmp_path: Path) -> None:
    """Its fork server and resource tracker included."""
    folder = tmp_path / "dicom"
    write_phantoms(folder, PhantomSettings(patients=40, scale=0.3), processes=2)
    mark = f"MAMMO_PD_TEST={tmp_path}"

    def ours() -> list[int]:
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark.encode() in environ.read_bytes().split(b"\0"):
                    found.append(int(environ.parent.name))
            except OSError:
                continue
        return [pid for pid in found if is_alive(pid)]

    command = [sys.executable, "-m", "mammo_pd", "preprocess", str(folder), "--workers", "2"]
    name, _, value = mark.partition("=")
    for seconds in (1.0, 4.0, 8.0):
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "store")],
            env={**os.environ, name: value},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(seconds)
        process.kill()
        process.wait()
        assert soon(lambda: not ours()), seconds
