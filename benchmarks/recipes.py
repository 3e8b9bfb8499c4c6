"""Train many recipes over all folds, some at a time, and tabulate what each gives out of fold.

    python benchmarks/recipes.py train STORE RECIPES.json OUT [--at-once 14] [--minutes 8]
    python benchmarks/recipes.py table OUT [OUT ...] [--against NAME] [--folds 5]

RECIPES.json: {"NAME": {"set": {"training.lr": 1e-4, ...}, "seeds": [0]}, ...}. What is trained and
scored is what `mammo-pd cv` trains and scores; it is not used here because a machine that is lent
by the minute is filled best by runs of different recipes side by side; each writes checkpoints, so
that OUT is best in memory. Each process takes the next
run; with several GPUs, the processes are dealt out to them. MLflow need not be installed. Typed
again, `train` goes on with the runs that OUT lacks.

A recipe may name a "trial", a draw of `ideas_patches.TRIALS`. "also": ["on tissue", "as drawn"] has
the same weights score fewer patches as well (`ideas_patches.score_again`); "last" scores with the
weights of the last epoch, beside those of the best, which the recipe's training.choose_epoch keeps:
each a line of its own.
"""

import argparse
import json
import multiprocessing
import os
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from gpus import see_only

from mammo_pd.evaluation.compare import compare, on_the_same_images
from mammo_pd.evaluation.cross_validation import average_seeds, seed_aucs
from mammo_pd.evaluation.levels import Aggregation
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.roc import auc
from mammo_pd.orphans import end_with_parent

if TYPE_CHECKING:
    import numpy.typing as npt

    from mammo_pd.inference.predict import Scored
    from mammo_pd.training.runs import RunFolder

# Scored as well, beside the best epoch.
LAST = "last"
_LEVELS = ("image", "breast", "patient")
# What a table of results is made of.
_KEPT = ["image_id", "patient_id", "exam_id", "laterality", "label", "split"]


def _work(gpu: int | None, runs: Any, results: Any, store: Path, out: Path, split: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    end_with_parent()
    if gpu is not None:
        see_only(gpu)
    import torch
    from ideas_patches import score_again, trying

    from mammo_pd.config import load_config
    from mammo_pd.inference.predict import predict
    from mammo_pd.training.loop import fit
    from mammo_pd.training.runs import RunFolder
    from mammo_pd.training.setup import RunSetup
    from mammo_pd.training.train import start_run

    while (given := runs.get()) is not None:
        name, recipe, fold, seed = given
        line: dict[str, Any] = {"name": name, "fold": fold, "seed": seed}
        try:
            torch._dynamo.reset()  # type: ignore[no-untyped-call]
            if gpu is not None:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            own = {"data.split": split, "data.fold": fold, "training.seed": seed, "data.workers": 1}
            trial = {"patch_dropout.draw": recipe["trial"]} if "trial" in recipe else {}
            config = load_config(None, own | recipe["set"] | trial)
            with trying(recipe.get("trial")) as sampler:
                started = time.perf_counter()
                setup = RunSetup.build(store, config, say=lambda _: None)
                run = start_run(out / "runs" / name, setup)
                history = fit(setup, run)
                seconds = time.perf_counter() - started
                run = RunFolder.open(run.path)
                scored = predict(run, store=store, say=lambda _: None)
                again = {
                    f"score {way}": _last(run, store, scored)
                    if way == LAST
                    else score_again(way, scored, run, sampler)
                    for way in recipe.get("also", ())
                }
            # Whole: what a score owes to machine or age cannot be asked without these columns, and
            # another store of the same images has other names for them.
            table = scored.table.assign(**again)
            table.to_csv(out / f"{name}.{fold}.{seed}.csv", index=False)
            for file in (run.chosen, run.last):
                file.unlink()
            memory = max(epoch["train_memory_gib"] for epoch in history)
            line |= {"seconds": seconds, "gib": memory, "best": run.info.validation}
            line["history"] = history
        except Exception:
            line["error"] = traceback.format_exc()[-1500:]
        results.put(line)


def _last(run: "RunFolder", store: Path, scored: "Scored") -> "npt.NDArray[np.float64]":
    """The scores of the last epoch's weights: (images,), as `scored` has them."""
    from mammo_pd.inference.predict import predict

    table = predict(run, store=store, checkpoint="last", say=lambda _: None).table
    of_image = table.set_index("image_id")["score"]
    return of_image[scored.table["image_id"]].to_numpy(np.float64)


def train(
    store: Path, recipes: Path, out: Path, *, split: str, at_once: int, minutes: float
) -> None:
    """Train and score what there is time for; what has failed is said, and in results.jsonl."""
    import torch

    gpus = torch.cuda.device_count()
    given = json.loads(recipes.read_text())
    _refuse_unknown(given)
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    runs, results = context.Queue(), context.Queue()
    count, done = 0, _done(out)
    # Seed by seed: where time runs out, all recipes have the same ones.
    wanted = [
        (seed, name, recipe) for name, recipe in given.items() for seed in recipe.get("seeds", [0])
    ]
    for seed, name, recipe in sorted(wanted, key=lambda one: one[0]):
        for fold in range(5):
            if (name, fold, seed) not in done:
                runs.put((name, recipe, fold, seed))
                count += 1
    pool = [
        context.Process(
            target=_work,
            args=(number % gpus if gpus else None, runs, results, store, out, split),
        )
        for number in range(at_once)
    ]
    for process in pool:
        runs.put(None)
        process.start()
    end = time.monotonic() + 60 * minutes
    with (out / "results.jsonl").open("a") as file:
        for number in range(count):
            try:
                line = results.get(timeout=max(0.0, end - time.monotonic()))
            except Exception:
                print(f"{count - number} of {count} runs had no time")
                break
            file.write(json.dumps({**line, "at_once": at_once, "gpus": gpus}) + "\n")
            file.flush()
            told = line.get("error") or (
                f"{line['seconds']:.0f} s, validation AUC {_validation_auc(line):.3f}"
            )
            print(f"{line['name']} fold {line['fold']} seed {line['seed']}: {told}", flush=True)
    for process in pool:
        process.kill()


def _validation_auc(line: dict[str, Any]) -> float:
    """Per image, of the label; beside other targets it is called by its name."""
    best: dict[str, float] = line["best"]
    return best.get("val_auc_image", best.get("val_auc_label_image", float("nan")))


def _refuse_unknown(recipes: dict[str, dict[str, Any]]) -> None:
    from ideas_patches import TRIALS, WAYS

    for name, recipe in recipes.items():
        keeps_best = recipe["set"].get("training.choose_epoch") == "best"
        if LAST in recipe.get("also", ()) and not keeps_best:
            raise SystemExit(f"{name}: {LAST!r} beside the best needs training.choose_epoch: best")
        named = {"trial": {recipe["trial"]} if "trial" in recipe else set()}
        named["also"] = set(recipe.get("also", ()))
        for key, allowed in (("trial", TRIALS), ("also", (*WAYS, LAST))):
            if unknown := sorted(named[key] - set(allowed)):
                raise SystemExit(f"{name}: {key} {unknown[0]!r} is none of {', '.join(allowed)}")


def _done(out: Path) -> set[tuple[str, int, int]]:
    """Runs whose results are there: recipe, fold and seed."""
    file = out / "results.jsonl"
    lines = map(json.loads, file.read_text().splitlines()) if file.is_file() else ()
    return {(line["name"], line["fold"], line["seed"]) for line in lines if "best" in line}


def _table(folders: list[Path], against: str | None, folds: int) -> str:
    """Markdown: one line per recipe of which so many folds, the first ones, are there."""
    texts = [text for folder in folders for text in (folder / "results.jsonl").open()]
    lines = [line for line in map(json.loads, texts) if "best" in line and line["fold"] < folds]
    scores: dict[str, dict[int, list[pd.DataFrame]]] = {}
    for line in lines:
        file = f"{line['name']}.{line['fold']}.{line['seed']}.csv"
        path = next(folder / file for folder in folders if (folder / file).is_file())
        table = pd.read_csv(path, dtype={"image_id": str, "patient_id": str, "exam_id": str})
        judged = table[(table["split"] == "test") & table["label"].notna()]
        for column in [column for column in table if column.startswith("score")]:
            way = column.removeprefix("score")
            name = f"{line['name']}, scored{way}" if way else line["name"]
            one = judged[_KEPT].assign(score=judged[column], fold=line["fold"])
            one = one.reset_index(drop=True)
            scores.setdefault(name, {}).setdefault(line["seed"], []).append(check_predictions(one))
    pooled = {
        name: {
            seed: pd.concat(t, ignore_index=True) for seed, t in seeds.items() if len(t) == folds
        }
        for name, seeds in scores.items()
    }
    pooled = {name: seeds for name, seeds in pooled.items() if seeds}
    head = ["recipe", "seeds", *(f"AUC within folds per {level}" for level in _LEVELS)]
    head += ["one seed alone, per image", "pooled, per image"]
    head += [f"less {against}, per {level}" for level in _LEVELS] if against else []
    head += ["validation", "training loss", "GPU s a run", "GiB"]
    rows = [head, ["---"] * len(head)]
    for name, seeds in pooled.items():
        rows.append(_row(name, seeds, pooled.get(against or ""), lines, against))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(
    name: str,
    seeds: dict[int, pd.DataFrame],
    reference: dict[int, pd.DataFrame] | None,
    lines: list[dict[str, Any]],
    against: str | None,
) -> list[str]:
    own = average_seeds(list(seeds.values()))
    # The difference is of the same seeds.
    shared = [seed for seed in seeds if reference is not None and seed in reference]
    pair = {"own": own, "other": own}
    if reference is not None and shared and name != against:
        pair = {
            "own": average_seeds([seeds[seed] for seed in shared]),
            "other": average_seeds([reference[seed] for seed in shared]),
        }
    aligned, _ = on_the_same_images(pair)
    options: dict[str, Any] = {"aggregation": Aggregation.MEAN}
    _, paired = compare(aligned, **options)
    alone, _ = compare(on_the_same_images({"own": own, "same": own})[0], **options)

    def within(level: str) -> str:
        row = next(row for row in alone if row["level"] == level)
        return f"{row['auc']:.3f} [{row['auc_ci_low']:.3f}, {row['auc_ci_high']:.3f}]"

    def less(level: str) -> str:
        row = next(row for row in paired if row["level"] == level)
        low, high = row["difference_ci_low"], row["difference_ci_high"]
        if name == against:
            return ""
        # Equal scores have no interval.
        interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
        return f"{row['difference']:+.3f}{interval}"

    each = [row["image"] for row in seed_aucs(seeds, Aggregation.MEAN)][: len(seeds)]
    trained = name.partition(", scored ")[0]
    runs = [line for line in lines if line["name"] == trained and line["seed"] in seeds]
    shares = [line["seconds"] * max(1, line["gpus"]) / line["at_once"] for line in runs]
    cells = [name, ", ".join(map(str, seeds)), *map(within, _LEVELS)]
    cells.append(", ".join(f"{value:.3f}" for value in each))
    cells.append(f"{auc(own['label'], own['score']):.3f}")
    cells += [less(level) for level in _LEVELS] if against else []
    cells.append(f"{np.mean([_validation_auc(line) for line in runs]):.3f}")
    cells.append(f"{np.mean([line['history'][-1]['train_loss'] for line in runs]):.2f}")
    cells.append(f"{np.mean(shares):.0f}")
    cells.append(f"{max(line['gib'] for line in runs):.1f}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    of_train = commands.add_parser("train")
    for name in ("store", "recipes", "out"):
        of_train.add_argument(name, type=Path)
    of_train.add_argument("--split", default="five")
    of_train.add_argument("--at-once", type=int, default=1)
    of_train.add_argument("--minutes", type=float, default=600.0)
    of_table = commands.add_parser("table")
    of_table.add_argument("out", type=Path, nargs="+")
    of_table.add_argument("--against")
    of_table.add_argument("--folds", type=int, default=5)
    given = vars(parser.parse_args())
    if given.pop("command") == "train":
        train(**given)
    else:
        print(_table(given["out"], given["against"], given["folds"]))


if __name__ == "__main__":
    main()
