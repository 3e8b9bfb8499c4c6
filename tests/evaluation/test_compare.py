from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
from prediction_tables import made_up
from scipy.stats import t
from sklearn.metrics import roc_auc_score
from test_roc import PAIRED_A, PAIRED_B, PAIRED_LABEL

from mammo_pd.errors import InputError
from mammo_pd.evaluation.compare import (
    FOR_PAIRED_DELONG,
    compare,
    holm,
    not_surpassed,
    on_the_same_images,
    paired_by_patient,
    paired_delong,
)
from mammo_pd.evaluation.levels import Aggregation
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.terms import Level


@pytest.fixture
def two():
    return noisy_pair(40)


@pytest.fixture
def many():
    """Patients enough for DeLong's test."""
    return noisy_pair(100)


def noisy_pair(patients):
    first = check_predictions(made_up(patients))
    noise = np.random.default_rng(5).normal(0, 0.2, len(first))
    second = first.assign(score=np.clip(first["score"] + noise, 0, 1))
    return {"a": first, "b": second}


def test_paired_delong_equals_proc():
    # R 4.2.2, pROC 1.18.0: roc.test(a, b, method = "delong").
    found = paired_delong(PAIRED_LABEL, PAIRED_A, PAIRED_B)
    assert found.difference == pytest.approx(0.819444444444444 - 0.611111111111111)
    assert found.z == pytest.approx(3.02422314365985, rel=1e-9)
    assert found.p == pytest.approx(0.00249272506014135, rel=1e-9)
    reach = 1.95996398454005 * found.standard_error
    assert found.difference - reach == pytest.approx(0.0733149134893652, rel=1e-9)
    assert found.difference + reach == pytest.approx(0.343351753177301, rel=1e-9)


def test_a_model_does_not_differ_from_itself(many):
    _, paired = compare({"a": many["a"], "b": many["a"]}, **how())
    for row in paired:
        assert row["difference"] == 0
        # A zero width would read as certainty.
        assert row["difference_ci_low"] is row["p"] is row["delong_p"] is None


def test_by_patient_equals_delong_where_patients_are_units():
    plain = paired_delong(PAIRED_LABEL, PAIRED_A, PAIRED_B)
    found = paired_by_patient(PAIRED_LABEL, PAIRED_A, PAIRED_B, np.arange(60))
    assert found.difference == plain.difference
    assert (found.standard_error, found.z) == pytest.approx((plain.standard_error, plain.z))
    # Eighteen patients with positives.
    assert found.p == pytest.approx(2 * t.sf(found.z, 17))
    assert found.reach == pytest.approx(t.ppf(0.975, 17) * found.standard_error)
    # Every unit three times over, of one patient each time: no more is known than before.
    thrice = [np.repeat(values, 3) for values in (PAIRED_LABEL, PAIRED_A, PAIRED_B)]
    copied = paired_by_patient(*thrice, np.repeat(np.arange(60), 3))
    assert copied.p == pytest.approx(found.p, rel=1e-9)
    assert paired_delong(*thrice).p < plain.p / 100


def test_the_interval_and_p_agree_and_delongs_is_where_it_holds(many):
    _, paired = compare(many, **how())
    for row in paired:
        includes_0 = row["difference_ci_low"] <= 0 <= row["difference_ci_high"]
        assert includes_0 == (row["p"] > 0.05)
        of_patients = row["level"] in ("exam", "patient")
        assert (row["delong_p"] is not None) == of_patients
        if of_patients:
            assert row["se"] == pytest.approx(row["delong_se"])
            assert row["p"] > row["delong_p"]
        assert row["p_holm"] == row["p"]


@pytest.mark.parametrize("few", ["positives", "negatives"])
@pytest.mark.parametrize("short_by", [1, 0])
def test_of_too_few_of_a_class_delongs_is_not_given_and_the_test_by_patient_is(few, short_by):
    count = FOR_PAIRED_DELONG - short_by
    label = np.arange(count + 3 * FOR_PAIRED_DELONG) < count
    draw = np.random.default_rng(0)
    shared = draw.normal(label, 1)
    tables = {}
    for name in "ab":
        table = made_up(len(label)).drop_duplicates("patient_id")
        logit = shared + draw.normal(0, 0.5, len(label))
        table["label"] = (label if few == "positives" else ~label).astype(int)
        tables[name] = check_predictions(table.assign(score=1 / (1 + np.exp(-logit))))
    _, paired = compare(tables, **how())
    assert len(paired) == len(Level)
    for row in paired:
        given = [name for name in row if name.startswith("delong_")]
        assert len(given) == 5
        assert {row[name] is None for name in given} == {short_by == 1}
        assert None not in (row["p"], row["se"], row["difference_ci_low"], row["p_holm"])


def test_the_standard_error_is_that_of_copied_patients(two):
    # The bootstrap knows nothing of placements: it copies the rows of every patient drawn.
    label, patient = two["a"]["label"].to_numpy(), two["a"]["patient_id"].to_numpy()
    patients = np.unique(patient)
    place = {p: np.flatnonzero(patient == p) for p in patients}
    draw, drawn = np.random.default_rng(0), []
    for _ in range(300):
        rows = np.concatenate([place[p] for p in draw.choice(patients, len(patients))])
        a, b = (roc_auc_score(label[rows], one["score"].to_numpy()[rows]) for one in two.values())
        drawn.append(a - b)
    _, paired = compare(two, **how())
    assert paired[0]["level"] == "image"
    assert paired[0]["se"] == pytest.approx(np.std(drawn), rel=0.15)


def in_folds(table, folds=5, shift=0):
    fold = (table["patient_id"].str[-4:].astype(int) + shift) // (1 + shift) % folds
    return table.assign(fold=fold)


def on_scales_of_their_own(table):
    """As models that were stopped early and late score: the order within a fold is kept."""
    return table.assign(score=table["score"] ** (1 + 3 * table["fold"]))


def test_within_folds_the_scales_of_the_models_do_not_count(two):
    a, b = (in_folds(table, 3) for table in two.values())
    alone, paired = compare({"a": a, "b": b}, **how())
    for other in ({"a": on_scales_of_their_own(a), "b": b}, {"a": a, "b": two["b"]}):
        again_alone, again = compare(other, **how())
        for row, now in zip(alone + paired, again_alone + again, strict=True):
            if row["level"] == "image":  # a power of a mean is not the mean of powers
                assert now == pytest.approx(row)
    # Pooled, the scales alone move the AUC.
    moved = on_scales_of_their_own(a)["score"]
    assert abs(roc_auc_score(a["label"], moved) - roc_auc_score(a["label"], a["score"])) > 0.01
    for row in alone:
        if row["level"] == "image":
            table = {"a": a, "b": b}[row["model"]]
            of = [rows for _, rows in table.groupby("fold")]
            aucs = [roc_auc_score(rows["label"], rows["score"]) for rows in of]
            positives = [rows["label"].sum() for rows in of]
            assert row["auc"] == pytest.approx(np.average(aucs, weights=positives))
    image = {row["model"]: row["auc"] for row in alone if row["level"] == "image"}
    assert paired[0]["difference"] == pytest.approx(image["a"] - image["b"])


def test_of_two_draws_of_the_folds_both_are_kept(two):
    a, b = in_folds(two["a"], 2), in_folds(two["b"], 2, shift=1)
    crossed = (a["fold"] * 2 + b["fold"]).astype(str)
    assert crossed.nunique() == 4
    _, paired = compare({"a": a, "b": b}, **how())
    _, expected = compare({"a": a.assign(fold=crossed), "b": two["b"]}, **how())
    assert paired == expected


def test_the_standard_error_within_folds_is_that_of_copied_patients():
    first = on_scales_of_their_own(in_folds(check_predictions(made_up(150)), 3))
    noise = np.random.default_rng(5).normal(0, 0.2, len(first))
    second = first.assign(score=np.clip(first["score"] + noise, 0, 1))
    tables = {"first": first, "second": second}
    label, patient = first["label"].to_numpy(), first["patient_id"].to_numpy()
    fold = first["fold"].to_numpy()
    of_fold = {
        k: {p: np.flatnonzero(patient == p) for p in np.unique(patient[fold == k])}
        for k in range(3)
    }
    draw, drawn = np.random.default_rng(0), []
    for _ in range(300):
        sums, positives = np.zeros(2), 0
        for place in of_fold.values():
            chosen = draw.choice(list(place), len(place))
            rows = np.concatenate([place[p] for p in chosen])
            count = label[rows].sum()
            for model, table in enumerate((first, second)):
                score = table["score"].to_numpy()[rows]
                sums[model] += count * roc_auc_score(label[rows], score)
            positives += count
        drawn.append((sums[0] - sums[1]) / positives)
    _, paired = compare(tables, **how())
    assert paired[0]["level"] == "image"
    assert paired[0]["se"] == pytest.approx(np.std(drawn), rel=0.2)


def test_no_interval_of_a_difference_reaches_further_than_two_aucs_can_be_apart():
    """Two women of each class, on whom the models disagree."""
    one = made_up(4, seed=1)
    other = one.assign(score=made_up(4, seed=2)["score"])
    _, paired = compare({"one": one, "other": other}, aggregation=Aggregation.MEAN)
    limits = [(row["difference_ci_low"], row["difference_ci_high"]) for row in paired]
    assert any(limit in (-1.0, 1.0) for pair in limits for limit in pair)
    assert all(-1.0 <= low <= high <= 1.0 for low, high in limits if low is not None)


@pytest.mark.parametrize("shares", [(0.2, 0.8), (0.8, 0.2)])
@pytest.mark.parametrize("units", [1, 4])
def test_the_classes_may_change_places(shares, units):
    """The smaller one decides, whichever it is: the same AUC, error, freedom and p."""
    draw = np.random.default_rng(3)
    patients = 40
    label = np.repeat(draw.choice([0, 1], patients, p=shares), units)
    label = np.where(draw.random(len(label)) < 0.1, 1 - label, label)
    patient = np.repeat(np.arange(patients), units)
    first, second = label + draw.normal(0, 1.5, (2, len(label)))
    found = paired_by_patient(label, first, second, patient)
    turned = paired_by_patient(1 - label, -first, -second, patient)
    assert astuple(found) == pytest.approx(astuple(turned))
    smaller = min(len(np.unique(patient[label == of_class])) for of_class in (0, 1))
    if units == 1:
        assert found.p == pytest.approx(2 * t.sf(abs(found.z), smaller - 1))
    by_unit = astuple(paired_delong(label, first, second))
    assert by_unit == pytest.approx(astuple(paired_delong(1 - label, -first, -second)))


@pytest.mark.parametrize("few", [0, 1])
@pytest.mark.parametrize("count", [1, 2])
def test_delongs_error_needs_two_of_each_class(few, count):
    label = np.where(np.arange(12) < count, few, 1 - few)
    first, second = np.random.default_rng(0).random((2, 12))
    found = paired_delong(label, first, second)
    assert np.isfinite(found.difference)
    assert np.isnan(found.standard_error) == np.isnan(found.p) == (count == 1)


@pytest.mark.parametrize(("p", "left"), [(0.0499, ["a"]), (0.05, ["a", "b"]), (None, ["a", "b"])])
def test_a_model_is_surpassed_only_where_each_level_says_so(p, left):
    def row(level, difference, p):
        return {
            "level": level,
            "first": "a",
            "second": "b",
            "difference": difference,
            "p_holm": p,
        }

    rows = [row("image", 0.1, 0.001), row("exam", 0.1, p)]
    assert not_surpassed(["a", "b"], rows) == left
    assert not_surpassed(["a", "b"], [*rows, row("patient", -0.1, 0.001)]) == ["a", "b"]
    turned = [one | {"difference": -one["difference"]} for one in rows]
    assert not_surpassed(["a", "b"], turned) == ["b" if left == ["a"] else "a", "b"][: len(left)]


def test_holm_by_hand():
    # .01 * 4, .03 * 3, .04 * 2 raised to the one before, .6
    assert holm([0.01, 0.04, None, 0.03, 0.6]) == [
        pytest.approx(0.04),
        pytest.approx(0.09),
        None,
        pytest.approx(0.09),
        pytest.approx(0.6),
    ]


def test_not_worse_means_that_the_whole_interval_is_within_the_margin(two):
    _, (row, *_) = compare(two, **how())
    low, high = row["difference_ci_low"], row["difference_ci_high"]
    assert row["first_not_worse"] is row["second_not_worse"] is None
    for margin in (0.001, max(-low, 0) + 1e-6, max(high, 0) + 1e-6):
        _, (row, *_) = compare(two, **how(margin=margin))
        assert row["first_not_worse"] == (low > -margin)
        assert row["second_not_worse"] == (high < margin)
        assert True in (row["first_not_worse"], row["second_not_worse"]) or margin == 0.001


def how(**more):
    return {"aggregation": Aggregation.MEAN} | more


def test_turning_the_pair_round_turns_the_sign(many):
    _, paired = compare(many, **how())
    _, turned = compare(dict(reversed(many.items())), **how())
    for row, back in zip(paired, turned, strict=True):
        assert row["difference"] == pytest.approx(-back["difference"])
        assert row["difference_ci_low"] == pytest.approx(-back["difference_ci_high"])
        assert row["delong_p"] == pytest.approx(back["delong_p"])


def test_three_models_make_three_pairs(two):
    alone, paired = compare({**two, "c": two["b"]}, **how())
    assert len(alone) == 12
    assert [(row["first"], row["second"]) for row in paired[:3]] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]


def test_the_order_of_rows_does_not_matter(two):
    shuffled = {"a": two["a"], "b": two["b"].sample(frac=1, random_state=0)}
    first, _ = on_the_same_images(two)
    second, _ = on_the_same_images(shuffled)
    pd.testing.assert_frame_equal(first["b"], second["b"])


def test_different_images_are_refused_or_joined(two):
    fewer = {"a": two["a"], "b": two["b"].iloc[4:]}
    with pytest.raises(InputError, match=r"different images.*a: 160, b: 156; 156 in all"):
        on_the_same_images(fewer)
    aligned, left_out = on_the_same_images(fewer, intersect=True)
    assert left_out == 4
    assert len(aligned["a"]) == len(aligned["b"]) == 156


@pytest.mark.parametrize("intersect", [True, False])
def test_no_image_in_common(two, intersect):
    apart = {"a": two["a"].iloc[:9], "b": two["b"].iloc[9:]}
    with pytest.raises(InputError, match="No image is in all"):
        on_the_same_images(apart, intersect=intersect)


@pytest.mark.parametrize("column", ["label", "patient_id", "laterality"])
def test_contradicting_tables(two, column):
    two["b"][column] = two["b"][column].to_numpy()[::-1]
    with pytest.raises(InputError, match=f"disagree in the column {column}"):
        on_the_same_images(two)


def test_one_table_is_no_comparison(two):
    with pytest.raises(InputError, match="at least two sets"):
        on_the_same_images({"a": two["a"]})


def test_one_class_has_no_difference(two):
    healthy = {name: table.assign(label=0.0) for name, table in two.items()}
    alone, paired = compare(healthy, **how())
    assert paired[0]["difference"] is None
    assert alone[0]["remark"]


def test_a_level_at_which_no_unit_has_a_known_label_has_no_difference(two):
    # One image of each patient is unknown, and none is positive.
    first = two["a"].groupby("patient_id").cumcount() == 0
    unknown = {
        name: table.assign(label=np.where(first, np.nan, 0.0)) for name, table in two.items()
    }
    alone, paired = compare(unknown, **how())
    of_patients = [row for row in (*alone, *paired) if row["level"] == "patient"]
    assert [row["n"] for row in of_patients if "n" in row] == [0, 0]
    assert of_patients[-1]["difference"] is None


@pytest.mark.slow
@pytest.mark.parametrize("prevalence", [0.15, 0.05])
def test_the_paired_interval_covers_no_difference_95_times_in_100(prevalence):
    draw = np.random.default_rng(0)
    trials, inside = 600, 0
    for trial in range(trials):
        first = check_predictions(made_up(120, seed=50_000 + trial, prevalence=prevalence))
        logit = np.log(first["score"] / (1 - first["score"]))
        tables = {
            name: first.assign(score=1 / (1 + np.exp(-logit - draw.normal(0, 0.8, len(first)))))
            for name in "ab"
        }
        _, paired = compare(tables, **how())
        image = paired[0]
        inside += image["difference_ci_low"] <= 0 <= image["difference_ci_high"]
    assert 0.93 <= inside / trials <= 0.99
