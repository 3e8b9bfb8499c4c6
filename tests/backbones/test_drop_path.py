import pytest
import torch

from mammo_pd.backbones.build import build_backbone
from mammo_pd.backbones.drop_path import KeyedDropPath
from mammo_pd.keyed_random import image_key

CANVAS = (64, 48)


def keys_of(count: int) -> torch.Tensor:
    return torch.tensor([image_key(0, 0, str(number)) for number in range(count)])


def test_every_block_is_built_alike_and_drops_as_timm_says() -> None:
    model = build_backbone("vit_tiny_patch16_224", CANVAS, drop_path_rate=0.3)
    rates = [
        path.drop_prob
        for path in model.timm_model.blocks.modules()
        if isinstance(path, KeyedDropPath)
    ]
    assert rates == pytest.approx([0.3 * block / 11 for block in range(12) for _ in range(2)])
    still = build_backbone("vit_tiny_patch16_224", CANVAS)
    assert not any(isinstance(module, KeyedDropPath) for module in still.modules())


def test_branches_are_dropped_as_often_as_they_should_and_by_image() -> None:
    model = build_backbone("vit_tiny_patch16_224", CANVAS, drop_path_rate=0.3).train()
    paths = [module for module in model.modules() if isinstance(module, KeyedDropPath)]
    keys = keys_of(3000)
    model(torch.zeros(3000, 1, 256), torch.zeros(3000, 1, dtype=torch.int64), keys)
    scales = [path.scale for path in paths]
    for path, scale in zip(paths, scales, strict=True):
        assert scale is not None
        dropped = (scale == 0).float().mean().item()
        assert dropped == pytest.approx(path.drop_prob, abs=0.03)
        # What is kept makes up for what is dropped.
        assert scale.mean().item() == pytest.approx(1, abs=0.05)
    model(torch.zeros(2, 1, 256), torch.zeros(2, 1, dtype=torch.int64), keys[[7, 5]])
    for path, scale in zip(paths, scales, strict=True):
        assert scale is not None
        assert path.scale is not None
        assert torch.equal(path.scale, scale[[7, 5]])


def test_evaluation_drops_nothing_and_training_needs_the_keys() -> None:
    model = build_backbone("vit_tiny_patch16_224", CANVAS, drop_path_rate=0.9)
    patches, positions = torch.randn(4, 12, 256), torch.arange(12).expand(4, -1)
    model.train()(patches, positions, keys_of(4))
    scores = model.eval()(patches, positions)
    torch.testing.assert_close(model(patches, positions), scores)
    whole = patches.new_zeros(4, 1, *CANVAS)
    for place in range(12):
        top, left = place // 3 * 16, place % 3 * 16
        whole[:, 0, top : top + 16, left : left + 16] = patches[:, place].view(4, 16, 16)
    torch.testing.assert_close(scores, model.timm_model(whole), atol=1e-5, rtol=1e-5)
    with pytest.raises(AssertionError, match="needs the keys"):
        model.train()(patches, positions)


def test_model_has_no_buffer_that_processes_would_wait_for() -> None:
    assert not list(build_backbone("vit_tiny_patch16_224", CANVAS, drop_path_rate=0.1).buffers())
