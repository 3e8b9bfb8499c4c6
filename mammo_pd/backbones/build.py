"""From timm's name of a model to a `Backbone`, or to the reason why there is none."""

from functools import cache
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.eva import EvaBackbone
from mammo_pd.backbones.model_names import no_such_model
from mammo_pd.backbones.on_meta import create_on_meta
from mammo_pd.backbones.swin import SwinBackbone
from mammo_pd.backbones.vit import VitBackbone
from mammo_pd.backbones.weights.load import load_pretrained
from mammo_pd.backbones.weights.normalization import normalization_named
from mammo_pd.errors import InputError
from mammo_pd.registry import Registry

# By timm's exact class: a subclass may change anything. A program may add its own.
FAMILIES: Registry[type[nn.Module], type[Backbone]] = Registry(
    "FAMILIES",
    {VisionTransformer: VitBackbone, Eva: EvaBackbone, SwinTransformer: SwinBackbone},
)

_PAIR_BIAS = (
    "adds a learned bias for every pair of patches to the attention (relative position bias), "
    "which would have to be gathered for each image's own pairs"
)
# Why timm's other vision transformers have no family here, by the name of their class.
_OTHER_CLASSES = {
    "Beit": _PAIR_BIAS,
    "VisionTransformerRelPos": _PAIR_BIAS,
    "VisionTransformerDistilled": (
        "averages two heads, one of which was trained to imitate a teacher, while a backbone here "
        "has one pooled vector and one head"
    ),
    "VisionTransformerSAM": (
        "attends within windows of the full grid and ends in convolutions over it, so that every "
        "patch is needed"
    ),
    "NaFlexVit": (
        "fits its position embedding to the grid that its tokens span, so a subset of patches "
        "would get the wrong positions"
    ),
}


def build_backbone(
    name: str,
    img_size: tuple[int, int],
    *,
    num_outputs: int = 1,
    weights: str | None = None,
    normalization: str = "auto",
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
        weights: None for random weights; a local file; or a name on a hub; see
            `mammo_pd.backbones.weights.source.find_weights`.
        normalization: of the input; ``auto`` for what the weights expect, .5 and .5 without any;
            see `load_pretrained`.
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
    timm_model = timm.create_model(
        name,
        img_size=img_size,
        in_chans=1,
        num_classes=num_outputs,
        drop_path_rate=drop_path_rate,
        **_options(name, global_pool),
    )
    backbone = FAMILIES[type(timm_model)](timm_model)
    if weights is not None:
        report = load_pretrained(timm_model, name, weights, normalization=normalization)
        backbone.weights_report, backbone.normalization = report, report.normalization
    elif normalization != "auto":
        backbone.normalization = normalization_named(normalization).grey
    timm_model.set_grad_checkpointing(checkpointing)
    return backbone


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
        timm_model = create_on_meta(name, **_options(name, global_pool))
        with torch.device("meta"):
            return FAMILIES[type(timm_model)](timm_model)
    except AssertionError as error:
        raise InputError(
            f"timm cannot build {name!r} with global_pool {global_pool!r}: {error} Choose another "
            "pooling, or use the model's default."
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
    timm_model = create_on_meta(name)
    family = FAMILIES.get(type(timm_model))
    if family is not None:
        return family.reason_against(timm_model)
    cls = type(timm_model).__name__
    known = " and ".join(family.__name__ for family in FAMILIES)
    return _OTHER_CLASSES.get(
        cls, f"is a {cls}, and so far there are backbones only for timm's {known}"
    )


def _options(name: str, global_pool: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if not timm.models.is_model_in_modules(name.partition(".")[0], ["swin_transformer"]):
        # A fixed size: the position embedding is resampled once, not at every step.
        options["dynamic_img_size"] = False
    if global_pool is not None:
        options["global_pool"] = global_pool
    return options


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        raise no_such_model(name, timm.list_models())
    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise InputError(
            f"timm {timm.__version__} has no model {name!r}; the weights that it knows of "
            f"{architecture} are {', '.join(tags) or 'none'}."
        )
