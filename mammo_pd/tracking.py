"""The only module that imports MLflow, which uses a local SQLite database by default."""

import contextlib
import fcntl
import getpass
import json
import logging
import os
import re
import shlex
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote

from mammo_pd.errors import InputError, cause_of
from mammo_pd.wording import counted

EXPERIMENT = "mammo-pd"
_DATABASE = "mlflow.db"
# MLflow's own variable, which names a server.
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
# MLflow's tag for the purpose of an experiment.
_KIND = ("mlflow.experimentKind", "custom_model_development")


@dataclass(frozen=True)
class TrackedDataset:
    """Images that a run used, as MLflow lists them with the run.

    Attributes:
        name: of the split's part.
        digest: hash of what determines those images; MLflow keeps 36 characters.
        context: what they were used for, such as ``training``.
        source: where they come from, without a path.
        profile: counts.
    """

    name: str
    digest: str
    context: str
    source: dict[str, Any]
    profile: dict[str, Any]


class Tracker(Protocol):
    """Receives the metrics of a run."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Receive the metrics of one step or epoch."""


class MlflowRun:
    """One MLflow run; as a context manager it is closed as finished, failed or killed.

    Args:
        runs: the folder of runs; ``mlflow.db`` and ``mlartifacts`` go into it, unless the
            environment variable ``MLFLOW_TRACKING_URI`` names a server.
        name: of the run.
        mlflow_run_id: a run to continue.
        parent_run_id: MLflow's ID of the run that a new one is nested under, such as a
            cross-validation's; a continued run keeps its own.
    """

    def __init__(
        self,
        runs: Path,
        name: str,
        mlflow_run_id: str | None = None,
        *,
        parent_run_id: str | None = None,
    ) -> None:
        _set_defaults()
        _quieten()
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        runs.mkdir(parents=True, exist_ok=True)
        local = _local_uri(runs)
        self.uri = tracking_uri(runs)
        if self.uri == local:
            _make_database(runs)
        self._client = MlflowClient(self.uri)
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            experiment_id = experiment.experiment_id
            # Earlier versions set no kind; one chosen by the user stays.
            if _KIND[0] not in experiment.tags:
                self._client.set_experiment_tag(experiment_id, *_KIND)
        else:
            artifacts = (runs / "mlartifacts").resolve().as_uri() if self.uri == local else None
            experiment_id = self._client.create_experiment(
                EXPERIMENT, artifact_location=artifacts, tags=dict([_KIND])
            )
        self.run_id = mlflow_run_id or ""
        if mlflow_run_id is not None:
            try:
                self._client.update_run(mlflow_run_id, status="RUNNING")
            except MlflowException:
                # The MLflow record is gone, but the run itself is not.
                self.run_id = ""
        if not self.run_id:
            tags = _origin()
            if parent_run_id is not None:
                tags["mlflow.parentRunId"] = parent_run_id
            made = self._client.create_run(experiment_id, run_name=name, tags=tags)
            self.run_id = made.info.run_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        killed = kind is not None and issubclass(kind, KeyboardInterrupt)
        status = "FINISHED" if kind is None else "KILLED" if killed else "FAILED"
        self._client.set_terminated(self.run_id, status)

    def describe(self, parameters: dict[str, Any], tags: dict[str, str]) -> None:
        """Log the run's settings; nested parameters get dotted names.

        Raises:
            InputError: a parameter differs from what was logged when the run began.
        """
        from mlflow.entities import Param, RunTag
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_batch(
                self.run_id,
                params=[Param(name, str(value)) for name, value in _flatten(parameters)],
                tags=[RunTag(name, value) for name, value in tags.items()],
            )
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise InputError(
                "the run's settings differ from those that it started with (MLflow: "
                f"{str(error).splitlines()[0][:300]}); restore its config.yaml, or start a new run "
                "without --resume."
            ) from error

    def log(self, metrics: dict[str, float], step: int, *, milliseconds: int | None = None) -> None:
        """Log metrics of one step or epoch, with the current time or one in ms since 1970."""
        from mlflow.entities import Metric

        at = milliseconds or int(time.time() * 1000)
        self._client.log_batch(
            self.run_id, metrics=[Metric(name, value, at, step) for name, value in metrics.items()]
        )

    def keep(self, name: str, text: str) -> None:
        """Store a text as an artifact of the run."""
        self._client.log_text(self.run_id, text, name)

    def use(self, datasets: Sequence[TrackedDataset]) -> None:
        """List data sets as the run's inputs."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        self._client.log_inputs(
            self.run_id,
            [
                DatasetInput(
                    Dataset(
                        name=dataset.name,
                        digest=dataset.digest[:36],
                        source_type="mammo-pd store",
                        source=json.dumps(dataset.source),
                        profile=json.dumps(dataset.profile),
                    ),
                    [InputTag("mlflow.data.context", dataset.context)],
                )
                for dataset in datasets
            ],
        )

    @contextmanager
    def watching_the_machine(self) -> Iterator[None]:
        """Log the use of processor, memory, disk, network and GPUs within the block."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logger = logging.getLogger("mlflow.system_metrics")
        logger.setLevel(logging.ERROR)
        monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self.uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def keep_model(self, checkpoint: Path, *, loader: str, outputs: Sequence[str]) -> None:
        """Log a checkpoint as a model that ``mlflow.pyfunc.load_model`` loads.

        Args:
            checkpoint: one self-describing file.
            loader: module whose ``_load_pyfunc`` takes that file.
            outputs: names of the scores.
        """
        import numpy as np
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model, ModelSignature
        from mlflow.pyfunc import save_model
        from mlflow.types.schema import Schema, TensorSpec

        # Images of any size, and their scores; unnamed, since there is one array of each.
        signature = ModelSignature(
            Schema([TensorSpec(np.dtype(np.uint16), (-1, -1, -1))]),
            Schema([TensorSpec(np.dtype(np.float64), (-1, len(outputs)))]),
        )
        run = self._client.get_run(self.run_id)
        model = self._client.create_logged_model(
            run.info.experiment_id, name="model", source_run_id=self.run_id
        )
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # MLflow asks for an example input, which would be somebody's mammogram.
            warnings.simplefilter("ignore")
            path = Path(folder) / "model"
            save_model(
                path,
                loader_module=loader,
                data_path=str(checkpoint),
                mlflow_model=Model(model_id=model.model_id, run_id=self.run_id),
                signature=signature,
                pip_requirements=["mammo-pd"],
                metadata={"outputs": list(outputs)},
            )
            self._client.log_model_artifacts(model.model_id, str(path))
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])


class NoTracking:
    """Tracks nothing, for every process but the first."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log nothing."""


def tracking_uri(runs: Path) -> str:
    """Where a folder's runs are recorded: the user's server, or else a file in the folder."""
    return os.environ.get(TRACKING_VARIABLE, _local_uri(runs))


def try_store(runs: Path) -> str:
    """Check that a folder's runs can be recorded: query the server, or open and read the database.

    If there is neither, a database is created in a temporary folder and a metric logged to it.

    Returns:
        What was found, in a few words.

    Raises:
        Exception: whatever MLflow or its database raises.
    """
    _set_defaults()
    _quieten()
    from mlflow import MlflowClient

    uri = tracking_uri(runs)
    if uri != _local_uri(runs) or (runs / _DATABASE).is_file():
        count = len(MlflowClient(uri).search_experiments(max_results=100))
        where = "the server" if uri != _local_uri(runs) else str(runs / _DATABASE)
        return f"{where} answers, with {counted(count, 'experiment')}"
    with tempfile.TemporaryDirectory() as folder:
        client = MlflowClient(_sqlite_uri(Path(folder) / _DATABASE))
        run_id = client.create_run(client.create_experiment(EXPERIMENT)).info.run_id
        client.log_metric(run_id, "one", 1.0)
        assert client.get_run(run_id).data.metrics == {"one": 1.0}
    return "a new database accepts runs"


def keep_report(runs: Path, mlflow_run_id: str, report: Path, folder: str = "report") -> str | None:
    """Store a report's summary with its run.

    The page itself holds images and hashed patients, so it never leaves this machine: a server only
    gets figures and metrics.

    Args:
        runs: the folder of runs.
        mlflow_run_id: of the run's record.
        report: folder of the report.
        folder: of the artifacts.

    Returns:
        Why it could not be kept, in a sentence; None if it was.
    """
    _quieten()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(runs)
    files = [report / "metrics.json", *sorted(report.glob("roc*.png"))]
    if uri == _local_uri(runs):
        if not (runs / _DATABASE).is_file():
            # A run of a cross-validation; its report is stored with the whole.
            return None
        files.append(report / "index.html")
    try:
        client = MlflowClient(uri)
        for file in files:
            client.log_artifact(mlflow_run_id, str(file), folder)
    except (MlflowException, OSError) as error:
        return f"the report is not in MLflow ({reason_of(error)})"
    return None


def keep_page(runs: Path, mlflow_run_id: str, page: Path) -> str | None:
    """Store a page that holds images with its run, on this machine only; a server never gets it.

    Args:
        runs: the folder of runs.
        mlflow_run_id: of the run's record.
        page: a file.

    Returns:
        Why it could not be stored, in a sentence; None if it was, or should not be.
    """
    _quieten()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(runs)
    if uri != _local_uri(runs) or not (runs / _DATABASE).is_file():
        return None
    try:
        MlflowClient(uri).log_artifact(mlflow_run_id, str(page))
    except (MlflowException, OSError) as error:
        return f"{page.name} is not in MLflow ({reason_of(error)})"
    return None


def reason_of(error: Exception) -> str:
    """What failed in MLflow, in one line; for its database, the database's own message."""
    found = re.search(r"\(sqlite3\.\w+\) (.+)", str(error))
    return _without_credentials(found[1][:200] if found else cause_of(error))


def _without_credentials(text: str) -> str:
    """A text whose URIs name no user and no password: what is printed goes to logs."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)


def patience_with_server() -> float:
    """Seconds that MLflow waits for an unreachable server at each call, by the user's settings."""
    _set_defaults()
    waits = float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
    return waits * (1 + int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]))


def _set_defaults() -> None:
    """Set what MLflow reads from the environment, unless the user has."""
    # MLflow sends telemetry over the network unless told not to.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # By default it retries an unreachable server for many minutes while the GPU waits.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def _quieten() -> None:
    """Silence MLflow's logging about its database: failures there are raised as well."""
    # The first call creates the database by a hundred migrations, each of them logged.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It logs a traceback, with the data, for each call on a database that is locked or gone.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def page_of_runs(runs: Path) -> str:
    """How to view a folder's runs in MLflow's web page."""
    uri = tracking_uri(runs)
    if uri != _local_uri(runs):
        return f"open {_without_credentials(uri)}"
    # Without workflowType, a browser new to MLflow opens its pages for language models.
    return (
        f"mlflow ui --backend-store-uri {shlex.quote(uri)}, and open "
        "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
    )


def _local_uri(runs: Path) -> str:
    return _sqlite_uri(runs / _DATABASE)


def _sqlite_uri(file: Path) -> str:
    """A database file as a SQLAlchemy URI, with special characters in its path escaped.

    In a URI, a ``?`` begins the options and a ``%`` a character's code: MLflow would write to
    another file, beside the folder of runs.
    """
    path = str(file.resolve())
    if not set("?#%") & set(path):
        return f"sqlite:///{path}"
    from sqlalchemy.engine import make_url

    # Includes the driver's name: MLflow creates whatever folder follows "sqlite:///".
    quoted = f"sqlite+pysqlite:///{quote(path)}"
    if make_url(quoted).database == path:
        return quoted
    # SQLAlchemy decodes escapes from 2.1 on; before that, SQLite itself has to.
    return f"sqlite+pysqlite:///file:{quote(path)}?uri=true"


def _make_database(runs: Path) -> None:
    """Create MLflow's database atomically; several processes may start at once."""
    from mlflow import MlflowClient

    if (runs / _DATABASE).exists():
        return
    with (runs / f".{_DATABASE}.lock").open("a") as lock:
        # Without locks in the file system we have to assume a single process.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (runs / _DATABASE).exists():
            return
        for leftover in runs.glob(f".{_DATABASE}.new*"):
            leftover.unlink()
        beside = runs / f".{_DATABASE}.new"
        MlflowClient(_sqlite_uri(beside)).search_experiments(max_results=1)
        beside.rename(runs / _DATABASE)


def _origin() -> dict[str, str]:
    """MLflow's tags for who made a run, and with what."""
    # MLflow's default source name is the script's path on this machine.
    tags = {"mlflow.source.name": "mammo-pd", "mlflow.source.type": "LOCAL"}
    # A user in a container may have no name.
    with contextlib.suppress(KeyError, OSError):
        tags["mlflow.user"] = getpass.getuser()
    commit = _git_commit(Path(__file__))
    if commit is not None:
        tags["mlflow.source.git.commit"] = commit
    return tags


def _git_commit(file: Path) -> str | None:
    """The checked-out commit of a file's repository; None if git does not track the file."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(file.parent), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        # An installed package may be inside another project's repository.
        git("ls-files", "--error-unmatch", file.name)
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat = []
    for name, value in values.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{name}.")
        else:
            flat.append((prefix + name, value))
    return flat
