"""The rows of a bench, and the table made of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mammo_pd.wording import percent

OURS, TIMM, TIMM_WHOLE = "mammo-pd", "timm patch_drop_rate", "timm, every patch"
PRETRAINING = f"{OURS}, pretraining"


@dataclass(frozen=True)
class BenchRow:
    """One measurement.

    Attributes:
        who: `OURS`, `PRETRAINING`, `TIMM` or `TIMM_WHOLE`.
        model: timm's name.
        img_size: of the input.
        keep_rate: fraction of the patches to keep, as given.
        num_keep: K.
        draw: how positions were drawn.
        batch_size: images per step.
        step_ms: milliseconds per step.
        host_ms: milliseconds that the host takes to launch one, the device being idle; on a CPU,
            which does the work itself, the step.
        images_per_second: with the batch already on the device.
        peak_gib: peak memory of the GPU's allocator; NaN on a CPU.
        share_of_ceiling: FLOP/s of the model as a fraction of the measured matmul rate. Only what
            is computed on kept patches counts: timm computes every token of the last block, we
            compute the class token only where the head reads no other. In pretraining the decoder
            counts, too.
        sampling_share: fraction of the step spent drawing, augmenting and reading patches; NaN for
            timm.
        end_to_end_share: images per second with the loader, relative to those without; NaN for
            timm.
        wait_share: fraction of the time with the loader spent waiting for data; NaN for timm.
    """

    who: str
    model: str
    img_size: tuple[int, int]
    keep_rate: float
    num_keep: int
    draw: str
    batch_size: int
    step_ms: float
    host_ms: float
    images_per_second: float
    peak_gib: float
    share_of_ceiling: float
    sampling_share: float = math.nan
    end_to_end_share: float = math.nan
    wait_share: float = math.nan


@dataclass(frozen=True)
class EpochRow:
    """One measurement of whole epochs of training: the last of several.

    Attributes:
        model: timm's name.
        img_size: of the input.
        keep_rate: fraction of the patches to keep, in training and in validation.
        batch_size: images per step.
        train_images: that an epoch trains on.
        val_images: that it validates on.
        bare_images_per_second: of the median step on one batch that lies on the device.
        train_images_per_second: of all steps of the epoch, with the loader.
        epoch_images_per_second: training images over the time from the end of the epoch before:
            with validation, and with the checkpoints of that epoch.
        epoch_seconds: that time.
        wait_share: fraction of the time of the steps spent waiting for data.
    """

    model: str
    img_size: tuple[int, int]
    keep_rate: float
    batch_size: int
    train_images: int
    val_images: int
    bare_images_per_second: float
    train_images_per_second: float
    epoch_images_per_second: float
    epoch_seconds: float
    wait_share: float


_LEGEND = (
    "Host: milliseconds to launch a step on an idle device. x: images/s relative to timm with "
    "every patch. Of ceiling: FLOP/s of the model on kept patches as a fraction of the measured "
    "matmul rate, both under sustained load. Sampling: fraction of the step spent drawing, "
    "augmenting and reading patches. End to end: images/s with the loader relative to those with "
    "the batch already on the device (above 1 is noise). Waiting: fraction of the time with the "
    "loader spent waiting for data. GiB: peak memory, on a GPU only."
)


def as_markdown(rows: Sequence[BenchRow]) -> str:
    """Format rows as a table, with a legend of its columns."""
    lines = [
        "| model | image size | who | keep | draw | batch | ms | host | images/s | x | GiB "
        "| GiB/image | of ceiling | sampling | end to end | waiting |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        baseline = [
            other.images_per_second
            for other in rows
            if other.who == TIMM_WHOLE
            and (other.model, other.img_size) == (row.model, row.img_size)
        ]
        cells = (
            row.model,
            f"{row.img_size[0]}x{row.img_size[1]}",
            row.who,
            f"{row.keep_rate:.3g}",
            # timm draws in one way only.
            row.draw if row.who.startswith(OURS) else "",
            str(row.batch_size),
            f"{row.step_ms:.1f}",
            f"{row.host_ms:.1f}",
            f"{row.images_per_second:.4g}",
            f"{row.images_per_second / baseline[0]:.2f}" if baseline else "",
            _cell(row.peak_gib, ".1f"),
            _cell(row.peak_gib / row.batch_size, ".3f"),
            f"{row.share_of_ceiling:.3f}",
            _share(row.sampling_share),
            _cell(row.end_to_end_share, ".3f"),
            _share(row.wait_share),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _LEGEND])


_EPOCH_LEGEND = (
    "Bare: the median step on one batch that lies on the device, after the epochs. Training: all "
    "steps of the last of three epochs, with the loader. Epoch: the same images over the whole "
    "time of that epoch, with validation at the same keep rate and the checkpoints of the epoch "
    "before. Waiting: fraction of the time of the steps spent waiting for data. Images of noise, "
    "from files in the page cache."
)


def epochs_as_markdown(rows: Sequence[EpochRow]) -> str:
    """Format rows of whole epochs as a table, with a legend of its columns."""
    lines = [
        "| model | image size | keep | batch | images, train + val | bare images/s | training "
        "images/s | epoch images/s | training over bare | epoch over bare | epoch, s | waiting |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bare = row.bare_images_per_second
        cells = (
            row.model,
            f"{row.img_size[0]}x{row.img_size[1]}",
            f"{row.keep_rate:.3g}",
            str(row.batch_size),
            f"{row.train_images} + {row.val_images}",
            f"{bare:.4g}",
            f"{row.train_images_per_second:.4g}",
            f"{row.epoch_images_per_second:.4g}",
            f"{row.train_images_per_second / bare:.3f}",
            f"{row.epoch_images_per_second / bare:.3f}",
            f"{row.epoch_seconds:.2f}",
            percent(row.wait_share, 1),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _EPOCH_LEGEND])


def _cell(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def _share(value: float) -> str:
    return "" if math.isnan(value) else percent(value, 1)
