"""Pretrained weights into a model of another patch size, grid or number of channels.

Every tensor of the source and of the model is accounted for in the report, or the weights are
refused. What the model computes afterwards is what the source's own model would compute of the grey
image repeated on each of its channels, but for what is resampled, moved, dropped or left at random.
"""

from typing import Any

import torch
from torch import Tensor

from mammo_pd.backbones.weights.fitting import POSITIONS, PROJECTION, Fitting, is_layer_scale
from mammo_pd.backbones.weights.names import give_timms_names, refuse_other_architecture
from mammo_pd.backbones.weights.normalization import (
    ChannelNormalization,
    guess_normalization,
    normalization_named,
)
from mammo_pd.backbones.weights.parts import (
    fit_layer_scale,
    fit_norm,
    fit_patch_embedding,
    fit_positions,
    fit_relative_positions,
)
from mammo_pd.backbones.weights.report import WeightsReport
from mammo_pd.backbones.weights.source import find_weights
from mammo_pd.errors import InputError

# What decides the function that a pretrained model computes of its patches.
_ESSENTIAL = ("blocks.", "layers.", "patch_embed.", "norm_pre.", "rope.", POSITIONS)
_HEADS = ("head.", "head_dist.", "fc.")


def load_pretrained(
    model: Any, name: str, weights: str, *, normalization: str = "auto"
) -> WeightsReport:
    """Load pretrained weights into a timm model of one input channel.

    Args:
        model: timm's, of one of the families of `mammo_pd.backbones.build`, of the image size that
            it is to be used at.
        name: timm's name of it.
        weights: see `mammo_pd.backbones.weights.source.find_weights`.
        normalization: that the weights expect: ``imagenet``, ``clip``, ``half`` (.5 and .5), or
            ``auto`` for what the source or timm says.

    Returns:
        What became of each tensor, and how the model's input is to be normalised.

    Raises:
        InputError: the weights cannot be had, are of another architecture, or would leave a part
            of the model's body at random.
    """
    # ---- names
    fitting = Fitting.of(find_weights(weights, name), model, name)
    give_timms_names(fitting)
    refuse_other_architecture(fitting)

    # ---- parts
    channels = fitting.state[PROJECTION].shape[1]
    expected = _expected_normalization(fitting, channels, normalization)
    fit_layer_scale(fitting)
    fit_norm(fitting)
    fit_patch_embedding(fitting, expected)
    fit_positions(fitting, channels)
    fit_relative_positions(fitting)

    # ---- what is left
    _drop_surplus(fitting)
    _fill_gaps(fitting)
    model.load_state_dict(fitting.state, strict=True)
    return WeightsReport(
        source=fitting.source.name,
        looks_like=fitting.looks_like,
        stored_as=fitting.source.stored_as,
        model=name,
        normalization=expected.grey,
        normalization_origin=expected.origin,
        rows=fitting.rows(),
        learnt_from=fitting.source.learnt_from,
    )


def _expected_normalization(fitting: Fitting, channels: int, setting: str) -> ChannelNormalization:
    """How the source's own model had its input normalised, for each of its channels."""
    if setting != "auto":
        expected = normalization_named(setting)
    elif fitting.source.normalization is not None:
        expected = fitting.source.normalization
    elif channels == 1:
        expected = ChannelNormalization((0.5,), (0.5,), "as in earlier versions of mammo-pd")
    else:
        head = fitting.state.get("head.weight", fitting.state.get("head.fc.weight"))
        has_scale = any(map(is_layer_scale, fitting.state))
        takes_scale = any(map(is_layer_scale, fitting.model.state_dict()))
        expected = guess_normalization(
            fitting.name,
            0 if head is None else len(head),
            # Layer scale that the model knows nothing of is most likely DINOv2's.
            self_supervised=fitting.source.self_supervised or (has_scale and not takes_scale),
        )
    if channels == 1:
        grey = expected.grey
        return ChannelNormalization((grey.mean,), (grey.std,), expected.origin)
    if channels != len(expected.mean):
        raise InputError(
            f"the weights {fitting.source.name} take {channels} channels, and the normalisation of "
            f"{len(expected.mean)} is known; give weights of 3 channels or 1."
        )
    return expected


def _drop_surplus(fitting: Fitting) -> None:
    """Drop what the model has no place for, unless it would then compute something else."""
    wanted = fitting.model.state_dict()
    buffers = dict(fitting.model.named_buffers())
    for key, tensor in list(fitting.state.items()):
        if key in buffers:
            # Tables of the image size, which the model has computed for its own.
            del fitting.state[key]
        elif key.startswith(_HEADS):
            fitting.drop(key, "another task's")
        elif key not in wanted:
            _refuse_essential(
                fitting, key, f"they have {key}, for which {fitting.name} has no place"
            )
            fitting.drop(key, f"{fitting.name} has no place for it")
        elif tensor.shape != wanted[key].shape:
            shapes = f"{_shape(tensor)} there and {_shape(wanted[key])} in {fitting.name}"
            _refuse_essential(fitting, key, f"{key} is {shapes}")
            fitting.drop(key, shapes)


def _fill_gaps(fitting: Fitting) -> None:
    """Leave what the source lacks as the model was made, unless that would break its body."""
    buffers = dict(fitting.model.named_buffers())
    for key, value in fitting.model.state_dict().items():
        if key in fitting.state:
            continue
        fitting.state[key] = value
        if key in buffers:
            fitting.note(key, "computed")
        elif key.startswith("blocks.") and key.endswith("bias"):
            fitting.state[key] = torch.zeros_like(value)
            fitting.note(key, "set", "to 0: the source has none")
        else:
            _refuse_essential(fitting, key, f"they have no {key}, which {fitting.name} needs")
            fitting.note(key, "at random")


def _refuse_essential(fitting: Fitting, key: str, difference: str) -> None:
    if key.startswith(_ESSENTIAL):
        raise InputError(
            f"the weights {fitting.source.name} ({fitting.looks_like}) are for a different "
            f"architecture than {fitting.name}: {difference}; choose the --model they belong to "
            "(docs/models.md), or other weights."
        )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
