"""One file, read as a model is given it: the pixels of a store made of the same files."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import half_disk, make_dataset, write_dicom

from mammo_pd.api import (
    ImageError,
    ImagingSettings,
    MammogramDataset,
    open_store,
    read_image,
)
from mammo_pd.data.manifest import read_manifest
from mammo_pd.terms import VoiPolicy


@pytest.mark.parametrize("img_size", [(96, 64), (1024, 816)])
def test_a_file_has_the_pixels_that_its_store_has(
    phantoms: Path, phantom_store: Path, img_size: tuple[int, int]
) -> None:
    paths = open_store(phantom_store)
    dataset = MammogramDataset(paths, read_manifest(paths.manifest), img_size)
    stored = []
    for row in range(len(dataset)):
        batch = dataset.read([row])
        shape = int(batch.heights[0]), int(batch.widths[0])
        stored.append((shape, batch.pixels.numpy().tobytes()))
    read = [read_image(file, img_size) for file in phantoms.rglob("*.dcm")]
    assert all(pixels.dtype == np.uint16 for pixels in read)
    assert sorted((pixels.shape, pixels.tobytes()) for pixels in read) == sorted(stored)


@pytest.mark.parametrize(("img_size", "long_side"), [((1024, 340), 1024), ((500, 500), 512)])
def test_the_level_is_the_smallest_that_need_not_be_enlarged(
    img_size: tuple[int, int], long_side: int, tmp_path: Path
) -> None:
    """Of a breast of about 1200x540 pixels; where the width decides, it is not the height's."""
    pixels = half_disk((1500, 900))
    file = write_dicom(tmp_path / "a.dcm", make_dataset(pixels, ImageLaterality="L"))
    assert max(read_image(file, img_size).shape) == long_side


def test_settings_decide_the_pixels_and_what_is_no_image_is_refused(
    phantoms: Path, tmp_path: Path
) -> None:
    file = min(phantoms.rglob("*.dcm"))
    size = (96, 64)
    raw = read_image(file, size, ImagingSettings(VoiPolicy.RAW))
    assert not np.array_equal(raw, read_image(file, size))
    (text := tmp_path / "a.dcm").write_text("no image")
    with pytest.raises(ImageError, match="DICOM"):
        read_image(text, size)
