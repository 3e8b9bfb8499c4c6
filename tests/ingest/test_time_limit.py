import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mammo_pd.errors import ImageError
from mammo_pd.ingest import preprocess as stage
from mammo_pd.ingest import process
from mammo_pd.ingest.preprocess import preprocess
from mammo_pd.ingest.process import Job, Outcome, process_file
from mammo_pd.ingest.time_limit import time_limit
from mammo_pd.terms import Reason

# Beyond it the process is ended, which on a machine that is busy may be this one.
_LONG_GRACE = 400.0


def test_what_takes_too_long_is_ended_even_where_every_exception_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mammo_pd.ingest.time_limit._GRACE", _LONG_GRACE)
    before = signal.getsignal(signal.SIGALRM)
    started = time.monotonic()
    with pytest.raises(ImageError, match="more than 0 seconds") as ended, time_limit(0.05):
        while time.monotonic() - started < 20:
            try:
                time.sleep(10)
            except Exception:
                continue
    assert ended.value.reason == Reason.TOO_SLOW
    assert ended.value.reason.may_pass
    assert time.monotonic() - started < 5
    assert signal.getsignal(signal.SIGALRM) == before


def test_what_is_in_time_is_left_alone() -> None:
    with time_limit(0.2):
        pass
    time.sleep(0.3)
    with pytest.raises(ZeroDivisionError), time_limit(5):
        raise ZeroDivisionError


def test_a_thread_is_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask runs its tasks in threads, which no signal reaches."""
    monkeypatch.setattr("mammo_pd.ingest.time_limit._GRACE", _LONG_GRACE)
    caught: list[BaseException] = []

    def work(limit: float) -> None:
        try:
            with time_limit(limit):
                for _ in range(40):
                    time.sleep(0.01)
        except BaseException as error:
            caught.append(error)

    for limit in (0.1, 60):
        thread = threading.Thread(target=work, args=[limit])
        thread.start()
        thread.join()
    [ended] = caught
    assert isinstance(ended, ImageError)
    assert ended.reason == Reason.TOO_SLOW


def test_a_thread_that_never_comes_back_to_python_ends_with_its_process() -> None:
    # A PyDLL function holds the interpreter's lock, as some decoders do.
    code = (
        "import ctypes, threading; from mammo_pd.ingest.time_limit import time_limit\n"
        "def work():\n    with time_limit(.2): ctypes.PyDLL(None).sleep(60)\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()"
    )
    ended = subprocess.run([sys.executable, "-c", code], timeout=50, check=False)
    assert ended.returncode == 1


def test_neither_a_slow_file_nor_one_that_is_stuck_stops_the_rest(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "d"
    shutil.copytree(sorted(phantoms.glob("PHANTOM*"))[0], folder)
    for name in ("slow.dcm", "stuck.dcm"):
        shutil.copy(next(folder.rglob("L_CC.dcm")), folder / name)
    monkeypatch.setattr(stage, "process_file", _process_slowly)
    summary = preprocess(folder, tmp_path / "s", workers=2, say=lambda _: None)
    assert summary.by_status == {
        ("ok", ""): 4,
        ("failed", "took_too_long"): 1,
        ("failed", "worker_died"): 1,
    }


def _process_slowly(job: Job) -> list[Outcome]:
    if job.source.name not in ("slow.dcm", "stuck.dcm"):
        return process_file(job)

    def read(_: Path) -> bytes:
        if job.source.name == "stuck.dcm":
            # As in a decoder that never comes back to Python.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        time.sleep(30)
        return b""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "_SECONDS", 0.3)
        if job.source.name == "slow.dcm":
            patch.setattr("mammo_pd.ingest.time_limit._GRACE", _LONG_GRACE)
        patch.setattr(process, "content_digest", read)
        return process_file(job)
