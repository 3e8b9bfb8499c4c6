"""That benchmarks/epoch_choice.py finds which epoch was chosen, and what a choice is worth."""

import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mammo_pd.evaluation.predictions import check_predictions


def test_choices_before_anything_was_learnt_are_found_and_weighed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    script = importlib.import_module("epoch_choice")
    # Of one label in two: a constant score's loss is log 2. In fold 1 the first epoch is the best.
    curves = {0: (0.5, 0.6, 0.7), 1: (0.8, 0.6, 0.7)}
    ranks = {0: [0, 0, 1, 1], 1: [0, 1, 0, 1]}
    lines = []
    for fold, curve in curves.items():
        history = [
            {"train_loss": loss, "val_auc_image": value}
            for loss, value in zip((0.69, 0.6, 0.5), curve, strict=True)
        ]
        name = {"name": "a", "fold": fold, "seed": 0}
        lines.append({**name, "history": history, "best": {"val_auc_image": 0.6}})
        table = pd.DataFrame({"label": [0, 0, 1, 1], "score": ranks[fold], "split": "test"})
        # Other folds' scores lie elsewhere, which only pooling minds.
        table.assign(score=table["score"] + fold).to_csv(tmp_path / f"a.{fold}.0.csv", index=False)
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    runs = script.read_runs([tmp_path], None)
    assert runs["epoch"].tolist() == ["3 of 3", "1 of 3"]
    assert runs["unlearnt"].tolist() == [False, True]
    assert runs["test AUC within the fold"].tolist() == [1.0, 0.5]
    each = [pd.read_csv(tmp_path / f"a.{fold}.0.csv").assign(fold=fold) for fold in curves]
    table = pd.concat(each, ignore_index=True)
    names = table.index.astype(str)
    named = table.assign(image_id=names, patient_id=names, score=table["score"] / 2)
    own = check_predictions(named)
    rows = script.differences(own, own.assign(score=1 - own["score"]), {1})
    assert [row[:3] for row in rows[1:]] == [
        ["within folds (0, 1)", "0.750", "0.250"],
        ["within the others (0)", "1.000", "0.000"],
        ["within unlearnt folds (1)", "0.500", "0.500"],
    ]
    assert rows[0][1] != "0.750"  # pooled
    assert "of the last" not in runs
    for fold in curves:
        file = tmp_path / f"a.{fold}.0.csv"
        told = {"image_id": range(4), "patient_id": "one", "score last": [0, 0, 1, 1]}
        pd.read_csv(file).assign(**told).to_csv(file, index=False)
    rows = script.last_less_best([tmp_path], script.read_runs([tmp_path], None))
    # Women are drawn, not images: of one woman there is one resample.
    assert rows[1] == ["a", "2", "0.750", "1.000", "+0.250 [+0.250, +0.250]"]
    assert rows[2] == ["all", *rows[1][1:]]
    # Two folds, each with a run of either kind, .2 apart.
    some = pd.DataFrame({"fold": [0, 0, 1, 1], "unlearnt": [False, True] * 2})
    some["auc"] = np.array([0.7, 0.5, 0.9, 0.7])
    change, error = script.change_where_unlearnt(some, "auc")
    assert (change, error) == pytest.approx((-0.2, 0.0), abs=1e-12)
