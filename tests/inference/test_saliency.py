import inspect

import pytest
import timm
import torch
from monai.visualize import OcclusionSensitivity
from timm.models import VisionTransformer
from timm.models.eva import Eva
from timm.utils import AttentionExtract
from torch import Tensor
from torch.nn import functional as F

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import FAMILIES
from mammo_pd.backbones.vit import VitBackbone
from mammo_pd.errors import InputError
from mammo_pd.inference.saliency import attention_rollout

CANVAS = (96, 64)
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "class token": ("vit_tiny_patch16_224", {}),
    "average pooled": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "average with the class token": (
        "vit_tiny_patch16_224",
        {"global_pool": "avg", "pool_include_prefix": True},
    ),
    "registers": ("vit_wee_patch16_reg1_gap_256", {}),
    "queries and keys normalised": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "norm after the branch": ("vit_base_patch16_rpn_224", {"depth": 3}),
    "rotation": ("vit_small_patch16_rope_224", {"depth": 3}),
    "rotation by head": ("vit_small_patch16_rope_mixed_224", {"depth": 3}),
    "dinov3": ("vit_tiny_patch16_dinov3_qkvb", {"depth": 3}),
    "keys shared by heads": ("vit_base_patch16_sapiens2", {"depth": 2, "num_kv_heads": (12, 6)}),
}


def model_of(kind: str) -> Backbone:
    torch.manual_seed(0)
    name, options = MODELS[kind]
    known = {*inspect.signature(VisionTransformer).parameters, *inspect.signature(Eva).parameters}
    if not timm.is_model(name) or not set(options) <= known:
        pytest.skip(f"timm {timm.__version__} has no {name} with {', '.join(options)}")
    vit = timm.create_model(
        name, img_size=CANVAS, in_chans=1, num_classes=1, dynamic_img_size=False, **options
    )
    for name, parameter in vit.named_parameters():
        # At timm's own start the attention is nearly even, and any formula would do.
        in_attention = any(part in name for part in ("qkv", "q_norm", "k_norm"))
        torch.nn.init.normal_(parameter, std=1.5 if in_attention else 0.2)
    return FAMILIES[type(vit)](vit.eval())


def patches_of(images: Tensor, patch_size: int = 16) -> tuple[Tensor, Tensor]:
    """(B, 1, H, W) to all patches in raster order and their positions."""
    patches = F.unfold(images, patch_size, stride=patch_size).transpose(1, 2)
    return patches, torch.arange(patches.shape[1]).expand(len(images), -1)


def rollout_by_matrices(model: Backbone, images: Tensor) -> Tensor:
    """(B, N, N) float64: the paper's formula on the matrices that timm's extractor gives."""
    for block in model.timm_model.blocks:
        block.attn.fused_attn = False
    try:
        attentions = AttentionExtract(model.timm_model, method="hook")(images)
    finally:
        for block in model.timm_model.blocks:
            block.attn.fused_attn = True
    assert len(attentions) == len(model.timm_model.blocks)
    product = None
    for attention in attentions.values():
        mean = attention.double().mean(dim=1)
        layer = 0.5 * mean + 0.5 * torch.eye(mean.shape[-1], dtype=torch.float64)
        product = layer if product is None else layer @ product
    return product


def read_from(kind: str, model: Backbone, product: Tensor) -> Tensor:
    if model.timm_model.global_pool == "token":
        return product[:, 0]
    if kind == "average with the class token":
        return product.mean(dim=1)
    return product[:, model.timm_model.num_prefix_tokens :].mean(dim=1)


@pytest.mark.parametrize("kind", MODELS)
def test_it_is_the_papers_product_of_matrices(kind: str) -> None:
    model = model_of(kind)
    images = torch.randn(2, 1, *CANVAS)
    expected = read_from(kind, model, rollout_by_matrices(model, images))
    found = attention_rollout(model, *patches_of(images))
    assert expected.shape[1] == model.timm_model.num_prefix_tokens + 24
    # Not even, and not the same for both images: or the comparison would say little.
    assert expected.std(dim=1).min() * expected.shape[1] > 0.1
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_rows_are_shares(kind: str) -> None:
    model = model_of(kind)
    found = attention_rollout(model, *patches_of(torch.randn(3, 1, *CANVAS)))
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("rows_at_once", [1, 7, 25])
def test_in_parts_equals_at_once(rows_at_once: int) -> None:
    model = model_of("class token")
    given = patches_of(torch.randn(2, 1, *CANVAS))
    torch.testing.assert_close(
        attention_rollout(model, *given, rows_at_once=rows_at_once),
        attention_rollout(model, *given, rows_at_once=10_000),
    )


def test_images_do_not_touch_one_another() -> None:
    model = model_of("average pooled")
    patches, positions = patches_of(torch.randn(2, 1, *CANVAS))
    both = attention_rollout(model, patches, positions)
    alone = attention_rollout(model, patches[1:], positions[1:])
    torch.testing.assert_close(both[1:], alone)


def test_each_share_belongs_to_its_patch() -> None:
    model = model_of("class token")
    patches, positions = patches_of(torch.randn(1, 1, *CANVAS))
    order = torch.randperm(24)
    shares = attention_rollout(model, patches, positions)[:, 1:]
    shuffled = attention_rollout(model, patches[:, order], positions[:, order])[:, 1:]
    torch.testing.assert_close(shuffled, shares[:, order], atol=1e-6, rtol=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    model = model_of("queries and keys normalised")
    given = patches_of(torch.randn(1, 1, *CANVAS))
    before = model(*given)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attention_rollout(model, *given)
    assert torch.equal(model(*given), before)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_compiled_blocks_are_followed_too() -> None:
    model = model_of("rotation")
    given = patches_of(torch.randn(1, 1, *CANVAS))
    expected = attention_rollout(model, *given)
    model.compile_blocks()
    with torch.no_grad():
        model(*given)
    torch.testing.assert_close(attention_rollout(model, *given), expected)


def test_unfused_attention_is_refused() -> None:
    model = model_of("class token")
    for block in model.timm_model.blocks[:-1]:
        block.attn.fused_attn = False
    with pytest.raises(InputError, match="TIMM_FUSED_ATTN"):
        attention_rollout(model, *patches_of(torch.randn(1, 1, *CANVAS)))


def test_no_matrix_of_all_pairs_is_made() -> None:
    # 64 x 64 patches: one matrix of all pairs and three heads would be 200 MB.
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=1024, in_chans=1, depth=1, dynamic_img_size=False
    )
    model = VitBackbone(vit.eval())
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor):
                largest = max(largest, made.numel())
            return made

    with Largest():
        attention_rollout(model, *patches_of(torch.randn(1, 1, 1024, 1024)), rows_at_once=64)
    assert 4097 * 64 * 3 <= largest < 4097 * 4097 / 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_dwee_patch16_reg1_gap_256", "plain self-attention"),
        ("vit_pwee_patch16_reg1_gap_256", "plain self-attention"),
        ("test_vit3", "'map'"),
    ],
)
def test_what_it_is_not_defined_for(name: str, said: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    vit = timm.create_model(name, img_size=96, in_chans=1, dynamic_img_size=False)
    with pytest.raises(InputError, match=said):
        attention_rollout(VitBackbone(vit), torch.randn(1, 36, 256), torch.arange(36)[None])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # in MONAI
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_it_points_where_occlusion_does_at_the_planted_lesion(pool: str) -> None:
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    count, side = 128, 96
    centres = torch.randint(16, side - 16, (count, 2), generator=draw).float()
    off = (torch.arange(side) - centres[:, :, None]) ** 2
    lesion = 3 * torch.exp(-(off[:, 0, :, None] + off[:, 1, None, :]) / (2 * 3**2))
    labels = (torch.arange(count) % 2).float()
    noise = 0.3 * torch.randn(count, 1, side, side, generator=draw)
    images = noise + lesion[:, None] * labels[:, None, None, None]

    vit = timm.create_model(
        "test_vit",
        img_size=side,
        in_chans=1,
        num_classes=1,
        dynamic_img_size=False,
        global_pool=pool,
    )
    model = VitBackbone(vit)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for _ in range(40):
        for batch in torch.randperm(count).split(32):
            logits = model(*patches_of(images[batch]))[:, 0]
            loss = F.binary_cross_entropy_with_logits(logits, labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.eval()
    with torch.no_grad():
        assert ((model(*patches_of(images))[:, 0] > 0) == (labels > 0)).all()

    positives = torch.nonzero(labels)[:24, 0]
    columns = side // model.patch_size
    shares = attention_rollout(model, *patches_of(images[positives]))[:, -(columns**2) :]
    best = shares.argmax(dim=1)
    looked_at = torch.stack([best // columns, best % columns], dim=1) * 16 + 8
    # A mask as large as the lesion, or what is left of it keeps the score where it was.
    occlude = OcclusionSensitivity(
        model.timm_model,
        mask_size=24,
        n_batch=64,
        mode=0.0,
        overlap=0.75,
        activate=False,
        verbose=False,
    )
    falls_most = torch.tensor(
        [
            divmod(int(occlude(image[None])[0][0, 0].argmin()), side)  # (row, column)
            for image in images[positives]
        ]
    )
    for found in (looked_at, falls_most):
        near = (found - centres[positives]).abs().amax(dim=1) <= 16
        # At random 12 in 100 would be near.
        assert near.float().mean() > 0.6
