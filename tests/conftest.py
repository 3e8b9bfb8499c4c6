import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real mammograms; its tests skip where it is absent."""
    beside = Path(__file__).parents[2] / "shared" / "corpus"
    folder = Path(os.environ.get("MAMMO_PD_CORPUS", beside))
    if not folder.is_dir():
        pytest.skip(f"no corpus of real files at {folder} (set MAMMO_PD_CORPUS)")
    return folder
