"""How an input is normalised: what pretrained weights expect, and its equal for one grey channel.

A model trained on three channels computes, of a grey image repeated three times,

    sum_c W_c * (x - mean_c) / std_c + bias

with one mean and deviation for each channel c. For one channel the sampler has one of each, and
the rest goes into the weights: with

    W' = std * sum_c W_c / std_c
    bias' = bias + sum_c sum_pixels W_c * (mean - mean_c) / std_c

the same is W' * (x - mean) / std + bias', exactly and for any mean and std.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from timm.models import adapt_input_conv, get_pretrained_cfg
from torch import Tensor

from mammo_pd.normalization import Normalization


@dataclass(frozen=True)
class ChannelNormalization:
    """What weights were trained with.

    Attributes:
        mean: of each input channel, of values in [0, 1].
        std: the same.
        origin: how that is known, in words.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str

    @property
    def grey(self) -> Normalization:
        """Its equal for one channel, once the differences are in the weights."""
        return Normalization(sum(self.mean) / len(self.mean), sum(self.std) / len(self.std))


_NAMED = {
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "clip": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "half": (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD),
}


def normalization_named(name: str) -> ChannelNormalization:
    """The one that the setting ``model.normalization`` names: ``imagenet``, ``clip``, ``half``."""
    mean, std = _NAMED[name]
    return ChannelNormalization(tuple(mean), tuple(std), f"model.normalization: {name}")


def normalization_of(pretrained_cfg: Mapping[str, Any], origin: str) -> ChannelNormalization:
    """The one of timm's configuration of pretrained weights."""
    return ChannelNormalization(tuple(pretrained_cfg["mean"]), tuple(pretrained_cfg["std"]), origin)


def guess_normalization(
    name: str, num_classes: int, *, self_supervised: bool
) -> ChannelNormalization:
    """Tell how a file's weights want their input, which a state dict does not say itself.

    All weights that timm knows for an architecture mostly agree. Where they do not, those with as
    many classes as the file decide, by their majority.

    Args:
        name: timm's name of the model; with a tag (``vit_base_patch16_224.mae``) it decides.
        num_classes: of the head in the file; 0 without one.
        self_supervised: the file shows signs of DINO, DINOv2 or MAE, whatever model it goes into;
            all of them were trained with ImageNet's.
    """
    if "." in name:
        return _known_to_timm(name)
    if self_supervised:
        mean, std = _NAMED["imagenet"]
        return ChannelNormalization(tuple(mean), tuple(std), "ImageNet's, as DINO and MAE have it")
    known = {tag: _known_to_timm(tag) for tag in timm.list_pretrained(f"{name}.*")}
    if not known:
        return _known_to_timm(name)
    alike = [tag for tag in known if get_pretrained_cfg(tag).num_classes == num_classes]
    alike = alike or list(known)
    counted = Counter((known[tag].mean, known[tag].std) for tag in alike)
    (mean, std), _ = counted.most_common(1)[0]
    origin = f"as timm has it for {name}"
    others = [tag for tag in alike if known[tag].mean != mean]
    if others:
        origin += f", but not for {', '.join(others)}: if it is one of those, name it by --model"
    return ChannelNormalization(mean, std, origin)


def _known_to_timm(name: str) -> ChannelNormalization:
    return normalization_of(get_pretrained_cfg(name).to_dict(), f"as timm has it for {name}")


def fold_channels(weight: Tensor, expected: ChannelNormalization) -> tuple[Tensor, Tensor]:
    """Sum the kernels of the patch embedding over its channels, for `ChannelNormalization.grey`.

    Args:
        weight: (D, C, P, P) float32.
        expected: of C channels.

    Returns:
        (D, 1, P, P) float32 weights, and (D,) float32 to be added to the bias.
    """
    grey = expected.grey
    mean = torch.tensor(expected.mean, dtype=torch.float64)
    std = torch.tensor(expected.std, dtype=torch.float64)
    per_channel = weight.sum((2, 3), dtype=torch.float64)
    shift = (per_channel * ((grey.mean - mean) / std)).sum(1)
    scaled = weight * (grey.std / std)[:, None, None].float()
    return adapt_input_conv(1, scaled, base_chans=len(mean)), shift.float()
