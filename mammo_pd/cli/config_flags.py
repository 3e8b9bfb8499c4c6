"""The configuration flags that ``train`` and ``cv`` share."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mammo_pd.cli.options import WholeNumber

if TYPE_CHECKING:
    from cyclopts import Token

    from mammo_pd.config import RunConfig

# The configuration key that each flag sets.
CONFIG_KEYS = {
    "--res": "data.res",
    "--keep": "patch_dropout.keep_rate",
    "--draw": "patch_dropout.draw",
    "--model": "model.name",
    "--weights": "model.weights",
    "--target": "training.targets",
    "--epochs": "training.epochs",
    "--batch-size": "training.batch_size",
    "--lr": "training.lr",
    "--seed": "training.seed",
    "--devices": "device.devices",
    "--split": "data.split",
    "--fold": "data.fold",
}


def _number_or_auto(_: Any, tokens: "tuple[Token, ...]") -> int | str:
    text = tokens[0].value
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text} is neither a number nor auto.") from None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ConfigFlags:
    """Settings of a run; None where the flag was not given.

    Attributes:
        res: Input size: a height in pixels (the width is 4/5 of it), HEIGHTxWIDTH, or full for
            native resolution.
        keep: Fraction of the patches kept. 0.5:0.25 changes it linearly over the epochs, random
            draws it for each step; append +N to keep every patch in the last N epochs.
        draw: Which patches to keep: any (uniform), those with breast first (tissue), or evenly
            spread ones (grid).
        model: timm model name.
        weights: File of initial weights (timm, DINO, MAE, DeiT, CLIP). With a network also: timm
            for the model's own, a timm name, or hf-hub:OWNER/NAME.
        target: A column to learn instead of the label; several are learnt at once. COLUMN holds 0
            and 1, COLUMN:4 four categories, COLUMN:1,2,0 these categories from the lowest;
            COLUMN@0.5 has half the weight. Repeatable.
        epochs: Passes over the training images.
        batch_size: Images per optimiser step over all devices; auto for as many as fit.
        lr: Peak learning rate.
        devices: Number of devices.
        split: Name of the split.
        config: YAML file of settings, as in configs/.
        assignments: Set any configuration key, such as training.weight_decay=0.1. Repeatable.
    """

    res: Annotated[str | None, Parameter(metavar="RES", show_default="1024")] = None
    keep: Annotated[str | None, Parameter(metavar="RATE", show_default="0.25")] = None
    draw: Annotated[str | None, Parameter(metavar="DRAW", show_default="uniform")] = None
    model: Annotated[
        str | None, Parameter(metavar="NAME", show_default="vit_small_patch16_224")
    ] = None
    weights: Annotated[str | None, Parameter(metavar="FILE", show_default="random")] = None
    target: Annotated[list[str] | None, Parameter(metavar="COLUMN", show_default="label")] = None
    epochs: Annotated[WholeNumber | None, Parameter(metavar="N", show_default="30")] = None
    batch_size: Annotated[
        int | Literal["auto"] | None,
        Parameter(metavar="N", show_default="32", show_choices=False, converter=_number_or_auto),
    ] = None
    lr: Annotated[float | None, Parameter(metavar="RATE", show_default="0.0003")] = None
    devices: Annotated[WholeNumber | None, Parameter(metavar="N", show_default="1")] = None
    split: Annotated[str | None, Parameter(metavar="NAME", show_default="default")] = None
    config: Annotated[Path | None, Parameter(metavar="FILE")] = None
    assignments: Annotated[list[str] | None, Parameter(name="--set", metavar="KEY=VALUE")] = None

    def load(
        self,
        further: Mapping[str, object] | None = None,
        defaults: Mapping[str, object] | None = None,
    ) -> "RunConfig":
        """The configuration: defaults, then ``--config``, then ``--set``, then the other flags.

        Args:
            further: flags of the command's own, by their names in `CONFIG_KEYS`.
            defaults: the command's own, by the keys of the configuration.

        Raises:
            InputError: a value is refused; the message names the flag that it came from.
        """
        from mammo_pd.config import Given, load_config, parse_assignments

        overrides = parse_assignments(self.assignments or [])
        if self.target:
            overrides.setdefault("training.objective", Given("findings", "--target"))
        given = {**self._flags(), **(further or {})}
        for flag, value in given.items():
            if value is not None:
                overrides[CONFIG_KEYS[flag]] = Given(value, flag)
        return load_config(self.config, overrides, defaults)

    @property
    def any_given(self) -> bool:
        """Whether one of these flags was typed."""
        others = (self.config, self.assignments)
        return any(value is not None for value in (*self._flags().values(), *others))

    def _flags(self) -> dict[str, object]:
        own = {f"--{name.replace('_', '-')}": value for name, value in vars(self).items()}
        return {flag: own[flag] for flag in CONFIG_KEYS if flag in own}


# The default of a command's parameter.
NONE_GIVEN = ConfigFlags()
