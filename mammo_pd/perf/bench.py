"""Measure training steps on this machine: ours beside timm's own patch dropout and keep 1."""

import gc
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from lightning.fabric import Fabric
from torch import nn

from mammo_pd import __version__
from mammo_pd.backbones.build import build_backbone, describe_backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import RunConfig, resolve_img_size
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.loader import BatchLoader
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.store import StorePaths, open_store, write_pyramid
from mammo_pd.errors import InputError
from mammo_pd.files import write_text
from mammo_pd.keep_schedule import choose_num_keep, count_kept
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.perf.cost import largest_fitting, shape_of, training_flops
from mammo_pd.terms import Draw
from mammo_pd.tracking import MlflowRun
from mammo_pd.training.devices import make_fabric, should_compile
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.setup import make_loader
from mammo_pd.training.step import TrainingStep, can_fuse, image_keys, update

OURS, TIMM, TIMM_WHOLE = "mammo-pd", "timm patch_drop_rate", "timm, every patch"
# Batches of the same size for all, within what a common card holds.
_MEMORY_FOR_BATCH = 20 * 2**30
_MOST_IMAGES = 128
# The first steps compile, and wake a CPU's threads. A GPU slows down within seconds of load: what
# is measured is the speed that it keeps up.
_WARM_UP = 5
_WARM_UP_SECONDS = 5.0
# Bytes of made-up images: they stay in the page cache, as a store that fits in memory does.
_MADE_UP = 512 * 2**20


_LEGEND = (
    "x: images/s by those of timm with every patch. Of ceiling: the operations that the model "
    "computes on kept patches by the rate of a large matrix product, both as the device keeps them "
    "up. Sampling: drawing, augmenting and reading patches, of the "
    "step. End to end: images/s with the loader by those on a batch that lies on the device; "
    "above 1 it is noise. Waiting: for data, of the time with the loader. GiB: only a GPU tells it."
)


@dataclass(frozen=True)
class Measured:
    """One row of a bench.

    Attributes:
        who: `OURS`, `TIMM` or `TIMM_WHOLE`.
        model: timm's name.
        img_size: (height, width) in pixels.
        keep_rate: share of the patches that was asked for.
        num_keep: K.
        draw: how positions were drawn.
        batch_size: images in a step.
        step_ms: milliseconds of one step.
        images_per_second: of the step, the data being there.
        peak_gib: most memory held on the GPU; on a CPU NaN.
        share_of_ceiling: of the measured rate of large matrix products. The operations of the model
            count, on kept patches and as far as they are computed: of the last block timm makes
            every token, we the class token where the head reads no other.
        sampling_share: drawing, augmenting and reading patches, of the step; NaN for timm.
        end_to_end_share: images per second with the real loader, of those without; NaN for timm.
        wait_share: waiting for data, of the time with the real loader; NaN for timm.
    """

    who: str
    model: str
    img_size: tuple[int, int]
    keep_rate: float
    num_keep: int
    draw: str
    batch_size: int
    step_ms: float
    images_per_second: float
    peak_gib: float
    share_of_ceiling: float
    sampling_share: float = math.nan
    end_to_end_share: float = math.nan
    wait_share: float = math.nan


class Bench:
    """Measures steps on one device; the precision is that of training.

    Args:
        config: device and precision are taken from it.
        steps: that a row is the median of, after seconds of the same.
        store: whose images the loader reads; None to read made-up ones of the canvas's size.
    """

    def __init__(
        self, config: RunConfig | None = None, *, steps: int = 20, store: Path | None = None
    ) -> None:
        self._config = config or RunConfig()
        self.fabric: Fabric = make_fabric(self._config)
        self.device = self.fabric.device
        self.on_gpu = self.device.type == "cuda"
        self._steps = steps
        self._objective = build_objective(self._config.training)
        self._store = store
        self._folder = tempfile.TemporaryDirectory(prefix="mammo-pd-bench-")
        self._datasets: dict[tuple[int, int], MammogramDataset] = {}
        self.burst, self.ceiling = self._measure_ceiling()

    def ours(
        self,
        name: str,
        img_size: tuple[int, int],
        keep_rate: float,
        batch_size: int,
        *,
        draw: Draw = Draw.UNIFORM,
        compiled: bool = True,
        checkpointing: bool = False,
        end_to_end: bool = True,
    ) -> Measured:
        """Measure our step: draw, sparse augmentation, embedding, blocks, backward, optimiser."""
        self._forget()
        torch.manual_seed(0)
        model = build_backbone(name, img_size, checkpointing=checkpointing)
        num_keep = model.allowed_keep(keep_rate)
        sampler = PatchSampler(img_size, model.patch_size, draw=draw, compiled=compiled)
        if compiled:
            model.compile_blocks()
        module, optimizer = self._set_up(model)

        dataset = self._images(img_size)

        train_step = TrainingStep(
            self.fabric, module, optimizer, sampler, self._objective, clip_norm=1.0
        )

        def step(batch: ImageBatch) -> None:
            keys = image_keys(dataset, batch.rows, 0, 0, self.device)
            train_step(batch, keys, num_keep)

        batches = self._batches(dataset, batch_size)
        loader = make_loader(dataset, batches[:1], None, self.device)
        (batch,) = loader
        seconds = self._time(lambda: step(batch))
        peak = self._peak_gib()
        whole, waited = math.nan, math.nan
        if end_to_end:
            loader = make_loader(dataset, batches, None, self.device)
            whole, waited = self._time_loader(loader, step)
        images = batch.to(self.device)
        keys = image_keys(dataset, batch.rows, 0, 0, self.device)
        sampling = self._time_on_device(lambda: sampler.for_training(images, keys, num_keep))
        row = self._row(OURS, name, img_size, keep_rate, num_keep, batch_size, seconds, peak)
        return replace(
            row,
            draw=str(draw),
            sampling_share=sampling / seconds,
            end_to_end_share=seconds / whole,
            wait_share=waited / whole,
        )

    def timm(
        self,
        name: str,
        img_size: tuple[int, int],
        keep_rate: float,
        batch_size: int,
        *,
        compiled: bool = False,
    ) -> Measured:
        """Measure timm's own step on images that lie on the device, neither read nor augmented."""
        self._forget()
        torch.manual_seed(0)
        patch_size = describe_backbone(name).patch_size
        num_keep = count_kept(img_size[0] * img_size[1] // patch_size**2, keep_rate)
        model = timm.create_model(
            name,
            img_size=img_size,
            in_chans=1,
            num_classes=1,
            dynamic_img_size=False,
            patch_drop_rate=1 - keep_rate,
        )
        if compiled:
            model.compile()
        module, optimizer = self._set_up(model)
        pixels = torch.randn(batch_size, 1, *img_size, device=self.device)
        targets = (torch.arange(batch_size, device=self.device) % 2).float()[:, None]

        def step() -> None:
            loss = self._objective.loss(module(pixels).float(), targets)
            self.fabric.backward(loss)
            update(self.fabric, module, optimizer, clip_norm=1.0)

        seconds = self._time(step)
        who = TIMM if keep_rate < 1 else TIMM_WHOLE
        who += ", compiled" if compiled else ""
        peak = self._peak_gib()
        return self._row(who, name, img_size, keep_rate, num_keep, batch_size, seconds, peak)

    def tissue_share(self, img_size: tuple[int, int], patch_size: int) -> float:
        """The share of the canvas's patches that hold breast, over the images that are read."""
        sampler = PatchSampler(img_size, patch_size)
        dataset = self._images(img_size)
        batch = dataset.read(range(min(_MOST_IMAGES, len(dataset))))
        return float(sampler.tissue(batch.to(self.device)).float().mean())

    def loader_rate(self, img_size: tuple[int, int], batch_size: int) -> float:
        """Images per second that the loader alone brings to the device."""
        dataset = self._images(img_size)
        batches = self._batches(dataset, batch_size)
        loader = make_loader(dataset, batches, None, self.device)
        return batch_size / self._time_loader(loader, lambda batch: None)[0]

    def close(self) -> None:
        """Remove the made-up images."""
        self._folder.cleanup()

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- how it is measured

    def _batches(self, dataset: MammogramDataset, batch_size: int) -> list[list[int]]:
        """Rows of three batches to warm up, and twice as many as steps to be measured."""
        return [
            [(start + place) % len(dataset) for place in range(batch_size)]
            for start in range(0, batch_size * (2 * self._steps + 3), batch_size)
        ]

    def _measure_ceiling(self) -> tuple[float, float]:
        """Operations per second of a large matrix product: at first, and as the device keeps up."""
        side, dtype = (8192, torch.bfloat16) if self.on_gpu else (1024, torch.float32)
        if self.on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
            dtype = torch.float16
        one, other = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
        first = self._time(lambda: one @ other, warm_up_seconds=0)
        return 2 * side**3 / first, 2 * side**3 / self._time(lambda: one @ other)

    def _set_up(self, model: nn.Module) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=can_fuse(self.fabric))
        module, optimizer = self.fabric.setup(model, optimizer)
        return module.train(), optimizer

    def _time(
        self, step: Callable[[], object], *, warm_up_seconds: float = _WARM_UP_SECONDS
    ) -> float:
        """Median seconds from the end of one step to the end of the next, queued as in training."""
        for _ in range(_WARM_UP):
            step()
        if self.on_gpu:
            started = time.perf_counter()
            while time.perf_counter() - started < warm_up_seconds:
                step()
                self._wait()
        marks = [self._mark()]
        for _ in range(self._steps):
            step()
            marks.append(self._mark())
        self._wait()
        return statistics.median(_between(one, other) for one, other in pairwise(marks))

    def _mark(self) -> "torch.cuda.Event | float":
        """A point in the device's time."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _time_on_device(self, work: Callable[[], object]) -> float:
        """Seconds of the kernels themselves: in a step they are queued ahead of time."""
        if not self.on_gpu:
            return self._time(work)
        from torch.profiler import ProfilerActivity, profile

        work()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(3):
                work()
            torch.cuda.synchronize()
        return float(sum(row.self_device_time_total for row in profiler.key_averages())) / 3e6

    def _time_loader(
        self, loader: BatchLoader, step: Callable[[ImageBatch], object]
    ) -> tuple[float, float]:
        """Seconds for each batch from the loader to the optimiser, and those spent waiting."""
        batches = iter(loader)
        for _ in range(3):
            step(next(batches))
        waited, count, first = loader.waited, 0, self._mark()
        for batch in batches:
            step(batch)
            count += 1
        last = self._mark()
        self._wait()
        return _between(first, last) / count, (loader.waited - waited) / count

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def _forget(self) -> None:
        torch.compiler.reset()
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def _peak_gib(self) -> float:
        if not self.on_gpu:
            return math.nan
        return torch.cuda.max_memory_allocated(self.device) / 2**30

    def _row(
        self,
        who: str,
        name: str,
        img_size: tuple[int, int],
        keep_rate: float,
        num_keep: int,
        batch_size: int,
        seconds: float,
        peak: float,
    ) -> Measured:
        rate = batch_size / seconds
        shape = shape_of(name)
        if who != OURS:
            shape = replace(shape, class_token_alone=False)
        return Measured(
            who=who,
            model=name,
            img_size=img_size,
            keep_rate=keep_rate,
            num_keep=num_keep,
            draw=str(Draw.UNIFORM),
            batch_size=batch_size,
            step_ms=seconds * 1000,
            images_per_second=rate,
            peak_gib=peak,
            share_of_ceiling=rate * training_flops(shape, num_keep) / self.ceiling,
        )

    def _images(self, img_size: tuple[int, int]) -> MammogramDataset:
        """Images to read: the store's, or made-up ones of the canvas's own size."""
        if img_size not in self._datasets:
            if self._store is not None:
                paths = open_store(self._store)
                rows = read_manifest(paths.manifest)
                if rows.empty:
                    raise InputError(f"the store {self._store} has no usable image to read.")
            else:
                paths = StorePaths(Path(self._folder.name) / f"{img_size[0]}x{img_size[1]}")
                rows = _make_up(paths, img_size)
            # Labels change nothing about the speed: 0 for all.
            targets = np.zeros((len(rows), 1), np.float32)
            self._datasets[img_size] = MammogramDataset(paths, rows, img_size, targets)
        return self._datasets[img_size]


def bench(
    out: Path,
    *,
    resolutions: Sequence[str],
    keep_rates: Sequence[float],
    models: Sequence[str],
    batch_size: int | None = None,
    store: Path | None = None,
    runs: Path | None = None,
    config: RunConfig | None = None,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Measure every resolution x keep rate x model, ours beside timm, and write what came out.

    Args:
        out: a folder, which takes ``bench.json`` (which `mammo_pd.perf.budget` reads),
            ``bench.md`` and ``bench.png``.
        resolutions: as of ``--res``, but ``full``.
        keep_rates: in (0, 1].
        models: timm's names.
        batch_size: images in a step; None for as many as about 20 GiB hold, at most 128.
        store: whose images the loader reads; None for made-up ones.
        runs: where MLflow's record lies, if it is wanted.
        config: device and precision.
        say: takes one line for people.

    Returns:
        One row for each measurement, with the columns of `Measured`.

    Raises:
        InputError: a resolution, keep rate or model that cannot be, or no row that fits in memory.
    """
    cases = _cases(models, resolutions, keep_rates, batch_size)
    if store is not None:
        open_store(store)
    compiled = should_compile(config or RunConfig(), say)
    rows: list[Measured] = []
    with Bench(config, store=store) as machine:
        facts = facts_of(machine)
        say(facts["words"])
        for number, (name, img_size, keep_rate) in enumerate(cases, 1):
            size = batch_size or _batch_for(name, img_size, keep_rate, machine)
            say(
                f"{number} of {len(cases)}: {name} {img_size[0]}x{img_size[1]} keep {keep_rate:g}, "
                f"batch {size}"
            )
            for row in _measured(machine, name, img_size, keep_rate, size, compiled, say):
                rows.append(row)
                # A bench that is stopped keeps what it measured.
                record = _write(rows, facts, out)
    if not rows:
        raise InputError(
            "not one row fits in this device's memory; give a smaller --res, --keep or "
            "--batch-size."
        )
    table = pd.DataFrame([asdict(row) for row in rows])
    _plot(rows, out / "bench.png")
    if runs is not None:
        with MlflowRun(runs, f"bench-{date.today()}") as tracker:
            tracker.describe(
                {"bench": {"resolutions": list(resolutions)}}, {"device": facts["device"]}
            )
            for number, row in enumerate(rows):
                tracker.log(
                    {
                        name: value
                        for name, value in asdict(row).items()
                        if isinstance(value, float) and math.isfinite(value)
                    },
                    step=number,
                )
            tracker.keep("bench.md", (out / "bench.md").read_text(encoding="utf-8"))
            tracker.keep("bench.json", json.dumps(record))
    return table


def _write(rows: Sequence[Measured], facts: dict[str, Any], out: Path) -> dict[str, Any]:
    text = f"# Training steps, {date.today()}\n\n{facts['words']}\n\n{as_markdown(rows)}\n"
    write_text(out / "bench.md", text)
    each = pd.DataFrame([asdict(row) for row in rows]).to_json(orient="records")
    record = {**facts, "rows": json.loads(each)}
    write_text(out / "bench.json", json.dumps(record, indent=1) + "\n")
    return record


def _cases(
    models: Sequence[str],
    resolutions: Sequence[str],
    keep_rates: Sequence[float],
    batch_size: int | None,
) -> list[tuple[str, tuple[int, int], float]]:
    """Every model, canvas and keep rate, checked before the first is measured."""
    if batch_size is not None and batch_size < 1:
        raise InputError(f"--batch-size {batch_size} is not 1 or above.")
    cases = []
    for name in models:
        patch_size = shape_of(name).patch_size
        for res in resolutions:
            if str(res) == "full":
                raise InputError(
                    "--res full depends on a split; give bench its canvas, such as 3328x2560."
                )
            img_size = resolve_img_size(res, patch_size, (0, 0))
            for keep_rate in keep_rates:
                try:
                    count_kept(1, keep_rate)
                except ValueError as error:
                    raise InputError(f"--keep: {error}.") from error
                cases.append((name, img_size, keep_rate))
    return cases


def describe(machine: Bench) -> str:
    """The machine and its versions in one line."""
    return str(facts_of(machine)["words"])


def facts_of(machine: Bench) -> dict[str, Any]:
    """What must be known of the machine to read a row: ``device``, ``ceiling`` and so on."""
    if machine.on_gpu:
        properties = torch.cuda.get_device_properties(machine.device)
        device, memory = properties.name, properties.total_memory
    else:
        device, memory = f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)", 0
    precision = machine.fabric.strategy.precision.precision
    first = f" ({machine.burst / 1e12:.3g} at first)" if machine.on_gpu else ""
    words = (
        f"{device}; torch {torch.__version__}, timm {timm.__version__}, mammo-pd {__version__}, "
        f"{precision}, fused AdamW; ceiling {machine.ceiling / 1e12:.3g} TFLOP/s{first}."
    )
    return {
        "words": words,
        "device": device,
        "memory_bytes": memory,
        "ceiling_flops": machine.ceiling,
        "ceiling_at_first_flops": machine.burst,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "precision": precision,
        "date": str(date.today()),
    }


def as_markdown(rows: Sequence[Measured]) -> str:
    """Rows as a table, and what its columns say."""
    lines = [
        "| model | canvas | who | keep | draw | batch | ms | images/s | x | GiB | GiB/image "
        "| of ceiling | sampling | end to end | waiting |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        whole = [
            other.images_per_second
            for other in rows
            if other.who == TIMM_WHOLE
            and (other.model, other.img_size) == (row.model, row.img_size)
        ]
        times = f"{row.images_per_second / whole[0]:.2f}" if whole else ""
        cells = (
            row.model,
            f"{row.img_size[0]}x{row.img_size[1]}",
            row.who,
            f"{row.keep_rate:.3g}",
            row.draw if row.who.startswith(OURS) else "",
            str(row.batch_size),
            f"{row.step_ms:.1f}",
            f"{row.images_per_second:.4g}",
            times,
            _cell(row.peak_gib, ".1f"),
            _cell(row.peak_gib / row.batch_size, ".3f"),
            f"{row.share_of_ceiling:.3f}",
            _cell(row.sampling_share, ".1%"),
            _cell(row.end_to_end_share, ".3f"),
            _cell(row.wait_share, ".1%"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _LEGEND])


def _between(one: "torch.cuda.Event | float", other: "torch.cuda.Event | float") -> float:
    if isinstance(one, float) or isinstance(other, float):
        assert isinstance(one, float) and isinstance(other, float)
        return other - one
    return float(one.elapsed_time(other)) / 1000


def _cell(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def _batch_for(name: str, img_size: tuple[int, int], keep_rate: float, machine: Bench) -> int:
    """As many images as the memory model lets into about 20 GiB, or half of a smaller card."""
    if not machine.on_gpu:
        return 2
    shape = shape_of(name)
    tokens = img_size[0] * img_size[1] // shape.patch_size**2
    num_keep = choose_num_keep(tokens, keep_rate, shape.num_prefix)
    total = torch.cuda.get_device_properties(machine.device).total_memory
    fits = largest_fitting(shape, img_size, num_keep, min(_MEMORY_FOR_BATCH, total / 2))
    # Powers of two, so that rows can be compared.
    return min(_MOST_IMAGES, 1 << max(1, fits).bit_length() - 1)


def _measured(
    machine: Bench,
    name: str,
    img_size: tuple[int, int],
    keep_rate: float,
    batch_size: int,
    compiled: bool,
    say: Callable[[str], None],
) -> Iterator[Measured]:
    attempts: list[Callable[[], Measured]] = [
        lambda: machine.ours(name, img_size, keep_rate, batch_size, compiled=compiled),
        lambda: machine.timm(name, img_size, keep_rate, batch_size),
    ]
    for attempt in attempts:
        try:
            row = attempt()
        except torch.OutOfMemoryError:
            say(
                f"{name} {img_size[0]}x{img_size[1]} keep {keep_rate}: a batch of {batch_size} "
                "does not fit, left out"
            )
            continue
        say(
            f"{row.who}: {name} {img_size[0]}x{img_size[1]} keep {keep_rate}, batch {batch_size}: "
            f"{row.images_per_second:.4g} images/s"
            + ("" if math.isnan(row.peak_gib) else f", {row.peak_gib:.1f} GiB")
        )
        yield row


def _make_up(paths: StorePaths, img_size: tuple[int, int]) -> pd.DataFrame:
    """Noise in the outline of a breast, as many images as half a GiB holds."""
    height, width = img_size
    count = max(4, min(_MOST_IMAGES, _MADE_UP // (2 * height * width)))
    random = np.random.default_rng(0)
    row, column = np.ogrid[-1 : 1 : height * 1j, 0 : 1 : width * 1j]
    breast = row**2 + column**2 < 1
    ids = [f"{number:020x}" for number in range(count)]
    for image_id in ids:
        pixels = random.integers(1, 65536, img_size, np.uint16) * breast
        write_pyramid(paths.image(image_id), {"native": pixels.astype(np.uint16)})
    return pd.DataFrame({"image_id": ids, "crop_height": height, "crop_width": width})


def _plot(rows: Sequence[Measured], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    from mammo_pd.files import atomic_write

    models = list(dict.fromkeys(row.model for row in rows))
    panels = 1 if math.isnan(rows[0].peak_gib) else 2
    figure, axes = pyplot.subplots(
        panels, len(models), figsize=(5 * len(models), 3.5 * panels), squeeze=False
    )
    figure.set_layout_engine("constrained")
    for place, model in enumerate(models):
        lines: dict[str, list[Measured]] = {}
        for row in rows:
            if row.model == model:
                lines.setdefault(f"{row.who}, keep {row.keep_rate:.3g}", []).append(row)
        for name, line in lines.items():
            line.sort(key=lambda row: row.img_size)
            across = [f"{row.img_size[0]}x{row.img_size[1]}" for row in line]
            style = {"marker": "o", "linestyle": "-" if name.startswith(OURS) else "--"}
            axes[0, place].plot(
                across, [row.images_per_second for row in line], label=name, **style
            )
            if panels == 2:
                memory = [row.peak_gib / row.batch_size for row in line]
                axes[1, place].plot(across, memory, **style)
        axes[0, place].set(title=model, ylabel="training images/s", yscale="log")
        if panels == 2:
            axes[1, place].set(ylabel="GiB for each image")
        axes[-1, place].set(xlabel="canvas, pixels")
        # Plain numbers, also where the axis spans less than a decade.
        for ticks in (
            axes[0, place].yaxis.set_major_formatter,
            axes[0, place].yaxis.set_minor_formatter,
        ):
            ticks(ticker.LogFormatter(minor_thresholds=(2, 0.5)))
    names, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(names, labels, loc="outside lower center", ncols=2, fontsize="small")
    with atomic_write(file) as beside:
        figure.savefig(beside, dpi=120)
    pyplot.close(figure)
