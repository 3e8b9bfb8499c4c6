"""Measure training steps on a GPU beside timm's: the figures that the README quotes.

    python benchmarks/train_step.py [benchmarks/results/train_step_MACHINE_DATE.md]
    python benchmarks/train_step.py --small    # every path at a tiny size, on a CPU too

Random pixels in the outline of a breast; bf16 autocast, fused AdamW, gradient clipping, one
channel. "end to end" reads those images from files in the page cache through the real loader.
"""

import argparse
import os
from datetime import date
from pathlib import Path

from mammo_pd.stages.bench import OURS, TIMM, TIMM_WHOLE, Bench, Measured, as_markdown, describe
from mammo_pd.terms import Draw

SMALL, BASE = "vit_small_patch16_224", "vit_base_patch16_224"
SQUARE, TALL, FULL = (1024, 1024), (2048, 1664), (3328, 2560)


def measure(machine: Bench) -> list[Measured]:
    """Every case of the table."""
    share = machine.tissue_share(SQUARE, 16)
    return [
        machine.timm(SMALL, SQUARE, 1.0, 32),
        machine.timm(SMALL, SQUARE, 0.25, 128),
        machine.timm(SMALL, SQUARE, 0.25, 128, compiled=True),
        machine.ours(SMALL, SQUARE, 0.25, 128, compiled=False, end_to_end=False),
        machine.ours(SMALL, SQUARE, 0.25, 128),
        machine.ours(SMALL, SQUARE, 0.25 * share, 128, draw=Draw.TISSUE),
        machine.ours(SMALL, SQUARE, 0.25, 128, draw=Draw.GRID, end_to_end=False),
        machine.timm(BASE, SQUARE, 0.25, 64),
        machine.ours(BASE, SQUARE, 0.25, 64),
        machine.timm(SMALL, TALL, 1.0, 8),
        machine.ours(SMALL, TALL, 0.25, 32),
        machine.timm(SMALL, FULL, 1.0, 2),
        machine.timm(SMALL, FULL, 0.25, 8),
        machine.ours(SMALL, FULL, 0.25, 8),
        machine.ours(BASE, FULL, 0.25, 8),
    ]


def measure_small(machine: Bench) -> list[Measured]:
    """The same paths, tiny."""
    name, canvas, compiled = "vit_tiny_patch16_224", (96, 64), machine.on_gpu
    return [
        machine.timm(name, canvas, 1.0, 4),
        machine.timm(name, canvas, 0.25, 4),
        *(machine.ours(name, canvas, 0.25, 4, draw=draw, compiled=compiled) for draw in Draw),
    ]


def ratios(rows: list[Measured]) -> str:
    """What the rows say, in the words of the aims."""

    def find(
        who: str, name: str, canvas: tuple[int, int], *, draw: Draw = Draw.UNIFORM
    ) -> Measured:
        # The last one: ours uncompiled comes before ours compiled.
        return [
            row
            for row in rows
            if (row.who, row.model, row.canvas, row.draw) == (who, name, canvas, str(draw))
        ][-1]

    ours, timm = find(OURS, SMALL, SQUARE), find(TIMM, SMALL, SQUARE)
    whole, base = find(TIMM_WHOLE, SMALL, SQUARE), find(OURS, BASE, SQUARE)
    full, full_whole = find(OURS, SMALL, FULL), find(TIMM_WHOLE, SMALL, FULL)
    tissue, base_full = find(OURS, SMALL, SQUARE, draw=Draw.TISSUE), find(OURS, BASE, FULL)
    memory = (ours.peak_gib / ours.batch_size) / (whole.peak_gib / whole.batch_size)
    reading = [find(OURS, SMALL, SQUARE), full]
    lines = [
        ("ViT-S 1024x1024 keep .25, over timm patch_drop_rate eager", _rate(ours, timm)),
        ("the same over timm keep 1 eager", _rate(ours, whole)),
        ("its memory per image, of timm's at keep 1", f"{memory:.2f}"),
        ("ViT-B 1024x1024 keep .25, share of the ceiling", f"{base.share_of_ceiling:.3f}"),
        ("ViT-S 3328x2560 keep .25 over timm keep 1 eager", _rate(full, full_whole)),
        ("ViT-B 3328x2560 keep .25, images/s", f"{base_full.images_per_second:.1f}"),
        (
            "draw, augmentation and gather, share of the step at 1024 and full",
            ", ".join(f"{row.sampling_share:.1%}" for row in reading),
        ),
        (
            "with the loader over without, at 1024 and full",
            ", ".join(f"{row.end_to_end_share:.3f}" for row in reading),
        ),
        ("tissue at keep .25 of the tissue over uniform keep .25", _rate(tissue, ours)),
        ("the tissue's share of the patches", f"{4 * tissue.keep_rate:.2f}"),
    ]
    return "\n".join(
        ["| case | measured |", "|---|---|", *(f"| {what} | {value} |" for what, value in lines)]
    )


def _rate(one: Measured, other: Measured) -> str:
    return f"{one.images_per_second / other.images_per_second:.2f}x"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    with Bench(steps=2 if options.small else 20) as machine:
        rows = measure_small(machine) if options.small else measure(machine)
        canvas = (96, 64) if options.small else SQUARE
        loader = machine.loader_rate(canvas, 8 if options.small else 128)
        text = "\n".join(
            [
                f"# Training steps, {date.today()}",
                "",
                f"{describe(machine)} {len(os.sched_getaffinity(0))} cores.",
                "",
                as_markdown(rows),
                "",
                f"The loader alone gives {loader:.0f} images/s of {canvas[0]}x{canvas[1]}.",
                "",
                "" if options.small else ratios(rows) + "\n",
            ]
        )
    print(text)
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
