from pathlib import Path

import pytest
from phantom_images import SMALL

from mammo_pd.phantoms import write_phantoms


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The label table of a small archive."""
    return write_phantoms(tmp_path_factory.mktemp("archive"), SMALL, processes=1)
