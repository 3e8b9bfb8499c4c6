from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch._dynamo import config
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import build_backbone, describe_backbone
from mammo_pd.backbones.last_block import forward_class_token
from mammo_pd.batch import ImageBatch
from mammo_pd.config import AugmentSettings
from mammo_pd.errors import InputError
from mammo_pd.keyed_random import image_key
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.terms import Draw

CANVAS = (96, 64)
NAMES = {
    "class token": ("vit_tiny_patch16_224", None),
    "average pooled": ("vit_tiny_patch16_224", "avg"),
    "deit3, class token not embedded": ("deit3_small_patch16_224", None),
    "registers": ("vit_wee_patch16_reg1_gap_256", None),
    "dinov2": ("vit_small_patch14_dinov2", None),
    "dynamic image size by default": ("test_vit", None),
}


def vit_of(kind: str) -> Backbone:
    torch.manual_seed(0)
    name, pool = NAMES[kind]
    img_size = (98, 70) if "patch14" in name else CANVAS
    model = build_backbone(name, img_size, global_pool=pool).eval()
    # A fresh position embedding is small; large ones show a wrong position clearly.
    torch.nn.init.normal_(model.timm_model.pos_embed)
    return model


@pytest.mark.parametrize("kind", NAMES)
def test_keep_1_without_augmentation_equals_timms_own_forward(kind: str) -> None:
    model = vit_of(kind)
    img_size = tuple(side * model.patch_size for side in model.grid_size)
    still = AugmentSettings.none()
    sampler = PatchSampler(img_size, model.patch_size, augment=still)
    stored = torch.randint(0, 65536, (2, *img_size), dtype=torch.int32)
    images = ImageBatch.from_images(list(stored.numpy().astype(np.uint16)))
    keys = torch.tensor([image_key(0, 0, "a"), image_key(0, 0, "b")])
    with torch.no_grad():
        expected = model.timm_model((stored[:, None].float() / 65535 - 0.5) / 0.5)
        trained = model(*sampler.for_training(images, keys, model.num_tokens))
        evaluated = model(*sampler.for_evaluation(images))
    assert expected.std() > 0
    torch.testing.assert_close(trained, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(evaluated, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", NAMES)
def test_dropping_before_embedding_equals_dropping_after(kind: str) -> None:
    model = vit_of(kind)
    rows, columns = model.grid_size
    image = torch.randn(1, 1, rows * model.patch_size, columns * model.patch_size)
    kept = torch.tensor([[0, 3, 4, 11, rows * columns - 1]])
    with torch.no_grad():
        whole = model.timm_model._pos_embed(model.timm_model.patch_embed(image))
        prefix = model.timm_model.num_prefix_tokens
        expected = torch.cat([whole[:, :prefix], whole[:, prefix:][:, kept[0]]], dim=1)
        patches = F.unfold(image, model.patch_size, stride=model.patch_size).mT[:, kept[0]]
        embedded = model.embed(patches, kept)
    torch.testing.assert_close(embedded, expected, atol=1e-5, rtol=1e-5)


def test_positions_are_attended_to_as_a_set() -> None:
    model = vit_of("class token")
    patches, positions = torch.randn(1, 6, 256), torch.tensor([[1, 5, 7, 9, 12, 20]])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        torch.testing.assert_close(
            model(patches[:, order], positions[:, order]), model(patches, positions)
        )
        moved = model(patches, positions + 1)
    assert not torch.allclose(moved, model(patches, positions))


def test_embedding_gradient_reaches_kept_positions_only() -> None:
    model = vit_of("class token")
    model(torch.randn(1, 2, 256), torch.tensor([[2, 9]])).sum().backward()
    touched = model.timm_model.pos_embed.grad.abs().sum(-1)[0] > 0
    assert touched.nonzero().flatten().tolist() == [0, 3, 10]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_of_a_single_image_lie_as_their_weights_do(compiled: bool) -> None:
    """DDP warns of others, at every batch of one image."""
    model = vit_of("class token")
    if compiled:
        model.compile_blocks()
    score = model(torch.randn(1, 2, 256), torch.tensor([[2, 9]])).sum()
    names, weights = zip(*model.named_parameters(), strict=True)
    for name, weight, gradient in zip(
        names, weights, torch.autograd.grad(score, weights), strict=True
    ):
        assert gradient.stride() == weight.stride(), name


def test_local_weights_are_resampled_to_canvas_and_channel(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        model = build_backbone("vit_tiny_patch16_224", CANVAS, weights=str(tmp_path / file))
        assert model.timm_model.pos_embed.shape == (1, 1 + 24, 192)
        torch.testing.assert_close(
            model.timm_model.patch_embed.proj.weight,
            source.patch_embed.proj.weight.sum(1, keepdim=True),
        )
        torch.testing.assert_close(
            model.timm_model.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight
        )


def test_weights_that_hold_code_are_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"state_dict": Payload()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="weights"):
        build_backbone("vit_tiny_patch16_224", CANVAS, weights=str(tmp_path / "w.pth"))
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("vit_small_patch16_224").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"w\.safetensors"):
        build_backbone("vit_tiny_patch16_224", CANVAS, weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(InputError, match="does not exist"):
        build_backbone("vit_tiny_patch16_224", CANVAS, weights=str(tmp_path / "none.safetensors"))


def test_bad_names_and_options_are_refused() -> None:
    with pytest.raises(InputError, match="needs the class token"):
        build_backbone("vit_base_patch16_gap_224", CANVAS, global_pool="token")
    with pytest.raises(InputError, match="vit_tiny_patch16_224"):
        build_backbone("vit_tiny_patch16_225", CANVAS)
    with pytest.raises(InputError, match="multiples of 16"):
        build_backbone("vit_tiny_patch16_224", (96, 65))


def test_patch_size_is_known_before_the_canvas() -> None:
    assert describe_backbone("vit_tiny_patch16_224").patch_size == 16
    assert describe_backbone("vit_small_patch14_dinov2").patch_size == 14


Batches = Callable[[int], tuple[ImageBatch, torch.Tensor]]


def test_checkpointing_changes_neither_scores_nor_gradients(batch_of: Batches) -> None:
    images, keys = batch_of(4)
    patches, positions = PatchSampler(CANVAS, 16).for_training(images, keys, 6)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = build_backbone(
            "vit_tiny_patch16_224", CANVAS, drop_path_rate=0.5, checkpointing=checkpointing
        ).train()
        model(patches, positions, keys).square().sum().backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("draw", list(Draw))
def test_sampler_draws_the_same_for_an_image_in_any_batch(draw: Draw, batch_of: Batches) -> None:
    sampler = PatchSampler(CANVAS, 16, draw=draw)
    images, keys = batch_of(5)
    patches, positions = sampler.for_training(images, keys, 6)
    assert positions.shape == (5, 6)
    assert (positions.diff(dim=1) > 0).all()
    for number in range(5):
        one = images.slice(number, number + 1)
        alone = sampler.for_training(one, keys[number : number + 1], 6)
        assert torch.equal(alone[1][0], positions[number])
        assert torch.equal(alone[0][0], patches[number])


def test_tissue_draw_takes_the_breast_first(batch_of: Batches) -> None:
    still = AugmentSettings.none()
    images, keys = batch_of(5)
    sampler = PatchSampler(CANVAS, 16, draw=Draw.TISSUE, augment=still)
    tissue = sampler.tissue(images)
    breast = int(tissue[0].sum())
    assert 0 < breast < 24
    for kept in (1, breast - 1, breast, breast + 3, 24):
        _, positions = sampler.for_training(images, keys, kept)
        assert tissue.gather(1, positions).sum(1).tolist() == [min(kept, breast)] * 5


@pytest.mark.slow
@pytest.mark.parametrize("draw", list(Draw))
def test_compiled_equals_eager(draw: Draw, batch_of: Batches) -> None:
    torch.manual_seed(0)
    model = build_backbone("vit_tiny_patch16_224", CANVAS, drop_path_rate=0.5).train()
    images, keys = batch_of(4)
    patches, positions = PatchSampler(CANVAS, 16, draw=draw).for_training(images, keys, 6)
    compiled = PatchSampler(CANVAS, 16, draw=draw, compiled=True)
    read, drawn = compiled.for_training(images, keys, 6)
    assert torch.equal(drawn, positions)
    torch.testing.assert_close(read, patches, atol=1e-3, rtol=0)
    expected = model(patches, positions, keys)
    gradient = torch.autograd.grad(expected.sum(), model.timm_model.patch_embed.proj.weight)[0]
    model.compile_blocks()
    scores = model(patches, positions, keys)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    again = torch.autograd.grad(scores.sum(), model.timm_model.patch_embed.proj.weight)[0]
    torch.testing.assert_close(again, gradient, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_code_is_made_a_few_times_whatever_is_asked_of_it() -> None:
    """Several K, batches and evaluation, of a model with stochastic depth: no block alone."""
    torch.compiler.reset()
    model = build_backbone("vit_tiny_patch16_224", CANVAS, drop_path_rate=0.1)
    model.compile_blocks()
    made = CompileCounterWithBackend("eager")
    for block in model.timm_model.blocks:
        block.compile(backend=made)
    model._last_block = torch.compile(forward_class_token, backend=made)
    keys = torch.arange(5)
    counts = []
    with config.patch(fail_on_recompile_limit_hit=True):
        for images, kept in ((2, 6), (2, 6), (2, 8), (2, 12), (5, 12), (1, 24), (5, 24), (2, 6)):
            patches = torch.randn(images, kept, 256)
            positions = torch.arange(kept).expand(images, -1)
            model.train()(patches, positions, keys[:images]).sum().backward()
            with torch.no_grad():
                model.eval()(patches, positions)
            counts.append(made.frame_count)
    torch.compiler.reset()
    # Of the last block and of all others, in training and evaluation, each for one K, for any, for
    # any batch, and for a single image.
    assert counts[0] == counts[1] == 4
    assert counts[-1] <= 16
