"""What a training on a CPU will take, told before it starts: measured on one block of its model."""

import copy
from time import perf_counter

import torch
from torch import Tensor

from mammo_pd.backbones.base import ModelShape
from mammo_pd.perf.cost import estimate_seconds, forward_macs, shape_of
from mammo_pd.training.setup import RunSetup

# Tokens of the measured block at most, and how long it is measured at least.
_MOST_TOKENS, _SECONDS = 1024, 0.3
# Beyond this the sentence names a smaller training to begin with.
_LONG = 3600.0


def cpu_advice(setup: RunSetup) -> str | None:
    """Say how long a training on a CPU takes, and how long it would on a GPU.

    Args:
        setup: of the run.

    Returns:
        One line; None on a GPU, and for models whose blocks are not all alike (Swin).
    """
    if setup.device.type != "cpu" or setup.backbone.window is not None:
        return None
    config = setup.config
    shape = shape_of(config.model.name, config.model.global_pool)
    per_mac = _seconds_per_mac(setup)
    on_cpu = on_gpu = 0.0
    for epoch in range(config.training.epochs):
        rate = setup.schedule.keep_rate(epoch, config.training.epochs, 0, config.training.seed)
        kept = setup.backbone.allowed_keep(rate)
        on_cpu += len(setup.train_set) * 3 * per_mac * sum(forward_macs(shape, kept))
        on_gpu += len(setup.train_set) * estimate_seconds(shape, kept)
        # A validation is one forward pass, a third of a step.
        validated = _patches_of_validation(setup)
        on_cpu += len(setup.val_set) * per_mac * sum(forward_macs(shape, validated))
        on_gpu += len(setup.val_set) * estimate_seconds(shape, validated) / 3
    epochs = config.training.epochs
    line = (
        f"training on the CPU: about {_in_words(on_cpu / epochs)} an epoch, {_in_words(on_cpu)} "
        f"for all {epochs} (estimated by timing one block just now); an H200 would take about "
        f"{_in_words(on_gpu)}"
    )
    if on_cpu > _LONG:
        line += (
            ". To check first that everything works: --res 256 --epochs 2 --model "
            "vit_tiny_patch16_224"
        )
    return line


def _patches_of_validation(setup: RunSetup) -> int:
    on_kept = setup.config.training.validate_on == "kept" and setup.schedule.base < 1
    return setup.num_keep if on_kept else setup.backbone.num_tokens


def _seconds_per_mac(setup: RunSetup) -> float:
    """Seconds of each multiply-accumulate of a forward pass; a step takes three times as many."""
    shape: ModelShape = setup.backbone.shape
    # A copy: the run's own gradients and random numbers stay as they are.
    block = copy.deepcopy(setup.backbone.timm_model.blocks[0]).eval()
    tokens = min(_MOST_TOKENS, setup.num_keep + shape.num_prefix)
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(2, tokens, shape.width, generator=generator, requires_grad=True)
    _step(block, given)  # the first call makes what the others find
    count, started = 0, perf_counter()
    while (spent := perf_counter() - started) < _SECONDS:
        _step(block, given)
        count += 1
    macs = tokens * shape.token_macs / shape.depth + tokens**2 * shape.pair_macs / shape.depth
    return spent / (count * len(given) * 3 * macs)


def _step(block: torch.nn.Module, given: Tensor) -> None:
    output: Tensor = block(given)
    output.sum().backward()  # type: ignore[no-untyped-call]


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
