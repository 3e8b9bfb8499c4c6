"""Compare the estimates with a bench of the user's own GPU."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mammo_pd.backbones.base import ModelShape
from mammo_pd.errors import InputError, cause_of
from mammo_pd.files import load_json
from mammo_pd.perf.cost import estimate_seconds, forward_macs, shape_of, training_bytes
from mammo_pd.perf.rows import OURS

# A step more than this many times larger or smaller than any measured one is an extrapolation.
_NEAR = 8
# Keys of a row that earlier versions wrote under another name.
_RENAMED = {"canvas": "img_size"}


@dataclass(frozen=True)
class Calibration:
    """How a bench of the user's own GPU compares with the estimates.

    Attributes:
        device: its name.
        memory: of the device, in bytes; 0 for a CPU.
        time: measured over estimated seconds, median over our rows.
        bytes: the same for memory; 1 where it was not measured.
        rows: number of our rows.
        macs: fewest and most multiply-accumulates of a measured step.
    """

    device: str
    memory: int
    time: float
    bytes: float
    rows: int
    macs: tuple[int, int]

    def covers(self, step_macs: int) -> bool:
        """Whether a step of a similar size was measured."""
        fewest, most = self.macs
        return fewest / _NEAR <= step_macs <= most * _NEAR


def step_macs(shape: ModelShape, num_keep: int, batch_size: int) -> int:
    """Multiply-accumulates of a step's forward pass."""
    return batch_size * sum(forward_macs(shape, num_keep))


def read_calibration(file: Path) -> Calibration:
    """Compare the rows of a bench with the estimates.

    Raises:
        InputError: not a ``bench.json``, or none of our rows in it.
    """
    try:
        record: dict[str, Any] = load_json(file.read_text(encoding="utf-8"))
        named = [
            {_RENAMED.get(key, key): value for key, value in row.items()} for row in record["rows"]
        ]
        rows = [row for row in named if row["who"] == OURS]
        times, sizes, macs = [], [], []
        for row in rows:
            shape, num_keep, batch_size = shape_of(row["model"]), row["num_keep"], row["batch_size"]
            macs.append(step_macs(shape, num_keep, batch_size))
            times.append(1 / row["images_per_second"] / estimate_seconds(shape, num_keep))
            # A CPU's memory is not measured.
            if row["peak_gib"] is not None:
                height, width = row["img_size"]
                estimate = training_bytes(shape, (height, width), num_keep, batch_size)
                sizes.append(row["peak_gib"] * 2**30 / estimate)
        return Calibration(
            device=record["device"],
            memory=int(record["memory_bytes"]),
            time=statistics.median(times),
            bytes=statistics.median(sizes) if sizes else 1.0,
            rows=len(rows),
            macs=(min(macs), max(macs)),
        )
    except (OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"{file} is not a file that mammo-pd bench wrote ({cause_of(error)}); "
            "make one with: mammo-pd bench"
        ) from error
