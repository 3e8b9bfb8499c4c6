import numpy as np
import pytest
from prediction_tables import made_up

from mammo_pd.errors import InputError
from mammo_pd.evaluation.characteristics import MACHINES
from mammo_pd.evaluation.cutoffs import Cutoff
from mammo_pd.evaluation.levels import Aggregation, aggregate
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.roc import auc
from mammo_pd.evaluation.strata import KNOWN_COLUMNS, found_by_lesion, known_strata, stratify
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
