import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import PatchDropout

from mammo_pd.batch import ImageBatch
from mammo_pd.errors import InputError
from mammo_pd.keep_schedule import choose_num_keep, count_kept
from mammo_pd.keyed_random import image_key
from mammo_pd.patches.draw import draw_grid, draw_tissue, draw_uniform
from mammo_pd.patches.sampler import Kept, PatchSampler
from mammo_pd.terms import ScoredPatches


def keys_of(*image_ids: str, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    return torch.tensor([image_key(seed, epoch, image_id) for image_id in image_ids])


@pytest.mark.parametrize(
    ("num_tokens", "keep_rate", "expected"),
    [
        (196, 0.25, 49),
        (3136, 0.25, 784),
        (140 * 70, 0.1, 980),
        (4096, 1.0, 4096),
        (10, 0.01, 1),
        (100, 0.29, 28),
    ],
)
def test_kept_count_is_the_papers(num_tokens: int, keep_rate: float, expected: int) -> None:
    assert count_kept(num_tokens, keep_rate) == expected


def test_timm_counts_one_lower_where_the_rounding_differs() -> None:
    dropped = PatchDropout(0.9, num_prefix_tokens=0).train()
    assert dropped(torch.zeros(1, 9800, 1)).shape[1] == 979
    assert count_kept(9800, 0.1) == 980


@pytest.mark.parametrize("keep_rate", [0, -0.1, 1.01, float("nan")])
def test_keep_rate_out_of_range_is_refused(keep_rate: float) -> None:
    with pytest.raises(ValueError, match="keep_rate"):
        count_kept(100, keep_rate)


@given(st.integers(1, 300), st.floats(0.01, 1.0), st.integers(0, 2**31))
def test_draws_are_sorted_positions_without_repeats(n: int, keep: float, seed: int) -> None:
    kept = count_kept(n, keep)
    drawn = draw_uniform(keys_of("a", "b", seed=seed), n, kept)
    assert drawn.shape == (2, kept)
    assert (drawn[:, 1:] > drawn[:, :-1]).all()
    assert drawn.min() >= 0
    assert drawn.max() < n


def test_draw_depends_on_image_seed_and_epoch_only() -> None:
    together = draw_uniform(keys_of("a", "b", "c"), 196, 49)
    reordered = draw_uniform(keys_of("c", "a"), 196, 49)
    assert torch.equal(together[[2, 0]], reordered)
    for other in (keys_of("a", seed=1), keys_of("a", epoch=1), keys_of("d")):
        assert not torch.equal(draw_uniform(other, 196, 49)[0], together[0])


def test_every_position_is_kept_equally_often() -> None:
    keys = keys_of(*map(str, range(4000)))
    counts = draw_uniform(keys, 64, 16).flatten().bincount(minlength=64)
    # 1000 expected, binomial: six standard deviations either way.
    assert (counts - 1000).abs().max() < 6 * (4000 * 0.25 * 0.75) ** 0.5


def test_pairs_of_positions_are_kept_independently() -> None:
    keys = keys_of(*map(str, range(20000)))
    drawn = draw_uniform(keys, 8, 4)
    both = ((drawn == 0).any(1) & (drawn == 7).any(1)).float().mean()
    assert abs(both - 3 / 14) < 6 * (3 / 14 * 11 / 14 / 20000) ** 0.5


def test_keep_all_is_every_position_in_order() -> None:
    assert torch.equal(draw_uniform(keys_of("a"), 9, 9)[0], torch.arange(9))


@pytest.mark.gpu
def test_draw_is_the_same_on_the_gpu() -> None:
    keys = keys_of(*map(str, range(32)))
    here = draw_uniform(keys, 4096, 1024)
    assert torch.equal(draw_uniform(keys.cuda(), 4096, 1024).cpu(), here)


@pytest.mark.parametrize(
    ("num_tokens", "keep_rate", "prefix", "expected"),
    [
        (4096, 0.25, 1, 1023),  # 1025 tokens would need a ninth tile of 128
        (33280, 0.25, 1, 8319),
        (3264, 0.25, 1, 816),  # 49 too many: more than 1 %
        (4096, 0.05, 1, 204),
        (4096, 1.0, 1, 4096),  # keep 1 is the plain ViT
        (4096, 0.25, 0, 1024),
        (4096, 0.25, 5, 1019),
        (26368, 0.25, 1, 6527),  # 65 too many, and not 1
        (3600, 0.25, 5, 891),  # 9 of 900: 1 % exactly
        (3600, 0.25, 6, 900),
    ],
)
def test_whole_tiles_are_filled_where_that_costs_one_percent_at_most(
    num_tokens: int, keep_rate: float, prefix: int, expected: int
) -> None:
    assert choose_num_keep(num_tokens, keep_rate, prefix) == expected


@given(st.integers(1, 40000), st.floats(0.01, 1.0), st.integers(0, 5))
def test_kept_count_is_never_more_nor_one_percent_less_than_the_papers(
    num_tokens: int, keep_rate: float, prefix: int
) -> None:
    papers, ours = count_kept(num_tokens, keep_rate), choose_num_keep(num_tokens, keep_rate, prefix)
    assert 0.99 * papers <= ours <= papers
    assert ours >= 1


@given(st.integers(1, 120), st.floats(0.0, 1.0), st.floats(0.01, 1.0), st.integers(0, 2**31))
def test_tissue_is_drawn_before_air(n: int, share: float, keep: float, seed: int) -> None:
    kept = count_kept(n, keep)
    keys = keys_of("a", "b", seed=seed)
    tissue = torch.rand(2, n, generator=torch.Generator().manual_seed(seed)) < share
    drawn = draw_tissue(keys, tissue, kept)
    assert drawn.shape == (2, kept)
    assert (drawn.diff(dim=1) > 0).all()
    taken = tissue.gather(1, drawn).sum(1)
    assert torch.equal(taken, tissue.sum(1).clamp(max=kept))


def test_each_tissue_patch_is_drawn_equally_often() -> None:
    tissue = (torch.arange(20) < 8).expand(4000, -1)
    keys = keys_of(*map(str, range(4000)))
    times = torch.bincount(draw_tissue(keys, tissue, 4).flatten(), minlength=20)
    assert times[8:].sum() == 0
    # 4000 draws of one in two: a standard deviation of 32.
    assert (times[:8] - 2000).abs().max() < 150


def test_tissue_draw_of_nothing_but_breast_is_the_uniform_one() -> None:
    keys = keys_of("a", "b", "c")
    whole = torch.ones(3, 50, dtype=torch.bool)
    assert torch.equal(draw_tissue(keys, whole, 12), draw_uniform(keys, 50, 12))
    assert torch.equal(draw_tissue(keys, ~whole, 12), draw_uniform(keys, 50, 12))


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.01, 1.0), st.integers(0, 2**31))
def test_grid_draws_are_sorted_positions_without_repeats(
    rows: int, columns: int, keep: float, seed: int
) -> None:
    kept = count_kept(rows * columns, keep)
    drawn = draw_grid(keys_of("a", "b", seed=seed), (rows, columns), kept)
    assert drawn.shape == (2, kept)
    assert (drawn.diff(dim=1) > 0).all()
    assert drawn.min() >= 0
    assert drawn.max() < rows * columns


def test_a_quarter_by_grid_is_every_second_patch_of_every_second_row() -> None:
    drawn = draw_grid(keys_of(*map(str, range(50))), (12, 10), 30)
    offsets = set()
    for positions in drawn:
        rows, columns = positions // 10, positions % 10
        assert len(set((rows % 2).tolist())) == len(set((columns % 2).tolist())) == 1
        offsets.add((int(rows[0]), int(columns[0])))
    assert offsets == {(0, 0), (0, 1), (1, 0), (1, 1)}


def bayer(side: int) -> np.ndarray:
    """Bayer's matrix by its recursion, of at least so many rows."""
    matrix = np.zeros((1, 1), int)
    while len(matrix) < side:
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return matrix


@pytest.mark.parametrize("grid_size", [(4, 4), (8, 3), (3, 8), (5, 16), (1, 7)])
@pytest.mark.parametrize("num_keep", [1, 3, 6])
def test_grid_draws_are_the_lowest_of_bayers_matrix_at_any_offset(
    grid_size: tuple[int, int], num_keep: int
) -> None:
    rows, columns = grid_size
    matrix = bayer(max(grid_size))
    patterns = {
        tuple(
            np.sort(
                np.roll(matrix, (down, right), (0, 1))[:rows, :columns].ravel().argsort()[:num_keep]
            ).tolist()
        )
        for down in range(len(matrix))
        for right in range(len(matrix))
    }
    drawn = draw_grid(keys_of(*map(str, range(4000))), grid_size, num_keep)
    assert {*map(tuple, drawn.tolist())} == patterns


def test_tissue_is_scored_in_tiles_of_64_tokens(
    batch_of: Callable[[int], tuple[ImageBatch, torch.Tensor]],
) -> None:
    """Thresholds were chosen on scores of so many: another number would change every score."""
    batch, _ = batch_of(1)
    sampler = PatchSampler((512, 320), 16, score_on=ScoredPatches.TISSUE, num_prefix=1)
    count = int(sampler.tissue(batch).sum())
    ((_, kept),) = sampler.parts_to_score(batch)
    assert kept is not None
    assert 64 < count < 20 * 32 - 64
    assert kept.num_keep == math.ceil((count + 1) / 64) * 64 - 1


@pytest.mark.parametrize("wrong", [lambda p: p[:, :-1], lambda p: p[0], lambda p: p[:1]])
def test_own_draw_of_another_shape_is_refused(
    batch_of: Callable[[int], tuple[ImageBatch, torch.Tensor]],
    wrong: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """A run says how many patches it kept; a draw of fewer would make that untrue."""

    class Own(PatchSampler):
        def draw(self, *given: Any) -> torch.Tensor:
            return wrong(super().draw(*given))

    batch, keys = batch_of(3)
    sampler = Own((64, 64), 16)
    for read in (
        lambda: sampler.for_training(batch, keys, 5),
        lambda: sampler.for_evaluation(batch, Kept(5, keys)),
    ):
        with pytest.raises(InputError, match=r"Own\.draw gives positions .* give \(3, 5\)"):
            read()
