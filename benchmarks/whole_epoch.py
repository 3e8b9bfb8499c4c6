"""Measure whole epochs of `mammo-pd train` on a GPU beside the bare step: what is lost, and where.

    python benchmarks/whole_epoch.py [OUT.md] [--cases full 1024 512 short long] [--workers 4]
    python benchmarks/whole_epoch.py --small    # the same path at a tiny size, on a CPU too

On a store of noise in the outline of a breast (`Bench.whole_epoch`), a tenth of whose images
validates. The bare step is measured before and after the epochs, and the second counts. OUT is
written anew after each case, so that a call which is cut off leaves what it had.

A second table says where the host's time of the last epoch went. The host waits for the GPU at the
ends of training and validation, and where weights are copied, which is done after each epoch and
counts for the next one.
"""

import argparse
import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

from mammo_pd.config import RunConfig
from mammo_pd.perf.measure import Bench
from mammo_pd.perf.rows import EpochRow, epochs_as_markdown
from mammo_pd.training import loop
from mammo_pd.training.checkpoint_writer import CheckpointWriter
from mammo_pd.training.step import TrainingStep

_VIT = "vit_small_patch16_224"
# Model, image size, batch, images in the store. What was never measured comes first.
CASES = {
    "full": (_VIT, (3328, 2560), 8, 1_000),
    "1024": (_VIT, (1024, 1024), 128, 16_000),
    "512": (_VIT, (512, 384), 64, 16_000),
    "short": (_VIT, (512, 384), 64, 2_000),
    # Of what is beside the steps, which share does not grow with the epoch? 28 GB.
    "long": (_VIT, (512, 384), 64, 64_000),
    "small": ("vit_tiny_patch16_224", (96, 64), 8, 60),
}

# What is timed: where it is looked up, its name there, and the table's column.
_PHASES: tuple[tuple[Any, str, str], ...] = (
    (loop, "_train_epoch", "training"),
    (TrainingStep, "__call__", "of it launching steps"),
    (loop, "_validate", "validation"),
    (loop, "_epoch_metrics", "metrics"),
    (CheckpointWriter, "take_chosen", "copy of the weights"),
    (CheckpointWriter, "save", "copy of the state"),
)


class PhaseTimer:
    """Adds up the host's time in the phases of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Time all epochs that are trained within."""
        patches = [
            mock.patch.object(where, name, self._timed(getattr(where, name), phase))
            for where, name, phase in _PHASES
        ]
        self.epochs = []
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()

    def line(self, case: str, epoch_seconds: float) -> str:
        """One line of the table, of the last epoch."""
        last = self.epochs[-1]
        parts = [last.get(phase, 0.0) for *_, phase in _PHASES]
        # Launching is within training.
        rest = epoch_seconds - sum(parts) + parts[1]
        cells = [f"{1000 * seconds:.1f}" for seconds in [epoch_seconds, *parts, rest]]
        return "| " + " | ".join([case, *cells]) + " |"

    @staticmethod
    def head() -> str:
        """The table's first two lines."""
        columns = ["case, ms", "epoch", *(phase for *_, phase in _PHASES), "rest"]
        return "| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|"

    def _timed(self, function: Any, phase: str) -> Any:
        @functools.wraps(function)
        def timed(*given: Any, **named: Any) -> Any:
            if phase == _PHASES[0][2]:
                self.epochs.append({})
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                epoch = self.epochs[-1]
                epoch[phase] = epoch.get(phase, 0.0) + time.perf_counter() - began

        return timed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES)[:4])
    parser.add_argument("--workers", type=int, help="reader threads; by default as in training")
    options = parser.parse_args()
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {line}", flush=True)

    rows: list[EpochRow] = []
    phases: list[str] = []
    timer = PhaseTimer()
    config = RunConfig()
    config = config.replace(data=config.data.replace(workers=options.workers))
    with Bench(config, steps=20) as machine:
        summary = machine.describe_machine()["summary"]
        if options.workers is not None:
            summary += f" {options.workers} reader threads."
        say(summary)
        for case in ["small"] if options.small else options.cases:
            name, img_size, batch_size, images = CASES[case]
            compiled = machine.on_gpu
            bare = machine.ours(
                name, img_size, 0.25, batch_size, compiled=compiled, end_to_end=False
            )
            say(f"{case}: bare step {bare.images_per_second:.4g} images/s")
            with timer.timing():
                row = machine.whole_epoch(bare, images, compiled=compiled, say=say)
            rows.append(row)
            phases.append(timer.line(case, row.epoch_seconds))
            text = "\n".join(
                [
                    f"# Whole epochs, {date.today()}",
                    "",
                    f"{summary} {len(os.sched_getaffinity(0))} cores.",
                    "",
                    epochs_as_markdown(rows),
                    "",
                    timer.head(),
                    *phases,
                    "",
                ]
            )
            if options.out is not None:
                options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
