"""``mammo-pd evaluate``: write the ROC report for runs, or for anyone's predictions."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mammo_pd.cli.early_checks import check_output_folder, check_store
from mammo_pd.cli.evaluate_stores import (
    check_others,
    evaluate_on_others,
    refuse_without_labels,
    tell_apart_stores,
)
from mammo_pd.cli.options import (
    DEFAULT_RUNS,
    AggregationOption,
    ResamplesOption,
    RunsOption,
    find_run,
    tell_of_resamples,
)
from mammo_pd.cli.scored_runs import (
    choices_for,
    context_of,
    keep_in_mlflow,
    of_target,
    only_target,
    predicting,
    provenance_of,
    tell_metrics,
    without_own,
    write_targets,
)
from mammo_pd.errors import InputError
from mammo_pd.terms import Level, Split
from mammo_pd.wording import counted

if TYPE_CHECKING:
    from mammo_pd.evaluation.operating_points import Choices
    from mammo_pd.inference.predict import Scored
    from mammo_pd.training.runs import RunFolder


def evaluate(
    *run_folders: Annotated[Path, Parameter(name="RUN")],
    store: Annotated[
        tuple[Path, ...], Parameter(metavar="STORE", show_default="the run's own")
    ] = (),
    runs: RunsOption = DEFAULT_RUNS,
    predictions: Annotated[
        tuple[Path, ...], Parameter(consume_multiple=True, metavar="CSV...", show_default=False)
    ] = (),
    out: Annotated[Path | None, Parameter(metavar="DIR", show_default="RUN/report")] = None,
    checkpoint: Literal["model", "last"] = "model",
    aggregation: AggregationOption = "mean",
    resamples: ResamplesOption = None,
    prevalence: Annotated[float | None, Parameter(metavar="P")] = None,
    prevalence_level: Literal["image", "breast", "exam", "patient"] = "exam",
    miss_cost: Annotated[float, Parameter(metavar="C")] = 10.0,
    reader: Annotated[
        tuple[float, float] | None, Parameter(metavar="SENSITIVITY SPECIFICITY")
    ] = None,
    within: Annotated[
        tuple[str, ...], Parameter(consume_multiple=True, metavar="COLUMN...", show_default=False)
    ] = (),
    config: Annotated[Path | None, Parameter(metavar="FILE", show_default="the run's own")] = None,
    accept_other_split: bool = False,
) -> None:
    """Score the test images of a run and write the ROC report.

    For example:

        mammo-pd evaluate
        mammo-pd evaluate runs/FOLD0 runs/FOLD1 runs/FOLD2 --out report
        mammo-pd evaluate runs/RUN --store other_archive/store
        mammo-pd evaluate --predictions anyones_predictions.csv --out report
        mammo-pd evaluate --predictions internal.csv external.csv --out report
        mammo-pd evaluate --within manufacturer age

    Args:
        run_folders: A run, or the runs of all folds; by default the latest run.
        store: The run's own store, if it has moved since training; or another store, to test on all
            of its images with thresholds and calibration locked beforehand. Repeatable.
        runs: The folder of runs.
        predictions: Report on this table instead of a run: image_id, patient_id, exam_id,
            laterality, view, label, score. With several tables, the first is the development set:
            thresholds and calibration are chosen on it and locked before the others are read.
        out: Where to write the report.
        checkpoint: Use the weights of the run's model, or those of its last epoch.
        aggregation: How image scores are combined for a breast, exam or patient.
        resamples: No effect; accepted so that older scripts keep working.
        prevalence: Reweight to this fraction (0 to 1) of positive exams; the other levels follow.
        prevalence_level: The level that --prevalence is a fraction of.
        miss_cost: Cost of one missed cancer, in false alarms, for the cost-based threshold.
        reader: The radiologists' operating point, to compare the model with at exam level.
        within: Also report the AUC within strata: each positive is compared only with negatives
            that share its values in these columns, such as machine_id and age (in bands).
        config: YAML file whose section study gives intended use, reference standard and follow-up.
        accept_other_split: Use the current split and labels even though the run was trained on
            others.
    """
    from mammo_pd.cli.provenance import provenance
    from mammo_pd.evaluation.thresholds import Reader
    from mammo_pd.report.choices import check_choices
    from mammo_pd.report.content import ReportContext
    from mammo_pd.report.evaluate import evaluate_file, summary_table
    from mammo_pd.report.folder import check_replaceable

    choices: dict[str, Any] = {
        "aggregation": aggregation,
        "prevalence": prevalence,
        "prevalence_level": prevalence_level,
        "miss_cost": miss_cost,
        "reader": reader and Reader(*reader),
        "within": within,
    }
    # Before hours of scoring.
    check_choices(**choices)
    # Refuse whatever can be refused before importing torch.
    check_output_folder("--out", out)
    tell_of_resamples(resamples)
    study = None
    if config is not None:
        # Imported late: it loads Pydantic, and a table of predictions needs no configuration.
        from mammo_pd.config import load_config

        study = load_config(config).study.model_dump()
    chosen = []
    if predictions:
        if run_folders:
            raise InputError("give runs or --predictions, not both.")
        of_runs = {
            "--store": bool(store),
            "--checkpoint": checkpoint != "model",
            "--accept-other-split": accept_other_split,
        }
        for option, given in of_runs.items():
            if given:
                raise InputError(
                    f"{option} applies to runs, and --predictions already holds scores; drop it."
                )
    else:
        chosen = [find_run(runs, folder) for folder in run_folders or (None,)]
        for named in store:
            check_store(named)
    if predictions:
        inputs = {file.name: file for file in predictions if file.is_file()}
        context = ReportContext(study=study or {}, provenance=provenance(inputs))
        out = out or predictions[0].with_name(predictions[0].stem + "-report")
        if len(predictions) > 1:
            from mammo_pd.report.external import evaluate_sets, sets_table

            title = f"External validation on {counted(len(predictions) - 1, 'set')}"
            found = evaluate_sets(
                predictions, out, context=replace(context, title=title), **choices
            )
            print(sets_table(found))
            print(f"\nwrote {out}: index.html, metrics.json, and a report of each set")
            print(f"look at: {shlex.quote(str(out / 'index.html'))}")
            print(f"next: {_comparing(predictions[1])}")
            return
        metrics = evaluate_file(predictions[0], out, context=context, **choices)
    else:
        from mammo_pd.inference.predict import check_runs

        for run in chosen:
            _refuse_unreported(run)
        own, others = tell_apart_stores(chosen, store, accept_other_split)
        if others:
            refuse_without_labels(chosen[0])
        out = out or _report_folder([run.path for run in chosen], external=bool(others))
        # Before hours of scoring, too.
        for folder in _report_folders(chosen[0], out):
            check_replaceable(folder)
        if len(chosen) > 1:
            check_runs(chosen, store=own, accept_other_split=accept_other_split)
        notes = check_others(chosen[0], own, others)
        if within:
            for place in (own, *others):
                _check_within(within, chosen[0], place)
        scored = [_predict(run, own, checkpoint, accept_other_split) for run in chosen]
        if len(scored) == 1 and checkpoint == "model" and not accept_other_split:
            lock_in_checkpoint(scored[0], choices)
        told = {
            "study": study or chosen[0].config.study.model_dump(),
            "provenance": provenance_of(scored),
        }
        if others:
            evaluate_on_others(chosen[0], scored[0], notes, checkpoint, out, choices, told)
            return
        targets = scored[0].objective.target_columns
        if not targets:
            tell_metrics(scored)
            return
        if targets != ("label",):
            rows: list[dict[str, object]] = []
            for target in targets:
                print(target)
                chosen_for = choices_for(target, scored[0].objective, choices)
                metrics = _report_on(scored, out / target, chosen_for, told, target)
                rows += of_target(target, metrics)
                print(f"{summary_table(metrics)}\n")
                if len(chosen) == 1:
                    run = chosen[0]
                    keep_in_mlflow(run.path.parent, run.info.mlflow_run_id, out / target, out)
            write_targets(rows, out)
            print(f"wrote {out}: one report folder for each of {', '.join(targets)}")
            print(f"look at: {shlex.quote(str(out / targets[0] / 'index.html'))}")
            print(f"next: {predicting(chosen[0])}")
            return
        metrics = _report_on(scored, out, choices, told)
        if len(chosen) == 1:
            run = chosen[0]
            keep_in_mlflow(run.path.parent, run.info.mlflow_run_id, out, out)
    print(summary_table(metrics))
    print(f"\nwrote {out}: index.html, metrics.json, predictions, ROC and PR curves")
    print(f"look at: {shlex.quote(str(out / 'index.html'))}")
    print(f"next: {predicting(chosen[0]) if chosen else _comparing(predictions[0])}")


def _comparing(predictions: Path) -> str:
    """The command that compares a table of predictions with another model's."""
    return f"mammo-pd compare {shlex.quote(str(predictions))} OTHER_MODEL.csv"


def _report_folder(folders: list[Path], *, external: bool) -> Path:
    if external:
        return folders[0] / "external" / "report"
    if len(folders) == 1:
        return folders[0] / "report"
    return folders[-1].with_name(f"{folders[-1].name}-folds-report")


def _report_folders(run: "RunFolder", out: Path) -> list[Path]:
    """The folders of the reports that a run has: one for each target but the label alone."""
    from mammo_pd.training.objectives import build_objective

    targets = build_objective(run.config.training).target_columns
    if targets == ("label",):
        return [out]
    return [out / target for target in targets]


def _predict(
    run: "RunFolder", store: Path | None, checkpoint: str, accept_other_split: bool
) -> "Scored":
    from mammo_pd.inference.predict import predict

    return predict(run, store=store, checkpoint=checkpoint, accept_other_split=accept_other_split)


def _check_within(columns: Sequence[str], run: "RunFolder", store: Path | None) -> None:
    """Refuse columns that an AUC cannot be stratified by; store is None for the run's own."""
    from mammo_pd.evaluation.within import check_columns
    from mammo_pd.inference.predict import columns_of_predictions
    from mammo_pd.training.objectives import build_objective

    objective = build_objective(run.config.training)
    targets = objective.target_columns
    if not targets:
        raise InputError(
            f"--within compares positives with negatives, and {run.path} has no 0/1 label; drop it."
        )
    if not any(without_own(columns, target, objective) for target in targets):
        raise InputError(
            f"--within {' '.join(columns)}: that is what {run.path} tells, so that within it there "
            "are positives or negatives alone; name columns that describe an image or a woman, "
            "such as machine_id and age."
        )
    check_columns(columns, columns_of_predictions(run, store))


def lock_in_checkpoint(scored: "Scored", choices: dict[str, Any]) -> None:
    """Lock operating points for these choices in the checkpoint, unless it already has them."""
    from mammo_pd.evaluation.levels import Aggregation
    from mammo_pd.evaluation.operating_points import Choices
    from mammo_pd.locks import lock
    from mammo_pd.training.runs import weights_in

    wanted = Choices(
        Aggregation(choices["aggregation"]),
        choices["miss_cost"],
        choices["prevalence"],
        Level(choices["prevalence_level"]),
    )
    path = weights_in(scored.file.parent)
    # Without it, training could write an epoch that is then replaced by the one scored here.
    with scored.file.with_name("run.lock").open("ab") as file:
        try:
            lock(file, f"no thresholds were locked in {path.name}, because the run is in use")
        except InputError as error:
            print(f"warning: {error}; evaluate again once the training has ended")
            return
        _lock_in(path, scored, wanted)


def _lock_in(path: Path, scored: "Scored", wanted: "Choices") -> None:
    import numpy as np

    from mammo_pd.evaluation.operating_points import OperatingPoints
    from mammo_pd.training.checkpoint import put_operating_points
    from mammo_pd.training.model_card import CheckpointHeader
    from mammo_pd.training.operating_points import lock_operating_points

    header = CheckpointHeader.read(path)
    if header.epochs != scored.epoch:
        print(
            f"warning: no thresholds were locked in {path.name}: it holds epoch {header.epochs} "
            f"now, written while epoch {scored.epoch} was scored; evaluate again once the training "
            "has ended"
        )
        return
    locked = header.operating_points
    if locked and all(OperatingPoints.load(one).choices == wanted for one in locked.values()):
        return
    scores = scored.table[list(scored.objective.score_columns)].to_numpy(np.float64)
    tested = (scored.images["split"] == Split.TEST).to_numpy()
    points = lock_operating_points(
        scored.objective, scored.images, scores, wanted, evaluated=tested
    )
    if points:
        put_operating_points(path, points)
        print(
            f"locked thresholds and calibration in {path.name}, chosen on the validation images "
            "with these options; mammo-pd predict applies them"
        )


def _refuse_unreported(run: "RunFolder") -> None:
    """Refuse a pretext task's run before scoring: it has learnt no scores."""
    from mammo_pd.training.objectives import build_objective

    if build_objective(run.config.training).is_pretext:
        raise InputError(
            f"the run {run.info.run_id} was trained for {run.config.training.objective}, which has "
            "no labels to report on; use its weights to start another run: mammo-pd "
            f"train --weights {shlex.quote(str(run.chosen))}"
        )


def _report_on(
    scored: "list[Scored]",
    out: Path,
    choices: dict[str, Any],
    told: dict[str, Any],
    target: str | None = None,
) -> dict[str, object]:
    """Report on the objective's only target, or on one of several."""
    from mammo_pd.inference.explain import ErrorPictures
    from mammo_pd.inference.predict import join_folds, validation_by_fold
    from mammo_pd.report.evaluate import evaluate_predictions

    pictures = ErrorPictures(scored)
    context = replace(context_of(scored, target), pictures=pictures.legend, **told)
    table, validation = join_folds(scored), validation_by_fold(scored)
    if target is not None:
        objective = scored[0].objective
        table = only_target(table, objective, target)
        if validation is not None:
            validation = {
                fold: only_target(rows, objective, target) for fold, rows in validation.items()
            }
    return evaluate_predictions(
        table,
        out,
        context=context,
        validation_by_fold=validation,
        thumbnail=pictures,
        **choices,
    )
