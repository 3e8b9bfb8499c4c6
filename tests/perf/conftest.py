import fcntl
import os
from pathlib import Path

import pytest
from few_steps import few_steps

from mammo_pd.perf.bench import bench


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bench of this machine in ``b`` and its MLflow record in ``runs``.

    Few steps are timed, and the test processes of one session share it; nobody changes it.
    """
    own = tmp_path_factory.getbasetemp()
    out = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "bench-of-all"
    out.mkdir(exist_ok=True)
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "b" / "bench.json").is_file():
            with few_steps():
                bench(
                    out / "b",
                    resolutions=["64x48", "96"],
                    keep_rates=[0.25, 1.0],
                    models=["test_vit"],
                    batch_size=2,
                    runs=out / "runs",
                    say=lambda _: None,
                )
    return out
