import sqlite3
from pathlib import Path

import pytest

from mammo_pd.errors import InputError
from mammo_pd.tracking import MlflowRun


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
        pytest.raises(InputError, match=r"settings are not those .*training\.lr"),
        MlflowRun(tmp_path, "a", first.run_id) as changed,
    ):
        changed.describe({"training": {"lr": 0.2}}, {"split_hash": "x"})
    with MlflowRun(tmp_path, "a", "0" * 32) as third:
        assert third.run_id not in (first.run_id, "0" * 32)


def test_artifacts_lie_beside_the_database(tmp_path: Path) -> None:
    with MlflowRun(tmp_path / "runs", "a") as run:
        run.keep("config.yaml", "x: 1\n")
    kept = list((tmp_path / "runs" / "mlartifacts").rglob("config.yaml"))
    assert [path.read_text() for path in kept] == ["x: 1\n"]


def test_telemetry_is_off(tmp_path: Path) -> None:
    import os

    with MlflowRun(tmp_path, "a"):
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
