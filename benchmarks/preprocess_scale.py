"""Measure how preprocessing scales: with a GPU that decodes JPEG 2000, and over workers of Dask.

    python benchmarks/preprocess_scale.py [benchmarks/results/preprocess_scale_MACHINE_DATE.md]
    python benchmarks/preprocess_scale.py --small    # the same path on few images

Phantoms of 3328x2560 in lossless JPEG 2000. What counts is the time of a further image: that of
many less that of few, so that starting is left out. Without the GPU, which is then hidden from the
same command, OpenJPEG decodes. The stores are compared.
"""

import argparse
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import JPEG2000Lossless

from mammo_pd import phantoms
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.store import open_store
from mammo_pd.imaging.decoders import imagecodecs_plugin, nvimgcodec_plugin
from mammo_pd.imaging.dicom_file import read_dataset

KEY = bytes(range(32))


def write_archive(folder: Path, count: int) -> list[Path]:
    """Phantoms, no two alike: what is there twice would be left out."""
    vendor = phantoms.Vendor(
        "Benchmark", 3328, 2560, 0.07, "MONOCHROME2", 12, phantoms.Voi.LINEAR, JPEG2000Lossless
    )
    settings = phantoms.PhantomSettings(patients=-(-count // 4), seed=4, vendors=(vendor,))
    phantoms.write_phantoms(folder, settings, processes=len(os.sched_getaffinity(0)))
    return sorted(folder.rglob("*.dcm"))


def command(files: list[Path], options: list[str], *, gpu: bool) -> tuple[float, dict[str, str]]:
    """Seconds of `mammo-pd preprocess` on some images, and digests of their pixels."""
    with tempfile.TemporaryDirectory() as scratch:
        some, store, key = (Path(scratch) / name for name in ("dicom", "store", "key"))
        some.mkdir()
        key.write_bytes(KEY)
        for number, file in enumerate(files):
            (some / f"{number:05}.dcm").symlink_to(file)
        words = [sys.executable, "-m", "mammo_pd", "preprocess", some, "--out", store]
        words += ["--key", key, "--levels", "1024", *options]
        environment = dict(os.environ) if gpu else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        start = time.perf_counter()
        done = subprocess.run(
            list(map(str, words)), env=environment, check=False, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
        paths = open_store(store)
        rows = read_manifest(paths.manifest)
        assert (rows["status"] == "ok").sum() == len(files), rows["status"].value_counts()
        used = ", ".join(sorted(set(rows["decoder"])))
        digests = {
            str(file.relative_to(store)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(store.rglob("*"))
            if file.is_file() and paths.root / "private" not in file.parents
            if file.suffix == ".safetensors"
        }
    return seconds, {"decoder": used, **digests}


def further(
    files: list[Path], few: int, many: int, options: list[str], *, gpu: bool
) -> tuple[float, dict[str, str]]:
    """Milliseconds for a further image."""
    first, _ = command(files[:few], options, gpu=gpu)
    last, digests = command(files[:many], options, gpu=gpu)
    return 1000 * (last - first) / (many - few), digests


def decoding(file: Path, rounds: int) -> dict[str, float]:
    """Milliseconds that one process takes to decode a frame, by decoder."""
    dataset = read_dataset(file)
    decoder = get_decoder(JPEG2000Lossless)
    took: dict[str, float] = {}
    frames = []
    for plugin in (imagecodecs_plugin.PLUGIN, nvimgcodec_plugin.PLUGIN):
        if plugin not in decoder.available_plugins:
            continue
        frames.append(decoder.as_array(dataset, decoding_plugin=plugin)[0])
        start = time.perf_counter()
        for _ in range(rounds):
            decoder.as_array(dataset, decoding_plugin=plugin)
        took[plugin] = 1000 * (time.perf_counter() - start) / rounds
        assert np.array_equal(frames[0], frames[-1])
    return took


def dask(files: list[Path], few: int, many: int, workers: int) -> float:
    """Milliseconds for a further image by workers of one thread each."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        options = ["--scheduler", cluster.scheduler_address]
        # Workers import their libraries with their first image.
        command(files[: 4 * workers], options, gpu=False)
        return further(files, few, many, options, gpu=False)[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    # Threads of a library would only wait for one another.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ[name] = "1"
    cores = len(os.sched_getaffinity(0))
    first, each = (1, 3) if options.small else (2, 10)
    most = min(8, cores)
    lines: list[str] = []

    def say(line: str = "") -> None:
        lines.append(line)
        print(line, flush=True)

    packages = ("pydicom", "imagecodecs", "SimpleITK", "distributed", "nvidia-nvimgcodec-cu13")
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    say(f"# Scale of preprocessing, {date.today()}")
    say()
    say(f"{cores} cores; Python {platform.python_version()}, {', '.join(versions)}.")
    say()
    with tempfile.TemporaryDirectory() as scratch:
        files = write_archive(Path(scratch), each * most)
        # So that the libraries lie in the page cache.
        command(files[:1], [], gpu=True)
        say("| decoding a frame in one process, by | ms |")
        say("|---|---|")
        for name, took in decoding(files[0], 3 if options.small else 10).items():
            say(f"| {name} | {took:.1f} |")
        say()
        say("| workers of one machine | decoder | ms for a further image | images/s | x |")
        say("|---|---|---|---|---|")
        for workers in sorted({1, most}):
            count = ["--workers", str(workers)]
            few, many = first * workers, each * workers
            without, pixels = further(files, few, many, count, gpu=False)
            taken, others = further(files, few, many, count, gpu=True)
            assert {**pixels, "decoder": ""} == {**others, "decoder": ""}
            for took, decoder in ((without, pixels["decoder"]), (taken, others["decoder"])):
                say(
                    f"| {workers} | {decoder} | {took:.1f} | {1000 / took:.1f} "
                    f"| {without / took:.2f} |"
                )
        say()
        say("| workers of Dask | ms for a further image | images/s | over one |")
        say("|---|---|---|---|")
        alone = 0.0
        for workers in (1, 2, 4, 8)[: most.bit_length()]:
            took = dask(files, first * workers, each * workers, workers)
            alone = alone or took
            say(f"| {workers} | {took:.1f} | {1000 / took:.1f} | {alone / took:.2f} |")
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
