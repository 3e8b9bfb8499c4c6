"""One optimiser step: draw, read the kept patches, forward, backward, update.

Nothing in a step waits for the GPU, so the host stays ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mammo_pd.batch import ImageBatch
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.keyed_random import image_key
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.training.captured import CapturedWork
from mammo_pd.training.objectives import Objective


@dataclass(frozen=True)
class TrainingStep:
    """Everything that the steps of a run have in common.

    Attributes:
        fabric: a launched Lightning Fabric.
        model: set up by Fabric, in training mode; takes what the objective's `training_inputs`
            returns.
        optimizer: set up by Fabric.
        sampler: draws and reads the patches.
        objective: decides what is read, and computes the loss.
        clip_norm: largest norm of the gradient; 0 for no limit.
        captured: launches whole steps; None to launch their kernels one by one.
    """

    fabric: Any
    model: nn.Module
    optimizer: torch.optim.Optimizer
    sampler: PatchSampler
    objective: Objective
    clip_norm: float = 0.0
    captured: CapturedWork | None = None

    def __call__(
        self,
        batch: ImageBatch,
        keys: Tensor,
        num_keep: int,
        parts: int = 1,
        weight: float = 1.0,
    ) -> Tensor:
        """Train on this process's share of a batch.

        Args:
            batch: B images.
            keys: (B,) int64 on the device, from `image_keys`.
            num_keep: K.
            parts: number of forward and backward passes, of nearly equal size; patches are drawn
                and read part by part.
            weight: of this process's images relative to the others': 1 if all processes have
                equally many. The weights of all processes add up to their number.

        Returns:
            () the mean loss over this process's share times the weight, on the device.
        """
        batch = batch.to(self.fabric.device)
        edges = batch.edges(min(parts, len(batch)))
        if self.captured is None:
            return self._learn(batch, keys, num_keep, edges, weight)
        # The edges are part of the name: if units must not be split, they vary from batch to batch.
        name = ("step", num_keep, edges)
        if self.fabric.world_size == 1:
            learn = partial(self._learn, num_keep=num_keep, edges=edges)
            return self.captured.run(name, learn, batch, keys)
        gradients = partial(self._gradients, num_keep=num_keep, edges=edges)
        found = self.captured.run(name, gradients, batch, keys)
        return self._learn_together(found, weight)

    def _learn(
        self,
        batch: ImageBatch,
        keys: Tensor,
        num_keep: int,
        edges: Sequence[int],
        weight: float = 1.0,
    ) -> Tensor:
        self._drop_gradients()
        loss = self._backward(batch, keys, num_keep, edges, weight)
        self._update()
        return loss

    def _gradients(
        self, batch: ImageBatch, keys: Tensor, num_keep: int, edges: Sequence[int]
    ) -> Tensor:
        """This process's gradients and loss in one vector, for a single exchange between processes.

        DDP exchanges gradients while others are still being computed, which is not safe in a
        replayed graph; exchanging all of them at once takes about as long as DDP's last piece.
        """
        self._drop_gradients()
        with self.fabric.no_backward_sync(self.model):
            loss = self._backward(batch, keys, num_keep, edges)
        gradients = [weight.grad.flatten() for weight in self._learning if weight.grad is not None]
        self._drop_gradients()
        # The loss comes last: behind it no gradient would be aligned, and the fused optimiser
        # would read number by number.
        return torch.cat([*gradients, loss.view(1)])

    def _learn_together(self, found: Tensor, share: float) -> Tensor:
        found *= share / self.fabric.world_size
        torch.distributed.all_reduce(found)
        *gradients, loss = torch.split(found, [*(one.numel() for one in self._learning), 1])
        for weight, gradient in zip(self._learning, gradients, strict=True):
            weight.grad = gradient.view_as(weight).to(weight.dtype)
        self._update()
        return loss.squeeze(0)

    def _drop_gradients(self) -> None:
        """Drop all gradients, including uninitialised ones left by a failed capture."""
        for weight in self._learning:
            weight.grad = None

    @cached_property
    def _learning(self) -> list[nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def _backward(
        self,
        batch: ImageBatch,
        keys: Tensor,
        num_keep: int,
        edges: Sequence[int],
        weight: float = 1.0,
    ) -> Tensor:
        losses = []
        for start, end in pairwise(edges):
            # Gradients are exchanged once per step, with the last part.
            with self.fabric.no_backward_sync(self.model, enabled=end < len(batch)):
                loss = self._loss(batch.slice(start, end), keys[start:end], num_keep)
                loss = loss * (weight * (end - start) / len(batch))
                self.fabric.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _loss(self, batch: ImageBatch, keys: Tensor, num_keep: int) -> Tensor:
        inputs, targets = self.objective.training_inputs(self.sampler, batch, keys, num_keep)
        return self.objective.loss(self.model(*inputs).float(), targets)

    def _update(self) -> None:
        update(self.fabric, self.model, self.optimizer, self.clip_norm)


def update(
    fabric: Any, model: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float
) -> None:
    """Clip the gradients, step the optimiser and drop the gradients."""
    if clip_norm:
        # Checking the norm here would wait for the device; the loop checks the loss later.
        fabric.clip_gradients(model, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def image_keys(
    dataset: MammogramDataset,
    rows: Tensor,
    seed: int,
    epoch: int,
    device: torch.device,
    turns: Sequence[int] | None = None,
) -> Tensor:
    """The keys (B,) int64 of images in one epoch, on the device.

    Args:
        dataset: of the images.
        rows: (B,) int64, of the data set.
        seed: of the run.
        epoch: counted from 0.
        device: where the keys are needed.
        turns: how often each image has already occurred in this epoch; None for never.
    """
    drawn = zip(rows.tolist(), turns or [0] * len(rows), strict=True)
    keys = torch.tensor(
        [image_key(seed, epoch, dataset.image_ids[row], turn) for row, turn in drawn]
    )
    if device.type == "cuda":
        keys = keys.pin_memory()
    return keys.to(device, non_blocking=True)


def can_capture(fabric: Any, *, compiled: bool, checkpointing: bool) -> bool:
    """Whether whole steps may be captured as CUDA graphs.

    Not in fp16, whose loss scaling waits for the device, nor with activation checkpointing, which
    reads the random number generator's state.
    """
    return compiled and not checkpointing and can_fuse(fabric)


def can_fuse(fabric: Any) -> bool:
    """Whether AdamW may be fused: on a GPU, unless in fp16.

    In fp16 the fused optimiser unscales the gradients itself, and Lightning cannot clip them.
    """
    precision: str = fabric.strategy.precision.precision
    on_gpu: bool = fabric.device.type == "cuda"
    return on_gpu and precision != "16-mixed"
