"""Measure `mammo-pd train` on a store of phantoms beside the bare step on the same images.

    python benchmarks/train_end_to_end.py [benchmarks/results/train_end_to_end_MACHINE_DATE.md]
    python benchmarks/train_end_to_end.py --small    # the same path at a tiny size, on a CPU too

Phantoms are written as DICOM files at their native size, preprocessed, and multiplied by hard
links, so that an epoch is long and yet fits in the page cache. The second epoch of a run counts,
since the first one compiles. "bare" is the median step on one batch that is already on the device.
"""

import argparse
import os
import tempfile
from datetime import date
from pathlib import Path

import pandas as pd

from mammo_pd.config import RunConfig, load_config
from mammo_pd.data.labels import read_labels
from mammo_pd.data.split_store import split_store
from mammo_pd.data.store import open_store
from mammo_pd.ingest.preprocess import preprocess
from mammo_pd.perf.measure import Bench
from mammo_pd.phantoms import PhantomSettings, write_phantoms
from mammo_pd.training.train import train
from mammo_pd.wording import percent

# Model, image size, batch, and copies of each image.
CASES = [
    ("vit_small_patch16_224", (1024, 1024), 128, 96),
    ("vit_small_patch16_224", (3328, 2560), 8, 4),
]
SMALL = [("vit_tiny_patch16_224", (96, 64), 8, 2)]


def make_store(folder: Path, women: int, scale: float) -> Path:
    """Preprocess phantoms into a store."""
    settings = PhantomSettings(patients=women, scale=scale, prevalence=0.5)
    cores = len(os.sched_getaffinity(0))
    table = write_phantoms(folder / "dicom", settings, processes=cores)
    store = folder / "store"
    preprocess(
        folder / "dicom", store, labels=read_labels(table), workers=cores, say=lambda _: None
    )
    return store


def multiply(store: Path, times: int) -> str:
    """Copy every image ``times`` times as other patients, by hard links; gives the split's name."""
    paths = open_store(store)
    once = pd.read_parquet(paths.manifest)
    once = once[(once["status"] == "ok") & ~once["patient_id"].str.contains("-")]
    copies = []
    for number in range(times):
        ids = once["image_id"] + f"-{number}"
        for image_id, copy in zip(once["image_id"], ids, strict=True):
            place = paths.image(copy)
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                os.link(paths.image(image_id), place)
        names = {name: once[name] + f"-{number}" for name in ("patient_id", "exam_id")}
        copies.append(once.assign(image_id=ids, pixel_hash=None, **names))
    pd.concat([once, *copies]).to_parquet(paths.manifest)
    name = f"times{times}"
    split_store(paths, name=name, fractions=(0.9, 0.05, 0.05), say=lambda _: None)
    return name


def make_config(name: str, img_size: tuple[int, int], batch_size: int, split: str) -> RunConfig:
    """Two epochs with the default settings, except stochastic depth, which the bare step lacks."""
    return load_config(
        None,
        {
            "data.res": f"{img_size[0]}x{img_size[1]}",
            "data.split": split,
            "model.name": name,
            "model.drop_path_rate": 0.0,
            "training.batch_size": batch_size,
            "training.epochs": 2,
        },
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    lines = [
        "| model | image size | batch | images in the epoch | bare images/s | train images/s "
        "| of the bare step | waiting |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        women, scale = (4, 0.1) if options.small else (36, 1.0)
        store = make_store(folder, women, scale)
        for name, img_size, batch_size, times in SMALL if options.small else CASES:
            split = multiply(store, times)
            config = make_config(name, img_size, batch_size, split)
            run = train(store, folder / "runs", config, say=print)
            assert run is not None
            history = pd.read_csv(run.history)
            parts = pd.read_csv(store / "splits" / f"{split}.csv", comment="#")["split"]
            with Bench(store=store, steps=2 if options.small else 20) as machine:
                bare = machine.ours(
                    name, img_size, 0.25, batch_size, compiled=machine.on_gpu, end_to_end=False
                )
                summary = machine.describe_machine()["summary"]
            speed = history["train_images_per_second"].iloc[-1]
            lines.append(
                f"| {name} | {img_size[0]}x{img_size[1]} | {batch_size} "
                f"| {(parts == 'train').sum()} "
                f"| {bare.images_per_second:.4g} | {speed:.4g} "
                f"| {speed / bare.images_per_second:.3f} "
                f"| {percent(history['train_wait_share'].iloc[-1], 1)} |"
            )
    text = "\n".join(
        [
            f"# Training end to end on phantoms, {date.today()}",
            "",
            f"{summary} {len(os.sched_getaffinity(0))} cores. Keep .25, native phantoms of about "
            "2560x2048 pixels, the page cache warm.",
            "",
            *lines,
            "",
        ]
    )
    print(text)
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
