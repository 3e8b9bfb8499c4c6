"""What an image's score depends on, and what of scoring may be launched as one graph."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.special import expit
from torch import Tensor

from mammo_pd.backbones.build import build_backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import RunConfig
from mammo_pd.patches import sampler as sampler_module
from mammo_pd.patches.sampler import Kept, PatchSampler
from mammo_pd.terms import ScoredPatches
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.scoring import score_batches

SIZE, PATCH = (112, 80), 16
CPU = torch.device("cpu")
KEYS = torch.arange(8) * 1009 + 5


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return build_backbone("test_vit", SIZE).eval()


def scores_of(model: Any, sampler: PatchSampler, batches: list[ImageBatch], **how: Any) -> Tensor:
    found = torch.full((8,), torch.nan, dtype=torch.float64)
    objective = build_objective(RunConfig().training)
    for rows, scores in score_batches(model, sampler, objective, batches, CPU, **how):
        found[rows] = scores[:, 0]
    return found


def draw(num_keep: int) -> Callable[[Tensor], Kept]:
    return lambda rows: Kept(num_keep, KEYS[rows])


def test_an_image_is_scored_on_its_own_draw_whatever_is_beside_it(
    model: Any, batch_of: Callable[[int], tuple[ImageBatch, Tensor]]
) -> None:
    images, _ = batch_of(8)
    sampler = PatchSampler(SIZE, PATCH)
    batches = [images.take([5, 1, 7, 0]), images.take([2, 6]), images.take([3, 4])]
    found = scores_of(model, sampler, batches, kept=draw(6))
    for row in range(8):
        alone = images.slice(row, row + 1)
        patches, positions = sampler.for_evaluation(alone, Kept(6, KEYS[row : row + 1]))
        assert positions.shape == (1, 6)
        with torch.no_grad():
            logit = model(patches, positions).item()
        assert found[row].item() == pytest.approx(expit(logit), abs=1e-6)


class Graphs:
    """Does the work again that came first under a name, as a replayed CUDA graph does."""

    def __init__(self) -> None:
        self.works: dict[object, Any] = {}

    def run(self, name: object, work: Any, batch: ImageBatch, keys: Tensor) -> Tensor:
        scores: Tensor = self.works.setdefault((name, len(batch)), work)(batch, keys)
        return scores


def test_replayed_work_scores_each_batch_on_its_own_draw(
    model: Any, batch_of: Callable[[int], tuple[ImageBatch, Tensor]]
) -> None:
    images, _ = batch_of(8)
    sampler = PatchSampler(SIZE, PATCH)
    batches, graphs = [images.slice(0, 4), images.slice(4, 8)], Graphs()
    for kept in (draw(6), None, draw(9)):
        found = scores_of(model, sampler, batches, kept=kept, captured=graphs)
        assert torch.equal(found, scores_of(model, sampler, batches, kept=kept))
    assert len(graphs.works) == 3


def test_parts_of_many_sizes_are_small_and_need_no_graph_each(
    model: Any, batch_of: Callable[[int], tuple[ImageBatch, Tensor]], monkeypatch: Any
) -> None:
    monkeypatch.setattr(sampler_module, "_TILE", 4)
    images, _ = batch_of(8)
    sampler = PatchSampler(SIZE, PATCH, score_on=ScoredPatches.TISSUE, num_prefix=1)
    read: list[int] = []
    model.register_forward_pre_hook(lambda _, given: read.append(given[0].shape[:2].numel()))
    graphs = Graphs()
    scores = scores_of(model, sampler, [images], captured=graphs, images_at_once=2)
    assert scores.isfinite().all()
    assert not graphs.works
    rows, columns = sampler.grid_size
    assert max(read) <= 2 * rows * columns < sum(read)
