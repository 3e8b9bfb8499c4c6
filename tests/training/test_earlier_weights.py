"""What weights have learnt from is told by their split; those that were checked are loaded."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from small_runs import set_up, small

from mammo_pd.backbones.weights.report import CARD_KEY
from mammo_pd.data.cohort import Cohort
from mammo_pd.data.overlap import Overlap
from mammo_pd.data.split_store import split_store
from mammo_pd.data.store import StorePaths
from mammo_pd.errors import InputError
from mammo_pd.terms import Split
from mammo_pd.training.earlier_weights import (
    refuse_replaced,
    refuse_seen_test_women,
    version_of,
)
from mammo_pd.training.model_card import METADATA_KEY, ModelCard
from mammo_pd.training.setup import RunSetup
from mammo_pd.training.train import start_run


@pytest.fixture(scope="module")
def setup(phantom_store: Path) -> RunSetup:
    return set_up(phantom_store, small())


def written(card: ModelCard, file: Path) -> str:
    save_file({"a": torch.zeros(1)}, file, {METADATA_KEY: "{}", CARD_KEY: card.dump()})
    return str(file)


@pytest.fixture
def paths(phantom_store: Path, tmp_path: Path) -> StorePaths:
    """The same images, with splits of their own: ``few`` to learn from, ``other`` to test on."""
    folder = tmp_path / "store"
    folder.mkdir()
    for name in ("store.json", "manifest.parquet"):
        shutil.copy(phantom_store / name, folder)
    (folder / "pixels").symlink_to(phantom_store / "pixels")
    found = StorePaths(folder)
    split_store(found, name="few", fractions=(0.2, 0.2, 0.6), say=lambda _: None)
    split_store(found, name="other", fractions=(0.3, 0.2, 0.5), say=lambda _: None)
    return found


def test_women_count_once_under_whatever_ids(
    setup: RunSetup, paths: StorePaths, tmp_path: Path
) -> None:
    few, cohort = Cohort.read(paths, "few"), Cohort.read(paths, "other")
    card = replace(setup.card, split="few", split_hash=few.split.hash)
    weights = written(card, tmp_path / "w.safetensors")

    def seen(of: Cohort) -> int:
        try:
            refuse_seen_test_women(weights, of, lambda _: None)
        except InputError as error:
            (number,) = re.findall(r"learnt from (\d+) of the", str(error))
            return int(number)
        return 0

    learnt = pd.concat([few.part(Split.TRAIN), few.part(Split.VAL)])
    tested = cohort.part(Split.TEST)
    assert seen(cohort) == len({*learnt["patient_id"]} & {*tested["patient_id"]})
    # A woman who is tested has the very picture of one who was learnt from.
    unseen = tested[~tested["patient_id"].isin(learnt["patient_id"])].iloc[0]
    elsewhere = learnt[~learnt["patient_id"].isin(tested["patient_id"])].iloc[0]
    manifest = cohort.manifest.copy()
    same = manifest["image_id"] == unseen["image_id"]
    manifest.loc[same, "pixel_hash"] = elsewhere["pixel_hash"]
    assert seen(replace(cohort, manifest=manifest)) == seen(cohort) + 1
    # One is one too many.
    table = cohort.split.table.copy()
    one = tested[tested["patient_id"].isin(learnt["patient_id"])]["patient_id"].iloc[0]
    others = tested["image_id"][tested["patient_id"] != one]
    table.loc[table["image_id"].isin(others), "split"] = Split.TRAIN
    assert seen(replace(cohort, split=replace(cohort.split, table=table))) == 1


def test_a_split_of_the_same_name_is_not_taken_for_that_of_the_weights(
    setup: RunSetup, paths: StorePaths, tmp_path: Path
) -> None:
    card = replace(setup.card, split="few", split_hash="0" * 64)
    told: list[str] = []
    cohort = Cohort.read(paths, "other")
    refuse_seen_test_women(written(card, tmp_path / "w.safetensors"), cohort, told.append)
    assert "a run on the split few, which this store does not have" in told[0]
    # Nor is that of the store that they were made on.
    run = start_run(tmp_path / "runs", setup)
    card = replace(setup.card, split_hash="0" * 64)
    refuse_seen_test_women(written(card, run.chosen), cohort, told.append)
    assert "is not to be found" in told[1]


@pytest.mark.parametrize("overlap", [Overlap(1, 0, True), Overlap(0, 1, None), Overlap(1, 1, True)])
def test_what_weights_of_another_store_have_seen_is_all_that_they_were_not_tested_on(
    overlap: Overlap,
    setup: RunSetup,
    paths: StorePaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[pd.DataFrame] = []

    def find(_: Any, learnt: pd.DataFrame, __: Any, tested: pd.DataFrame) -> Overlap:
        compared.extend((learnt, tested))
        return overlap

    monkeypatch.setattr("mammo_pd.training.earlier_weights.find_overlap", find)
    run = start_run(tmp_path / "runs", setup)
    cohort = Cohort.read(paths, "other")
    with pytest.raises(InputError, match=f"{overlap.patients} wom.n .* and from {overlap.images} "):
        refuse_seen_test_women(written(setup.card, run.chosen), cohort, lambda _: None)
    learnt, tested = ({*table["image_id"]} for table in compared)
    rows = setup.cohort.rows
    assert learnt == {*rows["image_id"][rows["split"] != Split.TEST]}
    assert tested == {*cohort.part(Split.TEST)["image_id"]}


def rewrite_in_place(file: Path) -> None:
    file.write_bytes(b"others, as many")
    os.utime(file, ns=(0, 2))


def grow(file: Path) -> None:
    file.write_bytes(b"more than there were")
    os.utime(file, ns=(0, 1))


def take_its_place(file: Path) -> None:
    """By one as large and as old."""
    beside = file.with_name("beside")
    beside.write_bytes(b"others, as many")
    os.utime(beside, ns=(0, 1))
    beside.replace(file)


@pytest.mark.parametrize("replace", [rewrite_in_place, grow, take_its_place, Path.unlink])
def test_weights_that_were_replaced_are_refused(
    replace: Callable[[Path], None], tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"some, fifteen b")
    os.utime(file, ns=(0, 1))
    before = version_of(str(file))
    refuse_replaced(str(file), before)
    replace(file)
    with pytest.raises(InputError, match=r"model\.safetensors were replaced"):
        refuse_replaced(str(file), before)


def test_weights_that_were_not_there_when_they_were_checked_are_refused(tmp_path: Path) -> None:
    for weights in (None, "timm", str(tmp_path / "none.safetensors")):
        assert version_of(weights) is None
        refuse_replaced(weights, None)
    (tmp_path / "none.safetensors").touch()
    with pytest.raises(InputError, match="were replaced"):
        refuse_replaced(str(tmp_path / "none.safetensors"), None)
