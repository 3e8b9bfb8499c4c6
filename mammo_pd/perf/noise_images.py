"""Random images for benchmarks where no store is given."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mammo_pd.data.image_file import write_image_file
from mammo_pd.data.manifest import MANIFEST_SCHEMA, write_manifest
from mammo_pd.data.split_store import split_store
from mammo_pd.data.store import StorePaths, create_or_match

# Small enough to stay in the page cache, as a store that fits in memory does.
_BYTES = 512 * 2**20
_MOST_IMAGES = 128
# Of the patients: to train on, to validate on (a tenth of those), and the few that a test part
# must have.
FRACTIONS = (0.88, 0.088, 0.032)


def write_noise_images(paths: StorePaths, img_size: tuple[int, int]) -> pd.DataFrame:
    """Write images of noise in the outline of a breast.

    Args:
        paths: of the store that takes them.
        img_size: (height, width) in pixels; the crop is the whole image.

    Returns:
        The columns of the manifest that reading takes: one row for each image, between 4 and 128 of
        them, about half a GiB in all.
    """
    height, width = img_size
    count = max(4, min(_MOST_IMAGES, _BYTES // (2 * height * width)))
    random = np.random.default_rng(0)
    # Half an ellipse with the chest wall on the left. Noise starts at 1: pixels of 0 are air.
    row, column = np.ogrid[-1 : 1 : height * 1j, 0 : 1 : width * 1j]
    breast = row**2 + column**2 < 1
    ids = [f"{number:020x}" for number in range(count)]
    for image_id in ids:
        pixels = random.integers(1, 65536, img_size, np.uint16) * breast
        file = paths.image(image_id)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_image_file(file, {"native": pixels.astype(np.uint16)})
    return pd.DataFrame({"image_id": ids, "crop_height": height, "crop_width": width})


def write_noise_store(root: Path, img_size: tuple[int, int], count: int) -> StorePaths:
    """Make a store of noise that can be trained on, with the split ``default`` in `FRACTIONS`.

    Its files are linked again and again as other patients, so that an epoch is long and its images
    yet fit in the page cache.

    Args:
        root: folder of the store.
        img_size: (height, width) of each image, in pixels.
        count: patients, each with one image, every third of them positive.
    """
    paths = create_or_match(root, {"noise": img_size})
    once = write_noise_images(paths, img_size)["image_id"].tolist()
    rows = []
    for number in range(count):
        image_id = f"{number:020x}"
        place = paths.image(image_id)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(paths.image(once[number % len(once)]), place)
        rows.append(only_image(number, image_id, img_size))
    write_manifest(paths.manifest, rows, pa.schema([]))
    split_store(paths, fractions=FRACTIONS, say=lambda _: None)
    return paths


def only_image(number: int, image_id: str, shape: tuple[int, int]) -> dict[str, Any]:
    """The manifest row of a woman's only image, with a crop of that (height, width) in pixels."""
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
        "flipped": False,
    }
