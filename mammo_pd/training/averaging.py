"""Exponential moving average of the weights, which is then validated and kept."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The moving average of a model's parameters; costs nothing if the decay is 0.

    In the first steps the decay is lower, (1 + step) / (10 + step), so that the average forgets the
    initial weights. The average is stored next to the model and copied into it when needed, so that
    code compiled for the model stays valid.

    Args:
        model: its parameters are averaged as they are now and after each `update`.
        decay: per step; 0 for no average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = dict(model.named_parameters()) if decay else {}
        self._decay = decay
        self._average = [value.detach().clone() for value in self._parameters.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after a step; 0 is the first step of the run."""
        if not self._average:
            return
        decay = min(self._decay, (1 + step) / (10 + step))
        current: list[Tensor] = list(self._parameters.values())
        get_ema_multi_avg_fn(decay)(self._average, current, None)  # type: ignore[no-untyped-call]

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Within the block, the model holds the averaged weights."""
        own = [value.detach().clone() for value in self._parameters.values()] or None
        try:
            # Inside the try block, so that an interrupt in the middle leaves no mixture behind.
            if own is not None:
                torch._foreach_copy_(list(self._parameters.values()), self._average)
            yield
        finally:
            if own is not None:
                torch._foreach_copy_(list(self._parameters.values()), own)

    def state(self) -> dict[str, Tensor]:
        """The average by parameter name; empty if there is none."""
        return dict(zip(self._parameters, self._average, strict=True))

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for name, value in self.state().items():
            value.copy_(state[name])
