"""What the choice of the best epoch by validation does to a recipe: chosen before it had learnt?

    python benchmarks/epoch_choice.py OUT [OUT ...] [--recipes NAME ...]
        [--less PREDICTIONS.parquet --cell NAME --recipe NAME]

OUT: of `recipes.py train`, of recipes that learn one label. Printed is, of each run, which epoch
was chosen and what its weights are worth within its fold: scores of different folds come from
different models, and one chosen at epoch 7 has other spreads than one chosen at 31. A run is
"unlearnt" if the training loss of the chosen epoch is above .98 of a constant score's, where
`train` says that nothing has been learnt. Then, over all runs, what these lose: a regression of the
AUC on that, with a constant for each fold. Runs of one fold share their women, and runs of one seed
more than that: its error is too small.

Where `recipes.py` scored the last epoch as well ("also": ["last"]), printed is what its weights are
worth more within the folds: the mean over a recipe's runs, with a percentile interval of 1,000
resamples of each fold's women, the same ones for all runs.

``--less`` compares seed 0 of one recipe with a cell of `resolution_vs_keep.py`
(predictions.parquet) on the same images: pooled over the folds, within them, and of the folds that
were unlearnt or not, as `mammo-pd compare` does.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mammo_pd.evaluation.compare import compare, on_the_same_images
from mammo_pd.evaluation.levels import Aggregation
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.roc import auc
from mammo_pd.terms import Level

# As `mammo_pd.training.loop` has it.
_STANDSTILL = 0.98
_LAST = "score last"
_RESAMPLES = 1000
_KEPT = ["image_id", "patient_id", "exam_id", "laterality", "label", "score", "fold"]


def read_runs(folders: list[Path], recipes: list[str] | None) -> pd.DataFrame:
    """One row for each run whose predictions are there."""
    rows = []
    for folder in folders:
        for line in map(json.loads, (folder / "results.jsonl").open()):
            file = folder / f"{line['name']}.{line['fold']}.{line['seed']}.csv"
            if "history" in line and file.is_file() and (not recipes or line["name"] in recipes):
                rows.append(_describe(line, file))
    table = pd.DataFrame(rows).sort_values(["recipe", "fold", "seed"])
    return table.reset_index(drop=True)


def _describe(line: dict[str, Any], file: Path) -> dict[str, Any]:
    history = line["history"]
    monitor = next(name for name in history[0] if name.startswith("val_auc") and "image" in name)
    values = [epoch[monitor] for epoch in history]
    # The last of equals, as training chooses.
    best = len(values) - int(np.argmax(values[::-1]))
    scored = pd.read_csv(file)
    share = float(scored["label"].mean())
    chance = -share * np.log(share) - (1 - share) * np.log(1 - share)
    loss = history[best - 1]["train_loss"]
    test = scored[(scored["split"] == "test") & scored["label"].notna()]
    last = {"of the last": float(auc(test["label"], test[_LAST]))} if _LAST in test else {}
    return {
        "recipe": line["name"],
        "fold": line["fold"],
        "seed": line["seed"],
        "epoch": f"{best} of {len(values)}",
        "unlearnt": bool(loss > _STANDSTILL * chance),
        "training loss there": loss,
        "at the end": history[-1]["train_loss"],
        "validation, kept patches": values[best - 1],
        "all patches": line["best"][monitor],
        "test AUC within the fold": float(auc(test["label"], test["score"])),
        **last,
    }


def last_less_best(folders: list[Path], runs: pd.DataFrame) -> list[list[str]]:
    """Rows of a table: what the last epoch's weights are worth more than the best one's.

    Args:
        folders: where the predictions are.
        runs: of `read_runs`, of which the last epoch was scored as well.
    """
    known = runs[runs["of the last"].notna()]
    gains: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in known["recipe"]}
    rng = np.random.default_rng(0)
    for fold, of_fold in known.groupby("fold"):
        scored = [
            _test_rows(folders, f"{run.recipe}.{fold}.{run.seed}.csv")
            for run in of_fold.itertuples()
        ]
        (patients,) = {tuple(table["patient_id"]) for table in scored}
        rows_of = list(pd.Series(range(len(patients))).groupby(list(patients)).indices.values())
        chosen = [
            np.concatenate([rows_of[one] for one in rng.integers(len(rows_of), size=len(rows_of))])
            for _ in range(_RESAMPLES)
        ]
        # The first is of the women as they are.
        drawn = [np.arange(len(patients)), *chosen]
        for recipe, table in zip(of_fold["recipe"], scored, strict=True):
            label, best, last = (table[name].to_numpy() for name in ("label", "score", _LAST))
            gains[recipe].append(
                np.array([auc(label[r], last[r]) - auc(label[r], best[r]) for r in drawn])
            )
    rows = [["recipe", "runs", "best", "last", "difference"]]
    every = [one for of_recipe in gains.values() for one in of_recipe]
    for name, of_recipe in {**gains, "all": every}.items():
        mean = np.mean(of_recipe, axis=0)
        low, high = np.percentile(mean[1:], [2.5, 97.5])
        some = known if name == "all" else known[known["recipe"] == name]
        aucs = (some["test AUC within the fold"].mean(), some["of the last"].mean())
        cells = [name, str(len(of_recipe)), *(f"{value:.3f}" for value in aucs)]
        rows.append([*cells, f"{mean[0]:+.3f} [{low:+.3f}, {high:+.3f}]"])
    return rows


def _test_rows(folders: list[Path], name: str) -> pd.DataFrame:
    table = pd.read_csv(next(folder / name for folder in folders if (folder / name).is_file()))
    tested = table[(table["split"] == "test") & table["label"].notna()]
    return tested.sort_values("image_id", ignore_index=True)


def change_where_unlearnt(runs: pd.DataFrame, column: str) -> tuple[float, float]:
    """What such a choice changes in a column, and its standard error, with folds held apart."""
    design = pd.get_dummies(runs["fold"]).astype(float)
    design["unlearnt"] = runs["unlearnt"].astype(float)
    known, values = design.to_numpy(), runs[column].to_numpy()
    found, *_ = np.linalg.lstsq(known, values, rcond=None)
    variance = ((values - known @ found) ** 2).sum() / (len(values) - known.shape[1])
    return float(found[-1]), float(np.sqrt(variance * np.linalg.inv(known.T @ known)[-1, -1]))


def differences(own: pd.DataFrame, other: pd.DataFrame, unlearnt: set[int]) -> list[list[str]]:
    """Rows of the table that ``--less`` prints."""
    aligned, _ = on_the_same_images({"own": own, "other": other}, intersect=True)
    every = set(aligned["own"]["fold"])
    subsets = {"within folds": every, "within the others": every - unlearnt}
    subsets["within unlearnt folds"] = unlearnt
    pooled = {name: table.drop(columns="fold") for name, table in aligned.items()}
    rows = [_compared("all folds pooled", pooled, every)]
    for name, folds in subsets.items():
        if folds:
            # One fold alone is compared as it is.
            some = {key: table[table["fold"].isin(folds)] for key, table in aligned.items()}
            rows.append(_compared(name, some, folds))
    return rows


def _compared(name: str, tables: dict[str, pd.DataFrame], folds: set[int]) -> list[str]:
    alone, paired = compare(tables, aggregation=Aggregation.MEAN)
    own, other = (row["auc"] for row in alone if row["level"] == Level.IMAGE)
    row = next(row for row in paired if row["level"] == Level.IMAGE)
    low, high = row["difference_ci_low"], row["difference_ci_high"]
    interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
    told = f"{name} ({', '.join(map(str, sorted(folds)))})"
    return [told, f"{own:.3f}", f"{other:.3f}", f"{row['difference']:+.3f}{interval}"]


def _markdown(rows: list[list[str]]) -> str:
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, nargs="+")
    parser.add_argument("--recipes", nargs="+")
    parser.add_argument("--less", type=Path)
    parser.add_argument("--cell")
    parser.add_argument("--recipe")
    given = parser.parse_args()
    runs = read_runs(given.out, given.recipes)
    shown = [list(map(str, runs.columns))]
    shown += [
        [f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in runs.to_numpy()
    ]
    print(_markdown(shown))
    print(f"\n{int(runs['unlearnt'].sum())} of {len(runs)} runs unlearnt")
    change, error = change_where_unlearnt(runs, "test AUC within the fold")
    print(f"their test AUC within the fold: {change:+.3f} (standard error {error:.3f})")
    if "of the last" in runs:
        print("\n" + _markdown(last_less_best(given.out, runs)))
    if given.less is None:
        return
    mine = runs[(runs["recipe"] == given.recipe) & (runs["seed"] == 0)]
    files = [
        (fold, next(o / name for o in given.out if (o / name).is_file()))
        for fold in mine["fold"]
        for name in [f"{given.recipe}.{fold}.0.csv"]
    ]
    own = pd.concat([pd.read_csv(file).assign(fold=fold) for fold, file in files])
    own = own[(own["split"] == "test") & own["label"].notna()]
    cell = pd.read_parquet(given.less).query("name == @given.cell and seed == 0")
    unlearnt = set(mine.loc[mine["unlearnt"], "fold"])
    head = ["AUC per image", given.recipe, given.cell, "difference"]
    known = cell[(cell["split"] == "test") & cell["label"].notna()]
    one, other = (check_predictions(table[_KEPT]) for table in (own, known))
    print("\n" + _markdown([head, *differences(one, other, unlearnt)]))


if __name__ == "__main__":
    main()
