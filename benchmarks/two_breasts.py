"""How often two breasts on one image are noticed, and how often one breast is taken for two.

    python benchmarks/two_breasts.py TABLE [TABLE ...] [> RESULTS.md]

Each table is a CSV beside the images that it names, with a column ``path`` or ``file`` and a column
``patient_id``. Every image is searched alone. Then two of each woman, in which a breast was found
beyond doubt, are put on one image as films are scanned together: facing each other, back to back,
both to the left, or above each other, with a gap of 0 or a tenth of an image's width. Where the
verdict is ``ok`` the image is cropped to what was found.
"""

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np

from mammo_pd.errors import ImageError
from mammo_pd.imaging.breast import find_breast
from mammo_pd.imaging.grey_scale import stretch_raster
from mammo_pd.imaging.raster import read_raster

_ARRANGEMENTS = {
    "facing each other": ("left", "right", False),
    "back to back": ("right", "left", False),
    "both to the left": ("left", "left", False),
    "above each other": ("left", "left", True),
}
_GAPS = (0.0, 0.1)


def verdict_of(pixels: np.ndarray) -> tuple[str, str]:
    """The verdict, or the reason of a refusal; and the side on which the breast lies."""
    try:
        region = find_breast(pixels)
    except ImageError as error:
        return str(error.reason), ""
    return region.verdict, region.side


def read(table: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Patient and (H, W) uint16 grey values of each image."""
    with table.open(newline="") as opened:
        for row in csv.DictReader(opened):
            raster = read_raster(table.parent / (row.get("path") or row["file"]))
            photometric = row.get("photometric_interpretation") or None
            grey = stretch_raster(raster.pixels, photometric)
            yield row["patient_id"], grey.full_range


def join(first: np.ndarray, second: np.ndarray, gap: int, *, above: bool) -> np.ndarray:
    """Both on one black image."""
    if above:
        return join(first.T, second.T, gap, above=False).T
    height = max(len(first), len(second))
    joined = np.zeros((height, first.shape[1] + gap + second.shape[1]), np.uint16)
    joined[: len(first), : first.shape[1]] = first
    joined[: len(second), -second.shape[1] :] = second
    return joined


def main(*tables: str) -> None:
    """Print how many images and pairs have each verdict."""
    alone: Counter[str] = Counter()
    pairs: dict[str, Counter[str]] = {}
    for table in map(Path, tables):
        waiting: dict[str, tuple[np.ndarray, str]] = {}
        done: set[str] = set()
        for patient, pixels in read(table):
            verdict, side = verdict_of(pixels)
            alone[verdict] += 1
            if verdict != "ok" or patient in done:
                continue
            if patient not in waiting:
                waiting[patient] = pixels, side
                continue
            done.add(patient)
            both = waiting.pop(patient), (pixels, side)
            for name, (*wanted, above) in _ARRANGEMENTS.items():
                turned = [
                    one if lies == to else one[:, ::-1]
                    for (one, lies), to in zip(both, wanted, strict=True)
                ]
                for gap in _GAPS:
                    joined = join(*turned, round(gap * pixels.shape[1]), above=above)
                    counts = pairs.setdefault(f"{name}, gap {gap:g}", Counter())
                    counts[verdict_of(joined)[0]] += 1
    print(f"# Two breasts on one image, {date.today()}\n")
    print(f"Alone, {alone.total()} images: {_told(alone)}.\n")
    print("| two images of a woman | pairs | two_breasts | other doubts, kept whole | ok |")
    print("|---|---|---|---|---|")
    for name, counts in pairs.items():
        known = counts["two_breasts"], counts["ok"]
        others = counts.total() - sum(known)
        print(f"| {name} | {counts.total()} | {known[0]} | {others} | {known[1]} |")


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())


if __name__ == "__main__":
    main(*sys.argv[1:])
