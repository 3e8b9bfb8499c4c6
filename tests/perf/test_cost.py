from dataclasses import replace
from typing import Any

import pytest
import timm
import torch

from mammo_pd.backbones.build import describe_backbone
from mammo_pd.backbones.vit import VitBackbone
from mammo_pd.errors import InputError
from mammo_pd.keep_schedule import count_kept
from mammo_pd.perf.cost import (
    estimate_seconds,
    forward_macs,
    keep_of,
    largest_fitting,
    shape_of,
    training_bytes,
    training_flops,
)

SMALL, BASE = "vit_small_patch16_224", "vit_base_patch16_224"
SQUARE, TALL, FULL = (1024, 1024), (2048, 1664), (3328, 2560)


def test_macs_are_the_papers_at_896() -> None:
    """450 G at keep 1, 80 G at .25, of ViT-B/16 with three channels, every patch embedded."""
    shape, tokens = replace(shape_of(BASE), class_token_alone=False), 56 * 56

    def papers(keep_rate: float) -> float:
        kept = count_kept(tokens, keep_rate)
        per_patch = shape.patch_size**2 * shape.width
        return (sum(forward_macs(shape, kept)) + (3 * tokens - kept) * per_patch) / 1e9

    assert papers(1) == pytest.approx(450, rel=0.01)
    assert papers(0.25) == pytest.approx(80, rel=0.01)


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("vit_tiny_patch16_224", "token"),
        ("vit_tiny_patch16_224", "avg"),
        (SMALL, "token"),
        ("vit_small_patch14_dinov2", "token"),
        ("vit_giant_patch14_dinov2", "avg"),  # gated MLP
        ("vit_small_patch16_18x2_224", "avg"),  # two attentions and two MLPs in each block
        ("vit_pwee_patch16_reg1_gap_256", "avg"),  # attention and MLP side by side
        ("vit_dwee_patch16_reg1_gap_256", "avg"),  # differential attention
        ("eva02_tiny_patch14_224", "avg"),  # gated MLP
        ("vit_small_patch16_rope_224", "token"),
        ("vit_small_plus_patch16_dinov3", "avg"),
        ("vit_base_patch16_sapiens2", "token"),  # keys and values shared by heads
    ],
)
def test_macs_are_those_that_torch_counts(name: str, pool: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    model = describe_backbone(name, global_pool=pool)
    shape, num_keep = shape_of(name, pool), 40
    is_vit = isinstance(model, VitBackbone)
    assert shape.class_token_alone == (is_vit and pool == "token")
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        patches = torch.empty(1, num_keep, shape.patch_size**2 * 3)
        model.eval()(patches, torch.zeros(1, num_keep, dtype=torch.int64))
    counted = counter.get_total_flops() / 2
    # Three channels here, one there; and the head's row is not counted.
    embedding = 2 * num_keep * shape.patch_size**2 * shape.width
    assert counted == pytest.approx(sum(forward_macs(shape, num_keep)) + embedding, rel=1e-3)


def test_macs_of_windows_are_within_a_tenth_of_those_that_torch_counts() -> None:
    """Attention is counted as within full windows; with all patches it is exact."""
    from torch.utils.flop_counter import FlopCounterMode

    name = "swin_tiny_patch4_window7_224"
    model, shape = describe_backbone(name), shape_of(name)
    for keep_rate, most in ((1.0, 1.001), (0.25, 1.1)):
        num_keep = keep_of(shape, (224, 224), keep_rate)
        assert num_keep == model.allowed_keep(keep_rate)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            model.eval()(torch.empty(1, num_keep, 48), torch.zeros(1, num_keep, dtype=torch.int64))
        embedding = 2 * num_keep * shape.patch_size**2 * shape.width
        counted = counter.get_total_flops() / 2 - embedding
        assert 0.999 < sum(forward_macs(shape, num_keep)) / counted < most
    assert model.allowed_keep(0.25) < model.allowed_keep(0.5) < model.allowed_keep(1.0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", [SMALL, BASE, "vit_small_patch14_dinov2"])
def test_more_images_patches_or_pixels_take_more_memory(name: str, checkpointing: bool) -> None:
    shape = shape_of(name)

    def needed(img_size: tuple[int, int], num_keep: int, batch: int) -> int:
        return training_bytes(shape, img_size, num_keep, batch, checkpointing=checkpointing)

    # The same patches of a larger image: its pixels and position embedding take memory.
    sizes = [needed(img_size, 1000, 4) for img_size in ((896, 896), (2016, 1680), (3360, 2576))]
    keeps = [needed((2016, 1680), num_keep, 4) for num_keep in (100, 1000, 10_000)]
    batches = [needed((2016, 1680), 1000, batch) for batch in (16, 64, 256)]
    for needs in (sizes, keeps, batches):
        assert needs[0] < needs[1] < needs[2]
    # Beside the weights every image takes the same.
    assert batches[2] - batches[1] == pytest.approx(4 * (batches[1] - batches[0]), abs=2)


@pytest.mark.parametrize("name", [SMALL, BASE])
def test_checkpointing_saves_memory_and_lets_more_fit(name: str) -> None:
    shape = shape_of(name)
    stored = training_bytes(shape, FULL, 8319, 8)
    assert training_bytes(shape, FULL, 8319, 8, checkpointing=True) < stored / 2
    fits = largest_fitting(shape, FULL, 8319, 24e9)
    assert largest_fitting(shape, FULL, 8319, 24e9, checkpointing=True) > 2 * fits


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("gib", [4, 24, 80])
@pytest.mark.parametrize(("img_size", "num_keep"), [(SQUARE, 1023), (FULL, 8319)])
def test_what_fits_fits_and_one_more_does_not(
    img_size: tuple[int, int], num_keep: int, gib: int, checkpointing: bool
) -> None:
    shape, memory = shape_of(SMALL), gib * 2**30
    fits = largest_fitting(shape, img_size, num_keep, memory, checkpointing=checkpointing)

    def needed(batch: int) -> int:
        return training_bytes(shape, img_size, num_keep, batch, checkpointing=checkpointing)

    assert needed(fits) <= memory < needed(fits + 1)


def test_nothing_fits_where_the_weights_do_not() -> None:
    assert largest_fitting(shape_of(SMALL), FULL, 33280, 1e8) == 0


def test_time_grows_faster_than_the_number_of_patches() -> None:
    """Attention is quadratic in them."""
    shape = shape_of(SMALL)
    seconds = [estimate_seconds(shape, num_keep) for num_keep in (1000, 4000, 16_000)]
    assert seconds[1] > 4 * seconds[0]
    assert seconds[2] / seconds[1] > seconds[1] / seconds[0]


def test_flops_of_a_step_are_three_forward_passes() -> None:
    shape = shape_of(SMALL)
    assert training_flops(shape, 100) == 2 * 3 * sum(forward_macs(shape, 100))


def test_other_models_are_refused() -> None:
    with pytest.raises(InputError, match="is a ResNet"):
        shape_of("resnet18")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "img_size", "keep", "batch", "checkpointing"),
    [
        (SMALL, SQUARE, 0.25, 32, False),
        (SMALL, SQUARE, 0.25, 32, True),
        (BASE, TALL, 0.25, 4, False),
        (SMALL, TALL, 1.0, 2, False),
        (SMALL, FULL, 0.25, 4, True),
    ],
)
def test_memory_is_within_15_percent_of_this_gpus(
    name: str, img_size: tuple[int, int], keep: float, batch: int, checkpointing: bool
) -> None:
    from mammo_pd.perf.measure import Bench

    options: dict[str, Any] = {"checkpointing": checkpointing, "end_to_end": False}
    with Bench(steps=2) as machine:
        row = machine.ours(name, img_size, keep, batch, **options)
    predicted = training_bytes(
        shape_of(name), img_size, row.num_keep, batch, checkpointing=checkpointing
    )
    assert predicted / 2**30 == pytest.approx(row.peak_gib, rel=0.15)
