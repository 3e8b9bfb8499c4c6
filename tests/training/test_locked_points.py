"""Operating points that a model carries: of each of its targets, from that target's own columns."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from prediction_tables import made_up

from mammo_pd.evaluation.levels import Aggregation
from mammo_pd.evaluation.operating_points import Choices, OperatingPoints
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.terms import Level
from mammo_pd.training.objectives import Objective
from mammo_pd.training.operating_points import lock_operating_points


@pytest.mark.parametrize("choices", [None, Choices(Aggregation.MAX, 20.0, 0.02, Level.PATIENT)])
@pytest.mark.parametrize("has_others", [False, True])
def test_each_target_is_locked_on_its_own_scores(choices: Choices | None, has_others: bool) -> None:
    rows = made_up(80).drop(columns=["score"])
    draw = np.random.default_rng(0)
    label = rows.pop("label").to_numpy(float)
    evaluated = np.arange(len(rows)) >= 160 if has_others else None
    validation = np.ones(len(rows), bool) if evaluated is None else ~evaluated
    # Women without a positive had four exams each there: exams and women differ in prevalence.
    healthy = pd.Series(label).groupby(rows["patient_id"]).transform("max") == 0
    apart = healthy & ~validation
    rows.loc[apart, "exam_id"] += rows.loc[apart, "image_id"]
    # The second is another finding with some labels missing; the last has none to lock on.
    second = np.where(draw.random(len(rows)) < 0.1, np.nan, draw.permutation(label))
    third = np.where(validation, np.nan, label)
    targets = np.stack([label, second, third], axis=1).astype(np.float32)
    scores = draw.random((len(rows), 3))
    names = ("label", "mass", "nowhere")
    objective = cast(Any, SimpleNamespace(target_columns=names, targets=lambda _: targets))
    found = lock_operating_points(
        cast(Objective, objective), rows, scores, choices, evaluated=evaluated
    )
    assert list(found) == ["label", "mass"]
    for column, name in enumerate(found):
        table = rows.assign(label=targets[:, column], score=scores[:, column])
        assert found[name] == OperatingPoints.lock(
            check_predictions(table[validation]),
            choices or Choices(),
            part="val",
            evaluated=check_predictions(table[~validation]) if has_others else None,
        )
