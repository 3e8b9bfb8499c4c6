"""Laws of every backbone, on each family and kind of architecture that timm has."""

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from timm.models import VisionTransformer
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.nn import functional as F

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import FAMILIES, build_backbone, describe_backbone, reason_against
from mammo_pd.backbones.drop_path import KeyedDropPath
from mammo_pd.errors import InputError
from mammo_pd.keyed_random import image_key

ROWS, COLUMNS = 4, 3
# Each stands for a kind of architecture; the slow test takes every kind there is.
VITS = [
    "vit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_wee_patch16_reg1_gap_256",
    "vit_pwee_patch16_reg1_gap_256",
    "vit_dwee_patch16_reg1_gap_256",
    "vit_small_patch16_18x2_224",
    "vit_small_patch16_hd128_224",
    "vit_base_patch16_rpn_224",
    "vit_base_patch32_clip_224",
    "vit_base_patch32_siglip_256",
    "test_vit3",
]
EVAS = [
    "eva02_tiny_patch14_224",
    "eva02_base_patch16_clip_224",
    "vit_tiny_patch16_dinov3_qkvb",
    "vit_small_plus_patch16_dinov3",
    "vit_medium_patch16_rope_reg1_gap_256",
    "vit_small_patch16_rope_ape_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_pe_core_tiny_patch16_384",
    "vit_pe_spatial_tiny_patch16_512",
    "vit_base_patch16_sapiens2",
]
# One a family for the laws that do not depend on the architecture.
ROTARY, BY_HEAD = "vit_tiny_patch16_dinov3_qkvb", "vit_small_patch16_rope_mixed_224"
FEW = ["vit_tiny_patch16_224", ROTARY, BY_HEAD]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", BY_HEAD, "vit_base_patch16_rpn_224"]
)
@pytest.mark.usefixtures("two_threads")
def test_threads_of_a_cpu_add_up_gradients_in_one_order(name: str) -> None:
    """So that two runs of one seed are equal."""
    torch.manual_seed(0)
    side = describe_backbone(name).patch_size
    backbone = build_backbone(name, (16 * side, 16 * side)).train()
    order = torch.rand(16, backbone.num_tokens).argsort(dim=1)
    positions = order[:, : backbone.allowed_keep(0.25)].sort(dim=1).values
    patches = torch.randn(*positions.shape, side**2)
    found = []
    for _ in range(8):
        backbone.zero_grad()
        tokens = backbone.embed(patches, positions)
        torch.manual_seed(1)
        (tokens * torch.randn_like(tokens)).sum().backward()
        found.append([p.grad.clone() for p in backbone.parameters() if p.grad is not None])
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))


def timm_model_of(name: str, **options: Any) -> nn.Module:
    """A model with two blocks, on a grid of 4x3 patches, with weights that let an error show."""
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    if name in EVAS and not hasattr(Eva, "pool"):
        pytest.skip(f"timm {timm.__version__} has an Eva that is refused as too old")
    torch.manual_seed(0)
    patch_size = describe_backbone(name).patch_size
    if "sapiens2" in name:
        heads = describe_backbone(name).shape.heads
        options = {"num_kv_heads": (heads, heads // 2), **options}
    model = timm.create_model(
        name,
        img_size=(ROWS * patch_size, COLUMNS * patch_size),
        in_chans=1,
        num_classes=2,
        depth=2,
        dynamic_img_size=False,
        **options,
    )
    for weight_name, weight in model.named_parameters():
        # timm starts with small position embeddings and layer scales, and biases of 0.
        if weight_name.endswith(("pos_embed", "_token", "freqs")):
            nn.init.normal_(weight)
        elif "norm" in weight_name and weight_name.endswith("weight"):
            nn.init.normal_(weight, mean=1, std=0.2)
        else:
            # Matrices such that activations keep their size, and with it rounding its.
            fan_in = weight[0].numel() if weight.ndim > 1 else 25
            nn.init.normal_(weight, std=fan_in**-0.5)
    return model.eval()


def backbone_of(name: str, **options: Any) -> Backbone:
    model = timm_model_of(name, **options)
    return FAMILIES[type(model)](model)


def patches_of(images: Tensor, patch_size: int) -> Tensor:
    return F.unfold(images, patch_size, stride=patch_size).mT


def check_equals_timm(name: str) -> None:
    model = backbone_of(name)
    side = model.patch_size
    images = torch.randn(2, 1, ROWS * side, COLUMNS * side)
    positions = torch.arange(ROWS * COLUMNS).expand(2, -1)
    with torch.no_grad():
        expected = model.timm_model(images)
        assert (expected[0] - expected[1]).abs().max() > 1e-3
        for training in (False, True):
            found = model.train(training)(patches_of(images, side), positions)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VITS + EVAS)
def test_all_patches_give_timms_own_forward(name: str) -> None:
    check_equals_timm(name)


def kind_of(model: Any) -> tuple[object, ...]:
    """What tells two architectures apart but for their sizes."""
    block, rope = model.blocks[-1], getattr(model, "rope", None)
    return (
        type(model),
        *((name, type(module)) for name, module in block.named_modules()),
        *(name for name, _ in block.named_parameters()),
        *((name, type(module)) for name, module in model.named_children()),
        *(getattr(rope, name, None) for name in ("grid_indexing", "rotate_half", "grid_offset")),
        getattr(rope, "ref_feat_shape", None) is None,
        *(getattr(model, name) is None for name in ("pos_embed", "cls_token", "reg_token")),
        *(getattr(model, name, None) for name in ("no_embed_class", "global_pool")),
        getattr(model, "pool_include_prefix", None),
        model.patch_embed.proj.bias is None,
    )


@pytest.mark.slow
def test_every_kind_of_architecture_equals_timm() -> None:
    """The smallest of each kind, with two blocks of its own width."""
    smallest: dict[tuple[object, ...], tuple[int, str]] = {}
    for name in timm.list_models(module="vision_transformer") + timm.list_models(module="eva"):
        if reason_against(name) is None:
            model = describe_backbone(name).timm_model
            size = sum(weight.numel() for weight in model.parameters())
            kind = kind_of(model)
            smallest[kind] = min(smallest.get(kind, (size, name)), (size, name))
    assert len(smallest) > 40
    for _, name in smallest.values():
        check_equals_timm(name)


class KeepGiven(nn.Module):
    """In the place of timm's own patch dropout, which draws at random: keeps given positions."""

    def __init__(self, positions: Tensor, prefix: int, *, tell: bool) -> None:
        super().__init__()
        self.positions, self.prefix, self.tell = positions, prefix, tell

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        index = self.positions[..., None].expand(-1, -1, x.shape[-1])
        kept = torch.cat([x[:, : self.prefix], x[:, self.prefix :].gather(1, index)], dim=1)
        return (kept, self.positions) if self.tell else kept


@pytest.mark.parametrize("name", VITS + EVAS)
def test_dropping_before_embedding_equals_timms_dropping_after(name: str) -> None:
    """Scores and every gradient."""
    model = backbone_of(name)
    side = model.patch_size
    images = torch.randn(2, 1, ROWS * side, COLUMNS * side)
    # Another subset in each image, and not in raster order.
    positions = torch.tensor([[7, 0, 3, 11, 8], [1, 10, 2, 5, 4]])
    given = patches_of(images, side).gather(1, positions[..., None].expand(-1, -1, side * side))
    found = model(given, positions)
    weights = dict(model.timm_model.named_parameters())
    ours = torch.autograd.grad(found.square().sum(), [*weights.values()], allow_unused=True)

    is_eva = isinstance(model.timm_model, Eva)
    model.timm_model.patch_drop = KeepGiven(positions, model.num_prefix, tell=is_eva)
    expected = model.timm_model(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    timms = torch.autograd.grad(expected.square().sum(), [*weights.values()], allow_unused=True)
    for weight_name, one, two in zip(weights, ours, timms, strict=True):
        assert (one is None) == (two is None), weight_name
        if one is not None:
            scale = two.abs().max().item() + 1e-3
            torch.testing.assert_close(one, two, atol=1e-4 * scale, rtol=1e-4)


@pytest.mark.parametrize("name", FEW)
def test_features_pooled_and_headed_are_the_forward(name: str) -> None:
    model = backbone_of(name)
    patches, positions = torch.randn(3, 5, model.patch_size**2), torch.arange(5).expand(3, -1)
    tokens = model.embed(patches, positions)
    assert tokens.shape == (3, model.num_prefix + 5, model.embed_dim)
    pooled = model.pool(model.forward_features(tokens, positions))
    assert pooled.shape == (3, model.embed_dim)
    torch.testing.assert_close(model.head(pooled), model(patches, positions))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*FEW, "swin_tiny_patch4_window7_224"])
def test_mixed_precision_does_not_round_scores(name: str, dtype: torch.dtype) -> None:
    """A rare finding's logits lie near -5, where bfloat16 has steps of 1/32: ties everywhere."""
    torch.manual_seed(0)
    model = build_backbone(name, (56, 56) if "swin" in name else (64, 48)).eval()
    linear = model.timm_model.get_classifier()
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.constant_(linear.bias, -5.0)
    pooled = torch.randn(2000, linear.in_features)
    with torch.no_grad():
        exact = F.linear(pooled, linear.weight, linear.bias)
        with torch.autocast("cpu", dtype):
            found = model.head(pooled)
            narrow = model.head(pooled.to(dtype))
    torch.testing.assert_close(found, exact)
    assert len(found.unique()) > 1900
    assert narrow.dtype == torch.float32


def test_every_token_is_to_be_had_where_the_head_reads_one() -> None:
    model = backbone_of("vit_tiny_patch16_224")
    patches, positions = torch.randn(3, 5, 256), torch.arange(5).expand(3, -1)
    tokens = model.embed(patches, positions)
    alone = model.forward_features(tokens, positions)
    model.class_token_alone = False
    whole = model.forward_features(tokens, positions)
    assert alone.shape == (3, 1, 192)
    assert whole.shape == (3, 6, 192)
    torch.testing.assert_close(alone, whole[:, :1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FEW)
def test_checkpointing_and_keyed_depth_change_no_gradient(name: str) -> None:
    keys = torch.tensor([image_key(0, 0, str(number)) for number in range(8)])
    gradients = []
    for checkpointing in (False, True):
        model = backbone_of(name, drop_path_rate=0.5).train()
        model.timm_model.set_grad_checkpointing(checkpointing)
        paths = [module for module in model.modules() if isinstance(module, KeyedDropPath)]
        assert [path.drop_prob for path in paths] == [0, 0, 0.5, 0.5]
        torch.manual_seed(1)
        patches, positions = torch.randn(8, 5, model.patch_size**2), torch.arange(5).expand(8, -1)
        model(patches, positions, keys).square().sum().backward()
        assert paths[-1].scale is not None
        assert set(paths[-1].scale.flatten().tolist()) == {0, 2}
        gradients.append([weight.grad for weight in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_coordinates_are_not_moved_at_random_in_training() -> None:
    """Sapiens2 rescales them by default, from torch's generator."""
    model = backbone_of("vit_base_patch16_sapiens2")
    assert model.timm_model.rope.rescale_coords is not None
    patches, positions = torch.randn(1, 5, 256), torch.arange(5)[None]
    expected = model(patches, positions)
    state = torch.get_rng_state()
    torch.testing.assert_close(model.train()(patches, positions), expected)
    assert torch.equal(torch.get_rng_state(), state)
    model.timm_model.rope.train()
    assert not torch.allclose(model(patches, positions), expected, atol=1e-3)


def test_describing_a_model_draws_no_random_number() -> None:
    state = torch.get_rng_state()
    describe_backbone.cache_clear()
    reason_against.cache_clear()
    for name in FEW:
        assert next(describe_backbone(name).parameters()).is_meta
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", FEW)
def test_gradients_of_a_single_image_lie_as_their_weights_do(name: str) -> None:
    """DDP warns about others."""
    model = backbone_of(name)
    score = model(torch.randn(1, 2, model.patch_size**2), torch.tensor([[2, 9]])).sum()
    weights = dict(model.named_parameters())
    gradients = torch.autograd.grad(score, [*weights.values()])
    for (weight_name, weight), gradient in zip(weights.items(), gradients, strict=True):
        assert gradient.stride() == weight.stride(), weight_name


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_compiled_equals_eager(name: str) -> None:
    torch.compiler.reset()
    model = backbone_of(name, drop_path_rate=0.5).train()
    keys = torch.arange(4)
    patches, positions = torch.randn(4, 6, model.patch_size**2), torch.arange(6).expand(4, -1)
    weight = model.timm_model.patch_embed.proj.weight
    expected = model(patches, positions, keys)
    gradient = torch.autograd.grad(expected.sum(), weight)[0]
    model.compile_blocks()
    scores = model(patches, positions, keys)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    again = torch.autograd.grad(scores.sum(), weight)[0]
    torch.testing.assert_close(again, gradient, atol=1e-3, rtol=1e-3)


def test_head_has_as_many_outputs_as_asked_for() -> None:
    for name in ("vit_tiny_patch16_224", "vit_tiny_patch16_dinov3_qkvb"):
        if timm.is_model(name):
            model = build_backbone(name, (64, 48), num_outputs=3)
            scores = model(torch.randn(2, 4, 256), torch.arange(4).expand(2, -1))
            assert scores.shape == (2, 3)


def test_a_model_built_by_hand_is_refused_with_its_reason() -> None:
    for options, reason in (
        ({"patch_size": (16, 8)}, "square"),
        ({"pos_embed": "none"}, "no position embedding"),
        ({"global_pool": ""}, "no pooling"),
    ):
        model = VisionTransformer(img_size=32, embed_dim=64, num_heads=2, depth=1, **options)
        with pytest.raises(InputError, match=reason):
            FAMILIES[VisionTransformer](model)
    model = Eva(img_size=32, embed_dim=64, num_heads=2, depth=1, use_abs_pos_emb=False)
    with pytest.raises(InputError, match="no position embedding"):
        FAMILIES[Eva](model)
