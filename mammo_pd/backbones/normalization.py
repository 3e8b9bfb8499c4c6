"""How pixels are standardised, and how weights for three channels read one, exactly."""

from typing import Any, NamedTuple

import torch
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from torch import nn


class Normalization(NamedTuple):
    """Standardisation of a grey value g in [0, 1]: (g - mean) / std.

    Attributes:
        mean: grey value that becomes 0.
        std: grey values per unit of the result.
    """

    mean: float = 0.5
    std: float = 0.5


# Of random weights.
HALF = Normalization()

# What weights may have been trained with, for each of red, green and blue.
CHANNELS = {
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "clip": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@torch.no_grad()
def read_one_channel(
    timm_model: Any, means: tuple[float, ...], stds: tuple[float, ...]
) -> Normalization:
    """Make a model of three channels read a single grey one, without changing what it computes.

    A grey image, repeated three times and standardised for each channel, gives the same embedding
    before as it gives afterwards when it is standardised by the result: what is left of each
    channel's own mean and deviation is folded into the kernel and the bias. A projection without a
    bias gets it in the position embedding of the patches.

    Args:
        timm_model: with a patch embedding of three channels; changed in place.
        means: of red, green and blue, in [0, 1].
        stds: of red, green and blue.
    """
    one = Normalization(sum(means) / len(means), sum(stds) / len(stds))
    old = timm_model.patch_embed.proj
    kernel = old.weight.double()
    scale = torch.tensor(stds, dtype=torch.float64, device=kernel.device).view(1, -1, 1, 1)
    mean = torch.tensor(means, dtype=torch.float64, device=kernel.device).view(1, -1, 1, 1)
    # (g - mean_c) / std_c = (one.std / std_c) * z + (one.mean - mean_c) / std_c
    constant = (kernel * ((one.mean - mean) / scale)).sum(dim=(1, 2, 3))
    new = nn.Conv2d(1, old.out_channels, old.kernel_size, old.stride, bias=old.bias is not None)
    new.weight.copy_((kernel * (one.std / scale)).sum(dim=1, keepdim=True))
    if old.bias is not None and new.bias is not None:
        new.bias.copy_(old.bias.double() + constant)
    else:
        prefix = 0 if timm_model.no_embed_class else timm_model.num_prefix_tokens
        timm_model.pos_embed[:, prefix:] += constant.to(timm_model.pos_embed.dtype)
    timm_model.patch_embed.proj = new
    return one
