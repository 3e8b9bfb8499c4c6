"""Signals and the clock within an epoch: what they save is gone on with, bit for bit."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.fabric.plugins import Precision
from mlflow import MlflowClient
from safetensors.torch import load_file
from small_runs import set_up, small

from mammo_pd import stopping
from mammo_pd.cli.app import main
from mammo_pd.config import dump_config
from mammo_pd.errors import InputError
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.stopping import FollowedError, Request, StopSignals, TerminatedError
from mammo_pd.training import epoch_meter, loop, run_state
from mammo_pd.training.averaging import WeightAverage
from mammo_pd.training.checkpoint import is_finite, newest_state, state_of
from mammo_pd.training.checkpoint_writer import CheckpointWriter
from mammo_pd.training.epoch_meter import EpochProgress
from mammo_pd.training.model_card import CheckpointHeader
from mammo_pd.training.run_state import MidwaySaver
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.train import resume, start_run, train

# Epochs of eight steps or so, and windows of losses that end within them.
CONFIG = small(training__batch_size=4, training__ema_decay=0.9, model__drop_path_rate=0.2)
WINDOW = 3


class KilledError(Exception):
    """Stands in for SIGKILL."""


@pytest.fixture(scope="module", autouse=True)
def _short_windows() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_meter, "LOG_EVERY", WINDOW)
        yield


def trained(store: Path, runs: Path, minutes: float = 30.0) -> RunFolder:
    training = CONFIG.training.replace(checkpoint_minutes=minutes)
    run = train(store, runs, CONFIG.replace(training=training), say=lambda _: None)
    assert run is not None
    return run


def resumed(run: RunFolder, say: Callable[[str], None] = lambda _: None) -> RunFolder:
    again = resume(run.path, say=say)
    assert again is not None
    return again


@pytest.fixture(scope="module")
def whole(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(phantom_store, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Does something as training begins some steps, counted from 0 over all epochs."""

    def arrange(acts: dict[int, Callable[[], None]]) -> None:
        sample, calls = PatchSampler.for_training, iter(range(1000))

        def sample_and_act(self: PatchSampler, *arguments: Any) -> Any:
            acts.get(next(calls), lambda: None)()
            return sample(self, *arguments)

        monkeypatch.setattr(PatchSampler, "for_training", sample_and_act)

    return arrange


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def die() -> None:
    raise KilledError


def steps_of(run: RunFolder) -> int:
    """Of an epoch."""
    metrics = [line for line in run.journal.read_text().splitlines() if "val_auc_image" in line]
    return int(metrics[0].split('"step": ')[1].split(",")[0])


def assert_equal(one: RunFolder, other: RunFolder) -> None:
    for first, second in ((one.chosen, other.chosen), (one.last, other.last)):
        weights, others = load_file(first), load_file(second)
        assert weights.keys() == others.keys()
        for name, tensor in weights.items():
            assert torch.equal(tensor, others[name]), name
    columns = ["epoch", "train_loss", "val_auc_image"]
    before, after = (pd.read_csv(run.history)[columns] for run in (one, other))
    pd.testing.assert_frame_equal(before, after, check_exact=True)


@pytest.mark.parametrize(
    ("number", "status", "step"),
    [
        (signal.SIGTERM, 143, 12),
        pytest.param(signal.SIGINT, 130, 4, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 143, 4, marks=pytest.mark.slow),
    ],
)
def test_stopped_within_an_epoch_and_resumed_equals_unbroken(
    number: int,
    status: int,
    step: int,
    whole: RunFolder,
    phantom_store: Path,
    tmp_path: Path,
    at_step: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The scale of the loss in fp16 belongs to the state; Lightning's own scaler needs a GPU.
    scaler, loaded = {"scale": 1024.0, "_growth_tracker": 7}, []
    monkeypatch.setattr(Precision, "state_dict", lambda _: scaler)
    monkeypatch.setattr(Precision, "load_state_dict", lambda _, state: loaded.append(state))
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(CONFIG))
    at_step({step: send(number)})
    runs = tmp_path / "runs"
    words = ["train", "--store", str(phantom_store), "--config", str(config), "--runs", str(runs)]
    assert main(words) == status
    assert f"mammo-pd train --runs {runs} --resume continues from there" in capsys.readouterr().err
    broken = RunFolder.latest(runs)
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    assert client.get_run(broken.info.mlflow_run_id).info.status == "KILLED"
    said: list[str] = []
    again = resumed(broken, said.append)
    assert loaded == [scaler]
    # The step under way was ended, not broken off.
    epoch, steps = divmod(step + 1, steps_of(whole))
    assert f"resuming in epoch {epoch + 1} of 2, after {steps} steps" in said
    assert not again.midway.exists()
    assert_equal(whole, again)


_SAVES_SLOWLY = """
import os, sys, time
from mammo_pd.start import main
from mammo_pd.training.checkpoint import Contents

write = Contents.write

def write_slowly(self, path):
    # Lightning looks every five seconds whether a process has failed.
    time.sleep(6.5 if "midway" in str(path) else 0)
    write(self, path)

if __name__ == "__main__":
    Contents.write = write_slowly
    sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "number", "status"),
    [("all", signal.SIGINT, 130), ("first", signal.SIGTERM, 143), ("second", signal.SIGTERM, 143)],
)
def test_two_processes_stopped_within_an_epoch_and_resumed_equal_unbroken_ones(
    asked: str, number: int, status: int, phantom_store: Path, tmp_path: Path
) -> None:
    """Whichever of them is asked: all end at one step, after the first has saved, however long."""
    program = tmp_path / "program.py"
    program.write_text(_SAVES_SLOWLY)
    command = [sys.executable, str(program), "train"]
    words = [
        "--store",
        str(phantom_store),
        "--res",
        "768x576",
        "--model",
        "test_vit",
        "--keep",
        "1",
    ]
    words += ["--batch-size", "2", "--epochs", "2", "--devices", "2"]
    words += ["--set", "device.accelerator=cpu", "--set", "training.warmup_epochs=0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*command, *words, "--runs", str(whole)], check=True, timeout=300)
    with subprocess.Popen(
        [*command, *words, "--runs", str(broken)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as training:
        assert training.stdout is not None
        for line in training.stdout:
            if line.startswith("epoch 1/"):
                break
        # Into the second epoch, which takes about five.
        time.sleep(2)
        if asked == "all":
            os.killpg(training.pid, number)
        else:
            found = subprocess.check_output(
                ["pgrep", "-P", str(training.pid), "-f", str(program)], text=True
            )
            os.kill(training.pid if asked == "first" else int(found.split()[0]), number)
        _, errors = training.communicate(timeout=120)
    assert training.returncode == status, errors
    assert "--resume continues from there" in errors
    assert RunFolder.latest(broken).midway.is_file()
    subprocess.run([*command, "--resume", "--runs", str(broken)], check=True, timeout=300)
    assert_equal(RunFolder.latest(whole), RunFolder.latest(broken))


def read_until(words: bytes, terminal: int) -> bytes:
    shown = b""
    with contextlib.suppress(OSError):  # who writes there has ended
        while words not in shown:
            assert select.select([terminal], [], [], 240)[0], shown
            shown += os.read(terminal, 4096)
    assert words in shown, shown
    return shown


@pytest.mark.slow
def test_terminal_that_goes_without_a_signal_does_not_end_a_training(
    phantom_store: Path, tmp_path: Path
) -> None:
    """As when a shell ends that started it in the background: what it prints vanishes."""
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(CONFIG))
    runs = tmp_path / "runs"
    places = ["--store", str(phantom_store), "--config", str(config), "--runs", str(runs)]
    terminal, place = pty.openpty()
    command = [sys.executable, "-m", "mammo_pd", "train", *places]
    # Of a session of its own, for which it is any file.
    training = subprocess.Popen(command, stdout=place, stderr=place, start_new_session=True)
    os.close(place)
    read_until(b"epoch 1/", terminal)
    os.close(terminal)
    assert training.wait() == 0
    assert RunFolder.latest(runs).info.finished is not None


def test_terminal_that_goes_while_it_trains_leaves_a_checkpoint(
    phantom_store: Path, tmp_path: Path
) -> None:
    """As when an SSH connection breaks off: what is then printed fails."""
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(CONFIG.replace(training=CONFIG.training.replace(epochs=100_000))))
    runs = tmp_path / "runs"
    places = ["--store", str(phantom_store), "--config", str(config), "--runs", str(runs)]
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-m", "mammo_pd", "train", *places])
    shown = read_until(b"epoch 2/", terminal)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 143, shown
    run = RunFolder.latest(runs)
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    assert client.get_run(run.info.mlflow_run_id).info.status == "KILLED"
    saved = newest_state(run.last, run.midway)
    assert saved is not None
    assert CheckpointHeader.read(saved).epochs >= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("minutes", "acts", "steps"),
    [
        pytest.param(30.0, {4: send(signal.SIGUSR1), 6: die}, 5, id="SIGUSR1"),
        pytest.param(1e-9, {4: die}, 4, id="by the clock"),
    ],
)
def test_saved_within_an_epoch_that_goes_on_and_killed_later(
    minutes: float,
    acts: dict[int, Callable[[], None]],
    steps: int,
    whole: RunFolder,
    phantom_store: Path,
    tmp_path: Path,
    at_step: Callable[..., None],
) -> None:
    at_step(acts)
    with pytest.raises(KilledError):
        trained(phantom_store, tmp_path, minutes)
    broken = RunFolder.latest(tmp_path)
    leftovers = (
        # The first is of an earlier version.
        ".best.safetensors.a1b2c3d4.safetensors",
        ".model.safetensors.a1b2c3d4.safetensors",
        ".last.safetensors.a1b2c3d4.safetensors",
        ".tmpA1b2C3",
    )
    for name in leftovers:
        (broken.path / name).touch()
    said: list[str] = []
    again = resumed(broken, said.append)
    assert f"resuming in epoch 1 of 2, after {steps} steps" in said
    assert_equal(whole, again)
    assert not {*leftovers} & {file.name for file in again.path.iterdir()}


@pytest.mark.parametrize(
    ("finished", "steps", "said"),
    [
        (0, 3, "resuming in epoch 1 of 6, after 3 steps"),
        (2, 1, "resuming in epoch 3 of 6, after 1 step"),
        (2, 0, "resuming in epoch 3 of 6, from its start"),
        (6, 0, "resuming after the last of 6 epochs"),
    ],
)
def test_where_a_run_goes_on_is_said_in_epochs_as_they_are_counted(
    finished: int, steps: int, said: str
) -> None:
    assert run_state._where(finished, 6, steps) == said


def test_a_state_is_restored_as_it_was_written(phantom_store: Path, tmp_path: Path) -> None:
    setup = set_up(phantom_store, CONFIG)
    run = start_run(tmp_path, setup)
    optimizer = torch.optim.SGD(setup.model.parameters(), lr=0.1)
    state = run_state.RunState(setup, optimizer)
    assert state.restore(run, optimizer) == EpochProgress()
    state.history.extend({"epoch": epoch, "val_loss": 1 / epoch} for epoch in (1, 2, 3))
    progress = EpochProgress(steps=5, images=20, loss=2.5)
    for contents, file, expected in (
        (state.after_epoch(), run.last, EpochProgress()),
        (state.within_epoch(progress), run.midway, progress),
    ):
        contents.write(file)
        again = run_state.RunState(setup, optimizer)
        assert again.restore(run, optimizer) == expected
        assert again.history == state.history
        # Weights of whatever file are asked what they have learnt from.
        assert CheckpointHeader.read(file).card == setup.card
    state.weights({"epoch": 3}).write(run.chosen)
    assert CheckpointHeader.read(run.chosen).card == setup.card


@pytest.mark.slow
def test_interrupted_while_it_validates_an_epoch_is_not_trained_twice(
    whole: RunFolder,
    phantom_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_step: Callable[..., None],
) -> None:
    def interrupt(*_: object) -> None:
        raise TerminatedError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_validate", interrupt)
        with pytest.raises(TerminatedError):
            trained(phantom_store, tmp_path)
    # Not one more than the second epoch has.
    at_step({steps_of(whole): die})
    assert_equal(whole, resumed(RunFolder.latest(tmp_path)))


@pytest.mark.slow
def test_signal_that_comes_while_an_epoch_is_saved_ends_before_the_next(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where several devices train epochs shorter than a window of losses."""

    save = CheckpointWriter.save

    def save_and_send(*arguments: Any) -> None:
        save(*arguments)
        send(signal.SIGTERM)()

    monkeypatch.setattr(CheckpointWriter, "save", save_and_send)
    with pytest.raises(TerminatedError):
        trained(phantom_store, tmp_path)
    run = RunFolder.latest(tmp_path)
    assert newest_state(run.last, run.midway) == run.last
    assert CheckpointHeader.read(run.last).epochs == 1


@pytest.mark.slow
def test_spoilt_weights_are_not_saved_within_an_epoch(
    phantom_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_step: Callable[..., None],
) -> None:
    """Losses are read late: weights may hold no numbers long before the loop knows."""
    at_step({3: die})
    monkeypatch.setattr(run_state, "is_finite", lambda _: False)
    with pytest.raises(KilledError):
        trained(phantom_store, tmp_path, minutes=1e-9)
    assert not RunFolder.latest(tmp_path).midway.exists()
    monkeypatch.undo()
    weights = torch.nn.Linear(2, 2)
    assert is_finite(weights)
    weights.weight.data[0, 0] = torch.nan
    assert not is_finite(weights)


def test_damaged_checkpoint_within_an_epoch_is_named_with_the_remedy(tmp_path: Path) -> None:
    last, midway = tmp_path / "last.safetensors", tmp_path / "midway.safetensors"
    assert newest_state(last, midway) is None
    midway.write_bytes(b"half of it")
    with pytest.raises(InputError, match=r"midway\.safetensors is damaged; delete it"):
        newest_state(last, midway)


def test_checkpoint_of_an_epoch_that_is_over_does_not_count(whole: RunFolder) -> None:
    assert newest_state(whole.last, whole.midway) == whole.last
    # A kill between the two leaves it there.
    try:
        state_of(
            torch.nn.Linear(1, 1),
            torch.optim.SGD([torch.ones(1)], lr=0.1),
            WeightAverage(torch.nn.Linear(1, 1), 0),
            {"history": [{"epoch": 1}], "progress": {}},
        ).write(whole.midway)
        assert newest_state(whole.last, whole.midway) == whole.last
    finally:
        whole.midway.unlink()


# ---- what is saved within an epoch, and when


class Desk:
    """Stands for all that a `MidwaySaver` is given, and notes what it does."""

    def __init__(self, minutes: float | None, processes: int = 1, rank: int = 0) -> None:
        self.done: list[object] = []
        self.requested = self.asked_meanwhile = Request.NOTHING
        self.taken_back = 0
        self.now = 0.0
        training = SimpleNamespace(checkpoint_minutes=minutes)
        setup = SimpleNamespace(
            config=SimpleNamespace(training=training),
            fabric=SimpleNamespace(world_size=processes, is_global_zero=rank == 0),
            device=torch.device("cpu"),
            model=torch.nn.Linear(1, 1),
        )
        self.weights = setup.model.weight
        run: Any = SimpleNamespace(midway="midway")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_state.time, "perf_counter", self.clock)
            self.saver = MidwaySaver(setup, run, self, self, self)  # type: ignore[arg-type]

    def clock(self) -> float:
        return self.now

    def take_request(self) -> Request:
        requested, self.requested = self.requested, Request.NOTHING
        return requested

    def take_back(self) -> None:
        self.taken_back += 1

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        self.done.append("begin")
        yield
        self.requested, self.asked_meanwhile = self.asked_meanwhile, Request.NOTHING
        self.done.append("end")

    def flush_chosen(self) -> None:
        self.done.append("kept weights")

    def within_epoch(self, progress: object) -> Any:
        return SimpleNamespace(write=lambda path: self.done.append((path, progress)))

    def saved(self, step: int, *, last: bool = False) -> bool:
        """Whether it saves after a step, and nothing but that step's state."""
        self.done.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_state.time, "perf_counter", self.clock)
            self.saver.after_step(step, lambda steps: EpochProgress(steps=steps), last=last)
        state = ("midway", EpochProgress(steps=step))
        assert self.done in ([], ["begin", "kept weights", state, "end"])
        return bool(self.done)

    def end_epoch(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_state.time, "perf_counter", self.clock)
            self.saver.after_epoch()


def test_it_is_saved_so_many_minutes_after_the_last_time() -> None:
    desk = Desk(minutes=30)
    assert not desk.saved(1)
    desk.now = 1800
    assert not desk.saved(2)
    desk.now = 1801
    assert desk.saved(3)
    desk.now = 3601
    assert not desk.saved(4)
    # An epoch's own checkpoint counts.
    desk.end_epoch()
    desk.now = 5401
    assert not desk.saved(1)
    desk.now = 5402
    assert desk.saved(2)
    never = Desk(minutes=None)
    never.now = 1e9
    assert not never.saved(1)


def test_a_request_is_answered_once() -> None:
    desk = Desk(minutes=30)
    desk.requested = Request.SAVE
    assert desk.saved(1)
    assert not desk.saved(2)
    # Also where a save is due anyway, and where the epoch ends.
    desk.now, desk.requested = 1801, Request.SAVE
    assert desk.saved(3)
    assert not desk.saved(4)
    desk.requested = Request.SAVE
    desk.end_epoch()
    assert not desk.saved(1)


@pytest.mark.usefixtures("process_group")
def test_what_is_asked_while_it_is_saved_ends_after_that() -> None:
    """And not after a second save of the same: docker stop waits for ten seconds."""
    for processes in (1, 2):
        desk = Desk(minutes=30, processes=processes)
        desk.asked_meanwhile = Request.TERMINATE
        assert not desk.saved(1)
        desk.requested = Request.SAVE
        with pytest.raises(TerminatedError):
            for step in range(2, 6):
                desk.saved(step)
        assert desk.done == [
            "begin",
            "kept weights",
            ("midway", EpochProgress(steps=2 if processes == 1 else 4)),
            "end",
        ]


def test_what_ends_is_saved_first_and_ended_between_epochs_too() -> None:
    desk = Desk(minutes=30)
    desk.requested = Request.TERMINATE
    with pytest.raises(TerminatedError):
        desk.saved(1)
    assert ("midway", EpochProgress(steps=1)) in desk.done
    desk.requested = Request.TERMINATE
    with pytest.raises(TerminatedError):
        desk.end_epoch()


@pytest.mark.usefixtures("process_group")
def test_processes_act_together_and_the_first_alone_writes() -> None:
    for rank in (0, 1):
        desk = Desk(minutes=30, processes=2, rank=rank)
        desk.requested = Request.SAVE
        assert [desk.saved(step) for step in range(1, 6)] == [
            rank == 0 and step == 3 for step in range(1, 6)
        ]
        # Nothing is left open when the steps of an epoch end: validation may take long.
        desk.requested = Request.INTERRUPT
        assert not desk.saved(6)
        with pytest.raises(KeyboardInterrupt) as ended:
            desk.saved(7, last=True)
        assert isinstance(ended.value, FollowedError) == (rank == 1)
        assert (("midway", EpochProgress(steps=7)) in desk.done) == (rank == 0)
        desk.requested = Request.TERMINATE
        with pytest.raises(TerminatedError if rank == 0 else FollowedError):
            desk.end_epoch()


@pytest.mark.usefixtures("process_group")
def test_processes_have_one_clock_and_save_once_when_it_is_time() -> None:
    for rank in (0, 1):
        desk = Desk(minutes=30, processes=2, rank=rank)
        desk.now = 1801
        assert [desk.saved(step) for step in range(1, 8)] == [
            rank == 0 and step == 3 for step in range(1, 8)
        ]


@pytest.mark.usefixtures("process_group")
def test_signals_are_taken_back_after_each_step_that_may_have_compiled() -> None:
    for processes in (1, 2):
        desk = Desk(minutes=30, processes=processes)
        for step in range(1, 5):
            desk.saved(step)
            assert desk.taken_back == step


def test_weights_that_are_no_numbers_do_not_replace_a_checkpoint() -> None:
    desk = Desk(minutes=30)
    desk.weights.data.fill_(torch.nan)
    desk.requested = Request.SAVE
    assert not desk.saved(1)


def test_epoch_whose_validation_is_interrupted_is_saved() -> None:
    desk, done = Desk(minutes=30), EpochProgress(steps=9)
    with desk.saver.saving_if_interrupted(done):
        pass
    with pytest.raises(KilledError), desk.saver.saving_if_interrupted(done):
        die()
    assert desk.done == []
    with pytest.raises(TerminatedError), desk.saver.saving_if_interrupted(done):
        raise TerminatedError
    assert desk.done == ["begin", "kept weights", ("midway", done), "end"]


# ---- the signals alone


def test_signal_waits_to_be_answered_and_a_second_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stopping, "_SAME_REQUEST_SECONDS", 0.0)
    with pytest.raises(TerminatedError), StopSignals() as signals:
        assert signals.take_request() is Request.NOTHING
        send(signal.SIGUSR1)()
        assert signals.take_request() is Request.SAVE
        send(signal.SIGTERM)()
        assert signals.take_request() is Request.TERMINATE
        send(signal.SIGTERM)()
        pytest.fail("went on")


def test_a_request_that_comes_twice_at_once_is_one() -> None:
    """From SLURM, and from Apptainer, which got it too; the checkpoint is written all the same."""
    ended = False
    with pytest.raises(TerminatedError), StopSignals() as signals:
        send(signal.SIGTERM)()
        send(signal.SIGTERM)()
        asked = signals.take_request()
        ended = True
        asked.raise_if_ending()
    assert ended


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_save_beside_one_to_end_changes_nothing(number: int) -> None:
    """SLURM announces the end by SIGUSR1, and then ends."""
    end = Request.INTERRUPT if number == signal.SIGINT else Request.TERMINATE
    for numbers in ((signal.SIGUSR1, number), (number, signal.SIGUSR1)):
        with StopSignals() as signals:
            for one in numbers:
                send(one)()
            assert signals.take_request() is end
            # A request to end is for good: whoever was told may not be able to end yet.
            assert signals.take_request() is end


def test_only_requests_to_end_end() -> None:
    Request.NOTHING.raise_if_ending()
    Request.SAVE.raise_if_ending()
    with pytest.raises(KeyboardInterrupt) as interrupted:
        Request.INTERRUPT.raise_if_ending()
    assert not isinstance(interrupted.value, TerminatedError)
    with pytest.raises(TerminatedError):
        Request.TERMINATE.raise_if_ending()


def test_sigterm_that_an_import_swallowed_ends_what_is_begun_later() -> None:
    with stopping.sigterm_interrupts():
        with contextlib.suppress(KeyboardInterrupt):
            send(signal.SIGTERM)()
        with pytest.raises(TerminatedError), StopSignals():
            pytest.fail("began")


_COMPILES_AND_IS_SIGNALLED = """
import os, signal, sys, threading
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mammo_pd.stopping import StopSignals

@triton.jit
def twice(x, y, n: tl.constexpr):
    places = tl.arange(0, n)
    tl.store(y + places, tl.load(x + places) * 2)

def be_signalled(number, take_back):
    if take_back:
        signals.take_back()
    # One to the process and one to the thread, so that both are pending at the same time.
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    os.kill(os.getpid(), number)
    signal.pthread_kill(threading.main_thread().ident, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    return told or ("saves" if signals.take_request() else "knows nothing of it")

told = ""
def tell(*_):
    global told
    told = "tells the caller"

if sys.argv[1] == "others":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, tell)
kinds = {"x": "*fp32", "y": "*fp32", "n": "constexpr"}
with StopSignals() as signals:
    source = ASTSource(fn=twice, signature=kinds, constexprs={(2,): 128})
    triton.compile(source, target=GPUTarget("cuda", 90, 32))
    for name in sys.argv[2:]:
        for take_back in (True, False):
            # A fork has the handlers that the compiler has left.
            if (child := os.fork()) == 0:
                print(name, take_back, be_signalled(getattr(signal, name), take_back), flush=True)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if status:
                print(name, take_back, "ends without a word", flush=True)
"""


@pytest.mark.parametrize(
    ("handlers", "expected"),
    [
        ("ours", dict.fromkeys(("SIGUSR1", "SIGINT", "SIGTERM", "SIGHUP"), "saves")),
        # As nohup has it, and as a program may.
        ("others", {"SIGHUP": "knows nothing of it", "SIGUSR1": "tells the caller"}),
    ],
)
def test_signals_are_heeded_after_triton_has_compiled(
    handlers: str, expected: dict[str, str], tmp_path: Path
) -> None:
    """Its compiler installs handlers of its own, with which they are lost."""
    pytest.importorskip("triton")
    script = tmp_path / "compiles.py"
    script.write_text(_COMPILES_AND_IS_SIGNALLED)
    ended = subprocess.run(
        [sys.executable, script, handlers, *expected],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = ended.stdout.splitlines()
    assert [line for line in lines if " True " in line] == [
        f"{name} True {what}" for name, what in expected.items()
    ]
    if any(f"{name} False {what}" in lines for name, what in expected.items()):
        pytest.skip("the Triton installed here leaves signals alone, so nothing was shown")


def test_what_does_not_answer_is_interrupted_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_PATIENCE_SECONDS", 0.05)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), StopSignals():
        send(signal.SIGINT)()
        time.sleep(30)
    assert time.monotonic() - started < 10


def test_what_is_being_written_is_not_interrupted_by_a_first_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stopping, "_PATIENCE_SECONDS", 0.05)
    written = False
    with pytest.raises(TerminatedError), StopSignals() as signals:
        with signals.saving():
            send(signal.SIGTERM)()
            time.sleep(0.4)
            written = True
        signals.take_request().raise_if_ending()
    assert written


def test_terminal_that_goes_is_told_twice_and_no_second_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the shell, and by the kernel when the shell ends, which may be seconds later."""
    monkeypatch.setattr(stopping, "_SAME_REQUEST_SECONDS", 0.0)
    written = False
    with pytest.raises(TerminatedError), StopSignals() as signals, signals.saving():
        send(signal.SIGHUP)()
        send(signal.SIGHUP)()
        written = True
        send(signal.SIGTERM)()
        written = False
    assert written


def test_training_that_does_not_answer_ends_when_its_terminal_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stopping, "_PATIENCE_SECONDS", 0.05)
    with pytest.raises(TerminatedError), StopSignals():
        send(signal.SIGHUP)()
        threading.Event().wait(3600)


def test_save_requests_are_passed_over_where_there_is_nothing_to_save() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    try:
        stopping.pass_over_save_requests()
        send(signal.SIGUSR1)()
        with StopSignals() as signals:
            send(signal.SIGUSR1)()
            assert signals.take_request() is Request.SAVE
        send(signal.SIGUSR1)()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_handlers_are_put_back_and_those_of_others_stay() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with StopSignals():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in numbers] == before
    # As under nohup.
    ignored = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stopping.sigterm_interrupts(), StopSignals():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, ignored)


def test_other_threads_train_without_signals() -> None:
    def train_elsewhere() -> None:
        with stopping.sigterm_interrupts(), StopSignals() as signals:
            done.append(signals.take_request())

    done: list[Request] = []
    thread = threading.Thread(target=train_elsewhere)
    thread.start()
    thread.join()
    assert done == [Request.NOTHING]
