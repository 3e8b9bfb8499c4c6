"""Measure preprocessing on this machine's CPU: mammo-pd, plain SimpleITK and MONAI, side by side.

Phantom mammograms of 3328x2560 are written to a temporary folder; each contestant takes them from
DICOM file to cropped pyramid on disk, on one core and on all. Prints tables and writes them to a
file if one is named:

    python benchmarks/preprocess.py [benchmarks/results/preprocess_CORES_DATE.md]

Workers are processes of one thread each. What is compared is time, not quality: the others
find the breast by a threshold over the whole frame, and SimpleITK interpolates linearly where
mammo-pd and MONAI average areas.
"""

import importlib.metadata
import multiprocessing
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

# `decode` is reading and decoding, which MONAI does in one step.
STAGES = ("decode", "grey", "mask", "pyramid", "write")
LONG_SIDES = (2048, 1024, 512)
ROUNDS = 2
# Of the whole command: few images and many, so that the start can be told from the images.
FEW, MANY = 8, 40


@dataclass(frozen=True)
class Case:
    """One kind of file."""

    name: str
    transfer_syntax: str
    bits_stored: int


CASES = (
    Case("JPEG Lossless .70", "1.2.840.10008.1.2.4.70", 12),
    Case("JPEG Lossless .70", "1.2.840.10008.1.2.4.70", 16),
    Case("JPEG-LS .80", "1.2.840.10008.1.2.4.80", 12),
    Case("JPEG 2000 .90", "1.2.840.10008.1.2.4.90", 12),
    Case("uncompressed", "1.2.840.10008.1.2.1", 12),
)


@dataclass
class Measured:
    """What one image took.

    Attributes:
        seconds: of processor time by stage.
        crop: the crop's share of the frame.
        pss: peak of the worker's proportional set size so far, in MiB: each page that processes
            share counts by the share of one.
        own: of that, what no other process shares.
    """

    seconds: dict[str, float]
    crop: float
    pss: float
    own: float


class Clock:
    """Seconds of processor time between calls, by name.

    Processor time, so that a stage's figure does not depend on what else the machine does: the
    files lie in the page cache, and nothing waits.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._last = time.process_time()

    def stop(self, stage: str) -> None:
        """Book the time since the last call on a stage."""
        now = time.process_time()
        self.seconds[stage] += now - self._last
        self._last = now


# ---- the contestants: file in, pyramid in a folder out; imports are theirs alone


def mammo_pd(file: Path, out: Path, clock: Clock) -> np.ndarray:
    """Take one image with the transforms that the command composes, the clock between them."""
    import hashlib

    from monai.transforms import Compose

    from mammo_pd.data.image_file import write_image_file
    from mammo_pd.imaging.settings import ImagingSettings
    from mammo_pd.ingest.transforms import store_transforms

    def stop(stage: str) -> Callable[[Any], Any]:
        def book(sample: Any) -> Any:
            clock.stop(stage)
            return sample

        return book

    load, grey, crop, orient, pyramid = store_transforms(ImagingSettings()).transforms
    timed = [load, stop("decode"), grey, stop("grey"), crop, orient, stop("mask")]
    sample = Compose([*timed, pyramid, stop("pyramid")])({"image": file})
    assert sample["image_meta_dict"]["breast_verdict"] == "ok"
    write_image_file(out, sample["image_pyramid"])
    native = sample["image_pyramid"]["native"]
    hashlib.sha256(native.data).digest()
    clock.stop("write")
    return native


def simpleitk(file: Path, out: Path, clock: Clock) -> np.ndarray:
    """Take one image with pydicom, pylibjpeg and SimpleITK, written the plain way."""
    import pydicom
    import SimpleITK as sitk  # noqa: N813
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array

    header = pydicom.dcmread(file)
    compressed = header.file_meta.TransferSyntaxUID.is_compressed
    stored = pixel_array(header, decoding_plugin="pylibjpeg" if compressed else "")
    clock.stop("decode")
    grey = apply_voi_lut(apply_modality_lut(stored, header), header)
    grey = grey / (2**header.BitsStored - 1)
    if header.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    pixels = np.clip(grey * 65535, 0, 65535).astype(np.uint16)
    clock.stop("grey")
    image = sitk.GetImageFromArray(pixels)
    pieces = sitk.RelabelComponent(
        sitk.ConnectedComponent(sitk.OtsuThreshold(image, 0, 1)), sortByObjectSize=True
    )
    breast = pieces == 1
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(breast)
    left, top, width, height = shape.GetBoundingBox(1)
    box = (slice(left, left + width), slice(top, top + height))
    crop = sitk.Mask(image[box], breast[box])
    clock.stop("mask")
    levels = {"native": crop}
    for long_side in LONG_SIDES:
        if long_side < max(width, height):
            scale = long_side / max(width, height)
            size = [max(round(side * scale), 1) for side in (width, height)]
            spacing = [side / wanted for side, wanted in zip((width, height), size, strict=True)]
            levels[str(long_side)] = sitk.Resample(
                crop, size, sitk.Transform(), sitk.sitkLinear, crop.GetOrigin(), spacing
            )
    clock.stop("pyramid")
    out.mkdir()
    for name, level in levels.items():
        np.save(out / f"{name}.npy", sitk.GetArrayViewFromImage(level))
    clock.stop("write")
    return sitk.GetArrayViewFromImage(crop)


def monai(file: Path, out: Path, clock: Clock) -> np.ndarray:
    """Take one image with MONAI's LoadImage and transforms.

    Its reader knows no window, and without scikit-image it has neither Otsu nor components: the
    crop is the bounding box of what is brighter than the mean.
    """
    from monai.data import PydicomReader
    from monai.transforms import CropForeground, LoadImage, Resize, ScaleIntensity

    image = LoadImage(reader=PydicomReader(), image_only=True, ensure_channel_first=True)(file)
    clock.stop("decode")
    image = ScaleIntensity(0, 65535)(image)
    clock.stop("grey")
    threshold = image.mean()
    native = CropForeground(select_fn=lambda pixels: pixels > threshold)(image)
    clock.stop("mask")
    levels = {"native": native}
    for long_side in LONG_SIDES:
        if long_side < max(native.shape):
            levels[str(long_side)] = Resize(long_side, size_mode="longest", mode="area")(native)
    clock.stop("pyramid")
    out.mkdir()
    for name, level in levels.items():
        np.save(out / f"{name}.npy", level[0].numpy().T.astype(np.uint16))
    clock.stop("write")
    return native[0].numpy()


CONTESTANTS: dict[str, Callable[[Path, Path, Clock], np.ndarray]] = {
    "mammo-pd": mammo_pd,
    "pydicom + pylibjpeg + SimpleITK": simpleitk,
    "MONAI PydicomReader": monai,
}


# ---- running them


def take(name: str, file: Path) -> Measured:
    """Run one contestant on one file in a worker."""
    clock = Clock()
    out = Path(tempfile.mkdtemp(dir=file.parent)) / "levels"
    crop = CONTESTANTS[name](file, out, clock)
    shutil.rmtree(out.parent)
    # Shares are known for now only; what the peak had more of was the worker's own. Not ru_maxrss,
    # which a process takes over from the one that started it.
    more = _memory("status", "VmHWM") - _memory("status", "VmRSS")
    pss = _memory("smaps_rollup", "Pss")
    private = sum(_memory("smaps_rollup", f"Private_{kind}") for kind in ("Clean", "Dirty"))
    return Measured(clock.seconds, crop.size / (3328 * 2560), pss + more, private + more)


def _memory(file: str, name: str) -> float:
    """One figure of this process, in MiB."""
    found = re.findall(rf"{name}:\s+(\d+)", Path("/proc/self", file).read_text())
    return int(found[0]) / 1024


def race(
    name: str, workers: int, files: dict[Case, list[Path]]
) -> Iterator[tuple[Case, float, list[Measured]]]:
    """Give for each case the seconds of wall-clock time per image, and what each image took."""
    context: Any = multiprocessing.get_context("spawn")
    if name == "mammo-pd":  # as the stage starts its workers
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mammo_pd.ingest.preload"])
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        # Everything is imported and every worker at work before the clock starts.
        warm = [file for some in files.values() for file in some[:1]] * workers
        list(pool.map(partial(take, name), warm))
        for case, some in files.items():
            start = time.perf_counter()
            measured = list(pool.map(partial(take, name), some * ROUNDS))
            yield case, (time.perf_counter() - start) / len(measured), measured


def write_phantoms(folder: Path) -> dict[Case, list[Path]]:
    """Write one woman's four images for each case, as one vendor of that matrix would."""
    from pydicom.uid import UID

    from mammo_pd import phantoms
    from mammo_pd.terms import Laterality

    plain = phantoms.Vendor(
        "Benchmark", 3328, 2560, 0.07, "MONOCHROME2", 12, phantoms.Voi.LINEAR, UID("1.2")
    )
    files: dict[Case, list[Path]] = {}
    for case in CASES:
        vendor = replace(
            plain, bits_stored=case.bits_stored, transfer_syntax=UID(case.transfer_syntax)
        )
        settings = phantoms.PhantomSettings(patients=1, seed=4, vendors=(vendor,))
        for laterality in Laterality:
            for view in phantoms.VIEWS:
                made = phantoms.make_phantom(settings, 0, laterality, view)
                file = folder / f"{len(files)}_{case.bits_stored}_{laterality}_{view}.dcm"
                phantoms.dicom_dataset(settings, made).save_as(file, enforce_file_format=True)
                files.setdefault(case, []).append(file)
    return files


def whole_command(folder: Path, some: list[Path], workers: int) -> tuple[float, float]:
    """Seconds that the command takes for MANY images, and for each image without the start."""
    import pydicom

    from mammo_pd.ingest.preprocess import preprocess

    seconds = {}
    # Once more for the first, so that the libraries lie in the page cache.
    for number in (FEW, FEW, MANY):
        source = folder / f"command_{workers}_{number}"
        source.mkdir()
        for index in range(number):
            dataset = pydicom.dcmread(some[index % len(some)])
            dataset.SOPInstanceUID = pydicom.uid.generate_uid()
            dataset.save_as(source / f"{index}.dcm")
        start = time.perf_counter()
        summary = preprocess(source, source / "store", workers=workers, say=lambda _: None)
        seconds[number] = time.perf_counter() - start
        assert summary.ok == number
        shutil.rmtree(source)
    return seconds[MANY], (seconds[MANY] - seconds[FEW]) / (MANY - FEW)


def describe_machine() -> str:
    """Processor, cores, versions, load: what a figure means nothing without."""
    model = re.findall(r"model name\s+: (.*)", Path("/proc/cpuinfo").read_text())
    packages = ("numpy", "pydicom", "imagecodecs", "pylibjpeg", "pylibjpeg-libjpeg",
                "pylibjpeg-openjpeg", "SimpleITK", "monai", "torch")  # fmt: skip
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return (
        f"{model[0] if model else platform.machine()}, {len(os.sched_getaffinity(0))} cores; "
        f"Python {platform.python_version()}, {versions}."
    )


def main() -> None:
    """Race on one core and on all, and print the tables."""
    # One thread in each worker, whatever library.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ[name] = "1"
    cores = len(os.sched_getaffinity(0))
    lines: list[str] = []

    def say(line: str = "") -> None:
        lines.append(line)
        print(line, flush=True)

    say(f"# Preprocessing, {date.today()}")
    say()
    say(describe_machine())
    say(f"Load of the machine before the run: {os.getloadavg()[0]:.1f}.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = write_phantoms(folder)
        results: dict[tuple[str, int], dict[Case, tuple[float, list[Measured]]]] = {}
        for workers in (1, cores):
            for name in CONTESTANTS:
                results[name, workers] = {
                    case: (seconds, measured)
                    for case, seconds, measured in race(name, workers, files)
                }
        commands = {
            workers: whole_command(folder, files[CASES[0]], workers) for workers in (1, cores)
        }
        bits_per_pixel = {
            case: 8 * statistics.mean(file.stat().st_size for file in some) / (3328 * 2560)
            for case, some in files.items()
        }
    say(f"Load after: {os.getloadavg()[0]:.1f}.")
    for workers in (1, cores):
        say()
        say(f"## {workers} worker{'s' if workers > 1 else ''}, ms per image by stage")
        say()
        say(
            "3328x2560, 16 bits allocated. Stages, and `total`, are medians of processor time; "
            "`rest` is everything but reading and decoding; `x` is the total by mammo-pd's; `wall` "
            "is the clock's time from one image to the next as they come out of all workers; "
            "`crop` the share of the frame that was kept; bits/px those of the file."
        )
        say()
        stages = " | ".join(STAGES)
        say(f"| file | stored | bits/px | who | {stages} | rest | total | x | wall | crop |")
        say("|---" * (len(STAGES) + 9) + "|")
        for case in CASES:
            ours = 0.0
            for name in CONTESTANTS:
                wall, measured = results[name, workers][case]
                median = {
                    stage: 1000 * statistics.median(m.seconds[stage] for m in measured)
                    for stage in STAGES
                }
                rest = sum(median[stage] for stage in STAGES[1:])
                total = sum(median.values())
                ours = ours or total
                crop = statistics.mean(m.crop for m in measured)
                say(
                    f"| {case.name} | {case.bits_stored} | {bits_per_pixel[case]:.1f} | {name} "
                    f"| {' | '.join(f'{median[stage]:.0f}' for stage in STAGES)} | {rest:.0f} "
                    f"| {total:.0f} | {total / ours:.1f} | {1000 * wall:.0f} | {crop:.2f} |"
                )
    say()
    say("`decode` is reading and decoding.")
    say()
    say(f"## {cores} workers against one")
    say()
    say("| file | stored | " + " | ".join(CONTESTANTS) + " |")
    say("|---" * (len(CONTESTANTS) + 2) + "|")
    for case in CASES:
        ratios = [results[name, 1][case][0] / results[name, cores][case][0] for name in CONTESTANTS]
        say(f"| {case.name} | {case.bits_stored} | {' | '.join(f'{r:.2f}' for r in ratios)} |")
    say()
    say(f"## Peak memory of each of {cores} workers: proportional set size, MiB")
    say()
    say("| who | PSS | of that its own |")
    say("|---|---|---|")
    for name in CONTESTANTS:
        every = [m for _, measured in results[name, cores].values() for m in measured]
        say(f"| {name} | {max(m.pss for m in every):.0f} | {max(m.own for m in every):.0f} |")
    say()
    say(f"## The whole command, {CASES[0].name}, {CASES[0].bits_stored} bits stored")
    say()
    say(f"| workers | {MANY} images, s | ms per further image |")
    say("|---|---|---|")
    for workers, (seconds, further) in commands.items():
        say(f"| {workers} | {seconds:.1f} | {1000 * further:.0f} |")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
