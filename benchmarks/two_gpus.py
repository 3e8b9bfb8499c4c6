"""Measure `mammo-pd train` on two GPUs beside one: images/s at the same batch for each, and losses.

    python benchmarks/two_gpus.py [OUT.md] [--cases full 1024]
    python benchmarks/two_gpus.py --small    # the same commands at a tiny size, on a CPU

On a store of noise (`write_noise_store`); the last of three epochs counts. When the speeds are
there, one GPU is given the batch of both, all cases side by side, and compared with the two: draws,
losses and AUC should be the same. OUT is written anew after each result, so that a call which is
cut off leaves what it had.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pandas as pd
import torch

from mammo_pd.perf.noise_images import write_noise_store
from mammo_pd.wording import percent

_VIT = "vit_small_patch16_224"


@dataclass(frozen=True)
class Case:
    """Model, image size, batch for each GPU, images in the store."""

    model: str
    img_size: tuple[int, int]
    batch_size: int
    images: int

    @property
    def res(self) -> str:
        """As of ``--res``."""
        return f"{self.img_size[0]}x{self.img_size[1]}"


# What was never measured comes first.
CASES = {
    "full": Case(_VIT, (3328, 2560), 8, 800),
    "1024": Case(_VIT, (1024, 1024), 128, 12_000),
    "small": Case("vit_tiny_patch16_224", (96, 64), 4, 60),
}
_STARTED = time.monotonic()


def train(
    case: Case, folder: Path, *, devices: int, times: int = 1, gpu: int | None = None
) -> pd.DataFrame:
    """The history of one run of the command, with so many times the batch of one device in all.

    Raises:
        SystemExit: the command failed; with the end of what it said.
    """
    runs = folder / f"runs_{devices}_{times}"
    command = [sys.executable, "-m", "mammo_pd", "train", "--store", folder / "store"]
    command += ["--runs", runs, "--model", case.model, "--res", case.res, "--keep", "0.25"]
    command += ["--batch-size", times * case.batch_size, "--epochs", 3]
    command += ["--set", "model.drop_path_rate=0", "--set", f"device.devices={devices}"]
    environment = dict(os.environ)
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    done = subprocess.run(
        list(map(str, command)), check=False, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    (history,) = runs.glob("*/history.csv")
    found = pd.read_csv(history)
    last = found.iloc[-1]
    print(
        f"[{time.monotonic() - _STARTED:5.0f} s] {case.res}, devices {devices}, batch "
        f"{times * case.batch_size}: {last['train_images_per_second']:.4g} images/s, "
        f"{last['epoch_images_per_second']:.4g} of the epoch, loss {last['train_loss']:.6f}, "
        f"waiting {percent(last['train_wait_share'], 1)}",
        flush=True,
    )
    return found


def line_of(case: Case, runs: dict[str, pd.DataFrame]) -> str:
    """One line of the table, of the runs that are done."""
    cells = [f"{case.model} {case.res}", str(case.batch_size)]
    ratios = []
    for column in ("train_images_per_second", "epoch_images_per_second"):
        speeds = [runs[name][column].iloc[-1] for name in ("one", "two") if name in runs]
        cells += [f"{speed:.4g}" for speed in speeds] + [""] * (2 - len(speeds))
        ratios.append(f"{speeds[1] / speeds[0]:.3f}" if len(speeds) == 2 else "")
    cells += ratios
    for column in ("train_loss", "val_loss", "val_auc_image"):
        if "twice" in runs and column in runs["two"]:
            difference = (runs["two"][column] - runs["twice"][column]).abs().max()
            cells.append(f"{difference:.1e}")
        else:
            cells.append("")
    return "| " + " | ".join(cells) + " |"


def describe(done: dict[str, dict[str, pd.DataFrame]]) -> str:
    """The page, of what is done so far."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = [
        f"# Two GPUs, {date.today()}",
        "",
        f"{device}; torch {torch.__version__}; {len(os.sched_getaffinity(0))} cores. Keep .25, "
        "compiled and captured on GPUs, in bf16. Images/s of the last of three epochs: in "
        "training, and of the whole epoch with validation and checkpoints. The differences are "
        "the largest of three epochs between two GPUs and one with the batch of both.",
        "",
        "| model and input | batch a GPU | images/s on one | on two | epoch images/s on one "
        "| on two | two over one | whole epochs, two over one | difference of training losses | of "
        "validation losses | of AUC |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [line_of(CASES[name], runs) for name, runs in done.items() if runs]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["full", "1024"])
    options = parser.parse_args()
    names = ["small"] if options.small else options.cases
    done: dict[str, dict[str, pd.DataFrame]] = {name: {} for name in names}

    def keep(name: str, run: str, history: pd.DataFrame) -> None:
        done[name][run] = history
        if options.out is not None:
            options.out.write_text(describe(done))

    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in names}
        for name, folder in folders.items():
            case = CASES[name]
            write_noise_store(folder / "store", case.img_size, case.images)
            keep(name, "one", train(case, folder, devices=1))
            keep(name, "two", train(case, folder, devices=2, times=2))
        gpus = torch.cuda.device_count()
        # One after the other where there is no GPU for each: a speed is not read of these.
        with ThreadPoolExecutor(max(1, gpus)) as pool:
            twice = {
                name: pool.submit(
                    train,
                    CASES[name],
                    folder,
                    devices=1,
                    times=2,
                    gpu=number % gpus if gpus else None,
                )
                for number, (name, folder) in enumerate(folders.items())
            }
            for name, run in twice.items():
                keep(name, "twice", run.result())
    print(describe(done))


if __name__ == "__main__":
    main()
