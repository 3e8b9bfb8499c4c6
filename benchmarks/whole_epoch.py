"""Measure whole epochs of `mammo-pd train` on a GPU beside the bare step: what is lost, and where.

    python benchmarks/whole_epoch.py [OUT.md] [--cases full 1024 512 short]
    python benchmarks/whole_epoch.py --small    # the same path at a tiny size, on a CPU too

On a store of noise in the outline of a breast (`Bench.whole_epoch`), a tenth of whose images
validates. OUT is written anew after each case, so that a call which is cut off leaves what it had.
"""

import argparse
import os
import time
from datetime import date
from pathlib import Path

from mammo_pd.perf.measure import Bench
from mammo_pd.perf.rows import EpochRow, epochs_as_markdown

_VIT = "vit_small_patch16_224"
# Model, image size, batch, images in the store. What was never measured comes first.
CASES = {
    "full": (_VIT, (3328, 2560), 8, 1_000),
    "1024": (_VIT, (1024, 1024), 128, 16_000),
    "512": (_VIT, (512, 384), 64, 16_000),
    "short": (_VIT, (512, 384), 64, 2_000),
    "small": ("vit_tiny_patch16_224", (96, 64), 8, 60),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES)[:4])
    options = parser.parse_args()
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {line}", flush=True)

    rows: list[EpochRow] = []
    with Bench(steps=20) as machine:
        summary = machine.describe_machine()["summary"]
        say(summary)
        for case in ["small"] if options.small else options.cases:
            name, img_size, batch_size, images = CASES[case]
            compiled = machine.on_gpu
            bare = machine.ours(
                name, img_size, 0.25, batch_size, compiled=compiled, end_to_end=False
            )
            say(f"{case}: bare step {bare.images_per_second:.4g} images/s")
            rows.append(machine.whole_epoch(bare, images, compiled=compiled, say=say))
            text = "\n".join(
                [
                    f"# Whole epochs, {date.today()}",
                    "",
                    f"{summary} {len(os.sched_getaffinity(0))} cores.",
                    "",
                    epochs_as_markdown(rows),
                    "",
                ]
            )
            if options.out is not None:
                options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
