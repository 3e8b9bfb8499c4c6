"""Measure steps of small batches on a GPU: as one CUDA graph, kernel by kernel, and by timm.

    python benchmarks/small_steps.py [OUT.md] [--parts equality speed]
    python benchmarks/small_steps.py --small    # the same path, tiny; on a CPU nothing is captured

First it is shown that captured steps learn what others do: losses and weights of the same 40 steps
on ragged images, with a learning rate that changes, stochastic depth and gradients in two parts.
OUT is written anew after each row.
"""

import argparse
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch

from mammo_pd.backbones.build import build_backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import RunConfig
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.perf.measure import Bench
from mammo_pd.perf.rows import BenchRow, as_markdown
from mammo_pd.terms import Draw
from mammo_pd.training.captured import CapturedWork
from mammo_pd.training.devices import deterministic_kernels, make_fabric
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.optimizer import make_optimizer, parameter_groups, set_learning_rate
from mammo_pd.training.step import TrainingStep

SMALL, WIDE = "vit_small_patch16_224", "vit_small_patch16_hd128_224"
LOW, SQUARE, FULL = (512, 384), (1024, 1024), (3328, 2560)
TINY = "vit_tiny_patch16_224"
STEPS = 40
# Of each kind of run, since what atomic sums change differs from one to the next.
REPEATS = 2


def learn(
    *,
    captured: bool,
    compiled: bool,
    precision: str = "bf16-mixed",
    draw: Draw = Draw.TISSUE,
    name: str = SMALL,
    steps: int = STEPS,
) -> tuple[list[float], torch.Tensor]:
    """Losses and final weights of some steps on drawn images."""
    torch.compiler.reset()
    torch.manual_seed(0)
    fabric = make_fabric(
        RunConfig().replace(device=RunConfig().device.replace(precision=precision))
    )
    model = build_backbone(name, (256, 192), num_outputs=1, drop_path_rate=0.2)
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
        captured=CapturedWork(fabric.device, 280 * 200, print)
        if captured and torch.cuda.is_available()
        else None,
    )
    rng = np.random.default_rng(1)
    losses = []
    for number in range(steps):
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


def equality(add: Callable[[str], object], *, small: bool) -> None:
    """Tell, line by line, how far captured steps are from others."""
    add(
        f"| largest differences of {REPEATS} runs from steps launched kernel by kernel "
        "| loss of 10 steps | loss of 40 | weights after 40 |"
    )
    add("|---|---|---|---|")
    kinds = [
        ("compiled, bf16", True, "bf16-mixed", False),
        ("compiled, bf16, deterministic kernels", True, "bf16-mixed", True),
        ("compiled, float32", True, "32-true", False),
        ("eager, float32", False, "32-true", False),
        ("eager, float64", False, "64-true", False),
    ]
    options = {"name": TINY, "steps": 3} if small else {}
    for name, compiled, precision, in_order in kinds[3:] if small else kinds:
        device = RunConfig().device.replace(deterministic=in_order)
        with deterministic_kernels(RunConfig().replace(device=device)):
            runs = [
                learn(captured=captured, compiled=compiled, precision=precision, **options)
                for captured in (False, *[True] * REPEATS, *[False] * REPEATS)
            ]
        for what, others in (
            (f"captured, {name}", runs[1 : 1 + REPEATS]),
            (f"{name}: run again as it was", runs[1 + REPEATS :]),
        ):
            apart = [_apart(runs[0], other) for other in others]
            figures = " | ".join(f"{max(values):.1e}" for values in zip(*apart, strict=True))
            add(f"| {what} | {figures} |")


def _apart(
    one: tuple[list[float], torch.Tensor], other: tuple[list[float], torch.Tensor]
) -> tuple[float, float, float]:
    losses = [abs(a - b) for a, b in zip(one[0], other[0], strict=True)]
    return max(losses[:10]), max(losses), float((one[1] - other[1]).abs().max())


def cases(machine: Bench, *, small: bool) -> list[Callable[[], BenchRow]]:
    """The rows, each to be measured in its turn."""
    if small:
        return [
            lambda: machine.timm(TINY, (96, 64), 1.0, 4),
            lambda: machine.ours(TINY, (96, 64), 0.25, 4, captured=False, compiled=False),
            lambda: machine.ours(TINY, (96, 64), 0.25, 4, compiled=machine.on_gpu),
        ]
    return [
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
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=("equality", "speed"))
    options = parser.parse_args()
    parts = options.parts or ("equality", "speed")
    equal: list[str] = []
    rows: list[BenchRow] = []
    with Bench(steps=2 if options.small else 20) as machine:
        head = [f"# Steps of small batches, {date.today()}", machine.describe_machine()["summary"]]

        def page() -> str:
            return "\n\n".join([*head, "\n".join(equal), as_markdown(rows)]) + "\n"

        def write(line: str) -> None:
            print(line, flush=True)
            if options.out is not None:
                options.out.write_text(page())

        def add(line: str) -> None:
            equal.append(line)
            write(line)

        if "equality" in parts:
            equality(add, small=options.small)
        for case in cases(machine, small=options.small) if "speed" in parts else ():
            rows.append(case())
            write(as_markdown(rows[-1:]).splitlines()[2])
    print(page())


if __name__ == "__main__":
    main()
