from pathlib import Path

import pytest
import torch
from torch import nn

from mammo_pd.errors import InputError
from mammo_pd.training.averaging import WeightAverage
from mammo_pd.training.checkpoint import load_state, load_weights, save_state, save_weights


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


def test_training_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_state(
        tmp_path / "s.safetensors", model, optimizer, WeightAverage(model, 0), {"history": [1]}
    )
    other, other_optimizer = trained(seed=1)
    assert load_state(tmp_path / "s.safetensors", other, other_optimizer) == {"history": [1]}
    for each in ((model, optimizer), (other, other_optimizer)):
        step(*each)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_weights_carry_their_own_names_and_facts(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model, _ = trained()
    save_weights(tmp_path / "w.safetensors", model, model, {"epoch": 3})
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
    save_weights(tmp_path / "other.safetensors", other, other, {})
    with pytest.raises(InputError, match="does not fit the model"):
        load_weights(tmp_path / "other.safetensors", model, model)
