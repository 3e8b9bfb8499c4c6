"""Measure what `device.deterministic` costs: our own steps with and without it, side by side.

    python benchmarks/deterministic.py [OUT.md]
    python benchmarks/deterministic.py --small    # the same path at a tiny size, on a CPU too

ViT-S, keep .25, as compiled and captured as training is. OUT is written anew after each row. That
two trainings are then equal is a test (`pytest -m gpu -k deterministic`).
"""

import argparse
from datetime import date
from pathlib import Path

from mammo_pd.config import RunConfig
from mammo_pd.perf.measure import Bench
from mammo_pd.training.devices import deterministic_kernels

SMALL, TINY = "vit_small_patch16_224", "vit_tiny_patch16_224"
CASES = [((512, 384), 64), ((1024, 1024), 128), ((3328, 2560), 8)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    small: bool = given.small
    with Bench(steps=2 if small else 20) as machine:
        lines = [f"# What deterministic kernels cost, {date.today()}", ""]
        lines += [machine.describe_machine()["summary"], ""]
        lines += ["| ViT-S, keep .25, batch | ms a step | deterministic | times |"]
        lines += ["|---|---|---|---|"]
        for img_size, batch_size in [((96, 64), 4)] if small else CASES:
            taken = []
            for deterministic in (False, True):
                device = RunConfig().device.replace(deterministic=deterministic)
                with deterministic_kernels(RunConfig().replace(device=device)):
                    row = machine.ours(
                        TINY if small else SMALL,
                        img_size,
                        0.25,
                        batch_size,
                        compiled=machine.on_gpu,
                        end_to_end=False,
                    )
                taken.append(row.step_ms)
            fast, slow = taken
            where = f"{img_size[0]}x{img_size[1]}, {batch_size}"
            lines.append(f"| {where} | {fast:.2f} | {slow:.2f} | {slow / fast:.2f} |")
            print(lines[-1], flush=True)
            if given.out is not None:
                given.out.write_text("\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
