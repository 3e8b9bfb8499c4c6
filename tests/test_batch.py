"""What a batch takes: NumPy images as a store has them, and nothing that only looks like one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mammo_pd.batch import ImageBatch
from mammo_pd.errors import InputError
from mammo_pd.ingest.transforms import mammogram_transforms

IMAGE = np.random.default_rng(0).integers(1, 65536, (20, 30)).astype(np.uint16)


@pytest.mark.parametrize(
    "image",
    [
        *(IMAGE.astype(dtype) for dtype in ("int16", "uint8", "int32", "float32", "float64")),
        IMAGE[None],
        IMAGE[..., None],
        IMAGE[0],
        torch.from_numpy(IMAGE),
        IMAGE.tolist(),
    ],
)
def test_what_is_no_stored_image_is_refused(image: object) -> None:
    """Its bytes or sides would be read as those of another image, and get a score."""
    with pytest.raises(InputError, match=r"^image 1 is of type .* takes a list of NumPy arrays"):
        ImageBatch.from_images([IMAGE, image])  # type: ignore[list-item]


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(InputError, match="none was given"):
        ImageBatch.from_images([])


@pytest.mark.parametrize("same", [IMAGE.astype(">u2"), np.asfortranarray(IMAGE), IMAGE[::-1][::-1]])
def test_byte_order_and_strides_do_not_matter(same: np.ndarray) -> None:
    assert torch.equal(
        ImageBatch.from_images([same]).pixels, ImageBatch.from_images([IMAGE]).pixels
    )


def test_an_image_from_the_transforms_is_taken_as_the_error_says(phantoms: Path) -> None:
    image = mammogram_transforms()({"image": next(phantoms.rglob("*.dcm"))})["image"]
    with pytest.raises(InputError, match=r"MetaTensor, shape \(1, .*numpy\(\)\[0\]\.astype"):
        ImageBatch.from_images([image])
    pixels = image.numpy()[0].astype("uint16")
    np.testing.assert_array_equal(pixels, image.numpy()[0])  # no value is rounded
    assert len(ImageBatch.from_images([pixels])) == 1
