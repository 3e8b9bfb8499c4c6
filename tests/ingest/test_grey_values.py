"""A grey scale that leaves hardly anything of the breast is refused, whatever the air around it."""

import numpy as np
import pytest

from mammo_pd.errors import ImageError
from mammo_pd.imaging.grey_scale import GreyImage
from mammo_pd.ingest.mammogram import crop_breast
from mammo_pd.terms import Reason


def image_of(make_grey):
    """A breast as it was searched, and what a grey scale made of it; air and margin are black."""
    rows, columns = np.mgrid[:960, :640]
    inside = ((rows - 480) / 400) ** 2 + (columns / 400) ** 2 < 1
    full = np.where(inside, 20000 + 6000 * np.sin(rows / 50) * np.cos(columns / 70), 0)
    made = np.where(inside, make_grey(full), 0)
    return GreyImage(made.astype(np.uint16), full.astype(np.uint16), "window:LINEAR")


def ordered(full, share):
    """All above the share's quantile white."""
    limit = np.quantile(full[full > 0], 1 - share)
    return np.where(full > limit, 65535, full)


@pytest.mark.parametrize(
    ("make_grey", "words"),
    [
        (lambda full: np.full_like(full, 65535), "leaves the breast 2 grey values"),
        (lambda full: np.full_like(full, 1234), "leaves the breast 2 grey values"),
        (lambda full: np.zeros_like(full), "every pixel the value 0"),
        (lambda full: np.where(full > 20000, 65535, 0), "2 grey values"),
        (lambda full: ordered(full, 0.999), "of the breast white"),
        (lambda full: 65535 - ordered(full, 0.999), "of the breast black"),
    ],
    ids=["white", "one value", "black", "two levels", "nearly white", "nearly black"],
)
def test_hardly_a_grey_value_left(make_grey, words):
    with pytest.raises(ImageError, match=words) as caught:
        crop_breast(image_of(make_grey), None)
    assert caught.value.reason == Reason.EMPTY_PIXELS


@pytest.mark.parametrize("share", [0, 0.3, 0.8])
def test_some_clipping_is_usual(share):
    assert crop_breast(image_of(lambda full: ordered(full, share)), None).pixels.max() > 0
