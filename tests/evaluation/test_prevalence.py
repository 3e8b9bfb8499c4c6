import pandas as pd
import pytest
from prediction_tables import made_up

from mammo_pd.errors import InputError
from mammo_pd.evaluation.levels import aggregate
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.prevalence import prevalence_by_level
from mammo_pd.terms import Level


def units_of(table):
    checked = check_predictions(table)
    return {level: aggregate(checked, level) for level in Level}


def repeated(table, times):
    """The patients without a positive ``times`` over: what a prevalence stands for."""
    sick = table.groupby("patient_id")["label"].transform("max") == 1
    copies = [
        table[~sick].assign(
            image_id=lambda t, i=i: t["image_id"] + f"_{i}",
            patient_id=lambda t, i=i: t["patient_id"] + f"_{i}",
        )
        for i in range(times)
    ]
    return pd.concat([table[sick], *copies])


@pytest.mark.parametrize("named", list(Level))
@pytest.mark.parametrize("exams", [1, 2])
def test_the_levels_follow_as_if_healthy_patients_were_added(named, exams):
    table = made_up(20)
    # With two exams, a patient's second one has her right breast only.
    table["exam_id"] = [f"e{i % 4 // 2 if exams == 2 else 0}" for i in range(len(table))]
    larger = units_of(repeated(table, 7))
    wanted = {level: units["label"].mean() for level, units in larger.items()}
    found = prevalence_by_level(units_of(table), wanted[named], named)
    assert found == pytest.approx(wanted)


def test_what_cannot_be_reached_is_a_sentence():
    table = made_up(20)
    with pytest.raises(InputError, match=r"prevalence of 0\.7 at image level .* only 0\.5 "):
        prevalence_by_level(units_of(table), 0.7, Level.IMAGE)
    sick = table[table.groupby("patient_id")["label"].transform("max") == 1]
    with pytest.raises(InputError, match="every patient here has a positive exam"):
        prevalence_by_level(units_of(sick), 0.006, Level.EXAM)


def test_without_positives_nothing_depends_on_it():
    shares = prevalence_by_level(units_of(made_up(5).assign(label=0)), 0.006, Level.EXAM)
    assert set(shares.values()) == {0.0}
