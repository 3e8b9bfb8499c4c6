import copy
import inspect

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block, ParallelThingsBlock, ResPostBlock

from mammo_pd.backbones.drop_path import KeyedDropPath, draw_paths, replace_drop_paths
from mammo_pd.backbones.last_block import forward_class_token, reads_class_token_alone

# Options that change what a block does: each is to be in the shortened one too.
KINDS = {
    "plain": ("vit_tiny_patch16_224", {}),
    "no bias of q, k, v": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "normed q and k": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "layer scale": ("vit_tiny_patch16_224", {"init_values": 0.3}),
    "gated MLP": ("vit_tiny_patch16_224", {"mlp_layer": SwiGLUPacked}),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 3}),
}


def vit_of(kind: str, **more: object) -> VisionTransformer:
    torch.manual_seed(0)
    name, options = KINDS[kind]
    vit = timm.create_model(name, img_size=56 if "14" in name else 64, depth=2, **options, **more)
    for parameter in vit.blocks.parameters():
        # At timm's own start the attention is nearly even, and biases are 0.
        torch.nn.init.normal_(parameter, std=0.2)
    return vit


@pytest.mark.parametrize("kind", KINDS)
def test_token_and_gradients_are_those_of_timms_block(kind: str) -> None:
    vit = vit_of(kind)
    assert reads_class_token_alone(vit)
    block, other = vit.blocks[-1].double(), copy.deepcopy(vit.blocks[-1]).double()
    x = torch.randn(2, 9, vit.embed_dim, dtype=torch.float64, requires_grad=True)
    same = x.detach().clone().requires_grad_()
    expected, found = other(same)[:, :1], forward_class_token(block, x)
    torch.testing.assert_close(found, expected)
    assert expected.std() > 0.1
    toward = torch.randn_like(expected)
    found.backward(toward)
    expected.backward(toward)
    torch.testing.assert_close(x.grad, same.grad)
    assert (x.grad.abs().sum(-1) > 0).all()
    for (name, one), two in zip(block.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(
            one.grad, two.grad, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_stochastic_depth_is_that_of_the_block() -> None:
    vit = vit_of("plain", drop_path_rate=0.5)
    paths = replace_drop_paths(vit.blocks)
    keep = torch.tensor([1 - path.drop_prob for path in paths])
    draw_paths(paths, keep, torch.arange(16))
    assert isinstance(vit.blocks[-1].drop_path1, KeyedDropPath)
    x = torch.randn(16, 5, vit.embed_dim)
    vit.train()
    found = forward_class_token(vit.blocks[-1], x)
    torch.testing.assert_close(found, vit.blocks[-1](x)[:, :1], atol=1e-4, rtol=1e-4)
    # Of 16 images some keep nothing but what went in.
    assert (found == x[:, :1]).all(-1).any()


@pytest.mark.parametrize("option", ["proj_drop_rate", "attn_drop_rate"])
def test_dropout_is_that_of_the_block(option: str) -> None:
    """At a rate of 1, which leaves nothing to chance."""
    vit = vit_of("plain", **{option: 1.0}).train()
    x = torch.randn(2, 9, vit.embed_dim)
    found = forward_class_token(vit.blocks[-1], x)
    torch.testing.assert_close(found, vit.blocks[-1](x)[:, :1], atol=1e-4, rtol=1e-4)
    vit.eval()
    assert not torch.allclose(forward_class_token(vit.blocks[-1], x), found)


@pytest.mark.parametrize(
    "options",
    [
        {"global_pool": "avg"},
        {"global_pool": "map"},
        {"block_fn": ResPostBlock},
        {"block_fn": ParallelThingsBlock},
    ],
)
def test_other_heads_and_blocks_run_whole(options: dict[str, object]) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", depth=2, **options)
    assert not reads_class_token_alone(vit)


def test_norm_and_gate_of_the_attention_run_whole() -> None:
    if "scale_attn_norm" not in inspect.signature(VisionTransformer).parameters:
        pytest.skip(f"timm {timm.__version__} has neither")
    vit = timm.create_model("vit_tiny_patch16_224", depth=2, scale_attn_norm=True)
    assert not reads_class_token_alone(vit)
    vit = timm.create_model("vit_tiny_patch16_224", depth=2)
    vit.blocks[-1].attn.gate = torch.nn.Linear(192, 192)
    assert not reads_class_token_alone(vit)


def test_other_attention_runs_whole() -> None:
    if "attn_layer" not in inspect.signature(VisionTransformer).parameters:
        pytest.skip(f"timm {timm.__version__} has no other")
    vit = timm.create_model("vit_tiny_patch16_224", depth=2, attn_layer="diff")
    assert type(vit.blocks[-1]) is Block
    assert not reads_class_token_alone(vit)
