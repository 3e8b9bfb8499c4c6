"""Stochastic depth keyed by image: what is dropped does not depend on the process or the step."""

from timm.layers import DropPath
from torch import Tensor, nn

from mammo_pd.keyed_random import uniform

_STREAM = 4


class KeyedDropPath(nn.Module):
    """Replaces timm's `DropPath`; what it drops is set by `draw_paths` before each step.

    So two processes drop what one would, a resumed run drops what the uninterrupted run did, and
    recomputed activations (checkpointing) match the first pass.

    Source: Huang et al. 2016, Deep Networks with Stochastic Depth, arXiv 1603.09382.
    """

    scale: Tensor | None

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale = None

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, ..., D) by 0 or 1 / (1 - drop_prob) for each image; identity in evaluation."""
        if not self.training or self.scale is None:
            return x
        return x * self.scale.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))


def replace_drop_paths(blocks: nn.Module) -> list[KeyedDropPath]:
    """Replace every timm `DropPath` by a `KeyedDropPath`, and return those in order.

    If a model has any, its blocks with rate 0 get one too: blocks share their compiled code only
    if they are built alike.
    """
    if not any(isinstance(module, DropPath) for module in blocks.modules()):
        return []
    replaced = []
    for module in list(blocks.modules()):
        for name, child in list(module.named_children()):
            if name.startswith("drop_path") and isinstance(child, (DropPath, nn.Identity)):
                keyed = KeyedDropPath(float(getattr(child, "drop_prob", 0.0)))
                setattr(module, name, keyed)
                replaced.append(keyed)
    return replaced


def draw_paths(paths: list[KeyedDropPath], keep: Tensor, keys: Tensor) -> None:
    """Draw which residual branches each image skips in this step.

    Args:
        paths: all of one model, in order.
        keep: (paths,) float32, 1 - drop_prob of each, on the keys' device.
        keys: (B,) int64, from `mammo_pd.keyed_random.image_key`.
    """
    scale = (uniform(keys, len(paths), _STREAM) < keep) / keep
    for number, path in enumerate(paths):
        path.scale = scale[:, number]
