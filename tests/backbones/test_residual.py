"""A residual stream in bfloat16: what blocks hand on, and what it costs the gradient."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import build_backbone

FAMILIES = {
    "class token": "test_vit",
    "layer scale": "vit_small_patch14_dinov2",
    "rotary": "vit_small_patch16_rope_224",
    "windows": "swin_tiny_patch4_window7_224",
}


def built(name: str, img_size: tuple[int, int], *, narrow: bool) -> Backbone:
    torch.manual_seed(0)
    backbone = build_backbone(name, img_size)
    if narrow:
        backbone.narrow_residual()
    return backbone.train()


def drawn(backbone: Backbone, images: int, keep_rate: float) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    num_keep = backbone.allowed_keep(keep_rate)
    patches = torch.randn(images, num_keep, backbone.patch_size**2, generator=draw)
    order = torch.rand(images, backbone.num_tokens, generator=draw).argsort(1)
    return patches, order[:, :num_keep].sort(1).values


@pytest.mark.parametrize(
    ("family", "narrow"), [("class token", False), *((family, True) for family in FAMILIES)]
)
def test_every_block_takes_and_hands_on_what_was_asked_for(family: str, narrow: bool) -> None:
    img_size = {"windows": (56, 56), "layer scale": (56, 56)}.get(family, (64, 48))
    backbone = built(FAMILIES[family], img_size, narrow=narrow)
    seen: list[torch.dtype] = []
    blocks = list(backbone._each_block())

    def look(_: nn.Module, given: tuple[Tensor, ...], tokens: Tensor) -> None:
        seen.extend([given[0].dtype, tokens.dtype])

    for block in blocks:
        block.register_forward_hook(look)
    with torch.autocast("cpu", torch.bfloat16):
        backbone(*drawn(backbone, 2, 1.0))
    # The shortened last block is not called as a module.
    assert len(seen) == 2 * (len(blocks) - backbone.class_token_alone)
    if narrow:
        assert set(seen) == {torch.bfloat16}
    elif family != "windows":  # which merges patches by a product
        assert set(seen) == {torch.float32}
    assert all(
        weight.grad is None or weight.grad.isfinite().all() for weight in blocks[0].parameters()
    )


def gradient(kind: str, *, compiled: bool = False) -> Tensor:
    backbone = built("vit_tiny_patch16_224", (96, 64), narrow=kind == "bfloat16")
    if compiled:
        backbone.compile_blocks()
    patches, positions = drawn(backbone, 4, 0.5)
    dtype = torch.float64 if kind == "float64" else torch.float32
    backbone, patches = backbone.to(dtype), patches.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind != "float64"):
        output = backbone(patches, positions)
    targets = torch.tensor([[0.0], [1.0], [0.0], [1.0]], dtype=dtype)
    F.binary_cross_entropy_with_logits(output.to(dtype), targets).backward()
    learnt = [weight.grad for weight in backbone.parameters() if weight.grad is not None]
    return torch.cat([grad.flatten().double() for grad in learnt])


def error(kind: str, *, compiled: bool = False) -> float:
    """Relative to the norm of the gradient in float64."""
    exact = gradient("float64")
    return float((gradient(kind, compiled=compiled) - exact).norm() / exact.norm())


def test_rounding_error_of_the_gradient_is_less_than_twice_that_of_the_wide_stream() -> None:
    """As docs/speed.md has it."""
    wide, narrow = error("float32"), error("bfloat16")
    assert 0.005 < wide < 0.02
    assert wide < narrow < 2 * wide


@pytest.mark.slow
def test_compiled_blocks_round_no_more_than_eager_ones() -> None:
    assert error("bfloat16", compiled=True) < 1.1 * error("bfloat16")


def test_without_autocast_nothing_but_the_hook_changes() -> None:
    """In one block: the tokens are those of the wide stream, rounded."""
    wide, narrow = (built("test_vit", (64, 48), narrow=narrow) for narrow in (False, True))
    given = torch.randn(2, 5, wide.embed_dim)
    expected = wide.timm_model.blocks[0](given)
    assert torch.equal(narrow.timm_model.blocks[0](given), expected.bfloat16())
    assert wide.state_dict().keys() == narrow.state_dict().keys()
