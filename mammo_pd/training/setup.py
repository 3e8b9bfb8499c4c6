"""The set-up of a run: everything that training needs, built and checked once, then frozen."""

import math
import os
import platform
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from mammo_pd import __version__
from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import build_backbone
from mammo_pd.config import RunConfig
from mammo_pd.cores import available_cores
from mammo_pd.data.balanced import BalancedDraw
from mammo_pd.data.cohort import Cohort
from mammo_pd.data.dataset import EpochBatches, MammogramDataset
from mammo_pd.data.loader import BatchLoader
from mammo_pd.data.unit_batches import (
    UnitBatches,
    batches_of_units,
    largest_unit,
)
from mammo_pd.errors import InputError
from mammo_pd.keep_schedule import KeepSchedule
from mammo_pd.orphans import signal_when_parent_dies
from mammo_pd.patches.sampler import Kept, PatchSampler, sampler_class
from mammo_pd.terms import Draw, ScoredPatches, Split
from mammo_pd.training.batch_size import find_batch_size
from mammo_pd.training.captured import CapturedWork
from mammo_pd.training.devices import (
    compile_blocks,
    count_devices,
    deterministic_kernels,
    make_fabric,
    should_compile,
)
from mammo_pd.training.earlier_weights import refuse_replaced, version_of
from mammo_pd.training.model_card import ModelCard, count_kinds, without_paths
from mammo_pd.training.objectives import Objective
from mammo_pd.training.run_data import RunData, labels_hash, targets_hash
from mammo_pd.training.runs import RunFolder, RunInfo, timestamp
from mammo_pd.training.step import can_capture, image_keys
from mammo_pd.wording import counted, percent

_MAX_THREADS = 8
# Number of images for estimating the share of tissue in the input.
_TISSUE_SAMPLE = 64


@dataclass(frozen=True)
class RunSetup:
    """A run that is ready to be fitted.

    Attributes:
        config: everything that determines the run, with the batch size resolved.
        fabric: Lightning Fabric, launched.
        compiled: whether blocks and sampler are compiled.
        cohort: the store's images and their split.
        parts: for each part of the split, the manifest rows that the objective can use.
        img_size: (height, width) in pixels that the model sees.
        objective: what is learnt.
        backbone: encodes the patches; its weights are what later runs start from.
        model: the module to train: the backbone, or what the objective puts around it; not yet set
            up by Fabric.
        sampler: draws and reads the patches.
        weights_report: what became of pretrained weights, as `WeightsReport` makes it; None for
            random ones.
        train_set: images to train on, with targets.
        val_set: images to validate on, with targets.
        draw: draws an epoch with a fixed share of positives; None to use every image once.
        say: prints one line; does nothing except in the first process.
    """

    config: RunConfig
    fabric: Fabric
    compiled: bool
    cohort: Cohort
    parts: Mapping[Split, pd.DataFrame]
    img_size: tuple[int, int]
    objective: Objective
    backbone: Backbone
    model: nn.Module
    sampler: PatchSampler
    weights_report: Mapping[str, Any] | None
    train_set: MammogramDataset
    val_set: MammogramDataset
    draw: BalancedDraw | None
    say: Callable[[str], None]

    @classmethod
    def build(
        cls,
        store: Path | str,
        config: RunConfig,
        *,
        stopped: RunInfo | None = None,
        say: Callable[[str], None] = print,
    ) -> "RunSetup":
        """Check what was given, launch the devices, build the model and the data sets.

        Args:
            store: made by preprocess.
            config: of the run.
            stopped: the run to resume, whose checkpoint will replace the initial weights: their
                file need not exist any more, and the input normalisation stays the same.
            say: takes one line for people.

        Raises:
            InputError: no store, a split with a leak or a class missing, an image size that does
                not fit the model, a batch that the devices cannot share, weights that do not fit,
                have seen test women or are replaced meanwhile.
        """
        store = Path(store)
        # ---- data: whatever can be refused is refused before a device is touched
        weights = config.model.weights if stopped is None else None
        checked = version_of(weights)
        data = RunData.read(store, config, check_weights=stopped is None, say=say)
        objective = data.objective

        # ---- devices
        devices, nodes = count_devices(config)
        fabric = make_fabric(config, devices=devices, nodes=nodes)
        fabric.launch()
        _end_with_launcher(fabric)
        fabric.seed_everything(config.training.seed, verbose=False)
        if not fabric.is_global_zero:
            say = _say_nothing
        compiled = should_compile(config, say)
        _refuse_narrow_residual(config, fabric)

        # ---- model
        backbone = build_backbone(
            config.model.name,
            data.img_size,
            num_outputs=objective.num_outputs,
            weights=weights,
            normalization=config.model.normalization,
            drop_path_rate=config.model.drop_path_rate,
            global_pool=config.model.global_pool,
            checkpointing=config.model.checkpointing,
        )
        refuse_replaced(weights, checked)
        if stopped is not None:
            backbone.normalization, weights_report = stopped.normalization, stopped.weights
        else:
            report = backbone.weights_report
            weights_report = report.as_dict() if report is not None else None
            for line in report.lines() if report is not None else ():
                say(line)
        if config.device.residual == "bfloat16":
            backbone.narrow_residual()
        objective.prepare(backbone, data.train_set.judged_targets.numpy())
        setup = cls(
            config=config,
            fabric=fabric,
            compiled=compiled,
            cohort=data.cohort,
            parts=data.parts,
            img_size=data.img_size,
            objective=objective,
            backbone=backbone,
            model=objective.build_model(backbone),
            sampler=sampler_class(config.patch_dropout.draw)(
                data.img_size,
                backbone.patch_size,
                normalization=backbone.normalization,
                draw=config.patch_dropout.draw,
                score_on=ScoredPatches(config.patch_dropout.score_on),
                num_prefix=backbone.num_prefix,
                augment=config.augment,
                window=backbone.window,
                compiled=compiled,
            ),
            weights_report=weights_report,
            train_set=data.train_set,
            val_set=data.val_set,
            draw=data.draw,
            say=say,
        )
        if config.training.batch_size == "auto":
            # Other kernels take other memory.
            with deterministic_kernels(config):
                batch_size = find_batch_size(setup)
            setup = setup._with_batch_size(batch_size)
            # It may be the images that end first, and not the memory.
            all_fit = batch_size == len(setup.train_set)
            what = "all training images fit" if all_fit else "the largest that fits"
            say(f"batch size {batch_size}: {what}")
        if compiled:
            compile_blocks(setup.model)
        # Last, so that a refused run has written nothing.
        if data.new_split is not None and fabric.is_global_zero:
            data.new_split.write(data.cohort.paths, say)
        return setup

    # ---- what follows from the fields

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.fabric.device
        return device

    @property
    def card(self) -> ModelCard:
        """What checkpoints say of the model that is trained."""
        cohort = self.cohort
        return ModelCard(
            model=self.config.model.name,
            img_size=self.img_size,
            num_tokens=self.backbone.num_tokens,
            num_keep=self.num_keep,
            grid_size=self.backbone.grid_size,
            normalization=self.backbone.normalization,
            weights=dict(self.weights_report) if self.weights_report is not None else None,
            objective=self.config.training.objective,
            label_definition=cohort.label_definition,
            split=cohort.split.name,
            split_hash=cohort.split.hash,
            labels_hash=self.labels_hash,
            fold=cohort.fold,
            counts=self.counts,
            store_fingerprint=cohort.fingerprint,
            preprocessing=cohort.store_info["settings"],
            config=without_paths(self.config).model_dump(mode="json"),
            environment=self.environment,
            trained_on=count_kinds(self.parts[Split.TRAIN]),
        )

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """Patients, images, and positives by target, of each part by its name."""
        return {
            str(part): {
                "patients": int(rows["patient_id"].nunique()),
                "images": len(rows),
                "positives": _positives(self.objective, rows),
            }
            for part, rows in self.parts.items()
        }

    @property
    def schedule(self) -> KeepSchedule:
        """The keep rate over the epochs."""
        return self.config.patch_dropout.schedule

    @property
    def num_keep(self) -> int:
        """K of most epochs: the largest one, except in last epochs that keep every patch."""
        return self.backbone.allowed_keep(self.schedule.base)

    @property
    def most_parts(self) -> int:
        """The largest number of parts that a step is cut into."""
        return self._count_parts(1.0 if self.schedule.full_epochs else self.schedule.base)

    @property
    def kinds_of_step(self) -> list[tuple[int, int]]:
        """K and the number of parts: of most epochs, then of last epochs that keep every patch."""
        kinds = [(self.num_keep, self.config.training.grad_accum_steps)]
        if self.schedule.full_epochs:
            kinds.append((self.backbone.num_tokens, self.most_parts))
        return kinds

    @property
    def largest_unit(self) -> int:
        """The largest number of training images judged, and so computed, together."""
        views = self.train_set.views
        return 1 if views is None else largest_unit(views[:, 0])

    @property
    def least_at_once(self) -> str:
        """The smallest amount of images that can be computed at once, in words."""
        most = self.largest_unit
        return "one image" if most == 1 else f"one {self.objective.judged} of {most} images"

    def most_at_once(self, batch_size: int, parts: int) -> int:
        """The largest number of images in one forward pass.

        Args:
            batch_size: images per step over all devices.
            parts: that a step is cut into, if it has enough images.
        """
        world_size: int = self.fabric.world_size
        own = math.ceil(batch_size / world_size)
        at_once = math.ceil(own / min(own, parts))
        if self.train_set.views is None:
            return at_once
        # Whole units, dealt to devices and cut into parts, differ from equal shares by at most one
        # unit.
        shared = world_size > 1 or parts > 1
        return min(batch_size, max(at_once, self.largest_unit) + shared * self.largest_unit)

    def keep_at(self, epoch: int, step: int) -> tuple[int, int]:
        """K of one step, and the number of parts it is cut into: more patches need more parts."""
        training = self.config.training
        rate = self.schedule.keep_rate(epoch, training.epochs, step, training.seed)
        return self.backbone.allowed_keep(rate), self._count_parts(rate)

    def _count_parts(self, rate: float) -> int:
        steps = self.config.training.grad_accum_steps
        return steps * math.ceil(rate / self.schedule.base)

    def train_batches(self) -> EpochBatches | UnitBatches:
        """The images of each training step in this process; set its ``epoch`` before iterating."""
        training, fabric = self.config.training, self.fabric
        settings: dict[str, Any] = {
            "seed": training.seed,
            "rank": fabric.global_rank,
            "world_size": fabric.world_size,
            "draw": self.draw.draw if self.draw else None,
        }
        size, views = training.known_batch_size, self.train_set.views
        if views is not None:
            return UnitBatches(views[:, 0], size, **settings)
        return EpochBatches(len(self.train_set), size, **settings)

    def is_frozen(self, epoch: int) -> bool:
        """Whether only the head is trained in an epoch, counted from 0."""
        frozen = self.config.training.frozen_epochs
        return frozen == "all" or epoch < frozen

    @property
    def captures_steps(self) -> bool:
        """Whether steps run as CUDA graphs."""
        checkpointing = self.config.model.checkpointing
        return can_capture(self.fabric, compiled=self.compiled, checkpointing=checkpointing)

    def make_captured(self) -> CapturedWork:
        """Create what captures this run's steps as CUDA graphs."""
        most = max(self.train_set.most_pixels, self.val_set.most_pixels)
        return CapturedWork(self.device, most, self.say)

    @property
    def validates_on_some(self) -> bool:
        """Whether validation reads only as many patches as training."""
        wanted = self.objective.is_pretext or self.config.training.validate_on == "kept"
        return wanted and self.schedule.base < 1

    def val_kept(self, rows: Tensor) -> Kept:
        """The patches that validation reads of images (B,), the same in every epoch."""
        seed = self.config.training.seed
        return Kept(self.num_keep, image_keys(self.val_set, rows, seed, -1, self.device))

    def val_batches(self, *, on_all: bool = False) -> list[list[int]]:
        """The batches of validation images in this process: smaller if every patch is read.

        Args:
            on_all: whether images are scored on all their patches.
        """
        training, fabric = self.config.training, self.fabric
        at_once = training.known_batch_size / fabric.world_size / training.grad_accum_steps
        size = max(1, int(at_once * (self.schedule.base if on_all else 1)))
        if self.val_set.views is not None:
            return batches_of_units(
                self.val_set.views[:, 0],
                size,
                rank=fabric.global_rank,
                world_size=fabric.world_size,
            )
        mine = range(fabric.global_rank, len(self.val_set), fabric.world_size)
        return [list(mine[start : start + size]) for start in range(0, len(mine), size)]

    def loader(self, dataset: MammogramDataset, batches: Iterable[Sequence[int]]) -> BatchLoader:
        """Read batches of a data set ahead of the device."""
        return make_loader(dataset, batches, self.config.data.workers, self.device)

    # ---- what is printed and recorded

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions and device."""
        on_gpu = self.device.type == "cuda"
        return {
            "mammo_pd": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "CPU",
            "devices": self.fabric.world_size,
        }

    @cached_property
    def labels_hash(self) -> str:
        """The hash of the targets of all images that the objective can use, in every part."""
        return labels_hash(self.cohort, self.objective)

    @cached_property
    def targets_hash(self) -> str:
        """The hash of the targets and groups of the training images."""
        return targets_hash(self.cohort, self.objective, self.config.training)

    def new_run(self, runs: Path | str, run_id: str) -> RunFolder:
        """Describe a run with this set-up; nothing is written yet."""
        info = RunInfo(
            run_id=run_id,
            started=timestamp(),
            store=str(self.cohort.paths.root.resolve()),
            store_fingerprint=self.cohort.fingerprint,
            label_definition=self.cohort.label_definition,
            split=self.cohort.split.name,
            split_hash=self.cohort.split.hash,
            labels_hash=self.labels_hash,
            targets_hash=self.targets_hash,
            fold=self.cohort.fold,
            model=self.config.model.name,
            img_size=self.img_size,
            num_tokens=self.backbone.num_tokens,
            num_keep=self.num_keep,
            environment=self.environment,
            normalization=self.backbone.normalization,
            weights=dict(self.weights_report) if self.weights_report is not None else None,
        )
        return RunFolder(Path(runs) / run_id, info, self.config)

    def introduce(self) -> None:
        """Print what is about to be trained, with warnings about anything unexpected."""
        precision = self.fabric.strategy.precision.precision
        height, width = self.img_size
        self.say(
            f"{self.config.model.name}, {height}x{width} pixels, {self._kept_in_words()} of "
            f"{self.backbone.num_tokens} patches kept; {self._count_images()}; "
            f"{self.environment['device']}, {precision}"
        )
        for rate in dict.fromkeys((self.schedule.first, self.schedule.last)):
            line = self.backbone.describe_keep(rate)
            if line is not None:
                self.say(line)
        steps = self.train_batches().sizes()
        if len(steps) == 1:
            self.say(
                f"warning: with a batch of {self.config.training.batch_size}, an epoch is one step "
                f"of {steps[0]} of the {counted(len(self.train_set), 'training image')}; more and "
                "smaller steps may learn more (--batch-size)"
            )
        if self.cohort.unassigned:
            self.say(
                "warning: "
                + counted(self.cohort.unassigned, "usable image is", "usable images are")
                + f" in no part of the split {self.cohort.split.name} (added after the split was "
                "made); to use them all: mammo-pd split --name NEW"
            )
        if self.draw is not None and not self.draw.drawn.all():
            never = int((~self.draw.drawn).sum())
            self.say(
                f"warning: {never} of "
                f"{counted(len(self.draw.drawn), f'training {self.objective.judged}')} never "
                f"drawn: their {self.config.training.balance_within} has images of one class only"
            )
        for line in self.objective.warnings(self.parts[Split.TRAIN]):
            self.say(f"warning: {line}")
        if self.fabric.is_global_zero and self.config.patch_dropout.draw == Draw.TISSUE:
            share = self._tissue_share()
            kept_patches = self.num_keep / self.backbone.num_tokens
            # The images of a sample may hold no tissue at all.
            kept = min(1.0, kept_patches / share) if share else 1.0
            self.say(f"tissue is {percent(share)} of the input; {percent(kept)} of it is kept")

    def _kept_in_words(self) -> str:
        schedule = self.schedule
        first, last = map(self.backbone.allowed_keep, (schedule.first, schedule.last))
        words = "a random number" if schedule.random else str(first)
        if last != first:
            words += f" to {last}"
        if schedule.full_epochs:
            some = "epoch" if schedule.full_epochs == 1 else f"{schedule.full_epochs} epochs"
            words += f" (all in the last {some})"
        return words

    def _count_images(self) -> str:
        return ", ".join(
            f"{part} {self.objective.count(rows)}" for part, rows in self.parts.items()
        )

    def _tissue_share(self) -> float:
        """The share of patches that hold breast, over a sample of the training images."""
        step = max(1, len(self.train_set) // _TISSUE_SAMPLE)
        shares = [
            self.sampler.tissue(self.train_set.read([row]).to(self.device)).float().mean().item()
            for row in range(0, len(self.train_set), step)
        ]
        return float(np.mean(shares))

    def _with_batch_size(self, batch_size: int) -> "RunSetup":
        training = self.config.training.replace(batch_size=batch_size)
        return replace(self, config=self.config.replace(training=training))


def make_loader(
    dataset: MammogramDataset,
    batches: Iterable[Sequence[int]],
    workers: int | None,
    device: torch.device,
) -> BatchLoader:
    """Read batches ahead in threads, into pinned memory where there is a GPU."""
    if workers is None:
        # On a CPU the model needs every core, and reading is the smaller part of the work.
        cores = available_cores() if device.type == "cuda" else 1
        workers = max(1, min(_MAX_THREADS, cores - 1))
    return BatchLoader(dataset, batches, device, workers)


def _end_with_launcher(fabric: Fabric) -> None:
    """Of several processes, end with the one that started this: alone it would wait for ever.

    By SIGKILL, since a device that waits for the others answers no other signal; what is saved is
    saved by the first process, which a user may start in the background of a shell that he closes.
    """
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if fabric.world_size > 1 and (by_torchrun or not fabric.is_global_zero):
        signal_when_parent_dies(signal.SIGKILL)


def _refuse_narrow_residual(config: RunConfig, fabric: Fabric) -> None:
    precision = fabric.strategy.precision.precision
    if config.device.residual == "bfloat16" and precision != "bf16-mixed":
        raise InputError(
            f"device.residual bfloat16 needs bf16-mixed precision, and this run uses {precision}; "
            "give --set device.precision=bf16-mixed, or drop device.residual."
        )


def _say_nothing(line: str) -> None:
    pass


def _positives(objective: Objective, rows: pd.DataFrame) -> dict[str, int]:
    """Positives by target; a target need not be a column of the manifest."""
    columns = objective.targets(rows).T[: len(objective.target_columns)]
    return {
        name: int((column == 1).sum())
        for name, column in zip(objective.target_columns, columns, strict=True)
    }
