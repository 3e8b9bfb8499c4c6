"""A run's configuration: strict YAML into frozen dataclasses, checked once when it is made."""

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mammo_pd.errors import InputError
from mammo_pd.keep_schedule import KeepSchedule
from mammo_pd.terms import Draw

IMG_ASPECT = 0.8


@dataclass(frozen=True)
class DataSettings:
    """What is trained on.

    Attributes:
        split: name of a split of the store.
        fold: which fold to test on, where the split has folds.
        res: the canvas: a height in pixels, whose width is 4/5 of it; ``HEIGHTxWIDTH``; or
            ``full``, the largest native breast of the split.
        workers: threads that read ahead; null for one less than the cores, at most 8, and on a
            CPU for one.
    """

    split: str = "default"
    fold: int | None = None
    res: int | str = 1024
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers is {self.workers}; allowed is 1 and above, or null")


@dataclass(frozen=True)
class PatchDropoutSettings:
    """Which patches are kept in training; evaluation keeps all.

    Attributes:
        keep_rate: share of the patches kept: a number; ``0.5:0.25``, linear over the epochs;
            or ``random``, the official code's; each with ``+N`` for N last epochs that keep all.
        draw: ``uniform``, ``tissue`` or ``grid``.
    """

    keep_rate: float | str = 0.25
    draw: str = str(Draw.UNIFORM)

    def __post_init__(self) -> None:
        KeepSchedule.parse(self.keep_rate)
        if self.draw not in list(Draw):
            raise ValueError(f"draw is {self.draw!r}; allowed is {', '.join(Draw)}")

    @property
    def schedule(self) -> KeepSchedule:
        """The keep rate over the epochs."""
        return KeepSchedule.parse(self.keep_rate)


@dataclass(frozen=True)
class ModelSettings:
    """Which vision transformer.

    Attributes:
        name: timm's.
        weights: null for random, a local file, or ``timm`` for those of timm's hub.
        drop_path_rate: stochastic depth.
        global_pool: timm's; null for the model's own.
        checkpointing: whether blocks are computed anew in the backward pass: a fraction of the
            memory for about a third more time.
    """

    name: str = "vit_small_patch16_224"
    weights: str | None = None
    drop_path_rate: float = 0.1
    global_pool: str | None = None
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate is {self.drop_path_rate}; allowed is 0 to below 1")


@dataclass(frozen=True)
class DeviceSettings:
    """Where it runs.

    Attributes:
        accelerator: Lightning Fabric's: ``auto``, ``cpu``, ``cuda``.
        devices: how many; under torchrun its own number counts.
        precision: Lightning Fabric's, such as ``bf16-mixed`` or ``32-true``; ``auto`` takes bf16
            where the device has it.
        compile: whether blocks are compiled; null to do so on a GPU with a C compiler at hand.
    """

    accelerator: str = "auto"
    devices: int = 1
    precision: str = "auto"
    compile: bool | None = None

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"devices is {self.devices}; allowed is 1 and above")


@dataclass(frozen=True)
class AugmentSettings:
    """How far training images are moved and changed; all zeros changes nothing.

    Attributes:
        horizontal_flip: probability of mirroring left to right. The store turns every chest wall
            to the left, so 0 keeps that.
        vertical_flip: probability of mirroring top to bottom.
        rotation_degrees: largest rotation either way.
        scale: largest relative change of size, 0.1 for 0.9 to 1.1.
        shift: largest shift, as a share of the canvas's side.
        gamma: largest power either way, 0.2 for exponents between 1/1.2 and 1.2.
        contrast: largest relative change of the grey values' scale. Air stays 0.
    """

    horizontal_flip: float = 0.0
    vertical_flip: float = 0.5
    rotation_degrees: float = 15.0
    scale: float = 0.1
    shift: float = 0.05
    gamma: float = 0.2
    contrast: float = 0.2

    def __post_init__(self) -> None:
        for name in ("horizontal_flip", "vertical_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a probability in [0, 1]")
        if not 0 <= self.rotation_degrees <= 180:
            raise ValueError(f"rotation_degrees is {self.rotation_degrees}; allowed is 0 to 180")
        for name in ("scale", "shift", "contrast"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed is 0 to below 1")
        if self.gamma < 0:
            raise ValueError(f"gamma is {self.gamma}; allowed is 0 and above")


@dataclass(frozen=True)
class TrainingSettings:
    """How the model is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a step, over all devices; ``auto`` for as many as fit.
        grad_accum_steps: forward and backward passes that make one optimiser step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW; on matrices, not on biases, norms, tokens or position embeddings.
        warmup_epochs: epochs of linear warm-up before the cosine; may be a fraction.
        clip_norm: largest norm of the gradient; 0 for no limit.
        positive_weight: weight of a positive image in the loss.
        seed: of the weights, the order, the draws and the augmentation.
    """

    epochs: int = 30
    batch_size: int | str = 32
    grad_accum_steps: int = 1
    lr: float = 3e-4
    weight_decay: float = 0.05
    warmup_epochs: float = 2.0
    clip_norm: float = 1.0
    positive_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "grad_accum_steps"):
            if getattr(self, name) == "auto" and name == "batch_size":
                continue
            if isinstance(getattr(self, name), str) or getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed is 1 and above")
        for name in ("lr", "positive_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed is above 0")
        for name in ("weight_decay", "warmup_epochs", "clip_norm", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed is 0 and above")

    @property
    def known_batch_size(self) -> int:
        """``batch_size``, once ``auto`` was resolved."""
        assert isinstance(self.batch_size, int), "auto is resolved before training"
        return self.batch_size


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run, but for where the store and the runs lie."""

    data: DataSettings = field(default_factory=DataSettings)
    patch_dropout: PatchDropoutSettings = field(default_factory=PatchDropoutSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    device: DeviceSettings = field(default_factory=DeviceSettings)

    def __post_init__(self) -> None:
        full = self.patch_dropout.schedule.full_epochs
        if full and full >= self.training.epochs:
            raise ValueError(
                f"patch_dropout.keep_rate {self.patch_dropout.keep_rate} keeps every patch in the "
                f"last {full} epochs, and there are {self.training.epochs} (training.epochs): more "
                "epochs, or a smaller number after the +, leave some for dropping"
            )


def load_config(file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Make the configuration of a run.

    Args:
        file: YAML; what it leaves out keeps its default.
        overrides: values by dotted path, such as ``{"training.lr": 1e-4}``, that win over the file.

    Raises:
        InputError: an unknown key, a wrong type or a value out of range; the message names the
            path.
    """
    values: Any = {}
    if file is not None:
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"the configuration {file} cannot be read: {error}") from error
    where = str(file) if file is not None else "the configuration"
    if not isinstance(values, dict):
        raise InputError(f"{where} is not a mapping of sections ({_names(RunConfig)}).")
    for path, value in (overrides or {}).items():
        _set(values, path, value)
    config = _build(RunConfig, values, "", where)
    assert isinstance(config, RunConfig)
    return config


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs as `load_config` takes them; values are YAML.

    Raises:
        InputError: no equals sign, or a value that is not YAML.
    """
    parsed = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment} has no '='; write --set training.lr=0.0001")
        try:
            parsed[path.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"--set {assignment}: the value is not YAML ({error})") from error
    return parsed


def dump_config(config: RunConfig) -> str:
    """The whole configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def resolve_img_size(res: int | str, patch_size: int, largest: tuple[int, int]) -> tuple[int, int]:
    """The canvas that ``res`` asks for.

    Args:
        res: as in `DataSettings`.
        patch_size: P, in pixels.
        largest: (height, width) of the largest native crop, for ``full``.

    Returns:
        (height, width) in pixels, multiples of ``patch_size``.

    Raises:
        InputError: not of a known form, or not a multiple of the patch size.
    """
    text = str(res).strip().lower()
    if text == "full":
        height, width = (-(-side // patch_size) * patch_size for side in largest)
        return height, width
    height_text, cross, width_text = text.partition("x")
    if not height_text.isdigit() or (cross and not width_text.isdigit()):
        raise InputError(
            f"--res {res} is not understood; give a height such as 1024, a canvas such as "
            "1024x832, or full."
        )
    height = int(height_text)
    nearest = max(1, round(height * IMG_ASPECT / patch_size)) * patch_size
    width = int(width_text) if cross else nearest
    if height < patch_size or height % patch_size or width < patch_size or width % patch_size:
        side = height if height < patch_size or height % patch_size else width
        down = max(1, side // patch_size) * patch_size
        raise InputError(
            f"--res {res}: {side} is not a multiple of the model's patch of {patch_size} pixels; "
            f"the nearest are {down} and {down + patch_size}."
        )
    return height, width


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *sections, name = path.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"{path} cannot be set: {section} is not a section.")
    values[name] = value


def _names(kind: Any) -> str:
    return ", ".join(item.name for item in dataclasses.fields(kind))


def _build(kind: Any, values: Any, path: str, where: str) -> Any:
    if not isinstance(values, dict):
        raise InputError(f"{where}: {path} is a section with the keys {_names(kind)}.")
    hints = typing.get_type_hints(kind)
    prefix = f"{path}." if path else ""
    given = {}
    for name, value in values.items():
        if name not in hints:
            raise InputError(
                f"{where}: there is no key {prefix}{name}; {path or 'the top level'} has "
                f"{_names(kind)}."
            )
        if dataclasses.is_dataclass(hints[name]):
            given[name] = _build(hints[name], value, prefix + name, where)
        else:
            given[name] = _typed(hints[name], value, prefix + name, where)
    try:
        return kind(**given)
    except ValueError as error:
        raise InputError(f"{where}: {prefix}{error}.") from error


def _typed(hint: Any, value: Any, path: str, where: str) -> Any:
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in allowed:
        # bool is an int to Python, and YAML reads 1e-4 as text.
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return value
        if kind is float and not isinstance(value, bool):
            try:
                return float(value)
            except (TypeError, ValueError):
                continue
    names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
    raise InputError(f"{where}: {path} is {value!r}; it must be {names}.")
