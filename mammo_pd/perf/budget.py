"""Which resolution, model, keep rate and batch fit in a GPU's memory and in the hours given."""

import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mammo_pd.backbones.base import ModelShape
from mammo_pd.config import TrainingSettings, resolve_img_size
from mammo_pd.errors import InputError
from mammo_pd.keep_schedule import choose_num_keep
from mammo_pd.perf.bench import OURS
from mammo_pd.perf.cost import (
    forward_macs,
    largest_fitting,
    shape_of,
    tokens_made,
    training_bytes,
)

# Seconds of a training step for each multiply-accumulate of an image's forward pass through the
# weights and through attention, and for each token that a block makes and unit of width: compiled,
# bf16. Within 5 % of our rows of uniform draws in benchmarks/results/train_step_h200_2026-11-25.md.
_PER_PRODUCT, _PER_ATTENTION, _PER_ACTIVATION = 7.56e-15, 1.54e-14, 6.83e-11
_REFERENCE = "one NVIDIA H200, as measured on 2026-11-25"
# What is left to the CUDA context, and to gaps between the allocator's blocks.
_USABLE = 0.9
_FEWEST_IMAGES, _FEWEST_EPOCHS = 8, 10
# A step this many times larger than every measured one, or smaller, is not foreseen by them.
_NEAR = 8
_USUAL_KEEP = 0.25
_UNITS = {"": 1e9, "GB": 1e9, "G": 1e9, "GIB": 2.0**30, "MB": 1e6, "MIB": 2.0**20}


@dataclass(frozen=True)
class Choice:
    """One way to train.

    Attributes:
        shape: of the model.
        res: as of ``--res``.
        img_size: (height, width) in pixels.
        keep_rate: share of the patches.
        num_keep: K.
        batch_size: the largest that fits; 0 if none does.
        memory: of a step with that batch, in bytes, as predicted.
        images_per_second: of training, as predicted.
        epochs: that the hours are enough for; infinite if no hours were given.
    """

    shape: ModelShape
    res: str
    img_size: tuple[int, int]
    keep_rate: float
    num_keep: int
    batch_size: int
    memory: int
    images_per_second: float
    epochs: float


@dataclass(frozen=True)
class Calibration:
    """What a bench of the user's own GPU says of the models.

    Attributes:
        device: its name.
        memory: of the device, in bytes; 0 for a CPU.
        time: seconds measured by seconds predicted, median over our rows.
        bytes: the same of memory; 1 where it was not measured.
        rows: how many rows this rests on.
        macs: fewest and most multiply-accumulates of a row's step.
    """

    device: str
    memory: int
    time: float
    bytes: float
    rows: int
    macs: tuple[int, int]

    def is_near(self, choice: Choice) -> bool:
        """Whether a row was measured whose step is of the size of this one."""
        macs = _step_macs(choice.shape, choice.num_keep, choice.batch_size)
        return self.macs[0] / _NEAR <= macs <= self.macs[1] * _NEAR or not choice.batch_size


def budget(
    memory: str | None,
    *,
    hours: float | None,
    images: int | None,
    bench: Path | None,
    models: Sequence[str],
    resolutions: Sequence[str],
    keep_rates: Sequence[float],
) -> tuple[str, str]:
    """Answer what fits, as a table, and name the command that is best.

    Args:
        memory: of the GPU, such as ``24GB``; None for that of the bench, or of this machine.
        hours: there are for training; with ``images``.
        images: to train on.
        bench: ``bench.json`` of the GPU; None to go by an H200's speed.
        models: timm's names.
        resolutions: as of ``--res``, but ``full``.
        keep_rates: in (0, 1].

    Returns:
        The text, and a command.

    Raises:
        InputError: something given cannot be, or nothing fits.
    """
    if (hours is None) != (images is None):
        raise InputError("--hours and --images belong together: give both or neither.")
    for name, value in (("--hours", hours), ("--images", images)):
        if value is not None and not value > 0:
            raise InputError(f"{name} {value} is not above 0.")
    calibration = read_calibration(bench) if bench is not None else None
    available = _memory_of(memory, calibration)
    choices = [
        choose(shape, str(res), keep, available, hours, images, calibration)
        for shape in map(shape_of, models)
        for res in resolutions
        for keep in keep_rates
    ]
    best = _best(choices, timed=hours is not None)
    lines = [
        f"{available / 1e9:.0f} GB of memory, of which {_USABLE:.0%} are planned with; speed by "
        + (
            f"{calibration.rows} rows of {bench}, {calibration.device}."
            if calibration is not None
            else f"{_REFERENCE}: for yours, run mammo-pd bench and give its file with --bench."
        ),
        "",
        "| model | canvas | keep | patches | batch | GB | images/s |"
        + (f" epochs in {hours:g} h |" if hours is not None else ""),
        "|---|---|---|---|---|---|---|" + ("---|" if hours is not None else ""),
        *(_line(choice, timed=hours is not None) for choice in choices),
        "",
    ]
    if calibration is not None and not all(map(calibration.is_near, choices)):
        lines.append(
            "The bench's rows are far from some of these, whose speeds are guesses; to measure "
            f"them: mammo-pd bench --res {' '.join(map(str, resolutions))} --model "
            f"{' '.join(models)}\n"
        )
    if best is None:
        if any(choice.batch_size >= _FEWEST_IMAGES for choice in choices):
            lines.append(
                f"Nothing that takes {_FEWEST_IMAGES} images does {_FEWEST_EPOCHS} epochs in time: "
                "lower --res or --keep, take a smaller --model, or more --hours."
            )
        else:
            lines.append(
                f"Nothing takes {_FEWEST_IMAGES} images: lower --res or --keep, take a smaller "
                "--model, or compute a batch in parts (train --set training.grad_accum_steps=4)."
            )
        return "\n".join(lines), "mammo-pd budget with other --res, --keep or --model"
    lines.append(
        f"Best is the finest canvas at which {_FEWEST_IMAGES} images fit"
        + (f" and {_FEWEST_EPOCHS} epochs are done in time" if hours is not None else "")
        + f", there at the keep rate nearest {_USUAL_KEEP:g}, there the largest model. Images/s "
        "are of the training step alone; reading and validation come on top."
    )
    height, width = best.img_size
    command = (
        f"mammo-pd train --res {height}x{width} --keep {best.keep_rate:g} --model "
        f"{best.shape.name} --batch-size {best.batch_size}"
    )
    if best.epochs < TrainingSettings().epochs:
        command += f" --epochs {int(best.epochs)}"
    return "\n".join(lines), command


def choose(
    shape: ModelShape,
    res: str,
    keep_rate: float,
    memory: float,
    hours: float | None = None,
    images: int | None = None,
    calibration: Calibration | None = None,
) -> Choice:
    """What fits of one model at one resolution and keep rate, and how long it takes.

    Raises:
        InputError: a resolution or keep rate that cannot be.
    """
    if res == "full":
        raise InputError("--res full depends on a split; give its canvas, such as 3328x2560.")
    img_size = resolve_img_size(res, shape.patch_size, (0, 0))
    tokens = img_size[0] * img_size[1] // shape.patch_size**2
    try:
        num_keep = choose_num_keep(tokens, keep_rate, shape.num_prefix)
    except ValueError as error:
        raise InputError(f"--keep: {error}.") from error
    more = calibration.bytes if calibration is not None else 1.0
    batch = largest_fitting(shape, img_size, num_keep, _USABLE * memory / more)
    batch = min(batch, images) if images is not None else batch
    batch -= batch % 8 if batch > 16 else 0
    rate = 1 / predicted_seconds(shape, num_keep)
    if calibration is not None:
        rate /= calibration.time
    return Choice(
        shape=shape,
        res=res,
        img_size=img_size,
        keep_rate=keep_rate,
        num_keep=num_keep,
        batch_size=batch,
        memory=round(more * training_bytes(shape, img_size, num_keep, batch)),
        images_per_second=rate,
        epochs=hours * 3600 * rate / images if hours and images else math.inf,
    )


def predicted_seconds(shape: ModelShape, num_keep: int) -> float:
    """Seconds that one image takes of a training step on the reference GPU."""
    products, attention = forward_macs(shape, num_keep)
    activations = tokens_made(shape, num_keep) * shape.width
    return _PER_PRODUCT * products + _PER_ATTENTION * attention + _PER_ACTIVATION * activations


def _step_macs(shape: ModelShape, num_keep: int, batch_size: int) -> int:
    return batch_size * sum(forward_macs(shape, num_keep))


def read_calibration(file: Path) -> Calibration:
    """Compare a bench's rows with what is predicted for them.

    Raises:
        InputError: not a ``bench.json``, or without a row of ours.
    """
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        rows = [row for row in record["rows"] if row["who"] == OURS]
        times, sizes, macs = [], [], []
        for row in rows:
            shape = shape_of(row["model"])
            seconds = predicted_seconds(shape, row["num_keep"])
            macs.append(_step_macs(shape, row["num_keep"], row["batch_size"]))
            times.append(1 / row["images_per_second"] / seconds)
            if row["peak_gib"] is not None:
                img_size = (row["img_size"][0], row["img_size"][1])
                predicted = training_bytes(shape, img_size, row["num_keep"], row["batch_size"])
                sizes.append(row["peak_gib"] * 2**30 / predicted)
        return Calibration(
            device=record["device"],
            memory=int(record["memory_bytes"]),
            time=statistics.median(times),
            bytes=statistics.median(sizes) if sizes else 1.0,
            rows=len(rows),
            macs=(min(macs), max(macs)),
        )
    except (OSError, ValueError, KeyError, TypeError, statistics.StatisticsError) as error:
        raise InputError(
            f"{file} is not what mammo-pd bench writes ({type(error).__name__}: {error}); make one "
            "with: mammo-pd bench"
        ) from error


def _memory_of(text: str | None, calibration: Calibration | None) -> float:
    if text is not None:
        match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text.strip())
        unit = _UNITS.get(match[2].upper()) if match else None
        try:
            size = float(match[1]) * unit if match and unit else 0.0
        except ValueError:
            size = 0.0
        if not size > 0:
            raise InputError(f"--memory {text} is not understood; give a size such as 24GB.")
        return size
    if calibration is not None and calibration.memory:
        return float(calibration.memory)
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    without = "the bench is of a CPU, and " if calibration is not None else ""
    raise InputError(
        f"{without}there is no GPU here to ask; give its memory, such as --memory 24GB."
    )


def _best(choices: Sequence[Choice], *, timed: bool) -> Choice | None:
    """The finest canvas that a useful batch fits at; then the usual keep rate; then the model."""
    useful = [
        choice
        for choice in choices
        if choice.batch_size >= _FEWEST_IMAGES and (not timed or choice.epochs >= _FEWEST_EPOCHS)
    ]
    return max(
        useful,
        key=lambda choice: (
            choice.img_size[0] * choice.img_size[1],
            -abs(math.log(choice.keep_rate / _USUAL_KEEP)),
            choice.shape.parameters,
        ),
        default=None,
    )


def _line(choice: Choice, *, timed: bool) -> str:
    fits = choice.batch_size > 0
    cells = [
        choice.shape.name,
        f"{choice.img_size[0]}x{choice.img_size[1]}",
        f"{choice.keep_rate:g}",
        str(choice.num_keep),
        str(choice.batch_size) if fits else "none",
        f"{choice.memory / 1e9:.1f}" if fits else "",
        _short(choice.images_per_second) if fits else "",
    ]
    if timed:
        cells.append(_short(choice.epochs) if fits else "")
    return "| " + " | ".join(cells) + " |"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
