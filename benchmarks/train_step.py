"""Measure training steps on a GPU beside timm's: the numbers that the README quotes.

    python benchmarks/train_step.py [benchmarks/results/train_step_MACHINE_DATE.md]
    python benchmarks/train_step.py --residual [OUT.md]    # with a residual stream in bf16 beside
    python benchmarks/train_step.py --small    # every path at a tiny size, on a CPU too

Random pixels in the outline of a breast; bf16 autocast, fused AdamW, gradient clipping, one
channel. "end to end" reads those images from files in the page cache through the real loader.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import build_backbone
from mammo_pd.config import RunConfig
from mammo_pd.perf.cost import shape_of, training_flops
from mammo_pd.perf.measure import Bench
from mammo_pd.perf.rows import OURS, TIMM, TIMM_WHOLE, BenchRow, as_markdown
from mammo_pd.terms import Draw
from mammo_pd.wording import percent

SMALL, BASE = "vit_small_patch16_224", "vit_base_patch16_224"
WIDE = "vit_small_patch16_hd128_224"
# Whose gradient is compared.
_NOISE_IMAGES = 4
SQUARE, FULL = (1024, 1024), (3328, 2560)


def measure(machine: Bench) -> list[BenchRow]:
    """Every case of the table."""
    share = machine.tissue_share(SQUARE, 16)
    return [
        machine.timm(SMALL, SQUARE, 1.0, 32),
        machine.timm(SMALL, SQUARE, 0.25, 128),
        machine.timm(SMALL, SQUARE, 0.25, 128, compiled=True),
        machine.ours(SMALL, SQUARE, 0.25, 128),
        machine.ours(SMALL, SQUARE, 0.25 * share, 128, draw=Draw.TISSUE),
        machine.timm(SMALL, SQUARE, 0.25, 256),
        machine.ours(SMALL, SQUARE, 0.25, 256),
        machine.ours(BASE, SQUARE, 0.25, 64, end_to_end=False),
        machine.ours(BASE, SQUARE, 0.25, 128, end_to_end=False),
        machine.timm(SMALL, FULL, 1.0, 2),
        machine.timm(SMALL, FULL, 0.25, 8),
        machine.ours(SMALL, FULL, 0.25, 8),
        machine.ours(BASE, FULL, 0.25, 8, end_to_end=False),
    ]


def measure_small(machine: Bench) -> list[BenchRow]:
    """The same paths, tiny."""
    name, img_size, compiled = "vit_tiny_patch16_224", (96, 64), machine.on_gpu
    return [
        machine.timm(name, img_size, 1.0, 4),
        machine.timm(name, img_size, 0.25, 4),
        *(machine.ours(name, img_size, 0.25, 4, draw=draw, compiled=compiled) for draw in Draw),
    ]


def measure_residual(machine: Bench, *, small: bool) -> Iterator[BenchRow]:
    """Steps with `device.residual` float32 and bfloat16, beside timm's."""
    cases = [(SMALL, SQUARE, 128), (WIDE, SQUARE, 128), (SMALL, FULL, 8), (WIDE, FULL, 8)]
    if small:
        cases = [("vit_tiny_patch16_224", (96, 64), 4)]
    name, img_size, batch_size = cases[0]
    yield machine.timm(name, img_size, 0.25, batch_size)
    for name, img_size, batch_size in cases:
        options = {"compiled": machine.on_gpu, "end_to_end": False}
        yield machine.ours(name, img_size, 0.25, batch_size, **options)
        row = machine.ours(
            name, img_size, 0.25, batch_size, change=Backbone.narrow_residual, **options
        )
        yield replace(row, who=f"{row.who}, bf16 residual")


def gradient(
    name: str,
    img_size: tuple[int, int],
    device: torch.device,
    *,
    exact: bool,
    change: Callable[[Backbone], object] = lambda _: None,
) -> Tensor:
    """The gradient of a model as it is initialised, on images of noise: in float64, or bf16-mixed.

    Returns:
        Of all weights, end to end, in float64.
    """
    torch.manual_seed(0)
    backbone = build_backbone(name, img_size, num_outputs=1)
    change(backbone)
    dtype = torch.float64 if exact else torch.float32
    backbone.to(device, dtype).train()
    num_keep = backbone.allowed_keep(0.25)
    patches = torch.randn(_NOISE_IMAGES, num_keep, backbone.patch_size**2).to(device, dtype)
    order = torch.rand(_NOISE_IMAGES, backbone.num_tokens).argsort(dim=1)
    targets = torch.arange(_NOISE_IMAGES, device=device)[:, None] % 2
    with torch.autocast(device.type, torch.bfloat16, enabled=not exact):
        outputs = backbone(patches, order[:, :num_keep].to(device))
    outputs = outputs.to(dtype if exact else torch.float32)
    F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype)).backward()
    learnt = [weight.grad for weight in backbone.parameters() if weight.grad is not None]
    return torch.cat([grad.flatten().double() for grad in learnt])


def gradient_errors(device: torch.device, *, small: bool) -> list[str]:
    """Lines of a table: how far gradients are from that in float64, relative to its norm."""
    cases = [("vit_tiny_patch16_224", (512, 384)), (SMALL, (512, 384))]
    cases += [("vit_small_patch14_dinov2", (518, 392)), (SMALL, SQUARE)]
    lines = ["| gradient's error, relative to float64 | float32 stream | bf16 |", "|---|---|---|"]
    for name, img_size in [("vit_tiny_patch16_224", (96, 64))] if small else cases:
        exact = gradient(name, img_size, device, exact=True)
        wide, narrow = (
            float((gradient(name, img_size, device, exact=False, change=change) - exact).norm())
            for change in (lambda _: None, Backbone.narrow_residual)
        )
        norm = float(exact.norm())
        size = f"{img_size[0]}x{img_size[1]}"
        lines.append(f"| {name} {size} | {wide / norm:.4f} | {narrow / norm:.4f} |")
    return lines


def main_residual(out: Path | None, *, small: bool) -> None:
    """Measure, and write what is known after each row."""
    # On a CPU a step is in float32 by default.
    device = RunConfig().device.replace(precision="bf16-mixed")
    with Bench(RunConfig().replace(device=device), steps=2 if small else 20) as machine:
        head = [
            f"# Training steps with a residual stream in bf16, {date.today()}",
            "",
            f"{machine.describe_machine()['summary']} {len(os.sched_getaffinity(0))} cores.",
            "",
        ]
        errors = gradient_errors(machine.device, small=small)
        print("\n".join(errors), flush=True)
        rows: list[BenchRow] = []
        for row in measure_residual(machine, small=small):
            rows.append(row)
            print(as_markdown(rows[-1:]).splitlines()[2], flush=True)
            ours = [
                f"| {row.model} {row.img_size[0]}x{row.img_size[1]}, {row.who} "
                f"| {_rate(row, rows[0])} |"
                for row in rows[1:]
                if row.img_size == rows[0].img_size
            ]
            lines = [*head, as_markdown(rows), "", "| over timm's, eager | |", "|---|---|", *ours]
            text = "\n".join([*lines, "", *errors, ""])
            if out is not None:
                out.write_text(text)
    print(text)


def ratios(rows: list[BenchRow], machine: Bench) -> str:
    """Compare the rows by the project's aims."""

    def find(
        who: str, name: str, img_size: tuple[int, int], batch_size: int, draw: Draw
    ) -> BenchRow:
        wanted = (who, name, img_size, batch_size, str(draw))
        return next(
            row
            for row in rows
            if (row.who, row.model, row.img_size, row.batch_size, row.draw) == wanted
        )

    plain = Draw.UNIFORM
    ours, timm = (find(who, SMALL, SQUARE, 128, plain) for who in (OURS, TIMM))
    large, timm_large = (find(who, SMALL, SQUARE, 256, plain) for who in (OURS, TIMM))
    whole = find(TIMM_WHOLE, SMALL, SQUARE, 32, plain)
    base, base_large = (find(OURS, BASE, SQUARE, size, plain) for size in (64, 128))
    full, full_whole = find(OURS, SMALL, FULL, 8, plain), find(TIMM_WHOLE, SMALL, FULL, 2, plain)
    tissue, base_full = (
        find(OURS, SMALL, SQUARE, 128, Draw.TISSUE),
        find(OURS, BASE, FULL, 8, plain),
    )
    shape = shape_of(BASE)
    whole_block = replace(shape, class_token_alone=False)
    uncut = training_flops(whole_block, base.num_keep) / training_flops(shape, base.num_keep)
    memory = (ours.peak_gib / ours.batch_size) / (whole.peak_gib / whole.batch_size)
    lines = [
        (
            "ViT-S 1024x1024 keep .25, over timm patch_drop_rate eager, batch 128 and 256",
            f"{_rate(ours, timm)}, {_rate(large, timm_large)}",
        ),
        ("the same over timm keep 1 eager, batch 128 over 32", _rate(ours, whole)),
        ("its memory per image, relative to timm's at keep 1", f"{memory:.2f}"),
        (
            "ViT-B 1024x1024 keep .25, share of the ceiling, batch 64 and 128",
            f"{base.share_of_ceiling:.3f}, {base_large.share_of_ceiling:.3f}",
        ),
        (
            "at batch 64, share of the ceiling before throttling",
            f"{base.share_of_ceiling * machine.ceiling / machine.burst:.3f}",
        ),
        (
            "at batch 64, share of the ceiling sustained and before throttling, counted as if the "
            "last block computed every token, as timm's does",
            f"{base.share_of_ceiling * uncut:.3f}, "
            f"{base.share_of_ceiling * uncut * machine.ceiling / machine.burst:.3f}",
        ),
        ("ViT-B 1024x1024 keep .25, images/s", f"{base.images_per_second:.1f}"),
        ("ViT-S 3328x2560 keep .25 over timm keep 1 eager", _rate(full, full_whole)),
        ("ViT-B 3328x2560 keep .25, images/s", f"{base_full.images_per_second:.1f}"),
        (
            "drawing, augmenting and reading patches, share of the step at 1024 and full",
            f"{percent(ours.sampling_share, 1)}, {percent(full.sampling_share, 1)}",
        ),
        (
            "images/s with the loader over without, at 1024 and full",
            f"{ours.end_to_end_share:.3f}, {full.end_to_end_share:.3f}",
        ),
        ("tissue at keep .25 of the tissue over uniform keep .25", _rate(tissue, ours)),
        ("share of the patches that hold tissue", f"{4 * tissue.keep_rate:.2f}"),
    ]
    return "\n".join(
        ["| case | measured |", "|---|---|", *(f"| {what} | {value} |" for what, value in lines)]
    )


def _rate(one: BenchRow, other: BenchRow) -> str:
    return f"{one.images_per_second / other.images_per_second:.2f}x"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--residual", action="store_true")
    options = parser.parse_args()
    if options.residual:
        main_residual(options.out, small=options.small)
        return
    with Bench(steps=2 if options.small else 20) as machine:
        rows = measure_small(machine) if options.small else measure(machine)
        img_size = (96, 64) if options.small else SQUARE
        loader = machine.loader_rate(img_size, 8 if options.small else 128)
        text = "\n".join(
            [
                f"# Training steps, {date.today()}",
                "",
                f"{machine.describe_machine()['summary']} {len(os.sched_getaffinity(0))} cores.",
                "",
                as_markdown(rows),
                "",
                f"The loader alone gives {loader:.0f} images/s of {img_size[0]}x{img_size[1]}.",
                "",
                "" if options.small else ratios(rows, machine) + "\n",
            ]
        )
    print(text)
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
