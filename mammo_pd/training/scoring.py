"""Score images on all their patches, for validation and prediction."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from mammo_pd.batch import ImageBatch
from mammo_pd.patches.sampler import Kept, PatchSampler
from mammo_pd.training.captured import CapturedWork
from mammo_pd.training.objectives import Objective


@torch.no_grad()
def score_batches(
    model: nn.Module,
    sampler: PatchSampler,
    objective: Objective,
    batches: Iterable[ImageBatch],
    device: torch.device,
    kept: Callable[[Tensor], Kept] | None = None,
    captured: CapturedWork | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Score images as the objective reads them: by default on every patch, without augmentation.

    Args:
        model: in evaluation mode.
        sampler: of the model's input size.
        objective: reads the scores.
        batches: of stored images; no targets are needed.
        device: of the model.
        kept: from rows (B,) int64, which patches of those images to read; None for all.
        captured: launches whole batches; None to launch their kernels one by one.

    Yields:
        rows (B,) int64 on the CPU and scores (B, T) float64 on the device (a sigmoid in float32
        ties scores near 1).
    """
    for batch in batches:
        some = kept(batch.rows) if kept else None
        num_keep = some.num_keep if some else None
        keys = some.keys if some else torch.zeros(len(batch), dtype=torch.int64, device=device)

        def score(batch: ImageBatch, keys: Tensor, num_keep: int | None = num_keep) -> Tensor:
            read = None if num_keep is None else Kept(num_keep, keys)
            outputs = model(*objective.evaluation_inputs(sampler, batch, read))
            return objective.scores(outputs.double())

        if captured is None:
            scores = score(batch.to(device), keys)
        else:
            scores = captured.run(("scores", num_keep), score, batch.to(device), keys)
        yield batch.rows, scores
