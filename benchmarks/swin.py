"""Measure Swin's training steps beside timm's own: what dropping rows and columns of windows saves.

    python benchmarks/swin.py [benchmarks/results/swin_MACHINE_DATE.md] [--cases 0 1 2]
    python benchmarks/swin.py --small    # the same paths at a tiny size, on a CPU too

timm has no patch dropout for Swin, so it is measured on every patch, eager and compiled. Random
pixels in the outline of a breast; bf16 autocast, fused AdamW, gradient clipping, one channel; the
same batch in all rows of a model but the last, in which the memory that was saved holds more.
"""

import argparse
import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from mammo_pd.perf.measure import Bench
from mammo_pd.perf.rows import BenchRow, as_markdown
from mammo_pd.wording import percent

# Each goes to the nearest number of rows and columns: 7, 5, 4, 3 and 2 of 7.
KEEP_RATES = (1.0, 0.5, 0.33, 0.25, 0.08)
# timm's name, image size, batch, and the larger batch at keep .25.
CASES = (
    ("swin_tiny_patch4_window7_224", (896, 728), 32, 128),
    ("swin_base_patch4_window7_224", (896, 728), 16, 64),
    ("swin_tiny_patch4_window7_224", (1792, 1456), 8, 32),
)
SMALL_CASES = (("swin_tiny_patch4_window7_224", (112, 84), 2, 4),)


def measure(
    machine: Bench, name: str, img_size: tuple[int, int], batch_size: int, larger: int
) -> Iterator[BenchRow]:
    """Every row of one model at one image size, as it is measured."""
    compiled = machine.on_gpu
    yield machine.timm(name, img_size, 1.0, batch_size)
    if compiled:
        yield machine.timm(name, img_size, 1.0, batch_size, compiled=True)
    for keep_rate in KEEP_RATES:
        yield machine.ours(name, img_size, keep_rate, batch_size, compiled=compiled)
    yield machine.ours(name, img_size, 0.25, larger, compiled=compiled)


def ratios(rows: list[BenchRow]) -> str:
    """Each row over timm's on every patch, eager and, where it was measured, compiled."""
    eager, *others = (row for row in rows if row.who.startswith("timm"))
    baselines = [eager, *others]
    heads = " ".join(f"| images/s over {row.who}" for row in baselines)
    lines = [
        f"| who | patches kept | batch {heads} | GiB/image over timm's |",
        "|---" * (4 + len(baselines)) + "|",
    ]
    tokens = eager.num_keep
    for row in rows:
        speeds = " ".join(
            f"| {row.images_per_second / base.images_per_second:.2f}x" for base in baselines
        )
        memory = (row.peak_gib / row.batch_size) / (eager.peak_gib / eager.batch_size)
        share = percent(row.num_keep / tokens)
        lines.append(f"| {row.who} | {share} | {row.batch_size} {speeds} | {memory:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))))
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    with Bench(steps=2 if options.small else 20) as machine:
        text = (
            f"# Swin's training steps, {date.today()}\n\n"
            f"{machine.describe_machine()['summary']} {len(os.sched_getaffinity(0))} cores.\n"
        )
        for case in SMALL_CASES if options.small else [CASES[number] for number in options.cases]:
            name, (height, width), *_ = case
            rows: list[BenchRow] = []
            before, text = text, ""
            for row in measure(machine, *case):
                rows.append(row)
                print(f"{row.who}, {row.num_keep} patches: {row.step_ms:.1f} ms", flush=True)
                tables = f"{ratios(rows)}\n\n{as_markdown(rows)}"
                text = f"{before}\n## {name}, {height}x{width}\n\n{tables}\n"
                # Written after each row: one that does not fit loses none that was measured.
                if options.out is not None:
                    options.out.write_text(text)
        print(text, flush=True)


if __name__ == "__main__":
    main()
