"""From the authors' names of weights to timm's, and the refusal of another architecture."""

import contextlib
import io
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from timm.models import VisionTransformer
from timm.models.eva import checkpoint_filter_fn as rename_eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer import checkpoint_filter_fn as rename_swin
from timm.models.vision_transformer import checkpoint_filter_fn as rename_vit
from torch import Tensor, nn

from mammo_pd.backbones.on_meta import create_on_meta
from mammo_pd.backbones.weights.fitting import PROJECTION, RELATIVE_POSITIONS, Fitting
from mammo_pd.backbones.weights.report import WeightsRow
from mammo_pd.backbones.wide_heads import has_wide_heads
from mammo_pd.errors import InputError

_SIZES = {
    (192, 12): "tiny",
    (384, 12): "small",
    (768, 12): "base",
    (1024, 24): "large",
    (1280, 32): "huge",
    (1408, 40): "giant",
    (1536, 40): "giant",
}
# A state dict holds no activation function, and CLIP models come with two.
_CLIP_ACTIVATION = WeightsRow(
    "activation",
    0,
    "not known",
    "OpenAI's, MetaCLIP's and DFN's weights need a --model with quickgelu in its name",
)
_PRETRAINING = "of pretraining alone"


def give_timms_names(fitting: Fitting) -> None:
    """Give the tensors timm's names, by timm's own functions; their shapes stay.

    Raises:
        InputError: biases would be lost.
    """
    if isinstance(fitting.model, SwinTransformer):
        _give_swins_names(fitting)
        return
    is_vit = isinstance(fitting.model, VisionTransformer)
    state = fitting.state
    if is_vit and "register_tokens" in state:
        # Left to timm, their positions would be moved, which depends on the model.
        state["reg_token"] = state.pop("register_tokens")
    if not is_vit and "mask_token" in state:
        # Where it finds one, timm moves the last norm, which is for us to do and to say.
        fitting.drop("mask_token", _PRETRAINING)
    if is_vit and "visual.class_embedding" in state and "quickgelu" not in fitting.name:
        fitting.remarks.append(_CLIP_ACTIVATION)
    twin = _shaped_as(state, fitting)
    # The function prints the errors of what it tries.
    with contextlib.redirect_stdout(io.StringIO()):
        if is_vit:
            renamed = rename_vit(dict(state), twin, adapt_layer_scale=True)
        else:
            renamed = rename_eva(dict(state), twin)
    # By their storage: some are transposed or split.
    kept = {_storage(tensor) for tensor in renamed.values()}
    for key, tensor in state.items():
        if _storage(tensor) not in kept:
            _refuse_lost_bias(fitting, key, tensor)
            fitting.note_dropped(key, _PRETRAINING)
    fitting.state = renamed if is_vit else dict(map(_scale_as_eva, renamed.items()))


def _give_swins_names(fitting: Fitting) -> None:
    """Timm's function would resample as well, which is for us to do and to say: keep it from it."""
    held_back = {k: v for k, v in fitting.state.items() if k.endswith(RELATIVE_POSITIONS)}
    others = {k: v for k, v in fitting.state.items() if k not in held_back}
    # Tables of the image size (masks, indices of the biases) are left out by it.
    fitting.state = {**rename_swin(others, fitting.model), **held_back}


def _shaped_as(state: dict[str, Tensor], fitting: Fitting) -> Any:
    """A model on the meta device with the source's shapes, into which timm resamples nothing."""
    twin: Any = create_on_meta(fitting.name)
    weight = state.get(PROJECTION)
    if weight is not None and weight.ndim == 4:
        twin.patch_embed.proj.weight = nn.Parameter(torch.empty_like(weight, device="meta"))
    if any(key.startswith("radio_model.") for key in state):
        # RADIO's positions are cut out of a larger grid, which timm does as it renames.
        twin.patch_embed.grid_size = fitting.model.patch_embed.grid_size
    else:
        twin.pos_embed = None
    return twin


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _scale_as_eva(item: tuple[str, Tensor]) -> tuple[str, Tensor]:
    return re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", item[0]), item[1]


def _refuse_lost_bias(fitting: Fitting, key: str, tensor: Tensor) -> None:
    """Timm drops DINOv3's biases of queries and values for a model without them."""
    if key.endswith("qkv.bias") and bool(tensor.any()):
        raise InputError(
            f"the weights {fitting.source.name} have biases of queries and values, for which "
            f"{fitting.name} has no place; choose --model {fitting.name}_qkvb."
        )


def refuse_other_architecture(fitting: Fitting) -> None:
    """Compare width, depth and heads, which say more than the first tensor that does not fit.

    Raises:
        InputError: the weights are of another architecture, which is named.
    """
    if isinstance(fitting.model, SwinTransformer):
        _refuse_other_swin(fitting)
        return
    weight = fitting.state.get(PROJECTION)
    numbers = (re.match(r"blocks\.(\d+)\.", key) for key in fitting.state)
    depth = 1 + max((int(found[1]) for found in numbers if found), default=-1)
    if weight is None or weight.ndim != 4 or not depth:
        parts = sorted({key.split(".")[0] for key in fitting.state})
        raise InputError(
            f"the weights {fitting.source.name} are not those of a plain vision transformer (their "
            f"parts are {', '.join(parts[:6])}); give weights of {fitting.name}."
        )
    width, patch_size = weight.shape[0], weight.shape[-1]
    size = _SIZES.get((width, depth))
    known = f"vit_{size}_patch{patch_size}" if size else f"a ViT of patch size {patch_size}"
    fitting.looks_like = f"{known}, width {width}, depth {depth}"
    wanted = int(fitting.model.embed_dim), len(fitting.model.blocks)
    if (width, depth) != wanted:
        raise InputError(
            f"the weights {fitting.source.name} look like {known}: width {width}, depth {depth}; "
            f"you asked for {fitting.name}: width {wanted[0]}, depth {wanted[1]}; give a --model "
            "of the weights' width and depth (docs/models.md), or other weights."
        )
    _refuse_other_heads(fitting)


def _refuse_other_heads(fitting: Fitting) -> None:
    """Of every tensor the shape would fit, and the function be another."""
    trained = fitting.source.model or ""
    if has_wide_heads(trained) != has_wide_heads(fitting.name):
        those, these = ("128" if has_wide_heads(name) else "64" for name in (trained, fitting.name))
        known = "were trained" if trained else "do not say otherwise, so they were trained"
        raise InputError(
            f"the weights {fitting.source.name} {known} with attention heads of width {those}, and "
            f"{fitting.name} has heads of {these}; give the --model that they were trained as, or "
            "leave --weights out."
        )


def _refuse_other_swin(fitting: Fitting) -> None:
    """Compare the width and the stages' depths."""
    weight = fitting.state.get(PROJECTION)
    numbers = (re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", key) for key in fitting.state)
    depths = Counter(found[1] for found in {n[0]: n for n in numbers if n}.values())
    if weight is None or not depths:
        parts = sorted({key.split(".")[0] for key in fitting.state})
        raise InputError(
            f"the weights {fitting.source.name} are not those of a Swin transformer (their parts "
            f"are {', '.join(parts[:6])}); give weights of {fitting.name}."
        )

    def in_words(width: int, depths: Iterable[int]) -> str:
        return f"width {width}, depths {', '.join(map(str, depths))}"

    found = in_words(weight.shape[0], (depths[stage] for stage in sorted(depths)))
    model = fitting.model
    wanted = in_words(model.embed_dim, (len(stage.blocks) for stage in model.layers))
    fitting.looks_like = f"a Swin transformer, {found}"
    if found != wanted:
        raise InputError(
            f"the weights {fitting.source.name} look like a Swin transformer of {found}; you asked "
            f"for {fitting.name}: {wanted}; give a --model of the weights' width and depths "
            "(docs/models.md), or other weights."
        )
