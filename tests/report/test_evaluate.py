import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from blank_figures import figures_left_blank
from prediction_tables import made_up

from mammo_pd.errors import InputError
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.roc import auc
from mammo_pd.evaluation.thresholds import Reader
from mammo_pd.report import evaluate
from mammo_pd.report.content import ReportContext
from mammo_pd.report.evaluate import (
    compare_predictions,
    difference_table,
    evaluate_file,
    evaluate_predictions,
    summary_table,
)
from mammo_pd.report.folder import metrics_of
from mammo_pd.terms import Level, Split

CONTEXT = ReportContext(title="A test", created="2026-01-01T00:00:00+00:00")


@pytest.fixture
def predictions():
    """Forty patients with four images each; every third patient has one positive breast."""
    draw = np.random.default_rng(0)
    n = 160
    patient = np.arange(n) // 4
    label = ((patient % 3 == 0) & (np.arange(n) % 4 < 2)).astype(int)
    return pd.DataFrame(
        {
            "image_id": [f"i{i:03d}" for i in range(n)],
            "patient_id": [f"p{i:02d}" for i in patient],
            "exam_id": [f"e{i:02d}" for i in patient],
            "laterality": np.tile(["L", "L", "R", "R"], n // 4),
            "view": np.tile(["CC", "MLO"], n // 2),
            "label": label,
            "score": 1 / (1 + np.exp(-(1.5 * label + draw.normal(size=n) - 1))),
        }
    )


def evaluated(table, out, **how):
    return evaluate_predictions(table, out, context=CONTEXT, **how)


@pytest.fixture
def no_drawing(monkeypatch):
    """For tests of what is computed: drawing takes a second."""
    monkeypatch.setattr(evaluate, "write_report", lambda made, out: metrics_of(made))


def test_a_report_folder(predictions, tmp_path):
    predictions["split"] = ["val"] * 60 + ["test"] * 100
    path = tmp_path / "predictions.csv"
    predictions.to_csv(path, index=False)
    out = tmp_path / "deep" / "report"
    metrics = evaluate_file(path, out, context=CONTEXT)

    names = {entry.name for entry in out.iterdir()}
    assert {"index.html", "metrics.json", "roc.png", "roc.svg", "pr.png", "pr.svg"} <= names
    assert {"metrics.csv", "operating_points.csv", "predictions.csv"} <= names
    assert {f"predictions_{level}.csv" for level in Level} <= names
    assert [entry.name for entry in out.parent.iterdir()] == ["report"]

    written = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(metrics))
    for level in Level:
        assert {"n", "n_positive", "auc", "auc_ci_low", "auc_ci_high"} <= written[level].keys()
        units = pd.read_csv(out / f"predictions_{level}.csv")
        assert len(units) == written[level]["n"]
        assert auc(units["label"], units["score"]) == pytest.approx(written[level]["auc"])
    assert written["image"]["n"] == 100


def test_the_reports_own_predictions_give_the_same_report(predictions, tmp_path):
    val = predictions.iloc[:60]
    test = predictions.iloc[60:].reset_index(drop=True)
    first = evaluated(test, tmp_path / "a", validation=val)
    again = evaluate_file(tmp_path / "a" / "predictions.csv", tmp_path / "b", context=CONTEXT)
    assert again == first
    for name in ("metrics.json", "roc.svg", "index.html", "predictions_exam.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.usefixtures("no_drawing")
class TestWhichRowsAreEvaluated:
    def test_all_of_them_without_a_split(self, predictions, tmp_path):
        metrics = evaluated(predictions, tmp_path)
        assert metrics["image"]["n"] == 160
        assert metrics["image"]["operating_points"] == []

    def test_test_rows_with_thresholds_from_val(self, predictions, tmp_path):
        predictions["split"] = ["train"] * 40 + ["val"] * 60 + ["test"] * 60
        metrics = evaluated(predictions, tmp_path)
        assert metrics["image"]["n"] == 60
        assert metrics["counts"]["training_images_left_out"] == 40
        assert metrics["computation"]["thresholds_from_images"] == 60
        # What stands in the test rows cannot move a threshold.
        predictions.loc[100:, "score"] = 0.5
        moved = evaluated(predictions, tmp_path)
        assert [p["threshold"] for p in moved["exam"]["operating_points"]] == [
            p["threshold"] for p in metrics["exam"]["operating_points"]
        ]

    def test_val_rows_where_there_is_no_test(self, predictions, tmp_path):
        predictions["split"] = ["train"] * 40 + ["val"] * 120
        metrics = evaluated(predictions, tmp_path)
        assert metrics["image"]["n"] == 120
        assert metrics["image"]["operating_points"] == []
        # They are called what they are, and test rows are not.
        assert metrics["context"]["split_part"] == "val"
        assert "note: These are validation images" in summary_table(metrics)
        predictions["split"] = "test"
        assert "validation images" not in summary_table(evaluated(predictions, tmp_path))

    def test_training_rows_alone_are_refused(self, predictions, tmp_path):
        predictions["split"] = "train"
        with pytest.raises(InputError, match="training images"):
            evaluated(predictions, tmp_path)

    def test_an_unknown_split_is_refused(self, predictions, tmp_path):
        predictions["split"] = "holdout"
        with pytest.raises(InputError, match="such as holdout"):
            evaluated(predictions, tmp_path)

    def test_a_patient_on_both_sides_is_refused(self, predictions, tmp_path):
        predictions["split"] = ["val"] * 61 + ["test"] * 99
        with pytest.raises(InputError, match="both evaluated and used to choose"):
            evaluated(predictions, tmp_path)

    @pytest.mark.parametrize("one", list(Split))
    @pytest.mark.parametrize("other", list(Split))
    def test_a_patient_on_any_two_sides_is_refused(self, predictions, tmp_path, one, other):
        predictions["split"] = [one] * 61 + [other] * 39 + ["val"] * 20 + ["test"] * 40
        if one == other:
            assert evaluated(predictions, tmp_path)["exam"]["auc"] is not None
            return
        with pytest.raises(InputError, match=r"^1 patient is both .* split by patient"):
            evaluated(predictions, tmp_path)

    def test_a_patient_in_several_folds_is_refused(self, predictions, tmp_path):
        # Of two patients one image each was scored by a model that had trained on the others.
        predictions["fold"] = predictions.index // 4 % 2
        predictions.loc[[0, 9], "fold"] = [1, 1]
        with pytest.raises(InputError, match=r"^2 patients are in more than one fold"):
            evaluated(predictions, tmp_path)
        with pytest.raises(InputError, match=r"^2 patients are in more than one fold"):
            compare_predictions(
                {"a": predictions, "b": predictions}, tmp_path, context=ReportContext()
            )

    def test_a_fold_that_is_missing_is_refused(self, predictions, tmp_path):
        """One blank cell would compare scores of different models, and say nothing of it."""
        folded = predictions.assign(fold=np.arange(160) // 4 % 4 + 0.0)
        folded.loc[:3, "fold"] = np.nan
        with pytest.raises(InputError, match="4 rows have no fold and 156 have one"):
            evaluated(folded, tmp_path / "report")
        with pytest.raises(InputError, match="4 rows have no fold"):
            compare_predictions(
                {"one": folded, "other": predictions}, tmp_path / "c", context=CONTEXT
            )
        # No fold at all is one model; and validation rows have none.
        blank = evaluated(predictions.assign(fold=np.nan), tmp_path / "blank")
        assert blank["within_folds"] == []
        folded["split"] = ["val"] * 4 + ["test"] * 156
        assert evaluated(folded, tmp_path / "val")["within_folds"]

    def test_unlabelled_rows_are_counted_and_excluded(self, predictions, tmp_path):
        predictions["label"] = predictions["label"].astype(float)
        predictions.loc[:9, "label"] = np.nan
        metrics = evaluated(predictions, tmp_path)
        assert metrics["counts"]["images_without_label"] == 10
        assert metrics["image"]["n"] == 150


@pytest.mark.usefixtures("no_drawing")
def test_folds_are_pooled_and_apart(predictions, tmp_path):
    predictions["fold"] = predictions["patient_id"].str[1:].astype(int) % 4
    metrics = evaluated(predictions, tmp_path)
    images = [row for row in metrics["folds"] if row["level"] == "image"]
    assert [row["fold"] for row in images] == ["0", "1", "2", "3"]
    first = predictions[predictions["fold"] == 0]
    assert images[0]["auc"] == pytest.approx(auc(first["label"], first["score"]))
    assert metrics["image"]["auc"] == pytest.approx(auc(predictions["label"], predictions["score"]))
    # Each fold's thresholds come from the others; of validation rows there are none.
    assert metrics["computation"]["cross_fitted"] is True
    points = metrics["exam"]["operating_points"]
    assert {row["code"] for row in points} > {"youden", "specificity_90"}
    assert [row["code"] for row in metrics["programme"]["per_thousand"]] == [
        row["code"] for row in points
    ]


def in_folds(predictions):
    """Out-of-fold predictions and, by fold, those of its model on women whom it did not test."""
    fold = predictions["patient_id"].str[1:].astype(int) % 4
    scale = 1.0 + 2.0 * fold
    tested = predictions.assign(fold=fold, score=predictions["score"] ** scale)
    validation = {
        str(one): predictions[fold == (one + 1) % 4].assign(
            score=lambda rows, one=one: rows["score"] ** (1.0 + 2.0 * one)
        )
        for one in range(4)
    }
    return tested, validation


@pytest.fixture
def blank_figures():
    """Pages are written, with nothing drawn on them."""
    with figures_left_blank():
        yield


@pytest.mark.usefixtures("blank_figures")
def test_within_folds_the_scale_of_a_model_does_not_count(predictions, tmp_path):
    tested, _ = in_folds(predictions)
    alike = evaluated(predictions.assign(fold=tested["fold"]), tmp_path / "alike")
    metrics = evaluated(tested, tmp_path / "scaled")
    # Of images; a power of a mean is not the mean of powers.
    assert metrics["within_folds"][0] == alike["within_folds"][0]
    assert [row["level"] for row in metrics["within_folds"]] == list(Level)
    for row in metrics["within_folds"]:
        of = [one for one in metrics["folds"] if one["level"] == row["level"]]
        expected = np.average([one["auc"] for one in of], weights=[one["n_positive"] for one in of])
        assert row["auc"] == pytest.approx(expected)
        assert metrics[row["level"]]["auc"] < row["auc"]
    assert "compared only with negatives of the same fold (one model's scores):" in summary_table(
        metrics
    )
    page = (tmp_path / "scaled" / "index.html").read_text()
    assert "All folds pooled, and within folds" in page
    assert evaluated(predictions, tmp_path / "plain")["within_folds"] == []


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_worth_of_an_ensemble_is_not_called_that_of_a_model(seeds, predictions, tmp_path):
    tested, validation = in_folds(predictions)
    rows = [{"seed": name, **dict.fromkeys(Level, 0.7123)} for name in ("0", "1", "2")]
    rows += [{"seed": "mean", **dict.fromkeys(Level, 0.7123)}]
    rows += [{"seed": "range", **dict.fromkeys(Level, 0.01)}]
    runs = [{"fold": 0, "seed": 0, "epoch": 1, "seconds": 1.0}]
    aucs = [f"{part}_auc_{level}" for part in ("val", "test") for level in ("image", "breast")]
    runs[0] |= dict.fromkeys(aucs, 0.7)
    context = replace(CONTEXT, runs=runs, seeds=rows if seeds > 1 else ())
    metrics = evaluate_predictions(tested, tmp_path, context=context, validation_by_fold=validation)
    page, told = (tmp_path / "index.html").read_text(), summary_table(metrics)
    ensemble = "what an ensemble of 3 models trained like these is worth" in page
    assert ensemble == (seeds > 1)
    assert ("what one model trained like these is worth" in page) == (seeds == 1)
    assert ("That of a single model is 0.712 on average" in page) == ensemble
    assert ("one ensemble's scores" in told) == ensemble
    assert ("one model's scores" in told) != ensemble
    # Whatever chose them, thresholds of folds are shown as their mean.
    assert "Each fold has its own; the mean is shown." in page


@pytest.mark.usefixtures("blank_figures")
def test_each_fold_is_judged_by_the_threshold_of_its_own_model(predictions, tmp_path):
    tested, validation = in_folds(predictions)
    metrics = evaluated(tested, tmp_path, validation_by_fold=validation)
    assert metrics["computation"]["by_fold"] is True
    assert metrics["computation"]["cross_fitted"] is False
    assert metrics["computation"]["thresholds_from_images"] == len(predictions)
    # As each run alone is judged.
    alone = [
        evaluated(
            tested[tested["fold"] == fold].drop(columns="fold"),
            tmp_path / f"fold{fold}",
            validation=validation[str(fold)],
        )
        for fold in range(4)
    ]
    for level in Level:
        points = {row["code"]: row for row in metrics[level]["operating_points"]}
        each = [{row["code"]: row for row in one[level]["operating_points"]} for one in alone]
        assert set(points) == set(each[0])
        for code, row in points.items():
            of_folds = [one[code] for one in each]
            assert row["threshold"] == pytest.approx(np.mean([r["threshold"] for r in of_folds]))
            for kind in ("tp", "fp", "fn", "tn"):
                assert row[kind] == sum(one[kind] for one in of_folds)
    # What stands beside the page gives the page again.
    written = pd.read_csv(tmp_path / "validation.csv", dtype={"fold": str})
    again = evaluated(
        pd.read_csv(tmp_path / "predictions.csv"),
        tmp_path / "again",
        validation_by_fold={
            fold: rows.drop(columns="fold") for fold, rows in written.groupby("fold")
        },
    )
    assert again == metrics
    assert "as scored by that fold&#39;s model" in (tmp_path / "index.html").read_text()


def test_validation_of_other_folds_or_of_tested_women_is_refused(predictions, tmp_path):
    tested, validation = in_folds(predictions)
    with pytest.raises(InputError, match="of the folds 1, 2, 3, and the predictions of 0, 1, 2, 3"):
        evaluated(
            tested,
            tmp_path,
            validation_by_fold={fold: validation[fold] for fold in ("1", "2", "3")},
        )
    validation["2"] = validation["1"]
    with pytest.raises(InputError, match="10 patients are both tested in fold 2 and used"):
        evaluated(tested, tmp_path, validation_by_fold=validation)


@pytest.mark.parametrize("lacking", ["a class", "labels", "rows"])
@pytest.mark.usefixtures("no_drawing")
def test_without_both_classes_the_other_folds_choose(predictions, tmp_path, lacking):
    """A rare target may be unknown of all validation images of a fold; training took hours."""
    tested, validation = in_folds(predictions)
    own = validation["0"]
    validation["0"] = {
        "a class": own.assign(label=0),
        "labels": own.assign(label=np.nan),
        "rows": own[:0],
    }[lacking]
    metrics = evaluated(tested, tmp_path, validation_by_fold=validation)
    assert metrics["computation"]["cross_fitted"] is True
    assert metrics["computation"]["by_fold"] is False
    assert not (tmp_path / "validation.csv").exists()


@pytest.mark.usefixtures("no_drawing")
def test_aggregation_is_applied_and_stated(predictions, tmp_path):
    metrics = evaluated(predictions, tmp_path, aggregation="max")
    assert metrics["computation"]["aggregation"] == "max"
    highest = predictions.groupby("patient_id")[["label", "score"]].max()
    assert metrics["patient"]["auc"] == pytest.approx(auc(highest["label"], highest["score"]))


@pytest.mark.usefixtures("no_drawing")
def test_radiologists_are_set_beside_the_exam_level(predictions, tmp_path):
    metrics = evaluated(predictions, tmp_path, reader=Reader(0.8, 0.9))
    exam = metrics["exam"]
    assert exam["specificity_at_reader_sensitivity"] == exam["specificity_at_sensitivity_80"]
    assert exam["sensitivity_at_reader_specificity"] == exam["sensitivity_at_specificity_90"]
    assert "specificity_at_reader_sensitivity" not in metrics["image"]
    assert metrics["computation"]["reader"] == {"sensitivity": 0.8, "specificity": 0.9}


@pytest.mark.usefixtures("no_drawing")
def test_a_prevalence_moves_what_depends_on_it_and_nothing_else(predictions, tmp_path):
    plain = evaluated(predictions, tmp_path)["exam"]
    rare = evaluated(predictions, tmp_path, prevalence=0.006)["exam"]
    assert rare["auc"] == plain["auc"]
    assert rare["average_precision_at_prevalence"] < plain["average_precision"]
    last = rare["lift"][-1]
    assert last["share_flagged"] == 0.2
    assert last["lift"] == pytest.approx(last["ppv"] / 0.006)
    assert last["ppv"] < plain["lift"][-1]["ppv"]


@pytest.mark.usefixtures("no_drawing")
def test_a_prevalence_is_of_exams_and_the_other_levels_follow(predictions, tmp_path):
    metrics = evaluated(predictions, tmp_path, prevalence=0.006)
    shares = metrics["computation"]["prevalences"]
    # One exam each; of a sick woman half the images and one of two breasts are positive.
    assert shares["exam"] == pytest.approx(shares["patient"]) == 0.006
    assert shares["image"] == pytest.approx(shares["breast"]) == 0.003
    for level, share in shares.items():
        last = metrics[level]["lift"][-1]
        assert last["lift"] == pytest.approx(last["ppv"] / share)


@pytest.mark.usefixtures("no_drawing")
def test_unknown_units_are_left_out_and_told_of(predictions, tmp_path):
    predictions["label"] = predictions["label"].astype(float)
    predictions.loc[predictions.index[4], "label"] = np.nan  # of a healthy woman
    predictions.loc[predictions.index[0], "label"] = np.nan  # of a positive breast
    predictions.loc[predictions.index[12], "label"] = 0.0  # of a positive breast
    metrics = evaluated(predictions, tmp_path)
    assert [metrics[level]["n"] for level in Level] == [158, 79, 39, 39]
    assert metrics["exam"]["n_positive"] == 14
    told = summary_table(metrics)
    for words in ("without a label: 2;", "Exams without a known label", "images labelled 0: 1;"):
        assert words in told


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ({"aggregation": "median"}, "no aggregation 'median'.*mean, max, noisy_or"),
        ({"prevalence": 6}, "prevalence of 6"),
        ({"prevalence_level": "side"}, "no level 'side'.*image, breast, exam, patient"),
        ({"miss_cost": 0}, "cannot cost 0"),
        ({"miss_cost": float("inf")}, "cannot cost inf"),
        ({"reader": Reader(85, 0.9)}, "sensitivity of 85"),
        ({"stratify_by": ["parity"]}, "no column parity"),
        ({"within": ["view", "parity"]}, "no column parity to compare within"),
        ({"within": ["label"]}, "label is what an AUC is made of"),
        ({"within": ["view", "exam_id"]}, "No two women share a value of exam_id"),
        ({"within": ["patient_id"]}, "No two women share a value of patient_id"),
    ],
)
def test_a_bad_choice_is_a_sentence(predictions, tmp_path, how, cause):
    with pytest.raises(InputError, match=cause):
        evaluated(predictions, tmp_path / "report", **how)
    assert not (tmp_path / "report").exists()


def test_one_class_still_makes_a_report(predictions, tmp_path):
    predictions["label"] = 0
    metrics = evaluated(predictions, tmp_path / "report")
    assert metrics["exam"]["auc"] is None
    assert "need both classes" in (tmp_path / "report" / "index.html").read_text()
    assert "need both classes" in summary_table(metrics)


def test_one_patient_still_makes_a_report(predictions, tmp_path):
    metrics = evaluated(predictions.iloc[:4], tmp_path / "report")
    assert metrics["image"]["auc_ci_low"] is None
    assert metrics["patient"]["auc"] is None


def test_nothing_handed_in_is_changed(predictions, tmp_path, no_drawing):
    before = predictions.copy()
    evaluated(predictions, tmp_path)
    pd.testing.assert_frame_equal(predictions, before)
    check_predictions(predictions)


def test_summary_table(predictions, tmp_path, no_drawing):
    lines = summary_table(evaluated(predictions, tmp_path)).splitlines()[:5]
    assert lines[0].split()[:3] == ["level", "n", "positive"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["image", "160", "28"],
        ["breast", "80", "14"],
        ["exam", "40", "14"],
        ["patient", "40", "14"],
    ]
    assert all("[" in line for line in lines)


def test_the_auc_within_strata_is_shown_below_that_of_all(predictions, tmp_path):
    # A machine that one woman alone was imaged with.
    predictions["machine_id"] = np.where(predictions["patient_id"] == "p00", "2", "1")
    metrics = evaluated(predictions, tmp_path / "report", within=["machine_id"])
    assert [row["level"] for row in metrics["within"]] == list(Level)
    rest = evaluated(predictions[predictions["machine_id"] == "1"], tmp_path / "rest")
    for row in metrics["within"]:
        assert row["auc"] == pytest.approx(rest[row["level"]]["auc"])
        assert row["n_positive_left_out"] == (2 if row["level"] == "image" else 1)
    lines = summary_table(metrics).splitlines()[5:]
    assert lines[0] == "compared only with negatives of the same machine_id:"
    assert lines[2].split()[:3] == ["breast", "78", "13"]
    assert lines[5].startswith("note: 2 positives of 28 left out")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "compared only with negatives of the same machine id" in page
    assert rest["within"] == []


@pytest.mark.parametrize("sees_cancer", [True, False])
def test_the_result_says_whether_anything_is_left_within_strata(tmp_path, sees_cancer):
    table = made_up(120, shift=3)
    patient = np.arange(480) // 4
    sick = table.groupby("patient_id")["label"].transform("max") == 1
    # Most sick women, and few others, were imaged with the second machine, which scores tell.
    second = np.where(sick, patient % 4 > 0, patient % 4 == 0)
    table["machine_id"] = np.where(second, "2", "1")
    if not sees_cancer:
        noise = np.random.default_rng(99).random(120)[patient]
        table["score"] = 0.2 + 0.4 * second + 0.3 * noise
    evaluated(table, tmp_path / "report", within=["machine_id"])
    page = (tmp_path / "report" / "index.html").read_text()
    assert "The interval lies above 0.5" in page
    assert "Compared only with negatives of the same machine id" in page
    assert ("better than chance there" in page) != sees_cancer
    assert "have such negatives" not in page


def test_what_is_left_out_within_strata_is_said_beside_the_result(tmp_path):
    table = made_up(40, shift=3)
    # One positive woman was imaged by a machine that imaged no other.
    sick = table.loc[table["label"] == 1, "patient_id"].unique()
    table["machine_id"] = np.where(table["patient_id"] == sick[0], "2", "1")
    evaluated(table, tmp_path / "report", within=["machine_id"])
    page = (tmp_path / "report" / "index.html").read_text()
    told = f"Only {len(sick) - 1} of {len(sick)} positive exams have such negatives."
    assert told in page


def test_no_torch_is_imported():
    code = (
        "import sys, matplotlib.figure, mammo_pd.report.evaluate; "
        "print(sorted({'torch', 'timm', 'monai', 'lightning', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class TestCompare:
    @pytest.fixture
    def two(self, predictions):
        noise = np.random.default_rng(1).normal(0, 0.3, len(predictions))
        return {
            "keep 1": predictions,
            "keep <.25>": predictions.assign(score=np.clip(predictions["score"] + noise, 0, 1)),
        }

    def test_a_comparison_folder(self, two, tmp_path):
        out = tmp_path / "comparison"
        metrics = compare_predictions(two, out, context=CONTEXT)
        assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
        for name in ("alone", "paired"):
            written = pd.read_csv(out / f"{name}.csv").astype(object)
            rows = written.where(written.notna(), None).to_dict("records")
            assert [row["level"] for row in rows] == [row["level"] for row in metrics[name]]
            assert rows[0] == pytest.approx(metrics[name][0])
        assert (out / "roc.svg").exists()
        assert (out / "roc.png").exists()
        page = (out / "index.html").read_text()
        assert "keep &lt;.25&gt;" in page
        assert "keep <.25>" not in page
        row = metrics["paired"][0]
        expected = [auc(table["label"], table["score"]) for table in two.values()]
        assert row["difference"] == pytest.approx(expected[0] - expected[1])
        assert "keep 1 − keep <.25>" in difference_table(metrics)

    def test_the_terminal_says_holm_and_the_margin(self, two, tmp_path):
        tables = {**two, "third": two["keep 1"].assign(score=two["keep 1"]["score"] ** 2)}
        metrics = compare_predictions(tables, tmp_path / "c", context=CONTEXT, margin=0.4)
        told = difference_table(metrics)
        assert told.count("(Holm ") == 12
        assert "note: image level: keep <.25> is not worse than keep 1 by 0.4 or more ([" in told
        # The third ranks as the first does.
        assert "keep 1 is worse than third by 0.4 or more cannot be said" in told
        page = (tmp_path / "c" / "index.html").read_text()
        assert "p, Holm" in page
        assert "Not worse by 0.4?" in page
        with pytest.raises(InputError, match="margin of 2 "):
            compare_predictions(two, tmp_path / "d", context=CONTEXT, margin=2)

    @pytest.mark.parametrize("others", [0, 1])
    def test_the_terminal_says_why_models_that_rank_alike_have_no_interval(
        self, others, two, tmp_path
    ):
        """At every level without one, and at no other."""
        first, other = two.items()
        alike = first[1].assign(score=first[1]["score"] ** 2)
        tables = dict([first, ("squared", alike), *[other] * others])
        metrics = compare_predictions(tables, tmp_path / "c", context=CONTEXT)
        told = [line for line in difference_table(metrics).splitlines() if "rank all" in line]
        without = [row for row in metrics["paired"] if row["difference_ci_low"] is None]
        assert len(without) >= 1
        (line,) = told
        named = line[line.index(". (") + 3 : -1].split("; ")
        assert named == [
            f"{row['level']} level" + ", keep 1 and squared" * others for row in without
        ]
        assert not [
            line
            for line in difference_table(
                compare_predictions(two, tmp_path / "d", context=CONTEXT)
            ).splitlines()
            if "rank all" in line
        ]

    def test_only_test_rows_count(self, two, tmp_path):
        split = ["val"] * 40 + ["test"] * 120
        tables = {name: table.assign(split=split) for name, table in two.items()}
        metrics = compare_predictions(tables, tmp_path / "c", context=CONTEXT)
        assert metrics["alone"][0]["n"] == 120

    @pytest.mark.parametrize("both", [True, False])
    def test_validation_rows_are_called_what_they_are(self, two, both, tmp_path):
        """On them an epoch was chosen, perhaps of one model alone."""
        tables = {
            name: table.assign(split="val") if both or name == "keep 1" else table
            for name, table in two.items()
        }
        metrics = compare_predictions(tables, tmp_path / "c", context=CONTEXT)
        (line,) = [
            one
            for one in difference_table(metrics).splitlines()
            if one.startswith("note: These are validation images")
        ]
        assert line.endswith("(split = test)." + ("" if both else " (keep 1)"))
        assert line.removeprefix("note: ") in metrics["caveats"]
        assert "These are validation images" in (tmp_path / "c" / "index.html").read_text()
        tested = {name: table.assign(split="test") for name, table in two.items()}
        metrics = compare_predictions(tested, tmp_path / "d", context=CONTEXT)
        assert metrics["caveats"] == []
        assert "validation images" not in (tmp_path / "d" / "index.html").read_text()

    @pytest.mark.parametrize("other", ["equal", "reversed"])
    def test_models_that_differ_are_never_said_to_rank_alike(self, predictions, other, tmp_path):
        """No patient differs from another in what she adds to 1 less 0.5, or 1 less 0."""
        perfect = predictions.assign(score=0.2 + 0.6 * predictions["label"])
        score = 0.5 if other == "equal" else 1.0 - perfect["score"]
        tables = {"perfect": perfect, "other": perfect.assign(score=score)}
        metrics = compare_predictions(tables, tmp_path / "c", context=CONTEXT)
        row = metrics["paired"][0]
        assert row["difference"] == (0.5 if other == "equal" else 1.0)
        assert (row["se"], row["p"], row["difference_ci_low"]) == (0.0, None, None)
        told = difference_table(metrics)
        assert "rank all units alike" not in told
        assert "every patient adds the same to a difference" in told

    def test_one_class_has_a_page_without_curves(self, two, tmp_path):
        healthy = {name: table.assign(label=0) for name, table in two.items()}
        metrics = compare_predictions(healthy, tmp_path / "c", context=CONTEXT)
        assert metrics["paired"][0]["difference"] is None
        assert "<svg" not in (tmp_path / "c" / "index.html").read_text(encoding="utf-8")
        assert difference_table(metrics).splitlines()[1].endswith("–   p –")

    def test_different_images_are_refused(self, two, tmp_path):
        two["keep 1"] = two["keep 1"].iloc[1:]
        with pytest.raises(InputError, match="different images"):
            compare_predictions(two, tmp_path / "c", context=CONTEXT)
        assert not (tmp_path / "c").exists()
