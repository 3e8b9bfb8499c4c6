"""``mammo-pd bench``: measure training steps on this machine, and write what came out."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mammo_pd.config import RunConfig, resolve_img_size
from mammo_pd.data.store import open_store
from mammo_pd.errors import InputError
from mammo_pd.files import write_text
from mammo_pd.perf.cost import keep_of, largest_fitting, shape_of, window_of
from mammo_pd.perf.measure import Bench
from mammo_pd.perf.noise_images import FRACTIONS
from mammo_pd.perf.plot import plot_rows
from mammo_pd.perf.rows import (
    OURS,
    PRETRAINING,
    BenchRow,
    EpochRow,
    as_markdown,
    epochs_as_markdown,
)
from mammo_pd.tracking import MlflowRun
from mammo_pd.training.batch_size import DoesNotFitError
from mammo_pd.training.devices import should_compile

# The same batch size for all, within what a common card holds.
_MEMORY_FOR_BATCH = 20 * 2**30
_LARGEST_BATCH = 128
# What each of eight GPUs sees of the largest.
_SMALL_BATCH = 16
# An epoch to be measured trains for about so long, in so many steps at least, on so many images at
# most.
_EPOCH_SECONDS = 5.0
_FEWEST_STEPS = 20
_MOST_IMAGES = 20_000


@dataclass
class _Results:
    """What was measured so far.

    Attributes:
        rows: steps of a batch that fills the GPU, ours beside timm's.
        small: the same with a small batch.
        epochs: whole epochs of ours.
    """

    rows: list[BenchRow] = field(default_factory=list)
    small: list[BenchRow] = field(default_factory=list)
    epochs: list[EpochRow] = field(default_factory=list)


@dataclass(frozen=True)
class _Case:
    """One model at one image size and keep rate.

    Attributes:
        model: timm's name.
        img_size: (height, width) in pixels.
        keep_rate: fraction of the patches.
    """

    model: str
    img_size: tuple[int, int]
    keep_rate: float

    def __str__(self) -> str:
        return f"{self.model} {self.img_size[0]}x{self.img_size[1]} keep {self.keep_rate:g}"


def bench(
    out: Path,
    *,
    resolutions: Sequence[str],
    keep_rates: Sequence[float],
    models: Sequence[str],
    batch_size: int | None = None,
    pretraining: bool = False,
    epochs: bool | None = None,
    store: Path | None = None,
    runs: Path | None = None,
    config: RunConfig | None = None,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Measure every resolution x keep rate x model, ours beside timm, and write what came out.

    Args:
        out: folder for ``bench.json`` (read by `mammo_pd.perf.budget`), ``bench.md`` and
            ``bench.png``.
        resolutions: as of ``--res``, except ``full``.
        keep_rates: in (0, 1].
        models: timm's names.
        batch_size: images per step; None for as many as about 20 GiB hold, at most 128, and at the
            smallest size of each model for 16 as well.
        pretraining: measure a step of a masked autoencoder as well, where patches are dropped.
        epochs: measure whole epochs of training on noise as well; None to do so on a GPU.
        store: whose images the loader reads; None for noise.
        runs: folder of the MLflow database to log to; None for no logging.
        config: device and precision.
        say: takes one line for people.

    Returns:
        One row for each measurement, with the columns of `BenchRow`.

    Raises:
        InputError: an invalid resolution, keep rate or model, or nothing that fits in memory.
    """
    # A long bench must not end in a typing error: every case is checked before the first is run.
    cases = _list_cases(models, resolutions, keep_rates, batch_size)
    if store is not None:
        open_store(store)
    compiled = should_compile(config or RunConfig(), say)
    results = _Results()
    with Bench(config, store=store) as machine:
        description = machine.describe_machine()
        say(description["summary"])

        def keep(row: BenchRow | EpochRow, rows: list[Any]) -> None:
            rows.append(row)
            # Written after each row: a bench that is stopped keeps what it has measured.
            _write(results, description, out)

        for number, case in enumerate(cases, 1):
            size = batch_size or _choose_batch(case, machine)
            say(f"{number} of {len(cases)}: {case}, batch {size}")
            for row in _measure(machine, case, size, compiled, pretraining, say):
                keep(row, results.rows)
                wanted = machine.on_gpu if epochs is None else epochs
                if wanted and row.who.startswith(OURS) and not row.who.startswith(PRETRAINING):
                    try:
                        keep(_measure_epoch(machine, row, compiled, say), results.epochs)
                    except DoesNotFitError:
                        say(f"{case}: whole epochs with this batch do not fit; skipped")
            smallest = min(other.img_size for other in cases if other.model == case.model)
            if batch_size is None and size > _SMALL_BATCH and case.img_size == smallest:
                for row in _measure(machine, case, _SMALL_BATCH, compiled, False, say):
                    keep(row, results.small)
    rows = results.rows
    if not rows:
        raise InputError(
            "nothing fits in this device's memory; lower --res, --keep or --batch-size."
        )
    plot_rows(rows, out / "bench.png")
    if runs is not None:
        _log(rows, description["device"], resolutions, out, runs)
    return pd.DataFrame([asdict(row) for row in rows])


def _list_cases(
    models: Sequence[str],
    resolutions: Sequence[str],
    keep_rates: Sequence[float],
    batch_size: int | None,
) -> list[_Case]:
    """Every combination, each one valid."""
    if batch_size is not None and batch_size < 1:
        raise InputError(f"--batch-size {batch_size} is below 1.")
    cases = []
    for name in models:
        shape = shape_of(name)
        for res in resolutions:
            if str(res) == "full":
                raise InputError(
                    "--res full depends on a split; give an image size, such as 3328x2560."
                )
            window = window_of(shape, keep_rates)
            img_size = resolve_img_size(res, shape.patch_size, (0, 0), window=window)
            for keep_rate in keep_rates:
                try:
                    keep_of(shape, img_size, keep_rate)
                except InputError:
                    raise
                except ValueError as error:
                    raise InputError(f"--keep: {error}.") from error
                cases.append(_Case(name, img_size, keep_rate))
    return cases


def _choose_batch(case: _Case, machine: Bench) -> int:
    """As many images as the cost model fits into about 20 GiB, or half of a smaller card."""
    if not machine.on_gpu:
        return 2
    shape = shape_of(case.model)
    num_keep = keep_of(shape, case.img_size, case.keep_rate)
    total = torch.cuda.get_device_properties(machine.device).total_memory
    fits = largest_fitting(shape, case.img_size, num_keep, min(_MEMORY_FOR_BATCH, total / 2))
    # Powers of two make rows comparable.
    return min(_LARGEST_BATCH, 1 << max(1, fits).bit_length() - 1)


def _measure(
    machine: Bench,
    case: _Case,
    batch_size: int,
    compiled: bool,
    pretraining: bool,
    say: Callable[[str], None],
) -> Iterator[BenchRow]:
    given = (case.model, case.img_size, case.keep_rate, batch_size)
    attempts: list[Callable[[], BenchRow]] = [
        lambda: machine.ours(*given, compiled=compiled),
        lambda: machine.timm(*given),
    ]
    if pretraining and case.keep_rate < 1:
        attempts.append(lambda: machine.ours(*given, compiled=compiled, pretraining=True))
    for attempt in attempts:
        try:
            row = attempt()
        except torch.OutOfMemoryError:
            say(f"{case}: a batch of {batch_size} does not fit; skipped")
            continue
        memory = "" if math.isnan(row.peak_gib) else f", {row.peak_gib:.1f} GiB"
        # timm has no patch dropout of some models, and is then measured on every patch.
        measured = replace(case, keep_rate=row.keep_rate)
        rate = f"{row.images_per_second:.4g} images/s"
        say(f"{row.who}: {measured}, batch {batch_size}: {rate}{memory}")
        yield row


def _measure_epoch(
    machine: Bench, row: BenchRow, compiled: bool, say: Callable[[str], None]
) -> EpochRow:
    """Of about `_EPOCH_SECONDS`, in whole batches."""
    steps = max(_FEWEST_STEPS, round(_EPOCH_SECONDS * 1000 / row.step_ms))
    trained = min(_MOST_IMAGES, steps * row.batch_size)
    epoch = machine.whole_epoch(row, math.ceil(trained / FRACTIONS[0]), compiled=compiled)
    share = epoch.epoch_images_per_second / epoch.bare_images_per_second
    say(
        f"whole epoch, training on {epoch.train_images}, validating on {epoch.val_images}: "
        f"{epoch.epoch_images_per_second:.4g} images/s, {share:.3f} of the bare step"
    )
    return epoch


def _write(results: _Results, description: dict[str, Any], out: Path) -> None:
    parts = [f"# Training steps, {date.today()}", description["summary"], as_markdown(results.rows)]
    if results.small:
        parts += ["## Small batches", as_markdown(results.small)]
    if results.epochs:
        parts += ["## Whole epochs", epochs_as_markdown(results.epochs)]
    write_text(out / "bench.md", "\n\n".join(parts) + "\n")
    record = {
        **description,
        "rows": _records(results.rows),
        "small_batches": _records(results.small),
        "epochs": _records(results.epochs),
    }
    write_text(out / "bench.json", json.dumps(record, indent=1) + "\n")


def _records(rows: Sequence[BenchRow | EpochRow]) -> list[dict[str, Any]]:
    # pandas writes NaN as null, which json does not.
    table = pd.DataFrame([asdict(row) for row in rows])
    records: list[dict[str, Any]] = json.loads(table.to_json(orient="records"))
    return records


def _log(
    rows: Sequence[BenchRow], device: str, resolutions: Sequence[str], out: Path, runs: Path
) -> None:
    """Log to MLflow: one step for each row, and the files."""
    with MlflowRun(runs, f"bench-{date.today()}") as tracker:
        tracker.describe({"bench": {"resolutions": list(resolutions)}}, {"device": device})
        for number, row in enumerate(rows):
            metrics = {
                name: value
                for name, value in asdict(row).items()
                if isinstance(value, float) and math.isfinite(value)
            }
            tracker.log(metrics, step=number)
        for file in ("bench.md", "bench.json"):
            tracker.keep(file, (out / file).read_text(encoding="utf-8"))
