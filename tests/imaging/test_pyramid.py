import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_pd.imaging.pyramid import area_average, block_mean, build_pyramid, fitted_size


def overlap_mean(pixels, size):
    """Area average by definition: a sum over every pair of pixels, weighted by their overlap."""
    out = np.zeros(size)
    scale = pixels.shape[0] / size[0], pixels.shape[1] / size[1]
    for i in range(size[0]):
        for j in range(size[1]):
            rows = np.clip(
                np.minimum(np.arange(pixels.shape[0]) + 1, (i + 1) * scale[0])
                - np.maximum(np.arange(pixels.shape[0]), i * scale[0]),
                0,
                None,
            )
            columns = np.clip(
                np.minimum(np.arange(pixels.shape[1]) + 1, (j + 1) * scale[1])
                - np.maximum(np.arange(pixels.shape[1]), j * scale[1]),
                0,
                None,
            )
            out[i, j] = rows @ pixels @ columns / (scale[0] * scale[1])
    return out


@pytest.mark.parametrize(
    ("shape", "size"), [((12, 9), (4, 3)), ((13, 7), (5, 6)), ((10, 10), (10, 3)), ((7, 5), (1, 1))]
)
def test_area_average_by_its_definition(shape, size):
    pixels = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)
    expected = np.rint(overlap_mean(pixels.astype(float), size))
    found = area_average(pixels, size)
    assert found.dtype == np.uint16
    np.testing.assert_allclose(found, expected, atol=1)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    share=st.floats(0.05, 1),
    level=st.integers(0, 65535),
)
def test_a_constant_image_stays_constant(shape, share, level):
    size = tuple(max(int(length * share), 1) for length in shape)
    assert (area_average(np.full(shape, level, np.uint16), size) == level).all()


def test_the_mean_is_kept():
    pixels = np.random.default_rng(1).random((211, 97)).astype(np.float32)
    assert area_average(pixels, (64, 41)).mean() == pytest.approx(pixels.mean(), rel=1e-4)


def test_enlarging_is_refused():
    with pytest.raises(ValueError, match="reduced"):
        area_average(np.zeros((4, 4), np.uint16), (5, 4))


def test_pyramid_levels():
    pixels = np.random.default_rng(0).integers(0, 65536, (2500, 900)).astype(np.uint16)
    levels = build_pyramid(pixels)
    assert {name: level.shape for name, level in levels.items()} == {
        "native": (2500, 900), "2048": (2048, 737), "1024": (1024, 369), "512": (512, 184)
    }  # fmt: skip
    assert all(level.dtype == np.uint16 for level in levels.values())
    assert list(build_pyramid(pixels[:512, :300])) == ["native"]
    assert list(build_pyramid(pixels[:513, :300])) == ["native", "512"]


def test_block_mean_is_numpys():
    pixels = np.random.default_rng(0).integers(0, 65536, (31, 22)).astype(np.uint16)
    expected = pixels[:30, :20].reshape(6, 5, 4, 5).mean(axis=(1, 3))
    np.testing.assert_allclose(block_mean(pixels, 5), expected, rtol=1e-5)


def test_fitted_size():
    assert fitted_size((300, 200), 150) == (150, 100)
    assert fitted_size((1000, 1), 10) == (10, 1)
