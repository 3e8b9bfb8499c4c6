"""A run's configuration: YAML, flags and ``--set`` in; a frozen, validated `RunConfig` out.

Sizes called ``img_size`` are (height, width) in pixels.
"""

import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from mammo_pd.errors import InputError, cause_of
from mammo_pd.keep_schedule import KeepSchedule
from mammo_pd.terms import Draw, ScoredPatches
from mammo_pd.wording import counted

IMG_ASPECT = 0.8
# Pixels per side, three times a mammogram's. Anything larger is a typing error.
_MAX_SIDE = 16384


# ValueError: a date that is none, a number of thousands of digits, text that is not UTF-8.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


def _read_number(value: Any) -> Any:
    """Parse text that is a number: YAML 1.1 reads ``1e-4`` as a string."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


# Fields are strict: text is not accepted as a number, nor a bool as an integer. These two types
# also accept numbers that YAML 1.1 and the command line deliver as text.
_Number = Annotated[float, BeforeValidator(_read_number)]
_NumberOrText = Annotated[float | str, BeforeValidator(_read_number)]


class _Settings(BaseModel):
    """What all sections share: strict types, no unknown keys, frozen."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated like any new configuration.

        Raises:
            pydantic.ValidationError: a field that does not exist, or a value that it refuses.
        """
        return type(self)(**(dict(self) | changes))


class DataSettings(_Settings):
    """The training data."""

    split: str = "default"
    """Name of one of the store's splits."""

    fold: int | None = None
    """Fold to test on, where the split has folds."""

    res: int | str = 1024
    """Input size: a height in pixels (the width is 4/5 of it), HEIGHTxWIDTH, or full for the
    largest native breast crop of the split."""

    workers: Annotated[int, Field(ge=1)] | None = None
    """Reader threads; null for one fewer than the cores, at most 8 (one if training on a CPU)."""


class PatchDropoutSettings(_Settings):
    """Which patches training keeps, and which are read to score an image."""

    keep_rate: _NumberOrText = 0.25
    """Fraction of the patches kept: a number; 0.5:0.25 for a linear schedule over the epochs; or
    random, as in the official code. Append +N to keep every patch in the last N epochs."""

    draw: str = Draw.UNIFORM.value
    """How patches are drawn: uniform, tissue (patches with breast first), grid (evenly spread), or
    a name in `mammo_pd.patches.sampler.DRAWS`."""

    score_on: Annotated[ScoredPatches, Field(strict=False)] = ScoredPatches.ALL
    """Which patches are read to score an image, in evaluation and by predict: all; or tissue, those
    that hold breast, which is faster by as much as there is air. It belongs to the model, since
    thresholds are chosen on its scores."""

    @field_validator("keep_rate")
    @classmethod
    def _is_a_schedule(cls, value: float | str) -> float | str:
        KeepSchedule.parse(value)
        return value

    @property
    def schedule(self) -> KeepSchedule:
        """The keep rate over the epochs."""
        return KeepSchedule.parse(self.keep_rate)


class AugmentSettings(_Settings):
    """Ranges of the training augmentation; all zeros leave images as they are."""

    horizontal_flip: Annotated[_Number, Field(ge=0, le=1)] = 0.0
    """Probability of a left-right flip. The store turns every chest wall to the left; 0 keeps
    that."""

    vertical_flip: Annotated[_Number, Field(ge=0, le=1)] = 0.5
    """Probability of an up-down flip."""

    rotation_degrees: Annotated[_Number, Field(ge=0, le=180)] = 15.0
    """Maximum rotation in either direction."""

    scale: Annotated[_Number, Field(ge=0, lt=1)] = 0.1
    """Maximum relative change of size: 0.1 for 0.9 to 1.1."""

    shift: Annotated[_Number, Field(ge=0, lt=1)] = 0.05
    """Maximum translation, as a fraction of the image side."""

    gamma: Annotated[_Number, Field(ge=0)] = 0.2
    """Maximum gamma: 0.2 for exponents between 1/1.2 and 1.2."""

    contrast: Annotated[_Number, Field(ge=0, lt=1)] = 0.2
    """Maximum relative change of contrast. Air stays 0."""

    @classmethod
    def none(cls) -> Self:
        """No augmentation at all."""
        return cls(**dict.fromkeys(cls.model_fields, 0.0))


class ModelSettings(_Settings):
    """The vision transformer."""

    name: str = "vit_small_patch16_224"
    """timm model name."""

    weights: str | None = None
    """Initial weights: null for random; a local file (safetensors, a state dict, .npz); timm for
    those of timm's hub under the model's name; another timm name; or hf-hub:OWNER/NAME."""

    normalization: Literal["auto", "imagenet", "clip", "half"] = "auto"
    """Mean and standard deviation that normalise the input: auto for what the weights expect, as
    far as the file or timm says (0.5 and 0.5 for random weights); or ImageNet's, CLIP's, or half
    for 0.5 and 0.5."""

    drop_path_rate: Annotated[_Number, Field(ge=0, lt=1)] = 0.1
    """Stochastic depth rate."""

    global_pool: str | None = None
    """timm's pooling; null for the model's default."""

    checkpointing: bool = False
    """Recompute the blocks in the backward pass, which takes a fraction of the memory and about a
    third more time."""


class TrainingSettings(_Settings):
    """What is learnt, and how it is optimised."""

    objective: str = "binary_label"
    """What is learnt: binary_label for cancer or not, from the label column; findings for the
    columns listed in targets; masked_autoencoder for predicting dropped patches, without labels."""

    epochs: Annotated[int, Field(ge=1)] = 30
    """Passes over the training images."""

    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 32
    """Images per optimiser step, over all devices; auto for as many as fit."""

    grad_accum_steps: Annotated[int, Field(ge=1)] = 1
    """Forward and backward passes per optimiser step."""

    lr: Annotated[_Number, Field(gt=0)] = 3e-4
    """Peak learning rate of AdamW."""

    weight_decay: Annotated[_Number, Field(ge=0)] = 0.05
    """AdamW's weight decay, applied to matrices but not to biases, norms, tokens or position
    embeddings."""

    warmup_epochs: Annotated[_Number, Field(ge=0)] = 2.0
    """Epochs of linear warm-up before the cosine; may be fractional."""

    layer_decay: Annotated[_Number, Field(gt=0, le=1)] = 1.0
    """Learning rate of each block as a fraction of the next block's; 1 for a single rate."""

    frozen_epochs: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """Number of initial epochs that train only the head; all for a linear probe."""

    clip_norm: Annotated[_Number, Field(ge=0)] = 1.0
    """Maximum gradient norm; 0 for no clipping."""

    ema_decay: Annotated[_Number, Field(ge=0, lt=1)] = 0.0
    """Decay per step of an exponential moving average of the weights, which is then validated and
    kept; 0 for no averaging."""

    targets: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """Columns that findings learns: 0 and 1 (cancer), a number of categories (density:4), or
    categories listed from the lowest (birads:1,2,0); optionally weighted (density:4@0.5). Empty
    cells are ignored. null for other objectives."""

    fusion: Literal["breast", "exam"] | None = None
    """Judge all images of a breast, or of an exam, together with a small transformer over their
    class tokens; every image then gets the score of its breast. With exam, each breast is also
    compared with the other one. null to judge each image by itself."""

    target_column: str | None = None
    """Column of the label table with targets in [0, 1] to train on; null for the label. Validation
    and test are judged by the label."""

    label_smoothing: Annotated[_Number, Field(ge=0, lt=1)] = 0.0
    """Label smoothing: the fraction of each training target that is replaced by 0.5."""

    positive_weight: Annotated[_Number, Field(gt=0)] = 1.0
    """Weight of positive images in the loss; scores are corrected for it."""

    positive_share: Annotated[_Number, Field(gt=0, lt=1)] | None = None
    """Fraction of positives among the images that each epoch draws; scores are corrected for it.
    null to use every image once."""

    balance_within: str | None = None
    """Column of the label table, such as the machine: positive_share then holds within each of its
    values, so that the column says nothing about the label."""

    validate_on: Literal["kept", "all"] = "kept"
    """Patches that validation reads after each epoch: as many as training keeps (the same ones in
    every epoch), or all. The epoch that is kept is always scored on all."""

    choose_epoch: Literal["last", "best"] = "last"
    """Epoch whose weights are the run's model: the last one, or the best by the validation metric
    monitor, which on few validation women is mostly chance."""

    monitor: str | None = None
    """Validation metric that is shown, and tells the best epoch: val_auc_LEVEL,
    val_average_precision_LEVEL (image, breast, exam, patient) or val_loss; null for val_auc_image.
    For findings: val_auc_COLUMN_LEVEL (image, breast), val_kappa_COLUMN or val_loss; null for the
    first column's val_auc_COLUMN_image."""

    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop training after this many epochs without improvement, with choose_epoch best; null to
    train all epochs."""

    checkpoint_minutes: Annotated[_Number, Field(gt=0)] | None = 30.0
    """Minutes between checkpoints within a long epoch; null to save only after each epoch."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the weights, the order of images, the patch draws and the augmentation."""

    @property
    def known_batch_size(self) -> int:
        """``batch_size``, once ``auto`` is resolved."""
        assert self.batch_size != "auto", "auto is resolved before training"
        return self.batch_size


class DeviceSettings(_Settings):
    """The hardware."""

    accelerator: str = "auto"
    """Lightning Fabric's accelerator: auto, cpu or cuda."""

    devices: Annotated[int, Field(ge=1)] = 1
    """Number of devices; torchrun's own number takes precedence."""

    precision: str = "auto"
    """Lightning Fabric's precision, such as bf16-mixed or 32-true; auto uses bf16 where the device
    supports it."""

    residual: Literal["float32", "bfloat16"] = "float32"
    """Type of the tokens passed between blocks when training in bf16-mixed: bfloat16 is faster and
    takes less memory, at about twice the rounding error in the gradient (docs/speed.md)."""

    compile: bool | None = None
    """Compile the blocks; null to compile on a GPU if a C compiler is found."""

    deterministic: bool = False
    """Have a GPU add up in the same order each time, so that two runs, or a resumed one and an
    unbroken one, have the same weights to the bit; slower (docs/speed.md)."""


class StudySettings(_Settings):
    """Facts that a report must state and that no image contains; null is reported as not stated."""

    intended_use: str | None = None
    """Who the model is meant for, at which point of their care, and what it decides."""

    reference_standard: str | None = None
    """How cancer was established, such as by biopsy or from a registry."""

    follow_up: str | None = None
    """How long women without cancer were followed up."""


class RunConfig(_Settings):
    """Everything that determines a run, except where the store and the runs are."""

    data: DataSettings = DataSettings()
    patch_dropout: PatchDropoutSettings = PatchDropoutSettings()
    augment: AugmentSettings = AugmentSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    device: DeviceSettings = DeviceSettings()
    study: StudySettings = StudySettings()

    @model_validator(mode="after")
    def _some_epochs_drop_patches(self) -> Self:
        full = self.patch_dropout.schedule.full_epochs
        if full and full >= self.training.epochs:
            raise _FieldError(
                ("patch_dropout", "keep_rate"),
                f"{self.patch_dropout.keep_rate} keeps every patch in the last "
                f"{counted(full, 'epoch')}, but the run has only {self.training.epochs}; train "
                "longer, or lower the number after the +",
            )
        return self

    @model_validator(mode="after")
    def _images_scored_on_tissue_are_judged_alone(self) -> Self:
        if self.patch_dropout.score_on != ScoredPatches.ALL and self.training.fusion is not None:
            raise _FieldError(
                ("patch_dropout", "score_on"),
                f"{self.patch_dropout.score_on} reads unequal numbers of patches, and "
                f"training.fusion={self.training.fusion} judges images side by side, with equal "
                "ones; leave one of the two out",
            )
        return self

    @model_validator(mode="after")
    def _patience_has_a_best_epoch(self) -> Self:
        if self.training.patience is not None and self.training.choose_epoch == "last":
            raise _FieldError(
                ("training", "patience"),
                f"{self.training.patience} stops training after its best epoch, but the last one "
                "is kept; add training.choose_epoch=best, or leave patience out",
            )
        return self

    @model_validator(mode="after")
    def _balance_has_a_share(self) -> Self:
        if self.training.balance_within is not None and self.training.positive_share is None:
            raise _FieldError(
                ("training", "balance_within"),
                f"{self.training.balance_within} also needs training.positive_share, the share to "
                "keep; set it, such as to 0.3",
            )
        return self


class _FieldError(ValueError):
    """A check of the whole configuration failed because of one field.

    The message begins with the field's value.
    """

    def __init__(self, loc: tuple[str, str], message: str) -> None:
        super().__init__(message)
        self.loc = loc


class Given(NamedTuple):
    """A value and how the user gave it, which is how an error message names it.

    Attributes:
        value: the value.
        origin: what was typed, such as ``--keep`` or ``--set training.lr``.
    """

    value: Any
    origin: str


# What earlier versions did, where a configuration that they recorded lacks the key.
EARLIER_DEFAULTS = {"training.choose_epoch": "best"}


def load_config(
    file: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Build and validate a run's configuration.

    Args:
        file: YAML; keys that are missing keep their defaults.
        overrides: values by dotted path, such as ``{"training.lr": 1e-4}``, which take precedence
            over the file; a `Given` says where its value came from.
        defaults: values by dotted path, used instead of the built-in defaults where neither sets a
            key.

    Raises:
        InputError: an unknown key, a wrong type or a value out of range. The message names the
            flag, the ``--set`` or the file and key that it came from.
    """
    where = str(file) if file is not None else "the configuration"
    values: Any = {} if file is None else _read_yaml(Path(file))
    if not isinstance(values, dict):
        raise InputError(f"{where} is not a mapping of sections ({_keys_of(RunConfig)}).")
    # Before the overrides are applied: they may use the new name where the file has the old one.
    _rename_old_keys(values)
    origins = {}
    for path, default in (defaults or {}).items():
        section, _, name = path.partition(".")
        if isinstance(values.setdefault(section, {}), dict):
            values[section].setdefault(name, default)
    for path, override in (overrides or {}).items():
        given = override if isinstance(override, Given) else Given(override, f"{where}: {path}")
        _set(values, path, given)
        origins[tuple(path.split("."))] = given.origin
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(error, where, origins)) from error


def parse_assignments(assignments: Iterable[str]) -> dict[str, Given]:
    """Read ``key=value`` pairs as `load_config` takes them; values are YAML.

    Raises:
        InputError: no equals sign, or a value that is not YAML.
    """
    parsed = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        path = path.strip()
        if not equals:
            raise InputError(f"--set {assignment} has no '='; write --set training.lr=0.0001")
        if not path:
            raise InputError(f"--set {assignment} names no key; write --set training.lr=0.0001")
        try:
            parsed[path] = Given(yaml.safe_load(text), f"--set {path}")
        except _NOT_YAML as error:
            raise InputError(f"--set {path}: the value is not YAML ({cause_of(error)})") from error
    return parsed


def dump_config(config: RunConfig) -> str:
    """The whole configuration as YAML, for `load_config` to read back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def dump_schema() -> str:
    """The JSON schema of a configuration file, as in ``configs/schema.json``, which editors use."""
    return json.dumps(RunConfig.model_json_schema(), indent=2) + "\n"


def resolve_img_size(
    res: int | str, patch_size: int, largest: tuple[int, int], *, window: int | None = None
) -> tuple[int, int]:
    """The image size that ``res`` asks for.

    Args:
        res: as in `DataSettings`.
        patch_size: P, in pixels.
        largest: (height, width) of the largest native crop, for ``full``.
        window: side of the attention windows, in patches; the image must hold a whole number of
            them.

    Returns:
        img_size, both sides multiples of ``patch_size``, or of the windows' side.

    Raises:
        InputError: an unknown form, an absurd size, or a side that is not such a multiple.
    """
    text = str(res).strip().lower()
    unit = patch_size * (window or 1)
    if text == "full":
        height, width = (-(-side // unit) * unit for side in largest)
        return height, width
    # Few digits: Python refuses to read thousands of them.
    size = re.fullmatch("([0-9]{1,9})(?:x([0-9]{1,9}))?", text)
    if size is None:
        raise InputError(
            f"--res {text[:40]} is not understood; give a height such as 1024, a size such as "
            "1024x832, or full."
        )
    height = int(size[1])
    nearest = max(1, round(height * IMG_ASPECT / unit)) * unit
    width = nearest if size[2] is None else int(size[2])
    if min(height, width) < 1:
        raise InputError(f"--res {res}: an image cannot have 0 pixels; give a size such as 1024.")
    if max(height, width) > _MAX_SIDE:
        raise InputError(
            f"--res {res}: {max(height, width)} pixels is larger than any mammogram; give at most "
            f"{_MAX_SIDE}, or full for the largest native crop."
        )
    if height < unit or height % unit or width < unit or width % unit:
        side = height if height < unit or height % unit else width
        down = max(1, side // unit) * unit
        what = f"the model's patch size of {unit} pixels"
        if window is not None:
            what = (
                f"{unit} pixels, a window of {window} patches, and patches can be dropped from "
                "whole windows only (--keep 1 keeps them all)"
            )
        raise InputError(
            f"--res {res}: {side} is not a multiple of {what}; the nearest are {down} and "
            f"{down + unit}."
        )
    return height, width


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, *_NOT_YAML) as error:
        raise InputError(f"the configuration {file} cannot be read: {cause_of(error)}") from error


def _rename_old_keys(values: dict[Any, Any]) -> None:
    """Accept the names that earlier versions used: their runs must stay readable."""
    training = values.get("training")
    if not isinstance(training, dict) or "grad_accum_steps" in training:
        return
    if "accumulate" in training:
        training["grad_accum_steps"] = training.pop("accumulate")


def _set(values: dict[str, Any], path: str, given: Given) -> None:
    *sections, name = path.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"{given.origin} cannot be set: {section} is not a section.")
    values[name] = given.value


# What each of pydantic's error types requires, as a phrase to follow "it must be"; the braces are
# filled from the error's context.
_BOUNDS = {
    "finite_number": "finite",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
}
_REQUIREMENTS = {
    **_BOUNDS,
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "string_type": "text",
    "literal_error": "{expected}",
    "enum": "{expected}",
}


def _explain(error: ValidationError, where: str, origins: Mapping[tuple[str, ...], str]) -> str:
    """One sentence on the first field that is wrong, naming it as the user did."""
    first, *others = error.errors(include_url=False)
    cause = first.get("ctx", {}).get("error")
    # A union appends its member to the location; sections and fields are two levels deep.
    loc = cause.loc if isinstance(cause, _FieldError) else tuple(map(str, first["loc"][:2]))
    key = ".".join(loc)
    # What was typed may be deeper than the error: --set no_such_section.key=1.
    typed = (origin for path, origin in origins.items() if path[: len(loc)] == loc)
    origin = next(typed, f"{where}: {key}")
    if first["type"] in ("extra_forbidden", "invalid_key"):
        parent, keys = ("the top level", RunConfig) if len(loc) == 1 else (loc[0], _section(loc[0]))
        return f"{origin}: there is no key {loc[-1]}; {parent} has {_keys_of(keys)}."
    if first["type"] == "model_type":
        return f"{origin} is a section with the keys {_keys_of(_section(key))}."
    if cause is not None:
        # Our own checks: their messages begin with the value.
        return f"{origin} {cause}."
    same_field = [first, *(other for other in others if tuple(other["loc"][:2]) == loc)]
    # A bound comes from the union's member that takes this type, so the others do not matter.
    bounds = [item for item in same_field if item["type"] in _BOUNDS]
    wanted = " or ".join(map(_requirement, bounds or same_field))
    if not bounds and _section(loc[0]).model_fields[loc[1]].default is None:
        wanted += " or null"
    return f"{origin} is {_shown(first['input'])}; it must be {wanted}."


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


def _section(name: str) -> type[_Settings]:
    section = RunConfig.model_fields[name].annotation
    assert isinstance(section, type)
    assert issubclass(section, _Settings)
    return section


def _requirement(item: ErrorDetails) -> str:
    form = _REQUIREMENTS.get(item["type"])
    return form.format(**item.get("ctx", {})) if form is not None else item["msg"]


def _shown(value: Any) -> str:
    # Not as a whole: of aliases within aliases, a file of 300 bytes makes gigabytes of text.
    return str(value) if isinstance(value, Path) else _SHORT.repr(value)


def _keys_of(section: type[_Settings]) -> str:
    return ", ".join(section.model_fields)
