"""What MLflow misses while it is away: kept in the run's folder, and passed on later."""

import json
import multiprocessing
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient
from small_runs import small

from mammo_pd.cli.app import main
from mammo_pd.tracking import MlflowRun
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.train import train


def local(runs: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")


def trained(store: Path, runs: Path, said: list[str]) -> RunFolder:
    run = train(store, runs, small(training__epochs=2), say=said.append)
    assert run is not None
    return run


def history_of(client: MlflowClient, run: RunFolder) -> list[tuple[int, float]]:
    assert run.info.mlflow_run_id is not None
    found = client.get_metric_history(run.info.mlflow_run_id, "val_auc_image")
    return [(metric.step, metric.value) for metric in found]


def test_run_whose_server_is_away_trains_to_its_end_and_is_told_later(
    phantom_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Nothing listens there.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    said: list[str] = []
    run = trained(phantom_store, tmp_path, said)
    assert run.info.finished
    assert run.info.mlflow_run_id is None
    assert len([line for line in said if "MLflow cannot be reached" in line]) == 1
    assert main(["sync", str(run.path)]) == 2
    error = capsys.readouterr().err
    assert "MLflow cannot be reached" in error
    assert error.count("\n") == 1
    # Another MLflow is there.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert main(["sync", str(run.path)]) == 0
    told = RunFolder.open(run.path)
    client = local(tmp_path)
    assert len(history_of(client, told)) == 2
    record = client.get_run(str(told.info.mlflow_run_id))
    assert record.info.status == "FINISHED"
    assert record.data.params["patch_dropout.keep_rate"] == "0.25"
    assert record.outputs.model_outputs
    # Told again, it has nothing twice.
    assert main(["sync", str(run.path)]) == 0
    assert len(history_of(client, told)) == 2


@pytest.mark.parametrize("fault", ["raises", pytest.param("locked", marks=pytest.mark.slow)])
def test_mlflow_that_fails_on_the_way_costs_one_warning(
    fault: str, phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    log, calls = MlflowRun.log, iter(range(100))
    held: list[sqlite3.Connection] = []

    def fail(self: MlflowRun, *given: object, **named: object) -> None:
        if next(calls) >= 1:
            if fault == "raises":
                raise ConnectionError("gone")
            if not held:
                held.append(sqlite3.connect(tmp_path / "mlflow.db", timeout=0.1))
                held[0].execute("BEGIN EXCLUSIVE")
        log(self, *given, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(MlflowRun, "log", fail)
        run = trained(phantom_store, tmp_path, said)
    assert run.info.finished
    assert len([line for line in said if "MLflow cannot be reached" in line]) == 1
    for connection in held:
        connection.close()
    assert main(["sync", str(run.path)]) == 0
    assert len(history_of(local(tmp_path), RunFolder.open(run.path))) == 2


def test_deleted_record_is_made_anew(phantom_store: Path, tmp_path: Path) -> None:
    run = trained(phantom_store, tmp_path, [])
    before = history_of(local(tmp_path), run)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "mlflow.db").rename(moved / "mlflow.db")
    (tmp_path / run.path.name).rename(moved / run.path.name)
    (moved / "mlflow.db").unlink()
    assert main(["sync", str(moved / run.path.name)]) == 0
    again = RunFolder.open(moved / run.path.name)
    assert again.info.mlflow_run_id != run.info.mlflow_run_id
    assert history_of(local(moved), again) == before


def test_half_a_line_of_a_killed_run_is_forgotten(
    phantom_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(phantom_store, tmp_path, [])
    with run.journal.open("a") as file:
        file.write('{"message": "log", "metr')
    assert main(["sync", str(run.path)]) == 0
    for line in run.journal.read_text().splitlines():
        json.loads(line)
    # What is lost is no "all 0 messages".
    for damage, said in (('{"mess\n', "is damaged"), ("", "is missing or empty")):
        run.journal.write_text(damage)
        assert main(["sync", str(run.path)]) == 2
        assert said in capsys.readouterr().err


def test_journal_has_neither_paths_nor_patients(phantom_store: Path, tmp_path: Path) -> None:
    run = trained(phantom_store, tmp_path, [])
    text = run.journal.read_text() + run.journal_state.read_text()
    assert str(phantom_store) not in text
    assert str(tmp_path) not in text


def _begin(runs: Path) -> None:
    with MlflowRun(runs, "run"):
        pass


@pytest.mark.slow
def test_processes_that_begin_together_make_one_whole_database(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_begin, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    client = local(tmp_path)
    experiments = [one.name for one in client.search_experiments()]
    assert sorted(experiments) == ["Default", "mammo-pd"]
    (found,) = (one for one in client.search_experiments() if one.name == "mammo-pd")
    assert len(client.search_runs([found.experiment_id])) == 2


@pytest.mark.usefixtures("databases_are_made")
def test_database_that_was_half_made_by_a_killed_process_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".mlflow.db.new").write_bytes(b"SQLite format 3 and no more")
    _begin(tmp_path)
    assert not (tmp_path / ".mlflow.db.new").exists()
