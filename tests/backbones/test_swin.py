"""Swin on kept patches: timm's forward with all of them, an oracle pair by pair with some."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from mammo_pd.backbones.build import build_backbone, describe_backbone
from mammo_pd.backbones.drop_path import KeyedDropPath
from mammo_pd.backbones.swin import SwinBackbone
from mammo_pd.config import resolve_img_size
from mammo_pd.errors import InputError
from mammo_pd.keep_schedule import choose_rows_kept
from mammo_pd.keyed_random import image_key
from mammo_pd.patches.draw import draw_windows
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.terms import Draw, ScoredPatches

TINY = "swin_tiny_patch4_window7_224"
KEYS = torch.tensor([image_key(0, 0, str(number)) for number in range(3)])
# Rows and columns of the windows, and the rate that keeps them.
RATES = {2: 0.08, 3: 0.25, 4: 0.33, 5: 0.5, 6: 0.73, 7: 1.0}


def small_swin(img_size: tuple[int, int], **options: Any) -> SwinBackbone:
    """Three narrow stages whose weights let an error show."""
    torch.manual_seed(0)
    given = {"depths": (2, 2, 2), "num_heads": (1, 2, 4), "drop_path_rate": 0.0, **options}
    model = SwinTransformer(img_size=img_size, in_chans=1, num_classes=2, embed_dim=8, **given)
    for weight in model.parameters():
        fan_in = weight[0].numel() if weight.ndim > 1 else 4
        nn.init.normal_(weight, std=fan_in**-0.5)
    return SwinBackbone(model).eval()


def patches_of(images: Tensor) -> Tensor:
    return F.unfold(images, 4, stride=4).mT


def kept_of(model: SwinBackbone, images: Tensor, kept: int, keys: Tensor) -> tuple[Tensor, Tensor]:
    positions = draw_windows(keys, model.grid_size, 7, model.allowed_keep(RATES[kept]))
    patches = patches_of(images)
    return patches.gather(1, positions[..., None].expand(-1, -1, patches.shape[-1])), positions


@pytest.mark.parametrize(
    "img_size",
    [
        (224, 224),
        (112, 140),
        # No whole number of windows, in some stage or other; and less than one.
        (84, 56),
        (64, 48),
        (96, 200),
        (20, 12),
    ],
)
def test_all_patches_give_timms_own_forward(img_size: tuple[int, int]) -> None:
    model = small_swin(img_size)
    # Noise alone would be averaged away.
    images = torch.randn(2, 1, *img_size) + torch.tensor([-1.0, 1.0])[:, None, None, None]
    positions = torch.arange(model.num_tokens).expand(2, -1)
    with torch.no_grad():
        expected = model.timm_model(images)
        assert (expected[0] - expected[1]).abs().max() > 1e-3
        for training in (False, True):
            found = model.train(training)(patches_of(images), positions)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def oracle(model: SwinBackbone, patches: Tensor, positions: Tensor, kept: int) -> Tensor:
    """The outputs (2,) of one image, token by token: no rolling, no masks, no padding.

    A token is its value and its row and column on the whole grid of its stage.
    """
    swin = model.timm_model
    values = swin.patch_embed.norm(
        F.linear(patches, swin.patch_embed.proj.weight.flatten(1), swin.patch_embed.proj.bias)
    )
    rows, columns = (
        (positions // model.grid_size[1]).tolist(),
        (positions % model.grid_size[1]).tolist(),
    )
    for stage_number, stage in enumerate(swin.layers):
        if stage_number:
            values, rows, columns = merge(stage.downsample, values, rows, columns)
        # Of the smaller grid.
        row_of = {row: place for place, row in enumerate(sorted(set(rows)))}
        column_of = {column: place for place, column in enumerate(sorted(set(columns)))}
        for block_number, block in enumerate(stage.blocks):
            moved = [
                round(3 * kept / 7) if block_number % 2 and len(places) > kept else 0
                for places in (row_of, column_of)
            ]
            window = [
                ((row_of[row] - moved[0]) // kept, (column_of[column] - moved[1]) // kept)
                for row, column in zip(rows, columns, strict=True)
            ]
            normed = block.norm1(values)
            heads, side = block.attn.num_heads, block.attn.window_size
            q, k, v = block.attn.qkv(normed).view(len(values), 3, heads, -1).unbind(1)
            mixed = []
            for one in range(len(values)):
                others = [other for other in range(len(values)) if window[other] == window[one]]
                bias = torch.stack(
                    [
                        block.attn.relative_position_bias_table[
                            (rows[one] - rows[other] + side[0] - 1) * (2 * side[1] - 1)
                            + (columns[one] - columns[other] + side[1] - 1)
                        ]
                        for other in others
                    ]
                )
                scores = (q[one] * k[others]).sum(-1) * q.shape[-1] ** -0.5 + bias
                mixed.append((scores.softmax(0)[..., None] * v[others]).sum(0).flatten())
            values = values + block.attn.proj(torch.stack(mixed))
            values = values + block.mlp(block.norm2(values))
    return swin.head.fc(swin.norm(values).mean(0))  # type: ignore[no-any-return]


def merge(
    merging: Any, values: Tensor, rows: list[int], columns: list[int]
) -> tuple[Tensor, list[int], list[int]]:
    at = {place: number for number, place in enumerate(zip(rows, columns, strict=True))}
    down, right = sorted(set(rows)), sorted(set(columns))
    assert len(down) % 2 == len(right) % 2 == 0
    merged, places = [], []
    for i in range(0, len(down), 2):
        for j in range(0, len(right), 2):
            # timm's order: down within right.
            four = [(i, j), (i + 1, j), (i, j + 1), (i + 1, j + 1)]
            merged.append(torch.cat([values[at[down[a], right[b]]] for a, b in four]))
            places.append((down[i] // 2, right[j] // 2))
    found = merging.reduction(merging.norm(torch.stack(merged)))
    return found, [row for row, _ in places], [column for _, column in places]


@pytest.mark.parametrize(
    ("kept", "img_size"), [(2, (112, 112)), (3, (112, 224)), (4, (56, 112)), (6, (56, 56))]
)
def test_some_patches_give_what_an_oracle_computes_pair_by_pair(
    kept: int, img_size: tuple[int, int]
) -> None:
    """Places within windows and across shifted ones, in stages of several windows and of one."""
    model = small_swin(img_size)
    images = torch.randn(2, 1, *model.timm_model.patch_embed.img_size)
    patches, positions = kept_of(model, images, kept, KEYS[:2])
    with torch.no_grad():
        found = model(patches, positions)
        for number in range(2):
            expected = oracle(model, patches[number], positions[number], kept)
            torch.testing.assert_close(found[number], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kept", [3, 4])
def test_an_image_does_not_depend_on_the_others_of_its_batch(kept: int) -> None:
    """The code released with the paper takes another image's rows in most windows."""
    model = small_swin((112, 168))
    images = torch.randn(3, 1, 112, 168)
    patches, positions = kept_of(model, images, kept, KEYS)
    assert len({tuple(row.tolist()) for row in positions}) == 3
    with torch.no_grad():
        together = model(patches, positions)
        for number in range(3):
            one = slice(number, number + 1)
            alone = model(patches[one], positions[one])
            torch.testing.assert_close(alone, together[one], atol=1e-5, rtol=1e-5)
        order = torch.tensor([2, 0, 1])
        turned = model(patches[order], positions[order])
        torch.testing.assert_close(turned, together[order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kept", [2, 3, 5, 6])
def test_masks_part_what_the_roll_has_brought_together(kept: int) -> None:
    """Shifted windows hold tokens of two others, which so talk: the release's do not at n = 3."""
    model = small_swin((84, 112))
    rows, columns = 3 * kept, 4 * kept
    at = torch.arange(rows)[None], torch.arange(columns)[None]
    plain, shifted = model._windows_of(model.timm_model.layers[0].blocks, kept, at)
    assert plain is not None
    assert plain.mask is None
    assert shifted is not None
    assert shifted.mask is not None
    moved = shifted.shift[0]
    assert 0 < moved < kept
    places = [(row, column) for row in range(rows) for column in range(columns)]
    windows: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, column in places:
        # As rolled: what was in front of the first shifted window comes last.
        rolled = (row - moved) % rows, (column - moved) % columns
        windows.setdefault((rolled[0] // kept, rolled[1] // kept), []).append((row, column))
    assert len(windows) == shifted.count == len(shifted.mask)
    for mask, (_, tokens) in zip(shifted.mask, sorted(windows.items()), strict=True):
        tokens.sort(key=lambda t: ((t[0] - moved) % rows, (t[1] - moved) % columns))
        for i, one in enumerate(tokens):
            for j, other in enumerate(tokens):
                near = all(abs(a - b) < kept for a, b in zip(one, other, strict=True))
                assert mask[i, j] == (0 if near else -100)


def test_the_same_rows_and_columns_are_drawn_in_every_window() -> None:
    keys = torch.tensor([image_key(1, 2, str(number)) for number in range(2000)])
    positions = draw_windows(keys, (14, 21), 7, 6 * 9)
    assert (positions.diff(dim=1) > 0).all()
    kept = torch.zeros(len(keys), 14 * 21, dtype=torch.bool).scatter_(1, positions, value=True)
    windows = kept.view(-1, 2, 7, 3, 7).permute(0, 1, 3, 2, 4).flatten(1, 2)
    assert (windows == windows[:, :1]).all()
    rows, columns = windows[:, 0].any(2), windows[:, 0].any(1)
    assert (rows.sum(1) == 3).all()
    assert (columns.sum(1) == 3).all()
    assert (windows[:, 0] == rows[:, :, None] & columns[:, None, :]).all()
    # Every row and column equally often, and not together: 2,000 draws of 3 in 7.
    for share in (*rows.float().mean(0), *columns.float().mean(0)):
        assert share == pytest.approx(3 / 7, abs=0.05)
    assert (rows & columns).float().mean() == pytest.approx((3 / 7) ** 2, abs=0.02)
    torch.testing.assert_close(draw_windows(keys[5:6], (14, 21), 7, 54), positions[5:6])


def test_keep_rates_go_to_the_nearest_number_of_rows() -> None:
    expected = {0.06: 2, 0.1: 2, 0.25: 3, 0.3: 4, 0.5: 5, 0.75: 6, 0.9: 7, 1.0: 7}
    assert {rate: choose_rows_kept(7, rate) for rate in expected} == expected
    with pytest.raises(InputError, match=r"keep rate of 0.02 leaves one patch .* at least 0.082"):
        choose_rows_kept(7, 0.02)
    with pytest.raises(ValueError, match=r"keep_rate 1\.5 is not in"):
        choose_rows_kept(7, 1.5)
    model = describe_backbone(TINY)
    assert model.allowed_keep(0.25) == 64 * 9
    assert "3 of 7 rows and columns of every window, 18 %" in str(model.describe_keep(0.25))
    assert model.describe_keep(1.0) is None
    with pytest.raises(InputError, match="whole windows only, of 28x28 pixels"):
        small_swin((64, 48)).allowed_keep(0.25)
    with pytest.raises(ValueError, match="are not the same rows"):
        small_swin((56, 56))(torch.zeros(1, 30, 16), torch.arange(30)[None])


def test_sizes_and_draws_that_windows_do_not_allow_are_refused() -> None:
    assert resolve_img_size(896, 4, (0, 0), window=7) == (896, 728)
    assert resolve_img_size("full", 4, (1000, 29), window=7) == (1008, 56)
    with pytest.raises(InputError, match=r"multiple of 28 pixels, a window .* 1008 and 1036"):
        resolve_img_size(1024, 4, (0, 0), window=7)
    with pytest.raises(InputError, match=r"--draw tissue .* windows? of 7x7"):
        PatchSampler((56, 56), 4, draw=Draw.TISSUE, window=7)
    with pytest.raises(InputError, match=r"score_on=tissue .* every window of 7x7"):
        PatchSampler((56, 56), 4, score_on=ScoredPatches.TISSUE, window=7)


@pytest.mark.parametrize("kept", [3, 7])
def test_checkpointing_and_keyed_depth_change_no_gradient(kept: int) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = small_swin((56, 56), drop_path_rate=0.5).train()
        model.timm_model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(1)
        patches, positions = kept_of(model, torch.randn(3, 1, 56, 56), kept, KEYS)
        model(patches, positions, KEYS).square().sum().backward()
        paths = [module for module in model.modules() if isinstance(module, KeyedDropPath)]
        assert paths[-1].scale is not None
        assert set(paths[-1].scale.tolist()) == {0, 2}
        gradients.append([weight.grad for weight in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert recomputed is not None
        torch.testing.assert_close(recomputed, plain)


def test_timms_model_is_left_as_it_was() -> None:
    model = small_swin((112, 112))
    images = torch.randn(3, 1, 112, 112)
    with torch.no_grad():
        before = model.timm_model(images)
        model(*kept_of(model, images, 3, KEYS))
        torch.testing.assert_close(model.timm_model(images), before)


def test_weights_of_a_local_file_give_what_timm_gives_of_grey(tmp_path: Path) -> None:
    """With three channels; where a stage's grid is less than a window, its biases resampled."""
    img_size = (64, 48)
    torch.manual_seed(0)
    whole = timm.create_model(TINY, num_classes=10, weight_init="skip")
    save_file(whole.state_dict(), tmp_path / "swin.safetensors")
    ours = build_backbone(TINY, img_size, weights=str(tmp_path / "swin.safetensors")).eval()
    report = ours.weights_report
    assert report is not None
    lines = "\n".join(report.lines())
    assert "a Swin transformer, width 96, depths 2, 2, 6, 2" in lines
    assert "biases of windows to 2x2 patches" in lines
    assert "biases of windows to 7x7 patches" not in lines

    theirs = timm.create_model(TINY, num_classes=0, img_size=img_size, weight_init="skip")
    resized = timm.models.swin_transformer.checkpoint_filter_fn(whole.state_dict(), theirs)
    theirs.load_state_dict(
        {name: value for name, value in resized.items() if not name.startswith("head.")}
    )
    grey = torch.rand(2, 1, *img_size)
    mean, std = (torch.tensor(theirs.pretrained_cfg[n])[:, None, None] for n in ("mean", "std"))
    with torch.no_grad():
        expected = theirs.eval()((grey - mean) / std)
        given = (patches_of(grey) - ours.normalization.mean) / ours.normalization.std
        positions = torch.arange(ours.num_tokens).expand(2, -1)
        tokens = ours.forward_features(ours.embed(given, positions), positions)
        torch.testing.assert_close(ours.pool(tokens), expected, atol=1e-4, rtol=1e-4)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file(small_swin((56, 56)).timm_model.state_dict(), file)
    with pytest.raises(InputError, match=r"width 8, depths 2, 2, 2; you asked for swin_tiny"):
        build_backbone(TINY, (56, 56), weights=str(file))
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), file)
    with pytest.raises(InputError, match="are not those of a Swin transformer"):
        build_backbone(TINY, (56, 56), weights=str(file))


@pytest.mark.slow
def test_compiled_equals_eager_and_is_compiled_once_for_all_draws() -> None:
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    model = small_swin((56, 56), drop_path_rate=0.5).train()
    weight = model.timm_model.patch_embed.proj.weight
    given = []
    for seed in range(3):
        keys = KEYS + seed
        given.append((*kept_of(model, torch.randn(3, 1, 56, 56), 3, keys), keys))
    expected = [model(*one) for one in given]
    gradients = [torch.autograd.grad(one.sum(), weight)[0] for one in expected]
    model.compile_blocks()
    graphs = []
    for one, scores, gradient in zip(given, expected, gradients, strict=True):
        found = model(*one)
        torch.testing.assert_close(found, scores, atol=1e-4, rtol=1e-4)
        again = torch.autograd.grad(found.sum(), weight)[0]
        torch.testing.assert_close(again, gradient, atol=1e-3, rtol=1e-3)
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(set(graphs)) == 1
