"""``mammo-pd budget``: what fits in a GPU's memory and in the hours given, before it is run.

Image sizes are (height, width) in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mammo_pd.backbones.base import ModelShape
from mammo_pd.config import TrainingSettings, resolve_img_size
from mammo_pd.data.split_store import FRACTIONS
from mammo_pd.data.store import choose_pyramid_level
from mammo_pd.errors import InputError
from mammo_pd.imaging.pyramid import fitted_size
from mammo_pd.perf.calibration import Calibration, read_calibration, step_macs
from mammo_pd.perf.cost import (
    estimate_seconds,
    keep_of,
    largest_fitting,
    shape_of,
    training_bytes,
    window_of,
)
from mammo_pd.perf.memory_size import parse_memory
from mammo_pd.wording import counted, percent

_REFERENCE = "one NVIDIA H200, as measured on 2026-11-25"
# The rest is for the CUDA context and for fragmentation.
_USABLE = 0.9
_FEWEST_IMAGES, _FEWEST_EPOCHS = 8, 10
_USUAL_KEEP = 0.25
# What validating an image takes, at the training keep rate, of what training on it does: .38 and
# .47 in the long epochs of benchmarks/results/whole_epoch_h200_2026-11-26.md.
_VALIDATION_COST = 0.43
_VALIDATION_SHARE = FRACTIONS[1] / FRACTIONS[0]
# A usual crop in pixels: the 9 of benchmarks/results/store_compression_2cpu_2026-11-26.md are .36
# to .65 as wide as high, .46 in the mean.
_USUAL_CROP = (3328, 1536)


@dataclass(frozen=True)
class Choice:
    """One way to train.

    Attributes:
        shape: of the model.
        res: as of ``--res``.
        img_size: of the input.
        keep_rate: fraction of the patches.
        num_keep: K.
        batch_size: the largest that fits; 0 if none does.
        memory: estimate for a step with that batch, in bytes.
        images_per_second: estimate for training.
        epochs: that fit in the hours, with validation; infinite if no hours were given.
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

    @property
    def image_bytes(self) -> int:
        """What is read of a usual image: the level that serves the input size, uncompressed."""
        level = choose_pyramid_level(*_USUAL_CROP, self.img_size)
        height, width = _USUAL_CROP if level == "native" else fitted_size(_USUAL_CROP, int(level))
        return 2 * height * width

    def is_measured(self, calibration: Calibration) -> bool:
        """Whether the bench measured a step of a similar size; true if nothing fits."""
        macs = step_macs(self.shape, self.num_keep, self.batch_size)
        return not self.batch_size or calibration.covers(macs)


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
    """Tabulate what fits, and recommend one command.

    Args:
        memory: of the GPU, such as ``24GB``; None for that of the bench, or of this machine.
        hours: available for training; requires ``images``.
        images: to train on.
        bench: ``bench.json`` of the GPU; None for the speed of an H200.
        models: timm's names.
        resolutions: as of ``--res``, except ``full``.
        keep_rates: in (0, 1].

    Returns:
        The text, and a command.

    Raises:
        InputError: an invalid argument.
    """
    if (hours is None) != (images is None):
        raise InputError("--hours and --images go together: give both or neither.")
    for name, value in (("--hours", hours), ("--images", images)):
        if value is not None and not value > 0:
            raise InputError(f"{name} {value} is not above 0.")
    calibration = read_calibration(bench) if bench is not None else None
    available = _memory_of(memory, calibration)
    choices = [
        # Of one image size for all keep rates, so that they compare.
        choose(
            shape,
            str(res),
            keep,
            available,
            hours,
            images,
            calibration,
            window=window_of(shape, keep_rates),
        )
        for shape in map(shape_of, models)
        for res in resolutions
        for keep in keep_rates
    ]
    best = _best(choices, timed=hours is not None)
    lines = [
        f"{available / 1e9:.0f} GB of memory, {percent(_USABLE)} of it usable; speed from "
        + (
            f"{counted(calibration.rows, 'row')} of {bench}, {calibration.device}."
            if calibration is not None
            else f"{_REFERENCE}; for yours, run mammo-pd bench and give its file with --bench."
        ),
        "",
        "| model | image size | keep | patches | batch | GB | images/s | MB/s read |"
        + (f" GB an epoch | epochs in {hours:g} h |" if hours is not None else ""),
        "|---|---|---|---|---|---|---|---|" + ("---|---|" if hours is not None else ""),
        *(_line(choice, images if hours is not None else None) for choice in choices),
        "",
        "MB/s read is what the disk must deliver at these images/s, unless the pixels of all "
        "images at this size stay in memory. It assumes crops of "
        f"{_USUAL_CROP[0]}x{_USUAL_CROP[1]} pixels; a store made with --compression lz4 needs "
        "about .7 of it.\n",
    ]
    if calibration is not None and not all(c.is_measured(calibration) for c in choices):
        sizes, names = " ".join(map(str, resolutions)), " ".join(models)
        lines.append(
            "Some of these are far from anything the bench measured, so their speeds are "
            f"extrapolated; to measure them: mammo-pd bench --res {sizes} --model {names}\n"
        )
    unfitted = [shape.name for shape in map(shape_of, models) if shape.window]
    if unfitted and calibration is None:
        lines.append(
            f"Memory and speed of {', '.join(unfitted)} come from figures fitted to plain vision "
            "transformers, and may be far off; to measure them: mammo-pd bench --model "
            f"{' '.join(unfitted)}\n"
        )
    if best is None:
        if any(choice.batch_size >= _FEWEST_IMAGES for choice in choices):
            lines.append(
                f"Nothing that fits {_FEWEST_IMAGES} images completes {_FEWEST_EPOCHS} epochs in "
                "time: lower --res or --keep, choose a smaller --model, or give more --hours."
            )
        else:
            lines.append(
                f"Nothing fits {_FEWEST_IMAGES} images: lower --res or --keep, choose a smaller "
                "--model, or accumulate gradients (train --set training.grad_accum_steps=4)."
            )
        return "\n".join(lines), "mammo-pd budget with other --res, --keep or --model"
    lines.append(
        f"Recommended: the largest image size at which {_FEWEST_IMAGES} images fit"
        + (f" and {_FEWEST_EPOCHS} epochs complete in time" if hours is not None else "")
        + f", then the keep rate nearest {_USUAL_KEEP:g}, then the largest model. Images/s are of "
        "the training step alone"
        + (
            f"; epochs include validation on {percent(_VALIDATION_SHARE)} as many images, as in "
            "the default split."
            if hours is not None
            else "; validation takes additional time."
        )
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
    *,
    window: int | None = None,
) -> Choice:
    """The largest batch of one model at one resolution and keep rate, and its speed.

    Args:
        shape: of the model.
        res: as of ``--res``, except ``full``.
        keep_rate: in (0, 1].
        memory: of the GPU, in bytes.
        hours: available for training.
        images: to train on; the batch is no larger.
        calibration: of the GPU; None for an H200.
        window: side of the windows, in patches, of which the image is to have a whole number.

    Raises:
        InputError: an invalid resolution or keep rate.
    """
    if res == "full":
        raise InputError("--res full depends on a split; give its image size, such as 3328x2560.")
    img_size = resolve_img_size(res, shape.patch_size, (0, 0), window=window)
    try:
        num_keep = keep_of(shape, img_size, keep_rate)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"--keep: {error}.") from error
    # Memory of this GPU's steps over the estimate, which is of compiled bf16.
    scale = calibration.bytes if calibration is not None else 1.0
    batch = largest_fitting(shape, img_size, num_keep, _USABLE * memory / scale)
    batch = min(batch, images) if images is not None else batch
    batch -= batch % 8 if batch > 16 else 0
    validated = 1 + _VALIDATION_SHARE * _VALIDATION_COST
    rate = 1 / estimate_seconds(shape, num_keep)
    if calibration is not None:
        rate /= calibration.time
    return Choice(
        shape=shape,
        res=res,
        img_size=img_size,
        keep_rate=keep_rate,
        num_keep=num_keep,
        batch_size=batch,
        memory=round(scale * training_bytes(shape, img_size, num_keep, batch)),
        images_per_second=rate,
        epochs=hours * 3600 * rate / images / validated if hours and images else math.inf,
    )


def _memory_of(text: str | None, calibration: Calibration | None) -> float:
    if text is not None:
        return parse_memory(text)
    if calibration is not None and calibration.memory:
        return float(calibration.memory)
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    cause = "the bench is of a CPU, and " if calibration is not None else ""
    raise InputError(
        f"{cause}this machine has no GPU; give the memory of yours, such as --memory 24GB."
    )


def _best(choices: Sequence[Choice], *, timed: bool) -> Choice | None:
    """The largest image size that fits a useful batch; then the usual keep rate; then the model."""
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


def _line(choice: Choice, images: int | None) -> str:
    fits = choice.batch_size > 0
    cells = [
        choice.shape.name,
        f"{choice.img_size[0]}x{choice.img_size[1]}",
        f"{choice.keep_rate:g}",
        str(choice.num_keep),
        str(choice.batch_size) if fits else "none",
        f"{choice.memory / 1e9:.1f}" if fits else "",
        _short(choice.images_per_second) if fits else "",
        _short(choice.images_per_second * choice.image_bytes / 1e6) if fits else "",
    ]
    if images is not None:
        cells.append(_short(images * choice.image_bytes / 1e9))
        cells.append(_short(choice.epochs) if fits else "")
    return "| " + " | ".join(cells) + " |"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
