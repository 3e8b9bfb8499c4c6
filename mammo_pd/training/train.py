"""Train a vision transformer with PatchDropout on a store: a run that can be killed and resumed."""

import hashlib
import json
import platform
import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import timm
import torch
from lightning.fabric import Fabric
from torch import Tensor

from mammo_pd import __version__
from mammo_pd.backbones.vit import PatchViT, build_plain, build_vit
from mammo_pd.batch import ImageBatch
from mammo_pd.config import RunConfig, dump_config, load_config, resolve_img_size
from mammo_pd.data.dataset import EpochBatches, MammogramDataset
from mammo_pd.data.loader import BatchLoader
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.split_store import split_store
from mammo_pd.data.splits import SplitTable, check_split, read_split
from mammo_pd.data.store import StorePaths, open_store, read_store_info
from mammo_pd.errors import InputError
from mammo_pd.evaluation.levels import Aggregation, aggregate
from mammo_pd.evaluation.roc import auc
from mammo_pd.files import write_text
from mammo_pd.patches.draw import choose_num_keep
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.terms import Draw, Level, Split, Status
from mammo_pd.tracking import NoRun, Run
from mammo_pd.training.devices import compile_here, count_devices, make_fabric
from mammo_pd.training.fitting import does_not_fit, find_batch_size, refuse_too_large
from mammo_pd.training.loop import Part, Task, fit
from mammo_pd.training.steps import (
    count_step_parts,
    keys_of,
    make_loader,
    parts_of,
    sampler_of,
)

# Images from which the tissue's share of the canvas is told.
_TISSUE_SAMPLE = 64


def train(
    store: Path | None,
    runs: Path,
    config: RunConfig,
    *,
    resume: Path | None = None,
    say: Callable[[str], None] = print,
) -> Path | None:
    """Train, and write a run folder: configuration, checkpoints, history, MLflow record.

    Args:
        store: made by preprocess; None with ``resume`` for where it was trained from.
        runs: the folder of runs.
        config: everything that decides the run; with ``resume`` the run's own is taken.
        resume: a run folder to go on with.
        say: takes one line for people.

    Returns:
        The run's folder; None in the processes beside the first.

    Raises:
        InputError: no store, a split with a leak or a class missing, a canvas that does not fit, a
            run to be resumed that rests on another split or store.
    """
    begun = False
    if resume is not None:
        facts = read_run(resume)
        config = load_config(resume / "config.yaml")
        store = store or Path(facts["store"])
        runs = resume.parent
        # Everything is in there: the weights it began with need not be at hand any more.
        begun = (resume / "last.safetensors").is_file()
    assert store is not None
    devices, nodes = count_devices(config)
    _refuse_uneven(config, devices * nodes)
    paths = open_store(store)
    manifest, split = _read_or_make_split(paths, config, say)
    rows = rows_of(manifest, split, config.data.fold)
    rows = rows[rows["label"].notna()]
    _refuse_one_class(rows, config.data.split)
    labels_hash = hash_of_labels(rows)
    left_out = count_in_no_part(manifest, split)

    img_size = resolve_img_size(
        config.data.res, build_plain(config.model.name).patch_size, _largest(rows)
    )
    fabric = make_fabric(config, devices=devices, nodes=nodes)
    fabric.launch()
    fabric.seed_everything(config.training.seed, verbose=False)
    is_global_zero = fabric.global_rank == 0
    say_if = say if is_global_zero else _say_nothing
    model = build_vit(
        config.model.name,
        img_size,
        weights=None if begun else config.model.weights,
        drop_path_rate=config.model.drop_path_rate,
        global_pool=config.model.global_pool,
        checkpointing=config.model.checkpointing,
    )
    compiled = compile_here(config, say_if)
    train_rows = rows[rows["split"] == Split.TRAIN]
    train_set = MammogramDataset(paths, train_rows, img_size, _targets(train_rows))
    if config.training.batch_size == "auto":
        found = find_batch_size(fabric, model, train_set, img_size, config, compiled)
        config = config.replace(training=config.training.replace(batch_size=found))
        say_if(f"batch size {found}: the largest that fits")
    refuse_too_large(fabric, config, img_size, model)
    sampler = sampler_of(img_size, model, config, compiled)
    if compiled:
        model.compile_blocks()
    schedule = config.patch_dropout.schedule
    kept = choose_num_keep(model.num_tokens, schedule.base, model.num_prefix)

    if resume is None:
        folder = runs / str(fabric.broadcast(_new_run_id()))
        facts = _describe_run(folder, store, paths, split, config, img_size, model, kept, fabric)
        facts["labels_hash"] = labels_hash
        if is_global_zero:
            folder.mkdir(parents=True)
            write_text(folder / "config.yaml", dump_config(config))
            # From here on the run can be resumed, if only from its start.
            _write_facts(folder, facts)
    else:
        folder = resume
        _refuse_changed(facts, split, paths, labels_hash)
    say_if(
        f"{config.model.name}, canvas {img_size[0]}x{img_size[1]}, {_kept_words(config, model)} of "
        f"{model.num_tokens} patches kept; {_count(rows)}; {facts['environment']['device']}, "
        f"{fabric.strategy.precision.precision}"
    )
    if config.training.known_batch_size > len(train_set):
        say_if(
            f"warning: a batch of {config.training.known_batch_size} takes all {len(train_set)} "
            "images of the part train at once: an epoch is one step"
        )
    if left_out:
        say_if(
            f"warning: {left_out} usable images are in no part of the split {split.name} (they "
            "came after it was made); to use them: mammo-pd split --name NEW"
        )
    if is_global_zero and config.patch_dropout.draw == Draw.TISSUE:
        share = _tissue_share(train_set, sampler, fabric.device)
        kept_share = min(1.0, kept / model.num_tokens / share)
        say(f"tissue is {share:.0%} of the canvas; {kept_share:.0%} of it is kept")
    task = _task(fabric, paths, rows, img_size, model, train_set, sampler, config)
    if not is_global_zero:
        fit(fabric, model, model.vit, task, config.training, folder, NoRun(), say=say_if)
        return None
    with Run(runs, folder.name, facts.get("mlflow_run_id")) as tracker:
        facts["mlflow_run_id"] = tracker.run_id
        _write_facts(folder, facts)
        tracker.describe(
            parameters=json.loads(json.dumps(_parameters(config, img_size, model, kept))),
            tags={
                "split_hash": split.hash,
                "store_fingerprint": facts["store_fingerprint"],
                "mammo_pd_version": __version__,
                **{f"environment.{name}": str(v) for name, v in facts["environment"].items()},
            },
        )
        tracker.keep("config.yaml", dump_config(_without_paths(config)))
        history = fit(fabric, model, model.vit, task, config.training, folder, tracker, say=say)
        table = pd.DataFrame(history).to_csv(index=False)
        write_text(folder / "history.csv", table)
        tracker.keep("history.csv", table)
    _write_facts(folder, {**facts, "finished": _now()})
    return folder


def read_run(folder: Path) -> dict[str, Any]:
    """What a run was made with.

    Raises:
        InputError: not a run folder.
    """
    file = folder / "run.json"
    try:
        facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} is not a run ({file.name} cannot be read: {error}); name a folder that "
            "mammo-pd train made."
        ) from error
    return facts


def latest_run(runs: Path) -> Path:
    """The run that was started last.

    Raises:
        InputError: there is none.
    """
    started = sorted(file.parent for file in runs.glob("*/run.json")) if runs.is_dir() else []
    if not started:
        raise InputError(
            f"there is no run in {runs}; train one with: mammo-pd train --res 1024 --keep 0.25"
        )
    return started[-1]


def rows_of(manifest: pd.DataFrame, split: SplitTable, fold: int | None) -> pd.DataFrame:
    """The usable rows of the manifest that a split names, with the column ``split``."""
    usable = manifest[manifest["status"] == Status.OK]
    parts = split.table[["image_id"]].assign(split=split.parts(fold))
    # A column of that name can come from the label table; the split's own counts.
    usable = usable.drop(columns="split", errors="ignore")
    return usable.merge(parts, on="image_id").sort_values("image_id", ignore_index=True)


class _TrainBatches:
    """The training loader with its sampler's epoch."""

    def __init__(self, loader: BatchLoader, batches: EpochBatches) -> None:
        self._loader = loader
        self._batches = batches

    @property
    def waited(self) -> float:
        return self._loader.waited

    def set_epoch(self, epoch: int) -> None:
        self._batches.epoch = epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Any:
        return iter(self._loader)


def _task(
    fabric: Fabric,
    paths: StorePaths,
    rows: pd.DataFrame,
    img_size: tuple[int, int],
    model: PatchViT,
    train_set: MammogramDataset,
    sampler: PatchSampler,
    config: RunConfig,
) -> Task:
    training, schedule = config.training, config.patch_dropout.schedule
    batch_size = training.known_batch_size
    val_rows = rows[rows["split"] == Split.VAL].reset_index(drop=True)
    val_set = MammogramDataset(paths, val_rows, img_size)
    rank, world = fabric.global_rank, fabric.world_size
    batches = EpochBatches(
        len(train_set), batch_size, seed=training.seed, rank=rank, world_size=world
    )
    device = fabric.device

    def train_parts(batch: ImageBatch, epoch: int, step: int) -> list[Part]:
        keys = keys_of(train_set, batch.rows, training.seed, epoch, device)
        rate = schedule.keep_rate(epoch, training.epochs, step, training.seed)
        num_keep = choose_num_keep(model.num_tokens, rate, model.num_prefix)
        count = min(len(keys), count_step_parts(config, rate))
        return parts_of(batch, keys, num_keep, sampler, count, device)

    def val_input(batch: ImageBatch) -> tuple[Tensor, Tensor, Tensor]:
        return (*sampler.for_evaluation(batch.to(device)), batch.rows)

    def val_metrics(scores: npt.NDArray[np.float64]) -> dict[str, float]:
        scored = val_rows.assign(score=scores)
        return {f"val_auc_{level}": _auc_at(scored, level) for level in (Level.IMAGE, Level.BREAST)}

    # All patches at once take more room than the kept ones.
    share = max(1, int(batch_size / world / training.grad_accum_steps * schedule.base))
    mine = range(rank, len(val_set), world)
    val_batches = [list(mine[start : start + share]) for start in range(0, len(mine), share)]
    workers = config.data.workers
    return Task(
        train=_TrainBatches(make_loader(train_set, batches, workers, device), batches),
        train_parts=train_parts,
        does_not_fit=lambda: does_not_fit(device, config, img_size, model, world),
        val=make_loader(val_set, val_batches, workers, device),
        val_input=val_input,
        val_metrics=val_metrics,
    )


def _kept_words(config: RunConfig, model: PatchViT) -> str:
    """How many patches are kept, over the epochs."""
    schedule = config.patch_dropout.schedule
    first, last = (
        choose_num_keep(model.num_tokens, rate, model.num_prefix)
        for rate in (schedule.first, schedule.last)
    )
    words = "a random number" if schedule.random else str(first)
    if last != first:
        words += f" to {last}"
    if schedule.full_epochs:
        some = "epoch" if schedule.full_epochs == 1 else f"{schedule.full_epochs} epochs"
        words += f" (in the last {some} all)"
    return words


def _tissue_share(dataset: MammogramDataset, sampler: PatchSampler, device: torch.device) -> float:
    """The share of the canvas's patches that hold breast, over a few training images."""
    step = max(1, len(dataset) // _TISSUE_SAMPLE)
    shares = [
        sampler.tissue(dataset.read([row]).to(device)).float().mean().item()
        for row in range(0, len(dataset), step)
    ]
    return float(np.mean(shares))


def _auc_at(scored: pd.DataFrame, level: Level) -> float:
    units = aggregate(scored, level, Aggregation.MEAN)
    return auc(units["label"], units["score"])


def _read_or_make_split(
    paths: StorePaths, config: RunConfig, say: Callable[[str], None]
) -> tuple[pd.DataFrame, SplitTable]:
    manifest = read_manifest(paths.manifest, status=None)
    name = config.data.split
    if name == "default" and not (paths.splits / "default.csv").is_file():
        say("no split was made yet; making the default one: 70/10/20 % of the patients, seed 0")
        split_store(paths, say=say)
    split = read_split(paths.splits, name)
    check_split(split, manifest)
    return manifest, split


def hash_of_labels(rows: pd.DataFrame) -> str:
    """A hash of which images are labelled, and how; it changes if one label does."""
    known = rows[rows["label"].notna()]
    lines = known["image_id"] + "," + known["label"].astype(str)
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def count_in_no_part(manifest: pd.DataFrame, split: SplitTable) -> int:
    """How many usable images a split does not name."""
    usable = manifest.loc[manifest["status"] == Status.OK, "image_id"]
    return int((~usable.isin(split.table["image_id"])).sum())


def _refuse_uneven(config: RunConfig, devices: int) -> None:
    batch = config.training.batch_size
    if isinstance(batch, int) and batch % devices:
        raise InputError(
            f"--batch-size {batch} cannot be shared evenly by {devices} devices; the nearest "
            f"are {max(1, batch // devices) * devices} and {(batch // devices + 1) * devices}."
        )


def _refuse_one_class(rows: pd.DataFrame, split: str) -> None:
    for part in Split:
        labels = rows.loc[rows["split"] == part, "label"]
        for label, word in ((1, "positive"), (0, "negative")):
            if not (labels == label).any():
                raise InputError(
                    f"the part {part} of the split {split} has no {word} image, so neither "
                    "training nor an AUC is possible; check the labels (mammo-pd preprocess "
                    "--labels), or make another split: mammo-pd split --name NEW"
                )


def _targets(rows: pd.DataFrame) -> npt.NDArray[np.float32]:
    return rows[["label"]].to_numpy(np.float32, na_value=np.nan)


def _largest(rows: pd.DataFrame) -> tuple[int, int]:
    return int(rows["crop_height"].max()), int(rows["crop_width"].max())


def _count(rows: pd.DataFrame) -> str:
    sizes = rows.groupby("split")["label"].agg(["size", "sum"])
    return ", ".join(
        f"{part} {n} ({positive} positive)" for part, n, positive in sizes.itertuples()
    )


def _new_run_id() -> str:
    # Sorted by name is sorted by time.
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _describe_run(
    folder: Path,
    store: Path,
    paths: StorePaths,
    split: SplitTable,
    config: RunConfig,
    img_size: tuple[int, int],
    model: PatchViT,
    kept: int,
    fabric: Fabric,
) -> dict[str, Any]:
    made = read_store_info(paths)
    on_gpu = fabric.device.type == "cuda"
    return {
        "run_id": folder.name,
        "started": _now(),
        "store": str(store.resolve()),
        "store_fingerprint": made["fingerprint"],
        "label_definition": made.get("labels", {}).get("definition"),
        "split": split.name,
        "split_hash": split.hash,
        "fold": config.data.fold,
        "model": config.model.name,
        "canvas": list(img_size),
        "num_tokens": model.num_tokens,
        "num_keep": kept,
        "environment": {
            "mammo_pd": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name(fabric.device) if on_gpu else "CPU",
            "devices": fabric.world_size,
        },
    }


def _parameters(
    config: RunConfig, img_size: tuple[int, int], model: PatchViT, kept: int
) -> dict[str, Any]:
    parameters = _without_paths(config).model_dump(mode="json")
    parameters["canvas"] = f"{img_size[0]}x{img_size[1]}"
    parameters["num_tokens"], parameters["num_keep"] = model.num_tokens, kept
    return parameters


def _without_paths(config: RunConfig) -> RunConfig:
    """The configuration as MLflow may see it: a path of this machine stays on it."""
    weights = config.model.weights
    if weights in (None, "timm"):
        return config
    return config.replace(model=config.model.replace(weights=Path(str(weights)).name))


def _refuse_changed(
    facts: dict[str, Any], split: SplitTable, paths: StorePaths, labels_hash: str
) -> None:
    if facts["split_hash"] != split.hash:
        raise InputError(
            f"the run {facts['run_id']} was started on another split {split.name!r}; restore that "
            "split, or train anew without --resume."
        )
    if facts["store_fingerprint"] != read_store_info(paths)["fingerprint"]:
        raise InputError(
            f"the run {facts['run_id']} was started on a store made with other settings; train "
            "anew without --resume."
        )
    if facts["labels_hash"] != labels_hash:
        raise InputError(
            f"the labels in {paths.root} have changed since the run {facts['run_id']} was started; "
            "put them back with mammo-pd preprocess --labels, or train anew without --resume."
        )


def _write_facts(folder: Path, facts: dict[str, Any]) -> None:
    write_text(folder / "run.json", json.dumps(facts, indent=2) + "\n")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _say_nothing(line: str) -> None:
    pass
