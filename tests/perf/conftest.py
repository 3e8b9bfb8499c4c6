from pathlib import Path

import pytest

from mammo_pd.perf.bench import bench


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bench of this machine in ``b`` and its MLflow record in ``runs``."""
    out = tmp_path_factory.mktemp("bench")
    bench(
        out / "b",
        resolutions=["64x48", "96"],
        keep_rates=[0.25, 1.0],
        models=["vit_tiny_patch16_224"],
        batch_size=2,
        runs=out / "runs",
        say=lambda _: None,
    )
    return out
