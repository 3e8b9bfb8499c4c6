from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_pd.data.splits import (
    SplitTable,
    check_split,
    make_split,
    patient_groups,
    read_split,
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


def no_value_on_two_sides(frame: pd.DataFrame, split: SplitTable) -> bool:
    column = "fold" if "fold" in split.table else "split"
    joined = frame.merge(split.table[["image_id", column]], on="image_id")
    return all(
        (joined.dropna(subset=[key]).groupby(key)[column].nunique() <= 1).all()
        for key in ("patient_id", "exam_id", "pixel_hash")
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([None, 3, 5]))
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


def test_written_split_is_read_back(tmp_path: Path) -> None:
    split = make_split(manifest_of(30))
    write_split(split, tmp_path, {"seed": 0})
    again = read_split(tmp_path, "default")
    assert again.hash == split.hash
    assert again.parts().tolist() == split.parts().tolist()


def test_edited_split_is_refused(tmp_path: Path) -> None:
    path = write_split(make_split(manifest_of(30)), tmp_path, {})
    path.write_text(path.read_text().replace(",test", ",train", 1))
    with pytest.raises(InputError, match="changed after it was made"):
        read_split(tmp_path, "default")


def test_missing_split_names_those_there_are(tmp_path: Path) -> None:
    write_split(make_split(manifest_of(30), name="five"), tmp_path, {})
    with pytest.raises(InputError, match=r"there are: five.*mammo-pd split --name other"):
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
