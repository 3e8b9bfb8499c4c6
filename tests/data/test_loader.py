import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.loader import BatchLoader
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.store import open_store
from mammo_pd.errors import InputError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def dataset(phantom_store: Path) -> MammogramDataset:
    rows = read_manifest(phantom_store / "manifest.parquet")
    # Several targets, fractions and missing ones: none may change on its way to a GPU.
    targets = np.random.default_rng(0).random((len(rows), 3), np.float32)
    targets[::2, 1] = np.nan
    views = np.stack([np.arange(len(rows)) // 2] * 3, axis=1)
    return MammogramDataset(open_store(phantom_store), rows, (128, 96), targets, views)


@pytest.mark.parametrize("device", DEVICES)
def test_batches_come_in_order_and_whole(dataset: MammogramDataset, device: str) -> None:
    """More batches than there are slots, of different sizes, twice over."""
    rows = [[3, 1], [2], [0, 5, 4], [7, 6], [1], [9, 8], [11, 10, 12]]
    loader = BatchLoader(dataset, rows, torch.device(device), threads=3)
    for _ in range(2):
        seen = 0
        for expected, batch in zip(rows, loader, strict=True):
            alone = dataset.read(expected)
            assert batch.pixels.device.type == device
            for field in fields(batch):
                one, other = getattr(batch, field.name), getattr(alone, field.name)
                if field.name == "units":
                    assert one == other
                    continue
                torch.testing.assert_close(one.cpu(), other, rtol=0, atol=0, equal_nan=True)
            seen += 1
        assert seen == len(rows)
        assert loader.waited > 0
        # Of the batches behind the first three, in this pass alone.
        assert (loader.read.images, loader.read.seconds > 0) == (8, True)
        assert loader.read.bytes == 2 * sum(len(dataset.read(row).pixels) for row in rows[3:])


def test_reader_ends_with_a_pass_that_is_broken_off(dataset: MammogramDataset) -> None:
    before = threading.active_count()
    passes = iter(BatchLoader(dataset, [[0], [1], [2], [3], [4], [5]], torch.device("cpu"), 2))
    next(passes)
    passes.close()
    assert threading.active_count() == before


def test_a_pass_can_be_started_before_it_is_asked_for(dataset: MammogramDataset) -> None:
    """Also several times, and again after one that nobody asked for."""
    before, device = threading.active_count(), torch.device("cpu")
    rows = [[3, 1], [2], [0, 5, 4], [7, 6], [1]]
    asked: list[int] = []

    class Watched:
        def __iter__(self) -> Iterator[list[int]]:
            asked.append(threading.active_count())
            return iter(rows)

    loader = BatchLoader(dataset, Watched(), device, threads=2)
    assert [batch.rows.tolist() for batch in loader] == rows
    earlier = loader.read
    loader.start()
    loader.start()
    assert loader.read is earlier
    loader.close()
    loader.close()
    assert threading.active_count() == before
    loader.start()
    assert [batch.rows.tolist() for batch in loader] == rows
    assert len(asked) == 3
    assert threading.active_count() == before


def test_error_of_a_thread_is_raised_where_the_batch_is_asked_for(
    dataset: MammogramDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "image_ids", [*dataset.image_ids[:2], "none"])
    batches = iter(BatchLoader(dataset, [[0], [1], [2]], torch.device("cpu"), 2))
    assert next(batches).rows.tolist() == [0]
    assert next(batches).rows.tolist() == [1]
    with pytest.raises(InputError, match="cannot be read"):
        next(batches)


def test_no_more_is_read_ahead_than_there_are_slots(
    dataset: MammogramDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, rows = dataset.read, []

    def watch(wanted: list[int], **options: object) -> object:
        rows.append(wanted)
        return read(wanted, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset, "read", watch)
    batches = iter(BatchLoader(dataset, [[row] for row in range(12)], torch.device("cpu"), 1))
    next(batches)
    deadline = time.monotonic() + 5
    while len(rows) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(rows) == 4
    batches.close()  # type: ignore[attr-defined]
