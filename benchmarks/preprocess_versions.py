"""Compare the processor time that an image takes in preprocessing between two checkouts, in turns.

Phantom mammograms of 3328x2560 in five transfer syntaxes go from DICOM file to pyramid on disk, by
the transforms of each checkout as `preprocess.py` beside this runs them. In this environment:

    git worktree add ../before COMMIT
    python benchmarks/preprocess_versions.py ../before . [ROUNDS]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from preprocess import describe_machine, write_phantoms

_CHILD = """
import json, pathlib, shutil, sys, tempfile
from preprocess import Clock, mammo_pd
found = []
for file in [sys.argv[1], *sys.argv[1:]]:
    out = pathlib.Path(tempfile.mkdtemp()) / "levels"
    clock = Clock()
    mammo_pd(pathlib.Path(file), out, clock)
    found.append(sum(clock.seconds.values()))
    shutil.rmtree(out.parent)
print(json.dumps(found[1:]))
"""


def seconds_of(checkout: Path, files: list[Path]) -> list[float]:
    """Processor time of each file, by one checkout; the first file warms it up."""
    paths = [str(checkout.resolve()), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *map(str, files)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(before: str, after: str, rounds: str = "5") -> None:
    """Print the median seconds for a file of each syntax, and the ratio of their sums."""
    checkouts = {"before": Path(before), "after": Path(after)}
    print(f"# Processor time of preprocessing, two versions, {date.today()}\n")
    print(f"{describe_machine()}\n")
    print(f"Load of the machine before the run: {os.getloadavg()[0]:.1f}.\n")
    with tempfile.TemporaryDirectory() as temporary:
        cases = {case: some[0] for case, some in write_phantoms(Path(temporary)).items()}
        found: dict[str, list[list[float]]] = {name: [] for name in checkouts}
        for _ in range(int(rounds)):
            for name, checkout in checkouts.items():
                found[name].append(seconds_of(checkout, list(cases.values())))
    # The least of the rounds: what else the machine does only adds.
    best = {
        name: [min(times) for times in zip(*rounds_, strict=True)]
        for name, rounds_ in found.items()
    }
    print("| file | before, s | after, s | after over before |\n|---|---|---|---|")
    for index, case in enumerate(cases):
        one, other = best["before"][index], best["after"][index]
        name = f"{case.name}, {case.bits_stored} bits"
        print(f"| {name} | {one:.3f} | {other:.3f} | {other / one:.3f} |")
    one, other = sum(best["before"]), sum(best["after"])
    medians = {
        name: statistics.median(sum(times) for times in rounds_) for name, rounds_ in found.items()
    }
    print(f"| sum | {one:.3f} | {other:.3f} | {other / one:.3f} |\n")
    ratio = medians["after"] / medians["before"]
    print(f"Least of {rounds} rounds in turns; by the medians of the sums {ratio:.3f}.")


if __name__ == "__main__":
    main(*sys.argv[1:])
