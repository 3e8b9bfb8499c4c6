"""Weights of others: equal to timm's own forward on a grey image, or refused by name."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import build_backbone
from mammo_pd.backbones.normalization import CHANNELS, read_one_channel
from mammo_pd.errors import InputError

DINOV2 = Path(__file__).parents[3] / "shared/weights/dinov2_vits14.safetensors"
# An old and a new plain ViT, CLIP (norm before the blocks, no bias), registers, and rotary Evas.
MODELS = (
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "vit_base_patch32_clip_224",
    "vit_little_patch16_reg4_gap_256",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
)


def trained(name: str, **options: Any) -> Any:
    """A model whose every tensor is random, as none is after training: timm starts some at 0."""
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=5, **options).eval()
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.05)
    return model


def on_grey(model: Any, grey: Tensor, means: tuple[float, ...], stds: tuple[float, ...]) -> Tensor:
    """timm's own features of a grey image (B, H, W) in [0, 1] as three channels."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (means, stds))
    tokens = model.forward_features((grey[:, None].expand(-1, 3, -1, -1) - mean) / std)
    return model.forward_head(tokens, pre_logits=True)  # type: ignore[no-any-return]


def ours(backbone: Backbone, grey: Tensor) -> Tensor:
    mean, std = backbone.normalization
    side, (rows, columns) = backbone.patch_size, backbone.grid_size
    patches = ((grey - mean) / std).reshape(len(grey), rows, side, columns, side)
    patches = patches.transpose(2, 3).reshape(len(grey), rows * columns, side * side)
    positions = torch.arange(rows * columns).expand(len(grey), -1)
    tokens = backbone.forward_features(backbone.embed(patches, positions), positions)
    return backbone.pool(tokens)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5 * b.abs().max().item(), rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_grey_images_give_what_timm_gives_for_three_channels(name: str, tmp_path: Path) -> None:
    model = trained(name)
    size = model.patch_embed.img_size
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    backbone = build_backbone(name, size, weights=str(tmp_path / "w.safetensors")).eval()
    grey = torch.rand(2, *size)
    cfg = model.pretrained_cfg
    close(ours(backbone, grey), on_grey(model, grey, cfg["mean"], cfg["std"]))


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_another_grid_is_what_timm_resamples(name: str, tmp_path: Path) -> None:
    trained_model = trained(name)
    save_file(trained_model.state_dict(), tmp_path / "w.safetensors")
    file = {"file": str(tmp_path / "w.safetensors"), "num_classes": 5}
    expected: Any = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=file, num_classes=1, img_size=(96, 64)
    ).eval()
    weights = str(tmp_path / "w.safetensors")
    backbone = build_backbone(name, (96, 64), weights=weights, normalization="clip").eval()
    grey = torch.rand(2, 96, 64)
    close(ours(backbone, grey), on_grey(expected, grey, *CHANNELS["clip"]))


@torch.no_grad()
@pytest.mark.parametrize("wrap", ["plain", "model", "teacher", "fp16"])
def test_wrapped_and_half_precision_checkpoints_are_unwrapped(wrap: str, tmp_path: Path) -> None:
    model = trained("vit_tiny_patch16_224")
    state: dict[str, Any] = dict(model.state_dict())
    if wrap == "fp16":
        state = {name: value.half() for name, value in state.items()}
    elif wrap == "teacher":  # DINO: a dictionary of networks, each with a head
        backbone_names = {f"backbone.{name}": value for name, value in state.items()}
        head = {"head.mlp.0.weight": torch.ones(2, 2)}
        state = {"student": head, "teacher": backbone_names | head}
    elif wrap == "model":
        state = {"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}
    torch.save(state, tmp_path / "w.pth")
    backbone = build_backbone(
        "vit_tiny_patch16_224", (224, 224), weights=str(tmp_path / "w.pth")
    ).eval()
    expected = model.blocks[3].mlp.fc1.weight
    atol = 1e-4 if wrap == "fp16" else 0.0
    torch.testing.assert_close(
        backbone.timm_model.blocks[3].mlp.fc1.weight, expected, atol=atol, rtol=0
    )


@torch.no_grad()
def test_layer_scale_is_folded_where_the_model_has_none(tmp_path: Path) -> None:
    model = trained("vit_small_patch14_dinov2", img_size=(56, 56))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    said: list[str] = []
    backbone = build_backbone(
        "vit_small_patch14_dinov2", (56, 56), weights=str(tmp_path / "w.safetensors")
    ).eval()
    # The same transformer without layer scale and with another patch size.
    other = build_backbone(
        "vit_small_patch16_224",
        (64, 64),
        weights=str(tmp_path / "w.safetensors"),
        say=said.append,
    ).eval()
    assert "layer scale folded into 24 projections" in said[0]
    assert "resampled from 14 to 16 pixels" in said[0]
    assert other.normalization == backbone.normalization
    tokens = torch.randn(2, 17, 384)
    close(
        other.timm_model.norm(other.timm_model.blocks(tokens)),
        backbone.timm_model.norm(backbone.timm_model.blocks(tokens)),
    )


@torch.no_grad()
def test_the_norm_moves_with_the_pooling(tmp_path: Path) -> None:
    model = trained("vit_tiny_patch16_224")
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    said: list[str] = []
    backbone = build_backbone(
        "vit_tiny_patch16_224",
        (32, 32),
        weights=str(tmp_path / "w.safetensors"),
        global_pool="avg",
        say=said.append,
    )
    assert "norm taken as fc_norm" in said[0]
    assert torch.equal(backbone.timm_model.fc_norm.weight, model.norm.weight)


def test_what_is_left_at_random_is_told(tmp_path: Path) -> None:
    model = trained("vit_tiny_patch16_224")
    state = {name: value for name, value in model.state_dict().items() if name != "cls_token"}
    save_file({**state, "extra.bias": torch.ones(3)}, tmp_path / "w.safetensors")
    said: list[str] = []
    weights = str(tmp_path / "w.safetensors")
    build_backbone("vit_tiny_patch16_224", (32, 32), weights=weights, say=said.append)
    assert "random    cls_token" in said[0]
    assert "random    head.weight" in said[0]
    assert "not used  extra.bias" in said[0]
    assert "position embedding resampled from 14x14 to 2x2" in said[0]
    assert str(tmp_path) not in said[0]


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def _break(kind: str, file: Path) -> None:
    model = trained("vit_tiny_patch16_224")
    if kind == "text":
        file.write_text("no weights")
    elif kind == "code":
        file.write_bytes(pickle.dumps({"w": _Code()}))
    elif kind == "half a file":
        save_file(model.state_dict(), file)
        file.write_bytes(file.read_bytes()[:5000])
    elif kind == "resnet":
        torch.save(timm.create_model("resnet18").state_dict(), file)
    elif kind == "wider":
        torch.save(timm.create_model("vit_small_patch16_224").state_dict(), file)
    elif kind == "nan":
        model.blocks[2].mlp.fc1.weight.data[0, 0] = torch.nan
        torch.save(model.state_dict(), file)
    elif kind == "a block lost":
        state = {k: v for k, v in model.state_dict().items() if "blocks.5.attn" not in k}
        torch.save(state, file)
    elif kind == "empty":
        torch.save({"epoch": 3}, file)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "cannot be read"),
        ("code", "cannot be read"),
        ("half a file", "cannot be read"),
        ("resnet", "not of a vision transformer"),
        ("wider", "of width 384 and depth 12, and 'vit_tiny_patch16_224' has width 192"),
        ("nan", "not finite, in blocks.2.mlp.fc1.weight"),
        ("a block lost", "lack 2 of the matrices"),
        ("empty", "holds no weights"),
    ],
)
def test_what_does_not_fit_is_refused(
    kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ("w.safetensors" if kind == "half a file" else "w.pth")
    _break(kind, file)
    with pytest.raises(InputError, match=message) as caught:
        build_backbone("vit_tiny_patch16_224", (32, 32), weights=str(file))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@torch.no_grad()
def test_folding_is_exact_in_double_precision() -> None:
    model = trained("vit_tiny_patch16_224").double()
    grey = torch.rand(2, 224, 224, dtype=torch.float64)
    means, stds = CHANNELS["imagenet"]
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (means, stds))
    expected = model.patch_embed.proj((grey[:, None].expand(-1, 3, -1, -1) - mean) / std)
    one = read_one_channel(model, means, stds)
    found = model.patch_embed.proj.double()((grey[:, None] - one.mean) / one.std)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.corpus
@torch.no_grad()
@pytest.mark.skipif(not DINOV2.is_file(), reason="the DINOv2 weights are not at hand")
def test_dinov2_equals_timm() -> None:
    file = {"file": str(DINOV2), "num_classes": 5}
    expected: Any = timm.create_model(
        "vit_small_patch14_dinov2",
        pretrained=True,
        pretrained_cfg_overlay=file,
        num_classes=1,
        img_size=(252, 196),
    ).eval()
    backbone = build_backbone("vit_small_patch14_dinov2", (252, 196), weights=str(DINOV2)).eval()
    grey = torch.rand(2, 252, 196)
    close(ours(backbone, grey), on_grey(expected, grey, *CHANNELS["imagenet"]))
