"""Pretrained weights into a timm model: a local file or a hub, read without running code.

timm renames, resamples and converts; what is done here is to say what happened, to refuse what does
not fit, and to keep exact what can be: layer scale that the model lacks, and the class token's
position.
"""

import json
import math
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models import VisionTransformer, load_state_dict
from timm.models._hub import load_state_dict_from_hf
from timm.models.eva import Eva
from timm.models.eva import checkpoint_filter_fn as filter_eva
from timm.models.vision_transformer import checkpoint_filter_fn as filter_vit
from torch import Tensor, nn

from mammo_pd.errors import InputError

HUB = "timm"
_HF = "hf-hub:"
_FILTERS = {VisionTransformer: filter_vit, Eva: filter_eva}
# How state dicts are wrapped and their names prefixed, beyond what timm takes off.
_WRAPPERS = ("teacher", "student", "encoder_state_dict", "model_state_dict")
_PREFIXES = ("backbone.", "encoder.", "vision_model.", "base_model.")
_HEADS = ("head.", "fc.", "dino_head.", "ibot_head.", "head_dist.")
# Of pretraining alone: no model that is fine-tuned reads it.
_PRETEXT = ("decoder", "mask_token", "objective.", "projectors.", "local_cls_norm")


@dataclass(frozen=True)
class LoadedWeights:
    """What became of a checkpoint's tensors, and of the model's.

    Attributes:
        source: the file's name, without its folder, or the hub's.
        loaded: how many tensors were taken over.
        changed: what was resampled, summed or folded, one line each.
        unused: names in the checkpoint that the model has no place for.
        random: names in the model that the checkpoint does not have.
        channels: that its patch embedding reads.
        metadata: of the file's header, where it is one of ours.
        layer_scale: whether the checkpoint has layer scale.
    """

    source: str
    loaded: int
    changed: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)
    channels: int = 3
    metadata: dict[str, Any] = field(default_factory=dict)
    layer_scale: bool = False

    def table(self) -> str:
        """A few lines for people."""
        lines = [f"weights {self.source}: {self.loaded} tensors loaded"]
        for word, names in (
            ("changed", self.changed),
            ("not used", _short(self.unused)),
            ("random", _short(self.random)),
        ):
            lines += [f"  {word:<9} {name}" for name in names]
        return "\n".join(lines)


def read_weights(weights: str, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint as a flat state dict.

    Args:
        weights: a local file (safetensors, a PyTorch state dict, or Google's ``.npz``),
            ``hf-hub:OWNER/NAME``, or ``"timm"`` for what timm's hub has under the model's name.
        name: timm's name of the model.

    Returns:
        Tensors by name in float32, and the metadata in the header of a file of ours.

    Raises:
        InputError: it cannot be had, or holds no weights.
    """
    metadata: dict[str, Any] = {}
    try:
        if weights == HUB:
            state: Any = timm.create_model(name, pretrained=True).state_dict()
        elif weights.startswith(_HF):
            state = load_state_dict_from_hf(weights.removeprefix(_HF), weights_only=True)
        else:
            file = Path(weights)
            if not file.is_file():
                raise InputError(
                    f"the weights file {file} does not exist; give a local file, or where there is "
                    f"a network 'timm' for those of timm's hub, or {_HF}OWNER/NAME."
                )
            if file.suffix == ".npz":  # Google's, of which timm knows the names
                timm_model = timm.create_model(name)
                timm_model.load_pretrained(str(file))
                state = timm_model.state_dict()
            else:
                state = load_state_dict(str(file), weights_only=True)
            if file.suffix == ".safetensors":
                with safe_open(file, "pt") as opened:
                    metadata = json.loads((opened.metadata() or {}).get("facts", "{}"))
    except (RuntimeError, OSError, pickle.UnpicklingError, SafetensorError, EOFError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the weights {weights!r} cannot be read ({first[:200]}); give a safetensors file or a "
            "PyTorch state dict, and where there is no network, one that was downloaded elsewhere."
        ) from error
    return _flatten(state, weights), metadata


def load_into(
    timm_model: Any, state: dict[str, Tensor], metadata: dict[str, Any], source: str, name: str
) -> LoadedWeights:
    """Load a state dict into a model, resampled to its patch size and grid; the head stays its own.

    Args:
        timm_model: with as many channels as the checkpoint.
        state: from `read_weights`.
        metadata: from `read_weights`.
        source: names the weights in messages.
        name: timm's name of the model.

    Raises:
        InputError: of another architecture, with tensors that are not finite, or half of them.
    """
    changed: list[str] = []
    try:
        state = _FILTERS[type(timm_model)](_prepared(state, timm_model, changed), timm_model)
    except (KeyError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise InputError(
            f"the weights {source} are not of {name!r} ({type(error).__name__}: "
            f"{str(error)[:200]}); give a checkpoint of the same architecture."
        ) from error
    _refuse_other_architecture(timm_model, state, source, name)
    layer_scale = any(re.search(r"\.(ls\d\.gamma|gamma_\d)$", key) for key in state)
    _fit_layer_scale(timm_model, state, changed)
    _fit_final_norm(timm_model, state, changed)
    own = timm_model.state_dict()
    head = {key for key in own if key.startswith("head.")}
    unused = [key for key in state if key not in own and not key.startswith(_PRETEXT)]
    misshapen = [key for key in state if key in own and state[key].shape != own[key].shape]
    wrong = [key for key in misshapen if key not in head]
    if wrong:
        raise InputError(
            f"the weights {source} do not fit {name!r}: {wrong[0]} is "
            f"{_shape(state[wrong[0]])} there and {_shape(own[wrong[0]])} in the model; give a "
            "checkpoint of the same architecture."
        )
    taken = {key: value for key, value in state.items() if key in own and key not in head}
    broken = [key for key, value in taken.items() if not value.isfinite().all()]
    if broken:
        raise InputError(
            f"the weights {source} have values that are not finite, in {broken[0]}; the file is "
            "damaged, or the training that made it diverged."
        )
    random = [key for key in own if key not in taken and key not in head]
    # Biases and norms may differ between variants; a block without its matrices is no block.
    missing = [key for key in random if key.startswith("blocks.") and own[key].ndim > 1]
    missing += [key for key in random if key.startswith("patch_embed.proj.weight")]
    if missing:
        raise InputError(
            f"the weights {source} lack {len(missing)} of the matrices of {name!r}, such as "
            f"{missing[0]}; they would be random. Give a checkpoint of the same architecture."
        )
    timm_model.load_state_dict(taken, strict=False)
    return LoadedWeights(
        source=source,
        loaded=len(taken),
        changed=changed,
        unused=unused,
        random=[*random, *sorted(head)],
        channels=int(timm_model.patch_embed.proj.in_channels),
        metadata=metadata,
        layer_scale=layer_scale,
    )


def count_channels(state: dict[str, Tensor]) -> int:
    """Channels that a checkpoint's patch embedding reads; 3 where that cannot be told."""
    for name, value in state.items():
        if value.ndim == 4 and re.search(r"(patch_embed\.proj|conv1|projection)\.weight$", name):
            return int(value.shape[1])
    return 3


def _flatten(state: Any, weights: str) -> dict[str, Tensor]:
    """Unwrap a checkpoint: the tensors of the model, with the prefixes of its wrappers off."""
    while isinstance(state, dict):
        inner = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)), None)
        if inner is None:
            break
        state = inner
    tensors = (
        {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
        if isinstance(state, dict)
        else {}
    )
    if not tensors:
        raise InputError(f"{weights!r} holds no weights; give a state dict of a model.")
    for prefix in ("module.", *_PREFIXES):
        under = {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)}
        # A checkpoint with a head of its own beside the backbone keeps the backbone alone.
        if any(key.startswith("blocks.0.") for key in under):
            tensors = under
    tensors = {key: t for key, t in tensors.items() if not key.startswith(_HEADS)}
    return {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}


def _prepared(state: dict[str, Tensor], timm_model: Any, changed: list[str]) -> dict[str, Tensor]:
    """What timm's filter does not do, and a note of what it will."""
    state = dict(state)
    kernel, own = state.get("patch_embed.proj.weight"), timm_model.patch_embed.proj.weight
    if kernel is not None and kernel.ndim == 4 and kernel.shape[-1] != own.shape[-1]:
        changed.append(
            f"patch embedding resampled from {kernel.shape[-1]} to {own.shape[-1]} pixels"
        )
    position = state.get("pos_embed")
    if position is None or position.ndim != 3 or timm_model.pos_embed is None:
        return state
    rows = position.shape[1]
    # timm's filter sees to checkpoints with registers.
    plain = "cls_token" in state and not {"reg_token", "register_tokens"} & set(state)
    if timm_model.no_embed_class and plain and _is_square(rows - 1):
        state["cls_token"] = state["cls_token"] + position[:, :1]
        state["pos_embed"] = position[:, 1:]
        changed.append("the class token's position added to the token")
    elif not timm_model.no_embed_class and _is_square(rows) and not _is_square(rows - 1):
        front = position.new_zeros(1, timm_model.num_prefix_tokens, position.shape[2])
        state["pos_embed"] = torch.cat([front, position], dim=1)
        changed.append("a position of zeros for the class token, which had none")
    grid = math.isqrt(rows)
    if timm_model.patch_embed.grid_size != (grid, grid):
        height, width = timm_model.patch_embed.grid_size
        changed.append(f"position embedding resampled from {grid}x{grid} to {height}x{width}")
    return state


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape))


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _refuse_other_architecture(
    timm_model: Any, state: dict[str, Tensor], source: str, name: str
) -> None:
    width, depth = int(timm_model.embed_dim), len(timm_model.blocks)
    blocks = {int(key.split(".")[1]) for key in state if re.match(r"blocks\.\d+\.", key)}
    if not blocks:
        first = ", ".join(list(state)[:3])
        raise InputError(
            f"the weights {source} are not of a vision transformer (they have {first}, ...), and "
            f"{name!r} is one; give a checkpoint of the same architecture."
        )
    # Every norm of a block is as wide as the model.
    norm = next((v for key, v in state.items() if re.match(r"blocks\.0\.norm1\.weight", key)), None)
    found = int(norm.shape[0]) if norm is not None else width
    if (found, max(blocks) + 1) != (width, depth):
        raise InputError(
            f"the weights {source} are of a transformer of width {found} and depth "
            f"{max(blocks) + 1}, and {name!r} has width {width} and depth {depth}; choose the "
            "--model that they were saved from."
        )


def _fit_layer_scale(timm_model: nn.Module, state: dict[str, Tensor], changed: list[str]) -> None:
    """Fold layer scale into the projections before it, where the model has none of its own."""
    own = timm_model.state_dict()
    folded = 0
    for key in [key for key in state if re.search(r"\.(ls[12]\.gamma|gamma_[12])$", key)]:
        if key in own:
            continue
        block, _, scale = key.removesuffix(".gamma").rpartition(".")
        before = f"{block}.attn.proj" if scale.endswith("1") else f"{block}.mlp.fc2"
        gamma = state.pop(key)
        state[f"{before}.weight"] = state[f"{before}.weight"] * gamma[:, None]
        if f"{before}.bias" in state:
            state[f"{before}.bias"] = state[f"{before}.bias"] * gamma
        folded += 1
    if folded:
        changed.append(f"layer scale folded into {folded} projections: this model has none")
    scales = [key for key in own if re.search(r"\.(ls[12]\.gamma|gamma_[12])$", key)]
    absent = [key for key in scales if key not in state]
    for key in absent:
        state[key] = torch.ones_like(own[key])
    if absent:
        changed.append(f"layer scale of {len(absent)} projections set to 1: the weights have none")


def _fit_final_norm(timm_model: nn.Module, state: dict[str, Tensor], changed: list[str]) -> None:
    """The norm behind the blocks stands before the pooling or after it."""
    own = timm_model.state_dict()
    for there, here in (("norm.", "fc_norm."), ("fc_norm.", "norm.")):
        moved = [key for key in state if key.startswith(there)]
        if moved and moved[0] not in own and here + moved[0].removeprefix(there) in own:
            for key in moved:
                state[here + key.removeprefix(there)] = state.pop(key)
            changed.append(f"{there[:-1]} taken as {here[:-1]}, which the pooling asks for")
            return


def _short(names: list[str]) -> list[str]:
    """At most four lines: names that differ in a number are one."""
    kinds: dict[str, int] = {}
    for name in names:
        kind = re.sub(r"\.\d+\.", ".*.", name)
        kinds[kind] = kinds.get(kind, 0) + 1
    lines = [kind if count == 1 else f"{kind} ({count})" for kind, count in kinds.items()]
    return lines if len(lines) <= 4 else [*lines[:3], f"and {len(lines) - 3} more kinds"]
