"""The trial draws of benchmarks/ideas_patches.py."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import small

from mammo_pd.backbones.build import build_backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.patches import sampler as sampler_module
from mammo_pd.patches.sample import sample_patches
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.terms import Draw

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SIZE, PATCH = (112, 80), 16
GRID = (7, 5)
N, M = 35, 12
Batches = Callable[[int], tuple[ImageBatch, torch.Tensor]]


@pytest.fixture
def ideas(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import ideas_patches

    yield ideas_patches
    del sys.modules["ideas_patches"]


def covered(drawn: torch.Tensor) -> torch.Tensor:
    """How often each patch of a grid is covered by one image's tokens."""
    often = torch.zeros(GRID, dtype=torch.int64)
    for position in drawn.tolist():
        if position < N:
            often[position // GRID[1], position % GRID[1]] += 1
        else:
            row, column = (2 * of for of in divmod(position - N, 3))
            often[row : row + 2, column : column + 2] += 1
    return often.flatten()


@pytest.mark.parametrize("num_keep", [1, 6, 12, 13, 20, 34])
def test_a_mixed_draw_covers_all_breast_once(ideas: Any, num_keep: int) -> None:
    generator = torch.Generator().manual_seed(num_keep)
    for share in (0.0, 0.1, 0.5, 1.0):
        tissue = torch.rand(20, N, generator=generator) < share
        detail = torch.randint(0, 2**53, (20, M), generator=generator)
        drawn = ideas.draw_mixed(torch.arange(20), tissue, detail, GRID, num_keep)
        assert drawn.shape == (20, num_keep)
        assert (drawn[:, 1:] > drawn[:, :-1]).all()
        assert ((drawn >= 0) & (drawn < N + M)).all()
        blocks = ideas.by_block(tissue.long(), GRID).sum(2) > 0
        for one, holds, count in zip(drawn, tissue, blocks.sum(1), strict=True):
            often = covered(one)[holds]
            if count <= num_keep:
                assert (often > 0).all()
            if num_keep <= M:
                # There are blocks of air to fill up with, so nothing is seen twice.
                assert (often <= 1).all()


def test_blocks_of_most_detail_are_given_as_patches(ideas: Any) -> None:
    tissue, detail = torch.ones(1, N, dtype=torch.bool), torch.zeros(1, M, dtype=torch.int64)
    detail[0, 4], detail[0, 7], detail[0, 0] = 9, 8, 7
    (drawn,) = ideas.draw_mixed(torch.zeros(1, dtype=torch.int64), tissue, detail, GRID, M + 6)
    # Blocks 4 and 7 are in the middle column; the corner block holds one patch, which is as cheap.
    assert drawn[drawn < N].tolist() == [12, 13, 17, 18, 22, 23, 27, 28, 34]
    assert drawn[drawn >= N].tolist() == [N + block for block in (0, 1, 2, 3, 5, 6, 8, 9, 10)]


def test_a_block_is_read_as_the_mean_of_its_patches(ideas: Any, batch_of: Batches) -> None:
    images, keys = batch_of(3)
    sampler = ideas.CoarseSampler(SIZE, PATCH, draw=Draw.TISSUE)
    placement = sampler.place(images, keys)
    every = torch.arange(N + M).expand(3, -1)
    read = sampler.pixels_at(images, placement.matrix, every)
    # By a grid that reaches as far as the blocks do.
    whole = sample_patches(images, placement.matrix, torch.arange(48).expand(3, -1), 6, PATCH)
    picture = whole.view(3, 8, 6, PATCH, PATCH).transpose(2, 3).reshape(3, 128, 96) / 65535
    halved = picture.view(3, 64, 2, 48, 2).mean((2, 4))
    blocks = halved.view(3, 4, PATCH, 3, PATCH).transpose(2, 3).reshape(3, M, PATCH**2)
    torch.testing.assert_close(read[:, N:], blocks, atol=2e-5, rtol=0)
    plain = PatchSampler(SIZE, PATCH).pixels_at(images, placement.matrix, every[:, :N])
    assert torch.equal(read[:, :N], plain)


@pytest.mark.parametrize("trial", ["coarse", "coarse at random", "context"])
def test_keep_all_is_the_usual(ideas: Any, batch_of: Batches, trial: str) -> None:
    images, keys = batch_of(2)
    outputs = []
    for name in (None, trial):
        with ideas.trying(name) as sampler:
            torch.manual_seed(0)
            model = build_backbone("test_vit", SIZE).eval()
        draws = sampler(SIZE, PATCH, draw=Draw.TISSUE)
        patches, positions = draws.for_training(images, keys, N)
        assert torch.equal(positions, torch.arange(N).expand(2, -1))
        outputs.append(model(patches, positions, keys))
    torch.testing.assert_close(*outputs, atol=0, rtol=0)


def test_a_block_has_the_mean_of_its_patches_position_embeddings(ideas: Any) -> None:
    with ideas.trying("coarse"):
        model = build_backbone("test_vit", SIZE).eval()
    patches = torch.zeros(1, N + M, PATCH**2)
    tokens = model.embed(patches, torch.arange(N + M)[None])[0, 1:]
    table = tokens[:N].unflatten(0, GRID)
    torch.testing.assert_close(tokens[N + 4], table[2:4, 2:4].mean((0, 1)))
    torch.testing.assert_close(tokens[N + 11], table[6, 4])


def test_context_is_the_whole_image_beside_a_tissue_draw(ideas: Any, batch_of: Batches) -> None:
    images, keys = batch_of(3)
    sampler = ideas.ContextSampler(SIZE, PATCH, draw=Draw.TISSUE)
    assert sampler.num_blocks == 4
    patches, positions = sampler.for_training(images, keys, 12)
    plain, drawn = PatchSampler(SIZE, PATCH, draw=Draw.TISSUE).for_training(images, keys, 8)
    assert torch.equal(positions[:, :8], drawn)
    assert torch.equal(patches[:, :8], plain)
    assert torch.equal(positions[:, 8:], torch.arange(N, N + 4).expand(3, -1))

    every, where = sampler.for_evaluation(images)
    assert torch.equal(where, torch.arange(N + 4).expand(3, -1))
    # Patches side by side are the input; blocks are what it is at a quarter of the size.
    size = every.unflatten(2, (PATCH, PATCH))
    whole = size[:, :N].unflatten(1, GRID).transpose(2, 3).flatten(3).flatten(1, 2)
    small = torch.nn.functional.avg_pool2d(whole[:, None], 4)[:, 0]
    block = size[:, N:].unflatten(1, (2, 2)).transpose(2, 3).flatten(3).flatten(1, 2)
    found = block[:, : small.shape[1], : small.shape[2]]
    torch.testing.assert_close(found, small, atol=1e-5, rtol=0)

    with ideas.trying("context"):
        model = build_backbone("test_vit", SIZE).eval()
    tokens = model.embed(torch.zeros(1, N + 4, PATCH**2), where[:1])[0, 1:]
    table = tokens[:N].unflatten(0, GRID)
    torch.testing.assert_close(tokens[N], table[:4, :4].mean((0, 1)))
    torch.testing.assert_close(tokens[N + 3], table[4:, 4:].mean((0, 1)))


@pytest.mark.parametrize("num_keep", [1, 2, 3, 4, 5, 12, 34])
def test_context_keeps_as_many_tokens_as_asked_for_or_none(
    ideas: Any, batch_of: Batches, num_keep: int
) -> None:
    images, keys = batch_of(2)
    sampler = ideas.ContextSampler(SIZE, PATCH, draw=Draw.TISSUE)
    if num_keep < 4:
        with pytest.raises(ValueError, match=f"{num_keep} tokens are fewer than the 4 blocks"):
            sampler.for_training(images, keys, num_keep)
    else:
        assert sampler.for_training(images, keys, num_keep)[1].shape == (2, num_keep)


@pytest.mark.parametrize("trial", ["coarse", "context"])
def test_a_trial_is_trained_and_scored_in_every_way(
    ideas: Any, trial: str, phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As benchmarks/recipes.py does, whose processes would each start torch anew."""
    from mammo_pd.inference.predict import predict
    from mammo_pd.training.loop import fit
    from mammo_pd.training.setup import RunSetup
    from mammo_pd.training.train import start_run

    config = small(patch_dropout__keep_rate=0.5, patch_dropout__draw=trial, training__epochs=1)
    with ideas.trying(trial) as sampler:
        setup = RunSetup.build(phantom_store, config, say=lambda _: None)
        run = start_run(tmp_path, setup)
        fit(setup, run)
        scored = predict(run, say=lambda _: None)
        plain = scored.table["score"].to_numpy()
        # These images have fewer tokens than one tile, with which every patch would be read.
        on_all = ideas.score_again("on tissue", scored, run, sampler)
        np.testing.assert_allclose(on_all, plain, rtol=0, atol=1e-6)
        monkeypatch.setattr(sampler_module, "_TILE", 4)
        for way in ideas.WAYS if trial == "context" else ideas.WAYS[:2]:
            again = ideas.score_again(way, scored, run, sampler)
            assert np.isfinite(again).all()
            assert not np.allclose(again, plain, rtol=0, atol=1e-6)


def test_recipes_name_trials_that_there_are(ideas: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import recipes

    monkeypatch.delitem(sys.modules, "recipes")
    file = BENCHMARKS / "recipes" / "rsna_640_patches.json"
    recipes._refuse_unknown(json.loads(file.read_text()))
    with pytest.raises(SystemExit, match="'fine' is none of coarse"):
        recipes._refuse_unknown({"a": {"set": {}, "trial": "fine"}})
    # Of a run that keeps its last epoch there is no other to score beside it.
    with pytest.raises(SystemExit, match=r"needs training\.choose_epoch: best"):
        recipes._refuse_unknown({"a": {"set": {}, "also": ["last"]}})
