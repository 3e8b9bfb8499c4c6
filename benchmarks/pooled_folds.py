"""What pooling the folds of a cross-validation costs: AUC, and thresholds that mean what they say.

    python benchmarks/pooled_folds.py OUT [OUT ...]

OUT: filled by `recipes.py train`. Of each recipe and seed that has all folds, per image:

- the AUC pooled, the same of scores that each fold's validation women recalibrated (a logistic line
  on the logit), and within folds (`mammo_pd.evaluation.within`);
- the specificity that each fold's threshold for 90 % comes to on its test women, if it is chosen on
  the other folds' out-of-fold scores, and if it is chosen on the fold's own validation women. Of
  all of these: range, mean, and root mean square distance from 90 %.

Nothing is tuned and nothing resampled: the tables are what recipes came to.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_pd.evaluation.cutoffs import (
    FIXED_RULE,
    Cutoff,
    cross_fitted,
    folds_of_patients,
    validated_by_fold,
)
from mammo_pd.evaluation.levels import Aggregation, aggregate, with_known_label
from mammo_pd.evaluation.locked import Recalibration
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.roc import auc
from mammo_pd.evaluation.thresholds import MISS_COST
from mammo_pd.evaluation.within import within_folds
from mammo_pd.terms import Level

_TEXT = {"image_id": str, "patient_id": str, "exam_id": str}


def read_folds(folder: Path) -> dict[tuple[str, int], dict[str, pd.DataFrame]]:
    """By recipe and seed, and by fold, its model's validation and test rows; whole ones alone."""
    found: dict[tuple[str, int], dict[str, pd.DataFrame]] = {}
    for file in sorted(folder.glob("*.*.*.csv")):
        name, fold, seed = file.stem.rsplit(".", 2)
        table = pd.read_csv(file, dtype=_TEXT)
        found.setdefault((name, int(seed)), {})[fold] = table[table["label"].notna()]
    most = max((len(folds) for folds in found.values()), default=0)
    return {run: folds for run, folds in sorted(found.items()) if len(folds) == most}


def pooling(folds: dict[str, pd.DataFrame]) -> dict[str, float]:
    """The AUC per image: pooled, pooled after recalibration, within folds."""
    tested = _part(folds, "test")
    lines = {name: _line(rows[rows["split"] == "val"]) for name, rows in folds.items()}
    recalibrated = pd.concat(
        rows.assign(score=rows["score"] if (line := lines[name]) is None else line(rows["score"]))
        for name, rows in tested.groupby("fold")
    )
    within = within_folds(tested, aggregation=Aggregation.MEAN)[0]["auc"]
    return {
        "pooled": auc(tested["label"], tested["score"]),
        "recalibrated": auc(recalibrated["label"], recalibrated["score"]),
        "within folds": float(within or np.nan),
    }


def specificities(folds: dict[str, pd.DataFrame]) -> dict[str, np.ndarray]:
    """(folds,) specificity at each fold's threshold for 90 %, by what chose the threshold."""
    tested = _part(folds, "test")
    fold_of = folds_of_patients(tested)
    assert fold_of is not None
    validation = {
        name: _units(check_predictions(rows[rows["split"] == "val"]))
        for name, rows in folds.items()
    }
    units = _units(tested)
    cutoffs = {
        "other folds": cross_fitted(units, fold_of, miss_cost=MISS_COST),
        "own validation": validated_by_fold(validation, fold_of, miss_cost=MISS_COST),
    }
    return {way: _reached(units, fold_of, found) for way, found in cutoffs.items()}


def _reached(units: pd.DataFrame, fold_of: "pd.Series[str]", cutoffs: list[Cutoff]) -> np.ndarray:
    (cutoff,) = (one for one in cutoffs if one.code == FIXED_RULE)
    negative = (units["label"] == 0).to_numpy()
    passed = pd.Series(~cutoff.flags(units)[negative])
    fold = units["patient_id"].map(fold_of)[negative].to_numpy()
    return passed.groupby(fold).mean().to_numpy(np.float64)


def _part(folds: dict[str, pd.DataFrame], part: str) -> pd.DataFrame:
    rows = [table[table["split"] == part].assign(fold=name) for name, table in folds.items()]
    return check_predictions(pd.concat(rows, ignore_index=True).drop(columns="split"))


def _units(rows: pd.DataFrame) -> pd.DataFrame:
    return aggregate(with_known_label(rows, Level.IMAGE), Level.IMAGE, Aggregation.MEAN)


def _line(validation: pd.DataFrame) -> Recalibration | None:
    label, score = (validation[name].to_numpy(np.float64) for name in ("label", "score"))
    return Recalibration.fit(label, score)


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, nargs="+")
    given = parser.parse_args()
    runs = {run: folds for folder in given.out for run, folds in read_folds(folder).items()}
    aucs = pd.DataFrame({run: pooling(folds) for run, folds in runs.items()}).T
    print("| recipe | seed | " + " | ".join(aucs.columns) + " |")
    print("| --- " * (2 + len(aucs.columns)) + "|")
    for (name, seed), row in aucs.iterrows():
        print(f"| {name} | {seed} | " + " | ".join(f"{value:.3f}" for value in row) + " |")
    print("| mean | | " + " | ".join(f"{value:.3f}" for value in aucs.mean()) + " |\n")
    print("| threshold for 90 % chosen on | specificity of a fold | mean | distance from 90 % |")
    print("| --- | --- | --- | --- |")
    reached = [specificities(folds) for folds in runs.values()]
    for way in reached[0]:
        every = np.concatenate([one[way] for one in reached])
        distance = np.sqrt(np.mean((every - 0.9) ** 2))
        print(
            f"| {way} | {every.min():.2f} to {every.max():.2f} | {every.mean():.2f} | "
            f"{distance:.3f} |"
        )


if __name__ == "__main__":
    main()
