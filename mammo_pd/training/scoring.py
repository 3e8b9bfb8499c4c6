"""Score images, for validation and prediction."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from mammo_pd.batch import ImageBatch
from mammo_pd.patches.sampler import Kept, PatchSampler
from mammo_pd.training.captured import CapturedWork
from mammo_pd.training.devices import compiled_for_any_size
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
    images_at_once: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Score images as the objective reads them, without augmentation.

    Args:
        model: in evaluation mode.
        sampler: of the model's input size; it says which patches are read.
        objective: reads the scores.
        batches: of stored images; no targets are needed.
        device: of the model.
        kept: from rows (B,) int64, which patches of those images to read instead.
        captured: launches whole batches; None to launch their kernels one by one.
        images_at_once: that the model takes with all their patches, where batches are larger and
            only some patches of them are read; None for a batch.

    Yields:
        rows (B,) int64 on the CPU and scores (B, T) float64 on the device (a sigmoid in float32
        ties scores near 1). Images of one batch may come in several parts, in another order.
    """
    for given in batches:
        on_device = given.to(device)
        parts: Iterable[tuple[ImageBatch, Kept | None]]
        parts = (
            [(on_device, kept(given.rows))]
            if kept
            else sampler.parts_to_score(on_device, images_at_once)
        )
        for batch, some in parts:
            keys = some.keys if some else torch.zeros(len(batch), dtype=torch.int64, device=device)
            # Parts of all sizes would need code each, and a graph.
            of_all_sizes = some is not None and some.tissue_first
            any_size = of_all_sizes and sampler.compiled

            def score(
                batch: ImageBatch,
                keys: Tensor,
                some: Kept | None = some,
                any_size: bool = any_size,
            ) -> Tensor:
                read = None if some is None else some._replace(keys=keys)
                inputs = objective.evaluation_inputs(sampler, batch, read)
                with compiled_for_any_size(wanted=any_size):
                    outputs = model(*inputs)
                return objective.scores(outputs.double())

            if captured is None or of_all_sizes:
                scores = score(batch, keys)
            else:
                name = ("scores", None if some is None else some.num_keep)
                scores = captured.run(name, score, batch, keys)
            yield batch.rows, scores
