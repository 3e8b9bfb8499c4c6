"""timm's models on the meta device: their shapes and names, without memory for their weights."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _LinspaceOnCpu(TorchFunctionMode):
    """timm 1.0.15 to 1.0.20 at least read depth rates back from it, which meta tensors forbid."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace:
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


def create_on_meta(name: str, **options: Any) -> nn.Module:
    """Build a timm model on the meta device, with `timm.create_model`'s options."""
    with torch.device("meta"), _LinspaceOnCpu():
        timm_model: nn.Module = timm.create_model(name, **options)
    return timm_model
