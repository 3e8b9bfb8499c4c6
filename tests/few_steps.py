"""Benches that time few steps, for tests of what is made of the times."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mammo_pd.perf import bench, noise_images, timer
from mammo_pd.perf.measure import Bench


@contextmanager
def few_steps() -> Iterator[None]:
    """Within it a bench times two steps, after one that warms up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "Bench", functools.partial(Bench, steps=2))
        patch.setattr(timer, "_WARM_UP_STEPS", 1)
        patch.setattr(noise_images, "_MOST_IMAGES", 8)
        yield
