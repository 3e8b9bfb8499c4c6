import numpy as np
import pandas as pd
import pytest
from prediction_tables import made_up
from sklearn.metrics import roc_auc_score

from mammo_pd.errors import InputError
from mammo_pd.evaluation.cross_validation import average_seeds, run_aucs, seed_aucs
from mammo_pd.evaluation.levels import Aggregation


def seeds_of(count: int) -> list[pd.DataFrame]:
    """The same images with other scores, in another order."""
    table = made_up(40)
    random = np.random.default_rng(0)
    return [
        table.assign(score=random.random(len(table))).sample(frac=1, random_state=seed)
        for seed in range(count)
    ]


def test_mean_over_seeds_is_taken_image_by_image() -> None:
    tables = seeds_of(3)
    mean = average_seeds(tables)
    assert mean["image_id"].tolist() == tables[0]["image_id"].tolist()
    expected = pd.concat(tables).groupby("image_id")["score"].mean()
    np.testing.assert_allclose(mean["score"], expected[mean["image_id"]])
    # All else is the images' own.
    pd.testing.assert_frame_equal(
        mean.drop(columns="score"), tables[0].drop(columns="score").reset_index(drop=True)
    )
    pd.testing.assert_frame_equal(average_seeds(tables[:1]), tables[0].reset_index(drop=True))


def test_seeds_on_other_images_are_refused() -> None:
    one, other = seeds_of(2)
    with pytest.raises(InputError, match="different images"):
        average_seeds([one, other.iloc[1:]])


def test_auc_of_each_seed_is_scikit_learns_and_then_mean_and_range() -> None:
    tables = dict(zip((0, 5, 7), map(in_folds, seeds_of(3)), strict=True))
    *rows, mean, spread = seed_aucs(tables, Aggregation.MEAN)
    assert [row["seed"] for row in rows] == ["0", "5", "7"]
    for row, table in zip(rows, tables.values(), strict=True):
        assert row["image"] == pytest.approx(by_fold(table))
        by = table.groupby("patient_id").agg({"label": "max", "score": "mean", "fold": "first"})
        assert row["patient"] == pytest.approx(by_fold(by))
    for level in ("image", "breast", "exam", "patient"):
        aucs = [row[level] for row in rows]
        assert mean[level] == pytest.approx(np.mean(aucs))
        assert spread[level] == pytest.approx(max(aucs) - min(aucs))


def in_folds(table: pd.DataFrame) -> pd.DataFrame:
    """Three folds of patients, whose models score on scales of their own."""
    fold = table["patient_id"].str[-4:].astype(int) % 3
    return table.assign(fold=fold, score=table["score"] ** (1 + fold))


def by_fold(rows: pd.DataFrame) -> float:
    """The mean over the positives of scikit-learn's AUC of each fold."""
    of = [group for _, group in rows.groupby("fold")]
    aucs = [roc_auc_score(group["label"], group["score"]) for group in of]
    return float(np.average(aucs, weights=[group["label"].sum() for group in of]))


def test_run_is_judged_on_validation_and_test_apart() -> None:
    table = made_up(60)
    table["split"] = np.where(table["patient_id"] < "patient0030", "val", "test")
    found = run_aucs(table, Aggregation.MEAN)
    for part in ("val", "test"):
        rows = table[table["split"] == part]
        assert found[f"{part}_auc_image"] == pytest.approx(
            roc_auc_score(rows["label"], rows["score"])
        )
    one_class = table[(table["split"] == "test") | (table["label"] == 0)]
    assert run_aucs(one_class, Aggregation.MEAN)["val_auc_breast"] is None
    unknown = run_aucs(table.assign(label=np.nan), Aggregation.MEAN)
    assert set(unknown.values()) == {None}
