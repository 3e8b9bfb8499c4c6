"""Two draws on trial: large patches where there is little to see, and the whole image beside.

    python benchmarks/recipes.py train STORE benchmarks/recipes/rsna_640_patches.json OUT
    python benchmarks/recipes.py table OUT --against tissue
    python benchmarks/ideas_patches.py [OUT.md] --store STORE    # speed
    python benchmarks/ideas_patches.py --store STORE --small     # the same path at a tiny size

Nothing of them is in the package. Coarse patches: a block of 2x2 patches may become one token, read
at half the resolution. Every block that holds breast is kept, as one token or as its patches, so
that K tokens see the whole breast where the tissue draw sees a part of it. Context: beside patches
of a tissue draw every block of 4x4 is one token, read at a quarter of the resolution. What scoring
on tissue alone (`patch_dropout.score_on`) gains in speed is measured here too.

Shapes: B images, N patch positions on the grid, M blocks of them, both in raster order, K tokens
kept, P the patch's side. Positions from N on are those of the blocks. Where the grid's side is no
multiple of a block's, its last blocks reach out of the input.

Source of the first: Choudhury et al., "Accelerating Vision Transformers with Adaptive Patch Sizes",
arXiv 2510.18091. Theirs adds what the fine patches show to a large one, by layers of its own; here
it has the weights of the others, and the mean of its patches' position embeddings.
"""

import argparse
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from mammo_pd.backbones.build import FAMILIES, build_backbone
from mammo_pd.backbones.columnar import embed_patches, grid_embedding
from mammo_pd.backbones.vit import VitBackbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import RunConfig
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.store import open_store
from mammo_pd.inference.predict import Scored
from mammo_pd.keyed_random import hashed
from mammo_pd.patches.draw import draw_tissue, take_lowest
from mammo_pd.patches.sample import probe, read_squares
from mammo_pd.patches.sampler import DRAWS, Kept, PatchSampler, Placement
from mammo_pd.perf.measure import Bench
from mammo_pd.perf.rows import BenchRow, as_markdown
from mammo_pd.terms import Draw, ScoredPatches
from mammo_pd.training.devices import make_fabric
from mammo_pd.training.objectives import Objective, build_objective
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.scoring import score_batches
from mammo_pd.training.setup import make_loader
from mammo_pd.training.step import image_keys

# Pixels that `probe` reads of a patch.
PROBES = 16
# Patches along the side of a block of context.
_CONTEXT = 4
# Images whose tissue is counted together, before they are put in order of it.
_GROUP = 128
_PASSES = 3


# ---- coarse patches: the draw


def block_grid(grid_size: tuple[int, int]) -> tuple[int, int]:
    """The grid of blocks, (rows, columns), over a grid of patches."""
    return math.ceil(grid_size[0] / 2), math.ceil(grid_size[1] / 2)


def by_block(values: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Each block's patches side by side: (B, N) to (B, M, 4), 0 outside the grid."""
    rows, columns = block_grid(grid_size)
    odd = (0, 2 * columns - grid_size[1], 0, 2 * rows - grid_size[0])
    padded = F.pad(values.view(-1, *grid_size), odd)
    return padded.view(-1, rows, 2, columns, 2).transpose(2, 3).flatten(3).flatten(1, 2)


def blocks_of(grid_size: tuple[int, int], device: torch.device) -> Tensor:
    """The block (N,) int64 that each patch lies in."""
    position = torch.arange(grid_size[0] * grid_size[1], device=device)
    row, column = position // grid_size[1] // 2, position % grid_size[1] // 2
    return row * block_grid(grid_size)[1] + column


def draw_mixed(
    keys: Tensor, tissue: Tensor, detail: Tensor, grid_size: tuple[int, int], num_keep: int
) -> Tensor:
    """Draw K positions of patches and blocks that together cover every patch with breast once.

    The blocks of most detail are given as their patches with breast, as many as K allows; every
    other block with breast is one token. If K is too small even for that, some of them are drawn,
    every subset being equally likely. What is left of K is blocks of air.

    Args:
        keys: (B,) int64, from `image_key`.
        tissue: (B, N) bool, whether each patch holds breast.
        detail: (B, M) int64 in [0, 2**53), which blocks are given as patches first.
        grid_size: of patches, (rows, columns).
        num_keep: K, less than N.

    Returns:
        (B, K) int64 positions in [0, N + M), without repeats, ascending.
    """
    count = by_block(tissue.long(), grid_size).sum(dim=2)
    whole = count > 0
    extra = (count - 1).clamp(min=0)
    order = ((~whole).long() << 54).sub(detail).argsort(dim=1, stable=True)
    spent = extra.gather(1, order).cumsum(dim=1)
    left = num_keep - whole.sum(dim=1, keepdim=True)
    paid = torch.zeros_like(whole).scatter(1, order, spent <= left)
    split = whole & (paid | (extra == 0))

    of_patches = torch.where(tissue, 2 - 2 * split[:, blocks_of(grid_size, keys.device)].long(), 3)
    of_blocks = torch.where(split, 4, torch.where(whole, 0, 1))
    rank = torch.cat([of_patches, of_blocks], dim=1) << 53
    return take_lowest(rank + hashed(keys, rank.shape[1], stream=0), num_keep)


def look(
    images: ImageBatch, matrix: Tensor, grid_size: tuple[int, int], patch_size: int
) -> tuple[Tensor, Tensor]:
    """What a few pixels of each patch tell: how much of it is breast, and how much that varies.

    In integers, so that a draw by it is the same on every device.

    Args:
        images: B stored images.
        matrix: (B, 2, 3) float32, input to stored image.
        grid_size: of patches, (rows, columns).
        patch_size: P.

    Returns:
        (B, N) int64, how many of `PROBES` grey values are above 0; and (B, N) int64, their
        variance, rounded down.
    """
    grey = probe(images, matrix, grid_size, patch_size).long()
    count, total, squares = (grey > 0).sum(dim=2), grey.sum(dim=2), (grey * grey).sum(dim=2)
    variance = (count * squares - total * total) // (count * count).clamp(min=1)
    return count, variance


class CoarseSampler(PatchSampler):
    """Draws patches and blocks; those blocks as patches, within whose patches grey varies most."""

    def __init__(self, *given: Any, compiled: bool = False, **named: Any) -> None:
        super().__init__(*given, compiled=compiled, **named)
        self._look = torch.compile(look) if compiled else look

    @torch.no_grad()
    def draw(self, images: ImageBatch, keys: Tensor, placement: Placement, num_keep: int) -> Tensor:
        """Draw the kept positions (B, K) int64; all N are those of the patches."""
        rows, columns = self.grid_size
        if num_keep == rows * columns:
            return super().draw(images, keys, placement, num_keep)
        bright, variance = self._look(images, placement.matrix, self.grid_size, self.patch_size)
        detail = self.detail(keys, bright, variance)
        return draw_mixed(keys, bright > 0, detail, self.grid_size, num_keep)

    def detail(self, keys: Tensor, bright: Tensor, variance: Tensor) -> Tensor:
        """Which blocks are given as patches first: (B, M) int64.

        Those that reach into air come last: what varies most in an image is the skin's edge.
        """
        within = by_block(bright, self.grid_size).sum(dim=2) == 4 * PROBES
        return torch.where(within, by_block(variance, self.grid_size).sum(dim=2), 0)

    def pixels_at(self, images: ImageBatch, matrix: Tensor, positions: Tensor) -> Tensor:
        """The pixels at some positions; of a block each the mean of 2x2 that a patch would have."""
        (rows, columns), size = self.grid_size, self.patch_size
        block = positions - rows * columns
        coarse, across = block >= 0, block_grid(self.grid_size)[1]
        row = size * torch.where(coarse, 2 * (block // across), positions // columns)
        column = size * torch.where(coarse, 2 * (block % across), positions % columns)
        step = 1 + coarse.float()[:, :, None]
        side = (torch.arange(size, device=positions.device) + 0.5) * step
        down, right = row[:, :, None] + side, column[:, :, None] + side
        # Of a patch four times the same, so that the number of reads does not depend on the draw.
        near, far = -0.5 * (step - 1), 0.5 * (step - 1)

        def read(below: Tensor, beside: Tensor) -> Tensor:
            return read_squares(images, matrix, down + below, right + beside)

        above, under = read(near, near) + read(near, far), read(far, near) + read(far, far)
        return (above + under) / 4 / 65535


class RandomCoarseSampler(CoarseSampler):
    """Draws patches and blocks, any blocks with breast being as likely to be given as patches."""

    def detail(self, keys: Tensor, bright: Tensor, variance: Tensor) -> Tensor:
        """Which blocks are given as patches first: (B, M) int64."""
        rows, columns = block_grid(self.grid_size)
        return hashed(keys, rows * columns, stream=7)


# ---- coarse patches: the model


class MixedVit(VitBackbone):
    """A ViT that also embeds blocks, at positions from N on: of patches alone it is as it was."""

    side = 2

    def embed(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Project patches and blocks alike, and add the position embedding of each."""
        own = grid_embedding(self.timm_model)
        assert own is not None, "refused by reason_against"
        table = own.T.unflatten(1, self.grid_size)
        means = F.avg_pool2d(table, self.side, ceil_mode=True).flatten(1).T
        return embed_patches(
            self.timm_model,
            self._prefix_tokens(),
            patches,
            positions,
            torch.cat([own, means]),
        )


# ---- context: the whole image beside what is drawn


def context_grid(grid_size: tuple[int, int]) -> tuple[int, int]:
    """The grid of blocks of `_CONTEXT` x `_CONTEXT` patches, (rows, columns)."""
    return math.ceil(grid_size[0] / _CONTEXT), math.ceil(grid_size[1] / _CONTEXT)


class ContextSampler(PatchSampler):
    """Draws tissue, and shows the whole image beside it, each block of 4x4 patches as one token.

    Positions from N on are those of the blocks, all of which are kept, last, whatever they hold.
    """

    @property
    def num_blocks(self) -> int:
        """How many of the kept tokens are blocks."""
        return math.prod(context_grid(self.grid_size))

    @torch.no_grad()
    def draw(self, images: ImageBatch, keys: Tensor, placement: Placement, num_keep: int) -> Tensor:
        """Draw the kept positions (B, K) int64; all N are those of the patches."""
        num_tokens = math.prod(self.grid_size)
        if num_keep == num_tokens:
            return super().draw(images, keys, placement, num_keep)
        if num_keep < self.num_blocks:
            raise ValueError(
                f"{num_keep} tokens are fewer than the {self.num_blocks} blocks that show the "
                "whole image; keep more."
            )
        tissue = self.tissue(images, placement)
        drawn = draw_tissue(keys, tissue, num_keep - self.num_blocks)
        return torch.cat([drawn, self._blocks(len(keys), keys.device)], dim=1)

    @torch.no_grad()
    def for_evaluation(self, images: ImageBatch, kept: Kept | None = None) -> tuple[Tensor, Tensor]:
        """Every patch of the images and every block, or what is kept of them."""
        if kept is not None:
            return super().for_evaluation(images, kept)
        device = images.pixels.device
        every = torch.arange(math.prod(self.grid_size), device=device)
        every = every.expand(len(images.heights), -1)
        positions = torch.cat([every, self._blocks(len(every), device)], dim=1)
        matrix = self.place(images, None).matrix
        return self._standardise(self.pixels_at(images, matrix, positions)), positions

    def pixels_at(self, images: ImageBatch, matrix: Tensor, positions: Tensor) -> Tensor:
        """The pixels at some positions; of a block each the mean of 4x4 that a patch would have."""
        (rows, columns), size = self.grid_size, self.patch_size
        if positions.shape[1] == rows * columns:
            return super().pixels_at(images, matrix, positions)
        patches = super().pixels_at(images, matrix, positions[:, : -self.num_blocks])
        block, across = (
            positions[:, -self.num_blocks :] - rows * columns,
            context_grid((rows, columns))[1],
        )
        side = _CONTEXT * torch.arange(size, device=positions.device) + 0.5
        down = (_CONTEXT * size * (block // across))[:, :, None] + side
        right = (_CONTEXT * size * (block % across))[:, :, None] + side
        steps = range(_CONTEXT)
        total = sum(
            read_squares(images, matrix, down + below, right + beside)
            for below in steps
            for beside in steps
        )
        return torch.cat([patches, total / _CONTEXT**2 / 65535], dim=1)

    def _blocks(self, count: int, device: torch.device) -> Tensor:
        first = math.prod(self.grid_size)
        return torch.arange(first, first + self.num_blocks, device=device).expand(count, -1)


class ContextVit(MixedVit):
    """A ViT that embeds blocks of 4x4 patches, at positions from N on."""

    side = _CONTEXT


TRIALS: dict[str, tuple[type[PatchSampler], type[VitBackbone]]] = {
    "coarse": (CoarseSampler, MixedVit),
    "coarse at random": (RandomCoarseSampler, MixedVit),
    "context": (ContextSampler, ContextVit),
}


@contextmanager
def trying(trial: str | None) -> Iterator[type[PatchSampler]]:
    """Within the block a trial's draw is in `DRAWS`, by its name; gives its sampler.

    Models are built for it.

    Args:
        trial: of `TRIALS`; None for the package's own draws.
    """
    if trial is None:
        yield PatchSampler
        return
    before = FAMILIES.pop(VisionTransformer)
    DRAWS[trial], FAMILIES[VisionTransformer] = TRIALS[trial]
    try:
        yield DRAWS[trial]
    finally:
        del DRAWS[trial], FAMILIES[VisionTransformer]
        FAMILIES[VisionTransformer] = before


# ---- scores of other patches


WAYS = ("on tissue", "as drawn", "with context")


def score_again(
    way: str, scored: Scored, run: RunFolder, sampler: type[PatchSampler]
) -> npt.NDArray[np.float64]:
    """Score a run's images on other patches than `predict` does: (images,).

    Args:
        way: ``on tissue`` for all patches that hold breast; ``as drawn`` for as many as a training
            step has, by its own draw; ``with context`` for all patches and the trial's blocks.
        scored: by `predict`, in the same `trying`.
        run: that was scored.
        sampler: that it was trained with.
    """
    fabric = make_fabric(run.config.replace(device=run.config.device.replace(devices=1)))
    device, backbone = fabric.device, scored.backbone
    dataset = MammogramDataset(scored.cohort.paths, scored.images, run.info.img_size)
    own = PatchSampler if way == "on tissue" else sampler
    draws = own(
        run.info.img_size,
        backbone.patch_size,
        normalization=run.info.normalization,
        draw=run.config.patch_dropout.draw,
        score_on=ScoredPatches.TISSUE if way == "on tissue" else ScoredPatches.ALL,
        num_prefix=backbone.num_prefix,
    )
    chosen = [
        list(range(start, min(start + _GROUP, len(dataset))))
        for start in range(0, len(dataset), _GROUP)
    ]
    loader = make_loader(dataset, chosen, run.config.data.workers, device)

    def drawn(rows: Tensor) -> Kept:
        return Kept(run.info.num_keep, image_keys(dataset, rows, 0, -1, device))

    module = fabric.setup_module(backbone).eval()
    scores = np.empty(len(dataset))
    kept = drawn if way == "as drawn" else None
    for rows, found in score_batches(
        module, draws, scored.objective, loader, device, kept, images_at_once=32
    ):
        scores[rows.numpy()] = found[:, 0].cpu().numpy()
    return scores


# ---- speed


def measure_steps(machine: Bench, cases: list[tuple[str, tuple[int, int], int]]) -> list[BenchRow]:
    """Bare training steps of the tissue draw and of coarse patches, side by side."""
    rows = []
    for name, img_size, batch_size in cases:
        for trial in (None, "coarse"):
            with trying(trial):
                row = machine.ours(
                    name,
                    img_size,
                    0.25,
                    batch_size,
                    draw=trial or Draw.TISSUE,
                    compiled=machine.on_gpu,
                    end_to_end=False,
                )
            rows.append(row)
            print(as_markdown(rows[-1:]).splitlines()[2], flush=True)
    return rows


def measure_scoring(
    store: Path, name: str, img_size: tuple[int, int], images_at_once: int, most_images: int
) -> str:
    """A line of a table: images/s of scoring a store's images on all patches, and on tissue.

    The model is not compiled, as `predict`'s is not. Images lie in the host's memory; of each
    passes over all of them the fastest counts.
    """
    fabric = make_fabric(RunConfig())
    device, objective = fabric.device, build_objective(RunConfig().training)
    torch.manual_seed(0)
    backbone = build_backbone(name, img_size)
    on_all, on_tissue = (
        PatchSampler(
            img_size, backbone.patch_size, score_on=patches, num_prefix=backbone.num_prefix
        )
        for patches in (ScoredPatches.ALL, ScoredPatches.TISSUE)
    )
    paths = open_store(store)
    manifest = read_manifest(paths.manifest)
    # Of all of the store, spread over it.
    rows = manifest.iloc[:: max(1, len(manifest) // most_images)][:most_images]
    dataset = MammogramDataset(paths, rows.reset_index(drop=True), img_size)
    module = fabric.setup_module(backbone).eval()

    def in_memory(size: int) -> list[ImageBatch]:
        starts = range(0, len(dataset), size)
        return [dataset.read(range(s, min(s + size, len(dataset)))) for s in starts]

    few, many = in_memory(images_at_once), in_memory(_GROUP)
    share = np.mean(
        [on_all.tissue(batch.to(device)).float().mean(dim=1).mean().item() for batch in few]
    )
    rate = len(dataset) / np.array(
        [
            _seconds(module, on_all, objective, few, device, images_at_once),
            _seconds(module, on_tissue, objective, many, device, images_at_once),
        ]
    )
    cells = [
        name,
        f"{img_size[0]}x{img_size[1]}",
        f"{len(dataset)}",
        f"{share:.2f}",
        f"{images_at_once}",
        *(f"{one:.3g}" for one in rate),
        f"{rate[1] / rate[0]:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _seconds(
    module: nn.Module,
    draws: PatchSampler,
    objective: Objective,
    batches: list[ImageBatch],
    device: torch.device,
    images_at_once: int,
) -> float:
    """The fastest of some passes, after one that warms up."""
    times = []
    for _ in range(1 + _PASSES):
        started = time.perf_counter()
        for _ in score_batches(
            module, draws, objective, batches, device, images_at_once=images_at_once
        ):
            pass
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def main() -> None:
    """Measure and print speed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    dino, small = "vit_small_patch14_dinov2", "vit_small_patch16_224"
    steps, most_images, at_once = 20, 1024, (8, 64)
    cases = [(small, (1024, 1024), 128), (dino, (518, 392), 64)]
    if options.small:
        steps, most_images, at_once = 2, 24, (8,)
        cases = [("vit_tiny_patch16_224", (96, 64), 4)]
    with Bench(steps=steps, store=options.store) as machine:
        summary = machine.describe_machine()["summary"]
        steps_taken = as_markdown(measure_steps(machine, cases))
        head = [
            "| model | image size | images | tissue | all patches of so many at once "
            "| images/s on all patches | on tissue alone | times |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines = []
        for name, img_size, _ in cases:
            for count in at_once:
                lines.append(measure_scoring(options.store, name, img_size, count, most_images))
                print(lines[-1], flush=True)
    page = "\n".join(
        [
            f"# Coarse patches, and scores of tissue alone: speed, {date.today()}",
            "",
            f"{summary} {len(os.sched_getaffinity(0))} cores.",
            "",
            "Training steps on stored images that lie on the device:",
            "",
            steps_taken,
            "",
            "Scoring of stored images from the host's memory, random weights, not compiled:",
            "",
            *head,
            *lines,
            "",
        ]
    )
    print(page)
    if options.out is not None:
        options.out.write_text(page)


if __name__ == "__main__":
    main()
