"""Checkpoints as safetensors: one file each, so that one is whole or absent, and runs no code."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from mammo_pd.files import atomic_write, load_json
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


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint file that is held open, so that all that is read of it is of one version.

    Training replaces the file after each epoch, and the one held open stays as it was.

    Attributes:
        path: of the file, as errors name it.
        held: the path to read it by.
    """

    path: Path
    held: Path

    def header(self) -> CheckpointHeader:
        """What it says before its weights.

        Raises:
            InputError: damaged, or not one of ours.
        """
        return CheckpointHeader.read(self.path, self.held)

    def load_into(self, model: nn.Module, timm_model: nn.Module) -> None:
        """Load a model, from model.safetensors or last.safetensors.

        Raises:
            InputError: not one of ours, or of another architecture.
        """
        content = _read(self.path, self.held)
        if "history" in content.metadata:
            _load_averaged(content, model)
        else:
            _load_named(content, model, timm_model)

    def digest(self) -> str:
        """SHA-256 of the weights, whatever the header says."""
        return weights_digest(self.held)


@contextmanager
def open_checkpoint(path: Path) -> Iterator[OpenCheckpoint]:
    """Hold a checkpoint file open within the block.

    Raises:
        InputError: no such file, or one that cannot be opened.
    """
    if not path.is_file():
        raise _no_checkpoint(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise _not_ours(path, error) from error
    with file:
        # safetensors takes no open file. By this name it gets the same one, whatever has taken its
        # place, without a copy in memory. Source: proc_pid_fd(5).
        yield OpenCheckpoint(path, Path(f"/proc/self/fd/{file.fileno()}"))


def load_weights(path: Path, model: nn.Module, timm_model: nn.Module) -> dict[str, Any]:
    """Load weights that were written from `weights_of`.

    Returns:
        The metadata written with them.

    Raises:
        InputError: no such file, not one of ours, or of another architecture.
    """
    content = _read(path)
    _load_named(content, model, timm_model)
    return content.metadata


def put_operating_points(path: Path, points: Mapping[str, OperatingPoints]) -> None:
    """Write operating points into a checkpoint's header; its weights stay as they are.

    Args:
        path: the checkpoint, replaced when the new file is complete.
        points: by target.

    Raises:
        InputError: not one of ours.
    """
    content = _read(path)
    dumped = json.dumps({target: one.dump() for target, one in points.items()})
    Contents(content.tensors, {**content.header, POINTS_KEY: dumped}).write(path)


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
    tensors |= {_AVERAGE + name: tensor.contiguous() for name, tensor in average.state().items()}
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
    content = _read(path)
    if optimizer is None:
        _load_averaged(content, model)
        return content.metadata
    _load_into(model, _starting_with(_MODEL, content.tensors), path)
    if average is not None:
        average.load(_starting_with(_AVERAGE, content.tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in content.tensors.items():
        if name.startswith(_OPTIMIZER):
            index, _, key = name.removeprefix(_OPTIMIZER).partition(".")
            state.setdefault(int(index), {})[key] = tensor
    try:
        groups = load_json(content.header["param_groups"])
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
    return content.metadata


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


@dataclass(frozen=True)
class _Content:
    """What one reading of a file gave; the metadata are those in its header."""

    path: Path
    tensors: dict[str, Tensor]
    header: dict[str, str]
    metadata: dict[str, Any]


def _read(path: Path, held: Path | None = None) -> _Content:
    if not path.is_file():
        raise _no_checkpoint(path)
    try:
        with safe_open(held or path, "pt") as file:
            header = dict(file.metadata() or {})
            metadata: dict[str, Any] = load_json(header[METADATA_KEY])
            if not isinstance(metadata, dict):
                raise TypeError("its header is another's")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise _not_ours(path, error) from error
    return _Content(path, tensors, header, metadata)


def _no_checkpoint(path: Path) -> InputError:
    return InputError(f"there is no checkpoint at {path}; name a run that has one.")


def _not_ours(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is not a checkpoint of mammo-pd ({cause_of(error)}); name a run that has one."
    )


def _load_named(content: _Content, model: nn.Module, timm_model: nn.Module) -> None:
    """Load what `weights_of` gave."""
    prefix = prefix_of(timm_model, model)
    named = {
        name.removeprefix(_OBJECTIVE) if name.startswith(_OBJECTIVE) else prefix + name: tensor
        for name, tensor in content.tensors.items()
    }
    _load_into(model, named, content.path)


def _load_averaged(content: _Content, model: nn.Module) -> None:
    """Load the model of what `state_of` gave, averaged if it was."""
    own = _starting_with(_MODEL, content.tensors)
    _load_into(model, own | _starting_with(_AVERAGE, content.tensors), content.path)


def _load_into(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{path} does not fit the model ({str(error).splitlines()[-1].strip()[:200]}); it was "
            "trained with another model or image size than the run's configuration says."
        ) from error
