"""What follows from an image's key: the same everywhere and in every version, and independent."""

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mammo_pd import keyed_random
from mammo_pd.backbones.drop_path import KeyedDropPath, draw_paths
from mammo_pd.keyed_random import hashed, image_key, uniform
from mammo_pd.patches.affine import draw_augmentation
from mammo_pd.patches.draw import draw_dropped, draw_grid, draw_tissue, draw_uniform, draw_windows


def splitmix64(state: int) -> Iterator[int]:
    """The generator as its authors wrote it, in Python's own integers."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        number = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
        yield number ^ (number >> 31)


def mixed(value: int) -> int:
    """What the generator makes of one state."""
    return next(splitmix64((value - 0x9E3779B97F4A7C15) % 2**64))


def test_generator_is_that_of_its_authors() -> None:
    # The first outputs for seed 1234567 that their implementation prints.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert list(islice(splitmix64(1234567), 3)) == published


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 7))
def test_numbers_are_those_of_a_generator_seeded_with_key_and_stream(key: int, stream: int) -> None:
    generator = splitmix64(mixed(mixed(key) + stream))
    # What a float64 holds exactly.
    expected = [number >> 11 for number in islice(generator, 5)]
    assert hashed(torch.tensor([key]), 5, stream)[0].tolist() == expected


def test_no_two_keys_or_streams_share_a_number() -> None:
    """Neighbouring keys and streams, which a sum of both would confound."""
    keys = torch.cat([torch.arange(-200, 200), torch.arange(200) << 40])
    numbers = torch.cat([hashed(keys.unique(), 8, stream).flatten() for stream in range(8)])
    assert len(numbers.unique()) == len(numbers)


def test_uniform_numbers_are_the_hashed_ones_to_24_bits_and_below_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = torch.arange(1000)
    exact = hashed(keys, 4, 1).double() / 2**53
    below = exact - uniform(keys, 4, 1).double()
    assert below.min() >= 0
    assert below.max() < 2**-24
    highest = torch.tensor([[2**53 - 1, 0]])
    monkeypatch.setattr(keyed_random, "hashed", lambda *_: highest)
    assert uniform(keys[:1], 2, 1).tolist() == [[1 - 2**-24, 0]]


def test_each_seed_epoch_image_and_turn_has_its_own_key() -> None:
    keys = [
        image_key(seed, epoch, image, turn)
        for seed in range(13)
        for epoch in range(-1, 13)
        # An image may be named as another with the digits of an epoch before it.
        for image in ("a", "1a", "11a", "0")
        for turn in range(3)
    ]
    assert len({*keys}) == len(keys)
    assert min(keys) >= -(2**63)
    assert max(keys) < 2**63


def dropped_paths(keys: Tensor) -> Tensor:
    paths = [KeyedDropPath(0.5) for _ in range(6)]
    draw_paths(paths, torch.full((6,), 0.5), keys)
    return torch.stack([path.scale for path in paths if path.scale is not None], dim=1)


def test_draws_are_those_of_every_version() -> None:
    """A run is gone on with by a later version, and validated on the patches of its first epoch."""
    keys = torch.tensor([image_key(0, 0, "a"), image_key(7, -1, "b", 2)])
    assert keys.tolist() == [8816142829491793548, -6362776609199119296]
    tissue = torch.arange(20).expand(2, -1) % 4 > 0
    kept = draw_uniform(keys, 20, 6)
    assert kept.tolist() == [[0, 1, 2, 3, 15, 18], [3, 6, 7, 13, 17, 18]]
    in_tissue = [[1, 2, 3, 11, 15, 18], [3, 6, 7, 13, 17, 18]]
    assert draw_tissue(keys, tissue, 6).tolist() == in_tissue
    dropped, _ = draw_dropped(keys, kept, tissue, 5)
    assert dropped.tolist() == [[5, 6, 9, 13, 17], [1, 5, 11, 15, 19]]
    evenly = [[0, 6, 8, 16, 18], [2, 6, 8, 16, 18]]
    assert draw_grid(keys, (4, 5), 5).tolist() == evenly
    assert draw_windows(keys, (7, 7), 7, 4).tolist() == [[30, 33, 44, 47], [0, 4, 21, 25]]
    percent = [[94, 93, 15, 81, 84, 0, 14, 93], [28, 63, 76, 64, 61, 97, 85, 85]]
    assert (draw_augmentation(keys) * 100).int().tolist() == percent
    assert dropped_paths(keys).int().tolist() == [[0, 0, 0, 2, 2, 2], [2, 0, 2, 0, 2, 2]]


def kept_of(positions: Tensor, num_tokens: int) -> Tensor:
    return torch.zeros(len(positions), num_tokens).scatter(1, positions, 1)


def test_no_draw_tells_anything_of_another() -> None:
    """Were they of one stream, the images kept at the top, say, would be the flipped ones."""
    keys = torch.tensor([image_key(0, 0, str(number)) for number in range(4000)])
    windows = kept_of(draw_windows(keys, (7, 7), 7, 9), 49).view(-1, 7, 7)
    draws = [
        kept_of(draw_uniform(keys, 8, 4), 8),
        kept_of(draw_grid(keys, (4, 4), 4), 16)[:, [0, 1, 4]],
        windows.amax(2),
        windows.amax(1),
        draw_augmentation(keys),
        dropped_paths(keys),
    ]
    source = torch.cat([torch.full((draw.shape[1],), n) for n, draw in enumerate(draws)])
    together = torch.corrcoef(torch.cat(draws, dim=1).double().T)
    assert together.isfinite().all()
    # Of 4,000 draws: six standard deviations.
    assert together[source[:, None] != source].abs().max() < 6 / 4000**0.5
