"""Measure steps of small batches on a GPU: as one CUDA graph, kernel by kernel, and by timm.

    python benchmarks/small_steps.py [benchmarks/results/small_steps_MACHINE_DATE.md]

First it is shown that captured steps learn what others do: losses and weights of the same 40 steps
on ragged images, with a learning rate that changes, stochastic depth and gradients in two parts.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np
import torch

from mammo_pd.backbones.build import build_backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import RunConfig
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.perf.measure import Bench
from mammo_pd.perf.rows import as_markdown
from mammo_pd.terms import Draw
from mammo_pd.training.captured import CapturedWork
from mammo_pd.training.devices import make_fabric
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.optimizer import make_optimizer, parameter_groups, set_learning_rate
from mammo_pd.training.step import TrainingStep

SMALL, WIDE = "vit_small_patch16_224", "vit_small_patch16_hd128_224"
LOW, SQUARE, FULL = (512, 384), (1024, 1024), (3328, 2560)
STEPS = 40
# Of each kind of run, since what atomic sums change differs from one to the next.
REPEATS = 2


@contextmanager
def deterministic(*, wanted: bool) -> Iterator[None]:
    """Within the block, no kernel adds up in an order that differs from one run to the next."""
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def learn(
    *, captured: bool, compiled: bool, precision: str = "bf16-mixed", draw: Draw = Draw.TISSUE
) -> tuple[list[float], torch.Tensor]:
    """Losses and final weights of some steps on drawn images."""
    torch.compiler.reset()
    torch.manual_seed(0)
    fabric = make_fabric(
        RunConfig().replace(device=RunConfig().device.replace(precision=precision))
    )
    model = build_backbone(SMALL, (256, 192), num_outputs=1, drop_path_rate=0.2)
    sampler = PatchSampler((256, 192), 16, draw=draw, compiled=compiled)
    groups = parameter_groups(model, model.timm_model, weight_decay=0.05, layer_decay=0.75)
    if compiled:
        model.compile_blocks()
    # Rates on the device in both: what is compared is the launching alone.
    module, optimizer = fabric.setup(
        model, make_optimizer(groups, 1e-4, fused=True, captured_on=fabric.device)
    )
    step = TrainingStep(
        fabric,
        module.train(),
        optimizer,
        sampler,
        build_objective(RunConfig().training),
        clip_norm=1.0,
        captured=CapturedWork(fabric.device, 280 * 200, print) if captured else None,
    )
    rng = np.random.default_rng(1)
    losses = []
    for number in range(STEPS):
        shapes = rng.integers((200, 100), (280, 200), (16, 2))
        images = [rng.integers(0, 65536, shape).astype(np.uint16) for shape in shapes]
        for image in images:
            image[:, image.shape[1] // 2 :] = 0
        batch = ImageBatch.from_images(images).to(fabric.device)
        batch.targets[:] = torch.arange(16, device=fabric.device)[:, None] % 2
        keys = torch.arange(16, device=fabric.device) + 1000 * number
        set_learning_rate(optimizer, 1e-5 * (1 + number % 7))
        torch.manual_seed(number)
        losses.append(float(step(batch, keys, 48, 1 + number % 2)))
    return losses, torch.cat([weight.detach().flatten().float() for weight in model.parameters()])


def equality() -> str:
    """Print how far captured steps are from others."""
    lines = [
        f"| largest differences of {REPEATS} runs from steps launched kernel by kernel "
        "| loss of 10 steps | loss of 40 | weights after 40 |",
        "|---|---|---|---|",
    ]
    for name, compiled, precision, in_order in (
        ("compiled, bf16", True, "bf16-mixed", False),
        ("compiled, bf16, deterministic kernels", True, "bf16-mixed", True),
        ("compiled, float32", True, "32-true", False),
        ("eager, float32", False, "32-true", False),
        ("eager, float64", False, "64-true", False),
    ):
        with deterministic(wanted=in_order):
            runs = [
                learn(captured=captured, compiled=compiled, precision=precision)
                for captured in (False, *[True] * REPEATS, *[False] * REPEATS)
            ]
        for what, others in (
            (f"captured, {name}", runs[1 : 1 + REPEATS]),
            (f"{name}: run again as it was", runs[1 + REPEATS :]),
        ):
            apart = [_apart(runs[0], other) for other in others]
            figures = " | ".join(f"{max(values):.1e}" for values in zip(*apart, strict=True))
            lines.append(f"| {what} | {figures} |")
    return "\n".join(lines)


def _apart(
    one: tuple[list[float], torch.Tensor], other: tuple[list[float], torch.Tensor]
) -> tuple[float, float, float]:
    losses = [abs(a - b) for a, b in zip(one[0], other[0], strict=True)]
    return max(losses[:10]), max(losses), float((one[1] - other[1]).abs().max())


def main(out: str | None = None) -> None:
    """Measure and print."""
    equal = equality()
    print(equal, flush=True)
    with Bench(steps=20) as machine:
        rows = []
        for case in (
            lambda: machine.timm(SMALL, LOW, 1.0, 64),
            lambda: machine.timm(SMALL, LOW, 0.25, 64),
            lambda: machine.timm(SMALL, LOW, 0.25, 64, compiled=True),
            lambda: machine.ours(SMALL, LOW, 1.0, 64, captured=False),
            lambda: machine.ours(SMALL, LOW, 0.25, 64, captured=False),
            lambda: machine.ours(SMALL, LOW, 1.0, 64),
            lambda: machine.ours(SMALL, LOW, 0.25, 64),
            lambda: machine.ours(SMALL, LOW, 0.25, 64, draw=Draw.TISSUE),
            lambda: machine.ours(SMALL, LOW, 0.25, 256),
            lambda: machine.ours(SMALL, SQUARE, 0.25, 16),
            lambda: machine.ours(SMALL, SQUARE, 0.25, 128),
            lambda: machine.timm(SMALL, SQUARE, 0.25, 128),
            lambda: machine.ours(SMALL, FULL, 0.25, 8),
            lambda: machine.ours(WIDE, SQUARE, 0.25, 128),
            lambda: machine.ours(WIDE, FULL, 0.25, 8),
        ):
            rows.append(case())
            print(as_markdown(rows[-1:]).splitlines()[2], flush=True)
        summary = machine.describe_machine()["summary"]
    text = "\n\n".join(
        [f"# Steps of small batches, {date.today()}", summary, equal, as_markdown(rows)]
    )
    if out is not None:
        Path(out).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
