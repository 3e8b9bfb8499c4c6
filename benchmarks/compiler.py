"""What training costs where there is no C compiler: steps compiled and not, side by side.

    python benchmarks/compiler.py > benchmarks/results/compiler_GPU_DATE.md

Hardware: one GPU. A minute or two.
"""

from statistics import median

import torch

from mammo_pd.perf.measure import Bench

CASES = (
    ("vit_small_patch16_224", (1024, 1024), 0.25, 128),
    ("vit_base_patch16_224", (1024, 1024), 0.25, 64),
    ("vit_small_patch16_224", (3328, 2560), 0.25, 8),
)
# Taken in turns, so that a card that grows warm slows both alike.
ROUNDS = 3


def main() -> None:
    bench = Bench()
    print(f"# Compiled and not\n\n{bench.describe_machine()['summary']}\n")
    print(
        "Images/s with the batch on the device, and GiB at the peak; medians of rounds in turns.\n"
    )
    print("| model, image size, keep, batch | compiled | not | ratio | GiB compiled | GiB not |")
    print("|---|---|---|---|---|---|")
    for name, size, keep, batch in CASES:
        speed: dict[bool, list[float]] = {True: [], False: []}
        memory: dict[bool, float] = {}
        for _ in range(ROUNDS):
            for compiled in (True, False):
                row = bench.ours(name, size, keep, batch, compiled=compiled, end_to_end=False)
                speed[compiled].append(row.images_per_second)
                memory[compiled] = row.peak_gib
                torch.compiler.reset()
        fast, slow = median(speed[True]), median(speed[False])
        print(
            f"| {name} {size[0]}x{size[1]}, {keep}, {batch} | {fast:.4g} | {slow:.4g} "
            f"| {fast / slow:.2f} | {memory[True]:.1f} | {memory[False]:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
