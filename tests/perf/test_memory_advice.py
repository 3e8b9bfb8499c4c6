import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mammo_pd.config import RunConfig, load_config
from mammo_pd.errors import InputError
from mammo_pd.perf.memory_advice import (
    estimate_steps,
    memory_advice,
    memory_warning,
    suggest_batch,
)
from mammo_pd.training.batch_size import DoesNotFitError
from mammo_pd.training.setup import RunSetup

GIB = 2**30
FULL = {"data.res": "3328x2560", "model.name": "vit_tiny_patch16_224", "training.batch_size": 8}
SMALL_AT_1024 = {"data.res": "1024x1024", "model.name": "vit_small_patch16_224"}


def config_with(**changes: object) -> RunConfig:
    return load_config(None, {"device.accelerator": "cpu", "data.workers": 1, **changes})


def build(store: Path, **changes: object) -> RunSetup:
    return RunSetup.build(store, config_with(**changes), say=lambda line: None)


def with_batch(setup: RunSetup, batch_size: int | str) -> RunSetup:
    training = setup.config.training.replace(batch_size=batch_size)
    return replace(setup, config=setup.config.replace(training=training))


@pytest.fixture(scope="module")
def at_1024(phantom_store: Path) -> RunSetup:
    """ViT-S on 1024x1024 with 1023 patches kept."""
    return build(phantom_store, **SMALL_AT_1024)


@pytest.fixture(scope="module")
def unmasked_at_last(phantom_store: Path) -> RunSetup:
    """A twentieth of 33280 patches, and one last epoch with all of them."""
    return build(phantom_store, **FULL, **{"patch_dropout.keep_rate": "0.05+1"})


def suggested(advice: str) -> int:
    match = re.search(r"try --batch-size (\d+) first", advice)
    assert match is not None, advice
    return int(match[1])


@pytest.mark.parametrize("gib", [2, 11, 24, 80, 141])
def test_batch_suggested_for_gpus_of_any_size(at_1024: RunSetup, gib: int) -> None:
    found = suggested(suggest_batch(with_batch(at_1024, 4096), gib * GIB))
    # Weights and moments take 0.28 GiB, each image 0.147, as measured (benchmarks/results).
    assert found == pytest.approx((0.9 * gib - 0.28) / 0.147, rel=0.05)


@pytest.mark.parametrize("gib", [2, 24, 80])
def test_suggested_batch_fits_by_the_estimate_and_the_next_larger_does_not(
    at_1024: RunSetup, gib: int
) -> None:
    found = suggested(suggest_batch(with_batch(at_1024, 4096), gib * GIB))

    def needed(batch_size: int) -> int:
        return max(step.bytes for step in estimate_steps(at_1024, batch_size))

    assert needed(found) <= 0.9 * gib * GIB < needed(found + 8)
    assert memory_warning(with_batch(at_1024, found), gib * GIB) is None


def test_suggestion_is_shared_by_devices_and_parts(at_1024: RunSetup) -> None:
    alone = suggested(suggest_batch(with_batch(at_1024, 4096), 2 * GIB))
    fabric = SimpleNamespace(world_size=3, device=at_1024.device)
    shared = replace(with_batch(at_1024, 4096), fabric=fabric)
    found = suggested(suggest_batch(shared, 2 * GIB))
    assert found % 3 == 0
    assert 2 * alone < found <= 3 * alone
    config = shared.config
    in_parts = config.replace(training=config.training.replace(grad_accum_steps=2))
    assert suggested(suggest_batch(replace(shared, config=in_parts), 2 * GIB)) > 1.5 * found


def test_only_what_is_far_too_large_is_warned_of(at_1024: RunSetup) -> None:
    setup = with_batch(at_1024, 64)
    (step,) = estimate_steps(setup, 64)
    assert memory_warning(setup, round(step.bytes / 1.19)) is None
    warning = memory_warning(setup, round(step.bytes / 1.21))
    assert warning is not None
    assert warning.startswith(
        "warning: a step is estimated to take 9.7 GiB, and the device has 8.0"
    )
    assert suggested(warning) < 64


def test_warning_covers_last_epochs_that_keep_every_patch(unmasked_at_last: RunSetup) -> None:
    """One image at keep 1 can take more than a batch of eight at .05."""
    masked, unmasked = estimate_steps(unmasked_at_last, 8)
    assert (masked.num_keep, unmasked.num_keep) == (1663, 33280)
    assert unmasked.bytes > 1.5 * masked.bytes
    memory = round(masked.bytes * 1.15)
    warning = memory_warning(unmasked_at_last, memory)
    assert warning is not None
    assert "a step of the last epochs, which keep all 33280 patches," in warning
    assert "--keep 0.05+1 keeps all 33280 patches: drop those epochs" in warning
    masked_only = unmasked_at_last.config.replace(
        patch_dropout=unmasked_at_last.config.patch_dropout.replace(keep_rate=0.05),
    )
    assert memory_warning(replace(unmasked_at_last, config=masked_only), memory) is None


def test_not_even_one_image_fits(phantom_store: Path) -> None:
    setup = build(phantom_store, **FULL, **{"patch_dropout.keep_rate": 1.0})
    for batch_size in (8, "auto"):
        advice = suggest_batch(with_batch(setup, batch_size), GIB)
        assert "not even one image per device fits with 33280 patches kept" in advice
        assert "lower --res or --keep" in advice


def test_batch_that_should_fit_points_at_something_else(at_1024: RunSetup) -> None:
    advice = suggest_batch(with_batch(at_1024, 8), 24 * GIB)
    assert re.match(r"According to the estimate, 1\d\d images should fit: another process", advice)


def test_estimate_knows_pooling_and_checkpointing(at_1024: RunSetup) -> None:
    """Of 12 blocks one stores less where the head reads the class token alone."""
    (usual,) = estimate_steps(at_1024, 64)

    def bytes_with(**changes: object) -> int:
        model = at_1024.config.model.replace(**changes)
        (step,) = estimate_steps(replace(at_1024, config=at_1024.config.replace(model=model)), 64)
        return step.bytes

    assert bytes_with(global_pool="token") == usual.bytes
    assert bytes_with(global_pool="avg") == pytest.approx(usual.bytes * 388 / 358, rel=0.02)
    assert bytes_with(checkpointing=True) < usual.bytes / 2


def test_run_that_ran_out_of_memory_is_told_what_to_try(
    at_1024: RunSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = SimpleNamespace(total_memory=4 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 0.5)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * GIB, 4 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    on_gpu = SimpleNamespace(world_size=1, device=torch.device("cuda", 0))
    setup = replace(with_batch(at_1024, 4096), fabric=on_gpu)
    warning = memory_warning(setup)
    assert warning is not None
    assert "the device has 2.0;" in warning
    with pytest.raises(InputError, match=r"4096 images .* does not fit") as told, memory_advice():
        raise DoesNotFitError(setup)
    assert suggested(str(told.value)) == suggested(warning) == 10


@pytest.mark.parametrize(("free", "told"), [(3, "GPU\\);"), (1, r"GPU\), of which others hold 2")])
def test_memory_that_other_processes_hold_is_told(
    at_1024: RunSetup, monkeypatch: pytest.MonkeyPatch, free: int, told: str
) -> None:
    properties = SimpleNamespace(total_memory=4 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GIB, 4 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: GIB // 2)
    on_gpu = SimpleNamespace(world_size=1, device=torch.device("cuda", 0))
    with pytest.raises(InputError, match=told):
        raise DoesNotFitError(replace(with_batch(at_1024, 64), fabric=on_gpu))


def test_other_errors_pass_the_advice_unchanged() -> None:
    with pytest.raises(InputError) as told, memory_advice():
        raise InputError("another")
    assert str(told.value) == "another"


def test_nothing_is_estimated_of_a_cpu(at_1024: RunSetup) -> None:
    setup = with_batch(at_1024, 100_000)
    assert memory_warning(setup) is None
    with pytest.raises(InputError, match=r"checkpointing=true\)\.$"), memory_advice():
        raise DoesNotFitError(setup)
