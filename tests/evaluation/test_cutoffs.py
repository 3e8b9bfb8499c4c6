import numpy as np
import pandas as pd
import pytest
from prediction_tables import made_up
from sklearn.metrics import confusion_matrix

from mammo_pd.evaluation.cutoffs import (
    FIXED_RULE,
    Cutoff,
    cross_fitted,
    folds_of_patients,
    operating_points,
    validated_by_fold,
)
from mammo_pd.evaluation.levels import aggregate
from mammo_pd.evaluation.measures import assess
from mammo_pd.evaluation.thresholds import Threshold, choose_thresholds
from mammo_pd.terms import Level


@pytest.fixture
def folded():
    """Exams of five folds, whose models score on scales of their own."""
    table = made_up(200)
    table["fold"] = table["patient_id"].str[-4:].astype(int) % 5
    table["score"] = table["score"] ** (1 + table["fold"])
    units = aggregate(table, Level.EXAM)
    return units, folds_of_patients(table)


def test_no_fold_has_a_say_in_its_own_threshold(folded):
    units, fold_of = folded
    fold = units["patient_id"].map(fold_of)
    before = cross_fitted(units, fold_of, miss_cost=10)
    moved = units.assign(
        score=units["score"].where(fold != "2", 0.5), label=units["label"].where(fold != "2", 1)
    )
    after = cross_fitted(moved, fold_of, miss_cost=10)
    changed = 0
    for old, new in zip(before, after, strict=True):
        assert old.by_fold["2"] == new.by_fold["2"]
        changed += old.by_fold["0"] != new.by_fold["0"]
    assert changed
    others = units[fold != "2"]
    for cutoff, chosen in zip(
        before, choose_thresholds(others["label"], others["score"], miss_cost=10), strict=True
    ):
        assert (cutoff.code, cutoff.by_fold["2"]) == (chosen.code, chosen.value)
    assert FIXED_RULE in [cutoff.code for cutoff in before]


def test_a_fold_is_judged_by_what_its_own_model_was_validated_on(folded):
    """On scales of their own, thresholds of the other folds recall no one, or half of all."""
    units, fold_of = folded
    fold = units["patient_id"].map(fold_of)
    draw = np.random.default_rng(1)
    # Other women, scored by each fold's model: the same distribution on the same scale.
    validation = {
        name: of_fold.iloc[draw.permutation(len(of_fold))].assign(
            patient_id=[f"other{i}" for i in range(len(of_fold))]
        )
        for name, of_fold in units.groupby(fold)
    }
    own = validated_by_fold(validation, fold_of, miss_cost=10)
    for place, cutoff in enumerate(own):
        for name, rows in validation.items():
            chosen = choose_thresholds(rows["label"], rows["score"], miss_cost=10)[place]
            assert (cutoff.code, cutoff.by_fold[name]) == (chosen.code, chosen.value)

    def specificities(cutoffs):
        (cutoff,) = (one for one in cutoffs if one.code == FIXED_RULE)
        negative = (units["label"] == 0).to_numpy()
        passed = pd.Series(~cutoff.flags(units)[negative])
        return passed.groupby(fold[negative].to_numpy()).mean()

    crossed = specificities(cross_fitted(units, fold_of, miss_cost=10))
    assert (specificities(own) - 0.9).abs().max() < 0.05
    assert (crossed - 0.9).abs().max() > 0.09
    one_class = {**validation, "2": validation["2"].assign(label=0.0)}
    assert validated_by_fold(one_class, fold_of, miss_cost=10) == []


def test_each_unit_is_judged_by_the_threshold_of_its_fold(folded):
    units, fold_of = folded
    fold = units["patient_id"].map(fold_of)
    cutoffs = cross_fitted(units, fold_of, miss_cost=10)
    for row, cutoff in zip(operating_points(units, cutoffs), cutoffs, strict=True):
        added = sum(
            confusion_matrix(of_fold["label"], of_fold["score"] >= cutoff.by_fold[name])
            if len(of_fold)
            else 0
            for name, of_fold in units.groupby(fold)
        )
        (tn, fp), (fn, tp) = added
        assert (row["tn"], row["fp"], row["fn"], row["tp"]) == (tn, fp, fn, tp)


def test_its_rows_have_the_columns_of_one_threshold(folded):
    units, fold_of = folded
    whole = assess(units, thresholds=[Threshold("a", "b", 0.3)])
    row = operating_points(units, cross_fitted(units, fold_of, miss_cost=10))[0]
    assert list(row) == list(whole.operating_points[0])
    same = operating_points(units, [Cutoff("a", "b", 0.3)])[0]
    for name in ("tp", "fp", "sensitivity", "specificity", "recall_rate", "ppv", "npv"):
        assert same[name] == pytest.approx(whole.operating_points[0][name])


def test_folds_that_are_none():
    table = pd.DataFrame({"patient_id": ["a", "a", "b"], "fold": [0, 0, 0]})
    assert folds_of_patients(table) is None
    assert folds_of_patients(table.assign(fold=[0, 1, 1])) is None  # a patient in two
    assert folds_of_patients(table.assign(fold=[0, 0, np.nan])) is None
    assert folds_of_patients(table.assign(fold=[0, 0, 1])).to_dict() == {"a": "0", "b": "1"}


def test_a_fold_without_which_a_class_is_missing_gives_none(folded):
    units, fold_of = folded
    fold = units["patient_id"].map(fold_of)
    units = units.assign(label=units["label"].where(fold == "0", 0))
    assert cross_fitted(units, fold_of, miss_cost=10) == []
