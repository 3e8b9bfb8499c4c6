"""What a training on a CPU is said to take."""

import re
from pathlib import Path

import pytest
import torch
from small_runs import set_up, small

from mammo_pd.perf import cpu_advice as module
from mammo_pd.perf.cpu_advice import cpu_advice

_MODEL = "vit_tiny_patch16_224"


def test_measuring_leaves_the_run_as_it_is(phantom_store: Path) -> None:
    setup = set_up(phantom_store, small())
    before, state = torch.get_rng_state(), setup.model.state_dict()
    values = {name: tensor.clone() for name, tensor in state.items()}
    line = cpu_advice(setup)
    assert line is not None
    assert re.match(r"training on the CPU: about \d+ s an epoch, \d+ s for all 2 ", line)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in setup.model.parameters())
    assert all(torch.equal(tensor, values[name]) for name, tensor in state.items())


def test_time_follows_epochs_and_patches(
    phantom_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_seconds_per_mac", lambda _: 1e-9)

    def seconds(**changes: object) -> float:
        config = small(model__name=_MODEL, training__validate_on="kept", **changes)
        line = cpu_advice(set_up(phantom_store, config))
        found = re.search(r"epoch, (\d+) s for all", line or "")
        assert found is not None, line
        return float(found[1])

    once = seconds(training__epochs=1, patch_dropout__keep_rate=0.5)
    assert seconds(training__epochs=2, patch_dropout__keep_rate=0.5) == pytest.approx(
        2 * once, abs=1.5
    )
    assert 1.5 < seconds(training__epochs=1, patch_dropout__keep_rate=1.0) / once < 2.5


def test_long_training_is_told_of_a_short_one(
    phantom_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_seconds_per_mac", lambda _: 1e-6)
    line = cpu_advice(set_up(phantom_store, small(model__name=_MODEL)))
    assert line is not None and "--res 256 --epochs 2" in line


def test_models_whose_blocks_differ_are_not_reckoned(phantom_store: Path) -> None:
    swin = small(model__name="swin_tiny_patch4_window7_224", data__res="112x84")
    assert cpu_advice(set_up(phantom_store, swin)) is None
