"""``mammo-pd cv``: train all folds of a split, for several seeds, and write one report."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mammo_pd.cli.config_flags import NONE_GIVEN, ConfigFlags
from mammo_pd.cli.container import warn_unless_mounted
from mammo_pd.cli.early_checks import check_folds, check_output_folder
from mammo_pd.cli.options import (
    AggregationOption,
    NamedStoreOption,
    ResamplesOption,
    WholeNumber,
    default_runs,
    default_store,
    tell_of_resamples,
    unless_default,
)
from mammo_pd.cli.scored_runs import (
    context_of,
    keep_in_mlflow,
    of_target,
    only_target,
    provenance_of,
    tell_metrics,
    write_targets,
)
from mammo_pd.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from mammo_pd.inference.predict import Scored
    from mammo_pd.report.content import ReportContext
    from mammo_pd.training.cross_validation import CrossValidation


def cv(
    *,
    store: NamedStoreOption = None,
    settings: ConfigFlags = NONE_GIVEN,
    seeds: Annotated[str, Parameter(metavar="N,...")] = "1",
    out: Annotated[Path | None, Parameter(metavar="DIR", show_default="runs/cv-SPLIT")] = None,
    parallel: Annotated[WholeNumber, Parameter(metavar="N")] = 1,
    checkpoint: Literal["model", "last"] = "model",
    aggregation: AggregationOption = "mean",
    resamples: ResamplesOption = None,
    prevalence: Annotated[float | None, Parameter(metavar="P")] = None,
    prevalence_level: Literal["image", "breast", "exam", "patient"] = "exam",
) -> None:
    """Cross-validate: train and score all folds of a split, and write one report.

    If it was interrupted, run it again: finished runs are kept, the others
    continue.

    For example:

        mammo-pd cv --split five --res 1024 --keep 0.25
        mammo-pd cv --split five --seeds 3 --parallel 2

    Args:
        store: The store that preprocess made.
        settings: See `ConfigFlags`.
        seeds: How many seeds, counted from training.seed, or a list: 0,1,2. The report uses each
            image's mean score over the seeds.
        out: Folder of the cross-validation; its MLflow records go next to it.
        parallel: Number of runs to train at the same time on one device.
        checkpoint: Use the weights of each run's model, or those of its last epoch.
        aggregation: How image scores are combined for a breast, exam or patient.
        resamples: No effect; accepted so that older scripts keep working.
        prevalence: Reweight to this fraction (0 to 1) of positive exams; the other levels follow.
        prevalence_level: The level that --prevalence is a fraction of.
    """
    from mammo_pd.report.choices import check_choices

    choices: dict[str, Any] = {
        "aggregation": aggregation,
        "prevalence": prevalence,
        "prevalence_level": prevalence_level,
    }
    check_choices(**choices)
    tell_of_resamples(resamples)
    config = settings.load()
    if config.data.fold is not None:
        raise InputError(f"cv tests every fold in turn; remove data.fold {config.data.fold}.")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise InputError(
            "cv starts its own processes; run it without torchrun, and give --devices."
        )
    if parallel < 1:
        raise InputError(f"--parallel {parallel} runs nothing; give at least 1.")
    if parallel > 1 and config.training.batch_size == "auto":
        raise InputError(
            "--batch-size auto cannot measure memory while other runs are using it; give a "
            "number, or drop --parallel."
        )
    wanted = parse_seeds(seeds, config.training.seed)
    path = out or default_runs() / f"cv-{config.data.split}"
    check_output_folder("--out", path)
    check_folds(store or default_store(), config)
    from mammo_pd.tracking import MlflowRun, page_of_runs
    from mammo_pd.training.cross_validation import CrossValidation
    from mammo_pd.training.train_folds import train_folds

    warn_unless_mounted(path)
    planned = CrossValidation.plan(path, store or default_store(), config)
    with (
        planned.begun() as validation,
        MlflowRun(path.parent, path.name, validation.info.mlflow_run_id) as tracker,
    ):
        validation = validation.update(mlflow_run_id=tracker.run_id)
        tracker.describe(*validation.description())

        def command(fold: int, seed: int) -> tuple[str, ...]:
            words = (str(path), str(fold), str(seed), "--checkpoint", checkpoint)
            return (*_this_program(), "cv-run", *words)

        train_folds(validation, wanted, command, at_once=parallel)
        told = {"study": config.study.model_dump()}
        tracker.log(_report(validation, wanted, checkpoint, choices, told), step=0)
    _keep_report(validation)
    print(f"metrics: {page_of_runs(path.parent)}")
    pages = sorted((path / "report").rglob("index.html"))
    if pages:  # none of an objective without labels
        print(f"look at: {shlex.quote(str(pages[0]))}")
    store_given = unless_default("--store", Path(validation.info.store), default_store().resolve())
    # Suggest training one model for use, with the same settings.
    print(
        f"next: mammo-pd train --config {shlex.quote(str(path / 'config.yaml'))} --split default"
        + store_given
    )


def parse_seeds(text: str, first: int) -> list[int]:
    """Read ``3`` as three seeds starting at ``first``, and ``0,5,7`` as exactly those.

    Raises:
        InputError: neither, or a seed given twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or words == ["0"]:
        raise InputError(
            f"--seeds {text} is not understood; give a count, such as 3, or a list, such as 0,1,2."
        )
    numbers = [int(word) for word in words]
    seeds = list(range(first, first + numbers[0])) if len(numbers) == 1 else numbers
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text} names a seed twice; give each once.")
    return seeds


def _keep_report(validation: "CrossValidation") -> None:
    """Keep each target's report in MLflow."""
    report = validation.path / "report"
    for page in sorted(report.rglob("index.html")):
        keep_in_mlflow(validation.path.parent, validation.info.mlflow_run_id, page.parent, report)


def _this_program() -> tuple[str, ...]:
    """How this process was started: perhaps as a user's program with its own objective."""
    spec = sys.modules["__main__"].__spec__
    if spec is not None:
        return (sys.executable, "-m", spec.name.removesuffix(".__main__"))
    return (sys.executable, str(Path(sys.argv[0]).resolve()))


def _report(
    validation: "CrossValidation",
    seeds: Sequence[int],
    checkpoint: str,
    choices: dict[str, Any],
    told: dict[str, Any],
) -> dict[str, float]:
    """Score the runs not yet scored, write the report, and print a summary.

    Returns:
        The AUCs with their intervals, for MLflow.
    """
    from mammo_pd.inference.predict import predict
    from mammo_pd.training.runs import RunFolder

    scored = {
        seed: [
            predict(
                RunFolder.open(validation.run_path(fold, seed)),
                store=Path(validation.info.store),
                checkpoint=checkpoint,
                reuse=True,
            )
            for fold in range(validation.info.folds)
        ]
        for seed in seeds
    }
    every = [one for of_seed in scored.values() for one in of_seed]
    told = told | {"provenance": provenance_of(every)}
    name, out = validation.path.name, validation.path / "report"
    targets = scored[seeds[0]][0].objective.target_columns
    if not targets:
        tell_metrics(every)
        return {}
    if targets == ("label",):
        found = _aucs(_report_on(name, scored, out, choices, told, None))
        print(f"\nwrote {out}: index.html, metrics.json, predictions, runs.csv")
        return found
    found, rows = {}, []
    for target in targets:
        print(f"\n{target}")
        metrics = _report_on(name, scored, out / target, choices, told, target)
        rows += of_target(target, metrics)
        found |= {f"{target}_{key}": value for key, value in _aucs(metrics).items()}
    write_targets(rows, out)
    print(f"\nwrote {out}: targets.csv, and one report folder for each of {', '.join(targets)}")
    return found


def _report_on(
    name: str,
    scored: "Mapping[int, Sequence[Scored]]",
    out: Path,
    choices: dict[str, Any],
    told: dict[str, Any],
    target: str | None,
) -> "Mapping[str, Any]":
    """Report on the objective's only target, or on one of several targets; gives its metrics."""
    import pandas as pd

    from mammo_pd.evaluation.cross_validation import average_seeds, run_aucs, seed_aucs
    from mammo_pd.evaluation.levels import Aggregation
    from mammo_pd.inference.explain import ErrorPictures
    from mammo_pd.inference.predict import join_folds, validation_by_fold
    from mammo_pd.report.cross_validation import run_table, seed_table
    from mammo_pd.report.evaluate import evaluate_predictions, summary_table

    first, *others = scored

    def scores_of(table: "pd.DataFrame") -> "pd.DataFrame":
        return table if target is None else only_target(table, scored[first][0].objective, target)

    aggregation = Aggregation(choices["aggregation"])
    runs = [
        {
            "fold": one.info.fold,
            "seed": seed,
            "epoch": one.epoch,
            **run_aucs(scores_of(one.table), aggregation),
            "seconds": float(pd.read_csv(one.file.with_name("history.csv"))["epoch_seconds"].sum()),
        }
        for seed, folds in scored.items()
        for one in folds
    ]
    print("\n" + run_table(runs))
    by_seed = {seed: scores_of(join_folds(folds)) for seed, folds in scored.items()}
    pictures = ErrorPictures(scored[first])
    context = replace(
        context_of(scored[first], target),
        run_id=name,
        runs=runs,
        pictures=pictures.legend,
        **told,
    )
    if others:
        rows = seed_aucs(by_seed, aggregation)
        print("\n" + seed_table(rows))
        context = replace(_as_ensemble(context, list(scored)), seeds=rows)
    validation = [validation_by_fold(folds) or {} for folds in scored.values()]
    metrics = evaluate_predictions(
        average_seeds(list(by_seed.values())),
        out,
        context=context,
        validation_by_fold={
            fold: average_seeds([scores_of(of_seed[fold]) for of_seed in validation])
            for fold in validation[0]
        },
        thumbnail=pictures,
        **choices,
    )
    of = f"mean score of {len(scored)} seeds" if others else "out-of-fold scores"
    print(f"\nall folds pooled, {of}\n{summary_table(metrics)}")
    return metrics


def _aucs(metrics: "Mapping[str, Any]") -> dict[str, float]:
    """The AUCs with their intervals, pooled and within folds, as MLflow names them."""
    from mammo_pd.terms import Level

    found: dict[str, float] = {}
    for level in Level:
        for key in ("auc", "auc_ci_low", "auc_ci_high"):
            if metrics[level][key] is not None:
                found[f"test_{key}_{level}"] = metrics[level][key]
    for row in metrics["within_folds"]:
        if row["auc"] is not None:
            found[f"test_auc_within_folds_{row['level']}"] = row["auc"]
    return found


def _as_ensemble(context: "ReportContext", seeds: Sequence[int]) -> "ReportContext":
    """Say that the scores are means over several seeds."""
    named = ", ".join(map(str, seeds))
    return replace(
        context,
        model=f"{context.model}; an ensemble: the mean score of the seeds {named}",
        split_part=f"{context.split_part}, mean score of {len(seeds)} seeds",
        notes=[
            *context.notes,
            f"Each image's score is the mean over the models of the seeds {named} that did not "
            "train on its fold. Expect a single model to do worse: see Runs.",
        ],
        pictures=f"{context.pictures} The attention is that of the model of seed {seeds[0]}.",
    )
