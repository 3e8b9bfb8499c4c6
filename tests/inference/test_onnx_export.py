"""A model as ONNX: onnxruntime gives the scores of predict, whatever the image's size."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import mammo_pd
from mammo_pd.backbones.build import build_backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import load_config
from mammo_pd.inference.onnx_export import export_onnx
from mammo_pd.normalization import Normalization
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.training.objectives import build_objective

onnxruntime = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is not installed (mammo-pd[onnx])"
)
pytest.importorskip("onnxscript", reason="onnxscript is not installed (mammo-pd[onnx])")


def untrained(name: str, img_size: tuple[int, int]) -> Any:
    """What a `TrainedModel` tells of a model, with random weights and a wide spread of scores."""
    torch.manual_seed(0)
    backbone = build_backbone(name, img_size, num_outputs=1).eval()
    torch.nn.init.normal_(backbone.timm_model.head.weight, std=0.5)
    config = load_config(None, {})
    card = SimpleNamespace(
        model=name,
        img_size=img_size,
        normalization=Normalization(0.3, 0.2),
        objective="binary_label",
        preprocessing={"voi": "auto"},
        trained_on={},
        run_config=lambda: config,
    )
    return SimpleNamespace(
        card=card,
        trained=backbone,
        backbone=backbone,
        objective=build_objective(config.training),
        digest="0" * 64,
        operating_points={},
    )


@pytest.mark.parametrize(
    "name",
    [
        "test_vit",
        # Tracing takes ten seconds each.
        pytest.param("vit_tiny_patch16_224", marks=pytest.mark.slow),
        pytest.param("vit_small_patch14_reg4_dinov2", marks=pytest.mark.slow),
        pytest.param("eva02_tiny_patch14_224", marks=pytest.mark.slow),
    ],
)
def test_scores_are_those_of_predict(name: str, tmp_path: Path) -> None:
    side = 14 if "14" in name else 16
    model = untrained(name, (4 * side, 3 * side))
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["research_use_only"] == "not a medical device"
    assert json.loads(facts["score_names"]) == ["score"]
    sampler = PatchSampler(model.card.img_size, side, normalization=model.card.normalization)
    rng = np.random.default_rng(0)
    for shape in ((120, 70), (60, 95), (64, 48), (31, 200)):
        image = rng.integers(0, 65536, shape).astype(np.uint16)
        with torch.no_grad():
            inputs = sampler.for_evaluation(ImageBatch.from_images([image]))
            wanted = model.objective.scores(model.backbone(*inputs)).item()
        (found,) = session.run(None, {"image": image[None, None].astype(np.float32)})
        assert found.shape == (1, 1)
        assert abs(found.item() - wanted) < 1e-4
    several = np.repeat(image[None, None].astype(np.float32), 3, axis=0)
    assert np.allclose(session.run(None, {"image": several})[0], wanted, atol=1e-4)


def test_no_folder_of_the_machine_is_handed_on(tmp_path: Path) -> None:
    """torch writes a stack trace beside each node: home folders name people, others projects."""
    export_onnx(untrained("test_vit", (64, 48)), tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    folders = {Path(mammo_pd.__file__).parent, Path(torch.__file__).parent, tmp_path, Path.cwd()}
    assert not [folder for folder in folders if str(folder).encode() in content]
    assert b".py" not in content
