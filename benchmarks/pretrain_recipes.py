"""Does pretraining on the archive itself help? All folds, from four starts, in pieces.

    python benchmarks/pretrain_recipes.py pack UNLABELLED_STORE PACK.tar [--size 518x392]
    python benchmarks/pretrain_recipes.py join STORE PACK.tar JOINT [--split five]
    python benchmarks/pretrain_recipes.py train JOINT PLAN.json OUT [--folds 0 1] [--minutes 8]
    python benchmarks/recipes.py table OUT --against dinov2

`join` makes one store of a labelled one and of images whose labels are left out: its split has the
folds of the labelled store's, and one more, of the other women, that is never tested. So a fold's
women are pretrained on by no run that is tested on them: `train` checks that by their IDs.

PLAN.json: "pretraining": {NAME: {"set": {...}}}, and "training": {NAME: {"set": {...}, "seeds":
[0], "from": a pretraining's NAME}}. Of each fold, pretrainings come first, and what starts from
one is trained once that is done. What has no time is stopped as by Ctrl-C and goes on when the same
command is typed again; what is finished is not done twice. MLflow need not be installed.
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from gpus import see_only
from PIL import Image

from mammo_pd.data.image_file import write_image_file
from mammo_pd.data.manifest import MANIFEST_SCHEMA, read_manifest
from mammo_pd.data.splits import SplitTable, check_split, read_split, write_split
from mammo_pd.data.store import StorePaths, open_store, read_pyramid_level
from mammo_pd.imaging.pyramid import area_average, build_pyramid, fitted_size
from mammo_pd.orphans import end_with_parent

# Of a job that was told to stop: to write its checkpoint.
_GRACE = 45


# ---- the images


def pack(store: Path, out: Path, size: str) -> None:
    """Images at the size of the model's input, 8 bits, with their rows of the manifest."""
    paths = open_store(store)
    rows = read_manifest(paths.manifest)
    height, width = map(int, size.split("x"))
    heights, widths = [], []
    with tarfile.open(out, "w") as tar:
        for image_id in rows["image_id"]:
            pixels = read_pyramid_level(paths, image_id, "native")
            scale = max(pixels.shape[0] / height, pixels.shape[1] / width)
            if scale > 1:
                long_side = round(max(pixels.shape) / scale)
                pixels = area_average(pixels, fitted_size(pixels.shape, long_side))
            # What is breast stays above 0, which is air.
            grey = np.where(pixels > 0, np.maximum(pixels >> 8, 1), 0).astype(np.uint8)
            heights.append(grey.shape[0])
            widths.append(grey.shape[1])
            _add(tar, f"{image_id}.png", _png(grey))
        rows = rows.assign(crop_height=heights, crop_width=widths)
        table = io.BytesIO()
        rows.to_parquet(table)
        _add(tar, "manifest.parquet", table.getvalue())
    print(f"wrote {out}: {len(rows)} images, {out.stat().st_size / 2**20:.1f} MiB")


def _png(grey: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG", optimize=True)
    return file.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def join(store: Path, packed: Path, out: Path, split: str) -> None:
    """One store of both; pixels of the labelled one are linked."""
    joint = StorePaths(out)
    out.mkdir(parents=True)
    with tarfile.open(packed) as tar:
        held = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    others = pd.read_parquet(io.BytesIO(held.pop("manifest.parquet")))
    # A manifest of an earlier version lacks columns that training does not read.
    labelled = pd.read_parquet(store / "manifest.parquet")
    names = [*MANIFEST_SCHEMA.names, *(c for c in labelled if c not in MANIFEST_SCHEMA.names)]
    others = others.assign(label=pd.NA)[[name for name in names if name in others]]
    manifest = pd.concat([labelled, others], ignore_index=True).reindex(columns=names)
    _write_as(manifest, labelled, joint.manifest)
    # What preprocessing refused has a row, and no pixels.
    for image_id in labelled.loc[labelled["status"] == "ok", "image_id"]:
        place = joint.image(image_id)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(StorePaths(store).image(image_id).resolve(strict=True))
    for image_id in others["image_id"]:
        grey = np.asarray(Image.open(io.BytesIO(held[f"{image_id}.png"])))
        place = joint.image(image_id)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_image_file(place, build_pyramid(grey.astype(np.uint16) * 257))
    shutil.copy(store / "store.json", joint.info)
    table = read_split(store / "splits", split).table
    more = others[["image_id", "patient_id"]].assign(fold=int(table["fold"].max()) + 1, val_of="")
    table = pd.concat([table, more]).sort_values("image_id", ignore_index=True)
    joint.splits.mkdir()
    write_split(SplitTable.of(split, table), joint.splits, {"joined": True})
    check_split(read_split(joint.splits, split), read_manifest(joint.manifest, status=None))
    print(f"wrote {out}: {len(labelled)} labelled images and {len(others)} more")


def _write_as(manifest: pd.DataFrame, labelled: pd.DataFrame, file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    extra = [name for name in manifest if name not in MANIFEST_SCHEMA.names]
    own = pa.Schema.from_pandas(labelled[extra], preserve_index=False)
    schema = pa.schema([*MANIFEST_SCHEMA, *own])
    pq.write_table(pa.Table.from_pandas(manifest, schema, preserve_index=False), file)


# ---- the runs


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        name: of its recipe.
        fold: that is tested.
        seed: of the run.
        settings: by the keys of the configuration.
        start: the name of the pretraining that it starts from; None for what its settings say.
        scored: whether it is scored on its test women.
    """

    name: str
    fold: int
    seed: int
    settings: dict[str, Any]
    start: str | None
    scored: bool

    def __str__(self) -> str:
        return f"{self.name}.{self.fold}.{self.seed}"


def _jobs(plan: dict[str, Any], folds: list[int]) -> list[Job]:
    jobs = []
    for fold in folds:
        for name, recipe in plan["pretraining"].items():
            settings = {"training.objective": "masked_autoencoder", **recipe["set"]}
            jobs.append(Job(name, fold, 0, settings, None, scored=False))
        for name, recipe in plan["training"].items():
            for seed in recipe.get("seeds", [0]):
                given = recipe.get("from")
                jobs.append(Job(name, fold, seed, recipe["set"], given, scored=True))
    return jobs


def _folder(out: Path, job: Job) -> Path:
    """Of a run; a pretraining and what it starts may have one name."""
    kind = "training" if job.scored else "pretraining"
    return out / kind / job.name / f"{job.fold}.{job.seed}"


def _work(
    gpu: int | None, job: Job, store: Path, out: Path, split: str, shares: dict[str, int]
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    end_with_parent()
    if gpu is not None:
        see_only(gpu)
    line: dict[str, Any] = {"name": job.name, "fold": job.fold, "seed": job.seed}
    try:
        line |= _run(job, store, out, split)
    except KeyboardInterrupt:
        return
    except Exception:
        line["error"] = traceback.format_exc()[-1500:]
    name = "results.jsonl" if job.scored else "pretraining.jsonl"
    told = line.get("error") or f"{line['seconds']:.0f} s, {line['best']}"
    print(f"{job}: {told}", flush=True)
    # One write of one line: other processes append to the same file.
    with (out / name).open("a") as file:
        file.write(json.dumps({**line, **shares}) + "\n")
    if "error" not in line:
        folder = _folder(out, job)
        for weights in ("last", "model") if job.scored else ("last",):
            (folder / f"{weights}.safetensors").unlink(missing_ok=True)


def _run(job: Job, store: Path, out: Path, split: str) -> dict[str, Any]:
    from mammo_pd.cli.pretrain import write_reconstructions
    from mammo_pd.config import load_config
    from mammo_pd.inference.predict import predict
    from mammo_pd.training.loop import fit
    from mammo_pd.training.runs import RunFolder
    from mammo_pd.training.setup import RunSetup
    from mammo_pd.training.train import reopen_run, start_run

    folder = _folder(out, job)
    if (folder / "run.json").is_file():
        setup, run = reopen_run(folder, store=store, say=lambda _: None)
    else:
        own = {"data.split": split, "data.fold": job.fold, "training.seed": job.seed}
        own["data.workers"] = 2
        if job.start is not None:
            pretrained = out / "pretraining" / job.start / f"{job.fold}.0"
            own["model.weights"] = str(pretrained / "model.safetensors")
        config = load_config(None, own | job.settings)
        setup = RunSetup.build(store, config, say=lambda _: None)
        if job.start is not None:
            _refuse_test_women(out / "pretraining" / job.start / f"{job.fold}.0.csv", setup)
        run = start_run(folder.parent, setup, run_id=folder.name)
    history = fit(setup, run)
    run = RunFolder.open(run.path)
    if job.scored:
        table = predict(run, store=store, say=lambda _: None).table
        table.to_csv(out / f"{job}.csv", index=False)
    else:
        rows = setup.parts["train"][["image_id", "patient_id"]]
        rows.to_csv(folder.with_name(folder.name + ".csv"), index=False)
        try:
            page = write_reconstructions(run, store)
            shutil.copy(page, out / f"reconstructions.{job.name}.{job.fold}.html")
        except Exception:
            # What starts from the weights need not wait for a page to look at.
            traceback.print_exc()
    return {
        # Also of a run that was stopped and gone on with.
        "seconds": sum(epoch["epoch_seconds"] for epoch in history),
        "gib": max(epoch["train_memory_gib"] for epoch in history),
        "images_per_second": float(
            np.median([epoch["train_images_per_second"] for epoch in history])
        ),
        "best": run.info.validation,
        "history": history if job.scored else [history[0], history[-1]],
    }


def _refuse_test_women(file: Path, setup: Any) -> None:
    seen = pd.read_csv(file, dtype=str)
    test = setup.parts["test"]
    for name in ("image_id", "patient_id"):
        both = set(seen[name]) & set(test[name])
        assert not both, f"{len(both)} of {name} were pretrained on and are tested"


def train(
    store: Path,
    plan: Path,
    out: Path,
    *,
    split: str,
    folds: list[int],
    at_once: int,
    minutes: float,
) -> None:
    """Pretrain, train and score what there is time for; say what had none."""
    import torch

    end = time.monotonic() + 60 * minutes
    gpus = torch.cuda.device_count()
    shares = {"at_once": at_once, "gpus": gpus}
    out.mkdir(parents=True, exist_ok=True)
    done = _finished(out)
    every = _jobs(json.loads(plan.read_text()), folds)
    waiting = [job for job in every if (job.scored, str(job)) not in done]
    context = multiprocessing.get_context("spawn")
    running: dict[Any, Job] = {}
    started = 0
    while waiting or running:
        for process in [process for process in running if not process.is_alive()]:
            running.pop(process)
        done = _finished(out)
        ready = [j for j in waiting if j.start is None or (False, f"{j.start}.{j.fold}.0") in done]
        if ready and len(running) < at_once and time.monotonic() < end:
            job = ready[0]
            waiting.remove(job)
            gpu = started % gpus if gpus else None
            process = context.Process(target=_work, args=(gpu, job, store, out, split, shares))
            process.start()
            running[process] = job
            started += 1
            continue
        if time.monotonic() >= end or not (running or ready):
            break
        time.sleep(0.2)
    for process in running:
        # Each saves where it is.
        os.kill(process.pid, signal.SIGTERM)
    for process in running:
        process.join(_GRACE)
        process.kill()
    done = _finished(out)
    left = [str(job) for job in every if (job.scored, str(job)) not in done]
    if left:
        print(f"{len(left)} runs are not finished: {' '.join(left)}")


def _finished(out: Path) -> set[tuple[bool, str]]:
    """Whether scored, and name, fold and seed, of the runs that are finished without an error."""
    found = set()
    for file, scored in (("results.jsonl", True), ("pretraining.jsonl", False)):
        if (out / file).is_file():
            for line in map(json.loads, (out / file).open()):
                if "error" not in line:
                    found.add((scored, f"{line['name']}.{line['fold']}.{line['seed']}"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    of_pack, of_join, of_train = map(commands.add_parser, ("pack", "join", "train"))
    for command, names in (
        (of_pack, ("store", "out")),
        (of_join, ("store", "packed", "out")),
        (of_train, ("store", "plan", "out")),
    ):
        for name in names:
            command.add_argument(name, type=Path)
    of_pack.add_argument("--size", default="518x392")
    of_join.add_argument("--split", default="five")
    of_train.add_argument("--split", default="five")
    of_train.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    of_train.add_argument("--at-once", type=int, default=1)
    of_train.add_argument("--minutes", type=float, default=600.0)
    given = vars(parser.parse_args())
    {"pack": pack, "join": join, "train": train}[given.pop("command")](**given)


if __name__ == "__main__":
    main()
