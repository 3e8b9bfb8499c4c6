"""The laws of two trials of benchmarks/: ragged draws, and draws by an early exit."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import build_backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import RunConfig
from mammo_pd.patches.draw import draw_tissue
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.terms import Draw

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
IMG_SIZE, NUM_TOKENS = (96, 64), 24
KEYS = torch.tensor([11, -5, 7, 2**61])


@pytest.fixture(scope="module")
def ragged() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("ragged")


@pytest.fixture(scope="module")
def early_exit() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("early_exit")


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    built = build_backbone("vit_tiny_patch16_224", IMG_SIZE, drop_path_rate=0.5)
    nn.init.normal_(built.timm_model.head.weight)
    return built.double().train()


def tissue_of(*counts: int) -> Tensor:
    return torch.arange(NUM_TOKENS) < torch.tensor(counts)[:, None]


def breasts(*widths: int) -> ImageBatch:
    """Images of noise, air on the right of it."""
    rng = np.random.default_rng(0)
    images = [rng.integers(1, 65536, (90, 70)).astype(np.uint16) for _ in widths]
    for image, width in zip(images, widths, strict=True):
        image[:, width:] = 0
    batch = ImageBatch.from_images(images)
    batch.targets[:] = torch.arange(len(widths))[:, None] % 2
    return batch


# ---- ragged draws


@pytest.mark.parametrize("total", [1, 17, 40, 57, 58, 60, 96])
@pytest.mark.parametrize("tissue", [(9, 24, 0, 24), (1, 1, 1, 1), (0, 0, 0, 0)])
def test_patches_are_shared_out_by_tissue(
    ragged: ModuleType, tissue: tuple[int, ...], total: int
) -> None:
    held = torch.tensor(tissue)
    counts = ragged.share_out(held, NUM_TOKENS, total)
    assert counts.sum() == total
    if total <= sum(tissue):
        assert (counts <= held).all()
        assert ((counts - held * total / sum(tissue)).abs() < 1).all()
    else:
        air = NUM_TOKENS - held
        assert ((counts - held - air * (total - sum(tissue)) / air.sum()).abs() < 1).all()


@pytest.mark.parametrize("tissue", [(9, 24, 0, 20), (12, 12, 12, 12), (1, 0, 3, 2)])
def test_each_image_is_drawn_as_far_as_its_count_in_the_tissue_draw(
    ragged: ModuleType, tissue: tuple[int, ...]
) -> None:
    held = tissue_of(*tissue)
    drawn = ragged.draw_share(KEYS, held, 24)
    assert torch.equal(drawn.images.bincount(minlength=4), drawn.counts)
    for image, count in enumerate(drawn.counts.tolist()):
        own = drawn.positions[drawn.images == image]
        assert torch.equal(own, draw_tissue(KEYS, held, count)[image])
    again = ragged.draw_share(KEYS, held, 24)
    assert all(torch.equal(one, other) for one, other in zip(drawn, again, strict=True))


def test_packed_patches_hold_the_pixels_of_their_images(ragged: ModuleType) -> None:
    images = breasts(70, 20, 50, 5)
    sampler = PatchSampler(IMG_SIZE, 16, draw=Draw.TISSUE)
    placement = sampler.place(images, KEYS)
    drawn = ragged.draw_share(KEYS, sampler.tissue(images, placement), 24)
    every = torch.arange(NUM_TOKENS).expand(4, -1)
    whole = sampler.read(images, placement, every)
    packed = ragged.read_packed(sampler, images, placement, drawn)
    assert torch.equal(packed, whole[drawn.images, drawn.positions])


def outputs_of(
    model: nn.Module, counts: list[int], patches: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient of all weights."""
    images = torch.repeat_interleave(torch.tensor(counts))
    model.zero_grad()
    outputs = model(patches, positions, images, torch.tensor(counts), KEYS)
    (outputs * torch.arange(1, 5)[:, None]).sum().backward()
    return outputs.detach(), gradient_of(model)


def gradient_of(model: nn.Module) -> Tensor:
    grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("counts", [[6, 6, 6, 6], [1, 14, 0, 9]])
def test_a_row_of_images_gives_what_each_image_gives_by_itself(
    ragged: ModuleType, backbone: Backbone, counts: list[int]
) -> None:
    patches = torch.randn(24, 256, dtype=torch.float64)
    order = torch.rand(4, NUM_TOKENS).argsort(dim=1)
    positions = torch.cat([row[:count] for row, count in zip(order, counts, strict=True)])
    model = ragged.Ragged(backbone, ragged.Attention.MASKED)
    found, gradient = outputs_of(model, counts, patches, positions)

    model.zero_grad()
    parts = zip(patches.split(counts), positions.split(counts), KEYS.split(1), strict=True)
    alone = torch.cat([backbone(own[None], at[None], key) for own, at, key in parts])
    (alone * torch.arange(1, 5)[:, None]).sum().backward()
    assert torch.allclose(found, alone.detach(), rtol=0, atol=1e-9)
    assert torch.allclose(gradient, gradient_of(model), rtol=0, atol=1e-9)
    if counts == [6, 6, 6, 6]:
        usual = backbone(patches.view(4, 6, 256), positions.view(4, 6), KEYS)
        assert torch.allclose(found, usual.detach(), rtol=0, atol=1e-9)


def test_no_token_attends_to_another_image(ragged: ModuleType, backbone: Backbone) -> None:
    counts = [1, 14, 0, 9]
    patches, positions = torch.randn(24, 256, dtype=torch.float64), torch.arange(24)
    model = ragged.Ragged(backbone, ragged.Attention.MASKED)
    before, _ = outputs_of(model, counts, patches, positions)
    patches[1:15] += 1
    after, _ = outputs_of(model, counts, patches, positions)
    assert torch.equal((before != after).flatten(), torch.tensor([False, True, False, False]))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_tiles_cover_the_pairs_within_images_and_no_others(ragged: ModuleType) -> None:
    counts = torch.tensor([0, 1, 20, 340, 9, 8, 350, 32])
    row = ragged.lay_out(counts, int(counts.sum()), ragged.Attention.FLEX)
    pairs = (row.images[:, None] == row.images).view(6, 128, 6, 128)
    assert torch.equal(row.tiles.to_dense()[0, 0].bool(), pairs.any(dim=3).any(dim=1))
    assert row.tiles.full_kv_num_blocks.sum() == pairs.all(dim=3).all(dim=1).sum() > 0
    q, k, v = torch.randn(3, len(row.images), 2, 16)
    masked, flex = (
        ragged.attend(q, k, v, row, 400, kind)
        for kind in (ragged.Attention.MASKED, ragged.Attention.FLEX)
    )
    assert torch.allclose(masked, flex, atol=1e-5)


# ---- draws by an early exit


def test_equal_salience_is_the_tissue_draw(early_exit: ModuleType) -> None:
    for salience in (torch.zeros(4, NUM_TOKENS), torch.full((4, NUM_TOKENS), 3.7)):
        for held in (tissue_of(9, 24, 0, 20), tissue_of(1, 5, 6, 7)):
            drawn = early_exit.draw_weighted(KEYS, held, salience, 6)
            assert torch.equal(drawn, draw_tissue(KEYS, held, 6))


def test_salient_tissue_is_kept_more_often_and_the_rest_still_is(early_exit: ModuleType) -> None:
    keys, held = torch.arange(4000), tissue_of(16).expand(4000, -1)
    salience = (torch.arange(NUM_TOKENS) < 4).float().expand(4000, -1)
    drawn = early_exit.draw_weighted(keys, held, salience, 6)
    assert torch.equal(drawn, early_exit.draw_weighted(keys, held, salience, 6))
    assert (drawn.diff(dim=1) > 0).all() and drawn.max() < 16
    share = drawn.flatten().bincount(minlength=NUM_TOKENS) / 4000
    # Standardised, the four are at 1.73 and the others at -.58. Of softmax weights times 16 that is
    # 3.08 and .31; with half of the weight uniform, 2.04 and .65.
    first = early_exit.draw_weighted(keys, held, salience, 1)
    assert float((first < 4).float().mean()) == pytest.approx(4 * 2.04 / 16, abs=0.03)
    assert share[:4].min() > 0.6 > 0.35 > share[4:16].max() > share[4:16].min() > 0.2


def test_a_lone_patch_of_tissue_and_none_at_all_are_drawn(early_exit: ModuleType) -> None:
    drawn = early_exit.draw_weighted(KEYS, tissue_of(1, 0, 24, 2), torch.randn(4, NUM_TOKENS), 6)
    assert (drawn.diff(dim=1) > 0).all()
    assert drawn[0, 0] == 0 and drawn[3, :2].tolist() == [0, 1]


def test_the_exit_learns_beside_the_backbone_and_changes_nothing_of_it(
    early_exit: ModuleType, backbone: Backbone
) -> None:
    backbone.float()
    objective = early_exit.SalientDraw(RunConfig().training)
    model = objective.build_model(backbone)
    sampler = PatchSampler(IMG_SIZE, 16, draw=Draw.TISSUE)
    images = breasts(70, 20, 50, 5)
    inputs, targets = objective.training_inputs(sampler, images, KEYS, 6)
    # Nothing is salient yet, and so the draw is the tissue draw.
    kept, positions = sampler.for_training(images, KEYS, 6)
    assert torch.equal(inputs[0], kept) and torch.equal(inputs[1], positions)

    loss = objective.loss(model(*inputs), targets)
    loss.backward()
    gradient = gradient_of(backbone)
    assert model.exit.weight.grad.abs().max() > 0
    model.zero_grad()
    plain = objective.loss(backbone(*inputs[:3]), targets)
    plain.backward()
    assert torch.equal(loss, plain)
    assert torch.allclose(gradient, gradient_of(backbone), atol=1e-6)

    nn.init.normal_(model.exit.weight)
    again, _ = objective.training_inputs(sampler, images, KEYS, 6)
    assert not torch.equal(again[1], positions)
    model.eval()
    seen = objective.evaluation_inputs(sampler, images)
    assert torch.equal(model(*seen), backbone(*seen))


def test_the_first_look_scores_each_patch_by_the_coarse_one_above_it(
    early_exit: ModuleType,
) -> None:
    sampler = PatchSampler((80, 48), 16)  # an odd grid: 5 x 3 patches, 3 x 2 coarse ones
    backbone = build_backbone("vit_tiny_patch16_224", (80, 48)).train()
    model = early_exit.EarlyExit(backbone)
    nn.init.normal_(model.exit.weight)
    images = breasts(48, 20)
    placement = sampler.place(images, None)
    scores, mean = model.look(images, placement, torch.ones(2, 15, dtype=torch.bool))
    grid = scores.view(2, 5, 3)
    assert torch.equal(grid[:, 0::2][:, :2], grid[:, 1::2])
    assert torch.equal(grid[:, :, 0], grid[:, :, 1])
    assert len(grid[0].unique()) == 6
    # The exit of the mean token is the mean of the scores.
    coarse = grid[:, 0::2, 0::2].flatten(1).mean(dim=1)
    assert torch.allclose(mean @ model.exit.weight[0], coarse, atol=1e-4)
