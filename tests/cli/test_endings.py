"""How a command ends: without a traceback, whoever ends it, and without a trace elsewhere."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mammo_pd.cli.app import main

HELP = [sys.executable, "-m", "mammo_pd", "--help"]


@pytest.mark.parametrize("at_once", [True, False], ids=["as it prints", "as it ends"])
@pytest.mark.parametrize("errors_too", [False, True], ids=["| head", "2>&1 | head"])
def test_reader_that_goes_away_ends_the_command_without_a_word(
    errors_too: bool, at_once: bool
) -> None:
    program = (
        "import sys\n"
        "from mammo_pd import start\n"
        "from mammo_pd.data import store\n"
        "from mammo_pd.errors import InputError\n"
        "def say(_):\n"
        f"    print('a line', flush={at_once})\n"
        "    raise InputError('an error')\n"
        "store.open_store = say\n"
        "sys.argv = ['mammo-pd', 'split']\n"
        "sys.exit(start.main())\n"
    )
    read, write = os.pipe()
    os.close(read)
    errors = write if errors_too else subprocess.PIPE
    done = subprocess.run([sys.executable, "-c", program], stdout=write, stderr=errors)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr in (None, b"", b"mammo-pd: error: an error\n")


def test_help_without_a_reader_is_no_traceback() -> None:
    """It is printed by rich, which ends the program itself."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(HELP, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.stderr == b""


def test_other_broken_pipes_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise BrokenPipeError("a worker")

    monkeypatch.setattr("mammo_pd.data.store.open_store", fail)
    with pytest.raises(BrokenPipeError):
        main(["split"])


def test_closed_output_is_no_error() -> None:
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *HELP], stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


def test_interrupt_while_the_program_is_imported_is_one_line() -> None:
    program = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'cyclopts':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from mammo_pd.start import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.strip() == "mammo-pd: interrupted during start-up."


@pytest.mark.parametrize("closed", [False, True], ids=["stderr", "no stderr"])
def test_a_crash_in_a_librarys_code_is_not_without_a_word(closed: bool) -> None:
    program = (
        "import faulthandler\n"
        "from mammo_pd import start\n"
        "from mammo_pd.cli import app\n"
        "app.main = faulthandler._sigsegv\n"
        "start.main()\n"
    )
    command = [sys.executable, "-c", program]
    if closed:
        command = ["sh", "-c", '"$@" 2>&-', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (-signal.SIGSEGV, 128 + signal.SIGSEGV)
    told = "Fatal Python error: Segmentation fault" in done.stderr
    assert told != closed


@pytest.mark.parametrize(("number", "said"), [(2, "interrupted"), (15, "terminated")])
def test_signal_that_python_swallows_in_a_callback_is_heeded(
    number: int, said: str, tmp_path: Path
) -> None:
    """As it does in one of the import system's, and then goes on."""
    program = (
        "import os, sys, time, weakref\n"
        "from mammo_pd import start\n"
        "from mammo_pd.data import store\n"
        "def callback(_):\n"
        f"    os.kill(os.getpid(), {number})\n"
        "    time.sleep(60)\n"
        "def work(_):\n"
        "    watched = {1}\n"
        "    reference = weakref.ref(watched, callback)\n"
        "    del watched\n"
        "    time.sleep(30)\n"
        "    print('went on')\n"
        "store.open_store = work\n"
        "sys.argv = ['mammo-pd', 'split']\n"
        "sys.exit(start.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=50
    )
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert "went on" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_at_any_time_of_the_first_seconds_leaves_no_traceback(
    number: int, phantom_store: Path, tmp_path: Path
) -> None:
    words = ["train", "--store", str(phantom_store), "--runs", str(tmp_path), "--res", "64x48"]
    words += ["--set", "model.name=vit_tiny_patch16_224", "--set", "device.accelerator=cpu"]
    for tenths in range(1, 60, 2):
        process = subprocess.Popen(
            [sys.executable, "-m", "mammo_pd", *words], stderr=subprocess.PIPE, text=True
        )
        time.sleep(tenths / 10)
        process.send_signal(number)
        started = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors, (tenths, errors)
        # Python's own start is not ours.
        assert process.returncode in (128 + number, -number), (tenths, errors)
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", ".hidden", "a\nb", "\\x"])
@pytest.mark.parametrize("words", [["split"], ["train", "--split"]], ids=["split", "train"])
def test_name_of_a_split_that_leads_out_of_the_store_is_refused(
    name: str,
    words: list[str],
    phantom_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(phantom_store.parent.rglob("*.csv"))
    if words == ["split"]:
        given = ["split", str(phantom_store), "--name", name]
    else:
        given = ["train", "--store", str(phantom_store), "--split", name]
    assert main(given) == 2
    assert f"{name!r} cannot be the name of a split" in capsys.readouterr().err
    assert sorted(phantom_store.parent.rglob("*.csv")) == before


def test_terminated_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "mammo_pd.data.store.open_store", lambda _: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert main(["split"]) == 143
    assert "terminated; finished work is kept" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("given", "speaks"),
    [
        ({"LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
    ],
)
def test_of_several_processes_that_train_together_one_says_that_it_was_ended(
    given: dict[str, str],
    speaks: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "mammo_pd.data.store.open_store", lambda _: os.kill(os.getpid(), signal.SIGTERM)
    )
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["split"]) == 143
    assert ("terminated" in capsys.readouterr().err) == speaks


def test_process_that_ends_with_the_first_one_has_not_failed() -> None:
    """Otherwise whoever started them would kill the first before it has ended."""
    program = (
        "import atexit, os, signal, sys\n"
        "from mammo_pd import start\n"
        "from mammo_pd.data import store\n"
        "from mammo_pd.stopping import FollowedError\n"
        "def end(_):\n"
        "    raise FollowedError\n"
        "store.open_store = end\n"
        "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
        "    atexit.register(os.kill, os.getpid(), number)\n"
        "sys.argv = ['mammo-pd', 'split']\n"
        "sys.exit(start.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    ("words", "under_way", "goes_on"),
    [
        (["inspect", "."], "ingest.survey.find_images", False),
        (["predict", "model.safetensors", "."], "ingest.walk.find_images", True),
        (["export", "model.safetensors", "--bundle", "b"], "inference.bundle.write_bundle", False),
        (["embed", "model.safetensors", "--store", "STORE"], "cli.embed._encoder", True),
        (["pretrain", "--store", "STORE"], "training.setup.RunSetup.build", True),
        (["sync"], "cli.sync.find_run", True),
        (["doctor"], "doctor.finding.run_check", False),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_command_says_whether_it_goes_on(
    words: list[str],
    under_way: str,
    goes_on: bool,
    number: int,
    phantom_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"mammo_pd.{under_way}", lambda *_, **__: os.kill(os.getpid(), number))
    given = [str(phantom_store) if word == "STORE" else word for word in words]
    assert main(given) == 128 + number
    said = capsys.readouterr().err
    assert ("terminated; " if number == signal.SIGTERM else "interrupted; ") in said
    ending = (
        "the same command continues from there." if goes_on else "run the same command to start"
    )
    assert ending in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.safetensors"]


@pytest.mark.parametrize(("status", "cleared_up"), [(130, False), (143, False), (0, True)])
def test_a_command_that_a_signal_ended_does_not_clear_up_what_the_system_does(
    status: int, cleared_up: bool
) -> None:
    """As the interpreter does for seconds, once torch is imported; exit functions are called."""
    program = (
        "import atexit, sys\n"
        "from mammo_pd import start\n"
        "from mammo_pd.cli import app\n"
        "class Object:\n"
        "    def __del__(self):\n"
        "        print('cleared up', flush=True)\n"
        "sys.modules['kept'] = Object()\n"
        "atexit.register(print, 'exit function')\n"
        f"app.main = lambda: {status}\n"
        "sys.stdout.write('not flushed yet, ')\n"
        "sys.exit(start.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == status
    assert done.stderr == ""
    expected = "not flushed yet, exit function\n" + "cleared up\n" * cleared_up
    assert done.stdout == expected


@pytest.mark.parametrize(
    ("status", "environment", "waits"),
    [
        (130, {"LOCAL_RANK": "1"}, True),
        (143, {"LOCAL_RANK": "1"}, True),
        (130, {"LOCAL_RANK": "0"}, False),
        (130, {}, False),
        (0, {"LOCAL_RANK": "1"}, False),
        (2, {"LOCAL_RANK": "1"}, False),
        (143, {"LOCAL_RANK": "0", "RANK": "2", "TORCHELASTIC_RUN_ID": "none"}, True),
    ],
)
def test_of_several_processes_the_others_let_the_first_one_save(
    status: int, environment: dict[str, str], waits: bool
) -> None:
    """Lightning kills the first when another has ended with an error; Ctrl-C again ends all."""
    program = (
        "import os, signal, sys\n"
        "from mammo_pd import start\n"
        "from mammo_pd.cli import app\n"
        "def sleep(seconds):\n"
        "    print('waits', seconds, flush=True)\n"
        "    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):\n"
        "        os.kill(os.getpid(), number)\n"
        "start.time.sleep = sleep\n"
        f"app.main = lambda: {status}\n"
        "sys.exit(start.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == status
    assert (done.stdout, done.stderr) == ("waits 10.0\n" if waits else "", "")


def test_what_takes_long_at_exit_does_not_keep_a_command_that_a_signal_ended() -> None:
    """As torch, which waits for the processes that compile; Ctrl-C again has nothing to end."""
    program = (
        "import atexit, os, signal, sys, threading\n"
        "from mammo_pd import start, stopping\n"
        "from mammo_pd.cli import app\n"
        "stopping._EXIT_SECONDS = 0.2\n"
        "def wait():\n"
        "    print('waits', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    threading.Event().wait(3600)\n"
        "    print('was waited for', flush=True)\n"
        "atexit.register(wait)\n"
        # Which the main thread alone may do; Lightning does, as it leaves NCCL.
        "atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)\n"
        "app.main = lambda: 143\n"
        "sys.exit(start.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "waits\n", "")


def test_ctrl_c_after_the_work_is_done_changes_nothing() -> None:
    """torch and MLflow clean up for seconds at exit, where it would print a traceback for each."""
    program = (
        "import atexit, signal, sys\n"
        "from mammo_pd import start\n"
        "from mammo_pd.cli import app\n"
        "atexit.register(signal.raise_signal, signal.SIGINT)\n"
        "app.main = lambda: 3\n"
        "sys.exit(start.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
