"""The missing runs of a cross-validation: trained a few at a time, each by a process of its own."""

import contextlib
import os
from collections.abc import Callable, Sequence

from tqdm import tqdm

from mammo_pd.cores import available_cores
from mammo_pd.errors import InputError
from mammo_pd.tracking import TRACKING_VARIABLE, tracking_uri
from mammo_pd.training.cross_validation import CrossValidation
from mammo_pd.training.model_card import CheckpointHeader
from mammo_pd.training.run_processes import RunProcess, last_line, run_processes
from mammo_pd.wording import counted


def train_folds(
    validation: CrossValidation,
    seeds: Sequence[int],
    command: Callable[[int, int], tuple[str, ...]],
    *,
    at_once: int,
    say: Callable[[str], None] = tqdm.write,
) -> None:
    """Train the runs that are not finished, all folds of one seed after the other.

    A run that fails after its first checkpoint does not keep the others from being trained; one
    that fails before is a mistake that they share, so no further one is started.

    Args:
        validation: whose runs.
        seeds: of the runs.
        command: of the process that trains a fold with a seed.
        at_once: how many processes.
        say: takes one line for people.

    Raises:
        InputError: a run failed; the message quotes the end of its log.
    """
    of = {
        validation.name_of(fold, seed): (fold, seed)
        for seed in seeds
        for fold in range(validation.info.folds)
    }
    finished = [name for name, run in of.items() if validation.is_finished(*run)]
    if finished:
        say(f"already finished: {len(finished)} of {counted(len(of), 'run')}")
    waiting = [
        RunProcess(name, command(*run), validation.log_path(*run))
        for name, run in of.items()
        if name not in finished
    ]
    epochs = validation.config.training.epochs
    done = dict.fromkeys(of, 0) | dict.fromkeys(finished, epochs)
    failures: list[str] = []
    bar = tqdm(
        total=len(of) * epochs,
        initial=sum(done.values()),
        desc=f"{len(finished)} of {counted(len(of), 'run')}",
        unit="epoch",
        leave=False,
        # None shows it on a terminal only.
        disable=None,
    )

    def tick(running: Sequence[RunProcess]) -> None:
        for run in running:
            done[run.name] = epochs_done(validation, *of[run.name])
        bar.n = sum(done.values())
        bar.set_postfix_str(", ".join(f"{run.name} {done[run.name]}/{epochs}" for run in running))

    def ended(run: RunProcess, status: int) -> bool:
        begun = epochs_done(validation, *of[run.name]) > 0
        if status:
            cause = last_line(run.log).removeprefix("mammo-pd: error: ").rstrip(".")
            failures.append(f"{run.name} failed: {cause or f'status {status}'} (log: {run.log})")
            say(failures[-1])
            return begun
        # Early stopping ends a run before its last epoch.
        done[run.name] = epochs
        finished.append(run.name)
        bar.set_description(f"{len(finished)} of {counted(len(of), 'run')}")
        say(f"{run.name} is trained")
        return True

    with bar:
        run_processes(
            waiting,
            at_once=at_once,
            environment=_environment(validation, at_once),
            ended=ended,
            tick=tick,
        )
    if failures:
        raise InputError(
            f"{len(of) - len(finished)} of {counted(len(of), 'run')} not trained; {failures[0]}; "
            "fix that and run the same command to continue."
        )


def epochs_done(validation: CrossValidation, fold: int, seed: int) -> int:
    """How many epochs a run's last checkpoint holds."""
    with contextlib.suppress(InputError):
        header = CheckpointHeader.read(validation.run_path(fold, seed) / "last.safetensors")
        return int(header.metrics["epoch"])
    return 0


def _environment(validation: CrossValidation, at_once: int) -> dict[str, str]:
    """Of the processes: where their records in MLflow are nested, and their share of the cores."""
    environment = {
        **os.environ,
        TRACKING_VARIABLE: tracking_uri(validation.path.parent),
        "PYTHONUNBUFFERED": "1",
    }
    if at_once > 1:
        share = max(1, available_cores() // at_once)
        # The user's own, or the quota's, was meant for one run.
        given = environment.get("OMP_NUM_THREADS", "")
        # It may also be a list, one number for each level of nesting.
        if not given or (given.isdecimal() and int(given) > share):
            environment["OMP_NUM_THREADS"] = str(share)
    return environment
