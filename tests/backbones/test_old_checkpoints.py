"""Checkpoints from before the attribute `timm_model` was named so."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mammo_pd.backbones.build import build_backbone
from mammo_pd.training.averaging import WeightAverage
from mammo_pd.training.checkpoint import load_state, load_weights, state_of, weights_of

IMG_SIZE = (64, 48)


@pytest.mark.parametrize("wrapped", [False, True])
def test_state_with_the_old_prefix_is_read(tmp_path: Path, wrapped: bool) -> None:
    old = build_backbone("vit_tiny_patch16_224", IMG_SIZE)
    optimizer = torch.optim.AdamW(old.parameters())
    state_of(old, optimizer, WeightAverage(old, 0), {}).write(tmp_path / "new.safetensors")
    tensors = load_file(tmp_path / "new.safetensors")
    renamed = {name.replace("model.timm_model.", "model.vit."): t for name, t in tensors.items()}
    assert any(name.startswith("model.vit.blocks.") for name in renamed)
    header = {"facts": "{}", "param_groups": "[]"}
    save_file(renamed, tmp_path / "last.safetensors", header)

    model = build_backbone("vit_tiny_patch16_224", IMG_SIZE)
    load_state(tmp_path / "last.safetensors", model)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, old.state_dict()[name]), name
    if wrapped:
        # As a part of another module the prefix has one before it.
        outer = torch.nn.ModuleDict({"inner": build_backbone("vit_tiny_patch16_224", IMG_SIZE)})
        state = {f"inner.vit.{n}": t for n, t in old.timm_model.state_dict().items()}
        outer.load_state_dict(state)
        assert torch.equal(outer["inner"].timm_model.cls_token, old.timm_model.cls_token)


def test_weights_are_under_timms_own_names(tmp_path: Path) -> None:
    model = build_backbone("vit_tiny_patch16_224", IMG_SIZE)
    weights_of(model, model.timm_model, {}).write(tmp_path / "best.safetensors")
    assert "blocks.0.mlp.fc1.weight" in load_file(tmp_path / "best.safetensors")
    other = build_backbone("vit_tiny_patch16_224", IMG_SIZE)
    load_weights(tmp_path / "best.safetensors", other, other.timm_model)
    assert torch.equal(other.timm_model.cls_token, model.timm_model.cls_token)
