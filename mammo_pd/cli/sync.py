"""``mammo-pd sync``: send MLflow what it missed of a run."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from mammo_pd.cli.options import DEFAULT_RUNS, RunsOption, find_run
from mammo_pd.errors import InputError

if TYPE_CHECKING:
    from mammo_pd.training.runs import RunFolder


def sync(
    run: Annotated[Path | None, Parameter(name="RUN")] = None,
    /,
    *,
    runs: RunsOption = DEFAULT_RUNS,
) -> None:
    """Send MLflow what it missed of a run, as after an outage or offline training.

    For example:

        mammo-pd sync
        MLFLOW_TRACKING_URI=http://SERVER:5000 mammo-pd sync runs/ID

    Args:
        run: The run; by default the latest.
        runs: The folder of runs.
    """
    found = find_run(runs, run)
    problem = pass_on_to_mlflow(found)
    if problem is not None:
        raise InputError(
            f"MLflow cannot be reached ({problem}); start the server, or unset MLFLOW_TRACKING_URI "
            "for the database in the folder of runs."
        )
    print(f"MLflow has everything of the run {found.info.run_id}")
    print(f"next: mammo-pd evaluate {shlex.quote(str(found.path))}")


def pass_on_to_mlflow(run: "RunFolder") -> str | None:
    """Send MLflow what it missed of a run; returns why that failed, or None."""
    from mammo_pd.locks import locked
    from mammo_pd.training.journal import Journal

    said: list[str] = []
    with locked(run.lock):
        journal = Journal(run, said.append)
        if journal.count == 0:
            raise InputError(
                f"the run {run.info.run_id} has nothing to send to MLflow: {run.journal} is "
                "missing or empty; restore it from a copy."
            )
        if journal.sync():
            return None
    return said[0].partition("(")[2].rpartition(");")[0] if said else "its answer was lost"
