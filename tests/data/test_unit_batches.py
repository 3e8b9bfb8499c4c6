"""Batches of whole units: nothing torn, nothing twice, the same whoever computes them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mammo_pd.data.balanced import BalancedDraw
from mammo_pd.data.unit_batches import UnitBatches, batches_of_units, members_of
from mammo_pd.errors import InputError

UNITS = st.lists(st.integers(1, 6), min_size=3, max_size=40)


def shuffled(sizes: list[int]) -> np.ndarray:
    units = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(1).permutation(units)


@settings(max_examples=40, deadline=None)
@given(sizes=UNITS, batch_size=st.integers(6, 20), epoch=st.integers(0, 3))
def test_batches_hold_whole_units_and_as_many_as_fit(
    sizes: list[int], batch_size: int, epoch: int
) -> None:
    units = shuffled(sizes)
    batches = UnitBatches(units, batch_size, seed=3)
    batches.epoch = epoch
    found = list(batches)
    assert len(found) == len(batches) == len(batches.sizes())
    for rows, size in zip(found, batches.sizes(), strict=True):
        assert len(rows) == size <= batch_size
        for unit, count in Counter(units[rows].tolist()).items():
            assert count % sizes[unit] == 0
    # What is left out of an epoch fills at most about a batch, but where units hardly fit.
    if sum(sizes) <= batch_size:
        assert sorted(found[0]) == list(range(len(units)))


def test_most_batches_are_full_and_an_epoch_sees_nearly_all_once() -> None:
    sizes = np.random.default_rng(0).choice([2, 2, 2, 2, 3, 4, 1], 500).tolist()
    units = shuffled(sizes)
    batches = UnitBatches(units, 64, seed=0)
    for epoch in range(3):
        batches.epoch = epoch
        rows = [row for batch in batches for row in batch]
        assert set(batches.sizes()) == {64}
        assert max(Counter(rows).values()) == 1
        assert len(rows) > len(units) - 2 * 64
    orders = []
    for epoch in (0, 1, 0):
        batches.epoch = epoch
        orders.append(list(batches))
    assert orders[0] == orders[2] != orders[1]
    batches.first = 3
    assert list(batches) == orders[0][3:]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=40),
    world=st.integers(2, 4),
    balanced=st.booleans(),
)
@example(sizes=[4, 3, 3], world=3, balanced=True)
def test_processes_share_what_one_would_see(sizes: list[int], world: int, balanced: bool) -> None:
    """Every one has images in each step, and a unit's turn is that which one process counts."""
    most = sum(sizes) // max(sizes)
    if world > most:
        with pytest.raises(
            InputError, match=rf"{world} devices cannot share .* use at most {most}"
        ):
            UnitBatches(shuffled(sizes), 24, seed=0, world_size=world)
        world = most
    units = shuffled(sizes)
    balanced = balanced and len(sizes) > 2  # of both classes
    draw = BalancedDraw(np.arange(len(sizes)) < 2, 0.5).draw if balanced else None

    def made(rank: int, world_size: int) -> UnitBatches:
        return UnitBatches(units, 24, seed=0, rank=rank, world_size=world_size, draw=draw)

    alone, shares = made(0, 1), [made(rank, world) for rank in range(world)]
    assert all(share.sizes() == alone.sizes() for share in shares)
    for step, (rows, turns) in enumerate(zip(alone, alone.turns(), strict=True)):
        own = [(list(share)[step], share.turns()[step]) for share in shares]
        assert all(mine for mine, _ in own)
        assert max(len(mine) for mine, _ in own) - min(len(mine) for mine, _ in own) <= max(sizes)
        together = [pair for mine in own for pair in zip(*mine, strict=True)]
        assert sorted(together) == sorted(zip(rows, turns, strict=True))


def test_a_batch_that_a_unit_does_not_fit_into_is_refused() -> None:
    units = shuffled([4, 1, 2])
    with pytest.raises(InputError, match=r"size 3 is too small: 4 images are.*at least 4\."):
        UnitBatches(units, 3, seed=0)
    with pytest.raises(InputError, match="at least 8 on 2 devices"):
        UnitBatches(shuffled([4, 2, 2]), 7, seed=0, world_size=2)


@settings(max_examples=30, deadline=None)
@given(sizes=UNITS, size=st.integers(1, 12), world=st.integers(1, 3))
def test_every_row_is_scored_once_beside_its_unit(sizes: list[int], size: int, world: int) -> None:
    units = shuffled(sizes)
    found = [
        b
        for rank in range(world)
        for b in batches_of_units(units, size, rank=rank, world_size=world)
    ]
    assert sorted(row for rows in found for row in rows) == list(range(len(units)))
    whole = {tuple(rows) for rows in members_of(units)}
    for rows in found:
        assert len(rows) <= size or tuple(rows) in whole
        assert all(set(unit) <= set(rows) for unit in whole if set(unit) & set(rows))
