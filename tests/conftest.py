import hashlib
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from blank_figures import figures_left_blank
from prediction_tables import made_up

from mammo_pd import tracking
from mammo_pd.batch import ImageBatch
from mammo_pd.data import record
from mammo_pd.data.labels import read_labels
from mammo_pd.ingest.preprocess import preprocess
from mammo_pd.keyed_random import image_key
from mammo_pd.phantoms import PhantomSettings, write_phantoms

_make_database = tracking._make_database
_read_or_make_key = record._read_or_make_key

# Small tensors: threads would only wait for one another, most of all beside other processes.
torch.set_num_threads(1)


# A shell that starts the tests in the background has them ignore these, and they test them.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)


@pytest.fixture(scope="session", autouse=True)
def _keys_follow_from_the_paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stores made by these tests are named with the same keys in every run.

    A store names its images with a key drawn at random, and splits follow the names: which women
    are tested, and whether the few of a small store include a positive, would change from run to
    run. MAMMO_PD_TEST_KEYS=N gives other keys, to find tests that stand on these.
    """
    base = tmp_path_factory.getbasetemp()
    turn = os.environ.get("MAMMO_PD_TEST_KEYS", "0")

    def read_or_make_key(path: Path, wanted: bytes | None) -> bytes:
        if wanted is None and not path.exists():
            # pytest numbers the folders that it makes, in the order in which tests come to run.
            name = re.sub(r"\d+(?=/|$)", "", os.path.relpath(path, base), count=1)
            wanted = hashlib.sha256(f"{turn} {name}".encode()).digest()
        return _read_or_make_key(path, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "_read_or_make_key", read_or_make_key)
        yield


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


@pytest.fixture
def batch_of() -> Callable[[int], tuple[ImageBatch, torch.Tensor]]:
    """Makes images of 120x70 random pixels whose right third is air, and their keys."""

    def make(count: int) -> tuple[ImageBatch, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(-32768, 32768, (count, 120, 70), generator=generator)
        pixels[:, :, 46:] = 0
        images = ImageBatch.from_images(list(pixels.to(torch.int16).numpy().view(np.uint16)))
        return images, torch.tensor([image_key(0, 0, str(number)) for number in range(count)])

    return make


@pytest.fixture(autouse=True)
def _no_defaults_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("MAMMO_PD_STORE", "MAMMO_PD_RUNS", "MAMMO_PD_CONTAINER", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    yield


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database as a folder of runs gets it, before there is a run; not to be changed."""
    folder = tmp_path_factory.mktemp("mlflow")
    _make_database(folder)
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def _databases_are_copied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making MLflow's tables takes longer than a small training."""

    def copy(runs: Path) -> None:
        if not (runs / "mlflow.db").exists():
            shutil.copyfile(request.getfixturevalue("empty_database"), runs / "mlflow.db")

    monkeypatch.setattr(tracking, "_make_database", copy)


@pytest.fixture
def process_group() -> Iterator[None]:
    """Of this process alone, so that what several exchange can be called."""
    torch.distributed.init_process_group(store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def blank_figures() -> Iterator[None]:
    """For tests of reports that do not look at the figures in them."""
    with figures_left_blank():
        yield


@pytest.fixture
def databases_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of how that goes."""
    monkeypatch.setattr(tracking, "_make_database", _make_database)


@pytest.fixture
def predictions():
    return made_up(60)
