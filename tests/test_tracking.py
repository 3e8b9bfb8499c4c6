import getpass
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mammo_pd.cli.app import main
from mammo_pd.doctor.storage import check_mlflow
from mammo_pd.errors import InputError
from mammo_pd.tracking import EXPERIMENT, MlflowRun, page_of_runs, reason_of, tracking_uri


def statuses(runs: Path) -> dict[str, str]:
    with sqlite3.connect(runs / "mlflow.db") as database:
        return dict(database.execute("SELECT run_uuid, status FROM runs").fetchall())


def test_run_says_how_it_ended(tmp_path: Path) -> None:
    with MlflowRun(tmp_path, "a") as finished:
        assert statuses(tmp_path)[finished.run_id] == "RUNNING"
    with pytest.raises(KeyboardInterrupt), MlflowRun(tmp_path, "b") as killed:
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="x"), MlflowRun(tmp_path, "c") as failed:
        raise ValueError("x")
    found = statuses(tmp_path)
    assert [found[run.run_id] for run in (finished, killed, failed)] == [
        "FINISHED",
        "KILLED",
        "FAILED",
    ]


def test_run_is_gone_on_with_and_replaced_where_it_is_gone(tmp_path: Path) -> None:
    with MlflowRun(tmp_path, "a") as first:
        first.describe({"training": {"lr": 0.1}}, {"split_hash": "x"})
    with MlflowRun(tmp_path, "a", first.run_id) as second:
        assert second.run_id == first.run_id
        # The same parameters may be described again.
        second.describe({"training": {"lr": 0.1}}, {"split_hash": "x"})
    with (
        pytest.raises(InputError, match=r"settings differ from those .*training\.lr"),
        MlflowRun(tmp_path, "a", first.run_id) as changed,
    ):
        changed.describe({"training": {"lr": 0.2}}, {"split_hash": "x"})
    with MlflowRun(tmp_path, "a", "0" * 32) as third:
        assert third.run_id not in (first.run_id, "0" * 32)


def test_database_that_fails_is_no_traceback_and_its_own_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """MLflow logs one for each call, with what was to be written."""
    run = MlflowRun(tmp_path, "a")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("ALTER TABLE metrics RENAME TO lost")
        database.execute("ALTER TABLE latest_metrics RENAME TO lost_too")
    capfd.readouterr()
    with pytest.raises(MlflowException) as raised:
        run.log({"auc": 0.5}, 1)
    assert reason_of(raised.value).startswith("no such table: ")
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("databases_are_made")
def test_artifacts_lie_beside_the_database(tmp_path: Path) -> None:
    with MlflowRun(tmp_path / "runs", "a") as run:
        run.keep("config.yaml", "x: 1\n")
    kept = list((tmp_path / "runs" / "mlartifacts").rglob("config.yaml"))
    assert [path.read_text() for path in kept] == ["x: 1\n"]


def test_telemetry_is_off(tmp_path: Path) -> None:
    import os

    with MlflowRun(tmp_path, "a"):
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def client(runs: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")


def test_experiment_is_model_development_also_where_it_was_made_without_a_kind(
    tmp_path: Path,
) -> None:
    def kind(runs: Path) -> str:
        experiment = client(runs).get_experiment_by_name(EXPERIMENT)
        assert experiment is not None
        return experiment.tags["mlflow.experimentKind"]

    with MlflowRun(tmp_path / "new", "a"):
        assert kind(tmp_path / "new") == "custom_model_development"
    old = tmp_path / "old"
    old.mkdir()
    client(old).create_experiment(EXPERIMENT)
    with MlflowRun(old, "a"):
        assert kind(old) == "custom_model_development"
    # A kind that the user chose stays.
    experiment = client(old).get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    client(old).set_experiment_tag(experiment.experiment_id, "mlflow.experimentKind", "finetuning")
    with MlflowRun(old, "b"):
        assert kind(old) == "finetuning"


def test_run_says_who_made_it_and_with_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MlflowRun(tmp_path, "a") as run:
        tags = client(tmp_path).get_run(run.run_id).data.tags
    assert tags["mlflow.user"] == getpass.getuser()
    assert tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.source.name"] == "mammo-pd"
    assert tags["mlflow.runName"] == "a"
    assert "mlflow.parentRunId" not in tags
    # Neither git nor a user with a name.
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(getpass, "getuser", lambda: {}["root"])
    with MlflowRun(tmp_path, "b") as run:
        tags = client(tmp_path).get_run(run.run_id).data.tags
    assert "mlflow.source.git.commit" not in tags
    assert "mlflow.user" not in tags


def test_folds_are_nested_under_their_parent_which_stays_open(tmp_path: Path) -> None:
    with MlflowRun(tmp_path, "cv") as parent:
        with MlflowRun(tmp_path, "fold0", parent_run_id=parent.run_id) as fold:
            pass
        assert statuses(tmp_path) == {parent.run_id: "RUNNING", fold.run_id: "FINISHED"}
    # As `mammo-pd cv` resumes.
    with MlflowRun(tmp_path, "fold0", fold.run_id, parent_run_id=parent.run_id) as again:
        assert again.run_id == fold.run_id
    run = client(tmp_path).get_run(fold.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert statuses(tmp_path)[parent.run_id] == "FINISHED"


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%20b", "a b", "a%3Fb?uri=true#c"])
def test_database_lies_in_the_folder_whatever_that_is_called(name: str, tmp_path: Path) -> None:
    """SQLAlchemy and MLflow each read a URI in their own way."""
    from mlflow.store.db.utils import _make_parent_dirs_if_sqlite
    from sqlalchemy import create_engine

    runs = tmp_path / name
    runs.mkdir()
    uri = tracking_uri(runs)
    _make_parent_dirs_if_sqlite(uri)
    engine = create_engine(uri)
    engine.connect().close()
    engine.dispose()
    assert [file.name for file in runs.iterdir()] == ["mlflow.db"]
    assert list(tmp_path.iterdir()) == [runs]


@pytest.mark.parametrize("password", ["PASSW0RD", "PASS%40W0RD", "PASSW@RD"])
@pytest.mark.parametrize("scheme", ["http", "https", "postgresql"])
def test_no_password_of_a_server_is_printed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scheme: str,
    password: str,
) -> None:
    """A tracking URI may hold one; what is printed goes to logs."""
    uri = f"{scheme}://drsmith:{password}@127.0.0.1:9/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert page_of_runs(tmp_path) == f"open {scheme}://127.0.0.1:9/mlflow"
    asked = f"{scheme}://127.0.0.1:9?by=d@s.org"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", asked)
    assert page_of_runs(tmp_path) == f"open {asked}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    told = [reason_of(MlflowException(f"API request to {uri}/api/2.0 failed (see {uri})."))]
    if scheme == "http":
        (finding,) = check_mlflow(tmp_path)
        told.append(str(finding))
        assert main(["sync", "--runs", str(tmp_path)]) == 2
        told += capsys.readouterr()
    assert not [text for text in told if "PASS" in text or "drsmith" in text]


def test_a_link_in_place_of_the_databases_lock_empties_no_file(
    tmp_path: Path, databases_are_made: None
) -> None:
    """A folder of runs may have been made by others."""
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / ".mlflow.db.lock").symlink_to(thesis)
    with MlflowRun(runs, "a"):
        pass
    assert (runs / "mlflow.db").is_file()
    assert thesis.read_text() == "years of work"
