"""Pretrained weights as they lie in a file or on a hub: read without running code, unwrapped.

Out comes a state dict of one encoder in float32, under the names that its authors gave it.
"""

import math
import pickle
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from timm.models import load_state_dict
from torch import Tensor

from mammo_pd.backbones.weights.named import HUB, HUB_PREFIXES, no_such_weights
from mammo_pd.backbones.weights.normalization import ChannelNormalization, normalization_of
from mammo_pd.backbones.weights.report import CARD_KEY, LearntFrom
from mammo_pd.backbones.wide_heads import has_wide_heads
from mammo_pd.errors import InputError, cause_of
from mammo_pd.files import load_json
from mammo_pd.wording import counted

# Around a state dict, by those who train; where two stand side by side, the first is evaluated.
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "teacher",
    "target_encoder",
    "model",
    "state_dict",
    "module",
    "encoder",
    "student",
)
# The patch embedding of timm, DINO, MAE and DeiT, and of Sapiens; that of CLIP and Meta's PE.
_ANCHORS = ("patch_embed.proj.weight", "patch_embed.projection.weight")
_CLIP_ANCHOR = "conv1.weight"
# What is read by timm under the names that it has.
_WHOLE = ("radio_model.", "beit3.", "preprocessor.patchifier.", "vision_encoder.")
_SELF_SUPERVISED = ("mask_token", "decoder_", "register_tokens", "dino_head.", "ibot_head.")
# Best first, where a state dict holds several encoders.
_PREFERRED = ("ema", "teacher", "target", "visual", "image")
# What reading a file that is something else raises.
_UNREADABLE = (
    RuntimeError,
    OSError,
    EOFError,
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    struct.error,
)


@dataclass(frozen=True)
class SourceWeights:
    """One encoder's weights.

    Attributes:
        name: of the file, without its folder, or on a hub.
        tensors: float32 on the CPU, under the authors' names but for prefixes around them.
        stored_as: dtype of most of them in the file.
        elsewhere: what else the file holds, by the part of it, in tensors.
        self_supervised: whether the wrapping or the names are those of DINO, DINOv2 or MAE.
        normalization: where the source itself says how the input is to be normalised.
        grid: (rows, columns) of the position embedding, where the source itself says so.
        model: timm's name of the model that was trained, where the source itself says so.
        learnt_from: as in `WeightsReport`.
    """

    name: str
    tensors: dict[str, Tensor]
    stored_as: str
    elsewhere: dict[str, int]
    self_supervised: bool
    normalization: ChannelNormalization | None = None
    grid: tuple[int, int] | None = None
    model: str | None = None
    learnt_from: tuple[LearntFrom, ...] = ()


def find_weights(weights: str, model_name: str) -> SourceWeights:
    """Read a local file, or fetch what a hub has.

    Args:
        weights: a local file; ``timm`` for what timm's hub has under the model's name; a timm name
            with or without a tag; or ``hf-hub:`` and a repository with a timm model.
        model_name: timm's name of the model that is to take them.

    Raises:
        InputError: there is no such file, it cannot be read without running code, it holds no
            vision transformer, it is not finite; or there is no network.
    """
    file = Path(weights)
    if file.is_file():
        return _read_npz(file, model_name) if file.suffix == ".npz" else _read_file(file)
    name = model_name if weights == HUB else weights
    if has_wide_heads(name):
        raise InputError(
            f"there are no published weights for {name}, which is mammo-pd's own model; drop "
            "--weights, make weights with mammo-pd pretrain, or use --model "
            f"{name.replace('_hd128_', '_')} --weights timm."
        )
    if name.startswith(HUB_PREFIXES) or (file.name == weights and timm.is_model(name)):
        return _fetch(name)
    raise no_such_weights(weights)


def _read_file(file: Path) -> SourceWeights:
    metadata: dict[str, Any] = {}
    try:
        with file.open("rb") as opened:
            # A safetensors file begins with the length of its header, which is JSON.
            is_safetensors = opened.read(9)[8:] == b"{"
        if is_safetensors:
            with safe_open(file, "pt") as tensors:
                content = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
                metadata = load_json((tensors.metadata() or {}).get(CARD_KEY, "{}"))
        else:
            content = load_state_dict(str(file), weights_only=True)
    except SafetensorError as error:
        raise InputError(
            f"the weights file {file} is truncated, damaged or not a safetensors file "
            f"({cause_of(error)}); copy it again."
        ) from error
    except _UNREADABLE as error:
        raise InputError(
            f"the weights file {file} cannot be read as safetensors or as a PyTorch state dict "
            f"without running code ({cause_of(error)}); save only the model's state_dict(), "
            "preferably as safetensors."
        ) from error
    return _unwrap(file.name, content, metadata)


def _read_npz(file: Path, model_name: str) -> SourceWeights:
    """Read one of Google's checkpoints by timm's own loader, at the size that it was trained at."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            shapes = {name: arrays[name].shape for name in arrays.files}
        kernel = next(s for name, s in shapes.items() if name.endswith("embedding/kernel"))
        length = next(s[-2] for name, s in shapes.items() if name.endswith("pos_embedding"))
        numbers = (re.search(r"encoderblock_(\d+)/", name) for name in shapes)
        depth = 1 + max(int(found[1]) for found in numbers if found)
        side = kernel[0] * math.isqrt(length)
        model = timm.create_model(model_name, img_size=side, patch_size=kernel[0])
        found = f"width {kernel[-1]}, depth {depth}"
        wanted = f"width {model.embed_dim}, depth {len(model.blocks)}"
        if found == wanted:
            with torch.no_grad():
                model.load_pretrained(str(file))
    except (StopIteration, IndexError, BadZipFile, *_UNREADABLE) as error:
        raise InputError(
            f"the weights file {file} is not a vision transformer's checkpoint as Google writes "
            f"them ({cause_of(error)}); give another, or safetensors."
        ) from error
    if found != wanted:
        raise InputError(
            f"the weights {file.name} have {found}; you asked for {model_name}: {wanted}; give a "
            "--model of the weights' width and depth (docs/models.md), or other weights."
        )
    return _unwrap(file.name, model.state_dict(), {})


def _fetch(name: str) -> SourceWeights:
    try:
        # timm knows the peculiarities of each repository; its loaders use weights_only.
        model = timm.create_model(name, pretrained=True)
    except (EntryNotFoundError, *_UNREADABLE) as error:
        raise InputError(
            f"the weights {name!r} cannot be fetched ({cause_of(error)}); without a network, "
            "download them elsewhere and give the file: --weights FILE."
        ) from error
    source = _unwrap(name, model.state_dict(), {})
    grid = getattr(model.patch_embed, "grid_size", None)
    return replace(
        source,
        normalization=normalization_of(model.pretrained_cfg, f"as {name} has it"),
        grid=grid and (int(grid[0]), int(grid[1])),
    )


def _unwrap(name: str, content: Mapping[str, Any], metadata: Mapping[str, Any]) -> SourceWeights:
    """Take one encoder out of what a file holds."""
    wrappers = []
    while (wrapper := _wrapper_of(content)) is not None:
        wrappers.append(wrapper)
        content = content[wrapper]
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    prefix, put_back = _find_encoder(name, tensors)
    inner = {
        put_back + key.removeprefix(prefix): _as_float32(value)
        for key, value in tensors.items()
        if key.startswith(prefix)
    }
    _refuse_not_finite(name, inner)
    outside = [key for key in tensors if not key.startswith(prefix)]
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    grid, normalization = _own_facts(metadata)
    return SourceWeights(
        name=name,
        tensors=inner,
        stored_as=dtypes.most_common(1)[0][0],
        elsewhere=dict(Counter(key.removeprefix("module.").split(".")[0] for key in outside)),
        self_supervised="teacher" in (*wrappers, *prefix.split("."))
        or any(key.startswith(_SELF_SUPERVISED) for key in (*inner, *outside)),
        normalization=normalization,
        grid=grid,
        model=metadata.get("model"),
        learnt_from=_learnt_from(metadata),
    )


def _as_float32(tensor: Tensor) -> Tensor:
    # A copy: each has a storage of its own, by which it is known again under another name.
    return tensor.detach().to(torch.float32, copy=True)


def _wrapper_of(content: Mapping[str, Any]) -> str | None:
    return next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)


def _find_encoder(name: str, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """What the encoder's names begin with, and what timm expects them to begin with instead."""
    found = []
    for key in tensors:
        for anchor in _ANCHORS:
            prefix = key.removesuffix(anchor)
            if prefix != key and (not prefix or prefix.endswith(".")):
                found.append((prefix, ""))
        prefix = key.removesuffix(_CLIP_ANCHOR)
        # A ResNet's first convolution has this name, too.
        if prefix != key and f"{prefix}positional_embedding" in tensors:
            found.append((prefix, "visual."))
        found += [(key[: key.index(whole)], "") for whole in _WHOLE if whole in key]
    if not found:
        some = ", ".join([*tensors][:3]) or "no tensors"
        raise InputError(
            f"the weights {name} hold no vision transformer that timm knows (they hold {some} and "
            "so on); give a checkpoint of timm, DINO, DINOv2, DINOv3, MAE, DeiT or CLIP under "
            "their own names."
        )

    def rank(candidate: tuple[str, str]) -> tuple[int, int]:
        words = (place for place, word in enumerate(_PREFERRED) if word in candidate[0])
        return next(words, len(_PREFERRED)), len(candidate[0])

    return min(found, key=rank)


def _refuse_not_finite(name: str, tensors: Mapping[str, Tensor]) -> None:
    broken = [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise InputError(
            f"the weights {name} hold values that are not finite, in "
            f"{counted(len(broken), 'tensor')} ({', '.join(broken[:3])}); the file is damaged or "
            "its training diverged, so give another."
        )


def _learnt_from(metadata: Mapping[str, Any]) -> tuple[LearntFrom, ...]:
    """What a checkpoint of mammo-pd learnt from, and those that it started from."""
    names = [field.name for field in fields(LearntFrom)]
    try:
        own = LearntFrom(**{name: metadata[name] for name in names})
        earlier = (metadata.get("weights") or {}).get("learnt_from", ())
        return (own, *(LearntFrom(**one) for one in earlier))
    except (KeyError, TypeError, AttributeError):
        return ()


def _own_facts(
    metadata: Mapping[str, Any],
) -> tuple[tuple[int, int] | None, ChannelNormalization | None]:
    """What a checkpoint of mammo-pd says of itself in its header."""
    try:
        rows, columns = metadata["grid_size"]
        own = metadata["normalization"]
        mean, std = float(own["mean"]), float(own["std"])
    except (KeyError, TypeError, ValueError):
        return None, None
    normalization = ChannelNormalization((mean,), (std,), "as in the run")
    return (int(rows), int(columns)), normalization
