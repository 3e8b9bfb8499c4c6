"""Checkpoints as safetensors: one file each, so that one is whole or absent, and runs no code."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mammo_pd.backbones.weights.report import CARD_KEY
from mammo_pd.errors import InputError, cause_of
from mammo_pd.evaluation.operating_points import OperatingPoints
from mammo_pd.files import atomic_write
from mammo_pd.training.averaging import WeightAverage
from mammo_pd.training.model_card import METADATA_KEY, POINTS_KEY, CheckpointHeader, ModelCard

_MODEL = "model."
_OPTIMIZER = "optimizer."
_AVERAGE = "average."
_OBJECTIVE = "objective."


def prefix_of(timm_model: nn.Module, model: nn.Module) -> str:
    """What the names of a timm model's weights begin with in the model around it."""
    (name,) = (name for name, module in model.named_modules() if module is timm_model)
    return f"{name}." if name else ""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint file holds.

    Attributes:
        tensors: by the names in the file; those of a live model change as it learns.
        header: the file's own.
    """

    tensors: dict[str, Tensor]
    header: dict[str, str]

    def write(self, path: Path) -> None:
        """Write the file; one of that name is replaced when the new one is complete.

        Args:
            path: ends in ``.safetensors``.
        """
        with atomic_write(path) as beside:
            save_file(self.tensors, beside, self.header)


def weights_of(
    model: nn.Module,
    timm_model: nn.Module,
    metadata: dict[str, Any],
    card: ModelCard | None = None,
) -> Contents:
    """A model's weights, those of timm's model under timm's names for other tools to read.

    Args:
        model: what is trained; weights around timm's are named ``objective.`` and as in it.
        timm_model: within ``model``.
        metadata: plain values, for the file's header.
        card: what the model was made with, for the same.
    """
    prefix = prefix_of(timm_model, model)
    tensors = {
        name.removeprefix(prefix) if name.startswith(prefix) else _OBJECTIVE + name: tensor
        for name, tensor in _tensors(model).items()
    }
    return Contents(tensors, _header(metadata, card))


def load_weights(path: Path, model: nn.Module, timm_model: nn.Module) -> dict[str, Any]:
    """Load weights that were written from `weights_of`.

    Returns:
        The metadata written with them.

    Raises:
        InputError: no such file, not one of ours, or of another architecture.
    """
    tensors, metadata = _read(path)
    prefix = prefix_of(timm_model, model)
    named = {
        name.removeprefix(_OBJECTIVE) if name.startswith(_OBJECTIVE) else prefix + name: tensor
        for name, tensor in tensors.items()
    }
    _load_into(model, named, path)
    return metadata


def put_operating_points(path: Path, points: Mapping[str, OperatingPoints]) -> None:
    """Write operating points into a checkpoint's header; its weights stay as they are.

    Args:
        path: the checkpoint, replaced when the new file is complete.
        points: by target.

    Raises:
        InputError: not one of ours.
    """
    tensors, _ = _read(path)
    with safe_open(path, "pt") as file:
        header = dict(file.metadata())
    header[POINTS_KEY] = json.dumps({target: one.dump() for target, one in points.items()})
    Contents(tensors, header).write(path)


def weights_digest(path: Path) -> str:
    """SHA-256 of a checkpoint's weights, whatever its header says."""
    with path.open("rb") as file:
        # Eight bytes give the length of the header, and the weights follow it to the end.
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    metadata: dict[str, Any],
    card: ModelCard | None = None,
) -> Contents:
    """Everything that training needs to go on."""
    tensors = {_MODEL + name: tensor for name, tensor in _tensors(model).items()}
    tensors |= {_AVERAGE + name: tensor for name, tensor in average.state().items()}
    state = optimizer.state_dict()
    for index, values in state["state"].items():
        for name, value in values.items():
            tensors[f"{_OPTIMIZER}{index}.{name}"] = value.detach().contiguous()
    groups = [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]
    return Contents(tensors, {**_header(metadata, card), "param_groups": json.dumps(groups)})


def load_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    average: WeightAverage | None = None,
) -> dict[str, Any]:
    """Load what `state_of` gave; without an optimizer, the model alone, averaged if it was.

    Returns:
        The metadata written with it.

    Raises:
        InputError: no such file, not one of ours, or of another architecture.
    """
    tensors, metadata = _read(path)
    own = _starting_with(_MODEL, tensors)
    averaged = _starting_with(_AVERAGE, tensors)
    if optimizer is None:
        _load_into(model, own | averaged, path)
        return metadata
    _load_into(model, own, path)
    if average is not None:
        average.load(averaged)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, _, key = name.removeprefix(_OPTIMIZER).partition(".")
            state.setdefault(int(index), {})[key] = tensor
    try:
        with safe_open(path, "pt") as file:
            groups = json.loads(file.metadata()["param_groups"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path} holds only weights, not the state needed to resume; start a new run without "
            "--resume."
        ) from error
    own_groups = [
        {name: group[name] for name in ("lr", "fused", "capturable", "foreach") if name in group}
        for group in optimizer.param_groups
    ]
    if len(groups) == len(own_groups):
        # How the device computes, and where it reads the rate, is not the checkpoint's to say.
        groups = [group | own for group, own in zip(groups, own_groups, strict=True)]
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except ValueError as error:
        raise InputError(
            f"{path} was written by a version that grouped the weights differently for the "
            "optimizer, so training cannot resume exactly; start a new run without --resume, or "
            "from its weights with --weights."
        ) from error
    return metadata


def load_either(path: Path, model: nn.Module, timm_model: nn.Module) -> None:
    """Load a model from model.safetensors or last.safetensors.

    Raises:
        InputError: no such file, not one of ours, or of another architecture.
    """
    _, metadata = _read(path)
    if "history" in metadata:
        load_state(path, model)
    else:
        load_weights(path, model, timm_model)


def newest_state(last: Path, midway: Path) -> Path | None:
    """The checkpoint that training goes on from; None where there is none.

    Args:
        last: of the last whole epoch.
        midway: within the next one; one that a kill left of an epoch before does not count.

    Raises:
        InputError: one of them is damaged.
    """
    if not midway.is_file():
        return last if last.is_file() else None
    try:
        within = CheckpointHeader.read(midway).epochs
    except InputError as error:
        raise InputError(
            f"{midway} is damaged; delete it to resume after the last whole epoch."
        ) from error
    if last.is_file() and CheckpointHeader.read(last).epochs > within:
        return last
    return midway


def is_finite(model: nn.Module) -> bool:
    """Whether no weight has become infinite or no number."""
    return all(
        bool(tensor.isfinite().all())
        for tensor in model.state_dict().values()
        if tensor.is_floating_point()
    )


def _header(metadata: dict[str, Any], card: ModelCard | None) -> dict[str, str]:
    header = {METADATA_KEY: json.dumps(metadata)}
    return header if card is None else {**header, CARD_KEY: card.dump()}


def _starting_with(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"there is no checkpoint at {path}; name a run that has one.")
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {})[METADATA_KEY])
            if not isinstance(metadata, dict):
                raise TypeError("its header is another's")
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise InputError(
            f"{path} is not a checkpoint of mammo-pd ({cause_of(error)}); name a run that has one."
        ) from error


def _load_into(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{path} does not fit the model ({str(error).splitlines()[-1].strip()[:200]}); it was "
            "trained with another model or image size than the run's configuration says."
        ) from error
