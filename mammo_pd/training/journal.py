"""What a run tells MLflow, written into its folder first: a server that goes away costs nothing.

runs/ID/
tracking.jsonl        one line for each message, in order
tracking.json         for each MLflow that was told, its record and how many messages it has
"""

import contextlib
import dataclasses
import hashlib
import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mammo_pd.errors import InputError
from mammo_pd.files import load_json, write_text
from mammo_pd.tracking import MlflowRun, TrackedDataset, reason_of, tracking_uri
from mammo_pd.training.runs import RunFolder

# By name alone: what reads a finished model lies above what trains it.
_LOADER = "mammo_pd.inference.mlflow_model"


class Journal:
    """Passes a run's messages on to MLflow, now or later; as a context manager it ends its record.

    Whatever MLflow raises costs one warning; the messages stay in the journal, and MLflow is asked
    again when the run ends, is resumed, or by ``mammo-pd sync``.

    Args:
        run: whose messages they are.
        say: takes one line for people.

    Attributes:
        run: the same, with the ID of its record once there is one.
    """

    def __init__(self, run: RunFolder, say: Callable[[str], None]) -> None:
        self.run = run
        self._say = say
        self._lines = _read_lines(run.journal)
        # A URI may hold a password.
        uri = tracking_uri(_runs_of(run))
        self._where = hashlib.sha256(uri.encode()).hexdigest()[:16]
        self._record, self._sent = self._recall()
        self._mlflow: MlflowRun | None = None
        self._warned = False

    @property
    def count(self) -> int:
        """Messages of the run so far."""
        return len(self._lines)

    @property
    def up_to_date(self) -> bool:
        """Whether MLflow has all of them."""
        return self._mlflow is not None and self._sent == self.count

    def __enter__(self) -> Self:
        self._connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._mlflow is None:
            self._connect()
        if self._mlflow is not None:
            with self._at_peril():
                self._mlflow.__exit__(kind, error, trace)

    def sync(self) -> bool:
        """Pass on what MLflow misses, and end its record as the run ended; False if it is away."""
        self._connect()
        done = self.up_to_date
        if done:
            self.__exit__(None if self.run.info.finished else KeyboardInterrupt, None, None)
        return done

    @contextmanager
    def watching_the_machine(self) -> Iterator[None]:
        """Log the machine's load within the block, where MLflow is there to take it."""
        if self._mlflow is None:
            yield
            return
        with self._mlflow.watching_the_machine():
            yield

    def describe(self, parameters: dict[str, Any], tags: dict[str, str]) -> None:
        """Log what the run was made with.

        Raises:
            InputError: a parameter differs from what was logged when the run began.
        """
        self._tell("describe", parameters=parameters, tags=tags)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics of one step or epoch."""
        self._tell("log", metrics=metrics, step=step, milliseconds=int(time.time() * 1000))

    def keep(self, name: str, text: str) -> None:
        """Keep a text as an artifact of the run."""
        self._tell("keep", name=name, text=text)

    def use(self, datasets: Sequence[TrackedDataset]) -> None:
        """List data sets as the run's input."""
        self._tell("use", datasets=[dataclasses.asdict(dataset) for dataset in datasets])

    def keep_model(self, outputs: Sequence[str]) -> None:
        """Log the weights that are kept as a model, with the names of its scores."""
        self._tell("keep_model", outputs=list(outputs))

    def _tell(self, message: str, **content: Any) -> None:
        line = {"message": message, **content}
        self._lines.append(line)
        with self.run.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._catch_up()

    def _connect(self) -> None:
        run, info = self.run, self.run.info
        known = self._record or info.mlflow_run_id
        with self._at_peril():
            mlflow = MlflowRun(
                _runs_of(run), run.path.name, known, parent_run_id=info.mlflow_parent_run_id
            )
            # What is told to a new record is everything.
            self._remember(mlflow.run_id, self._sent if mlflow.run_id == known else 0)
            self.run = run.update(mlflow_run_id=mlflow.run_id)
            self._mlflow = mlflow
            self._catch_up()

    def _catch_up(self) -> None:
        if self._mlflow is None:
            return
        with self._at_peril():
            for number in range(self._sent, self.count):
                try:
                    self._pass_on(self._mlflow, dict(self._lines[number]))
                except InputError:
                    # It will not be taken another time either.
                    self._remember(self._mlflow.run_id, number + 1)
                    raise
                self._remember(self._mlflow.run_id, number + 1)

    def _pass_on(self, mlflow: MlflowRun, line: dict[str, Any]) -> None:
        message = line.pop("message")
        if message == "use":
            mlflow.use([TrackedDataset(**dataset) for dataset in line["datasets"]])
        elif message == "keep_model":
            # A run whose weights were removed is still one to look at.
            if self.run.chosen.is_file():
                mlflow.keep_model(self.run.chosen, loader=_LOADER, outputs=line["outputs"])
        else:
            getattr(mlflow, message)(**line)

    @contextmanager
    def _at_peril(self) -> Iterator[None]:
        """What MLflow, its database or the network raises within is said once, and forgotten."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            self._mlflow = None
            if not self._warned:
                self._warned = True
                self._say(
                    f"warning: MLflow cannot be reached ({reason_of(error)}); training continues, "
                    f"and its metrics are kept in {self.run.journal.name}. To send them later: "
                    f"mammo-pd sync {shlex.quote(str(self.run.path))}"
                )

    def _recall(self) -> tuple[str | None, int]:
        """The record in the MLflow that is being told, and how many messages that has."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            states = load_json(self.run.journal_state.read_text(encoding="utf-8"))
            found = states[self._where]
            return str(found["record"]), min(int(found["sent"]), self.count)
        return None, 0

    def _remember(self, record: str, sent: int) -> None:
        self._record, self._sent = record, sent
        states: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            states = load_json(self.run.journal_state.read_text(encoding="utf-8"))
        states[self._where] = {"record": record, "sent": sent}
        write_text(self.run.journal_state, json.dumps(states, indent=1) + "\n")


def _runs_of(run: RunFolder) -> Path:
    return run.path.parent


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """The messages so far; the half of a line that a killed process left is removed."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(file, whole)
    try:
        return [load_json(line) for line in whole.splitlines()]
    except ValueError as error:
        raise InputError(
            f"{file} is damaged ({error}); restore it from a copy, or delete it: MLflow will then "
            "only get the metrics from here on."
        ) from error
