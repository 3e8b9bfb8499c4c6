"""What preprocess is said to take, from files that are processed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import uid

from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.store import open_store, stored_bytes
from mammo_pd.ingest import estimate as module
from mammo_pd.ingest.estimate import _choose, estimate
from mammo_pd.ingest.survey import Sample


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(jobs: list[Any], work: Callable[[Any], Any], _: int) -> Iterator[tuple[Any, Any]]:
        return ((job, work(job)) for job in jobs)

    monkeypatch.setattr(module, "run_in_processes", run)


def test_size_is_that_of_the_store_where_every_file_is_measured(
    phantoms: Path, phantom_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = open_store(phantom_store)
    manifest = read_manifest(paths.manifest)
    true = sum(stored_bytes(paths, image_id) for image_id in manifest["image_id"])
    sizes = (manifest["rows"] * manifest["columns"]).sum()
    files = sorted(phantoms.rglob("*.dcm"))
    # The pixels of a file do not matter where all are measured, but for their sum.
    samples = [Sample(file, "1.2", int(sizes) // len(files)) for file in files]
    monkeypatch.setattr(module, "_TIMED", len(files))
    found = estimate(samples, {"1.2": int(sizes)}, len(files), 1)
    assert found is not None
    assert found.timed == len(files) == len(manifest)
    assert found.stored_bytes == pytest.approx(true, rel=0.001)
    monkeypatch.setattr(module, "_TIMED", 2)
    few = [estimate(samples[:2], {"1.2": 10**9}, 10, 1, repeated=copies) for copies in (0, 5)]
    # Copies are not stored.
    whole, half = (one.stored_bytes for one in few if one is not None)
    assert half == pytest.approx(whole / 2, rel=0.001)


def test_files_that_cannot_be_processed_are_no_estimate(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"no image")
    assert estimate([Sample(tmp_path / "a.dcm", "1.2", 10)], {"1.2": 10}, 1, 1) is None
    assert estimate([], {}, 0, 1) is None


def test_every_transfer_syntax_is_timed() -> None:
    samples = [
        Sample(Path(f"{syntax}/{number}"), syntax, 1)
        for syntax in (uid.ExplicitVRLittleEndian, uid.JPEG2000, uid.RLELossless)
        for number in range(8)
    ]
    chosen = [sample.syntax for sample in _choose(samples)]
    assert len(chosen) == 8
    assert {chosen.count(syntax) for syntax in chosen} == {2, 3}
