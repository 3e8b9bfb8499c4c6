"""Time the report on 200,000 synthetic predictions, at all levels.

    python benchmarks/evaluate.py [benchmarks/results/evaluate_MACHINE_DATE.md]

Prints wall-clock and processor seconds and peak memory of ``mammo-pd evaluate --predictions``, the
reading of the CSV included. The scores are random, so the metrics mean nothing.
"""

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

PATIENTS = 50_000


def predictions() -> pd.DataFrame:
    """Four images of each patient; one breast is positive in one patient of twenty."""
    random = np.random.default_rng(0)
    patient = np.repeat(np.arange(PATIENTS), 4)
    laterality = np.tile(["L", "L", "R", "R"], PATIENTS)
    ill, left = random.random(PATIENTS) < 0.05, random.random(PATIENTS) < 0.5
    label = (ill[patient] & ((laterality == "L") == left[patient])).astype(int)
    shared = random.normal(0, 1, PATIENTS)[patient]
    logit = random.normal(0, 1, 4 * PATIENTS) + shared + 1.5 * label - 2
    return pd.DataFrame(
        {
            "image_id": [f"i{number}" for number in range(4 * PATIENTS)],
            "patient_id": [f"p{number}" for number in patient],
            "exam_id": [f"e{number}" for number in patient],
            "laterality": laterality,
            "view": np.tile(["CC", "MLO"], 2 * PATIENTS),
            "label": label,
            "score": 1 / (1 + np.exp(-logit)),
        }
    )


def main() -> None:
    """Run once and print the result, to a file too if one is named."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        csv = Path(folder) / "predictions.csv"
        predictions().to_csv(csv, index=False)
        command = [sys.executable, "-m", "mammo_pd", "evaluate", "--predictions", str(csv)]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = used.ru_utime + used.ru_stime
    # Linux counts this process's own peak too, up to the start of the command.
    memory = used.ru_maxrss / 2**10
    cores = len(os.sched_getaffinity(0))
    text = "\n".join(
        [
            f"# Evaluation, {date.today()}",
            "",
            f"{platform.machine()}, {cores} cores, load before {load:.1f}; "
            f"Python {platform.python_version()}, numpy {np.__version__}, pandas {pd.__version__}.",
            "",
            "| images | patients | wall s | processor s | MiB |",
            "|---|---|---|---|---|",
            f"| {4 * PATIENTS:,} | {PATIENTS:,} | {wall:.0f} | {busy:.0f} | {memory:.0f} |",
            "",
        ]
    )
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)


if __name__ == "__main__":
    main()
