"""Measure training from a store that is not in the page cache, beside the bare step.

    python benchmarks/cold_store.py --gb 40 --folder DIR [--out RESULTS.md]
    python benchmarks/cold_store.py --small     # the same path at a tiny size, on a CPU too

Makes a store in DIR whose pixels have the given size: the images of --store, or phantoms, again and
again, each with noise of its own on the breast, at the level of --res alone. An archive that is
larger than memory reads from the disk in every epoch; here the same comes of telling the kernel to
drop each file's pages (posix_fadvise, no root), and by asking it for some pages that must not wait
for a disk (RWF_NOWAIT) the script sees whether it did. "Alone" is the loader with nothing computed,
"bare" the median step on one batch that lies on the device. Training is `mammo-pd train`'s loop:
its first epoch, cold, compiles and counts for nothing; before the second the pages are dropped once
more; the third finds what the second read. What is known is written to RESULTS.md at once.
"""

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from mammo_pd.config import load_config
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.image_file import write_image_file
from mammo_pd.data.kept_levels import keep_levels
from mammo_pd.data.labels import read_labels
from mammo_pd.data.manifest import read_manifest, write_manifest
from mammo_pd.data.split_store import split_store
from mammo_pd.data.store import (
    StorePaths,
    choose_pyramid_level,
    create_or_match,
    open_store,
    read_pyramid_level,
)
from mammo_pd.ingest.preprocess import preprocess
from mammo_pd.perf.measure import Bench
from mammo_pd.perf.noise_images import only_image
from mammo_pd.phantoms import PhantomSettings, write_phantoms
from mammo_pd.training.loop import fit_untracked
from mammo_pd.training.setup import RunSetup, make_loader
from mammo_pd.training.train import start_run
from mammo_pd.wording import percent

_EPOCHS = 3
# Pages that are asked for, evenly spread over the files.
_PROBES = 500


class Page:
    """Lines that are printed and written as they come, so that a call cut off leaves what it had.

    Args:
        out: file; None to print alone.
    """

    def __init__(self, out: Path | None) -> None:
        self._out = out
        self._lines: list[str] = []
        self._started = time.monotonic()

    def add(self, *lines: str) -> None:
        """Add lines at the end; the seconds since the start are printed with each."""
        for line in lines:
            print(f"[{time.monotonic() - self._started:4.0f} s] {line}", flush=True)
        self._lines += lines
        if self._out is not None:
            self._out.write_text("\n".join([*self._lines, ""]))


@dataclass(frozen=True)
class Rate:
    """Images and bytes per second."""

    images: float
    bytes: float


def originals(store: Path | None, scratch: Path, scale: float) -> StorePaths:
    """The images that are repeated: those of a store, or of phantoms."""
    if store is None:
        store = scratch / "originals"
        table = write_phantoms(
            scratch / "dicom", PhantomSettings(patients=4, scale=scale), processes=_cores()
        )
        preprocess(
            scratch / "dicom", store, labels=read_labels(table), workers=_cores(), say=_nothing
        )
    return open_store(store)


def make_store(
    root: Path, once: StorePaths, img_size: tuple[int, int], size: float, *, compressed: bool
) -> StorePaths:
    """A store of ``size`` bytes of pixels; each image is a patient, every third one positive."""
    paths = create_or_match(root, {"repeated": img_size})
    known = read_manifest(once.manifest)
    shapes = list(zip(known["crop_height"], known["crop_width"], strict=True))
    levels = [choose_pyramid_level(*shape, img_size) for shape in shapes]
    pixels = [
        np.array(read_pyramid_level(once, image_id, level))
        for image_id, level in zip(known["image_id"], levels, strict=True)
    ]
    count = int(size / np.mean([array.nbytes for array in pixels]))
    random = np.random.default_rng(0)
    # About the quantum noise of a level of 1024: see benchmarks/results/store_compression_*.
    noise = random.normal(0, 200, 2**24).astype(np.int16)
    starts = random.integers(0, len(noise) - max(array.size for array in pixels), count)

    def write(number: int) -> None:
        turn = number % len(pixels)
        array, level = pixels[turn], levels[turn]
        file = paths.image(f"{number:020x}")
        if file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        added = noise[starts[number] :][: array.size].reshape(array.shape)
        noisy = np.clip(array.astype(np.int32) + added, 1, 65535).astype(np.uint16)
        # It syncs each, so that no page is dirty, which would not be dropped.
        write_image_file(file, {level: np.where(array, noisy, 0)}, compressed=compressed)

    with ThreadPoolExecutor(_cores()) as pool:
        list(pool.map(write, range(count)))
    rows = [
        only_image(number, f"{number:020x}", shapes[number % len(shapes)])
        for number in range(count)
    ]
    write_manifest(paths.manifest, rows, pa.schema([]))
    keep_levels(paths, tuple(sorted(set(levels))))
    split_store(paths, fractions=(0.9, 0.05, 0.05), say=_nothing)
    return paths


def drop_from_cache(paths: StorePaths) -> str:
    """Drop the pages of every image from the page cache, and tell how many of them stayed."""
    files = sorted((paths.root / "pixels").glob("??/*"))

    def drop(file: Path) -> None:
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)

    with ThreadPoolExecutor(_cores()) as pool:
        list(pool.map(drop, files))
    probed = files[:: max(1, len(files) // _PROBES)]
    try:
        stayed = sum(map(_is_cached, probed)) / len(probed)
    except OSError as error:  # a file system that knows no such question
        return f"Whether the pages were dropped cannot be told here ({error.strerror})."
    return f"Of the pages {percent(stayed, 1)} stayed in memory after they were dropped."


def _is_cached(file: Path) -> bool:
    """Whether the page in the middle of a file is in memory."""
    handle = os.open(file, os.O_RDONLY)
    try:
        middle = file.stat().st_size // 2 // 4096 * 4096
        os.preadv(handle, [bytearray(1)], middle, os.RWF_NOWAIT)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(handle)


def loader_alone(
    paths: StorePaths, img_size: tuple[int, int], batch_size: int, device: torch.device
) -> Rate:
    """How fast the loader brings every image of the store to the device, in a random order."""
    rows = read_manifest(paths.manifest)
    dataset = MammogramDataset(paths, rows, img_size)
    order = np.random.default_rng(0).permutation(len(rows))
    batches = [
        order[start : start + batch_size].tolist() for start in range(0, len(rows), batch_size)
    ]
    loader = make_loader(dataset, batches, None, device)
    for _ in loader:
        pass
    read = loader.read
    return Rate(read.images / read.seconds, read.bytes / read.seconds)


def measure(given: argparse.Namespace, folder: Path, page: Page) -> None:
    """Add the lines of the report to the page, each as soon as it is known."""
    once = originals(given.store, folder, given.scale)
    img_size = given.res
    paths = make_store(
        folder / "store", once, img_size, given.gb * 1e9, compressed=given.compressed
    )
    files = list((paths.root / "pixels").glob("??/*"))
    size = sum(file.stat().st_size for file in files)
    page.add(
        f"{len(files)} images, {size / 1e9:.1f} GB, {img_size[0]}x{img_size[1]}, {given.model}, "
        f"keep .25, batch {given.batch}{', compressed with lz4' if given.compressed else ''}."
    )
    page.add("", drop_from_cache(paths), "")
    if given.loader_alone:
        page.add(*_loader_table(paths, img_size, given.batch))
        return
    with Bench(store=paths.root, steps=given.steps) as machine:
        page.add(machine.describe_machine()["summary"] + f" {_cores()} cores.", "")
        device, on_gpu = machine.device, machine.on_gpu
        page.add("| page cache | loader alone, images/s | MB/s |", "|---|---|---|")
        alone = {}
        for state in ("cold", "warm"):
            rate = alone[state] = loader_alone(paths, img_size, given.batch, device)
            page.add(f"| {state} | {rate.images:.4g} | {rate.bytes / 1e6:.0f} |")
        bare = machine.ours(
            given.model, img_size, 0.25, given.batch, compiled=on_gpu, end_to_end=False
        ).images_per_second
        page.add("", f"Bare step: {bare:.4g} images/s. What train said:", "")

    def say(line: str) -> None:
        page.add(f"    {line}")
        if line.startswith(f"epoch 1/{_EPOCHS} "):
            page.add(f"    {drop_from_cache(paths)}")

    config = load_config(
        None,
        {
            "data.res": f"{img_size[0]}x{img_size[1]}",
            "model.name": given.model,
            "model.drop_path_rate": 0.0,
            "training.batch_size": given.batch,
            "training.epochs": _EPOCHS,
        },
    )
    setup = RunSetup.build(paths.root, config, say=say)
    drop_from_cache(paths)
    history = fit_untracked(setup, start_run(folder / "runs", setup))
    page.add(
        "",
        "| page cache | loader alone, images/s | MB/s | bare step, images/s | MB/s for it "
        "| training, images/s | over the bare step | waiting |",
        "|---|---|---|---|---|---|---|---|",
    )
    for state, epoch in (("cold", history[1]), ("warm", history[2])):
        rate = epoch["train_images_per_second"]
        image_bytes = alone[state].bytes / alone[state].images
        page.add(
            f"| {state} | {alone[state].images:.4g} | {alone[state].bytes / 1e6:.0f} | {bare:.4g} "
            f"| {bare * image_bytes / 1e6:.0f} | {rate:.4g} | {rate / bare:.3f} "
            f"| {percent(epoch['train_wait_share'], 1)} |"
        )


def _loader_table(paths: StorePaths, img_size: tuple[int, int], batch_size: int) -> list[str]:
    lines = ["| page cache | loader alone, images/s | MB/s of the files |", "|---|---|---|"]
    for state in ("cold", "warm"):
        rate = loader_alone(paths, img_size, batch_size, torch.device("cpu"))
        lines.append(f"| {state} | {rate.images:.4g} | {rate.bytes / 1e6:.0f} |")
    return lines


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    return height, width


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _nothing(_: str) -> None:
    pass


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, help="whose images are repeated")
    parser.add_argument("--folder", type=Path, help="on the disk that is measured")
    parser.add_argument("--gb", type=float, default=40.0)
    parser.add_argument("--res", type=_size, default=(1024, 1024))
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scale", type=float, default=0.5, help="of the phantoms")
    parser.add_argument("--compressed", action="store_true", help="as preprocess --compression lz4")
    parser.add_argument("--loader-alone", action="store_true", help="nothing is trained")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.small:
        given.gb, given.res, given.model, given.batch = 0.01, (256, 208), "vit_tiny_patch16_224", 8
        given.steps, given.scale = 2, 0.16
    page = Page(given.out)
    page.add(f"# A cold store, {date.today()}", "")
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        measure(given, Path(scratch), page)


if __name__ == "__main__":
    main()
