"""From timm's name of a model to a `Backbone`, or to the reason why there is none."""

import difflib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from timm.models.eva import Eva
from torch import nn
from torch.overrides import TorchFunctionMode

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.eva import EvaBackbone
from mammo_pd.backbones.normalization import CHANNELS, Normalization, read_one_channel
from mammo_pd.backbones.vit import VitBackbone
from mammo_pd.backbones.weights import (
    HUB,
    LoadedWeights,
    count_channels,
    load_into,
    read_weights,
)
from mammo_pd.errors import InputError

# By timm's exact class: a subclass may change anything.
FAMILIES: dict[type[nn.Module], type[Backbone]] = {
    VisionTransformer: VitBackbone,
    Eva: EvaBackbone,
}

_PAIR_BIAS = (
    "adds a learned bias for every pair of patches to the attention (relative position bias), "
    "which would have to be gathered for each image's own pairs"
)
# Why timm's other vision transformers have no family here, by the name of their class.
_OTHER_CLASSES = {
    "Beit": _PAIR_BIAS,
    "VisionTransformerRelPos": _PAIR_BIAS,
    "VisionTransformerDistilled": (
        "averages two heads, one of which was trained to imitate a teacher, where a backbone has "
        "one pooled vector and one head"
    ),
    "VisionTransformerSAM": (
        "attends within windows of the full grid and ends in convolutions over it, so that every "
        "patch is needed"
    ),
    "NaFlexVit": (
        "fits its position embedding to the grid that its tokens span, so that a subset of patches "
        "would get wrong positions"
    ),
}


def build_backbone(
    name: str,
    img_size: tuple[int, int],
    *,
    num_outputs: int = 1,
    weights: str | None = None,
    normalization: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    drop_path_rate: float = 0.0,
    global_pool: str | None = None,
    checkpointing: bool = False,
) -> Backbone:
    """Build a timm model as a backbone for one-channel images of a fixed size.

    Args:
        name: timm's name of the model, such as ``vit_small_patch16_224``; docs/models.md lists
            those that work.
        img_size: (height, width) in pixels, multiples of the patch size.
        num_outputs: of the head.
        weights: None for random weights; a local file; or of a hub; see
            `mammo_pd.backbones.weights.read_weights`.
        normalization: that the weights were trained with, of
            `mammo_pd.backbones.normalization.CHANNELS`; None for the model's own as timm has it, or
            what a file of ours says.
        say: takes a few lines on what was loaded.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at the first.
        global_pool: timm's ``global_pool``; None takes the model's own.
        checkpointing: recompute each block in the backward pass instead of storing its
            activations: about a third more time for a fraction of the memory. A last block that
            computes the class token only is not recomputed, since it stores little.

    Raises:
        InputError: no such model, one that cannot drop patches, an image size that is no multiple
            of the patch size, or weights that cannot be had or do not fit.
    """
    patch_size = describe_backbone(name, global_pool=global_pool).patch_size
    if img_size[0] % patch_size or img_size[1] % patch_size:
        raise InputError(
            f"an image size of {img_size[0]}x{img_size[1]} does not divide into the patches of "
            f"{name!r}; choose multiples of {patch_size} pixels."
        )
    state, metadata = ({}, {}) if weights is None else read_weights(weights, name)
    timm_model = timm.create_model(
        name,
        img_size=img_size,
        in_chans=count_channels(state) if state else 1,
        num_classes=num_outputs,
        drop_path_rate=drop_path_rate,
        **_options(global_pool),
    )
    one = Normalization()
    if weights is not None:
        source = weights if weights == HUB else Path(weights).name
        loaded = load_into(timm_model, state, metadata, source, name)
        one = _normalize(timm_model, loaded, normalization)
        say(loaded.table())
        say(f"  input     standardised by mean {one.mean:.4f} and deviation {one.std:.4f}")
    timm_model.set_grad_checkpointing(checkpointing)
    backbone = FAMILIES[type(timm_model)](timm_model)
    backbone.normalization = one
    return backbone


def _normalize(timm_model: Any, loaded: LoadedWeights, normalization: str | None) -> Normalization:
    """Standardise the input as the weights expect, and make them read one channel."""
    if loaded.channels == 1:
        mean, std = loaded.metadata.get("normalization", Normalization())
        return Normalization(mean, std)
    if normalization is None and loaded.layer_scale and not _has_layer_scale(timm_model):
        # Not the weights that timm's name stands for. All that have layer scale are trained so.
        normalization = "imagenet"
    if normalization is not None:
        means, stds = CHANNELS[normalization]
    else:
        means, stds = timm_model.pretrained_cfg["mean"], timm_model.pretrained_cfg["std"]
    return read_one_channel(timm_model, means, stds)


def _has_layer_scale(timm_model: Any) -> bool:
    return any(name.endswith(("gamma", "gamma_1")) for name, _ in timm_model.named_parameters())


@cache
def describe_backbone(name: str, *, global_pool: str | None = None) -> Backbone:
    """Build a model at timm's own image size without memory for its weights: to read its shape.

    Args:
        name: timm's name of the model.
        global_pool: timm's ``global_pool``; None takes the model's own.

    Returns:
        A backbone on the meta device with three channels in, shared by all who ask: leave it as it
        is.

    Raises:
        InputError: no such model, or one that cannot drop patches.
    """
    reason = reason_against(name)
    if reason is not None:
        raise InputError(
            f"{name!r} cannot drop patches: it {reason}. Choose another of the models in "
            "docs/models.md, such as vit_small_patch16_224."
        )
    try:
        timm_model = _create_on_meta(name, **_options(global_pool))
        with torch.device("meta"):
            return FAMILIES[type(timm_model)](timm_model)
    except AssertionError as error:
        raise InputError(
            f"timm cannot build {name!r} with global_pool {global_pool!r}: {error} Choose another "
            "pooling, or leave it to the model."
        ) from error


@cache
def reason_against(name: str) -> str | None:
    """Say why a timm model cannot drop patches.

    Returns:
        None if it can; else the rest of a sentence that starts with "it".

    Raises:
        InputError: timm has no such model.
    """
    _check_name(name)
    timm_model = _create_on_meta(name)
    family = FAMILIES.get(type(timm_model))
    if family is not None:
        return family.reason_against(timm_model)
    cls = type(timm_model).__name__
    known = " and ".join(family.__name__ for family in FAMILIES)
    return _OTHER_CLASSES.get(
        cls, f"is a {cls}, and there are backbones for timm's {known} alone so far"
    )


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


def _create_on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"), _LinspaceOnCpu():
        timm_model: nn.Module = timm.create_model(name, **options)
    return timm_model


def _options(global_pool: str | None) -> dict[str, Any]:
    # A fixed size: the position embedding is resampled once, not at every step.
    options: dict[str, Any] = {"dynamic_img_size": False}
    if global_pool is not None:
        options["global_pool"] = global_pool
    return options


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(["*vit*", "deit*", "eva*"]), n=4)
        raise InputError(
            f"timm {timm.__version__} has no model {name!r}; "
            + (f"near it are {', '.join(near)}." if near else "try vit_small_patch16_224.")
        )
