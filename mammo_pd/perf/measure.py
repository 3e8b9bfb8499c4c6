"""Measure training steps on one device: ours, and timm's own for comparison.

Image sizes are (height, width) in pixels.
"""

import gc
import math
import platform
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from lightning.fabric import Fabric
from torch import nn

from mammo_pd import __version__
from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import build_backbone, describe_backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import RunConfig
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.store import StorePaths, open_store
from mammo_pd.errors import InputError
from mammo_pd.keep_schedule import count_kept
from mammo_pd.patches.sampler import PatchSampler, sampler_class
from mammo_pd.perf.cost import shape_of, training_flops
from mammo_pd.perf.noise_images import write_noise_images, write_noise_store
from mammo_pd.perf.rows import OURS, PRETRAINING, TIMM, TIMM_WHOLE, BenchRow, EpochRow
from mammo_pd.perf.timer import Timer
from mammo_pd.terms import Draw, Split
from mammo_pd.training.captured import CapturedWork
from mammo_pd.training.devices import compile_blocks, make_fabric
from mammo_pd.training.loop import fit_untracked
from mammo_pd.training.objectives import Objective, build_objective
from mammo_pd.training.objectives.masked_autoencoder import Autoencoder, count_predicted
from mammo_pd.training.optimizer import make_optimizer
from mammo_pd.training.setup import RunSetup, make_loader
from mammo_pd.training.step import TrainingStep, can_capture, can_fuse, image_keys, update
from mammo_pd.training.train import start_run
from mammo_pd.wording import counted

# Images that the share of tissue is averaged over.
_TISSUE_SAMPLE = 128
# The first compiles, the second still warms up; the third counts.
_EPOCHS = 3


class Bench:
    """Measures steps on one device, at the precision of training.

    Args:
        config: device and precision are taken from it.
        steps: timed for each row, after warming up.
        store: whose images the loader reads; None for noise of the input's own size.

    Attributes:
        burst: FLOP/s of a large matrix product on the cool device.
        ceiling: the same under sustained load.
    """

    def __init__(
        self, config: RunConfig | None = None, *, steps: int = 20, store: Path | None = None
    ) -> None:
        self._config = config or RunConfig()
        self.fabric: Fabric = make_fabric(self._config)
        self.device = self.fabric.device
        self.on_gpu = self.device.type == "cuda"
        self._timer = Timer(self.device, steps)
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
        draw: str = Draw.UNIFORM,
        compiled: bool = True,
        captured: bool = True,
        checkpointing: bool = False,
        end_to_end: bool = True,
        pretraining: bool = False,
        change: Callable[[Backbone], object] = lambda _: None,
    ) -> BenchRow:
        """Measure our step: draw, sparse augmentation, embedding, blocks, backward, optimiser.

        With ``pretraining`` that of a masked autoencoder, which also reads and predicts some of the
        dropped patches. ``change`` is done to the backbone before it is compiled.
        """
        self._reset()
        torch.manual_seed(0)
        objective = _autoencoder() if pretraining else self._objective
        backbone = build_backbone(
            name, img_size, num_outputs=objective.num_outputs, checkpointing=checkpointing
        )
        change(backbone)
        model = objective.build_model(backbone)
        num_keep = backbone.allowed_keep(keep_rate)
        draws = sampler_class(draw)(
            img_size,
            backbone.patch_size,
            draw=draw,
            window=backbone.window,
            compiled=compiled,
        )
        if compiled:
            compile_blocks(model)
        captured &= can_capture(self.fabric, compiled=compiled, checkpointing=checkpointing)
        module, optimizer = self._set_up(model, captured=captured)
        dataset = self._images(img_size)
        train_step = TrainingStep(
            self.fabric,
            module,
            optimizer,
            draws,
            objective,
            clip_norm=1.0,
            captured=CapturedWork(self.device, dataset.most_pixels, print) if captured else None,
        )

        def step(batch: ImageBatch) -> None:
            keys = image_keys(dataset, batch.rows, 0, 0, self.device)
            train_step(batch, keys, num_keep)

        batches = self._batches(dataset, batch_size)
        loader = make_loader(dataset, batches[:1], None, self.device)
        (batch,) = loader
        seconds = self._timer.seconds_per_step(lambda: step(batch))
        host = self._timer.host_seconds(lambda: step(batch))
        # Read before anything else allocates.
        peak = self._peak_gib()
        with_loader, waited = math.nan, math.nan
        if end_to_end:
            loader = make_loader(dataset, batches, None, self.device)
            with_loader, waited = self._timer.seconds_per_batch(loader, step)
        images = batch.to(self.device)
        keys = image_keys(dataset, batch.rows, 0, 0, self.device)
        sampling = self._timer.kernel_seconds(
            lambda: objective.training_inputs(draws, images, keys, num_keep)
        )
        who = PRETRAINING if pretraining else OURS
        who += "" if captured or not self.on_gpu else ", not captured"
        flops = training_flops(shape_of(name), num_keep)
        if pretraining:
            flops = self._pretraining_flops(name, model, num_keep)
        row = self._row(
            who, name, img_size, keep_rate, num_keep, batch_size, seconds, host, peak, flops
        )
        return replace(
            row,
            draw=str(draw),
            sampling_share=sampling / seconds,
            end_to_end_share=seconds / with_loader,
            wait_share=waited / with_loader,
        )

    def whole_epoch(
        self,
        bare: BenchRow,
        images: int,
        *,
        compiled: bool = True,
        say: Callable[[str], None] = lambda _: None,
    ) -> EpochRow:
        """Measure an epoch of `mammo-pd train` on a store of noise, MLflow apart.

        It is compared with the bare step as it is after the epochs: the first seconds of a cool
        GPU are faster than any later ones.

        Args:
            bare: of `ours`; its model, image size, keep rate and batch size are what is trained.
            images: of the store, at least 20; .88 of them are trained on and .088 validate.
            compiled: as of ``bare``.
            say: takes what training says.
        """
        self._reset()
        config = self._config
        config = config.replace(
            data=config.data.replace(res=f"{bare.img_size[0]}x{bare.img_size[1]}"),
            patch_dropout=config.patch_dropout.replace(keep_rate=bare.keep_rate),
            model=config.model.replace(name=bare.model, drop_path_rate=0.0),
            training=config.training.replace(batch_size=bare.batch_size, epochs=_EPOCHS),
            device=config.device.replace(compile=compiled),
        )
        with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            paths = write_noise_store(Path(folder) / "store", bare.img_size, images)
            setup = RunSetup.build(paths.root, config, say=say)
            history = fit_untracked(setup, start_run(Path(folder) / "runs", setup))
        after = self.ours(
            bare.model,
            bare.img_size,
            bare.keep_rate,
            bare.batch_size,
            compiled=compiled,
            end_to_end=False,
        )
        say(f"bare step after the epochs: {after.images_per_second:.4g} images/s")
        last = history[-1]
        return EpochRow(
            model=bare.model,
            img_size=bare.img_size,
            keep_rate=bare.keep_rate,
            batch_size=bare.batch_size,
            train_images=len(setup.parts[Split.TRAIN]),
            val_images=len(setup.parts[Split.VAL]),
            bare_images_per_second=after.images_per_second,
            train_images_per_second=last["train_images_per_second"],
            epoch_images_per_second=last["epoch_images_per_second"],
            epoch_seconds=last["epoch_seconds"],
            wait_share=last["train_wait_share"],
        )

    def timm(
        self,
        name: str,
        img_size: tuple[int, int],
        keep_rate: float,
        batch_size: int,
        *,
        compiled: bool = False,
    ) -> BenchRow:
        """Measure timm's own step on images on the device, neither read nor augmented.

        Of a model for which timm has no patch dropout it is that on every patch, whatever the rate.
        """
        self._reset()
        torch.manual_seed(0)
        described = describe_backbone(name)
        options = {}
        if described.window is None:
            options = {"dynamic_img_size": False, "patch_drop_rate": 1 - keep_rate}
        else:
            keep_rate = 1.0
        num_keep = count_kept(img_size[0] * img_size[1] // described.patch_size**2, keep_rate)
        model = timm.create_model(name, img_size=img_size, in_chans=1, num_classes=1, **options)
        if compiled:
            model.compile()
        module, optimizer = self._set_up(model)
        pixels = torch.randn(batch_size, 1, *img_size, device=self.device)
        targets = (torch.arange(batch_size, device=self.device) % 2).float()[:, None]

        def step() -> None:
            loss = self._objective.loss(module(pixels).float(), targets)
            self.fabric.backward(loss)
            update(self.fabric, module, optimizer, clip_norm=1.0)

        seconds = self._timer.seconds_per_step(step)
        host = self._timer.host_seconds(step)
        who = TIMM if keep_rate < 1 else TIMM_WHOLE
        who += ", compiled" if compiled else ""
        peak = self._peak_gib()
        flops = training_flops(replace(shape_of(name), class_token_alone=False), num_keep)
        return self._row(
            who, name, img_size, keep_rate, num_keep, batch_size, seconds, host, peak, flops
        )

    def tissue_share(self, img_size: tuple[int, int], patch_size: int) -> float:
        """The fraction of the input's patches that hold breast, averaged over the images read."""
        sampler = PatchSampler(img_size, patch_size)
        dataset = self._images(img_size)
        batch = dataset.read(range(min(_TISSUE_SAMPLE, len(dataset))))
        return float(sampler.tissue(batch.to(self.device)).float().mean())

    def loader_rate(self, img_size: tuple[int, int], batch_size: int) -> float:
        """Images per second that the loader brings to the device when nothing is computed."""
        dataset = self._images(img_size)
        batches = self._batches(dataset, batch_size)
        loader = make_loader(dataset, batches, None, self.device)
        return batch_size / self._timer.seconds_per_batch(loader, lambda batch: None)[0]

    def describe_machine(self) -> dict[str, Any]:
        """What is needed to read a row: device, memory, ceiling, versions, and a summary of them.

        Returns:
            The head of ``bench.json``.
        """
        if self.on_gpu:
            properties = torch.cuda.get_device_properties(self.device)
            device, memory = properties.name, properties.total_memory
        else:
            device, memory = (
                f"CPU ({platform.machine()}, {counted(torch.get_num_threads(), 'thread')})",
                0,
            )
        precision = self.fabric.strategy.precision.precision
        cool = f" ({self.burst / 1e12:.3g} before throttling)" if self.on_gpu else ""
        summary = (
            f"{device}; torch {torch.__version__}, timm {timm.__version__}, mammo-pd "
            f"{__version__}, {precision}, {'fused ' if can_fuse(self.fabric) else ''}AdamW; matmul "
            f"ceiling {self.ceiling / 1e12:.3g} TFLOP/s{cool}."
        )
        return {
            "summary": summary,
            "device": device,
            "memory_bytes": memory,
            "ceiling_flops": self.ceiling,
            "ceiling_at_first_flops": self.burst,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "precision": precision,
            "date": str(date.today()),
        }

    def close(self) -> None:
        """Remove the noise images."""
        self._folder.cleanup()

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batches(self, dataset: MammogramDataset, batch_size: int) -> list[list[int]]:
        """Rows of the data set in turn, for as many batches as the timer takes."""
        return [
            [(start + place) % len(dataset) for place in range(batch_size)]
            for start in range(0, batch_size * self._timer.batches_needed(), batch_size)
        ]

    def _measure_ceiling(self) -> tuple[float, float]:
        """FLOP/s of a large matrix product: on the cool device, and under sustained load."""
        side, dtype = (8192, torch.bfloat16) if self.on_gpu else (1024, torch.float32)
        if self.on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
            dtype = torch.float16
        a, b = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
        flops = 2 * side**3
        burst = flops / self._timer.seconds_per_step(lambda: a @ b, warm_up_seconds=0)
        return burst, flops / self._timer.seconds_per_step(lambda: a @ b)

    def _set_up(self, model: nn.Module, *, captured: bool = False) -> tuple[Any, Any]:
        groups = [{"params": list(model.parameters())}]
        optimizer: Any = make_optimizer(
            groups,
            1e-4,
            fused=can_fuse(self.fabric),
            captured_on=self.device if captured else None,
        )
        module, optimizer = self.fabric.setup(model, optimizer)
        return module.train(), optimizer

    def _reset(self) -> None:
        """Drop compiled code and cached memory of the row before."""
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
        host: float,
        peak: float,
        flops: int,
    ) -> BenchRow:
        rate = batch_size / seconds
        return BenchRow(
            who=who,
            model=name,
            img_size=img_size,
            keep_rate=keep_rate,
            num_keep=num_keep,
            draw=str(Draw.UNIFORM),
            batch_size=batch_size,
            step_ms=seconds * 1000,
            host_ms=host * 1000,
            images_per_second=rate,
            peak_gib=peak,
            share_of_ceiling=rate * flops / self.ceiling,
        )

    def _pretraining_flops(self, name: str, model: nn.Module, num_keep: int) -> int:
        """Of one image: the encoder, all of whose tokens are read, and the decoder."""
        assert isinstance(model, Autoencoder)
        shape = replace(shape_of(name), class_token_alone=False)
        asked = count_predicted(model.backbone.num_tokens, num_keep)
        decoder = model.decoder.macs(num_keep + shape.num_prefix, asked)
        return training_flops(shape, num_keep) + 6 * decoder

    def _images(self, img_size: tuple[int, int]) -> MammogramDataset:
        """The images to read: of the store, or noise; written once for each size."""
        if img_size not in self._datasets:
            if self._store is not None:
                paths = open_store(self._store)
                rows = read_manifest(paths.manifest)
                if rows.empty:
                    raise InputError(f"the store {self._store} has no usable image to read.")
            else:
                paths = StorePaths(Path(self._folder.name) / f"{img_size[0]}x{img_size[1]}")
                rows = write_noise_images(paths, img_size)
            # Targets do not affect speed.
            targets = np.zeros((len(rows), 1), np.float32)
            self._datasets[img_size] = MammogramDataset(paths, rows, img_size, targets)
        return self._datasets[img_size]


def _autoencoder() -> Objective:
    settings = RunConfig().training
    return build_objective(settings.replace(objective="masked_autoencoder"))
