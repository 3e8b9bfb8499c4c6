import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mammo_pd.errors import InputError
from mammo_pd.locks import locked
from mammo_pd.training import run_processes as module
from mammo_pd.training.run_processes import RunProcess, last_line, run_processes

WAIT = "import time; time.sleep(60)"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)


def process(folder: Path, name: str, program: str) -> RunProcess:
    command = (sys.executable, "-I", "-S", "-c", program)
    return RunProcess(name, command, folder / f"{name}.log")


def run_all(
    runs: Sequence[RunProcess],
    at_once: int = 1,
    ended: Callable[[RunProcess, int], bool] = lambda run, status: True,
    tick: Callable[[Sequence[RunProcess]], None] = lambda running: None,
) -> None:
    run_processes(runs, at_once=at_once, environment=os.environ, ended=ended, tick=tick)


def is_running(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_each_is_run_once_and_so_many_at_a_time(tmp_path: Path, at_once: int) -> None:
    runs = [
        process(tmp_path, f"r{i}", f"print('this is {i}'); raise SystemExit({i})") for i in range(4)
    ]
    statuses: dict[str, int] = {}
    most = 0

    def ended(run: RunProcess, status: int) -> bool:
        assert run.name not in statuses
        statuses[run.name] = status
        return True

    def tick(running: Sequence[RunProcess]) -> None:
        nonlocal most
        most = max(most, len(running))

    run_all(runs, at_once, ended, tick)
    assert statuses == {f"r{i}": i for i in range(4)}
    assert most == min(at_once, 4)
    assert [last_line(run.log) for run in runs] == [f"this is {i}" for i in range(4)]


def test_log_is_gone_on_with(tmp_path: Path) -> None:
    for word in ("first", "second"):
        run_all([process(tmp_path, "run", f"print('{word}')")])
    assert (tmp_path / "run.log").read_text() == "first\nsecond\n"


def test_no_further_one_is_started_where_so_decided(tmp_path: Path) -> None:
    runs = [process(tmp_path, f"r{i}", "raise SystemExit(1)") for i in range(3)]
    seen = []
    run_all(runs, ended=lambda run, status: bool(seen.append(run.name)))
    assert seen == ["r0"]
    assert not runs[1].log.exists()


@pytest.mark.parametrize(
    "program",
    [
        "",
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
    ],
    ids=["obedient", "deaf"],
)
def test_none_outlives_an_error_nor_do_its_children(
    tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GRACE_SECONDS", 0.2)
    program += f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", {WAIT!r}])
for name, pid in (("parent", os.getpid()), ("child", child.pid)):
    open({str(tmp_path)!r} + "/" + name + ".new", "w").write(str(pid))
    os.rename({str(tmp_path)!r} + "/" + name + ".new", {str(tmp_path)!r} + "/" + name)
{WAIT}
"""

    def tick(running: Sequence[RunProcess]) -> None:
        if (tmp_path / "child").exists():
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_all([process(tmp_path, "run", program)], tick=tick)
    assert not is_running(tmp_path / "parent")
    # Its parent's death leaves a killed child for init to reap.
    status = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().split(") ")[1][0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("a child is left behind")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_interrupt_and_are_as_before_afterwards(tmp_path: Path, number: int) -> None:
    before = signal.getsignal(number)

    def tick(running: Sequence[RunProcess]) -> None:
        os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        run_all([process(tmp_path, "run", WAIT)], tick=tick)
    assert signal.getsignal(number) is before


def test_run_that_another_process_is_at_is_refused(tmp_path: Path) -> None:
    run = process(tmp_path, "fold1-seed0", "pass")
    with run.log.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="fold1-seed0 is still being trained"):
            run_all([run])
    run_all([run])


def test_process_left_behind_keeps_others_from_its_run(tmp_path: Path) -> None:
    """Where the command that started it was killed outright."""
    pid_file = tmp_path / "pid"
    program = f"import os; open({str(pid_file)!r}, 'w').write(str(os.getpid())); {WAIT}"
    run = process(tmp_path, "run", program)
    starter = f"""
import os
from pathlib import Path
from mammo_pd.training.run_processes import RunProcess, run_processes
run = RunProcess("run", {run.command!r}, Path({str(run.log)!r}))
run_processes([run], at_once=1, environment=os.environ, ended=print, tick=lambda running: None)
"""
    command = subprocess.Popen([sys.executable, "-c", starter])
    try:
        for _ in range(600):
            if pid_file.exists() and pid_file.read_text():
                break
            time.sleep(0.05)
        command.kill()
        command.wait()
        assert is_running(pid_file)
        with pytest.raises(InputError, match="left behind"):
            run_all([run])
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


def test_lock_is_held_by_one_and_let_go(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock"),
        pytest.raises(InputError, match="another process is using"),
        locked(tmp_path / "lock"),
    ):
        pass
    with locked(tmp_path / "lock"):
        pass
