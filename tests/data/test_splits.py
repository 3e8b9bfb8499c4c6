import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_pd.data.splits import (
    SplitTable,
    check_split,
    has_lost_images,
    make_split,
    patient_groups,
    read_folds,
    read_split,
    remove_from_split,
    with_joined_patients,
    write_split,
)
from mammo_pd.errors import InputError


def manifest_of(patients: int, images_each: int = 4, prevalence: float = 0.3) -> pd.DataFrame:
    rows = [
        {
            "image_id": f"i{patient:04d}-{image}",
            "patient_id": f"p{patient:04d}",
            "exam_id": f"e{patient:04d}-{image // 2}",
            "pixel_hash": f"h{patient:04d}-{image}",
            "status": "ok",
            "label": int(patient < patients * prevalence and image < 2),
            "manufacturer": "AB"[patient % 2],
        }
        for patient in range(patients)
        for image in range(images_each)
    ]
    frame = pd.DataFrame(rows).convert_dtypes()
    return frame.astype({"label": "Int8"})


def leaky(seed: int) -> pd.DataFrame:
    """A table that tries hard to leak: IDs, exams and pixels shared in chains across patients."""
    random = np.random.default_rng(seed)
    frame = manifest_of(60)
    for column in ("patient_id", "exam_id", "pixel_hash"):
        source = random.choice(len(frame), 12)
        frame.loc[random.choice(len(frame), 12), column] = frame[column].to_numpy()[source]
    frame.loc[random.choice(len(frame), 30), "exam_id"] = pd.NA
    frame.loc[random.choice(len(frame), 20), "pixel_hash"] = pd.NA
    return frame.sample(frac=1, random_state=seed, ignore_index=True)


@pytest.mark.parametrize("seed", range(3))
def test_a_patient_of_several_ids_has_one(seed):
    frame = leaky(seed)
    joined = with_joined_patients(frame)
    groups = patient_groups(frame)
    assert frame["patient_id"].groupby(groups).nunique().max() > 1
    assert (joined["patient_id"].groupby(groups).nunique() == 1).all()
    assert (groups.groupby(joined["patient_id"]).nunique() == 1).all()
    own = frame["patient_id"].groupby(groups).agg(set)
    assert all(name in own[group] for name, group in zip(joined["patient_id"], groups, strict=True))
    # Of whoever has one ID nothing changes.
    alone = groups.map(own).map(len) == 1
    assert joined["patient_id"][alone].equals(frame["patient_id"][alone])


def test_exams_that_are_numbered_within_each_patient_are_told_of():
    frame = manifest_of(30)
    numbered = frame.assign(exam_id=frame["exam_id"].str[-1])
    with pytest.raises(InputError, match=r"30 patient IDs make 1 patient, .* exam_id of the label"):
        make_split(numbered)
    with pytest.raises(InputError, match=r"30 patient IDs make 1 patient, .* exam_id of the label"):
        make_split(numbered.assign(label=pd.NA), may_lack_labels=True)


def no_value_on_two_sides(frame: pd.DataFrame, split: SplitTable) -> bool:
    column = "fold" if "fold" in split.table else "split"
    joined = frame.merge(split.table[["image_id", column]], on="image_id")
    return all(
        (joined.dropna(subset=[key]).groupby(key)[column].nunique() <= 1).all()
        for key in ("patient_id", "exam_id", "pixel_hash")
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([None, 2, 3, 5]))
def test_no_patient_exam_or_picture_on_two_sides(seed: int, folds: int | None) -> None:
    frame = leaky(seed)
    split = make_split(frame, folds=folds, seed=seed)
    assert len(split.table) == len(frame)
    assert no_value_on_two_sides(frame, split)


def test_grouping_by_patient_id_alone_would_have_leaked() -> None:
    frame = leaky(1)
    by_id_alone = frame.assign(exam_id=pd.NA, pixel_hash=pd.NA)
    naive = make_split(by_id_alone)
    assert not no_value_on_two_sides(frame, naive)
    with pytest.raises(InputError, match="more than one side"):
        check_split(naive, frame)


def test_groups_are_joined_through_chains() -> None:
    frame = pd.DataFrame(
        {
            "patient_id": ["a", "a", "b", "c", "d"],
            "exam_id": ["1", "2", "2", "3", None],
            "pixel_hash": ["p", "q", "r", "r", None],
        }
    ).convert_dtypes()
    assert patient_groups(frame).tolist() == [0, 0, 0, 0, 1]


def test_an_excluded_image_still_shows_that_two_patients_are_one() -> None:
    frame = manifest_of(30)
    link = frame.iloc[[0]].assign(image_id="x", patient_id="p0029", status="excluded")
    split = make_split(pd.concat([frame, link], ignore_index=True))
    sides = split.table[split.table["patient_id"].isin(["p0000", "p0029"])]["split"]
    assert "x" not in set(split.table["image_id"])
    assert sides.nunique() == 1


def test_same_seed_same_split_whatever_the_order() -> None:
    frame = manifest_of(50)
    shuffled = frame.sample(frac=1, random_state=3, ignore_index=True)
    assert make_split(frame).hash == make_split(shuffled).hash
    assert make_split(frame).hash != make_split(frame, seed=1).hash


@pytest.mark.parametrize("folds", [None, 5])
def test_label_and_vendor_are_stratified(folds: int | None) -> None:
    frame = manifest_of(200)
    split = make_split(frame, folds=folds)
    column = "fold" if folds else "split"
    joined = frame.merge(split.table[["image_id", column]], on="image_id")
    patients = joined.groupby("patient_id").agg(
        {"label": "max", "manufacturer": "first", column: "first"}
    )
    share = patients.groupby(column)["label"].mean()
    assert (share - 0.3).abs().max() < 0.03
    share = (patients["manufacturer"] == "A").groupby(patients[column]).mean()
    assert (share - 0.5).abs().max() < 0.06


def test_fractions_are_kept() -> None:
    sizes = make_split(manifest_of(200)).table["split"].value_counts(normalize=True)
    assert sizes["train"] == pytest.approx(0.7, abs=0.011)
    assert sizes["val"] == pytest.approx(0.1, abs=0.011)
    assert sizes["test"] == pytest.approx(0.2, abs=0.011)


def test_every_part_has_both_classes_even_when_positives_are_few() -> None:
    frame = manifest_of(100, prevalence=0.03)
    joined = frame.merge(make_split(frame).table[["image_id", "split"]], on="image_id")
    assert (joined.groupby("split")["label"].max() == 1).all()


def test_too_few_positives_are_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"only 2 patients are positive.*--positive"):
        make_split(manifest_of(100, prevalence=0.02))


def test_folds_take_turns() -> None:
    split = make_split(manifest_of(40), folds=5)
    tested = pd.concat([split.table["image_id"][split.parts(fold) == "test"] for fold in range(5)])
    assert sorted(tested) == sorted(split.table["image_id"])
    for fold in range(5):
        assert set(split.parts(fold)) == {"train", "val", "test"}
    with pytest.raises(InputError, match="--fold"):
        split.parts()


def patients_of(classes: dict[str, int]) -> pd.DataFrame:
    """Women with two images each, of each class as many as asked for, from two vendors."""
    labels = [label for label, count in classes.items() for _ in range(count)]
    rows = [
        {
            "image_id": f"i{number:04d}-{image}",
            "patient_id": f"p{number:04d}",
            "exam_id": f"e{number:04d}",
            "pixel_hash": f"h{number:04d}-{image}",
            "status": "ok",
            "label": {"positive": 1, "negative": 0}.get(label),
            "manufacturer": "AB"[number % 2],
        }
        for number, label in enumerate(labels)
        for image in range(2)
    ]
    return pd.DataFrame(rows).convert_dtypes().astype({"label": "Int8"})


@settings(max_examples=60, deadline=None)
@given(
    folds=st.integers(2, 8),
    val=st.floats(0.001, 0.999),
    positive=st.integers(1, 30),
    negative=st.integers(1, 30),
    unknown=st.integers(0, 5),
    seed=st.integers(0, 3),
)
def test_validation_share_of_any_folds(
    folds: int, val: float, positive: int, negative: int, unknown: int, seed: int
) -> None:
    frame = patients_of({"positive": positive, "negative": negative, "unknown": unknown})
    enough = 4 if folds == 2 else folds
    if min(positive, negative) < enough:
        with pytest.raises(
            InputError, match=rf"and at least {enough} are needed for one in train, val"
        ):
            make_split(frame, folds=folds, val=val, seed=seed)
        return
    split = make_split(frame, folds=folds, val=val, seed=seed)
    classes = frame["label"].map({1: "positive", 0: "negative"}).fillna("unknown").to_numpy()
    for fold in range(folds):
        parts = split.parts(fold)
        table = split.table.assign(part=parts, label=classes)
        assert ((parts == "test") == (split.table["fold"] == fold)).all()
        assert (table.groupby("patient_id")["part"].nunique() == 1).all()
        for label, count in (("positive", positive), ("negative", negative)):
            women = table[table["label"] == label].groupby("part")["patient_id"].nunique()
            assert set(women.index) == {"train", "val", "test"}
            others = count - women["test"]
            # Rounded, but never to none or all of them.
            assert abs(women["val"] - np.clip(val * others, 1, others - 1)) < 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.5), st.integers(2, 6))
def test_nothing_links_a_validation_woman_to_training(seed: int, val: float, folds: int) -> None:
    frame = leaky(seed)
    split = make_split(frame, folds=folds, val=val, seed=seed)
    for fold in range(folds):
        parts = SplitTable("parts", split.table.assign(split=split.parts(fold)), "")
        whole = SplitTable("parts", parts.table.drop(columns=["fold", "val_of"]), "")
        assert no_value_on_two_sides(frame, whole)


def test_validation_is_stratified_by_label_and_vendor() -> None:
    frame = manifest_of(400)
    split = make_split(frame, folds=5, val=0.25)
    for fold in range(5):
        joined = frame.merge(split.table.assign(part=split.parts(fold)), on="image_id")
        women = joined.groupby("patient_id_x").agg(
            label=("label", "max"), vendor=("manufacturer", "first"), part=("part", "first")
        )
        assert (women.groupby("part")["label"].mean() - 0.3).abs().max() < 0.03
        assert ((women["vendor"] == "A").groupby(women["part"]).mean() - 0.5).abs().max() < 0.06
        sizes = women["part"].value_counts()
        assert sizes["val"] == pytest.approx(0.25 * 320, abs=2)


def test_validation_follows_seed_and_fold_and_is_hashed() -> None:
    frame = manifest_of(60)
    split = make_split(frame, folds=3, val=0.2)
    assert make_split(frame.sample(frac=1, random_state=1), folds=3, val=0.2).hash == split.hash
    other = make_split(frame, folds=3, val=0.3)
    # The folds themselves do not depend on the share.
    assert other.table["fold"].tolist() == split.table["fold"].tolist()
    assert other.hash != split.hash
    drawn = [frozenset(split.table["image_id"][split.parts(fold) == "val"]) for fold in range(3)]
    assert len(set(drawn)) == 3


def test_share_that_is_none_is_refused() -> None:
    for val in (0, 1, -0.1, 1.5):
        with pytest.raises(InputError, match=r"validation share of .* --val 0\.1"):
            make_split(manifest_of(40), folds=5, val=val)
    with pytest.raises(InputError, match="--folds 1: at least 2"):
        make_split(manifest_of(40), folds=1)


def test_folds_of_earlier_versions_keep_their_hash_and_meaning(tmp_path: Path) -> None:
    """Without ``val_of`` the fold after the tested one validates."""
    rows = ["image_id,patient_id,fold"] + [f"i{i},p{i // 2},{i // 2 % 3}" for i in range(12)]
    (tmp_path / "old.csv").write_text("\n".join(rows) + "\n")
    # As earlier versions computed it.
    old_hash = hashlib.sha256(
        "\n".join(sorted(f"i{i},{i // 2 % 3}" for i in range(12))).encode()
    ).hexdigest()
    (tmp_path / "old.json").write_text(json.dumps({"hash": old_hash, "folds": 3}))
    split = read_split(tmp_path, "old")
    assert split.hash == old_hash
    for fold in range(3):
        expected = {fold: "test", (fold + 1) % 3: "val", (fold + 2) % 3: "train"}
        assert split.parts(fold).tolist() == split.table["fold"].map(expected).tolist()


def test_woman_who_validates_in_half_is_a_leak() -> None:
    frame = manifest_of(40)
    split = make_split(frame, folds=4, val=0.2)
    table = split.table.copy()
    validates = table.index[table["val_of"] != ""][0]
    table.loc[validates, "val_of"] = ""
    with pytest.raises(InputError, match="1 patient on more than one side"):
        check_split(SplitTable("half", table, split.hash), frame)


def test_written_split_is_read_back(tmp_path: Path) -> None:
    split = make_split(manifest_of(30))
    write_split(split, tmp_path, {"seed": 0})
    again = read_split(tmp_path, "default")
    assert again.hash == split.hash
    assert again.parts().tolist() == split.parts().tolist()
    folds = make_split(manifest_of(30), folds=3, name="folds")
    write_split(folds, tmp_path, {"seed": 0})
    again = read_split(tmp_path, "folds")
    assert again.hash == folds.hash
    pd.testing.assert_series_equal(again.parts(2), folds.parts(2))


def test_edited_split_is_refused(tmp_path: Path) -> None:
    path = write_split(make_split(manifest_of(30)), tmp_path, {})
    path.write_text(path.read_text().replace(",test", ",train", 1))
    with pytest.raises(InputError, match="changed after it was made"):
        read_split(tmp_path, "default")


def test_table_of_a_split_is_held_to_its_words_and_its_hash(tmp_path: Path) -> None:
    split = make_split(manifest_of(30))
    for word in ("training", "Test", "train "):
        other = split.table.assign(split=split.table["split"].replace("train", word))
        write_split(SplitTable.of("default", other), tmp_path, {})
        with pytest.raises(InputError, match=f"has '{word}' in the column split; the parts are"):
            read_split(tmp_path, "default")
    write_split(split, tmp_path, {})
    (tmp_path / "default.json").unlink()
    with pytest.raises(InputError, match=r"default\.csv has no default\.json beside it"):
        read_split(tmp_path, "default")


def test_what_lost_images_alone_is_told_from_any_other_split(tmp_path: Path) -> None:
    split = make_split(manifest_of(30))
    write_split(split, tmp_path, {"seed": 0})
    ids = split.table["image_id"]
    assert not has_lost_images(tmp_path, "default", split.hash)
    one = remove_from_split(tmp_path, "default", [ids[0]])
    two = remove_from_split(tmp_path, "default", [ids[1]])
    assert one is not None and two is not None
    assert has_lost_images(tmp_path, "default", split.hash)
    assert has_lost_images(tmp_path, "default", one.hash)
    assert not has_lost_images(tmp_path, "default", two.hash)
    assert not has_lost_images(tmp_path, "default", make_split(manifest_of(30), seed=1).hash)
    assert not has_lost_images(tmp_path, "other", split.hash)
    # The others are where they were.
    kept = split.table[~ids.isin(ids[:2])].reset_index(drop=True)
    pd.testing.assert_frame_equal(two.table, kept, check_dtype=False)


def test_folds_are_read_where_there_are_some(tmp_path: Path) -> None:
    write_split(make_split(manifest_of(30)), tmp_path, {})
    folds = make_split(manifest_of(30), folds=3, name="three")
    write_split(folds, tmp_path, {})
    assert (read_folds(tmp_path, "three").hash, read_folds(tmp_path, "three").folds) == (
        folds.hash,
        3,
    )
    for name in ("default", "other"):
        with pytest.raises(InputError, match=f"there is no split '{name}' with folds"):
            read_folds(tmp_path, name)


@pytest.mark.parametrize("lacking", ["image_id", "patient_id", "split"])
def test_table_without_a_column_is_refused(lacking: str, tmp_path: Path) -> None:
    path = write_split(make_split(manifest_of(30)), tmp_path, {})
    pd.read_csv(path).drop(columns=lacking).to_csv(path, index=False)
    with pytest.raises(InputError, match="needs the columns image_id, patient_id and split or"):
        read_split(tmp_path, "default")


@pytest.mark.parametrize("lacking", ["image_id", "patient_id", "split"])
def test_table_with_one_empty_cell_is_refused(lacking: str, tmp_path: Path) -> None:
    """As where it was truncated; not as a split that somebody edited."""
    path = write_split(make_split(manifest_of(30)), tmp_path, {})
    table = pd.read_csv(path, dtype=str)
    table.loc[len(table) - 1, lacking] = None
    table.to_csv(path, index=False)
    with pytest.raises(InputError, match="rows without an image_id, a patient_id or a side"):
        read_split(tmp_path, "default")


@pytest.mark.parametrize(
    "fractions", [(0.0, 0.5, 0.5), (0.5, 0.5, 0.5), (1.2, -0.1, -0.1), (0.7, 0.1, 0.1)]
)
def test_fractions_that_are_none_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="three positive numbers that add up to 1"):
        make_split(manifest_of(30), fractions=fractions)
    # Of folds they are not asked for.
    assert make_split(manifest_of(30), fractions=fractions, folds=3).folds == 3


def test_missing_split_names_those_there_are(tmp_path: Path) -> None:
    write_split(make_split(manifest_of(30), name="five"), tmp_path, {})
    with pytest.raises(InputError, match=r"there are: five.*split --store \S+ --name other"):
        read_split(tmp_path, "other")


@pytest.mark.corpus
def test_rsna_and_vindr_tables_split_without_leak(corpus: Path) -> None:
    rsna = pd.read_csv(corpus / "labels" / "rsna_train.csv", dtype=str)
    frame = pd.DataFrame(
        {
            "image_id": rsna["image_id"],
            "patient_id": rsna["patient_id"],
            "exam_id": pd.NA,
            "pixel_hash": pd.NA,
            "label": rsna["cancer"].astype("Int8"),
            "manufacturer": rsna["machine_id"],
            "site_id": rsna["site_id"],
            "status": "ok",
        }
    )
    split = make_split(frame)
    joined = frame.merge(split.table[["image_id", "split"]], on="image_id")
    assert (joined.groupby("patient_id")["split"].nunique() == 1).all()
    positive = joined.groupby(["split", "patient_id"])["label"].max().groupby("split").mean()
    assert np.ptp(positive.to_numpy(dtype=float)) < 0.002
