"""How many headers a core reads a second of processor time, as `mammo-pd inspect` does.

    python benchmarks/inspect_headers.py FOLDER

Beside it: what pydicom alone takes to parse the same headers, each of them read up to its pixels.
"""

import sys
import time
import warnings
from pathlib import Path

import pydicom

from mammo_pd.imaging.header import reading_quietly
from mammo_pd.ingest.survey import read_facts
from mammo_pd.ingest.walk import find_images

_LEAST_SECONDS = 3.0


def rate(files: list[Path], read: object) -> float:
    """Files a second of processor time, the files read again and again."""
    for file in files:
        read(file)  # type: ignore[operator]
    count, started = 0, time.process_time()
    while (spent := time.process_time() - started) < _LEAST_SECONDS:
        for file in files:
            read(file)  # type: ignore[operator]
        count += len(files)
    return count / spent


def main() -> None:
    files = find_images(Path(sys.argv[1])).images
    warnings.simplefilter("ignore")
    key = bytes(16)
    with reading_quietly():
        ours = rate(files, lambda file: read_facts(file, key))
    pydicoms = rate(files, lambda file: pydicom.dcmread(file, stop_before_pixels=True, force=True))
    print(f"{len(files)} files")
    print(f"inspect: {ours:,.0f} files/s of one core")
    print(f"pydicom alone: {pydicoms:,.0f} files/s of one core")


if __name__ == "__main__":
    main()
