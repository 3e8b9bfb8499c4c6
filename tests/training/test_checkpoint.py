import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mammo_pd.errors import InputError
from mammo_pd.evaluation.operating_points import OperatingPoints
from mammo_pd.training.averaging import WeightAverage
from mammo_pd.training.checkpoint import (
    OpenCheckpoint,
    is_finite,
    load_state,
    load_weights,
    newest_state,
    put_operating_points,
    state_of,
    weights_digest,
    weights_of,
)
from mammo_pd.training.model_card import CheckpointHeader


def trained(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(
        [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias]}], lr=0.1
    )
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def trained_on(decay: float) -> tuple[nn.Module, torch.optim.Optimizer, WeightAverage]:
    model, optimizer = trained()
    average = WeightAverage(model, decay)
    step(model, optimizer)
    average.update(0)
    return model, optimizer, average


@pytest.mark.parametrize("decay", [0, 0.7])
def test_training_goes_on_as_if_never_stopped(tmp_path: Path, decay: float) -> None:
    model, optimizer, average = trained_on(decay)
    state_of(model, optimizer, average, {"history": [1]}).write(tmp_path / "s.safetensors")
    other, other_optimizer = trained(seed=1)
    other_average = WeightAverage(other, decay)
    found = load_state(tmp_path / "s.safetensors", other, other_optimizer, other_average)
    assert found == {"history": [1]}
    for each in ((model, optimizer), (other, other_optimizer)):
        step(*each)
    for one in (average, other_average):
        one.update(1)
        assert set(one.state()) == ({"weight", "bias"} if decay else set())
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(average.state(), other_average.state(), rtol=0, atol=0)


@pytest.mark.parametrize("decay", [0, 0.7])
def test_what_is_scored_with_are_the_averaged_weights(tmp_path: Path, decay: float) -> None:
    model, optimizer, average = trained_on(decay)
    expected = average.state() if decay else model.state_dict()
    assert torch.equal(expected["weight"], model.state_dict()["weight"]) == (decay == 0)
    file = tmp_path / "s.safetensors"
    state_of(model, optimizer, average, {"history": []}).write(file)
    for load in (
        lambda other: load_state(file, other),
        lambda other: OpenCheckpoint(file, file).load_into(other, other),
    ):
        other, _ = trained(seed=1)
        load(other)
        torch.testing.assert_close(other.state_dict(), expected, rtol=0, atol=0, check_device=False)


def test_weights_that_lie_otherwise_in_memory_are_written(tmp_path: Path) -> None:
    """As those that are kept channels last; safetensors takes them in order alone."""
    runs = []
    for _ in range(2):
        model = nn.Linear(3, 2)
        model.weight = nn.Parameter(torch.rand(3, 2).T)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        runs.append((model, optimizer, WeightAverage(model, 0.7)))
        step(model, optimizer)
        assert not optimizer.state[model.weight]["exp_avg"].is_contiguous()
    (model, optimizer, average), (other, *of_other) = runs
    file = tmp_path / "s.safetensors"
    state_of(model, optimizer, average, {}).write(file)
    load_state(file, other, *of_other)
    for each in ((model, optimizer), (other, of_other[0])):
        step(*each)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(of_other[1].state(), average.state(), rtol=0, atol=0)
    weights_of(model, model, {}).write(file)
    load_weights(file, other, other)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_weights_grouped_otherwise_are_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    state_of(model, optimizer, WeightAverage(model, 0), {}).write(tmp_path / "s.safetensors")
    other = nn.Linear(3, 2)
    one_group = torch.optim.AdamW(other.parameters(), lr=0.1)
    with pytest.raises(InputError, match="grouped the weights differently for the optimizer"):
        load_state(tmp_path / "s.safetensors", other, one_group)


def test_how_the_device_computes_is_not_the_checkpoints_to_say(tmp_path: Path) -> None:
    model, optimizer = trained()
    state_of(model, optimizer, WeightAverage(model, 0), {}).write(tmp_path / "s.safetensors")
    other = nn.Linear(3, 2)
    # As where steps are captured on a GPU, which reads the rate from its own memory.
    there = torch.optim.AdamW(
        [{"params": [other.weight]}, {"params": [other.bias]}],
        lr=torch.tensor(0.5),
        weight_decay=0.9,
        foreach=True,
        capturable=True,
    )
    load_state(tmp_path / "s.safetensors", other, there)
    for group, of_checkpoint in zip(there.param_groups, optimizer.param_groups, strict=True):
        assert torch.equal(group["lr"], torch.tensor(0.5))
        assert group["foreach"]
        assert group["capturable"]
        assert group["weight_decay"] == of_checkpoint["weight_decay"]


def test_digest_is_that_of_the_weights_bytes(tmp_path: Path) -> None:
    model = nn.Linear(3, 2, bias=False)
    expected = hashlib.sha256(model.weight.detach().numpy().tobytes()).hexdigest()
    file = tmp_path / "w.safetensors"
    for facts in ({}, {"epoch": 3}, {"epoch": 3, "note": "x" * 301}):
        weights_of(model, model, facts).write(file)
        assert weights_digest(file) == expected
        put_operating_points(file, {"label": OperatingPoints.none()})
        assert weights_digest(file) == expected
        assert load_weights(file, model, model) == facts


@pytest.mark.parametrize(
    ("last", "midway", "newest"),
    [
        (None, None, None),
        (1, None, "last"),
        (None, 0, "midway"),
        (1, 1, "midway"),
        # A kill between the epoch's own checkpoint and the removal of the one within it.
        (2, 1, "last"),
    ],
)
def test_training_goes_on_from_the_newest_of_two(
    tmp_path: Path, last: int | None, midway: int | None, newest: str | None
) -> None:
    model, optimizer = trained()
    for name, epochs in (("last", last), ("midway", midway)):
        if epochs is not None:
            facts = {"history": [{"epoch": 1 + epoch} for epoch in range(epochs)]}
            state_of(model, optimizer, WeightAverage(model, 0), facts).write(tmp_path / name)
    found = newest_state(tmp_path / "last", tmp_path / "midway")
    assert found == (None if newest is None else tmp_path / newest)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_weight_that_is_no_finite_number_is_seen(value: float) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))  # which counts in whole numbers
    assert is_finite(model)
    model[1].running_mean[1] = value
    assert not is_finite(model)


def test_weights_carry_their_own_names_and_facts(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model, _ = trained()
    weights_of(model, model, {"epoch": 3}).write(tmp_path / "w.safetensors")
    assert set(load_file(tmp_path / "w.safetensors")) == {"weight", "bias"}
    other, _ = trained(seed=1)
    assert load_weights(tmp_path / "w.safetensors", other, other) == {"epoch": 3}
    assert torch.equal(model.weight, other.weight)  # type: ignore[arg-type]


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    model, _ = trained()
    with pytest.raises(InputError, match="there is no checkpoint"):
        load_weights(tmp_path / "none.safetensors", model, model)
    (tmp_path / "half.safetensors").write_bytes(b"\x10")
    with pytest.raises(InputError, match="not a checkpoint"):
        load_weights(tmp_path / "half.safetensors", model, model)
    other = nn.Linear(4, 2)
    weights_of(other, other, {}).write(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="does not fit the model"):
        load_weights(tmp_path / "other.safetensors", model, model)


def damaged_files(folder: Path, whole: Path) -> Iterator[Path]:
    content = whole.read_bytes()
    length = int.from_bytes(content[:8], "little")
    for number, damaged in enumerate(
        [
            b"",
            b"not safetensors at all",
            b"\xff" * 64,
            content[:4],
            content[: 8 + length // 2],
            content[: 8 + length],
            content[:-1],
            content + b"more",
            (2).to_bytes(8, "little") + b"{}",
            (2).to_bytes(8, "little") + b"[]",
        ]
    ):
        file = folder / f"{number}.safetensors"
        file.write_bytes(damaged)
        yield file
    for facts in ("3", "[]", "null", "{", '"text"', "[" * 10_000, "[" * 400 + "]" * 400):
        file = folder / "facts.safetensors"
        save_file({"x": torch.ones(1)}, file, {"facts": facts})
        yield file
    yield folder


def test_safetensors_that_are_none_are_refused_by_all_that_read_them(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    average = WeightAverage(model, 0)
    whole = tmp_path / "whole.safetensors"
    weights_of(model, model, {"epoch": 1}).write(whole)
    for file in damaged_files(tmp_path, whole):
        for read in (
            lambda file=file: load_weights(file, model, model),
            lambda file=file: load_state(file, model, optimizer, average),
            lambda file=file: CheckpointHeader.read(file),
        ):
            with pytest.raises(InputError, match="checkpoint"):
                read()
    # Weights alone are no state, although they can be read.
    with pytest.raises(InputError, match=r"does not fit|holds only weights"):
        load_state(whole, model, optimizer, average)
