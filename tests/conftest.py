import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mammo_pd.data.labels import read_labels
from mammo_pd.imaging.phantom import PhantomSettings, write_phantoms
from mammo_pd.stages.preprocess import preprocess

# Small tensors: threads would only wait for one another, most of all beside other processes.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real mammograms; its tests skip where it is absent."""
    beside = Path(__file__).parents[2] / "shared" / "corpus"
    folder = Path(os.environ.get("MAMMO_PD_CORPUS", beside))
    if not folder.is_dir():
        pytest.skip(f"no corpus of real files at {folder} (set MAMMO_PD_CORPUS)")
    return folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve small phantom women as DICOM files, with labels.csv."""
    folder = tmp_path_factory.mktemp("phantoms") / "dicom"
    write_phantoms(folder, PhantomSettings(patients=12, scale=0.1, prevalence=0.5), processes=1)
    return folder


@pytest.fixture(scope="session")
def phantom_store(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the phantoms; not to be changed."""
    out = tmp_path_factory.mktemp("store") / "store"
    preprocess(phantoms, out, labels=read_labels(phantoms / "labels.csv"), say=lambda _: None)
    return out


@pytest.fixture(autouse=True)
def _no_defaults_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("MAMMO_PD_STORE", "MAMMO_PD_RUNS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    yield
