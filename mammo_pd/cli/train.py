"""``mammo-pd train``: a store to a run folder."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mammo_pd.cli.options import (
    DEFAULT_RUNS,
    RunsOption,
    default_runs,
    default_store,
    find_run,
    unless_default,
)
from mammo_pd.errors import InputError
from mammo_pd.terms import Draw

if TYPE_CHECKING:
    from cyclopts import Token

    from mammo_pd.config import RunConfig
    from mammo_pd.training.runs import RunFolder

# The flags that stand for a key of the configuration.
CONFIG_KEYS = {
    "--res": "data.res",
    "--keep": "patch_dropout.keep_rate",
    "--draw": "patch_dropout.draw",
    "--model": "model.name",
    "--weights": "model.weights",
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


def train(
    *,
    store: Annotated[
        Path | None, Parameter(metavar="STORE", show_default="$MAMMO_PD_STORE, else store")
    ] = None,
    runs: RunsOption = DEFAULT_RUNS,
    res: Annotated[str | None, Parameter(metavar="RES", show_default="1024")] = None,
    keep: Annotated[str | None, Parameter(metavar="RATE", show_default="0.25")] = None,
    draw: Annotated[Draw | None, Parameter(show_default="uniform")] = None,
    model: Annotated[
        str | None, Parameter(metavar="NAME", show_default="vit_small_patch16_224")
    ] = None,
    weights: Annotated[str | None, Parameter(metavar="FILE", show_default="random")] = None,
    epochs: Annotated[int | None, Parameter(metavar="N", show_default="30")] = None,
    batch_size: Annotated[
        int | Literal["auto"] | None,
        Parameter(metavar="N", show_default="32", show_choices=False, converter=_number_or_auto),
    ] = None,
    lr: Annotated[float | None, Parameter(metavar="RATE", show_default="0.0003")] = None,
    seed: Annotated[int | None, Parameter(metavar="N", show_default="0")] = None,
    devices: Annotated[int | None, Parameter(metavar="N", show_default="1")] = None,
    split: Annotated[str | None, Parameter(metavar="NAME", show_default="default")] = None,
    fold: Annotated[int | None, Parameter(metavar="I")] = None,
    config: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    assignments: Annotated[list[str] | None, Parameter(name="--set", metavar="KEY=VALUE")] = None,
    resume: Annotated[
        list[Path] | None, Parameter(metavar="[RUN]", consume_multiple=(0, 1))
    ] = None,
) -> None:
    """Train a vision transformer with PatchDropout.

    Settings come from their defaults, then --config, then --set, then the other flags.

    For example:

        mammo-pd train --res 1024 --keep 0.25
        mammo-pd train --res full --keep 0.5:0.25+2 --batch-size auto --devices 2
        mammo-pd train --config configs/res1024_keep25.yaml --set training.weight_decay=0.1
        mammo-pd train --resume

    Args:
        store: The store that preprocess made. With --resume, by default the run's own.
        runs: The folder of runs.
        res: Input size: a height in pixels (the width is 4/5 of it), HEIGHTxWIDTH, or full for
            native resolution.
        keep: Fraction of the patches kept. 0.5:0.25 is linear over the epochs, random is drawn for
            each step; +N after it keeps every patch in the last N epochs.
        draw: Which patches: any (uniform), those with breast first (tissue), evenly spread (grid).
        model: timm model name.
        weights: Local file of initial weights, or timm for those of its hub.
        epochs: Passes over the training images.
        batch_size: Images per step over all devices; auto for as many as fit.
        lr: Peak learning rate.
        seed: Seed of the weights, the order of images, the patch draws and the augmentation.
        devices: Number of devices.
        split: A split of the store.
        fold: Fold to test on, of a split with folds.
        config: YAML file of settings, as in configs/.
        assignments: Set any configuration key, such as training.weight_decay=0.1. Repeatable.
        resume: Continue a run from its last checkpoint, by default the latest run.
    """
    flags = {
        "--res": res,
        "--keep": keep,
        "--draw": draw,
        "--model": model,
        "--weights": weights,
        "--epochs": epochs,
        "--batch-size": batch_size,
        "--lr": lr,
        "--seed": seed,
        "--devices": devices,
        "--split": split,
        "--fold": fold,
    }
    given = {flag: value for flag, value in flags.items() if value is not None}
    again = f"mammo-pd train{unless_default('--runs', runs, default_runs())} --resume"
    run = None
    if resume is not None:
        if given or config or assignments:
            raise InputError(
                "--resume continues with the run's own configuration; drop the other settings "
                f"({again}), or train anew without --resume."
            )
        run = find_run(runs, resume[0] if resume else None)
        again += f" {shlex.quote(str(resume[0]))}" if resume else ""
    settings = _configure(config, assignments or [], given)
    try:
        folder = _train(store, runs, settings, run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(again) from None
    if folder is None:
        return  # only the first of several processes reports
    print(f"\nwrote {folder}: best.safetensors, last.safetensors, history.csv, config.yaml")
    print(f"metrics: mlflow ui --backend-store-uri sqlite:///{folder.parent / 'mlflow.db'}")
    print(f"next: mammo-pd evaluate {folder}")


def _configure(
    file: Path | None, assignments: list[str], given: Mapping[str, object]
) -> "RunConfig":
    from mammo_pd.config import Given, load_config, parse_assignments

    overrides = parse_assignments(assignments)
    overrides |= {CONFIG_KEYS[flag]: Given(value, flag) for flag, value in given.items()}
    return load_config(file, overrides)


def _train(
    store: Path | None, runs: Path, config: "RunConfig", stopped: "RunFolder | None"
) -> Path | None:
    """Train, or continue a stopped run; the run's folder, in the first of several processes."""
    from mammo_pd.perf.memory_advice import memory_advice, memory_warning
    from mammo_pd.training.loop import fit
    from mammo_pd.training.setup import RunSetup
    from mammo_pd.training.train import reopen_run, start_run

    with memory_advice():
        if stopped is not None:
            setup, run = reopen_run(stopped.path, store=store)
        else:
            setup = RunSetup.build(store or default_store(), config)
            run = start_run(runs, setup)
        warning = memory_warning(setup)
        if warning is not None:
            setup.say(warning)
        fit(setup, run)
    return run.path if setup.fabric.is_global_zero else None
