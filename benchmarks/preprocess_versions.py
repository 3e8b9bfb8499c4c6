"""Compare the processor time of `mammo-pd preprocess` between two checkouts, in turns.

Phantom mammograms of 3328x2560 in five transfer syntaxes are preprocessed by each checkout's own
command with one worker, few images and many, so that the start falls out. Run in this project's
environment:

    git worktree add ../before COMMIT
    python benchmarks/preprocess_versions.py ../before . [ROUNDS]
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import pydicom
from preprocess import describe_machine, write_phantoms

FEW, MANY = 5, 25


def seconds_of(checkout: Path, source: Path, store: Path) -> float:
    """Processor time of the command and all its workers."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "mammo_pd", "preprocess", source, "--out", store]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*map(str, command), "--workers", "1"],
        env=environment,
        cwd=source.parent,
        check=True,
        capture_output=True,
    )
    shutil.rmtree(store)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(before: str, after: str, rounds: str = "5") -> None:
    """Print the seconds for an image of each round, and the ratio of the medians."""
    checkouts = {"before": Path(before), "after": Path(after)}
    print(
        f"# Processor time of preprocessing, two versions, {date.today()}\n\n{describe_machine()}"
    )
    print(f"Load of the machine before the run: {os.getloadavg()[0]:.1f}.\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "one").mkdir()
        files = [file for some in write_phantoms(folder / "one").values() for file in some]
        # One file of each syntax first, then the others, all under UIDs of their own.
        files = sorted(files, key=lambda file: file.name.split("_")[2:])
        sources = {}
        for number in (FEW, MANY):
            sources[number] = folder / f"source_{number}"
            sources[number].mkdir()
            for index in range(number):
                dataset = pydicom.dcmread(files[index % len(files)])
                dataset.SOPInstanceUID = pydicom.uid.generate_uid()
                # A pixel of its own: equal pixels are duplicates.
                dataset.PatientID = f"P{index}"
                if not dataset.file_meta.TransferSyntaxUID.is_compressed:
                    pixels = bytearray(dataset.PixelData)
                    pixels[0] = index
                    dataset.PixelData = bytes(pixels)
                dataset.save_as(sources[number] / f"{index}.dcm")
        found: dict[str, list[float]] = {name: [] for name in checkouts}
        print("| round | before, s/image | after, s/image |\n|---|---|---|")
        for number in range(int(rounds)):
            for name, checkout in checkouts.items():
                few, many = (
                    seconds_of(checkout, sources[n], folder / "store") for n in (FEW, MANY)
                )
                found[name].append((many - few) / (MANY - FEW))
            print(
                f"| {number + 1} | {found['before'][-1]:.3f} | {found['after'][-1]:.3f} |",
                flush=True,
            )
    medians = {name: statistics.median(values) for name, values in found.items()}
    print(f"\nMedian: {medians['before']:.3f} and {medians['after']:.3f}; ", end="")
    print(f"after over before {medians['after'] / medians['before']:.3f}.")


if __name__ == "__main__":
    main(*sys.argv[1:])
