"""``mammo-pd train``: train on a store, into a run folder."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mammo_pd.cli.config_flags import NONE_GIVEN, ConfigFlags
from mammo_pd.cli.early_checks import check_output_folder, check_training
from mammo_pd.cli.options import (
    DEFAULT_RUNS,
    FoldOption,
    NamedStoreOption,
    ResumeOption,
    RunsOption,
    SeedOption,
    default_runs,
    default_store,
    find_run,
    is_first_process,
    unless_default,
)
from mammo_pd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mammo_pd.config import RunConfig
    from mammo_pd.training.runs import RunFolder
    from mammo_pd.training.setup import RunSetup


def train(
    *,
    store: NamedStoreOption = None,
    runs: RunsOption = DEFAULT_RUNS,
    settings: ConfigFlags = NONE_GIVEN,
    seed: SeedOption = None,
    fold: FoldOption = None,
    resume: ResumeOption = None,
) -> None:
    """Train a vision transformer with PatchDropout.

    Later settings win: defaults, --config, --set, then the other options.

    For example:

        mammo-pd train --res 1024 --keep 0.25
        mammo-pd train --res full --keep 0.5:0.25+2 --batch-size auto --devices 2
        mammo-pd train --config configs/res1024_keep25.yaml --epochs 50
        mammo-pd train --resume

    Args:
        store: The store that preprocess made. With --resume, by default the run's own.
        runs: The folder of runs.
        settings: See `ConfigFlags`.
        seed: Seed of the weights, the order of images, the patch draws and the augmentation.
        fold: Fold to test on, if the split has folds.
        resume: Continue a run from its last checkpoint, by default the latest run.
    """
    run = run_to_resume("train", runs, resume, settings, (seed, fold))
    config = settings.load({"--seed": seed, "--fold": fold})
    folder = train_or_resume("train", store, runs, resume, config, run)
    if folder is None:
        return  # only the first of several processes reports
    from mammo_pd.tracking import page_of_runs
    from mammo_pd.training.objectives import build_objective
    from mammo_pd.training.runs import RunFolder

    done = RunFolder.open(folder)
    if run is None or run.info.finished is None:
        print(f"\nwrote {folder}: {done.chosen.name}, last.safetensors, history.csv, config.yaml")
    print(f"metrics: {page_of_runs(folder.parent)}")
    if build_objective(done.config.training).is_pretext:
        print(f"next: mammo-pd train --weights {shlex.quote(str(done.chosen))}")
    else:
        print(f"next: mammo-pd evaluate {shlex.quote(str(folder))}")


def run_to_resume(
    command: str,
    runs: Path,
    resume: list[Path] | None,
    settings: ConfigFlags,
    others: tuple[object, ...],
) -> "RunFolder | None":
    """The run that ``--resume`` names; None if it was not given.

    Args:
        command: that was typed.
        runs: the folder of runs.
        resume: what was given with ``--resume``.
        settings: that were given.
        others: settings beside these; None where not given.

    Raises:
        InputError: settings beside ``--resume``, or no such run.
    """
    if resume is None:
        return None
    if settings.any_given or any(value is not None for value in others):
        raise InputError(
            "--resume uses the run's own configuration; drop the other settings "
            f"({resuming(command, runs, None)}), or start a new run without --resume."
        )
    return find_run(runs, resume[0] if resume else None)


def resuming(command: str, runs: Path, resume: list[Path] | None) -> str:
    """The command that resumes a run."""
    named = f" {shlex.quote(str(resume[0]))}" if resume else ""
    return f"mammo-pd {command}{unless_default('--runs', runs, default_runs())} --resume{named}"


def train_or_resume(
    command: str,
    store: Path | None,
    runs: Path,
    resume: list[Path] | None,
    config: "RunConfig",
    stopped: "RunFolder | None",
) -> Path | None:
    """Train a new run or resume a stopped one; returns its folder, in the first process only.

    Args:
        command: that was typed, and is typed again with ``--resume`` after an interrupt.
        store: that was named; None for the run's own, or the default.
        runs: the folder of runs.
        resume: what was given with ``--resume``.
        config: of a new run.
        stopped: the run to continue; None for a new one.

    Raises:
        InputError: something given cannot be used.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; its text is the command to run next, if it
            differs from the one typed.
    """
    if stopped is not None and stopped.info.finished is not None:
        return _leave_finished(stopped)
    place = store or (default_store() if stopped is None else Path(stopped.info.store))
    check_output_folder("--runs", runs)
    check_training(place, config if stopped is None else stopped.config, stopped)
    from mammo_pd.training.setup import RunSetup
    from mammo_pd.training.train import reopen_run, start_run

    begun = stopped is not None

    def prepare() -> "tuple[RunSetup, RunFolder]":
        nonlocal begun
        if stopped is not None:
            return reopen_run(stopped.path, store=store)
        setup = RunSetup.build(place, config)
        run = start_run(runs, setup)
        begun = True
        return setup, run

    try:
        return fit_with_advice(prepare)
    except KeyboardInterrupt as interrupt:
        # If no run was started yet, --resume would pick up an earlier one.
        if not begun:
            raise
        raise type(interrupt)(resuming(command, runs, resume)) from None


def _leave_finished(run: "RunFolder") -> Path | None:
    """Say that a run has finished training, and send MLflow what it missed of it."""
    if not is_first_process():
        return None
    print(
        f"the run {run.info.run_id} has finished: there is nothing left to train (for more epochs, "
        "start a new run with --epochs)"
    )
    from mammo_pd.cli.sync import pass_on_to_mlflow

    if (problem := pass_on_to_mlflow(run)) is not None:
        print(f"warning: MLflow cannot be reached ({problem}); later: mammo-pd sync")
    return run.path


def fit_with_advice(prepare: "Callable[[], tuple[RunSetup, RunFolder]]") -> Path | None:
    """Train, with advice about memory, and about the time that a CPU takes.

    Args:
        prepare: makes the set-up and the run, or opens a stopped one.

    Returns:
        The run's folder; None in every process but the first.

    Raises:
        InputError: something given cannot be used, or does not fit in memory.
    """
    from mammo_pd.perf.cpu_advice import cpu_advice
    from mammo_pd.perf.memory_advice import memory_advice, memory_warning
    from mammo_pd.training.loop import fit

    with memory_advice():
        setup, run = prepare()
        warning = memory_warning(setup)
        for line in (warning, cpu_advice(setup)):
            if line is not None:
                setup.say(line)
        fit(setup, run)
    return run.path if setup.fabric.is_global_zero else None
