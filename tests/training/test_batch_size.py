import pytest

from mammo_pd.training.batch_size import largest_batch

GIB = 2**30


class Gpu:
    """A GPU of some size: a step holds so much, or does not fit."""

    def __init__(self, memory: int, fixed: int, each: int) -> None:
        self.memory, self.fixed, self.each = memory, fixed, each
        self.tried: list[int] = []

    def step(self, batch: int) -> int | None:
        self.tried.append(batch)
        held = self.fixed + batch * self.each
        return held if held <= self.memory else None


@pytest.mark.parametrize("gib", [4, 8, 24, 80, 141])
@pytest.mark.parametrize("each", [10 * 2**20, 160 * 2**20, 1300 * 2**20])
def test_finds_the_largest_that_leaves_a_little_room(gib: int, each: int) -> None:
    gpu = Gpu(gib * GIB, GIB // 2, each)
    found = largest_batch(gpu.step, gpu.memory, most=20_000)
    held = gpu.fixed + found * each
    assert found > 0
    assert held <= 0.92 * gpu.memory
    assert found % 8 == 0 or found <= 16
    # As many as fit, but for rounding down to a multiple of 8.
    assert gpu.fixed + (found + (9 if found >= 16 else 1)) * each > 0.92 * gpu.memory
    assert len(gpu.tried) <= 6


def test_is_a_share_for_every_device_and_no_more_than_there_are_images() -> None:
    gpu = Gpu(24 * GIB, GIB, GIB // 10)
    found = largest_batch(gpu.step, gpu.memory, most=10_000, share=6)
    assert found % 6 == 0
    assert found > 180
    assert largest_batch(gpu.step, gpu.memory, most=12) == 12
    assert all(batch % 6 == 0 for batch in gpu.tried[:2])


def test_steps_down_where_memory_grows_faster_than_it_seemed() -> None:
    def step(batch: int) -> int | None:
        held = batch * GIB // 10 + batch**2 * GIB // 1000
        return held if held <= 24 * GIB else None

    found = largest_batch(step, 24 * GIB, most=10_000)
    held = step(found)
    assert held is not None
    assert held <= 0.92 * 24 * GIB
    # Each try is a tenth smaller than the one before, and then a multiple of 8.
    held = step(int((found + 7) / 0.9) + 1)
    assert held is None or held > 0.92 * 24 * GIB


def test_one_that_fits_alone_and_none() -> None:
    assert largest_batch(Gpu(24 * GIB, 0, 20 * GIB).step, 24 * GIB, most=100) == 1
    assert largest_batch(Gpu(24 * GIB, 0, 30 * GIB).step, 24 * GIB, most=100) == 0


@pytest.mark.parametrize("most", [1, 2, 3, 6, 16, 1000])
def test_every_image_there_is_where_all_fit(most: int) -> None:
    for each in (0, 1):
        assert largest_batch(Gpu(24 * GIB, GIB, each).step, 24 * GIB, most=most) == most


@pytest.mark.parametrize("fit", [3, 5, 17, 19, 50])
def test_is_no_smaller_than_is_of_use(fit: int) -> None:
    """Where images come in units that cannot be parted; a multiple of 8 may be too few."""
    gpu = Gpu(int(fit * GIB / 0.92), 0, GIB)
    for least in (4, 18):
        found = largest_batch(gpu.step, gpu.memory, most=100, least=least)
        assert (found == 0) == (fit < least)
        assert found == 0 or least <= found <= fit
