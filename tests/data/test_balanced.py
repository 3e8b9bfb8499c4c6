import numpy as np
import pytest

from mammo_pd.data.balanced import BalancedDraw
from mammo_pd.data.dataset import EpochBatches
from mammo_pd.keyed_random import image_key


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("positives", [1, 7, 50])
def test_share_is_what_was_asked_for_and_every_image_takes_its_turn(
    share: float, positives: int
) -> None:
    positive = np.arange(100) < positives
    draw = BalancedDraw(positive, share)
    rows = draw.draw(np.random.default_rng(0))
    assert len(rows) == 100
    assert positive[rows].sum() == round(100 * share)
    for of_class in (positive, ~positive):
        counts = np.bincount(rows, minlength=100)[of_class]
        # None a second time before all have come once.
        assert counts.max() - counts.min() <= 1


def test_share_holds_within_each_group_and_groups_of_one_class_are_left_out() -> None:
    groups = np.repeat([0, 1, 2], [60, 30, 10])
    positive = np.zeros(100, bool)
    positive[[0, 1, 2, 60]] = True
    draw = BalancedDraw(positive, 0.4, groups)
    assert not draw.drawn[groups == 2].any()
    rows = draw.draw(np.random.default_rng(1))
    assert len(rows) == 100
    assert set(groups[rows]) == {0, 1}
    for group in (0, 1):
        drawn = rows[groups[rows] == group]
        assert positive[drawn].mean() == pytest.approx(0.4, abs=0.02)
    assert (groups[rows] == 0).mean() == pytest.approx(2 / 3, abs=0.02)


def test_epochs_differ_and_are_drawn_again_alike() -> None:
    draw = BalancedDraw(np.arange(40) < 4, 0.5)
    first, again = (EpochBatches(40, 8, seed=3, draw=draw.draw) for _ in range(2))
    assert list(first) == list(again)
    again.epoch = 1
    assert list(first) != list(again)


def test_an_image_that_comes_twice_in_an_epoch_is_drawn_anew() -> None:
    draw = BalancedDraw(np.arange(40) < 4, 0.5)
    whole = EpochBatches(40, 8, seed=3, draw=draw.draw)
    seen: set[tuple[int, int]] = set()
    for rows, turns in zip(whole, whole.turns(), strict=True):
        seen |= set(zip(rows, turns, strict=True))
    assert len(seen) == 40
    assert {turn for row, turn in seen if row < 4} == {0, 1, 2, 3, 4}
    # Two processes share what one would see.
    halves = [
        EpochBatches(40, 8, seed=3, rank=rank, world_size=2, draw=draw.draw) for rank in (0, 1)
    ]
    shared = [
        pair
        for half in halves
        for rows, turns in zip(half, half.turns(), strict=True)
        for pair in zip(rows, turns, strict=True)
    ]
    assert sorted(shared) == sorted(seen)
    assert image_key(0, 0, "a", 0) == image_key(0, 0, "a")
    assert len({image_key(0, 0, "a", turn) for turn in range(100)}) == 100


def test_without_a_draw_every_image_comes_once() -> None:
    batches = EpochBatches(40, 8, seed=3)
    assert sorted(row for rows in batches for row in rows) == list(range(40))
    assert {turn for turns in batches.turns() for turn in turns} == {0}


@pytest.mark.parametrize("only", [True, False])
def test_a_group_of_one_class_is_never_drawn_whichever_it_is(only: bool) -> None:
    positive = np.array([only] * 5 + [True, False, False])
    groups = np.array([0] * 5 + [1] * 3)
    draw = BalancedDraw(positive, 0.5, groups)
    assert draw.drawn.tolist() == [False] * 5 + [True] * 3
    rows = draw.draw(np.random.default_rng(0))
    assert len(rows) == 8
    assert rows.min() >= 5
    assert positive[rows].sum() == 4
    alone = BalancedDraw(positive[:5], 0.5, groups[:5])
    assert not alone.drawn.any()
    assert not BalancedDraw(positive[:5], 0.5).drawn.any()
