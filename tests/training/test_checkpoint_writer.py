"""Epochs that are shorter than writing a checkpoint, and disks that fill up."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mammo_pd.training import checkpoint_writer
from mammo_pd.training.checkpoint import Contents
from mammo_pd.training.checkpoint_writer import CheckpointWriter


@pytest.fixture
def run(tmp_path: Path) -> Any:
    names = ("chosen", "last", "midway")
    return SimpleNamespace(**{name: tmp_path / f"{name}.safetensors" for name in names})


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written before it is set."""
    opened, write = threading.Event(), Contents.write

    def write_later(contents: Contents, path: Path) -> None:
        assert opened.wait(30)
        write(contents, path)

    monkeypatch.setattr(Contents, "write", write_later)
    return opened


def contents(number: int) -> Contents:
    return Contents(
        {
            # What follows it is aligned nevertheless.
            "half": torch.full((7,), number, dtype=torch.bfloat16),
            "weight": torch.full((3, 5), float(number)),
            "count": torch.tensor(number),
            "step": torch.tensor(float(number)),
        },
        {"epoch": str(number)},
    )


def state(number: int) -> Callable[[], Contents]:
    return lambda: contents(number)


def number_in(file: Path) -> int:
    tensors = load_file(file)
    assert tensors["weight"].shape == (3, 5)
    assert tensors["step"].shape == ()
    (number,) = {float(value) for tensor in tensors.values() for value in tensor.flatten()}
    return int(number)


def test_what_is_written_is_the_epochs_though_the_model_learns_on(
    run: Any, gate: threading.Event
) -> None:
    live = contents(1)
    with CheckpointWriter(run) as writer:
        writer.take_chosen(live)
        writer.save(lambda: live)
        for tensor in live.tensors.values():
            tensor.fill_(99)
        assert not run.last.exists()
        gate.set()
    assert (number_in(run.chosen), number_in(run.last)) == (1, 1)


def test_a_run_that_fails_leaves_with_its_checkpoint_written(
    run: Any, gate: threading.Event
) -> None:
    with pytest.raises(KeyError, match="mine"), CheckpointWriter(run) as writer:
        writer.save(state(1))
        threading.Timer(0.2, gate.set).start()
        raise KeyError("mine")
    assert number_in(run.last) == 1


def test_epochs_that_end_while_one_is_written_are_passed_over_but_not_the_last(
    run: Any, gate: threading.Event
) -> None:
    run.midway.touch()
    with CheckpointWriter(run) as writer:
        for epoch, is_best in ((1, True), (2, False), (3, True), (4, True), (5, False)):
            if is_best:
                writer.take_chosen(contents(epoch))
            writer.save(state(epoch))
        gate.set()
        writer.flush(state(5))
        writer.flush(lambda: pytest.fail("written again"))
        # The best of those passed over as well.
        assert (number_in(run.chosen), number_in(run.last)) == (4, 5)
        assert not run.midway.exists()
        writer.take_chosen(contents(6))
        writer.save(state(6))
        writer.flush(state(6))
    assert (number_in(run.chosen), number_in(run.last)) == (6, 6)


def test_weights_that_are_being_written_are_not_overwritten_by_later_ones(
    run: Any, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = Contents.write

    def write_and_note(contents: Contents, path: Path) -> None:
        write(contents, path)
        if path == run.chosen:
            written.append(number_in(path))

    monkeypatch.setattr(Contents, "write", write_and_note)
    with CheckpointWriter(run) as writer:
        for epoch in (1, 2, 3):
            writer.take_chosen(contents(epoch))
            writer.save(state(epoch))
        gate.set()
        writer.flush(state(3))
        writer.take_chosen(contents(4))
        writer.save(state(4))
    assert written == [1, 3, 4]


def test_memory_for_a_second_copy_is_not_taken_where_the_first_is_written_in_time(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    allocate = checkpoint_writer._allocate

    def count(size: int, *, pinned: bool) -> torch.Tensor:
        taken.append(size)
        return allocate(size, pinned=pinned)

    monkeypatch.setattr(checkpoint_writer, "_allocate", count)
    with CheckpointWriter(run) as writer:
        for epoch in (1, 2, 3):
            writer.take_chosen(contents(epoch))
            writer.save(state(epoch))
            writer.flush(state(epoch))
    assert number_in(run.chosen) == 3
    assert len(taken) == 2  # the chosen weights and the state


def test_the_kept_weights_can_be_had_before_a_checkpoint_within_an_epoch(
    run: Any, gate: threading.Event
) -> None:
    with CheckpointWriter(run) as writer:
        writer.save(state(1))
        writer.take_chosen(contents(2))
        writer.save(state(2))
        gate.set()
        writer.flush_chosen()
        assert (number_in(run.chosen), number_in(run.last)) == (2, 1)


def test_no_state_is_newer_than_the_kept_weights(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def note(_: Contents, path: Path) -> None:
        # Whenever it is killed there is a state to go on with.
        assert run.midway.exists()
        order.append(path.stem)

    monkeypatch.setattr(Contents, "write", note)
    run.midway.touch()
    with CheckpointWriter(run) as writer:
        writer.take_chosen(contents(1))
        writer.save(state(1))
    assert order == ["chosen", "last"]
    assert not run.midway.exists()


def test_memory_that_may_not_be_pinned_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def refuse(*size: int, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", refuse)
    assert checkpoint_writer._allocate(9, pinned=True).nbytes == 9


def test_states_may_grow(run: Any) -> None:
    """As the optimiser's does with the epoch that a frozen backbone begins to learn in."""
    more = {"more": torch.full((500,), 2.0)}
    with CheckpointWriter(run) as writer:
        writer.save(state(1))
        writer.flush(state(1))
        writer.save(lambda: replace(contents(2), tensors={**contents(2).tensors, **more}))
    assert load_file(run.last)["more"].tolist() == [2.0] * 500
    assert number_in(run.last) == 2


def test_kept_weights_are_written_once(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(Contents, "write", lambda _, path: order.append(path.stem))
    with CheckpointWriter(run) as writer:
        writer.take_chosen(contents(1))
        for epoch in (1, 2):
            writer.save(state(epoch))
            writer.flush(state(epoch))
        writer.take_chosen(contents(3))
        writer.flush_chosen()
        writer.save(state(3))
    assert order == ["chosen", "last", "last", "chosen", "last"]


def test_a_disk_that_is_full_does_not_hide_what_failed_before(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Contents, "write", fail)
    with pytest.raises(KeyError, match="mine"), CheckpointWriter(run) as writer:
        writer.save(state(1))
        raise KeyError("mine")


def test_a_disk_that_is_full_is_told_by_the_next_epoch_and_at_the_end(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Contents, "write", fail)
    with pytest.raises(OSError, match="No space left"), CheckpointWriter(run) as writer:
        writer.save(state(1))
        writer.flush(state(1))
        pytest.fail("went on")
    with pytest.raises(OSError, match="No space left"), CheckpointWriter(run) as writer:
        writer.save(state(1))
    # An epoch that lasts longer than the writing.
    with pytest.raises(OSError, match="No space left"), CheckpointWriter(run) as writer:
        writer.save(state(1))
        while writer._is_writing():
            time.sleep(0.001)
        writer.save(state(2))
        pytest.fail("went on")


def test_weights_of_an_earlier_epoch_that_are_being_written_do_not_come_last(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, write = threading.Event(), Contents.write

    def write_slowly_in_the_thread(contents: Contents, path: Path) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert opened.wait(30)
        write(contents, path)

    monkeypatch.setattr(Contents, "write", write_slowly_in_the_thread)
    with CheckpointWriter(run) as writer:
        writer.take_chosen(contents(1))
        writer.save(state(1))
        writer.take_chosen(contents(2))
        threading.Timer(0.2, opened.set).start()
        writer.flush_chosen()
    assert number_in(run.chosen) == 2
