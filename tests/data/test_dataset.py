import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

from mammo_pd.data.dataset import EpochBatches, MammogramDataset
from mammo_pd.data.image_file import find_levels, write_image_file
from mammo_pd.data.loader import BatchLoader
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.store import StorePaths, open_store, read_pyramid_level
from mammo_pd.errors import InputError
from mammo_pd.keyed_random import image_key
from mammo_pd.patches.draw import draw_uniform


@pytest.fixture
def dataset(phantom_store: Path) -> MammogramDataset:
    rows = read_manifest(phantom_store / "manifest.parquet")
    targets = rows[["label", "age"]].to_numpy(np.float32, na_value=np.nan)
    return MammogramDataset(open_store(phantom_store), rows, (128, 96), targets)


def test_images_lie_end_to_end_in_a_batch(dataset: MammogramDataset, phantom_store: Path) -> None:
    batch = dataset.read([3, 0, 7])
    assert batch.rows.tolist() == [3, 0, 7]
    for place, row in enumerate(batch.rows.tolist()):
        start, height, width = (
            int(part[place]) for part in (batch.offsets, batch.heights, batch.widths)
        )
        stored = read_pyramid_level(open_store(phantom_store), dataset.image_ids[row], "native")
        flat = batch.pixels[start : start + height * width].numpy().view(np.uint16)
        assert np.array_equal(flat.reshape(height, width), stored)
        torch.testing.assert_close(
            batch.targets[place], dataset.targets[row], rtol=0, atol=0, equal_nan=True
        )


def test_images_are_ordered_by_size(dataset: MammogramDataset) -> None:
    batch = dataset.read(dataset.by_size())
    sizes = batch.heights * batch.widths
    assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)
    assert sorted(batch.rows.tolist()) == list(range(len(dataset)))


def test_level_that_was_cut_short_or_replaced_is_refused(
    dataset: MammogramDataset, phantom_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(phantom_store, store)
    rows = read_manifest(store / "manifest.parquet")
    files = [open_store(store).image(image_id) for image_id in rows["image_id"]]
    files[0].write_bytes(files[0].read_bytes()[:-2])
    save_file({"native": np.zeros((4, 4), np.float32)}, files[1])
    files[2].unlink()
    files[3].write_bytes(b"")
    copy = MammogramDataset(open_store(store), rows, (128, 96))
    for row in range(4):
        # Without reading it, preprocess sees only that a file is missing or has another size.
        how = "again" if row == 2 else "again with --verify"
        with pytest.raises(
            InputError, match=f"level native of .* cannot be read .* {how} to repair it"
        ):
            copy.read([row])
    assert len(copy.read([4]).pixels)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("level", ["native", "512"])
def test_level_whose_pixels_were_damaged_is_refused_at_its_first_reading(
    level: str, compressed: bool, tmp_path: Path
) -> None:
    """Of the right size and shape, such a level would be trained on without a word."""
    paths = StorePaths(tmp_path)
    pixels = np.random.default_rng(3).integers(0, 4096, (600, 480), np.uint16)
    levels = {"native": pixels, "512": pixels[:512, :410]}
    file = paths.image("ab1")
    file.parent.mkdir(parents=True)
    write_image_file(file, levels, compressed=compressed)
    (tmp_path / "store.json").write_text('{"format": 2, "settings": {}, "fingerprint": ""}')
    rows = pd.DataFrame({"image_id": ["ab1"], "crop_height": [600], "crop_width": [480]})
    img_size = (600, 480) if level == "native" else (256, 205)

    def read() -> None:
        MammogramDataset(paths, rows, img_size).read([0])

    read()
    with file.open("rb") as opened:
        place = find_levels(opened.fileno())[level]
    whole = file.read_bytes()
    for part in range(1, 8):
        content = bytearray(whole)
        # Behind the headers of a compressor's strips, some bits of which change nothing.
        content[place.start + place.size * part // 8 + 1000] ^= 4
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"the level {level} of .* damaged.* again with --ver"):
            read()
    if not compressed:
        # Of a file of an earlier version nothing tells it but preprocess --verify.
        header = bytes(content[:4096]).replace(b'"crc32.', b'"other.')
        file.write_bytes(header + content[4096:])
        read()


def test_epoch_takes_every_image_once_in_another_order() -> None:
    batches = EpochBatches(50, 10, seed=1)
    first = list(batches)
    batches.epoch = 1
    second = list(batches)
    assert len(batches) == len(first) == 5
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(50))
    assert first != second
    again = EpochBatches(50, 10, seed=1)
    again.epoch = 1
    assert list(again) == second


def test_two_processes_see_together_what_one_would() -> None:
    alone = list(EpochBatches(53, 10, seed=1))
    pair = [list(EpochBatches(53, 10, seed=1, rank=rank, world_size=2)) for rank in (0, 1)]
    assert len(alone) == 5
    for whole, left, right in zip(alone, *pair, strict=True):
        assert len(left) == len(right) == 5
        assert sorted(left + right) == sorted(whole)


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    assert [len(batch) for batch in EpochBatches(7, 32, seed=0)] == [7]


def test_draw_of_an_image_does_not_change_with_thread_rank_or_order(
    dataset: MammogramDataset,
) -> None:
    """Through the real loader: each image's positions are the same however it came."""

    def draws(threads: int, rank: int, world: int, seed: int) -> dict[str, list[int]]:
        batches = EpochBatches(len(dataset), 8, seed=seed, rank=rank, world_size=world)
        found = {}
        for batch in BatchLoader(dataset, batches, torch.device("cpu"), threads):
            ids = [dataset.image_ids[row] for row in batch.rows.tolist()]
            keys = torch.tensor([image_key(0, 2, image_id) for image_id in ids])
            found |= dict(zip(ids, draw_uniform(keys, 48, 12).tolist(), strict=True))
        return found

    alone = draws(1, 0, 1, seed=0)
    assert len(alone) == len(dataset)
    assert draws(4, 0, 1, seed=5) == alone
    assert draws(1, 0, 2, seed=1) | draws(2, 1, 2, seed=1) == alone
