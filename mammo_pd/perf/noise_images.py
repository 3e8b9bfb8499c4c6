"""Random images for benchmarks where no store is given."""

import numpy as np
import pandas as pd

from mammo_pd.data.image_file import write_image_file
from mammo_pd.data.store import StorePaths

# Small enough to stay in the page cache, as a store that fits in memory does.
_BYTES = 512 * 2**20
_MOST_IMAGES = 128


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
