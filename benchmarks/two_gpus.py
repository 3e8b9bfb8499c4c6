"""Measure `mammo-pd train` on two GPUs beside one: images/s at the same batch for each, and losses.

    python benchmarks/two_gpus.py [benchmarks/results/two_gpus_MACHINE_DATE.md]
    python benchmarks/two_gpus.py --small    # the same commands at a tiny size, on a CPU

On the store of noise of `whole_epoch.py`; the last of three epochs counts. The third run gives one
GPU the batch of both, to be compared with the second: draws, losses and AUC should be the same.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import pandas as pd
import torch
from whole_epoch import make_store

# Model, image size, batch for each GPU, images in the store.
CASES = [
    ("vit_small_patch16_224", (1024, 1024), 128, 8_000),
    ("vit_small_patch16_224", (3328, 2560), 8, 480),
]
SMALL = [("vit_tiny_patch16_224", (96, 64), 4, 60)]


def train(
    store: Path, runs: Path, name: str, img_size: tuple[int, int], batch: int, devices: int
) -> pd.DataFrame:
    """The history of one run of the command."""
    settings = ["model.drop_path_rate=0", f"device.devices={devices}"]
    command = [sys.executable, "-m", "mammo_pd", "train", "--store", store, "--runs", runs]
    command += ["--model", name, "--res", f"{img_size[0]}x{img_size[1]}", "--keep", "0.25"]
    command += ["--batch-size", batch, "--epochs", 3]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    (history,) = runs.glob("*/history.csv")
    return pd.read_csv(history)


def measure(name: str, img_size: tuple[int, int], batch: int, count: int) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = make_store(folder / "store", img_size, count).root
        one, two, twice = (
            train(store, folder / f"runs_{number}", name, img_size, size, devices)
            for number, (size, devices) in enumerate(((batch, 1), (2 * batch, 2), (2 * batch, 1)))
        )
    speeds = [run["train_images_per_second"].iloc[-1] for run in (one, two)]
    epochs = [run["epoch_images_per_second"].iloc[-1] for run in (one, two)]
    columns = ["train_loss", "val_auc_image"]
    loss, auc = (two[columns] - twice[columns]).abs().max()
    return (
        f"| {name} {img_size[0]}x{img_size[1]} | {batch} | {speeds[0]:.4g} | {speeds[1]:.4g} "
        f"| {speeds[1] / speeds[0]:.2f} | {epochs[1] / epochs[0]:.2f} | {loss:.1e} | {auc:.1e} |"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    lines = [
        "| model and input | batch a GPU | images/s on one | on two | two over one "
        "| whole epochs, two over one | largest difference of losses | of AUC |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in SMALL if options.small else CASES:
        lines.append(measure(*case))
        print(lines[-1], flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    text = "\n".join(
        [
            f"# Two GPUs, {date.today()}",
            "",
            f"{device}; torch {torch.__version__}; {len(os.sched_getaffinity(0))} cores. Keep .25, "
            "bf16, compiled and captured.",
            "",
            *lines,
            "",
        ]
    )
    print(text)
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
