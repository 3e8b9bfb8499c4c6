"""A trial, not in the package: GELU whose value and derivative take one exponential.

On a GPU the kernels that compute timm's GELU and its gradient wait for arithmetic too, not for
memory alone: the error function takes both branches of its approximation, the density an
exponential of its own. `compiler_options.py` measures what this gains.
"""

from typing import Any

import torch
from torch import Tensor, nn

# Abramowitz and Stegun 1964, Handbook of Mathematical Functions, 7.1.26: erf within 1.5e-7.
_SCALE = 0.3275911 * 2**-0.5
_POWERS = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_DENSITY_AT_0 = 0.3989422804014327


class OneExponentialGELU(nn.Module):
    """Replaces `torch.nn.GELU`, exact."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute x times the normal distribution's share below x, of any shape."""
        return gelu(x)


def gelu(x: Tensor) -> Tensor:
    """Compute GELU within 1.5e-7 times half of abs(x), and its gradient as closely.

    Args:
        x: of any shape; computed in float32, whatever its type.

    Returns:
        As ``x``, in its type.
    """
    return _OneExponential.apply(x)  # type: ignore[no-any-return,no-untyped-call]


def replace_gelu(module: nn.Module) -> None:
    """Replace every exact `torch.nn.GELU` within a module, which must not be one itself."""
    for inner in list(module.modules()):
        for name, child in list(inner.named_children()):
            if type(child) is nn.GELU and child.approximate == "none":
                setattr(inner, name, OneExponentialGELU())


def _tail(x: Tensor) -> tuple[Tensor, Tensor]:
    """The normal distribution's share beyond abs(x), and exp(-x * x / 2)."""
    t = 1 / (1 + _SCALE * x.abs())
    polynomial = _POWERS[-1] * t
    for power in reversed(_POWERS[1:-1]):
        polynomial = (polynomial + power) * t
    polynomial = polynomial + _POWERS[0]
    exponential = torch.exp(-0.5 * x * x)
    return 0.5 * t * polynomial * exponential, exponential


class _OneExponential(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        ctx.save_for_backward(given)
        x = given.float()
        tail, _ = _tail(x)
        return (x.relu() - x.abs() * tail).to(given.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (given,) = ctx.saved_tensors
        x = given.float()
        tail, exponential = _tail(x)
        below = torch.where(x > 0, 1 - tail, tail)
        derivative = below + x * (_DENSITY_AT_0 * exponential)
        return (gradient.float() * derivative).to(given.dtype)
