"""Each part of pretrained weights into the model's shapes: exactly where that is possible.

Shapes as in `mammo_pd.backbones.base`.
"""

import math
from typing import Any

import torch
from timm.layers import (
    resample_abs_pos_embed,
    resample_patch_embed,
    resize_rel_pos_bias_table,
)
from torch import Tensor

from mammo_pd.backbones.weights.fitting import (
    BIAS,
    LAYER_SCALE,
    POSITIONS,
    PROJECTION,
    RELATIVE_POSITIONS,
    Fitting,
    is_layer_scale,
)
from mammo_pd.backbones.weights.normalization import ChannelNormalization, fold_channels
from mammo_pd.errors import InputError

# In the order of their rows in a position embedding.
_PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")


def fit_layer_scale(fitting: Fitting) -> None:
    """Fold factors that the model lacks into the layer before; set those that only it has to 1."""
    state, wanted = fitting.state, fitting.model.state_dict()
    given = [key for key in state if is_layer_scale(key)]
    for key in given:
        ending = next(ending for ending in LAYER_SCALE if key.endswith(ending))
        weight, bias = (
            f"{key.removesuffix(ending)}{LAYER_SCALE[ending]}.{kind}" for kind in ("weight", "bias")
        )
        if key in wanted or weight not in state:
            continue
        factor = state.pop(key)
        state[weight] = factor[:, None] * state[weight]
        if bias in state:
            state[bias] = factor * state[bias]
        fitting.note(key, "folded", "into attn.proj and mlp.fc2, exactly")
    if not given:
        for key, value in wanted.items():
            if is_layer_scale(key):
                state[key] = torch.ones_like(value)
                fitting.note(key, "set", "to 1: the source has none")


def fit_norm(fitting: Fitting) -> None:
    """Move the last norm to where the model has it: before pooling, or after."""
    state, wanted = fitting.state, fitting.model.state_dict()
    for there, here, side in (("norm", "fc_norm", "after"), ("fc_norm", "norm", "before")):
        for kind in ("weight", "bias"):
            old, new = f"{there}.{kind}", f"{here}.{kind}"
            if old in state and old not in wanted and new in wanted and new not in state:
                state[new] = state.pop(old)
                fitting.note(new, "moved", f"from {there}: this model has it {side} pooling")


def fit_patch_embedding(fitting: Fitting, expected: ChannelNormalization) -> None:
    """Resample the kernels, sum their channels, and fold the normalisation into them."""
    weight = fitting.state[PROJECTION]
    bias = fitting.state.pop(BIAS, None)
    size = list(fitting.model.patch_embed.proj.weight.shape[-2:])
    outcomes, details = [], []
    if list(weight.shape[-2:]) != size:
        outcomes.append("resampled")
        details.append(f"patches of {_by(weight.shape[-2:])} to {_by(size)} pixels")
        weight = resample_patch_embed(weight, size, **_interpolation(fitting))
    if weight.shape[1] > 1:
        outcomes.append("summed")
        details.append(f"{weight.shape[1]} channels to 1, their normalisation folded in")
        weight, shift = fold_channels(weight, expected)
        bias = shift if bias is None else bias + shift
    fitting.state[PROJECTION] = weight
    if fitting.model.patch_embed.proj.bias is None:
        fitting.offset = bias
    else:
        fitting.state[BIAS] = torch.zeros(len(weight)) if bias is None else bias
    if outcomes:
        for key in (PROJECTION, BIAS):
            if key in fitting.state:
                fitting.note(key, ", ".join(outcomes), "; ".join(details))


def fit_positions(fitting: Fitting, channels: int) -> None:
    """Fit the position embedding to the grid and the prefix tokens of the model.

    Args:
        fitting: of the weights.
        channels: of the source's input.

    Raises:
        InputError: the grid that it was trained at cannot be told.
    """
    model = fitting.model
    has_none = getattr(model, "pos_embed", None) is None
    # One of the two takes what the normalisation adds.
    assert fitting.offset is None or not has_none, "timm has no such model"
    if has_none or POSITIONS not in fitting.state:
        return
    table = fitting.state[POSITIONS]
    prefix, grid = _prefix_and_grid(fitting, table.shape[1], channels)
    of_prefix, of_patches = table[:, :prefix], table[:, prefix:]
    new_grid, rows = _grid_of(model), _prefix_rows(model)
    details = []
    if grid != new_grid:
        details.append(f"grid of {_by(grid)} to {_by(new_grid)} patches")
        of_patches = resample_abs_pos_embed(
            of_patches,
            new_size=list(new_grid),
            old_size=list(grid),
            num_prefix_tokens=0,
            **_interpolation(fitting),
        )
    if fitting.offset is not None:
        details.append("what the normalisation adds to each patch folded in")
        of_patches = of_patches + fitting.offset
    if prefix != rows:
        _add_to_tokens(fitting, of_prefix)
        of_prefix = torch.zeros(1, rows, table.shape[-1])
        if prefix:
            details.append("positions of the class token and the like added to these tokens")
    fitting.state[POSITIONS] = torch.cat([of_prefix, of_patches], dim=1)
    if details:
        outcome = "resampled" if grid != new_grid else "folded"
        fitting.note(POSITIONS, outcome, "; ".join(details))


def fit_relative_positions(fitting: Fitting) -> None:
    """Resample Swin's biases of relative positions to the model's windows, by timm's own function.

    A window is smaller than it was where the whole grid of a stage is.
    """
    for key, table in fitting.state.items():
        if not key.endswith(RELATIVE_POSITIONS) or key not in fitting.model.state_dict():
            continue
        attention = fitting.model.get_submodule(key.removesuffix(f".{RELATIVE_POSITIONS}"))
        shape = attention.relative_position_bias_table.shape
        if table.shape != shape and table.shape[1:] == shape[1:]:
            size = attention.window_size
            fitting.state[key] = resize_rel_pos_bias_table(table, size, shape)
            fitting.note(key, "resampled", f"biases of windows to {_by(size)} patches")


def _prefix_and_grid(fitting: Fitting, length: int, channels: int) -> tuple[int, tuple[int, int]]:
    """Tell how many rows of a position embedding are of prefix tokens, and the grid of the rest."""
    tokens = {
        name: fitting.state[name].shape[1] for name in _PREFIX_TOKENS if name in fitting.state
    }
    every, own = sum(tokens.values()), _prefix_rows(fitting.model)
    if fitting.source.grid is not None:
        prefix = length - math.prod(fitting.source.grid)
        if 0 <= prefix <= every:
            return prefix, fitting.source.grid
    as_in_model = fitting.model.pos_embed.shape[1] == length
    if as_in_model and (channels == 1 or not _side(length - own)):
        return own, _grid_of(fitting.model)
    # Weights of one channel that do not say their grid are of earlier versions of mammo-pd, whose
    # grids are rarely square: 7x7 patches are as many as 8x6 and a class token.
    candidates = (1,) if channels == 1 else (1, every, 0)
    for prefix in candidates if tokens else (0,):
        side = _side(length - prefix)
        if side:
            return prefix, (side, side)
    raise InputError(
        f"the position embedding of the weights {fitting.source.name} has {length} rows, which may "
        "be of any grid; use them at the image size that they were trained at (--res)."
    )


def _add_to_tokens(fitting: Fitting, of_prefix: Tensor) -> None:
    """Add the positions of class, distillation and register tokens to them: the same sum."""
    for name in _PREFIX_TOKENS:
        token = fitting.state.get(name)
        if token is not None and of_prefix.shape[1] >= token.shape[1]:
            fitting.state[name] = token + of_prefix[:, : token.shape[1]]
            of_prefix = of_prefix[:, token.shape[1] :]


def _prefix_rows(model: Any) -> int:
    return 0 if model.no_embed_class else int(model.num_prefix_tokens)


def _grid_of(model: Any) -> tuple[int, int]:
    rows, columns = model.patch_embed.grid_size
    return int(rows), int(columns)


def _interpolation(fitting: Fitting) -> dict[str, Any]:
    # As timm has it: FlexiViT was trained with this one.
    return {"interpolation": "bilinear", "antialias": False} if "flexi" in fitting.name else {}


def _side(patches: int) -> int:
    """The side of a square grid; 0 where there is none."""
    side = math.isqrt(max(patches, 0))
    return side if side * side == patches else 0


def _by(sides: Any) -> str:
    return "x".join(map(str, sides))
