"""Exponential moving average of the weights, which is what is then validated and handed on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The moving average of a model's parameters, of no cost where the decay is 0.

    In the first steps the decay is lower, (1 + step) / (10 + step), so that the average forgets the
    start. The average lies beside the model and is copied in where it is needed: code that was
    compiled for the model stays valid.

    Args:
        model: its parameters are averaged as they are now and after each `update`.
        decay: of the average in a step; 0 for no average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = dict(model.named_parameters()) if decay else {}
        self._decay = decay
        self._average = [value.detach().clone() for value in self._parameters.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the step of that number, 0 for the first of the run."""
        if not self._average:
            return
        decay = min(self._decay, (1 + step) / (10 + step))
        current: list[Tensor] = list(self._parameters.values())
        get_ema_multi_avg_fn(decay)(self._average, current, None)  # type: ignore[no-untyped-call]

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        own = [value.detach().clone() for value in self._parameters.values()] or None
        try:
            # Within, so that an interrupt in the midst of it leaves no mixture behind.
            if own is not None:
                torch._foreach_copy_(list(self._parameters.values()), self._average)
            yield
        finally:
            if own is not None:
                torch._foreach_copy_(list(self._parameters.values()), own)

    def state(self) -> dict[str, Tensor]:
        """The average by the parameters' names; empty where there is none."""
        return dict(zip(self._parameters, self._average, strict=True))

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, value in self.state().items():
            value.copy_(state[name])
