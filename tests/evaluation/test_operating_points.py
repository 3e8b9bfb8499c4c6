import json

import numpy as np
import pandas as pd
import pytest
from prediction_tables import made_up
from scipy.special import expit, logit

from mammo_pd.evaluation.levels import Aggregation, aggregate, with_known_label
from mammo_pd.evaluation.locked import Recalibration
from mammo_pd.evaluation.operating_points import Choices, OperatingPoints
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.prevalence import prevalence_by_level
from mammo_pd.evaluation.thresholds import choose_thresholds
from mammo_pd.terms import Level


def test_what_is_dumped_judges_as_what_was_locked() -> None:
    rows = check_predictions(made_up(60))
    choices = Choices(Aggregation.MAX, 20.0, 0.1, Level.PATIENT)
    points = OperatingPoints.lock(rows, choices, part="val")
    loaded = OperatingPoints.load(json.loads(json.dumps(points.dump())))
    assert loaded == points
    unlabelled = rows.drop(columns="label")
    for level in Level:
        for code in points.rules:
            judged = loaded.judge(unlabelled, level, code)
            units = aggregate(with_known_label(rows, level), level, Aggregation.MAX)
            assert (judged["score"] == units["score"]).all()
            threshold = points.threshold(level, code)
            assert (judged["threshold"] == threshold).all()
            assert (judged["flagged"] == (units["score"] >= threshold)).all()
            line = points.locked.calibration[level]
            assert line is not None
            expected = expit(line.intercept + line.slope * logit(units["score"]))
            np.testing.assert_allclose(judged["recalibrated"], expected)
        unknown = loaded.judge(unlabelled, level, "no such rule")
        assert unknown[["threshold", "flagged"]].isna().all(axis=None)


@pytest.mark.parametrize("named", [Level.EXAM, Level.PATIENT])
def test_thresholds_are_chosen_on_the_rows_at_the_prevalence_of_those_evaluated(
    named: Level,
) -> None:
    rows = check_predictions(made_up(60))
    # Women without a positive had four exams each, so that exams and women differ in prevalence.
    table = made_up(80, seed=5)
    healthy = table.groupby("patient_id")["label"].transform("max") == 0
    table.loc[healthy, "exam_id"] += table.loc[healthy, "image_id"]
    evaluated = check_predictions(table)
    choices = Choices(Aggregation.MAX, 20.0, 0.02, named)
    points = OperatingPoints.lock(rows, choices, part="val", evaluated=evaluated)
    assert (points.locked.images, points.locked.part) == (len(rows), "val")
    of_evaluated = {level: aggregate(evaluated, level, Aggregation.MAX) for level in Level}
    shares = prevalence_by_level(of_evaluated, 0.02, named)
    for level in Level:
        units = aggregate(with_known_label(rows, level), level, Aggregation.MAX)
        expected = choose_thresholds(
            units["label"].to_numpy(float),
            units["score"].to_numpy(float),
            miss_cost=20.0,
            prevalence=shares[level],
        )
        assert points.locked.thresholds[level] == expected


@pytest.mark.parametrize("seed", range(3))
def test_a_calibration_meets_the_score_equations_of_its_logistic_line(seed: int) -> None:
    """At the maximum of the likelihood residuals add up to 0, and so they do times the logit."""
    draw = np.random.default_rng(seed)
    label = draw.integers(0, 2, 80).astype(float)
    score = expit(draw.normal(label - 1, 1))
    score[:2] = label[:2]  # exactly 0 or 1, which has no logit
    line = Recalibration.fit(label, score)
    assert line is not None
    left = line(score) - label
    assert np.isfinite(left).all()
    assert left.sum() == pytest.approx(0, abs=1e-3)
    assert (left * logit(score.clip(1e-7, 1 - 1e-7))).sum() == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize(
    ("label", "score", "has_line"),
    [
        ([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9], True),
        ([1, 1, 0, 0], [0.1, 0.6, 0.4, 0.9], True),
        ([0, 0, 1, 1], [0.1, 0.4, 0.6, 0.9], False),
        ([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.9], False),
        ([1, 1, 0, 0], [0.1, 0.4, 0.6, 0.9], False),
        ([1, 1, 0, 0], [0.1, 0.4, 0.4, 0.9], False),
        ([0, 1, 0, 1], [0.3, 0.3, 0.3, 0.3], False),
        ([1, 1], [0.3, 0.4], False),
        ([], [], False),
    ],
)
def test_classes_that_do_not_overlap_have_no_calibration(
    label: list[int], score: list[float], has_line: bool
) -> None:
    line = Recalibration.fit(np.array(label, float), np.array(score))
    assert (line is not None) == has_line


@pytest.mark.parametrize(
    ("labels", "with_points"),
    [
        # A unit is negative only if all of its images are known to be.
        ([0, np.nan, 0, np.nan], []),
        ([1, 1, 1, 1], []),
        ([0, 1, np.nan, np.nan], [Level.IMAGE, Level.BREAST]),
    ],
)
def test_levels_without_both_classes_have_no_points(
    labels: list[float], with_points: list[Level]
) -> None:
    rows = pd.DataFrame(
        {
            "image_id": [*"abcd"],
            "patient_id": [*"ppqq"],
            "exam_id": [*"eeff"],
            "laterality": [*"LRLR"],
            "label": labels,
            "score": [0.1, 0.2, 0.3, 0.4],
        }
    )
    checked = check_predictions(rows)
    points = OperatingPoints.lock(checked, Choices(), part="val")
    assert [level for level, of in points.locked.thresholds.items() if of] == with_points
    assert OperatingPoints.load(json.loads(json.dumps(points.dump()))) == points
    for level in Level:
        judged = points.judge(checked, level, "specificity_90")
        assert judged["flagged"].isna().all() == (level not in with_points)
        assert judged["score"].notna().all()
