"""Stochastic depth that is a function of the image, not of the process that happens to hold it."""

from timm.layers import DropPath
from torch import Tensor, nn

from mammo_pd.keyed_random import uniform

_STREAM = 4


class KeyedDropPath(nn.Module):
    """Stands where timm's `DropPath` stood; what it drops is set for each step by `draw_paths`.

    So two processes drop what one would, a resumed run what the unbroken one did, and recomputed
    activations (checkpointing) what was dropped at first.

    Source: Huang et al. 2016, Deep Networks with Stochastic Depth, arXiv 1603.09382.
    """

    scale: Tensor | None

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale = None

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, T, D) by each image's 0 or 1 / (1 - drop_prob); nothing in evaluation."""
        if not self.training or self.scale is None:
            return x
        return x * self.scale.to(x.dtype)


def replace_drop_paths(blocks: nn.Module) -> list[KeyedDropPath]:
    """Put a `KeyedDropPath` in the place of every timm `DropPath`, and give them in order.

    Where a model has any, blocks that never drop get one too: compiled code is made for all blocks
    alike, and once more for each that is built otherwise.
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
    """Draw which residual branches each image of a step leaves out.

    Args:
        paths: of one model, in order.
        keep: (paths,) float32, 1 - drop_prob of each, on the keys' device.
        keys: (B,) int64, from `mammo_pd.keyed_random.image_key`.
    """
    scale = (uniform(keys, len(paths), _STREAM) < keep) / keep
    for number, path in enumerate(paths):
        path.scale = scale[:, number, None, None]
