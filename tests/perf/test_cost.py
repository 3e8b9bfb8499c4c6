from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from mammo_pd.backbones.build import describe_backbone
from mammo_pd.backbones.vit import VitBackbone
from mammo_pd.errors import InputError
from mammo_pd.keep_schedule import choose_num_keep, count_kept
from mammo_pd.perf.cost import (
    forward_macs,
    largest_fitting,
    shape_of,
    training_bytes,
    training_flops,
)

SMALL, BASE = "vit_small_patch16_224", "vit_base_patch16_224"
SQUARE, TALL, FULL = (1024, 1024), (2048, 1664), (3328, 2560)
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def measured_rows() -> list[tuple[str, tuple[int, int], int, float, float]]:
    """Model, canvas, batch, GiB and images/s of the rows of ours that the benchmark kept."""
    rows = []
    for line in (RESULTS / "train_step_h200_2026-11-25.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) > 9 and cells[2] == "mammo-pd" and cells[4] == "uniform":
            height, width = map(int, cells[1].split("x"))
            rows.append(
                (cells[0], (height, width), int(cells[5]), float(cells[9]), float(cells[7]))
            )
    return rows


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


def test_memory_and_speed_are_near_what_the_benchmark_kept() -> None:
    from mammo_pd.perf.budget import predicted_seconds

    rows = measured_rows()
    assert len(rows) >= 6
    for name, img_size, batch, gib, rate in rows:
        shape = shape_of(name)
        num_keep = choose_num_keep(img_size[0] * img_size[1] // 256, 0.25, 1)
        predicted = training_bytes(shape, img_size, num_keep, batch) / 2**30
        assert predicted == pytest.approx(gib, rel=0.02)
        assert 1 / predicted_seconds(shape, num_keep) == pytest.approx(rate, rel=0.05)


@pytest.mark.parametrize(("img_size", "batch", "gib"), [(SQUARE, 32, 1.4301), (FULL, 4, 1.5723)])
def test_memory_of_blocks_computed_anew_is_near_what_was_measured(
    img_size: tuple[int, int], batch: int, gib: float
) -> None:
    """By the test below, on an H200 on 2026-11-25."""
    num_keep = choose_num_keep(img_size[0] * img_size[1] // 256, 0.25, 1)
    predicted = training_bytes(shape_of(SMALL), img_size, num_keep, batch, checkpointing=True)
    assert predicted / 2**30 == pytest.approx(gib, rel=0.02)


def test_what_fits_fits_and_one_more_does_not() -> None:
    shape = shape_of(SMALL)
    for gib in (4, 24, 80):
        fits = largest_fitting(shape, SQUARE, 1023, gib * 2**30)
        assert training_bytes(shape, SQUARE, 1023, fits) <= gib * 2**30
        assert training_bytes(shape, SQUARE, 1023, fits + 1) > gib * 2**30
    assert largest_fitting(shape, FULL, 33280, 1e8) == 0


def test_checkpointing_lets_more_fit() -> None:
    shape = shape_of(SMALL)
    plain = largest_fitting(shape, FULL, 8319, 24e9)
    assert largest_fitting(shape, FULL, 8319, 24e9, checkpointing=True) > 2 * plain


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
    from mammo_pd.perf.bench import Bench

    options: dict[str, Any] = {"checkpointing": checkpointing, "end_to_end": False}
    with Bench(steps=2) as machine:
        row = machine.ours(name, img_size, keep, batch, **options)
    predicted = training_bytes(
        shape_of(name), img_size, row.num_keep, batch, checkpointing=checkpointing
    )
    assert predicted / 2**30 == pytest.approx(row.peak_gib, rel=0.15)
