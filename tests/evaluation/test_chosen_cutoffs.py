import pytest
from prediction_tables import made_up

from mammo_pd.evaluation.chosen_cutoffs import ChosenCutoffs, choose_cutoffs
from mammo_pd.evaluation.cutoffs import FIXED_RULE, cross_fitted, folds_of_patients
from mammo_pd.evaluation.levels import Aggregation, aggregate, units_by_level
from mammo_pd.evaluation.locked import lock
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.thresholds import choose_thresholds
from mammo_pd.terms import Level

FOLDS = 3


@pytest.fixture
def tested():
    """Rows of three folds, by patient."""
    table = made_up(60)
    return check_predictions(table.assign(fold=table["patient_id"].str[-4:].astype(int) % FOLDS))


def other(seed):
    """Rows of other patients."""
    table = made_up(40, seed=seed)
    return check_predictions(table.assign(patient_id="other" + table["patient_id"]))


def own_of_each_fold():
    return {str(fold): other(fold + 1) for fold in range(FOLDS)}


def chosen(tested, **given):
    nothing = {"locked": None, "validation": tested[:0], "validation_by_fold": None}
    return choose_cutoffs(
        units_by_level(tested, Aggregation.MEAN),
        evaluated=tested,
        aggregation=Aggregation.MEAN,
        miss_cost=10,
        prevalence={},
        **nothing | given,
    )


def locked_on(rows):
    return lock(rows, part="all", aggregation=Aggregation.MEAN, miss_cost=10, prevalence={})


def test_what_was_locked_precedes_validation_rows_and_these_precede_folds(tested):
    locked, rows, of_folds = locked_on(other(7)), other(8), own_of_each_fold()
    every = {"locked": locked, "validation": rows, "validation_by_fold": of_folds}
    assert chosen(tested, **every) == ChosenCutoffs.of(locked)
    found = chosen(tested, **every | {"locked": None})
    assert (found.images, found.locked, found.cross_fitted, found.by_fold) == (
        len(rows),
        None,
        False,
        False,
    )
    for level, cutoffs in found.by_level.items():
        units = aggregate(rows, level)
        thresholds = choose_thresholds(units["label"], units["score"], miss_cost=10)
        assert [cutoff.threshold for cutoff in cutoffs] == thresholds


def test_a_fold_has_its_own_thresholds_and_else_those_of_the_others(tested):
    of_folds = own_of_each_fold()
    found = chosen(tested, validation_by_fold=of_folds)
    assert (found.by_fold, found.cross_fitted) == (True, False)
    # The folds' validation images have the same names, as in a cross-validation.
    assert found.images == of_folds["0"]["image_id"].nunique()
    for level, cutoff in found.fixed.items():
        for fold, rows in of_folds.items():
            units = aggregate(rows, level)
            thresholds = choose_thresholds(units["label"], units["score"], miss_cost=10)
            (own,) = (one.value for one in thresholds if one.code == FIXED_RULE)
            assert cutoff.by_fold[fold] == own

    # Of one fold without a positive, nothing can be chosen for that fold alone.
    of_folds["1"] = of_folds["1"].assign(label=0.0)
    found = chosen(tested, validation_by_fold=of_folds)
    assert (found.by_fold, found.cross_fitted, found.images) == (False, True, 0)
    exams = aggregate(tested, Level.EXAM)
    expected = cross_fitted(exams, folds_of_patients(tested), miss_cost=10)
    assert [one.by_fold for one in found.by_level[Level.EXAM]] == [one.by_fold for one in expected]


def test_with_nothing_to_choose_on_there_are_none(tested):
    for table in (tested.drop(columns="fold"), tested.assign(fold=0)):
        found = chosen(table, validation_by_fold=own_of_each_fold())
        assert found == ChosenCutoffs(dict.fromkeys(Level, ()))
        assert found.fixed == {}


def test_where_units_have_one_class_there_are_none_and_elsewhere_there_are(tested):
    # A positive image of every patient: no patient is negative, and three quarters of images are.
    sick = tested.assign(label=(tested.groupby("patient_id").cumcount() == 0).astype(float))
    for of_folds in (own_of_each_fold(), None):
        found = chosen(sick, validation_by_fold=of_folds)
        assert found.by_fold == (of_folds is not None)
        assert found.fixed.keys() == {Level.IMAGE, Level.BREAST}
        assert found.by_level[Level.EXAM] == found.by_level[Level.PATIENT] == []
