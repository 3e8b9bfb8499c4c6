"""Which images' pixels differ between two stores of the same files, as before a new algorithm.

    mammo-pd preprocess FOLDER --out BEFORE                              # by the one version
    mammo-pd preprocess FOLDER --out AFTER --key BEFORE/private/key      # by the other
    python benchmarks/store_pixels.py BEFORE AFTER [BEFORE AFTER ...]

Images are compared by name, so both stores need the same key, levels and compression. An image is
equal if its file in the store is, to the byte.
"""

import sys
from collections import Counter
from datetime import date
from pathlib import Path

import pandas as pd

from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.store import StorePaths, open_store, read_store_info


def compare(before: Path, after: Path) -> tuple[int, int, Counter[str]]:
    """Images in both stores, equal ones, and what became of each other one.

    Args:
        before: a store.
        after: a store of the same files.
    """
    paths = open_store(before), open_store(after)
    old, new = (_outcomes(one) for one in paths)
    names = old.index.union(new.index)
    equal, changed = 0, Counter[str]()
    for name in names:
        outcomes = [
            str(table[name]) if name in table.index else "not there" for table in (old, new)
        ]
        if outcomes[0] == outcomes[1] and _bytes(paths[0], name) == _bytes(paths[1], name):
            equal += 1
        else:
            changed[" to ".join(outcomes)] += 1
    return len(names), equal, changed


def _outcomes(paths: StorePaths) -> pd.Series:
    """By image: the verdict on the breast, or the reason why the image is not used."""
    rows = read_manifest(paths.manifest, status=None).set_index("image_id")
    return rows["breast_verdict"].where(rows["status"] == "ok", rows["reason"])


def _bytes(paths: StorePaths, name: str) -> bytes | None:
    file = paths.image(name)
    return file.read_bytes() if file.is_file() else None


def main(*stores: str) -> None:
    """Print a line for each two stores."""
    print(f"# Pixels of stores by two versions, {date.today()}\n")
    print("| files | algorithms | images | equal to the byte | others |")
    print("|---|---|---|---|---|")
    for first, second in zip(stores[::2], stores[1::2], strict=True):
        before, after = Path(first).resolve(), Path(second).resolve()
        versions = [
            read_store_info(open_store(store))["settings"]["algorithm"] for store in (before, after)
        ]
        images, equal, changed = compare(before, after)
        told = "; ".join(f"{count} {what}" for what, count in changed.most_common()) or "none"
        algorithms = " and ".join(map(str, versions))
        print(f"| {after.name} | {algorithms} | {images} | {equal} | {told} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
