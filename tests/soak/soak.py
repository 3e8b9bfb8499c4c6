"""Kills every stage at random moments, starts it again, and compares with an unbroken run.

    python tests/soak/soak.py --work DIR --rounds 20 --minutes 90

Writes one line of JSON for each trial to DIR/trials.jsonl, goes on from there when it is typed
again, and prints the table of docs/reliability.md. Each process is one that a user would start, and
only those are ever signalled.
"""

import argparse
import atexit
import json
import os
import random
import runpy
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from safetensors.numpy import load_file

sys.path.append(str(Path(__file__).parents[1]))
from format_1 import as_format_1

# Trials of each stage and signal in a full run, which takes hours.
ROUNDS = 20
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Of a signal that is heeded, and of orphans: a training saves, and MLflow's record is closed.
_SECONDS_TO_END = 30.0
_TIMEOUT = 600.0
_MARK = "MAMMO_PD_SOAK"
# Measured times, and names that a run draws by lot and that are in the hash of its checkpoint.
_TIMES = (
    "seconds",
    "per_second",
    "memory",
    "wait_share",
    "_share",
    "created",
    "run_id",
    "sha256",
    "SHA-256",
)
_SETTINGS = {
    "data": {"res": "64x48", "workers": 1},
    "model": {"name": "vit_tiny_patch16_224", "drop_path_rate": 0.1},
    "training": {
        "epochs": 3,
        "batch_size": 4,
        "ema_decay": 0.9,
        # Between the epochs' ends, too.
        "checkpoint_minutes": 0.005,
    },
    "device": {"accelerator": "cpu"},
}
# So that the features of the 96 images are several parts.
_EMBEDDED_AT_ONCE = 20


@dataclass
class Ended:
    """A process that has ended."""

    status: int
    output: str
    errors: str
    seconds: float


class Forked:
    """A ``mammo-pd`` command in a fork of this process, which has imported what it imports.

    So that trials take their time in the stage and not in importing torch for seconds; it is its
    own process and session otherwise, and `tests/cli/test_endings.py` interrupts the imports.
    """

    def __init__(self, words: list[str], cwd: Path, output: int, errors: int, env: dict[str, str]):
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(words, cwd, output, errors, env)

    def _run(
        self, words: list[str], cwd: Path, output: int, errors: int, env: dict[str, str]
    ) -> None:
        status = 1
        try:
            os.setsid()
            os.chdir(cwd)
            with open(os.devnull) as nothing:  # noqa: PTH123
                for number, stream in ((0, nothing.fileno()), (1, output), (2, errors)):
                    os.dup2(stream, number)
            os.environ.update(env)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.argv = ["mammo-pd", *words]
            runpy.run_module("mammo_pd", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        limit = time.monotonic() + (float("inf") if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > limit:
                raise subprocess.TimeoutExpired("mammo-pd", timeout or 0)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def import_what_commands_import() -> None:
    """For `Forked`; none of these modules starts a thread or draws a number."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    import mammo_pd.cli.app
    import mammo_pd.cli.cv
    import mammo_pd.inference.bundle
    import mammo_pd.inference.embed
    import mammo_pd.inference.explain
    import mammo_pd.inference.new_studies
    import mammo_pd.inference.predict
    import mammo_pd.inference.reconstruct
    import mammo_pd.perf.memory_advice
    import mammo_pd.report.cross_validation
    import mammo_pd.report.evaluate
    import mammo_pd.training.train

    mammo_pd.inference.embed._PART = _EMBEDDED_AT_ONCE
    if find_spec("highdicom") is not None:
        import mammo_pd.cli.predict_dicom


class Program:
    """A ``mammo-pd`` command as a process of its own session, whose children can be told."""

    def __init__(self, *words: object, cwd: Path, environment: dict[str, str] | None = None):
        self.mark = uuid.uuid4().hex
        self._started = time.monotonic()
        # Files, since a pipe would be held by whatever the command leaves behind.
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = Forked(
            [str(word) for word in words],
            cwd,
            self._output.fileno(),
            self._errors.fileno(),
            {"OMP_NUM_THREADS": "1", _MARK: self.mark, **(environment or {})},
        )

    def wait(self, timeout: float = _TIMEOUT) -> Ended:
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self._errors.write("took too long, and was killed")
        seconds = time.monotonic() - self._started
        texts = []
        for stream in (self._output, self._errors):
            stream.seek(0)
            texts.append(stream.read())
            stream.close()
        assert self.process.returncode is not None
        return Ended(self.process.returncode, *texts, seconds)

    def send(self, number: int) -> None:
        """As a terminal does, to all processes of the session, or as a supervisor does, to one."""
        if number == signal.SIGINT:
            # It may just have ended.
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def children_after(self, seconds: float) -> int:
        """How many of its processes are alive after a while."""
        limit = time.monotonic() + seconds
        while (alive := self._children()) and time.monotonic() < limit:
            time.sleep(0.1)
        return len(alive)

    def _children(self) -> list[int]:
        """Those of its session, and those that inherited its environment."""
        alive = []
        mark = f"{_MARK}={self.mark}".encode()
        for folder in Path("/proc").iterdir():
            # Gone meanwhile, or somebody else's.
            with suppress(OSError, IndexError):
                if folder.name.isdigit():
                    state, _, _, session, *_ = (
                        (folder / "stat").read_text().rpartition(")")[2].split()
                    )
                    own = int(session) == self.process.pid
                    if state not in "ZX" and (
                        own or mark in (folder / "environ").read_bytes().split(b"\0")
                    ):
                        alive.append(int(folder.name))
        return alive


def run(*words: object, cwd: Path, environment: dict[str, str] | None = None) -> Ended:
    """Run a command to its end."""
    return Program(*words, cwd=cwd, environment=environment).wait()


def succeed(*words: object, cwd: Path) -> Ended:
    """Run a command that must succeed."""
    ended = run(*words, cwd=cwd)
    assert ended.status == 0, (words, ended)
    return ended


@dataclass(frozen=True)
class Stage:
    """One stage, which works in a folder of its own.

    Attributes:
        name: of the table.
        prepare: puts into the folder what the stage needs.
        words: the command.
        again: the command that a user types after a kill.
        result: what the stage made, in a form that is equal to that of an unbroken run.
    """

    name: str
    prepare: Callable[[Path], None]
    words: Callable[[Path], tuple[object, ...]]
    again: Callable[[Path], tuple[object, ...]]
    result: Callable[[Path], dict[str, Any]]


@dataclass
class Soak:
    """The folder of a soak: what the trials start from, and what an unbroken run makes of it.

    Args:
        work: the folder, made or gone on with. A ``store`` in it, with a split ``two`` of two
            folds, is taken as it is.
        names: of the stages that are to be tried; all where it is empty.
        accelerator: of the training: ``cpu`` or ``cuda``.
        patients: phantom women.
    """

    work: Path
    names: tuple[str, ...] = ()
    accelerator: str = "cpu"
    patients: int = 24
    stages: dict[str, Stage] = field(init=False)
    unbroken: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)
    seconds: dict[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.work = self.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.stages = {
            stage.name: stage
            for stage in (
                Stage("preprocess", self._none, self._preprocess, self._preprocess, store_content),
                Stage("levels", self._with_levels, self._levels, self._levels, store_content),
                Stage("train", self._with_store, self._train, self._train_again, runs_content),
                Stage("evaluate", self._with_run, self._evaluate, self._evaluate, report_content),
                Stage("cv", self._with_store, self._cv, self._cv, cv_content),
                Stage(
                    "pretrain",
                    self._with_store,
                    self._pretrain,
                    self._pretrain_again,
                    pretraining_content,
                ),
                Stage("predict", self._with_run, self._predict, self._predict, predictions_content),
                Stage("embed", self._with_run, self._embed, self._embed, features_content),
                Stage("export", self._with_run, self._export, self._export, bundle_content),
            )
            if stage.name in self.names or not self.names
        }
        self._make_inputs()
        # Later trials are compared with these, made by the same code.
        for name, stage in self.stages.items():
            with self.folder() as folder:
                stage.prepare(folder)
                ended = succeed(*stage.words(folder), cwd=folder)
                self.unbroken[name], self.seconds[name] = stage.result(folder), ended.seconds

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A new folder for one trial, which lies where the unbroken run's lay."""
        place = self.work / "trial"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        yield place
        shutil.rmtree(place, ignore_errors=True)

    def _make_inputs(self) -> None:
        from mammo_pd.phantoms import PhantomSettings, write_phantoms

        # Without it not even two unbroken runs would be equal on a GPU.
        device = {"accelerator": self.accelerator, "deterministic": True}
        settings = {**_SETTINGS, "device": device}
        (self.work / "config.yaml").write_text(yaml.safe_dump(settings))
        begun = (self.work / "store").is_dir()
        if not begun and not (self.work / "dicom" / "labels.csv").is_file():
            women = PhantomSettings(patients=self.patients, scale=0.15, prevalence=0.5)
            write_phantoms(self.work / "dicom", women, processes=1)
        (self.work / "key").write_bytes(bytes(range(32)))
        if not begun:
            succeed(*self._preprocess(self.work), cwd=self.work)
            succeed("split", "store", "--folds", 2, "--name", "two", cwd=self.work)
        if "levels" in self.stages and not (self.work / "levels-store").is_dir():
            # Large enough to have levels.
            women = PhantomSettings(patients=self.patients // 3, scale=0.35)
            write_phantoms(self.work / "large", women, processes=1)
            words = [*self._levels(self.work)[:-1], "native", "--key", self.work / "key"]
            with self.folder() as folder:
                succeed(*words, cwd=folder)
                as_format_1(folder / "store")
                shutil.copytree(folder / "store", self.work / "levels-store")
        if not (self.work / "trained").is_dir():
            with self.folder() as folder:
                self._with_store(folder)
                succeed(*self._train(folder), cwd=folder)
                (run_folder,) = (file.parent for file in folder.glob("runs/*/run.json"))
                run_folder.rename(folder / "runs" / "run")
                shutil.copytree(folder / "runs", self.work / "trained")
                shutil.copytree(folder / "store", self.work / "split-store")

    def _none(self, folder: Path) -> None:
        pass

    def _with_store(self, folder: Path) -> None:
        shutil.copytree(self.work / "store", folder / "store")

    def _with_levels(self, folder: Path) -> None:
        shutil.copytree(self.work / "levels-store", folder / "store")

    def _with_run(self, folder: Path) -> None:
        shutil.copytree(self.work / "split-store", folder / "store")
        shutil.copytree(self.work / "trained", folder / "runs")

    def _preprocess(self, folder: Path) -> tuple[object, ...]:
        dicom, key = self.work / "dicom", self.work / "key"
        labels = ("--labels", dicom / "labels.csv", "--key", key)
        return ("preprocess", dicom, "--out", "store", *labels, "--workers", 2)

    def _levels(self, folder: Path) -> tuple[object, ...]:
        words = ("preprocess", self.work / "large", "--out", "store", "--workers", 2)
        return (*words, "--levels", "native,1024,512")

    def _train(self, folder: Path) -> tuple[object, ...]:
        return ("train", "--config", self.work / "config.yaml")

    def _train_again(self, folder: Path) -> tuple[object, ...]:
        begun = any(folder.glob("runs/*/run.json"))
        return ("train", "--resume") if begun else self._train(folder)

    def _evaluate(self, folder: Path) -> tuple[object, ...]:
        return ("evaluate", "runs/run", "--resamples", 200)

    def _cv(self, folder: Path) -> tuple[object, ...]:
        given = ("--split", "two", "--config", self.work / "config.yaml", "--resamples", 200)
        return ("cv", *given, "--epochs", 1, "--out", "runs/cv")

    def _pretrain(self, folder: Path) -> tuple[object, ...]:
        return ("pretrain", "--config", self.work / "config.yaml")

    def _pretrain_again(self, folder: Path) -> tuple[object, ...]:
        begun = any(folder.glob("runs/*/run.json"))
        return ("pretrain", "--resume") if begun else self._pretrain(folder)

    def _predict(self, folder: Path) -> tuple[object, ...]:
        words = ("predict", "runs/run", self.work / "dicom", "--key", self.work / "key")
        dicom = ("--dicom",) if find_spec("highdicom") is not None else ()
        return (*words, "--workers", 2, "--saliency", *dicom)

    def _embed(self, folder: Path) -> tuple[object, ...]:
        return ("embed", "runs/run", "--keep", 0.5)

    def _export(self, folder: Path) -> tuple[object, ...]:
        return ("export", "runs/run", "--bundle", "bundle")


# ---- what a stage made, without times and without names drawn by lot


def store_content(folder: Path) -> dict[str, Any]:
    """Every file of a store by its bytes, and the rows of its record."""
    return with_record(folder / "store")


def with_record(place: Path) -> dict[str, Any]:
    """What lies in a folder with a record of images, but for instances made for a PACS."""
    kept: dict[str, Any] = {
        name: content
        for name, content in files_of(place).items()
        if Path(name).name not in ("images.sqlite", "lock") and not name.endswith(".dcm")
    }
    with closing(sqlite3.connect(place / "private" / "images.sqlite")) as database:
        for table in ("images", "folders", "forgotten"):
            kept[table] = sorted(map(repr, database.execute(f"SELECT * FROM {table}")))
    return kept


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its name."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def runs_content(folder: Path) -> dict[str, Any]:
    """The runs of a folder: weights, history, the journal of metrics, and MLflow's database."""
    return {
        f"run {number}": run_content(file.parent)
        for number, file in enumerate(sorted(folder.glob("runs/*/run.json")))
    } | mlflow_content(folder / "runs" / "mlflow.db")


def run_content(path: Path) -> dict[str, Any]:
    kept: dict[str, Any] = {
        name: {key: value.tobytes() for key, value in load_file(path / name).items()}
        for name in ("model.safetensors", "last.safetensors")
    }
    kept["history"] = without_times(pd.read_csv(path / "history.csv").to_dict("records"))
    kept["config"] = (path / "config.yaml").read_text()
    kept["files"] = sorted(file.name for file in path.iterdir() if file.is_file())
    info = json.loads((path / "run.json").read_text())
    kept["finished"] = info["finished"] is not None
    kept["validation"] = info["validation"]
    metrics = [json.loads(line) for line in (path / "tracking.jsonl").read_text().splitlines()]
    # An epoch that is told twice, once by the killed run, is told the same.
    kept["journal"] = {
        json.dumps([line["step"], without_times(line["metrics"])], sort_keys=True)
        for line in metrics
        if line["message"] == "log" and "step_loss" not in line["metrics"]
    }
    return kept


def mlflow_content(file: Path) -> dict[str, Any]:
    """Runs and metrics that MLflow's database holds; its system metrics are measurements."""
    with closing(sqlite3.connect(file)) as database:
        runs = dict(database.execute("SELECT run_uuid, status FROM runs"))
        metrics = {
            (key, value, step)
            for key, value, step in database.execute("SELECT key, value, step FROM metrics")
            if not key.startswith("system/")
            and key != "step_loss"
            and not any(word in key for word in _TIMES)
        }
    return {"mlflow runs": sorted(runs.values()), "mlflow metrics": metrics}


def report_content(folder: Path) -> dict[str, Any]:
    """A run's predictions and report."""
    return report_at(folder / "runs" / "run") | mlflow_content(folder / "runs" / "mlflow.db")


def report_at(path: Path) -> dict[str, Any]:
    report = path / "report"
    tables = {file.name: file.read_bytes() for file in sorted(report.glob("*.csv"))}
    tables.pop("runs.csv", None)
    kept = {
        "tables": tables,
        "metrics": without_times(json.loads((report / "metrics.json").read_text())),
        "files": sorted(file.name for file in report.iterdir()),
    }
    own = path / "predictions.csv"
    return kept | ({"predictions": own.read_bytes()} if own.is_file() else {})


def cv_content(folder: Path) -> dict[str, Any]:
    """A cross-validation: the weights and predictions of all runs, and its report."""
    path = folder / "runs" / "cv"
    kept = report_at(path) | mlflow_content(folder / "runs" / "mlflow.db")
    for file in sorted(path.glob("*/run.json")):
        name = file.parent.name
        kept[name] = run_content(file.parent)
        kept[name]["predictions"] = (file.parent / "predictions.csv").read_bytes()
    return kept


def pretraining_content(folder: Path) -> dict[str, Any]:
    """The run of a pretraining, and its page of reconstructions but for the run's name."""
    kept = runs_content(folder)
    pages = sorted(folder.glob("runs/*/reconstructions.html"))
    kept["pages"] = [page.read_text().replace(page.parent.name, "RUN") for page in pages]
    return kept


def predictions_content(folder: Path) -> dict[str, Any]:
    """Tables, pictures and record; of what a PACS takes the UIDs, which follow from the content."""
    out = folder / "predictions"
    instances = sorted(str(file.relative_to(out)) for file in out.rglob("*.dcm"))
    return with_record(out) | {"instances": instances}


def features_content(folder: Path) -> dict[str, Any]:
    """The features, and that nothing is left beside them."""
    return {
        "features": (folder / "features.parquet").read_bytes(),
        "files": sorted(file.name for file in folder.iterdir()),
    }


def bundle_content(folder: Path) -> dict[str, Any]:
    """The bundle, and that nothing is left beside it."""
    names = sorted(file.name for file in folder.iterdir())
    return {"bundle": files_of(folder / "bundle"), "files": names}


def without_times(value: Any) -> Any:
    """Plain values without those that a clock gives."""
    if isinstance(value, dict):
        return {
            key: without_times(entry)
            for key, entry in value.items()
            if not any(word in str(key) for word in _TIMES)
        }
    if isinstance(value, list):
        return [without_times(entry) for entry in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two results differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{where}/{key} is in one only" for key in one.keys() ^ other.keys()]
        for key in one.keys() & other.keys():
            found += differences(one[key], other[key], f"{where}/{key}")
        return found
    if one == other:
        return []
    if isinstance(one, set) and isinstance(other, set):
        return [f"{where}: {sorted(map(str, one - other))} != {sorted(map(str, other - one))}"]
    return [f"{where}: {str(one)[:200]} != {str(other)[:200]}"]


# ---- trials


def kill_and_go_on(soak: Soak, name: str, number: signal.Signals) -> dict[str, Any]:
    """Send a signal at a random moment, start the stage again, and compare."""
    stage = soak.stages[name]
    while True:
        with soak.folder() as folder:
            stage.prepare(folder)
            # From its first moment to its last.
            at = random.uniform(0.02, 1.0) * soak.seconds[name]
            program = Program(*stage.words(folder), cwd=folder)
            try:
                program.process.wait(at)
            except subprocess.TimeoutExpired:
                pass
            else:
                # Faster than the unbroken one, so there was nothing to kill.
                soak.seconds[name] = program.wait().seconds
                continue
            program.send(number)
            sent = time.monotonic()
            broken = program.wait()
            took = time.monotonic() - sent
            if number == signal.SIGKILL and broken.status == 0:
                # It was at its end already, which frees the memory of a fork slowly.
                continue
            problems = []
            orphans = program.children_after(_SECONDS_TO_END)
            if orphans:
                problems.append(f"{orphans} orphans")
            # Python's own start and end are not ours.
            expected = {-number, *(() if number == signal.SIGKILL else (128 + number, 0))}
            if broken.status not in expected:
                problems.append(f"exit status {broken.status}: {broken.errors[-300:]}")
            if "Traceback" in broken.errors:
                problems.append(f"traceback: {broken.errors[-600:]}")
            if number != signal.SIGKILL and took > _SECONDS_TO_END:
                problems.append(f"took {took:.0f} s to end")
            again = run(*stage.again(folder), cwd=folder)
            if again.status != 0 or "Traceback" in again.errors:
                problems.append(
                    f"again: exit status {again.status}: {again.output[-300:]}{again.errors[-900:]}"
                )
            else:
                try:
                    problems += differences(soak.unbroken[name], stage.result(folder))
                except (OSError, ValueError, sqlite3.Error) as error:
                    problems.append(f"result: {error!r}")
            return _trial(name, number.name, problems, at=at, took=took, orphans=orphans)


def server_dies(soak: Soak) -> dict[str, Any]:
    """Kill MLflow's server in the middle of a training, and bring it up to date later."""
    with soak.folder() as folder:
        soak.stages["train"].prepare(folder)
        port = _free_port()
        address = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
        problems = []
        with _server(folder, port) as server:
            program = Program(*soak._train(folder), cwd=folder, environment=address)
            # From when the run is there until training is over.
            while not any(folder.glob("runs/*/tracking.jsonl")) and program.process.poll() is None:
                time.sleep(0.05)
            at = random.uniform(0.0, soak.seconds["train"] / 2)
            with suppress(subprocess.TimeoutExpired):
                program.process.wait(at)
            os.killpg(server.pid, signal.SIGKILL)
            ended = program.wait()
        if ended.status != 0 or "Traceback" in ended.errors:
            problems.append(f"exit status {ended.status}: {ended.errors[-600:]}")
        else:
            (path,) = (file.parent for file in folder.glob("runs/*/run.json"))
            problems += differences(soak.unbroken["train"]["run 0"], run_content(path))
            with _server(folder, port):
                synced = run("sync", path, cwd=folder, environment=address)
            if synced.status != 0:
                problems.append(f"sync: {synced.output[-300:]}{synced.errors[-600:]}")
            told = mlflow_content(folder / "server.db")
            for key, value in told.items():
                problems += differences(soak.unbroken["train"][key], value, key)
        return _trial(
            "train", "MLflow's server", problems, at=at, warned="MLflow cannot" in ended.output
        )


def two_first_trainings(soak: Soak) -> dict[str, Any]:
    """Start two trainings on a store without a split, in a folder without runs."""
    with soak.folder() as folder:
        soak.stages["train"].prepare(folder)
        delay = random.choice([0.0, random.uniform(0.0, 0.5 * soak.seconds["train"])])
        first = Program(*soak._train(folder), cwd=folder)
        time.sleep(delay)
        second = Program(*soak._train(folder), cwd=folder)
        problems = [
            f"exit status {ended.status}: {ended.errors[-600:]}"
            for ended in (first.wait(), second.wait())
            if ended.status != 0 or "Traceback" in ended.errors
        ]
        if not problems:
            made, unbroken = runs_content(folder), soak.unbroken["train"]
            for name in ("run 0", "run 1"):
                problems += differences(unbroken["run 0"], made[name], name)
            problems += differences(["FINISHED", "FINISHED"], made["mlflow runs"], "MLflow")
            problems += differences(unbroken["mlflow metrics"], made["mlflow metrics"], "MLflow")
        return _trial("train", "two first trainings", problems, at=delay)


def two_writers(soak: Soak) -> dict[str, Any]:
    """Start preprocess on a store at which another is at work."""
    with soak.folder() as folder:
        delay = random.uniform(0.0, soak.seconds["preprocess"])
        first = Program(*soak._preprocess(folder), cwd=folder)
        time.sleep(delay)
        second = Program(*soak._preprocess(folder), cwd=folder)
        problems = []
        both = (first.wait(), second.wait())
        for ended in both:
            if "Traceback" in ended.errors or ended.status not in (0, 2):
                problems.append(f"exit status {ended.status}: {ended.errors[-600:]}")
            if ended.status == 2 and "is another mammo-pd preprocess working" not in ended.errors:
                problems.append(f"refused otherwise: {ended.errors[-600:]}")
        if all(ended.status == 2 for ended in both):
            problems.append("both were refused")
        if not problems:
            made = store_content(folder)
            problems += differences(soak.unbroken["preprocess"], made)
        refused = sum(ended.status == 2 for ended in both)
        return _trial("preprocess", "two writers", problems, at=delay, refused=refused)


def disk_full(soak: Soak, name: str) -> dict[str, Any]:
    """Run a stage on a disk too small by a random share, enlarge the disk, and go on."""
    stage = soak.stages[name]
    with soak.folder() as folder:
        with _small_disk(folder, 2**30):
            stage.prepare(folder)
            before = _used(folder)
            succeed(*stage.words(folder), cwd=folder)
            after = _used(folder)
        room = int(before + random.uniform(0.0, 0.95) * (after - before))
        with _small_disk(folder, 2**30):
            stage.prepare(folder)
            _resize(folder, max(room, _used(folder) + 4096))
            broken = run(*stage.words(folder), cwd=folder)
            problems = []
            if "Traceback" in broken.errors:
                problems.append(f"traceback: {broken.errors[-900:]}")
            # A training that cannot tell MLflow, or a report that it cannot keep, may succeed.
            if broken.status not in (0, 2):
                problems.append(f"exit status {broken.status}: {broken.errors[-600:]}")
            if broken.status == 2 and not _names_the_disk(broken.errors):
                problems.append(f"not about the disk: {broken.errors[-600:]}")
            _resize(folder, 2**30)
            again = run(*stage.again(folder), cwd=folder)
            if again.status != 0 or "Traceback" in again.errors:
                problems.append(
                    f"again: exit status {again.status}: {again.output[-300:]}{again.errors[-900:]}"
                )
            else:
                problems += differences(soak.unbroken[name], stage.result(folder))
        return _trial(name, "disk full", problems, at=room, status=broken.status)


def _names_the_disk(errors: str) -> bool:
    return any(word in errors for word in ("disk is full", "No space", "is expected to take"))


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        # The last process of a stage may end a moment after it.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _resize(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def _used(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def _server(folder: Path, port: int) -> "Iterator[subprocess.Popen[bytes]]":
    """MLflow's own server, once it answers; it is ended with the block."""
    import urllib.request

    words = ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    words += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--port", str(port), *words],
            start_new_session=True,
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(600):
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            time.sleep(0.2)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _trial(stage: str, what: str, problems: list[str], **facts: Any) -> dict[str, Any]:
    return {"stage": stage, "what": what, "problems": problems, **facts}


def plan(soak: Soak, rounds: int, may_mount: bool) -> list[tuple[str, str, Callable[[], Any]]]:
    """All trials as (stage, what is done to it, the trial), a round of each after another."""
    quick: list[tuple[str, str, Callable[[], Any]]] = []
    long: list[tuple[str, str, Callable[[], Any]]] = []
    for name in soak.stages:
        for number in SIGNALS:
            # Bound now, since the names change with the loop.
            act = partial(kill_and_go_on, soak, name, number)
            (long if name == "cv" else quick).append((name, number.name, act))
    if "preprocess" in soak.stages:
        quick.append(("preprocess", "two writers", partial(two_writers, soak)))
    if "train" in soak.stages:
        long.append(("train", "two first trainings", partial(two_first_trainings, soak)))
        long.append(("train", "MLflow's server", partial(server_dies, soak)))
    if may_mount:
        for name in ("preprocess", "levels", "train", "evaluate"):
            if name not in soak.stages:
                continue
            long += [(name, "disk full", partial(disk_full, soak, name))]
    # What takes minutes comes last of a round, and where time is short in every fourth only.
    return [
        trial for number in range(rounds) for trial in (quick if number % 4 else [*quick, *long])
    ] + long * (rounds - (rounds + 3) // 4)


def table(trials: list[dict[str, Any]]) -> str:
    """The trials counted, as Markdown."""
    lines = ["| stage | what happened | trials | without any fault | slowest end |"]
    lines.append("|---|---|---|---|---|")
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for trial in trials:
        found.setdefault((trial["stage"], trial["what"]), []).append(trial)
    for (stage, what), of_it in sorted(found.items()):
        equal = sum(not trial["problems"] for trial in of_it)
        slowest = max(trial.get("took", -1.0) for trial in of_it)
        end = f"{slowest:.1f} s" if what in ("SIGTERM", "SIGINT") else ""
        lines.append(f"| {stage} | {what} | {len(of_it)} | {equal} | {end} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--stages", nargs="*", default=[], help="by default all")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--mount", action="store_true", help="small disks, as root")
    given = parser.parse_args()
    started = time.monotonic()
    import_what_commands_import()
    soak = Soak(given.work, tuple(given.stages), given.accelerator)
    print({name: f"{seconds:.1f} s" for name, seconds in soak.seconds.items()}, flush=True)
    file = soak.work / "trials.jsonl"
    trials = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done: dict[tuple[str, str], int] = {}
    for trial in trials:
        done[trial["stage"], trial["what"]] = done.get((trial["stage"], trial["what"]), 0) + 1
    for stage, what, act in plan(soak, given.rounds, given.mount):
        if done.get((stage, what), 0) > 0:
            done[stage, what] -= 1
            continue
        if time.monotonic() - started > 60 * given.minutes:
            break
        trial = act()
        trials.append(trial)
        with file.open("a") as opened:
            opened.write(json.dumps(trial) + "\n")
        print(stage, what, trial["problems"] or "equal", flush=True)
    print(f"\n{date.today().isoformat()}\n\n{table(trials)}")


if __name__ == "__main__":
    main()
