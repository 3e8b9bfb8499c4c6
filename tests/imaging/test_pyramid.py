import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_pd.imaging.pyramid import area_average, block_mean, build_pyramid, fitted_size


def exact_means(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Area averages in whole numbers alone: differences of a sum that runs over the pixels."""
    sums = pixels.astype(np.int64)
    for axis, wanted in enumerate(size):
        sums = np.moveaxis(sums, axis, 0)
        length = len(sums)
        before = np.concatenate([np.zeros_like(sums[:1]), np.cumsum(sums, axis=0)])
        # Where an output pixel ends: so many input pixels, and so many wanted-ths of the next one.
        whole, part = np.divmod(np.arange(wanted + 1) * length, wanted)
        ends = wanted * before[whole]
        ends[:-1] += part[:-1, None] * sums[whole[:-1]]
        sums = np.moveaxis(np.diff(ends, axis=0), 0, axis)
    area = pixels.size
    return (2 * sums + area) // (2 * area)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((12, 9), (4, 3)),
        ((13, 7), (5, 6)),
        ((10, 10), (10, 3)),
        ((10, 10), (3, 10)),
        ((7, 5), (1, 1)),
        ((7, 5), (7, 5)),
        ((3328, 2560), (2048, 1575)),
        ((65535, 3), (2048, 1)),
        ((3, 65535), (1, 2048)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_area_averages_are_exact(shape, size, dtype):
    """So they are the same on every processor, in whatever order it sums."""
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    found = area_average(pixels, size)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, exact_means(pixels, size))


def test_exact_means_by_their_definition():
    pixels = np.array([[0, 10, 20], [30, 40, 50]], np.uint16)
    # 1.5 columns each: (0 + 10 / 2 + 30 + 40 / 2) / 3 and (10 / 2 + 20 + 40 / 2 + 50) / 3
    np.testing.assert_array_equal(exact_means(pixels, (1, 2)), [[18, 32]])


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
    assert fitted_size((1, 1000), 10) == (1, 10)
