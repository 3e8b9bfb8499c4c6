"""That benchmarks/beyond_shortcuts.py scores no woman by what was learnt from her."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from prediction_tables import made_up

from mammo_pd.evaluation.predictions import check_predictions

FOLDS = 3


@pytest.fixture(scope="module")
def beyond() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield importlib.import_module("beyond_shortcuts")


@pytest.fixture
def rows(beyond: ModuleType) -> pd.DataFrame:
    table = made_up(60)
    patient = np.arange(240) // 4
    table["machine"] = np.where(patient % 5 < 2, "a", "b")
    # Of no other row's value: a model that has seen a row could tell its label.
    table[["age", *beyond.GREY]] = np.random.default_rng(0).random((240, 4))
    return table


@pytest.fixture
def parts(rows: pd.DataFrame) -> list[pd.Series]:
    fold = np.arange(240) // 4 % FOLDS
    each = (np.where(fold == tested, "test", "train") for tested in range(FOLDS))
    return [pd.Series(part, index=rows["image_id"]) for part in each]


def test_a_womans_label_changes_no_score_of_hers(
    beyond: ModuleType, rows: pd.DataFrame, parts: list[pd.Series]
) -> None:
    model = check_predictions(rows)
    judged = beyond._judge(model, rows, parts, ["machine"])
    for part in parts:
        tested = part.to_numpy() == "test"
        turned = rows.assign(label=np.where(tested, 1 - rows["label"], rows["label"]))
        other = beyond._judge(model, turned, parts, ["machine"])
        for before, after in ((judged.floor, other.floor), (judged.both, other.both)):
            changed = before["score"] != after["score"]
            assert not changed[tested].any()
            assert changed[~tested].any()
    assert judged.model["score"].tolist() == rows["score"].tolist()


def test_seeds_that_lack_a_fold_are_left_out(
    beyond: ModuleType, rows: pd.DataFrame, parts: list[pd.Series], tmp_path: Path
) -> None:
    for seed in range(3):
        for fold, part in enumerate(parts):
            if (seed, fold) != (2, 1):
                score = 0.1 * (seed + 1)
                scored = rows.assign(split=part.to_numpy(), score=score)
                scored["score last"] = score / 2
                scored.to_csv(tmp_path / f"keep .25.{fold}.{seed}.csv", index=False)
    found = beyond.read_scores(tmp_path)
    of_seeds = "(seeds 0, 1; 3 folds)"
    assert list(found) == [f"keep .25 {of_seeds}", f"keep .25, scored last {of_seeds}"]
    for table, score in zip(found.values(), (0.15, 0.075), strict=True):
        assert len(table) == len(rows)
        assert np.allclose(table["score"], score)


def test_folds_whose_scores_lie_elsewhere_change_nothing(
    beyond: ModuleType, rows: pd.DataFrame, parts: list[pd.Series]
) -> None:
    rows["fold"] = np.arange(240) // 4 % FOLDS
    moved = rows.assign(score=(rows["score"] + rows["fold"]) / FOLDS)
    found = []
    for model in (check_predictions(rows), check_predictions(moved)):
        judged = beyond._judge(model, rows, parts, ["machine"])
        tables = {"model": judged.model}
        within = beyond._within(judged, judged.model, beyond.LEVELS[0], "machine")
        found.append((beyond._aucs(tables), [row["auc"] for row in within]))
    assert found[0] == found[1]
