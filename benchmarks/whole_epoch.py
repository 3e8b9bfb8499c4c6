"""Measure whole epochs of `mammo-pd train` on a GPU beside the bare step: what is lost, and where.

    python benchmarks/whole_epoch.py [benchmarks/results/whole_epoch_MACHINE_DATE.md]
    python benchmarks/whole_epoch.py --small    # the same path at a tiny size, on a CPU too

A store of noise in the outline of a breast, its files linked many times as other patients, so that
an epoch is long and yet fits in the page cache; a tenth of the images validates. The fourth and
last epoch counts: validation at the training keep rate, best weights and state written, as by
default. "Bare" is the median step on one batch that lies on the device.
"""

import argparse
import os
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa

from mammo_pd.config import load_config
from mammo_pd.data.manifest import MANIFEST_SCHEMA, write_manifest
from mammo_pd.data.split_store import split_store
from mammo_pd.data.store import StorePaths, create_or_match
from mammo_pd.perf.measure import Bench
from mammo_pd.perf.noise_images import write_noise_images
from mammo_pd.terms import Split
from mammo_pd.training.loop import fit
from mammo_pd.training.setup import RunSetup
from mammo_pd.training.train import start_run

# Model, image size, batch, images in the store.
CASES = [
    ("vit_small_patch16_224", (512, 384), 64, 20_000),
    ("vit_small_patch16_224", (512, 384), 64, 2_000),
    ("vit_small_patch16_224", (1024, 1024), 128, 20_000),
    ("vit_small_patch16_224", (3328, 2560), 8, 1_600),
]
SMALL = [("vit_tiny_patch16_224", (96, 64), 8, 60)]
EPOCHS = 4


def manifest_row(number: int, image_id: str, shape: tuple[int, int]) -> dict[str, Any]:
    """The row of a woman's only image, every third of which is positive."""
    return dict.fromkeys(MANIFEST_SCHEMA.names) | {
        "image_id": image_id,
        "patient_id": f"P{number}",
        "exam_id": f"E{number}",
        "status": "ok",
        "laterality": "L",
        "view": "CC",
        "label": int(number % 3 == 0),
        "crop_height": shape[0],
        "crop_width": shape[1],
    }


def make_store(root: Path, img_size: tuple[int, int], count: int) -> StorePaths:
    """A store of noise: one image a patient, every third of them positive."""
    paths = create_or_match(root, {"noise": img_size})
    once = write_noise_images(paths, img_size)["image_id"].tolist()
    rows: list[dict[str, Any]] = []
    for number in range(count):
        image_id = f"{number:020x}"
        place = paths.image(image_id)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(paths.image(once[number % len(once)]), place)
        rows.append(manifest_row(number, image_id, img_size))
    write_manifest(paths.manifest, rows, pa.schema([]))
    split_store(paths, fractions=(0.88, 0.088, 0.032), say=lambda _: None)
    return paths


def measure(name: str, img_size: tuple[int, int], batch_size: int, count: int) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = make_store(Path(scratch) / "store", img_size, count)
        given = {
            "data.res": f"{img_size[0]}x{img_size[1]}",
            "model.name": name,
            "model.drop_path_rate": 0.0,
            "training.batch_size": batch_size,
            "training.epochs": EPOCHS,
        }
        with Bench(store=paths.root, steps=20) as machine:
            bare = machine.ours(
                name, img_size, 0.25, batch_size, compiled=machine.on_gpu, end_to_end=False
            )
        setup = RunSetup.build(paths.root, load_config(None, given), say=print)
        history = fit(setup, start_run(Path(scratch) / "runs", setup))
        last = history[-1]
        train, val = (len(setup.parts[part]) for part in (Split.TRAIN, Split.VAL))
        whole, within = last["epoch_images_per_second"], last["train_images_per_second"]
        return (
            f"| {name} {img_size[0]}x{img_size[1]} | {batch_size} | {train} + {val} "
            f"| {bare.images_per_second:.4g} | {within:.4g} | {whole:.4g} "
            f"| {within / bare.images_per_second:.3f} | {whole / bare.images_per_second:.3f} "
            f"| {last['epoch_seconds']:.2f} | {last['train_wait_share']:.1%} |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    lines = [
        "| model and input | batch | images, train + val | bare images/s | images/s in training "
        "| images/s of the epoch | training over bare | epoch over bare | epoch, s | waiting |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in SMALL if options.small else CASES:
        lines.append(measure(*case))
        print(lines[-1], flush=True)
    with Bench(steps=2) as machine:
        summary = machine.describe_machine()["summary"]
    text = "\n".join(
        [
            f"# Whole epochs, {date.today()}",
            "",
            f"{summary} {len(os.sched_getaffinity(0))} cores. Keep .25, compiled and captured, the "
            "page cache warm.",
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
