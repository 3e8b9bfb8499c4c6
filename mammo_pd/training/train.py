"""Train a run, or resume one that was stopped."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mammo_pd.config import RunConfig
from mammo_pd.training.loop import fit
from mammo_pd.training.runs import RunFolder, new_run_id
from mammo_pd.training.setup import RunSetup


def train(
    store: Path | str, runs: Path | str, config: RunConfig, *, say: Callable[[str], None] = print
) -> RunFolder | None:
    """Train, and write a run folder: configuration, checkpoints, history, MLflow record.

    Args:
        store: made by preprocess.
        runs: the folder of runs.
        config: everything that decides the run.
        say: takes one line for people.

    Returns:
        The run; None in every process but the first.

    Raises:
        InputError: something given cannot be used, or the loss is no longer finite.
    """
    setup = RunSetup.build(store, config, say=say)
    run = start_run(runs, setup)
    fit(setup, run)
    return RunFolder.open(run.path) if setup.fabric.is_global_zero else None


def resume(
    folder: Path | str, *, store: Path | str | None = None, say: Callable[[str], None] = print
) -> RunFolder | None:
    """Resume a run from its last checkpoint, with the same result as an uninterrupted run.

    Args:
        folder: of the run.
        store: where the store lies now; None for where the run was started from.
        say: takes one line for people.

    Returns:
        The run; None in every process but the first.

    Raises:
        InputError: not a run, or a store, split or labels other than it was started on.
    """
    setup, run = reopen_run(folder, store=store, say=say)
    fit(setup, run)
    return RunFolder.open(run.path) if setup.fabric.is_global_zero else None


def start_run(
    runs: Path | str,
    setup: RunSetup,
    *,
    run_id: str | None = None,
    mlflow_parent_run_id: str | None = None,
) -> RunFolder:
    """Create the folder of a new run, the same one in every process.

    Args:
        runs: the folder of runs.
        setup: of the run.
        run_id: the folder's name; None for one derived from the time.
        mlflow_parent_run_id: of the record in MLflow that its own is nested under.
    """
    run = setup.new_run(runs, run_id or str(setup.fabric.broadcast(new_run_id())))
    run = replace(run, info=replace(run.info, mlflow_parent_run_id=mlflow_parent_run_id))
    if setup.fabric.is_global_zero:
        run = run.create()
    return run


def reopen_run(
    folder: Path | str,
    *,
    store: Path | str | None = None,
    say: Callable[[str], None] = print,
) -> tuple[RunSetup, RunFolder]:
    """Open a run that was stopped, with a set-up that `fit` can continue; see `resume`.

    Args:
        folder: of the run.
        store: where the store lies now; None for where the run was started from.
        say: takes one line for people.

    Raises:
        InputError: as `resume`.
    """
    run = RunFolder.open(Path(folder))
    setup = RunSetup.build(
        store or Path(run.info.store),
        run.config,
        stopped=run.info if run.has_checkpoint else None,
        say=say,
    )
    run.refuse_resuming_on(setup.cohort, setup.labels_hash, setup.targets_hash)
    return setup, run
