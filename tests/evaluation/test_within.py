import numpy as np
import pandas as pd
import pytest
from prediction_tables import made_up
from sklearn.metrics import roc_auc_score

from mammo_pd.errors import InputError
from mammo_pd.evaluation.levels import Aggregation, aggregate
from mammo_pd.evaluation.measures import auc_with_interval
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.within import auc_within_strata, within_strata
from mammo_pd.terms import Level


def units_of(n_patients=60, seed=0):
    return aggregate(check_predictions(made_up(n_patients, seed).round(2)), Level.IMAGE)


def over_pairs(units, stratum):
    """The definition, pair by pair."""
    shares = []
    for i in np.flatnonzero(units["label"] == 1):
        others = units["score"][(units["label"] == 0) & (stratum == stratum[i])].to_numpy()
        score = units["score"][i]
        shares.append(np.mean([(score > other) + (score == other) / 2 for other in others]))
    return np.mean(shares)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_mean_over_pairs_and_over_scikit_learns_aucs(seed):
    units = units_of(seed=seed)
    # Strata of patients, such as machines, and of images, such as views.
    for stratum in (np.arange(240) // 4 % 5, np.random.default_rng(seed).integers(0, 4, 240)):
        found = auc_within_strata(units, stratum)
        assert found["auc"] == pytest.approx(over_pairs(units, stratum))
        label, score = units["label"].to_numpy(), units["score"].to_numpy()
        within = [stratum == one for one in np.unique(stratum)]
        aucs = [roc_auc_score(label[here], score[here]) for here in within]
        weights = [label[here].sum() for here in within]
        assert found["auc"] == pytest.approx(np.average(aucs, weights=weights))
        assert found["auc_ci_low"] < found["auc"] < found["auc_ci_high"]
        assert (found["n_strata"], found["remark"]) == (len(within), None)


def test_one_stratum_gives_the_auc_and_its_interval():
    units = units_of()
    found, plain = auc_within_strata(units, np.zeros(240, int)), auc_with_interval(units)
    numbers = [name for name, value in plain.items() if isinstance(value, float)]
    assert {name: found[name] for name in numbers} == pytest.approx(
        {name: plain[name] for name in numbers}
    )


def test_the_interval_is_as_wide_as_patients_make_it():
    # Each patient left out in turn: the jackknife knows nothing of strata or influences.
    units = units_of(250)
    patient = np.arange(1000) // 4
    stratum = patient % 5
    each = np.array(
        [
            auc_within_strata(units[patient != one], stratum[patient != one])["auc"]
            for one in range(250)
        ]
    )
    error = np.sqrt(249 / 250 * ((each - each.mean()) ** 2).sum())
    found = auc_within_strata(units, stratum)
    width = (found["auc_ci_high"] - found["auc_ci_low"]) / 2
    assert 1.9 * error < width < 2.2 * error


def test_what_knows_the_stratum_alone_is_worth_nothing():
    table = made_up(100)
    patient = np.arange(400) // 4
    sick = table["label"].groupby(patient).transform("max")
    table["site"] = np.where(
        np.random.default_rng(0).random(100)[patient] < 0.3 + 0.5 * sick, "a", "b"
    )
    table["score"] = np.where(table["site"] == "a", 0.9, 0.1)
    checked = check_predictions(table)
    assert auc_with_interval(aggregate(checked, Level.PATIENT))["auc_ci_low"] > 0.6
    rows = within_strata(checked, ["site"], aggregation=Aggregation.MEAN)
    assert [row["level"] for row in rows] == list(Level)
    assert [(row["auc"], row["auc_ci_low"]) for row in rows] == [(0.5, None)] * len(Level)


def test_a_positive_without_negatives_of_two_patients_is_left_out_and_counted():
    units = pd.DataFrame(
        {
            "patient_id": list("abcdefgg"),
            "label": [1, 1, 0, 0, 1, 0, 0, 0],
            "score": [0.9, 0.5, 0.5, 0.2, 0.1, 0.3, 0.2, 0.2],
        }
    )
    found = auc_within_strata(units, [0, 0, 0, 0, 1, 2, 2, 2])
    assert found["auc"] == pytest.approx((1 + 0.75) / 2)
    assert (found["n"], found["n_strata"], found["n_positive_left_out"]) == (4, 1, 1)
    assert found["remark"].startswith("1 positive of 3 left out")
    # In the last, one patient has both negatives.
    for stratum in (range(8), [0, 1, 2, 2, 3, 4, 3, 3]):
        found = auc_within_strata(units, stratum)
        assert (found["auc"], found["n"], found["n_positive_left_out"]) == (None, 0, 3)
        assert "3 positives of 3 left out" in found["remark"]
    assert auc_within_strata(units[units["label"] == 0], np.zeros(5))["remark"] is not None


def test_an_auc_of_1_is_as_sure_as_its_least_sure_stratum():
    label = np.tile(np.r_[np.ones(10), np.zeros(10)], 2)
    table = {"patient_id": np.arange(40), "label": label, "score": label}
    stratum = np.repeat([0, 1], 20)
    found = auc_within_strata(pd.DataFrame(table), stratum)
    # Ten pairs in either, of half of the weight: no more than 20 pairs in one.
    assert (found["auc"], found["auc_ci_high"]) == (1.0, 1.0)
    assert found["auc_ci_low"] == pytest.approx(0.025 ** (1 / 20))
    few = pd.DataFrame(table).iloc[np.r_[0:12, 20:40]]  # two negatives in the first
    less = auc_within_strata(few, stratum[few.index])
    assert less["auc_ci_low"] == pytest.approx(0.025 ** (1 / 4))
    # Five of 29 positives: 5 / (5 / 29) falls below 29 in binary.
    label = np.repeat([1, 1, 0, 0], [5, 24, 5, 24])
    table = {"patient_id": np.arange(58), "label": label, "score": label}
    found = auc_within_strata(pd.DataFrame(table), np.repeat([0, 1, 0, 1], [5, 24, 5, 24]))
    assert found["auc_ci_low"] == pytest.approx(0.025 ** (1 / 29))


@pytest.mark.parametrize("shared", [0, 3, 9])
def test_an_auc_of_1_in_one_stratum_is_as_sure_as_without_strata(shared):
    """Also of women who have both a positive and a negative, who are no pair with themselves."""
    label = np.repeat([1, 0], [9, 9])
    patients = [*range(9), *range(shared), *range(20, 29 - shared)]
    units = pd.DataFrame({"patient_id": patients, "label": label, "score": 0.2 + 0.5 * label})
    units = units.assign(patient_id=units["patient_id"].astype(str))
    plain, within = auc_with_interval(units), auc_within_strata(units, np.zeros(18, int))
    for name in ("auc", "auc_ci_low", "auc_ci_high"):
        assert within[name] == pytest.approx(plain[name])
    assert plain["auc_ci_low"] < within["auc"] == 1


def test_ages_are_banded_and_rare_values_are_not_joined():
    table = made_up(300)
    patient = np.arange(1200) // 4
    table["site"] = [f"s{one // 10:02d}" for one in patient]
    table["age"] = np.random.default_rng(0).integers(30, 80, 300)[patient]
    checked = check_predictions(table)
    breasts = aggregate(checked, Level.BREAST)

    def of_breasts(*columns):
        rows = within_strata(checked, columns, aggregation=Aggregation.MEAN)
        return next(row for row in rows if row["level"] == Level.BREAST)

    site = breasts["patient_id"].str[-4:].astype(int).to_numpy() // 10
    assert of_breasts("site") == {
        "columns": "site",
        "level": "breast",
        **auc_within_strata(breasts, site),
    }
    age = table["age"].to_numpy()[::2]
    band = np.searchsorted([40, 50, 60, 70], age, side="right")
    assert of_breasts("age")["auc"] == pytest.approx(over_pairs(breasts, band))
    both = pd.Series(list(zip(site, band, strict=True)))
    code = pd.factorize(both)[0]
    found = of_breasts("site", "age")
    assert found["auc"] == auc_within_strata(breasts, code)["auc"]
    assert found["columns"] == "site, age"


def test_units_of_several_values_are_compared_with_those_of_the_same_values():
    # Every woman's views are of two machines: of A and B, or of C and D.
    table = made_up(40)
    of_c = np.arange(160) // 4 % 2 == 1
    table["machine"] = np.where(np.arange(160) % 2 == 0, "A", "B")
    table.loc[of_c, "machine"] = table.loc[of_c, "machine"].map({"A": "C", "B": "D"})
    checked = check_predictions(table)
    for row in within_strata(checked, ["machine"], aggregation=Aggregation.MEAN)[1:]:
        units = aggregate(checked, Level(row["level"]))
        pair = units["patient_id"].str[-4:].astype(int).to_numpy() % 2
        assert row["n_strata"] == 2
        assert row["auc"] == pytest.approx(over_pairs(units, pair))


def test_a_column_that_is_not_there(predictions):
    with pytest.raises(InputError, match="no column parity to compare within"):
        within_strata(check_predictions(predictions), ["parity"], aggregation=Aggregation.MEAN)


def test_unequal_women_in_one_stratum_have_the_interval_of_the_auc():
    random = np.random.default_rng(3)
    patient = np.repeat(np.arange(60), np.where(np.arange(60) % 6 == 0, 30, 1))
    label = (patient % 4 == 0).astype(int)
    units = pd.DataFrame({"patient_id": patient, "label": label})
    units["score"] = random.random(len(units)) * 0.6 + 0.2 * label
    plain, within = auc_with_interval(units), auc_within_strata(units, np.zeros(len(units), int))
    for name in ("auc", "auc_ci_low", "auc_ci_high"):
        assert within[name] == pytest.approx(plain[name], abs=1e-8)


def test_an_auc_without_an_interval_says_why():
    """Each fold's, group's and model's, too: of scores that are all equal, nothing else tells."""
    units = units_of()
    stratum = np.arange(240) // 4 % 5
    equal = units.assign(score=0.3)
    by_stratum = units.assign(score=0.1 * (1 + stratum))
    for row in (
        auc_with_interval(equal),
        auc_within_strata(equal, stratum),
        auc_within_strata(by_stratum, stratum),
    ):
        assert (row["auc"], row["auc_ci_low"]) == (0.5, None)
        assert "scores are equal: the AUC" in row["remark"]
    one_woman = equal[(equal["label"] == 0) | (equal["patient_id"] == equal["patient_id"][0])]
    remark = auc_with_interval(one_woman.assign(label=[1] * 4 + [0] * (len(one_woman) - 4)))[
        "remark"
    ]
    assert "at least two patients" in remark
    assert "scores are equal" in remark
