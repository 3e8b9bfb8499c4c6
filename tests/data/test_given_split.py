"""A split that a column of the manifest names."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_splits import leaky, manifest_of

from mammo_pd.data.given_split import split_from_column
from mammo_pd.data.splits import SplitTable, check_split, make_split, patient_groups
from mammo_pd.errors import InputError


def with_column(frame: pd.DataFrame, split: SplitTable, side: str) -> pd.DataFrame:
    """The manifest with a split as a column of text, as label tables bring it."""
    named = split.table.set_index("image_id")[side].astype("string")
    return frame.assign(own=frame["image_id"].map(named))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 50), folds=st.sampled_from([None, 2, 4]))
def test_a_split_given_as_a_column_is_the_split(seed: int, folds: int | None) -> None:
    frame = leaky(seed)
    split = make_split(frame, folds=folds, val=0.2, seed=seed)
    own = with_column(frame, split, "fold" if folds else "split")
    # Of folds those who validate are drawn again, in the same way.
    taken = split_from_column(own, "own", val=0.2 if folds else None, seed=seed)
    assert taken.hash == split.hash
    shuffled = own.sample(frac=1, random_state=seed)
    again = split_from_column(shuffled, "own", val=0.2 if folds else None, seed=seed)
    assert again.hash == split.hash
    pd.testing.assert_frame_equal(again.table, taken.table)


@pytest.mark.parametrize(
    "words",
    [
        ("training", "validation", "testing"),
        ("Train", "VALID", " Test "),
        ("TRAINING", "dev", "holdout"),
    ],
)
def test_parts_by_the_words_of_other_tables(words: tuple[str, str, str]) -> None:
    frame = manifest_of(40)
    split = make_split(frame)
    named = dict(zip(("train", "val", "test"), words, strict=True))
    own = with_column(frame, split, "split")
    own["own"] = own["own"].map(named)
    assert split_from_column(own, "own").hash == split.hash


def test_folds_of_any_numbers_are_numbered_in_their_order() -> None:
    frame = manifest_of(40)
    split = make_split(frame, folds=3)
    own = with_column(frame, split, "fold")
    expected = split_from_column(own, "own")
    # As a column of numbers of which one is missing is read.
    for numbers in ({"0": "1", "1": "2", "2": "5"}, {"0": 1.0, "1": 2.0, "2": 3.0}):
        other = own.assign(own=own["own"].map(numbers))
        assert split_from_column(other, "own").hash == expected.hash


@pytest.mark.parametrize("seed", range(5))
def test_patient_on_two_sides_is_refused_however_she_is_joined(seed: int) -> None:
    frame = leaky(seed)
    random = np.random.default_rng(seed)
    # By ID alone, as published splits are made; she may have several.
    ids = frame["patient_id"].unique()
    parts = pd.Series(random.choice(["train", "val", "test"], len(ids)), index=ids)
    own = frame.assign(own=frame["patient_id"].map(parts))
    leaks = int((own.groupby(patient_groups(frame))["own"].nunique() > 1).sum())
    assert leaks > 1
    with pytest.raises(InputError, match=f"^by the column own, {leaks} patients would be"):
        split_from_column(own, "own")
    # As the message says: their cells left empty, the rest is taken.
    sides = own.groupby(patient_groups(frame))["own"].transform("nunique")
    mended = own.assign(own=own["own"].where(sides == 1))
    split = split_from_column(mended, "own")
    check_split(split, frame)
    assert len(split.table) == int((sides == 1).sum())


def test_without_validation_a_share_of_those_trained_on_is_drawn_by_patient() -> None:
    frame = manifest_of(100)
    patients = frame["patient_id"]
    tested = patients.isin(sorted(patients.unique())[::4])
    own = frame.assign(own=np.where(tested, "test", "training"))
    split = split_from_column(own, "own", val=0.2)
    check_split(split, frame)
    joined = split.table.merge(frame[["image_id", "label"]], on="image_id")
    women = joined.groupby("split")["patient_id"].nunique()
    assert women.to_dict() == {"train": 60, "val": 15, "test": 25}
    assert set(joined.loc[joined["split"] == "test", "patient_id"]) == set(patients[tested])
    # Stratified: .3 of the women are positive.
    positive = joined[joined["label"] == 1].groupby("split")["patient_id"].nunique()
    assert abs(positive["val"] - 0.3 * 15) <= 1
    assert split_from_column(own, "own", val=0.2, seed=1).hash != split.hash
    for share in (0.0, 1.0):
        with pytest.raises(InputError, match="is not between 0 and 1"):
            split_from_column(own, "own", val=share)


def test_images_that_cannot_be_used_or_have_an_empty_cell_are_in_no_part() -> None:
    frame = manifest_of(40)
    own = with_column(frame, make_split(frame), "split")
    own.loc[own.index[:4], "own"] = " "
    own.loc[own.index[4:8], "status"] = "excluded"
    split = split_from_column(own, "own")
    assert len(split.table) == len(frame) - 8
    assert not set(split.table["image_id"]) & set(own["image_id"][:8])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": "maybe"}, r"has 1 value naming no part \(such as maybe\); the parts are"),
        # What may be a name is not told.
        ({"train": "Anna Smith"}, "has 1 value naming no part; the parts are"),
        ({"test": "train"}, "names no image of the part test"),
        ({"train": "test", "val": "test"}, "names no image of the part train"),
        ({"train": "1", "val": "1", "test": "1"}, "names one fold alone, 1; at least 2"),
        ({"train": "1.5", "val": "1", "test": "2"}, r"not whole \(such as 1.5\)"),
        ({"train": "", "val": "", "test": ""}, "is empty for all usable images"),
    ],
)
def test_column_that_is_no_split_is_refused(change: dict[str, str], message: str) -> None:
    frame = manifest_of(40)
    own = with_column(frame, make_split(frame), "split")
    with pytest.raises(InputError, match=message):
        split_from_column(own.assign(own=own["own"].replace(change)), "own")


def test_share_beside_a_validation_part_is_refused() -> None:
    frame = manifest_of(40)
    own = with_column(frame, make_split(frame), "split")
    with pytest.raises(InputError, match="says itself which images validate"):
        split_from_column(own, "own", val=0.1)


def test_column_that_is_not_there_is_told_with_the_way_to_bring_it() -> None:
    frame = manifest_of(40).assign(site_id="1")
    # A column that the store has of itself, such as the label, is no split either.
    for column in ("own", "label"):
        told = (
            rf"no column '{column}'.*brought: site_id\).*preprocess DICOM_DIR .* --carry {column}$"
        )
        with pytest.raises(InputError, match=told):
            split_from_column(frame, column)
