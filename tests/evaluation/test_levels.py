import numpy as np
import pandas as pd
import pytest

from mammo_pd.evaluation.levels import (
    Aggregation,
    aggregate,
    count_units,
    units_of,
    with_known_label,
)
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.terms import Level


def table(*rows):
    columns = ["image_id", "patient_id", "exam_id", "laterality", "view", "label", "score"]
    return check_predictions(pd.DataFrame(rows, columns=columns))


FOUR = table(
    ("a", "p", "e", "L", "CC", 0, 0.2),
    ("b", "p", "e", "L", "MLO", 1, 0.4),
    ("c", "p", "e", "R", "CC", 0, 0.6),
    ("d", "p", "f", "R", "CC", 0, 0.5),
)


@pytest.mark.parametrize(
    ("level", "labels", "means"),
    [
        (Level.IMAGE, [0, 1, 0, 0], [0.2, 0.4, 0.6, 0.5]),
        (Level.BREAST, [1, 0, 0], [0.3, 0.6, 0.5]),
        (Level.EXAM, [1, 0], [0.4, 0.5]),
        (Level.PATIENT, [1], [0.425]),
    ],
)
def test_positive_when_any_image_is_and_the_mean_score(level, labels, means):
    units = aggregate(FOUR, level)
    assert units["label"].tolist() == labels
    np.testing.assert_allclose(units["score"], means)
    assert units["n_images"].sum() == 4


@pytest.mark.parametrize(
    ("aggregation", "score"),
    [
        (Aggregation.MEAN, 0.425),
        (Aggregation.MAX, 0.6),
        (Aggregation.NOISY_OR, 1 - 0.8 * 0.6 * 0.4 * 0.5),
    ],
)
def test_aggregations(aggregation, score):
    assert aggregate(FOUR, Level.PATIENT, aggregation)["score"].iloc[0] == pytest.approx(score)


@pytest.mark.parametrize(
    ("aggregation", "of"),
    [
        (Aggregation.MEAN, np.mean),
        (Aggregation.MAX, np.max),
        (Aggregation.NOISY_OR, lambda scores: 1 - np.prod(1 - scores)),
    ],
)
def test_aggregations_of_units_of_any_size(aggregation, of):
    draw = np.random.default_rng(0)
    scores = {f"p{size}": draw.random(size) for size in range(1, 9)}
    rows = [
        (f"{patient}-{place}", patient, "e", "L", "CC", 0, score)
        for patient, given in scores.items()
        for place, score in enumerate(given)
    ]
    units = aggregate(table(*rows), Level.PATIENT, aggregation).set_index("patient_id")
    assert units["n_images"].to_dict() == {patient: len(given) for patient, given in scores.items()}
    assert units["score"].to_dict() == pytest.approx(
        {patient: of(given) for patient, given in scores.items()}
    )


@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_scores_stay_probabilities(aggregation):
    rows = [(f"i{i}", "p", "e", "L", "CC", 0, score) for i, score in enumerate([0.1] * 3)]
    rows += [(f"j{i}", "q", "e", "L", "CC", 1, 1.0) for i in range(3)]
    rows += [(f"k{i}", "r", "e", "L", "CC", 1, 0.0) for i in range(3)]
    scores = aggregate(table(*rows), Level.PATIENT, aggregation)["score"].tolist()
    assert scores[1:] == [1.0, 0.0]
    if aggregation is not Aggregation.NOISY_OR:
        assert scores[0] == 0.1


def test_exam_numbers_that_start_anew_with_each_patient_stay_apart():
    rows = table(
        ("a", "p", "1", "L", "CC", 0, 0.2),
        ("b", "q", "1", "L", "CC", 1, 0.4),
    )
    assert len(aggregate(rows, Level.EXAM)) == 2


def test_an_image_without_laterality_stands_for_itself():
    rows = table(
        ("a", "p", "e", "", "CC", 0, 0.2),
        ("b", "p", "e", "", "MLO", 1, 0.4),
        ("c", "p", "e", "L", "MLO", 1, 0.4),
    )
    assert len(aggregate(rows, Level.BREAST)) == 3
    assert count_units(rows)["images_without_laterality"] == 2


def test_images_without_exam_are_one_exam_of_their_patient():
    rows = table(
        ("a", "p", "", "L", "CC", 0, 0.2),
        ("b", "p", "", "R", "CC", 1, 0.4),
        ("c", "q", "", "R", "CC", 1, 0.4),
    )
    assert aggregate(rows, Level.EXAM)["n_images"].tolist() == [2, 1]
    assert count_units(rows)["images_without_exam_id"] == 3


def test_incomplete_exams_are_counted_and_kept(predictions):
    whole = check_predictions(predictions)
    assert count_units(whole)["incomplete_exams"] == 0
    short = check_predictions(predictions.drop(index=[1, 2, 9]))
    counts = count_units(short)
    assert (counts["incomplete_exams"], counts["exams"]) == (2, 60)
    assert len(aggregate(short, Level.EXAM)) == 60


def test_the_same_view_twice_does_not_complete_an_exam():
    rows = table(*[(i, "p", "e", "L", "CC", 0, 0.1) for i in "abcd"])
    assert count_units(rows)["incomplete_exams"] == 1


@pytest.mark.parametrize(
    "fourth", [("R", "XCCL"), ("R", ""), ("", "MLO"), ("L", "MLO"), ("R", "ML")]
)
def test_another_view_or_side_does_not_complete_an_exam(fourth):
    sides = [("L", "CC"), ("L", "MLO"), ("R", "CC"), fourth]
    rows = [(f"i{i}", "p", "e", *given, 0, 0.1) for i, given in enumerate(sides)]
    assert count_units(table(*rows))["incomplete_exams"] == 1
    whole = [*rows[:3], ("j", "p", "e", "R", "MLO", 0, 0.1)]
    assert count_units(table(*whole))["incomplete_exams"] == 0


@pytest.mark.parametrize("level", [Level.BREAST, Level.EXAM, Level.PATIENT])
@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_rows_in_any_order_give_the_same_table(predictions, level, aggregation):
    """To the bit, and its own rows in the order of their keys."""
    named = ["patient_id", "exam_id", "laterality"]
    first, second = (
        aggregate(
            check_predictions(predictions.sample(frac=1, random_state=seed)), level, aggregation
        )
        for seed in (1, 2)
    )
    assert list(first.columns)[-3:] == ["label", "score", "n_images"]
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    keys = [name for name in named if name in first]
    pd.testing.assert_frame_equal(first, first.sort_values(keys, ignore_index=True))


@pytest.mark.parametrize("level", list(Level))
def test_the_order_of_rows_does_not_matter(predictions, level):
    checked = check_predictions(predictions)
    turned = check_predictions(predictions.iloc[::-1])
    a, b = (
        aggregate(rows, level).sort_values(["patient_id", "score"]).reset_index(drop=True)
        for rows in (checked, turned)
    )
    # What names an image or exam within a unit comes from its first row.
    same = ["patient_id", "label", "n_images"]
    pd.testing.assert_frame_equal(a[same], b[same])
    np.testing.assert_allclose(a["score"], b["score"])


@pytest.mark.parametrize("level", list(Level))
def test_agrees_with_a_plain_group_by(predictions, level):
    checked = check_predictions(predictions)
    keys = {
        Level.IMAGE: ["image_id"],
        Level.BREAST: ["patient_id", "exam_id", "laterality"],
        Level.EXAM: ["patient_id", "exam_id"],
        Level.PATIENT: ["patient_id"],
    }[level]
    plain = checked.groupby(keys)
    units = aggregate(checked, level, Aggregation.MEAN)
    np.testing.assert_allclose(units["score"], plain["score"].mean())
    np.testing.assert_array_equal(units["label"], plain["label"].max())
    np.testing.assert_array_equal(units_of(checked, level), plain.ngroup())


PARTLY_LABELLED = table(
    ("a", "p", "e", "L", "CC", 1, 0.2),
    ("b", "p", "e", "L", "MLO", "", 0.4),  # of a positive breast: its score counts
    ("c", "p", "e", "R", "CC", 0, 0.6),
    ("d", "p", "f", "L", "CC", 0, 0.5),
    ("e", "p", "f", "R", "CC", "", 0.5),  # an exam that may be positive
    ("f", "q", "e", "L", "CC", 0, 0.1),
    ("g", "r", "e", "L", "CC", "", 0.1),
)


@pytest.mark.parametrize(
    ("level", "labels", "scores"),
    [
        (Level.IMAGE, [1, 0, 0, 0], [0.2, 0.6, 0.5, 0.1]),
        (Level.BREAST, [1, 0, 0, 0], [0.3, 0.6, 0.5, 0.1]),
        (Level.EXAM, [1, 0], [0.4, 0.1]),
        (Level.PATIENT, [1, 0], [0.44, 0.1]),
    ],
)
def test_a_unit_is_negative_only_if_all_of_it_is_known_to_be(level, labels, scores):
    units = aggregate(with_known_label(PARTLY_LABELLED, level), level)
    assert units["label"].tolist() == labels
    assert units["score"].tolist() == pytest.approx(scores)


def test_unknown_units_and_contradictions_are_counted():
    counts = count_units(PARTLY_LABELLED)
    names = ("images_without_label", "breasts_of_unknown_label", "exams_of_unknown_label")
    assert [counts[name] for name in names] == [3, 2, 2]
    assert counts["patients_of_unknown_label"] == 1
    assert counts["contradictory_breasts"] == 0
    assert count_units(FOUR)["contradictory_breasts"] == 1  # L: CC 0, MLO 1
    assert aggregate(with_known_label(FOUR.assign(label=np.nan), Level.EXAM), Level.EXAM).empty
