"""Scores of images on all their patches: what validation and prediction have in common."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from mammo_pd.batch import ImageBatch
from mammo_pd.patches.sampler import Kept, PatchSampler
from mammo_pd.training.objectives import Objective


@torch.no_grad()
def score_batches(
    model: nn.Module,
    sampler: PatchSampler,
    objective: Objective,
    batches: Iterable[ImageBatch],
    device: torch.device,
    kept: Callable[[Tensor], Kept] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Score images as the objective reads them: by default on every patch, without augmentation.

    Args:
        model: in evaluation mode.
        sampler: of the model's input size.
        objective: reads the scores.
        batches: of stored images; no targets are needed.
        device: of the model.
        kept: from rows (B,) int64, which patches of those images to read; None for all.

    Yields:
        rows (B,) int64 on the CPU and scores (B, T) float64 on the device (a sigmoid in float32
        ties scores near 1).
    """
    for batch in batches:
        some = kept(batch.rows) if kept else None
        outputs = model(*objective.evaluation_inputs(sampler, batch.to(device), some))
        yield batch.rows, objective.scores(outputs.double())
