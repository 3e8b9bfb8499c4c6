"""benchmarks/pooled_folds.py finds what pooling costs where folds are on scales of their own."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest


def test_scales_cost_pooled_scores_alone_and_thresholds_of_other_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    script = importlib.import_module("pooled_folds")
    draw = np.random.default_rng(0)
    for fold, power in enumerate((0.3, 1.0, 3.0)):
        label = draw.integers(0, 2, 400)
        score = 1 / (1 + np.exp(-draw.normal(label, 1.0)))
        rows = {
            "image_id": [f"{fold}-{n}" for n in range(400)],
            "patient_id": [f"{fold}-{n}" for n in range(400)],
            "label": label,
            "split": np.where(np.arange(400) < 150, "val", "test"),
        }
        for name, scores in (("scaled", score**power), ("alike", score)):
            table = pd.DataFrame(rows).assign(score=scores)
            table.to_csv(tmp_path / f"{name}.{fold}.0.csv", index=False)
    # A run that lacks folds is left out.
    table.to_csv(tmp_path / "part.0.0.csv", index=False)
    runs = script.read_folds(tmp_path)
    assert list(runs) == [("alike", 0), ("scaled", 0)]
    alike, scaled = map(script.pooling, runs.values())
    assert scaled["within folds"] == alike["within folds"]
    assert scaled["pooled"] < alike["pooled"] - 0.03
    assert scaled["recalibrated"] == pytest.approx(alike["pooled"], abs=0.02)
    reached = script.specificities(runs["scaled", 0])
    assert abs(reached["own validation"] - 0.9).max() < 0.07
    assert abs(reached["other folds"] - 0.9).max() > 0.2
    monkeypatch.setattr("sys.argv", ["pooled_folds.py", str(tmp_path)])
    script.main()
    assert "| own validation |" in capsys.readouterr().out
