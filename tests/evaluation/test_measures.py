from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
from prediction_tables import made_up
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, roc_auc_score
from test_roc import PAIRED_A, PAIRED_B, PAIRED_LABEL

from mammo_pd.evaluation.intervals import joined, share_interval
from mammo_pd.evaluation.levels import aggregate
from mammo_pd.evaluation.measures import assess, auc_with_interval, calibration_of
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.thresholds import Reader, Threshold, choose_thresholds
from mammo_pd.evaluation.within import auc_within_strata
from mammo_pd.terms import Level


def units_of(label, score, patient=None):
    patient = np.arange(len(label)) if patient is None else patient
    return pd.DataFrame({"patient_id": patient, "label": label, "score": score})


def assessed(units, **how):
    return assess(units, **({"thresholds": []} | how))


@pytest.mark.parametrize(
    ("score", "partial"), [(PAIRED_A, 0.607630186577555), (PAIRED_B, 0.511556669451406)]
)
def test_the_partial_auc_equals_procs(score, partial):
    # R 4.2.2, pROC 1.18.0: auc(partial.auc = c(1, 0.9), partial.auc.correct = TRUE).
    metrics = assessed(units_of(PAIRED_LABEL, score)).metrics
    assert metrics["partial_auc_90"] == pytest.approx(partial, rel=1e-10)


def everything(units):
    """All values of a level that have an interval, by name: value, low and high."""
    thresholds = [*choose_thresholds(units["label"], units["score"], miss_cost=10)]
    results = assessed(units, thresholds=thresholds, reader=Reader(0.7, 0.85))
    rows = {"": results.metrics}
    rows |= {f"{row['code']} ": row for row in results.operating_points}
    rows |= {f"top {row['share_flagged']} ": row for row in results.lift}
    found = {
        f"{place}{name}": (row[name], row[f"{name}_ci_low"], row[f"{name}_ci_high"])
        for place, row in rows.items()
        for name in row
        if f"{name}_ci_low" in row and row[f"{name}_ci_low"] is not None
    }
    return found | {
        f"{band} at {x:g}": (y, low, high)
        for band in ("roc_band", "precision_recall_band")
        for x, y, low, high in zip(*astuple(getattr(results, band)), strict=True)
        if np.isfinite(low) and round(100 * x) in (10, 30, 50)
    }


def test_of_many_patients_every_interval_is_that_of_copied_patients():
    # The bootstrap knows no formula: it copies the rows of every patient drawn.
    units = aggregate(check_predictions(made_up(250, seed=2)), Level.IMAGE)
    found = everything(units)
    rows = units.groupby("patient_id").indices
    names, draw, drawn = list(rows), np.random.default_rng(0), []
    thresholds = choose_thresholds(units["label"], units["score"], miss_cost=10)
    chosen = {one.code: one.value for one in thresholds}
    for _ in range(60):
        copy = [rows[names[i]] for i in draw.integers(0, len(names), len(names))]
        resample = units.iloc[np.concatenate(copy)]
        resample = resample.assign(patient_id=np.repeat(np.arange(len(copy)), 4))
        results = assessed(resample, thresholds=thresholds, reader=Reader(0.7, 0.85))
        values = {name: value for name, value in results.metrics.items() if name in found}
        for row in results.operating_points:
            assert row["threshold"] == chosen[row["code"]]
            values |= {f"{row['code']} {name}": row[name] for name in row}
        for row in results.lift:
            values |= {f"top {row['share_flagged']} {name}": row[name] for name in row}
        for band in ("roc_band", "precision_recall_band"):
            x, y, *_ = astuple(getattr(results, band))
            values |= {f"{band} at {at:g}": value for at, value in zip(x, y, strict=True)}
        drawn.append({name: values[name] for name in found})
    spread = pd.DataFrame(drawn).astype(float).std()
    assert len(found) > 60
    for name, (_, low, high) in found.items():
        ratio = (high - low) / (2 * 1.96) / spread[name]
        # Those of the few top units, or of the few lowest positives, are cautious.
        cautious = name.startswith(("top", "specificity_at_sensitivity"))
        assert 0.7 < ratio < (5.0 if cautious else 1.5), (name, ratio)


@pytest.mark.parametrize("level", [Level.IMAGE, Level.EXAM])
def test_intervals_contain_the_estimate_and_the_order_of_rows_changes_nothing(level):
    units = aggregate(check_predictions(made_up(90, seed=3, prevalence=0.2)), level)
    found = everything(units)
    for name, (value, low, high) in found.items():
        assert low <= value <= high, name
        assert high - low > 1e-9, name
    shuffled = everything(units.sample(frac=1, random_state=0).reset_index(drop=True))
    assert shuffled.keys() == found.keys()
    for name, row in found.items():
        assert shuffled[name] == pytest.approx(row, abs=1e-12), name


def test_images_of_one_patient_widen_the_interval():
    # Ten images that are copies of one another know no more than one.
    draw = np.random.default_rng(0)
    label = np.r_[np.ones(100, int), np.zeros(100, int)]
    score = 1 / (1 + np.exp(-(label + draw.normal(size=200))))
    copied = units_of(np.repeat(label, 10), np.repeat(score, 10), np.repeat(np.arange(200), 10))
    once, ten_times = assessed(units_of(label, score)), assessed(copied)
    for end in ("low", "high"):
        bins = getattr(ten_times.reliability, end)
        assert bins == pytest.approx(getattr(once.reliability, end), abs=1e-6)
    alone, together = once.metrics, ten_times.metrics
    for name in ("auc", "brier", "average_precision", "sensitivity_at_specificity_80"):
        for end in ("low", "high"):
            named = f"{name}_ci_{end}"
            assert together[named] == pytest.approx(alone[named], abs=1e-6)
    # DeLong's takes the copies for ten patients each, hence only its standard error is given.
    assert together["auc_delong_se"] < 0.5 * alone["auc_delong_se"]
    assert together["auc_delong_ci_low"] is None
    assert alone["auc_delong_ci_low"] is not None


def test_of_many_patients_the_interval_is_delongs():
    patients = aggregate(check_predictions(made_up(400)), Level.PATIENT)
    metrics = assessed(patients).metrics
    assert metrics["auc_ci_low"] == pytest.approx(metrics["auc_delong_ci_low"], abs=0.01)
    assert metrics["auc_ci_high"] == pytest.approx(metrics["auc_delong_ci_high"], abs=0.01)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only_is_a_sentence(label):
    one = assessed(units_of([label] * 5, np.linspace(0, 1, 5)))
    assert one.metrics["auc"] is None
    assert one.metrics["n"] == 5
    assert "need both classes" in one.remarks[0]
    assert "need both classes" in auc_with_interval(units_of([label] * 5, [0.5] * 5))["remark"]


def test_all_scores_tied():
    one = assessed(units_of([0, 1] * 20, [0.5] * 40))
    assert (one.metrics["auc"], one.metrics["auc_ci_low"]) == (0.5, None)
    assert one.metrics["calibration_slope"] is None
    # One positive in two, and a score of .5 for all.
    assert one.metrics["calibration_intercept"] == pytest.approx(0)
    assert one.metrics["expected_observed_ratio"] == pytest.approx(1)
    assert any("All scores are equal" in remark for remark in one.remarks)
    assert any("No calibration slope" in remark for remark in one.remarks)


def test_one_patient_has_an_auc_and_no_interval():
    one = assessed(units_of([0, 1, 1, 0], [0.1, 0.8, 0.3, 0.4], ["p"] * 4))
    assert one.metrics["auc"] == 0.75
    assert one.metrics["auc_ci_low"] is None
    assert any("at least two patients" in remark for remark in one.remarks)
    assert np.isnan(one.roc_band.low).all()


def no_interval_without_width(row):
    low = {name: row[name] for name in row if name.endswith("_ci_low") and row[name] is not None}
    assert low
    return all(row[name.replace("_low", "_high")] - low[name] > 1e-9 for name in low)


def test_classes_that_do_not_overlap_are_no_certainty():
    # Ten patients of each class are ten pairs: all in order with probability AUC ** 10.
    units = units_of([0] * 10 + [1] * 10, np.linspace(0.01, 0.99, 20))
    thresholds = choose_thresholds(units["label"], units["score"], miss_cost=10)
    one = assessed(units, thresholds=thresholds)
    assert (one.metrics["auc"], one.metrics["auc_ci_high"]) == (1.0, 1.0)
    assert one.metrics["auc_ci_low"] == pytest.approx(0.025**0.1)
    assert one.metrics["auc_delong_ci_low"] is None
    assert any("exact one for pairs" in remark for remark in one.remarks)
    assert all(map(no_interval_without_width, [one.metrics, *one.operating_points]))
    youden = one.operating_points[0]
    # Mid-p: half of the chance of ten in ten counts.
    assert youden["sensitivity_ci_low"] == pytest.approx(0.05**0.1)
    assert youden["npv_ci_low"] == pytest.approx(0.05**0.1)
    lean = auc_with_interval(units)
    assert lean["auc_ci_low"] == one.metrics["auc_ci_low"]
    assert "exact" in lean["remark"]
    turned = assessed(units.assign(label=1 - units["label"]))
    assert turned.metrics["auc"] == turned.metrics["auc_ci_low"] == 0.0
    assert turned.metrics["auc_ci_high"] == pytest.approx(1 - 0.025**0.1)


def test_bands_of_classes_that_do_not_overlap_have_closed_forms():
    one = assessed(units_of([0] * 20 + [1] * 12, np.linspace(0.01, 0.99, 32)))
    roc, recalled = one.roc_band, one.precision_recall_band
    # All n patients of a class lie beyond the threshold that keeps x of it with probability x ** n.
    np.testing.assert_array_equal(np.isfinite(roc.low), (1 - roc.x) ** 20 <= 0.025)
    np.testing.assert_array_equal(np.isfinite(recalled.low), recalled.x**12 <= 0.025)
    # Of 20 negatives none is flagged: mid-p, half of the chance of that counts.
    known = np.isfinite(recalled.low)
    odds = 12 * recalled.x[known] / (20 * (1 - 0.05 ** (1 / 20)))
    assert recalled.low[known] == pytest.approx(odds / (1 + odds))
    assert (recalled.high[known] == 1).all()


@pytest.mark.parametrize("shape", ["plain", "tied", "few", "separated", "constant", "saturated"])
def test_no_interval_has_zero_width(shape):
    units = aggregate(check_predictions(made_up(8 if shape == "few" else 40)), Level.BREAST)
    score = {
        "plain": units["score"],
        "tied": units["score"].round(1).clip(0.1, 0.9),
        "few": units["score"],
        "separated": (units["score"] + units["label"]) / 2.01,
        "constant": units["score"] * 0 + 0.5,
        "saturated": units["score"].round(),
    }[shape]
    units = units.assign(score=score)
    thresholds = choose_thresholds(units["label"], units["score"], miss_cost=10)
    one = assessed(units, thresholds=thresholds, prevalence=None if shape == "tied" else 0.01)
    assert no_interval_without_width(one.metrics)
    for row in [*one.operating_points, *one.lift]:
        if any(row[name] is not None for name in row if name.endswith("_ci_low")):
            assert no_interval_without_width(row)
    ends = np.isin(one.reliability.y, (0.0, 1.0))
    assert (one.reliability.high - one.reliability.low)[ends].min(initial=1) > 0.01
    said = " ".join(one.remarks)
    assert ("exactly 0 or 1" in said) == (shape == "saturated")


@pytest.mark.parametrize(
    "scores", [(0.7, 0.4, 0.7), (0.3, 0.3, 0.3), (0.9, 0.1, 0.2), (1 / 3, 0.7, 0.1), (1, 1, 1)]
)
def test_patients_who_are_all_alike_give_no_interval_of_zero_width(scores):
    # Their influences cancel out, but for rounding.
    units = units_of([1, 0, 0] * 6, np.tile(scores, 6), patient=np.repeat(np.arange(6), 3))
    one = assessed(units)
    known = [name for name in one.metrics if name.endswith("_ci_low") and one.metrics[name]]
    assert bool(known) == (len(set(scores)) > 1)
    assert not known or no_interval_without_width(one.metrics)
    assert not (one.smooth_calibration.high - one.smooth_calibration.low < 1e-9).any()
    within = auc_within_strata(units, np.zeros(len(units), int))
    for name in ("auc", "auc_ci_low", "auc_ci_high"):
        assert within[name] == pytest.approx(one.metrics[name])


def test_the_calibration_of_some_units_is_that_of_their_whole_assessment():
    units = aggregate(check_predictions(made_up(40)), Level.BREAST)
    for rows in (units, units[units["patient_id"].isin(units["patient_id"].unique()[:3])]):
        found, whole = calibration_of(rows), assessed(rows).metrics
        for name in ("brier", "expected_observed_ratio", "slope", "intercept"):
            long = f"calibration_{name}" if name in ("slope", "intercept") else name
            for end in ("", "_ci_low", "_ci_high"):
                assert found[name + end] == whole[long + end], name + end


def test_few_patients_are_a_sentence():
    few = assessed(units_of([1] * 4 + [0] * 9, np.linspace(0, 1, 13) % 0.7))
    assert "4 with positives and 9 with negatives" in few.remarks[0]
    enough = assessed(units_of([1] * 5 + [0] * 9, np.linspace(0.1, 1, 14) % 0.7))
    assert not any("Few patients" in remark for remark in enough.remarks)


def test_a_specificity_without_interval_is_a_sentence():
    # All of 35 patients score above the threshold of 90 % with probability .9 ** 35 = .025.
    for positives, known in ((16, []), (17, ["80"]), (35, ["80"]), (36, ["80", "90"])):
        score = np.random.default_rng(0).random(positives + 100)
        one = assessed(units_of([1] * positives + [0] * 100, score))
        for rate in ("80", "90", "95"):
            low = one.metrics[f"specificity_at_sensitivity_{rate}_ci_low"]
            assert (low is not None) == (rate in known)
            assert one.metrics[f"sensitivity_at_specificity_{rate}_ci_low"] is not None
        missing = [remark for remark in one.remarks if "No interval of the specificity" in remark]
        assert f"all {positives} patients with positives" in missing[0]
        needed = ("17, 36 and 72", "36 and 72", "72")[len(known)]
        assert missing[0].endswith(f"At least {needed} are needed.")


def test_an_average_precision_that_few_negatives_make_has_no_interval():
    units = units_of([1] * 20 + [0] * 100, np.random.default_rng(0).random(120))
    rare = assessed(units, prevalence=0.006)
    assert rare.metrics["average_precision_at_prevalence_ci_low"] is None
    assert any("re-weighted to a prevalence of 0.006" in remark for remark in rare.remarks)
    assert any("At least 829 are needed." in remark for remark in rare.remarks)
    common = assessed(units, prevalence=0.1)
    assert common.metrics["average_precision_at_prevalence_ci_low"] is not None


def test_operating_points_are_applied_not_chosen_again(predictions):
    validation = aggregate(check_predictions(made_up(80, seed=5)), Level.IMAGE)
    images = aggregate(check_predictions(predictions), Level.IMAGE)
    thresholds = choose_thresholds(validation["label"], validation["score"], miss_cost=10)
    points = assessed(images, thresholds=thresholds).operating_points
    assert [point["threshold"] for point in points] == [chosen.value for chosen in thresholds]
    for point in points:
        flagged = images["score"] >= point["threshold"]
        assert point["tp"] == (flagged & (images["label"] == 1)).sum()
        assert point["tn"] == (~flagged & (images["label"] == 0)).sum()
        assert point["tp"] + point["fp"] + point["fn"] + point["tn"] == len(images)
        assert point["sensitivity_ci_low"] <= point["sensitivity"] <= point["sensitivity_ci_high"]


@pytest.mark.parametrize(
    ("images", "said"), [([4] * 60, False), ([2, 4] * 30, False), ([30] + [1] * 59, True)]
)
def test_a_few_patients_with_most_of_the_units_are_told_of(images, said):
    """Of either class; at the level of the patient there are none."""
    for first in (1, 0):
        label = np.where(np.arange(60) % 3 == 0, first, 1 - first)
        patient = np.repeat(np.arange(60), images)
        score = np.random.default_rng(0).random(len(patient))
        found = assessed(units_of(label[patient], score, patient)).remarks
        assert any("most of the units: one has 30, half" in remark for remark in found) == said
    found = assessed(units_of(label, score[:60])).remarks
    assert not any("most of the units" in remark for remark in found)


def test_intervals_at_a_prevalence_follow_from_those_of_the_two_rates():
    """Bayes' rule moves odds alone; shares flagged add up (Zou and Donner 2008)."""
    units = aggregate(check_predictions(made_up(120)), Level.EXAM)

    def odds(share):
        return share / (1 - share)

    def at(threshold, rows, prevalence):
        given = [Threshold("one", "a rule", threshold)]
        (row,) = assess(rows, thresholds=given, prevalence=prevalence).operating_points
        return row

    # With the classes exchanged, the one predictive value is the other.
    exchanged = units.assign(label=1 - units["label"], score=1 - units["score"])
    moved = []
    for share in (0.006, 0.3, 0.7):
        row = at(0.4, units, share)
        for end, other in (("low", "high"), ("high", "low")):
            found = row["sensitivity"] - row[f"sensitivity_ci_{end}"]
            alarm = row["specificity"] - row[f"specificity_ci_{other}"]
            reach = np.hypot(share * found, (1 - share) * alarm)
            assert abs(row["recall_rate"] - row[f"recall_rate_ci_{end}"]) == pytest.approx(reach)
        ppv = [odds(row[f"ppv{end}"]) / odds(share) for end in ("_ci_low", "", "_ci_high")]
        npv = [odds(row[f"npv{end}"]) * odds(share) for end in ("_ci_low", "", "_ci_high")]
        assert ppv[0] < ppv[1] < ppv[2]
        assert npv[0] < npv[1] < npv[2]
        moved.append(ppv + npv)
        turned = at(0.6, exchanged, 1 - share)
        for end in ("", "_ci_low", "_ci_high"):
            assert row[f"npv{end}"] == pytest.approx(turned[f"ppv{end}"])
        assert ppv[1] == pytest.approx(row["sensitivity"] / (1 - row["specificity"]))
    np.testing.assert_allclose(moved[1:], [moved[0]] * 2)


def test_the_share_flagged_at_the_readers_sensitivity_has_the_doubts_of_its_parts():
    """The specificity there, and how common positives are; none is one of the other (MOVER)."""
    units = aggregate(check_predictions(made_up(120)), Level.PATIENT)
    counted = float(units["label"].mean())
    for given in (None, 0.006, 0.3, 0.7):
        found = assessed(units, reader=Reader(0.8, 0.8), prevalence=given).metrics
        share = given or counted
        rarer, commoner = (given, given) if given else share_interval(counted, len(units))
        recall = found["recall_rate_at_reader_sensitivity"]
        alarm = 1 - found["specificity_at_reader_sensitivity"]
        steep = (recall - alarm) / share
        for end, other, prevalence in (("low", "high", rarer), ("high", "low", commoner)):
            moved = 1 - found[f"specificity_at_reader_sensitivity_ci_{other}"] - alarm
            reach = np.hypot((1 - share) * moved, steep * (prevalence - share))
            seen = abs(found[f"recall_rate_at_reader_sensitivity_ci_{end}"] - recall)
            assert seen == pytest.approx(reach, rel=1e-9 if given else 0.01)


@pytest.mark.parametrize("rate", [0.8, 0.9])
def test_the_precision_band_has_the_doubts_of_specificity_and_prevalence(rate):
    """On the logit, which is the sum of that of the prevalence and log(recall / false alarms)."""
    units = aggregate(check_predictions(made_up(300)), Level.PATIENT)
    share = float(units["label"].mean())
    rarer, commoner = share_interval(share, len(units))
    one = assessed(units)
    band, place = one.precision_recall_band, round(100 * rate) - 1
    name = f"specificity_at_sensitivity_{rate * 100:.0f}"
    alarm, fewer, more = (1 - one.metrics[name + end] for end in ("", "_ci_high", "_ci_low"))
    below = np.hypot(np.log(more / alarm), logit(share) - logit(rarer))
    above = np.hypot(np.log(alarm / fewer), logit(commoner) - logit(share))
    middle = logit(band.y[place])
    assert band.low[place] == pytest.approx(expit(middle - below), rel=1e-3)
    assert band.high[place] == pytest.approx(expit(middle + above), rel=1e-3)


@pytest.mark.parametrize("digits", [2, 12])
@pytest.mark.parametrize("given", [None, 0.02])
def test_the_yield_of_the_highest_scores_has_the_doubts_of_its_threshold_too(given, digits):
    """Those at a fixed threshold, and how far its own limits move what is found (MOVER)."""
    units = aggregate(check_predictions(made_up(300)), Level.PATIENT)
    units["score"] = units["score"].round(digits)
    share = given or float(units["label"].mean())
    rarest = given or share_interval(share, len(units))[0]
    thresholds = [Threshold(str(one), "", one) for one in np.unique(units["score"])[::-1]]
    found = assessed(units, thresholds=thresholds, prevalence=given)
    for row in found.lift:
        rows = pd.DataFrame(found.operating_points)

        def flagged(end, rows=rows):
            return int((rows["recall_rate"] <= end * (1 + 1e-9)).sum())

        asked = row["share_flagged"]
        fixed = rows.iloc[flagged(asked) - 1]
        few, many = (flagged(fixed[f"recall_rate_ci_{end}"]) for end in ("low", "high"))
        near = rows[max(few - 1, 0) : many]
        expected = {}
        for name in ("sensitivity", "ppv"):
            at_fixed = fixed[f"{name}_ci_low"], fixed[f"{name}_ci_high"]
            least = 0.0 if name == "sensitivity" and not few else near[name].min()
            expected[name] = joined(fixed[name], at_fixed, (least, near[name].max()))
        low, high = expected["sensitivity"]
        chosen = fixed["recall_rate"]
        # Fewer than were asked for, where scores are tied.
        expected["lift"] = low / max(chosen, asked), min(high / chosen, 1 / rarest)
        if given:
            expected["ppv"] = tuple(given * end for end in expected["lift"])
        for name, limits in expected.items():
            seen = row[f"{name}_ci_low"], row[f"{name}_ci_high"]
            assert seen == pytest.approx(limits, rel=1e-3), (asked, name)


def test_the_roc_band_is_the_interval_of_the_sensitivity_at_each_specificity():
    """At those that the scores reach exactly, so that nothing lies between two points."""
    draw = np.random.default_rng(0)
    label = np.r_[np.ones(100, int), np.zeros(200, int)]
    units = units_of(label, 1 / (1 + np.exp(-(label + draw.normal(size=300)))))
    one = assessed(units)
    for rate in (0.8, 0.9, 0.95):
        place = round(100 * (1 - rate))
        for end in ("low", "high"):
            expected = one.metrics[f"sensitivity_at_specificity_{rate * 100:.0f}_ci_{end}"]
            assert getattr(one.roc_band, end)[place] == pytest.approx(expected)


@pytest.mark.parametrize(("rare", "digits"), [(0.1, 12), (0.5, 1)])
def test_of_many_patients_intervals_are_as_wide_as_the_jackknife_says(rare, digits):
    """It leaves out one patient at a time and asks scikit-learn; it knows no derivative."""
    units = aggregate(check_predictions(made_up(800)), Level.BREAST)
    units["score"] = units["score"].round(digits)
    label, score, patient = (units[name].to_numpy() for name in ("label", "score", "patient_id"))

    def figures(rows):
        y, s = label[rows], score[rows]
        weight = np.where(y == 1, rare / y.sum(), (1 - rare) / (1 - y).sum())
        return {
            "partial_auc_90": roc_auc_score(y, s, max_fpr=0.1),
            "average_precision": average_precision_score(y, s),
            "average_precision_at_prevalence": average_precision_score(y, s, sample_weight=weight),
            "brier": np.mean((s - y) ** 2),
            "pf1": 2 * (s * y).sum() / (s + y).sum(),
            "expected_observed_ratio": s.sum() / y.sum(),
        }

    left_out = pd.DataFrame([figures(patient != one) for one in np.unique(patient)])
    found = assessed(units, prevalence=rare).metrics
    for name, error in (left_out.std() * np.sqrt(len(left_out) - 1)).items():
        assert found[name] == pytest.approx(figures(label >= 0)[name])
        reach = (found[f"{name}_ci_high"] - found[f"{name}_ci_low"]) / 2
        assert reach == pytest.approx(1.96 * error, rel=0.02), name
