"""What a model's scores know beyond shortcuts: machine, age, view and global grey values.

    python benchmarks/beyond_shortcuts.py STORE [SCORES ...] [--split five] [--machine machine_id]

SCORES: tables of out-of-fold predictions (CSV), or folders that ``recipes.py train`` filled. Prints
Markdown, on the images of the store's split that each table scores out of fold:

1. the floor: a logistic regression on the shortcuts alone, for each fold trained on its training
   women, beside the AUC of each group of shortcuts;
2. the AUC of floor and models within strata, where a positive is compared only with negatives of
   the same machine, of the same machine and age band, or of the same tenth of the floor's scores,
   and always of the same fold, which one model has scored;
3. whether a model adds to the floor: the logistic regression with the model's logit as a further
   input, on the same women, against the one without. The logit of a training woman is out of fold,
   too, so that a model that has learnt its training women by heart adds nothing.

Nothing was tuned. Splines have five knots at quantiles, the regressions scikit-learn's C = 1.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import logit
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, SplineTransformer, StandardScaler

from mammo_pd.data.cohort import Cohort
from mammo_pd.data.store import StorePaths, choose_pyramid_level, open_store, read_pyramid_level
from mammo_pd.errors import InputError
from mammo_pd.evaluation.compare import compare, on_the_same_images
from mammo_pd.evaluation.cross_validation import average_seeds
from mammo_pd.evaluation.levels import Aggregation, aggregate, with_known_label
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.strata import values_of_units
from mammo_pd.evaluation.within import auc_within_strata, within_strata
from mammo_pd.terms import Level

LEVELS = (Level.IMAGE, Level.BREAST, Level.PATIENT)
GREY = ["grey_mean", "grey_spread", "breast_share"]
FLOOR = "floor"
_MODEL = "model_logit"
# Of scores that were rounded to 0 or 1 there is no logit.
_NEVER = 1e-6
_IDENTITY = {"image_id": str, "patient_id": str, "exam_id": str}
_SMALL = (256, 256)


def add_grey_values(paths: StorePaths, rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation of the breast's grey values, and its share of the whole frame."""
    found = []
    for row in rows.itertuples():
        height, width = int(row.crop_height), int(row.crop_width)
        level = choose_pyramid_level(height, width, _SMALL)
        pixels = read_pyramid_level(paths, row.image_id, level)
        breast = pixels[pixels > 0] / 65535.0  # air is 0 in a store
        crop = height * width / (row.rows * row.columns)
        share = crop * breast.size / pixels.size
        found.append((breast.mean(), breast.std(), share) if breast.size else (0.0, 0.0, 0.0))
    return rows.assign(**dict(zip(GREY, np.transpose(found), strict=True)))


def out_of_fold(
    rows: pd.DataFrame,
    parts: Sequence[pd.Series],
    *,
    kinds: Sequence[str] = (),
    curves: Sequence[str] = (),
    lines: Sequence[str] = (),
) -> pd.DataFrame:
    """Score each fold's test images by a logistic regression on its training women.

    Args:
        rows: one row per image, with ``label``.
        parts: for each fold, ``train``, ``val`` or ``test`` by ``image_id``.
        kinds: columns of categories.
        curves: columns of numbers, on splines.
        lines: columns of numbers, as they are.

    Returns:
        As ``check_predictions``, of the images of all folds.
    """
    spline = make_pipeline(
        SimpleImputer(strategy="median"),
        StandardScaler(),
        SplineTransformer(knots="quantile", extrapolation="linear"),
    )
    inputs = ColumnTransformer(
        [
            ("kinds", OneHotEncoder(handle_unknown="ignore"), list(kinds)),
            ("curves", spline, list(curves)),
            ("lines", StandardScaler(), list(lines)),
        ]
    )
    model = make_pipeline(inputs, LogisticRegression(max_iter=5000))
    score = np.full(len(rows), np.nan)
    for part in parts:
        here = rows["image_id"].map(part).to_numpy()
        trained, tested = here == "train", here == "test"
        if tested.any():
            model.fit(rows[trained], rows["label"][trained])
            score[tested] = model.predict_proba(rows[tested])[:, 1]
    return check_predictions(rows.assign(score=score))


def read_scores(path: Path) -> dict[str, pd.DataFrame]:
    """Out-of-fold predictions by name; of several seeds, the mean of those that have all folds.

    Columns that ``recipes.py`` scored in other ways are models of their own.
    """
    if path.is_file():
        return _tested(path, path.stem)
    if not list(path.glob("*.*.*.csv")):
        raise InputError(f"{path} is neither a table nor a folder of NAME.FOLD.SEED.csv.")
    found: dict[str, dict[str, dict[str, pd.DataFrame]]] = {}
    for file in sorted(path.glob("*.*.*.csv")):
        recipe, fold, seed = file.stem.rsplit(".", 2)
        for name, table in _tested(file, recipe).items():
            found.setdefault(name, {}).setdefault(seed, {})[fold] = table
    scores = {}
    for name, seeds in found.items():
        most = max(len(folds) for folds in seeds.values())
        whole = {seed: folds for seed, folds in seeds.items() if len(folds) == most}
        tables = [pd.concat(folds.values(), ignore_index=True) for folds in whole.values()]
        told = f"{name} (seed{'s' * (len(whole) > 1)} {', '.join(whole)}; {most} folds)"
        scores[told] = average_seeds(tables)
    return scores


def _tested(file: Path, name: str) -> dict[str, pd.DataFrame]:
    table = pd.read_csv(file, dtype=_IDENTITY)
    if "split" in table:
        table = table[table["split"] == "test"]
    table = table[table["label"].notna()].reset_index(drop=True)
    further = [column for column in table if column.startswith("score ")]
    found = {name: check_predictions(table.drop(columns=further))}
    for column in further:
        other = table.drop(columns=further).assign(score=table[column])
        found[f"{name}, scored {column.removeprefix('score ')}"] = check_predictions(other)
    return found


def _interval(row: dict, name: str = "auc", sign: str = "") -> str:
    if row[name] is None:
        return "–"
    low, high = row[f"{name}_ci_low"], row[f"{name}_ci_high"]
    limits = "" if low is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"{row[name]:{sign}.3f}{limits}"


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in [head, ["---"] * len(head), *rows]:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def _aucs(tables: dict[str, pd.DataFrame]) -> dict[tuple[str, str], str]:
    """AUC within folds with its interval by table and level."""
    # ``compare`` wants two tables at least.
    aligned, _ = on_the_same_images(tables | {"": next(iter(tables.values()))})
    alone, _ = compare(aligned, aggregation=Aggregation.MEAN)
    return {(row["model"], row["level"]): _interval(row) for row in alone}


def _print_floor(
    rows: pd.DataFrame, parts: Sequence[pd.Series], kinds: Sequence[str], machine: str
) -> None:
    tables = {
        "machine": out_of_fold(rows, parts, kinds=[machine]),
        "age": out_of_fold(rows, parts, kinds=["age_known"], curves=["age"]),
        "mean, spread and share of the breast": out_of_fold(rows, parts, curves=GREY),
        "machine and age": out_of_fold(rows, parts, kinds=[machine, "age_known"], curves=["age"]),
        "all of these, view, side, photometric interpretation: the floor": out_of_fold(
            rows, parts, kinds=kinds, curves=["age", *GREY]
        ),
    }
    found = _aucs(tables)
    head = ["shortcuts", *(f"AUC within folds per {level}" for level in LEVELS)]
    _print_table(head, [[name, *(found[name, level] for level in LEVELS)] for name in tables])


@dataclass(frozen=True)
class _Judged:
    """One model's scores, and on the same images those of the floor without and with it."""

    model: pd.DataFrame
    floor: pd.DataFrame
    both: pd.DataFrame


def _judge(
    table: pd.DataFrame, rows: pd.DataFrame, parts: Sequence[pd.Series], kinds: Sequence[str]
) -> _Judged:
    score = rows["image_id"].map(table.set_index("image_id")["score"])
    scored = rows[score.notna()].reset_index(drop=True)
    own = score.dropna().to_numpy()
    scored[_MODEL] = logit(own.clip(_NEVER, 1.0 - _NEVER))
    floor = out_of_fold(scored, parts, kinds=kinds, curves=["age", *GREY])
    both = out_of_fold(scored, parts, kinds=kinds, curves=["age", *GREY], lines=[_MODEL])
    return _Judged(floor.assign(score=own), floor, both)


def _within(judged: _Judged, table: pd.DataFrame, level: Level, machine: str) -> list[dict]:
    """AUC within machine, within machine and age band, and within tenths of the floor's scores.

    All within folds.
    """
    known = [
        next(
            row
            for row in within_strata(table, columns, aggregation=Aggregation.MEAN)
            if row["level"] == level
        )
        for columns in (["fold", machine], ["fold", machine, "age"])
    ]
    images = with_known_label(judged.floor, level)
    units, of_floor = (
        aggregate(with_known_label(one, level), level, Aggregation.MEAN)
        for one in (table, judged.floor)
    )
    fold = values_of_units(images, "fold", level, joined=False)
    tenth = (
        of_floor["score"]
        .groupby(fold)
        .transform(lambda scores: pd.qcut(scores, 10, labels=False, duplicates="drop"))
    )
    return [*known, auc_within_strata(units, _numbered(fold, tenth.to_numpy()))]


def _numbered(*columns: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """One number for each combination of values: (units,)."""
    together = pd.DataFrame(dict(enumerate(columns)))
    return together.groupby(list(together), sort=True).ngroup().to_numpy()


def _print_within(models: Mapping[str, _Judged], machine: str) -> None:
    head = ["scores", "AUC within folds", "within machine", "within machine and age band"]
    head.append("within tenths of the floor")
    for level in LEVELS:
        lines: dict[str, list[str]] = {}
        compared: dict[str, None] = {}
        for name, judged in models.items():
            of_floor = f"{FLOOR}, {len(judged.floor):,} images"
            for told, table in ((of_floor, judged.floor), (name, judged.model)):
                found = _within(judged, table, level, machine)
                cells = [_aucs({told: table})[told, level], *map(_interval, found)]
                # The floor is one line for all models that score the same images.
                lines[told] = [told, *cells]
                strata = (f"{row['n_strata']} strata, {_left_out(row)}" for row in found)
                compared[f"{len(table):,} images: {'; '.join(strata)}"] = None
        print(f"Per {level}:\n")
        _print_table(head, list(lines.values()))
        print("\n".join(f"{line}." for line in compared) + "\n")


def _left_out(row: dict) -> str:
    of_all = row["n_positive"] + row["n_positive_left_out"]
    return f"{row['n_positive']:,} of {of_all:,} positives compared"


def _print_added(models: Mapping[str, _Judged]) -> None:
    head = ["model", "level", "AUC of the floor", "of floor and model", "difference", "p"]
    lines = []
    for name, judged in models.items():
        tables = {"both": judged.both, FLOOR: judged.floor}
        aligned, _ = on_the_same_images(tables)
        alone, paired = compare(aligned, aggregation=Aggregation.MEAN)
        aucs = {(row["model"], row["level"]): _interval(row) for row in alone}
        for level in LEVELS:
            row = next(row for row in paired if row["level"] == level)
            p = "" if row["p"] is None else f"{row['p']:.2g}"
            cells = [aucs[FLOOR, level], aucs["both", level], _interval(row, "difference", "+"), p]
            lines.append([name, level, *cells])
    _print_table(head, lines)


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("scores", type=Path, nargs="*")
    parser.add_argument("--split", default="five")
    parser.add_argument("--machine", default="machine_id")
    given = parser.parse_args()
    machine = given.machine
    paths = open_store(given.store)
    cohort = Cohort.read(paths, given.split, 0)
    folds = sorted(cohort.split.table["fold"].unique())
    parts = [
        Cohort.read(paths, given.split, fold).rows.set_index("image_id")["split"] for fold in folds
    ]
    rows = cohort.rows.drop(columns="split")
    # That of the model which scores an image out of fold.
    rows["fold"] = rows["image_id"].map(cohort.split.table.set_index("image_id")["fold"])
    rows = add_grey_values(paths, rows[rows["label"].notna()].reset_index(drop=True))
    rows["age_known"] = rows["age"].notna().astype(str)
    kinds = [machine, "view", "laterality", "photometric_interpretation"]
    rows[kinds] = rows[kinds].astype("object").where(rows[kinds].notna(), "not known")
    kinds.append("age_known")
    scores = {name: table for path in given.scores for name, table in read_scores(path).items()}
    print(
        f"{len(rows):,} images of {rows['patient_id'].nunique():,} women, "
        f"{int(rows['label'].sum()):,} positive; {len(folds)} folds.\n"
    )
    print("## The floor\n")
    _print_floor(rows, parts, kinds, machine)
    if not scores:
        return
    for name, table in scores.items():
        if not table["image_id"].isin(rows["image_id"]).any():
            raise InputError(f"No image of {name} is in {given.store}: name the store it is of.")
    models = {name: _judge(table, rows, parts, kinds) for name, table in scores.items()}
    print("## Within strata\n")
    _print_within(models, machine)
    print("## What the models add to the floor\n")
    _print_added(models)


if __name__ == "__main__":
    main()
