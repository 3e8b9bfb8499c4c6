"""``mammo-pd split`` by hand, also of a store that nothing labels."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mammo_pd.cli.app import main
from mammo_pd.data.splits import read_split


def store_with(table: pa.Table, phantom_store: Path, folder: Path) -> Path:
    """A store of this manifest, without pixels."""
    store = folder / "store"
    store.mkdir()
    shutil.copy(phantom_store / "store.json", store)
    pq.write_table(table, store / "manifest.parquet")
    return store


@pytest.fixture
def unlabelled(phantom_store: Path, tmp_path: Path) -> Path:
    table = pq.read_table(phantom_store / "manifest.parquet")
    at = table.schema.get_field_index("label")
    empty = pa.nulls(len(table), table.schema.field(at).type)
    without = table.set_column(at, table.schema.field(at), empty)
    return store_with(without, phantom_store, tmp_path)


@pytest.mark.parametrize("given", ["positional", "option"])
def test_a_store_without_labels_is_split_for_pretraining(
    given: str, unlabelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [str(unlabelled)] if given == "positional" else ["--store", str(unlabelled)]
    for words, command, parts in (
        (["--name", "three"], "pretrain", {"train", "val", "test"}),
        (["--name", "folds", "--folds", "3"], "pretrain", None),
    ):
        assert main(["split", *named, *words]) == 0
        printed = capsys.readouterr().out
        assert "warning: no image has a label yet" in printed
        *_, last = printed.splitlines()
        assert last.startswith(f"next: mammo-pd {command} --store {unlabelled} --split {words[1]} ")
        assert ("--fold 0" in last) == (parts is None)
        split = read_split(unlabelled / "splits", words[1])
        assert split.folds == 3 if parts is None else set(split.table["split"]) == parts
        # By patient as ever: each woman is on one side.
        side = "fold" if parts is None else "split"
        assert np.all(split.table.groupby("patient_id")[side].nunique() == 1)


@pytest.fixture
def with_own_split(phantom_store: Path, tmp_path: Path) -> Path:
    """A store whose label table had a column of parts, without one for validation."""
    table = pq.read_table(phantom_store / "manifest.parquet")
    patients = table["patient_id"].to_pylist()
    tested = set(sorted(set(patients))[::3])
    own = pa.array(["test" if patient in tested else "training" for patient in patients])
    return store_with(table.append_column("published_split", own), phantom_store, tmp_path)


def test_a_data_sets_own_split_is_taken_over(
    with_own_split: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["split", "--store", str(with_own_split), "--name", "published"]
    assert main([*named, "--from-column", "published_split", "--val", "0.25"]) == 0
    assert "next: mammo-pd train" in capsys.readouterr().out
    split = read_split(with_own_split / "splits", "published")
    manifest = pq.read_table(with_own_split / "manifest.parquet").to_pandas()
    own = split.table.merge(manifest[["image_id", "published_split"]], on="image_id")
    assert set(own["split"]) == {"train", "val", "test"}
    assert np.all((own["split"] == "test") == (own["published_split"] == "test"))
    assert np.all(own.groupby("patient_id")["split"].nunique() == 1)
    # Typed again it is the same; from another column it would be another.
    assert main([*named, "--from-column", "published_split", "--val", "0.25"]) == 0
    assert main([*named, "--from-column", "published_split", "--val", "0.5"]) == 2
    assert "there is another split 'published'" in capsys.readouterr().err
    assert main([*named, "--from-column", "published_split", "--folds", "3"]) == 2
    assert "--folds and --from-column exclude each other" in capsys.readouterr().err
