from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from prediction_tables import made_up

from mammo_pd.errors import InputError
from mammo_pd.evaluation.characteristics import MACHINES
from mammo_pd.evaluation.cutoffs import Cutoff
from mammo_pd.evaluation.levels import Aggregation, aggregate
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.roc import auc
from mammo_pd.evaluation.strata import (
    KNOWN_COLUMNS,
    found_by_lesion,
    in_order,
    known_strata,
    stratify,
    values_of_units,
)
from mammo_pd.terms import Level

HOW = {"aggregation": Aggregation.MEAN}


def by_value(table, column):
    return {row["value"]: row for row in stratify(check_predictions(table), [column], **HOW)}


def test_the_view_is_evaluated_per_image(predictions):
    rows = by_value(predictions, "view")
    assert list(rows) == ["CC", "MLO"]
    cc = predictions[predictions["view"] == "CC"]
    assert rows["CC"]["auc"] == pytest.approx(auc(cc["label"], cc["score"]))
    assert rows["CC"]["n"] == 120
    assert rows["CC"]["level"] == "image"


def test_laterality_is_evaluated_per_breast(predictions):
    rows = by_value(predictions, "laterality")
    breasts = aggregate(check_predictions(predictions), Level.BREAST)
    left = breasts[breasts["laterality"] == "L"]
    assert rows["L"]["auc"] == pytest.approx(auc(left["label"], left["score"]))
    assert rows["L"]["level"] == "breast"


def test_ages_are_banded():
    table = made_up(200)
    table["age"] = np.repeat(np.random.default_rng(0).integers(30, 90, 200), 4).astype(str)
    table.loc[table.index[:8], "age"] = ""
    rows = by_value(table, "age")
    assert list(rows) == [
        "under 40",
        "40 to under 50",
        "50 to under 60",
        "60 to under 70",
        "70 and over",
        "not known",
    ]
    assert sum(row["n"] for row in rows.values()) == 400


def test_too_few_get_a_remark_instead_of_an_auc():
    table = made_up(100)
    table["site"] = np.repeat(["a"] * 95 + ["b"] * 5, 4)
    rows = by_value(table, "site")
    assert rows["a"]["auc"] is not None
    assert rows["b"]["auc"] is None
    assert rows["b"]["n"] == 10
    assert "too few" in rows["b"]["remark"]


def test_what_only_positives_have_is_compared_with_all_negatives():
    table = made_up(200)
    kind = np.random.default_rng(0).choice(["mass", "calcification"], len(table) // 2).repeat(2)
    table["lesion_type"] = np.where(table["label"] == 1, kind, None)
    rows = by_value(table, "lesion_type")
    assert set(rows) == {"mass", "calcification"}
    positives = sum(row["n_positive"] for row in rows.values())
    breasts = aggregate(check_predictions(table), Level.BREAST)
    assert positives == breasts["label"].sum()
    negatives = len(breasts) - positives
    assert rows["mass"]["n"] == negatives + rows["mass"]["n_positive"]
    assert rows["mass"]["compared_with"] == "all negatives"


def test_a_breast_whose_images_disagree(predictions):
    predictions["density"] = "b"
    predictions.loc[0, "density"] = "c"
    rows = by_value(predictions, "density")
    assert rows["several"]["n"] == 1
    assert "c" not in rows


def test_many_values_are_joined():
    table = made_up(300)
    table["site"] = np.repeat([f"s{i // 10:02d}" for i in range(300)], 4)
    rows = by_value(table, "site")
    assert len(rows) == 12
    assert rows["other"]["n"] == 600 - 11 * 20


def test_known_strata_are_those_that_are_there(predictions):
    assert known_strata(check_predictions(predictions)) == ["view", "laterality"]
    predictions["density"] = ""
    predictions["manufacturer"] = "GE"
    predictions["view"] = ""
    assert known_strata(check_predictions(predictions)) == ["laterality", "manufacturer"]


def test_every_column_that_names_a_machine_is_a_stratum():
    # But the model's: in anyone's table that can be the name of what scored it.
    assert set(MACHINES) - {"model"} <= set(KNOWN_COLUMNS)


def test_a_column_that_is_not_there(predictions):
    with pytest.raises(InputError, match="no column parity to stratify by"):
        stratify(check_predictions(predictions), ["parity"], **HOW)


@pytest.mark.parametrize(
    ("column", "one", "other"),
    [
        ("age", [45, 61, 75, 39], ["045Y", "61,5", "75.0", "475M"]),
        ("density", ["1", "2", "b", ""], [1.0, "2.0", "B", None]),
        ("view", ["CC", "MLO", "CC", "MLO"], ["cc", "Mlo", "Cc ", "mlo"]),
    ],
)
def test_one_value_is_one_group_however_it_is_written(column, one, other):
    table = made_up(40)
    patient = table.index // (1 if column == "view" else 4)
    first, second = (
        by_value(table.assign(**{column: [values[i % 4] for i in patient]}), column)
        for values in (one, other)
    )
    assert first == second
    assert len(first) > 1


CUTOFFS = {level: Cutoff("one", "a rule", 0.4) for level in Level}


def test_sensitivity_and_specificity_of_a_group_at_the_threshold_of_all():
    table = made_up(120)
    table["site"] = np.repeat(["a"] * 80 + ["b"] * 40, 4)
    checked = check_predictions(table)
    rows = {row["value"]: row for row in stratify(checked, ["site"], cutoffs=CUTOFFS, **HOW)}
    breasts = aggregate(checked, Level.BREAST)
    site = breasts["patient_id"].map(
        table.drop_duplicates("patient_id").set_index("patient_id")["site"]
    )
    for name, row in rows.items():
        here = breasts[site == name]
        flagged = here["score"] >= 0.4
        assert row["sensitivity"] == pytest.approx(flagged[here["label"] == 1].mean())
        assert row["specificity"] == pytest.approx((~flagged)[here["label"] == 0].mean())
        assert row["sensitivity_ci_low"] < row["sensitivity"] < row["sensitivity_ci_high"]
    assert "sensitivity" not in stratify(checked, ["site"], **HOW)[0]


def test_what_a_lesion_column_says_of_negatives_is_no_group():
    # The RSNA tables have invasive = 0 for every breast without cancer.
    table = made_up(200)
    invasive = np.random.default_rng(0).integers(0, 2, 200).repeat(4)
    table["invasive"] = np.where(table["label"] == 1, invasive, 0)
    checked = check_predictions(table)
    rows = stratify(checked, ["invasive"], cutoffs=CUTOFFS, **HOW)
    assert [row["value"] for row in rows] == ["no", "yes"]
    breasts = aggregate(checked, Level.BREAST)
    for row in rows:
        assert row["compared_with"] == "all negatives"
        assert row["n"] - row["n_positive"] == (breasts["label"] == 0).sum()
        assert row["specificity"] is None
    assert sum(row["n_positive"] for row in rows) == breasts["label"].sum()

    found = found_by_lesion(
        checked, level=Level.EXAM, aggregation=Aggregation.MEAN, cutoff=CUTOFFS[Level.EXAM]
    )
    exams = aggregate(checked, Level.EXAM)
    ill = exams[exams["label"] == 1]
    assert sum(row["n_positive"] for row in found) == len(ill)
    assert sum(row["found"] for row in found) == (ill["score"] >= 0.4).sum()
    assert all(row["found"] + row["missed"] == row["n_positive"] for row in found)


EDGES = {"age": [0, 40, 50, 60, 70], "tumour_size_mm": [0, 10, 20, 50]}


@pytest.mark.parametrize("column", EDGES)
def test_bands_are_those_of_pandas(column):
    edges = EDGES[column]
    number = np.array([end + more for end in edges for more in (-0.1, 0, 0.1)] + [150, np.nan])
    table = made_up(5).assign(**{column: np.r_[number, [np.nan] * (20 - len(number))]})
    names = [f"under {edges[1]}"]
    names += [f"{low} to under {high}" for low, high in pairwise(edges[1:])]
    names += [f"{edges[-1]} and over"]
    expected = pd.cut(table[column], [*edges, np.inf], right=False, labels=names)
    found = values_of_units(check_predictions(table), column, Level.IMAGE)
    assert found.tolist() == ["" if name is np.nan else name for name in expected]


@pytest.mark.parametrize("few", [0, 1])
@pytest.mark.parametrize("count", [9, 10])
def test_an_auc_needs_ten_of_either_class(few, count):
    table = made_up(40).iloc[: 4 * (count + 15)]
    women = np.arange(len(table)) // 4
    # One breast of each woman, labelled alike.
    table = table.assign(label=np.where(women < count, few, 1 - few), site="a")
    table = table[table["laterality"] == "L"]
    row = by_value(table, "site")["a"]
    assert (row["n"], row["n_positive"]) == (count + 15, count if few else 15)
    assert (row["auc"] is not None) == (count == 10)


@pytest.mark.parametrize("kinds", [12, 13])
def test_twelve_values_are_shown_each_and_the_rarest_of_more_are_joined(kinds):
    table = made_up(kinds * 3)
    site = np.repeat([f"s{i:02d}" for i in range(kinds)], 3)
    # The first is the most frequent.
    site[3] = "s00"
    rows = by_value(table.assign(site=site.repeat(4)), "site")
    assert len(rows) == 12
    assert ("other" in rows) == (kinds == 13)
    assert rows["s00"]["n"] == 8
    assert sum(row["n"] for row in rows.values()) == 2 * 3 * kinds


def test_other_several_and_unknown_stand_last():
    assert in_order(np.array(["", "several", "z", "other", "10 to under 20", "under 10"])) == [
        *("under 10", "10 to under 20", "z", "other", "several", "")
    ]


def test_what_is_found_of_each_kind_of_cancer_is_counted_one_by_one():
    table = made_up(60)
    kind = np.random.default_rng(1).choice(["mass", "calcification", ""], 60)
    table["lesion_type"] = kind.repeat(4)
    cutoff = CUTOFFS[Level.BREAST]
    found = found_by_lesion(
        check_predictions(table), level=Level.BREAST, aggregation=Aggregation.MEAN, cutoff=cutoff
    )
    breasts = table.groupby(["patient_id", "laterality"]).agg(
        label=("label", "max"), score=("score", "mean"), kind=("lesion_type", "first")
    )
    ill = breasts[breasts["label"] == 1]
    assert [row["value"] for row in found] == ["calcification", "mass", "not known"]
    for row, name in zip(found, ("calcification", "mass", ""), strict=True):
        flagged = ill["score"][ill["kind"] == name] >= 0.4
        counts = (row["n_positive"], row["found"], row["missed"])
        assert counts == (len(flagged), flagged.sum(), (~flagged).sum())
    assert 0 < sum(row["missed"] for row in found) < len(ill)
