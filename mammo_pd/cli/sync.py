"""``mammo-pd sync``: what MLflow has missed of a run."""

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mammo_pd.cli.options import DEFAULT_RUNS, RunsOption, find_run
from mammo_pd.errors import InputError


def sync(
    run: Annotated[Path | None, Parameter(name="RUN")] = None,
    /,
    *,
    runs: RunsOption = DEFAULT_RUNS,
) -> None:
    """Tell MLflow what it has missed of a run: after it was away, or from offline to a server.

    For example:

        mammo-pd sync
        MLFLOW_TRACKING_URI=http://SERVER:5000 mammo-pd sync runs/ID

    Args:
        run: The run; by default the latest.
        runs: The folder of runs.
    """
    from mammo_pd.locks import locked
    from mammo_pd.training.journal import Journal

    found = find_run(runs, run)
    said: list[str] = []
    with locked(found.lock):
        journal = Journal(found, said.append)
        if journal.count == 0:
            raise InputError(
                f"the run {found.info.run_id} has kept nothing to tell MLflow: {found.journal} is "
                "missing or empty; restore it from a copy."
            )
        synced = journal.sync()
    if not synced:
        reason = said[0].partition("(")[2].rpartition(");")[0] if said else "its answer was lost"
        raise InputError(
            f"MLflow cannot be reached ({reason}); start the server, or unset MLFLOW_TRACKING_URI "
            "for the database in the folder of runs."
        )
    print(f"MLflow has all {journal.count} messages of the run {found.info.run_id}")
    print(f"next: mammo-pd evaluate {shlex.quote(str(found.path))}")
