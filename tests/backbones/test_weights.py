"""Pretrained weights: our model equals the source's own, and nothing is loaded by halves."""

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import build_backbone
from mammo_pd.backbones.weights.normalization import guess_normalization
from mammo_pd.backbones.weights.report import WeightsReport
from mammo_pd.batch import ImageBatch
from mammo_pd.errors import InputError
from mammo_pd.patches.sampler import PatchSampler

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5,) * 3, (0.5,) * 3)


def scrambled(name: str, **options: Any) -> nn.Module:
    """A timm model of three channels whose every weight is large enough for an error to show."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith(("gamma", "gamma_1", "gamma_2")):
                weight.uniform_(0.1, 0.5)
            elif weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.1)
            elif "token" in key or "pos_embed" in key:
                weight.normal_(std=0.3)
    return model


def saved(state: dict[str, Tensor], file: Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return str(file)


def pooled_by_both(
    source: nn.Module, ours: Backbone, normalization: tuple[Any, Any]
) -> tuple[Tensor, Tensor]:
    """Pooled features: the source's, of the image thrice; ours, by its own sampler."""
    height, width = (side * ours.patch_size for side in ours.grid_size)
    # Wider than the image, so that the sampler fills up with air.
    stored = torch.randint(0, 65536, (2, height, width - 5), dtype=torch.int32)
    images = ImageBatch.from_images(list(stored.numpy().astype(np.uint16)))
    grey = torch.zeros(2, 1, height, width)
    grey[..., : width - 5] = stored[:, None].float() / 65535
    mean, std = (torch.tensor(values)[:, None, None] for values in normalization)
    normal = ours.normalization
    sampler = PatchSampler((height, width), ours.patch_size, normalization=normal)
    with torch.no_grad():
        expected = source.forward_head(
            source.forward_features((grey.expand(-1, 3, -1, -1) - mean) / std), pre_logits=True
        )
        patches, positions = sampler.for_evaluation(images)
        found = ours.pool(ours.forward_features(ours.embed(patches, positions), positions))
    assert expected.std() > 0.01
    return expected, found


EXACT = {
    "ViT": ("vit_tiny_patch16_224", HALF),
    "DeiT": ("deit_tiny_patch16_224", IMAGENET),
    "DeiT III, class token without a position": ("deit3_small_patch16_224", IMAGENET),
    "DINOv2": ("vit_small_patch14_dinov2", IMAGENET),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", IMAGENET),
    "CLIP, no bias in the patch embedding": ("vit_xsmall_patch16_clip_224", CLIP),
    "DINOv3": ("vit_small_patch16_dinov3", IMAGENET),
    "EVA-02": ("eva02_tiny_patch14_224", CLIP),
    "Perception Encoder": ("vit_pe_core_tiny_patch16_384", HALF),
}


@pytest.mark.parametrize(("name", "normalization"), EXACT.values(), ids=EXACT)
def test_keep_1_equals_timms_model_of_three_channels(
    name: str, normalization: tuple[Any, Any], tmp_path: Path
) -> None:
    patch_size = 14 if "patch14" in name else 16
    img_size = (6 * patch_size, 6 * patch_size)
    source = scrambled(name, img_size=img_size, num_classes=0)
    weights = saved(source.state_dict(), tmp_path / "w.safetensors")
    ours = build_backbone(name, img_size, weights=weights).eval()
    expected, found = pooled_by_both(source, ours, normalization)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def as_dino(state: dict[str, Tensor]) -> dict[str, Any]:
    def network(values: dict[str, Tensor]) -> dict[str, Tensor]:
        head = {"module.head.mlp.0.weight": torch.randn(4, 4)}
        return {f"module.backbone.{name}": value for name, value in values.items()} | head

    student = {name: torch.randn_like(value) for name, value in state.items()}
    return {
        "student": network(student),
        "teacher": network(state),
        "epoch": 3,
        "args": Namespace(arch="vit_tiny"),
    }


def as_dinov2_with_registers(state: dict[str, Tensor]) -> dict[str, Any]:
    values = dict(state)
    of_class = torch.randn_like(values["cls_token"])
    return values | {
        "register_tokens": values.pop("reg_token"),
        "cls_token": values["cls_token"] - of_class,
        "pos_embed": torch.cat([of_class, values["pos_embed"]], dim=1),
        "mask_token": torch.zeros(1, 384),
    }


def as_mae(state: dict[str, Tensor]) -> dict[str, Any]:
    decoder = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_pos_embed": torch.zeros(1, 37, 8),
        "decoder_embed.weight": torch.randn(8, 192),
        "decoder_blocks.0.mlp.fc1.weight": torch.randn(8, 8),
    }
    return {"model": state | decoder}


def as_openai_clip(state: dict[str, Tensor]) -> dict[str, Any]:
    swaps = [
        ("patch_embed.proj", "conv1"),
        ("pos_embed", "positional_embedding"),
        ("blocks.", "transformer.resblocks."),
        ("norm_pre", "ln_pre"),
        ("attn.qkv.", "attn.in_proj_"),
        ("attn.proj", "attn.out_proj"),
        ("norm1", "ln_1"),
        ("norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("cls_token", "class_embedding"),
        ("norm.", "ln_post."),
    ]
    renamed = {
        "positional_embedding": torch.randn(77, 64),
        "transformer.resblocks.0.ln_1.weight": torch.ones(64),
        "logit_scale": torch.tensor(4.6),
        "visual.proj": torch.randn(256, 128).half(),
    }
    for name, value in state.items():
        for timms, theirs in swaps:
            name = name.replace(timms, theirs)
        whole = name in ("positional_embedding", "class_embedding")
        renamed[f"visual.{name}"] = (value.flatten(0, -2).squeeze(0) if whole else value).half()
    return renamed


def test_activation_of_clip_weights_is_asked_for(tmp_path: Path) -> None:
    source = scrambled("vit_xsmall_patch16_clip_224", img_size=96, num_classes=0)
    torch.save(as_openai_clip(source.state_dict()), tmp_path / "w.pth")
    weights = str(tmp_path / "w.pth")
    ours = build_backbone("vit_xsmall_patch16_clip_224", (96, 96), weights=weights)
    assert any("quickgelu" in line for line in report_of(ours).lines())


def as_open_clip(state: dict[str, Tensor]) -> dict[str, Any]:
    trunk = {f"module.visual.trunk.{name}": value for name, value in state.items()}
    others = {
        "module.text.positional_embedding": torch.randn(77, 8),
        "module.logit_bias": torch.ones(1),
    }
    return {"state_dict": trunk | {"module.visual.head.proj.weight": torch.randn(8, 192)} | others}


def as_dinov3(state: dict[str, Tensor]) -> dict[str, Any]:
    renamed = {}
    for name, value in state.items():
        if name.endswith("q_bias"):
            of_values = state[name.replace("q_bias", "v_bias")]
            bias = torch.cat([value, torch.zeros_like(value), of_values])
            renamed[name.replace("q_bias", "qkv.bias")] = bias
        elif not name.endswith("v_bias"):
            name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
            renamed[name.replace("reg_token", "storage_tokens")] = value
    extra = {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    return renamed | extra


def as_lightning(state: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "state_dict": {f"model._orig_mod.{name}": value for name, value in state.items()},
        "optimizer_states": [{"lr": 0.1}],
        "pytorch-lightning_version": "2.0",
    }


FORMATS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Any]], str, tuple[Any, Any]]] = {
    "DINO, the teacher of two": (as_dino, "vit_tiny_patch16_224", IMAGENET),
    "DINOv2 with registers": (as_dinov2_with_registers, "vit_small_patch14_reg4_dinov2", IMAGENET),
    "MAE with its decoder": (as_mae, "vit_tiny_patch16_224", IMAGENET),
    "OpenAI's CLIP in fp16": (as_openai_clip, "vit_xsmall_patch16_clip_224", CLIP),
    "OpenCLIP's timm tower": (as_open_clip, "vit_tiny_patch16_224", HALF),
    "DINOv3": (as_dinov3, "vit_small_patch16_dinov3", IMAGENET),
    "DINOv3 with biases": (as_dinov3, "vit_small_patch16_dinov3_qkvb", IMAGENET),
    "Lightning, compiled": (as_lightning, "deit_tiny_patch16_224", IMAGENET),
}


@pytest.mark.parametrize(("converted", "name", "normalization"), FORMATS.values(), ids=FORMATS)
def test_files_as_their_authors_write_them_compute_the_same(
    converted: Callable[[dict[str, Tensor]], dict[str, Any]],
    name: str,
    normalization: tuple[Any, Any],
    tmp_path: Path,
) -> None:
    side = 6 * (14 if "patch14" in name else 16)
    source = scrambled(name, img_size=(side, side), num_classes=0)
    state = source.state_dict()
    content = converted(state)
    if converted is as_openai_clip:
        source.load_state_dict({key: value.half().float() for key, value in state.items()})
    torch.save(content, tmp_path / "w.pth")
    ours = build_backbone(name, (side, side), weights=str(tmp_path / "w.pth")).eval()
    expected, found = pooled_by_both(source, ours, normalization)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_layer_scale_that_the_model_lacks_is_folded_and_else_set_to_1(tmp_path: Path) -> None:
    scaled = scrambled("vit_tiny_patch16_224", img_size=96, num_classes=0, init_values=1e-5)
    plain = scrambled("deit3_small_patch16_224", img_size=96, num_classes=0, init_values=None)
    for source, name in ((scaled, "vit_tiny_patch16_224"), (plain, "deit3_small_patch16_224")):
        weights = saved(source.state_dict(), tmp_path / f"{name}.safetensors")
        ours = build_backbone(name, (96, 96), weights=weights).eval()
        expected, found = pooled_by_both(source, ours, IMAGENET)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("img_size", [(96, 96), (96, 64)], ids=["square", "not square"])
def test_another_grid_and_patch_size_are_resampled_as_timm_does(
    img_size: tuple[int, int], tmp_path: Path
) -> None:
    trained = scrambled("vit_tiny_patch16_224", img_size=224, patch_size=14, num_classes=0)
    expected_of = timm.create_model("vit_tiny_patch16_224", img_size=img_size, num_classes=0).eval()
    filtered = checkpoint_filter_fn(trained.state_dict(), expected_of)
    expected_of.load_state_dict(filtered)
    weights = saved(trained.state_dict(), tmp_path / "w.safetensors")
    ours = build_backbone("vit_tiny_patch16_224", img_size, weights=weights).eval()
    expected, found = pooled_by_both(expected_of, ours, HALF)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_class_positions_and_registers_move_with_their_tokens(tmp_path: Path) -> None:
    """A DINOv2 file with registers into a model without, and the other way round."""
    with_registers = scrambled("vit_small_patch14_reg4_dinov2", img_size=84, num_classes=0)
    weights = saved(with_registers.state_dict(), tmp_path / "reg.safetensors")
    without = build_backbone("vit_small_patch14_dinov2", (84, 84), weights=weights).timm_model
    state = with_registers.state_dict()
    of_class = without.cls_token + without.pos_embed[:, :1]
    torch.testing.assert_close(of_class, state["cls_token"])
    torch.testing.assert_close(without.pos_embed[:, 1:], state["pos_embed"])

    weights = saved(without.state_dict(), tmp_path / "plain.safetensors")
    again = build_backbone("vit_small_patch14_reg4_dinov2", (84, 84), weights=weights)
    torch.testing.assert_close(again.timm_model.cls_token, state["cls_token"])
    torch.testing.assert_close(again.timm_model.pos_embed, state["pos_embed"])
    rows = {row.part: row for row in report_of(again).rows}
    assert rows["reg_token"].outcome == "at random"


def test_distilled_deit_loses_its_second_token_with_its_position(tmp_path: Path) -> None:
    source = scrambled("deit_tiny_distilled_patch16_224", img_size=96)
    state = source.state_dict()
    torch.save({"model": state}, tmp_path / "w.pth")
    ours = build_backbone("deit_tiny_patch16_224", (96, 96), weights=str(tmp_path / "w.pth"))
    model = ours.timm_model
    of_class = model.cls_token + model.pos_embed[:, :1]
    torch.testing.assert_close(of_class, state["cls_token"] + state["pos_embed"][:, :1])
    torch.testing.assert_close(model.pos_embed[:, 1:], state["pos_embed"][:, 2:])
    dropped = {row.part for row in report_of(ours).rows if row.outcome == "dropped"}
    assert dropped == {"dist_token", "head", "head_dist"}


def test_last_norm_moves_with_the_pooling_and_that_is_told(tmp_path: Path) -> None:
    source = scrambled("vit_tiny_patch16_224", img_size=96)
    weights = saved(source.state_dict(), tmp_path / "w.safetensors")
    averaged = build_backbone("vit_tiny_patch16_224", (96, 96), weights=weights, global_pool="avg")
    assert torch.equal(averaged.timm_model.fc_norm.weight, source.norm.weight)
    assert any("moved" in line and "after pooling" in line for line in report_of(averaged).lines())


def report_of(backbone: Backbone) -> WeightsReport:
    report = backbone.weights_report
    assert report is not None
    return report


def test_report_holds_every_tensor_and_survives_json(tmp_path: Path) -> None:
    source = scrambled("vit_small_patch14_dinov2", img_size=84, num_classes=7)
    file = tmp_path / "somewhere" / "w.safetensors"
    file.parent.mkdir()
    ours = build_backbone(
        "vit_small_patch16_224", (64, 48), weights=saved(source.state_dict(), file)
    )
    report = report_of(ours)
    assert WeightsReport.from_dict(json.loads(json.dumps(report.as_dict()))) == report
    by_outcome = Counter[str]()
    for row in report.rows:
        by_outcome[row.outcome] += row.tensors
    assert by_outcome["folded"] == 24
    assert by_outcome["dropped"] == 2
    of_model = by_outcome.total() - by_outcome["folded"] - by_outcome["dropped"]
    assert of_model == len(ours.timm_model.state_dict())
    table = "\n".join(report.lines())
    assert str(tmp_path) not in table
    for words in ("6x6 to 4x3", "14x14 to 16x16", "3 channels to 1", "at random", "mean 0.449"):
        assert words in table


def test_weights_of_one_channel_keep_what_they_were_trained_with(tmp_path: Path) -> None:
    model = build_backbone("vit_tiny_patch16_224", (128, 96), normalization="imagenet")
    state = {name: value.contiguous() for name, value in model.timm_model.state_dict().items()}
    card = {"grid_size": [8, 6], "normalization": {"mean": 0.449, "std": 0.226}}
    ours, earlier = tmp_path / "ours.safetensors", tmp_path / "earlier.safetensors"
    save_file(state, ours, {"model_card": json.dumps(card)})
    save_file(state, earlier, {"facts": json.dumps({"epoch": 3})})
    for file, mean in ((ours, 0.449), (earlier, 0.5)):
        again = build_backbone("vit_tiny_patch16_224", (128, 96), weights=str(file))
        assert again.normalization.mean == pytest.approx(mean)
        assert torch.equal(again.timm_model.pos_embed, model.timm_model.pos_embed)
    # 49 rows: a grid of 8x6 and the class token, and not of 7x7.
    larger = build_backbone("vit_tiny_patch16_224", (256, 192), weights=str(ours)).timm_model
    assert torch.equal(larger.pos_embed[:, :1], model.timm_model.pos_embed[:, :1])
    with pytest.raises(InputError, match="49 rows"):
        build_backbone("vit_tiny_patch16_224", (256, 192), weights=str(earlier))


def test_heads_of_another_width_are_refused_though_every_shape_fits(tmp_path: Path) -> None:
    wide, usual = "vit_small_patch16_hd128_224", "vit_small_patch16_224"
    state = timm.create_model(usual, img_size=32, in_chans=1, num_classes=1).state_dict()
    for trained in (usual, wide, None):
        file = tmp_path / "weights.safetensors"
        save_file(state, file, {"model_card": json.dumps({"model": trained})} if trained else None)
        for name, heads in ((wide, 3), (usual, 6)):
            if (trained or usual) == name:
                model = build_backbone(name, (32, 32), weights=str(file))
                assert model.shape.heads == heads
                continue
            with pytest.raises(InputError, match=f"attention heads of width .*{name}"):
                build_backbone(name, (32, 32), weights=str(file))
    with pytest.raises(
        InputError,
        match=r"there are no published weights .* --model vit_small_patch16_224 --weights timm",
    ):
        build_backbone(wide, (32, 32), weights="timm")


GUESSES = [
    ("vit_small_patch16_224", 0, IMAGENET, "vit_small_patch16_224"),
    ("vit_small_patch16_224", 1000, HALF, "vit_small_patch16_224"),
    ("vit_base_patch16_224", 0, IMAGENET, "but not for vit_base_patch16_224.orig_in21k"),
    ("vit_base_patch16_224.orig_in21k", 0, HALF, "orig_in21k"),
    ("vit_large_patch14_clip_224", 768, CLIP, "but not for vit_large_patch14_clip_224.laion2b"),
    ("vit_base_patch16_siglip_224", 0, HALF, "siglip"),
]


@pytest.mark.parametrize(("name", "classes", "values", "told"), GUESSES)
def test_normalization_is_what_timm_knows_of_such_weights(
    name: str, classes: int, values: tuple[Any, Any], told: str
) -> None:
    guessed = guess_normalization(name, classes, self_supervised=False)
    assert (guessed.mean, guessed.std) == tuple(pytest.approx(each) for each in values)
    assert told in guessed.origin


def test_normalization_can_be_set(tmp_path: Path) -> None:
    source = scrambled("vit_tiny_patch16_224", img_size=96, num_classes=0)
    weights = saved(source.state_dict(), tmp_path / "w.safetensors")
    ours = build_backbone(
        "vit_tiny_patch16_224", (96, 96), weights=weights, normalization="clip"
    ).eval()
    expected, found = pooled_by_both(source, ours, CLIP)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.corpus
def test_real_dinov2_at_its_own_size_and_in_another_model(corpus: Path) -> None:
    file = corpus.parent / "weights" / "dinov2_vits14.safetensors"
    if not file.is_file():
        pytest.skip(f"no weights at {file}")
    state = {name: value.float() for name, value in load_file(file).items()}
    for name, img_size, options in (
        ("vit_small_patch14_dinov2", (518, 518), {}),
        ("vit_small_patch14_dinov2", (266, 196), {}),
        ("vit_small_patch16_224", (256, 192), {"init_values": 1.0}),
    ):
        source = timm.create_model(name, img_size=img_size, num_classes=0, **options).eval()
        source.load_state_dict(checkpoint_filter_fn(dict(state), source))
        ours = build_backbone(name, img_size, weights=str(file)).eval()
        expected, found = pooled_by_both(source, ours, IMAGENET)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def as_google_writes_it(state: dict[str, Tensor], heads: int) -> dict[str, np.ndarray]:
    """The arrays of an original ViT checkpoint, as timm's loader documents them by reading them."""
    width = state["norm.weight"].shape[0]
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for number in range(12):
        block, here = f"Transformer/encoderblock_{number}", f"blocks.{number}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for index, part in enumerate(("query", "key", "value")):
            rows = slice(index * width, (index + 1) * width)
            weight = state[f"{here}.attn.qkv.weight"][rows].T
            arrays[f"{attention}/{part}/kernel"] = weight.reshape(width, heads, -1)
            bias = state[f"{here}.attn.qkv.bias"][rows]
            arrays[f"{attention}/{part}/bias"] = bias.reshape(heads, -1)
        projection = state[f"{here}.attn.proj.weight"].T
        arrays[f"{attention}/out/kernel"] = projection.reshape(heads, -1, width)
        arrays[f"{attention}/out/bias"] = state[f"{here}.attn.proj.bias"]
        for theirs, timms in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            arrays[f"{block}/{theirs}/scale"] = state[f"{here}.{timms}.weight"]
            arrays[f"{block}/{theirs}/bias"] = state[f"{here}.{timms}.bias"]
        for index in range(2):
            dense = f"{block}/MlpBlock_3/Dense_{index}"
            arrays[f"{dense}/kernel"] = state[f"{here}.mlp.fc{index + 1}.weight"].T
            arrays[f"{dense}/bias"] = state[f"{here}.mlp.fc{index + 1}.bias"]
    return {name: array.numpy() for name, array in arrays.items()}


def test_npz_of_google_is_read_at_its_own_size(tmp_path: Path) -> None:
    source = scrambled("vit_tiny_patch16_224", img_size=96, num_classes=0)
    np.savez(tmp_path / "w.npz", **as_google_writes_it(source.state_dict(), heads=3))
    weights = str(tmp_path / "w.npz")
    ours = build_backbone("vit_tiny_patch16_224", (96, 96), weights=weights).eval()
    expected, found = pooled_by_both(source, ours, HALF)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    other = build_backbone("vit_tiny_patch16_224", (128, 96), weights=weights)
    assert any("grid of 6x6 to 8x6" in row.detail for row in report_of(other).rows)
    with pytest.raises(InputError, match="width 192, depth 12; you asked for vit_small"):
        build_backbone("vit_small_patch16_224", (96, 96), weights=weights)
