"""``mammo-pd evaluate``: runs, or anyone's predictions, to the ROC report."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mammo_pd.cli.early_checks import check_output_folder, check_store
from mammo_pd.cli.options import (
    DEFAULT_RUNS,
    AggregationOption,
    ResamplesOption,
    RunsOption,
    find_run,
    tell_of_resamples,
)
from mammo_pd.errors import InputError
from mammo_pd.terms import Level, Split
from mammo_pd.wording import counted

if TYPE_CHECKING:
    import pandas as pd

    from mammo_pd.inference.predict import Scored
    from mammo_pd.report.content import ReportContext
    from mammo_pd.training.objectives import Objective
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
    checkpoint: Literal["best", "last"] = "best",
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
    """Score the test images of a run on all patches and write the ROC report.

    For example:

        mammo-pd evaluate
        mammo-pd evaluate runs/FOLD0 runs/FOLD1 runs/FOLD2 --out report
        mammo-pd evaluate runs/RUN --store other_archive/store
        mammo-pd evaluate --predictions anyones_predictions.csv --out report
        mammo-pd evaluate --predictions internal.csv external.csv --out report
        mammo-pd evaluate --within manufacturer age

    Args:
        run_folders: A run, or the runs of all folds; by default the latest run.
        store: The run's own store, if it has moved since the training; or another, to test on all
            its images with thresholds and calibration locked before. It may be given several times.
        runs: The folder of runs.
        predictions: Report on this table instead of a run: image_id, patient_id, exam_id,
            laterality, view, label, score. Of several the first is the development set: thresholds
            and calibration are decided on it and locked before the others are read.
        out: Where to write the report.
        checkpoint: Weights of the run's best epoch, or of its last one.
        aggregation: How image scores become those of a breast, exam or patient.
        resamples: Without effect; accepted so that older scripts run.
        prevalence: Reweight to this fraction (0 to 1) of positive exams; the other levels follow.
        prevalence_level: The level that --prevalence is a fraction of.
        miss_cost: False alarms that one miss is worth, for the cost-based threshold.
        reader: The radiologists' operating point, to compare with at exam level.
        within: Also compare each positive only with the negatives that share its values of these
            columns, such as machine_id and age (in bands): the AUC within strata.
        config: YAML file whose section study states intended use, reference standard and follow-up.
        accept_other_split: Use the current split and labels, though the run was trained on others.
    """
    from mammo_pd.cli.provenance import provenance
    from mammo_pd.evaluation.thresholds import Reader
    from mammo_pd.report.content import ReportContext
    from mammo_pd.report.evaluate import check_choices, evaluate_file, summary_table

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
    # What can be refused without torch is, before it is imported.
    check_output_folder("--out", out)
    tell_of_resamples(resamples)
    study = None
    if config is not None:
        # Only then: it loads Pydantic, and a table of predictions needs no configuration.
        from mammo_pd.config import load_config

        study = load_config(config).study.model_dump()
    chosen = []
    if predictions:
        if run_folders:
            raise InputError("give runs or --predictions, not both.")
        of_runs = {
            "--store": bool(store),
            "--checkpoint": checkpoint != "best",
            "--accept-other-split": accept_other_split,
        }
        for option, given in of_runs.items():
            if given:
                raise InputError(
                    f"{option} is about a run, and the scores of --predictions are there already; "
                    "leave it out."
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
        for run in chosen:
            _refuse_unreported(run)
        own, others = _tell_apart(chosen, store, accept_other_split)
        out = out or _report_folder([run.path for run in chosen], external=bool(others))
        print(f"evaluating {', '.join(str(run.path) for run in chosen)}")
        # Before hours of scoring, too.
        notes = _check_others(chosen[0], own, others)
        if within:
            for place in (own, *others):
                _check_within(within, chosen[0], place)
        scored = [_predict(run, own, checkpoint, accept_other_split) for run in chosen]
        if len(scored) == 1 and checkpoint == "best" and not accept_other_split:
            # Before the report tells the file's hash.
            lock_in_checkpoint(scored[0], choices)
        told = {
            "study": study or chosen[0].config.study.model_dump(),
            "provenance": provenance_of(scored, checkpoint),
        }
        if others:
            _evaluate_on_others(chosen[0], scored[0], notes, checkpoint, out, choices, told)
            return
        targets = scored[0].objective.target_columns
        if targets != ("label",):
            rows: list[dict[str, object]] = []
            for target in targets:
                metrics = _report_on(scored, out / target, choices, told, target)
                rows += of_target(target, metrics)
                print(f"{target}\n{summary_table(metrics)}\n")
                if len(chosen) == 1:
                    run = chosen[0]
                    keep_in_mlflow(run.path.parent, run.info.mlflow_run_id, out / target, out)
            write_targets(rows, out)
            print(f"wrote {out}: a report in a folder of its own for each of {', '.join(targets)}")
            print(f"look at: {shlex.quote(str(out / targets[0] / 'index.html'))}")
            print(f"next: {_predicting(chosen[0])}")
            return
        metrics = _report_on(scored, out, choices, told)
        if len(chosen) == 1:
            run = chosen[0]
            keep_in_mlflow(run.path.parent, run.info.mlflow_run_id, out, out)
    print(summary_table(metrics))
    print(f"\nwrote {out}: index.html, metrics.json, predictions, ROC and PR curves")
    print(f"look at: {shlex.quote(str(out / 'index.html'))}")
    print(f"next: {_predicting(chosen[0]) if chosen else _comparing(predictions[0])}")


def _predicting(run: "RunFolder") -> str:
    """The command that applies a run that was evaluated."""
    return f"mammo-pd predict {shlex.quote(str(run.path))} DICOM_DIR"


def _comparing(predictions: Path) -> str:
    """The command that compares a table of predictions with another model's."""
    return f"mammo-pd compare {shlex.quote(str(predictions))} OTHER_MODEL.csv"


def _report_folder(folders: list[Path], *, external: bool) -> Path:
    if external:
        return folders[0] / "external" / "report"
    if len(folders) == 1:
        return folders[0] / "report"
    return folders[-1].with_name(f"{folders[-1].name}-folds-report")


def _predict(
    run: "RunFolder", store: Path | None, checkpoint: str, accept_other_split: bool
) -> "Scored":
    from mammo_pd.inference.predict import predict

    return predict(run, store=store, checkpoint=checkpoint, accept_other_split=accept_other_split)


def _tell_apart(
    runs: "Sequence[RunFolder]", stores: Sequence[Path], accept_other_split: bool
) -> tuple[Path | None, list[Path]]:
    """The runs' own store, where one is named, and those that they are tested on besides."""
    from mammo_pd.inference.external import tell_apart

    if accept_other_split and len(stores) == 1:
        return stores[0], []
    own, others = tell_apart(runs[0], stores)
    if others and len(runs) > 1:
        raise InputError(
            f"{others[0]} is another store than these runs were trained on, and one model is "
            f"tested on it; give one run (was: {len(runs)}). Each fold's run can be "
            "tested so by itself; the folds together are a further model, whose thresholds no "
            "fold has chosen."
        )
    return own, others


def _check_others(
    run: "RunFolder", own: Path | None, others: Sequence[Path]
) -> dict[Path, list[str]]:
    """By store what the reader must know of its preprocessing."""
    from mammo_pd.inference.external import check_external

    return {other: check_external(run, own, other) for other in others}


def _check_within(columns: Sequence[str], run: "RunFolder", store: Path | None) -> None:
    """Refuse columns that the predictions on a store will not have; None for the run's own."""
    from mammo_pd.evaluation.within import check_columns
    from mammo_pd.inference.predict import columns_of_predictions

    check_columns(columns, columns_of_predictions(run, store))


def _evaluate_on_others(
    run: "RunFolder",
    own: "Scored",
    notes: dict[Path, list[str]],
    checkpoint: str,
    out: Path,
    choices: dict[str, Any],
    told: dict[str, Any],
) -> None:
    """Lock what the run's own store decides, then score the others, and report on all of them."""
    from mammo_pd.evaluation.predictions import check_predictions
    from mammo_pd.inference.explain import ErrorPictures
    from mammo_pd.inference.external import overlap_with, predict_store
    from mammo_pd.report.content import ReportContext
    from mammo_pd.report.external import (
        GivenSet,
        NothingToLockOnError,
        SetSource,
        evaluate_sources,
        names_of,
        sets_table,
    )

    scored: dict[Path, Scored] = {}
    places = [own.cohort.paths.root.resolve(), *(other.resolve() for other in notes)]
    names = names_of(places, [place.name for place in places])

    def given(one: "Scored", target: str | None) -> GivenSet:
        table = one.table if target is None else only_target(one.table, one.objective, target)
        pictures = ErrorPictures([one])
        context = replace(context_of([one], target), pictures=pictures.legend, **told)
        return GivenSet(check_predictions(table), context, pictures)

    def read(other: Path, target: str | None) -> GivenSet:
        if other not in scored:
            scored[other] = predict_store(run, other, checkpoint=checkpoint)
        one = scored[other]
        overlap = overlap_with(own.cohort, one.cohort)
        found = given(one, target)
        said = [*notes[other], overlap.sentence()]
        if one.cohort.label_definition != own.cohort.label_definition:
            said.append(
                f"A positive is {_quoted(one.cohort.label_definition)} here and "
                f"{_quoted(own.cohort.label_definition)} in the development store."
            )
        context = replace(
            found.context,
            split_name=None,
            split_hash=None,
            split_part="all images of a store that the run was not trained on",
            store_fingerprint=one.cohort.fingerprint,
            notes=[*found.context.notes, *said],
        )
        return replace(
            found,
            context=context,
            shared_patients=overlap.patients,
            shared_images=overlap.images,
            notes=said,
        )

    targets = own.objective.target_columns
    rows: list[dict[str, object]] = []
    missing: dict[str, NothingToLockOnError] = {}
    written = out
    for target in targets if len(targets) > 1 else (None,):
        place = out if target is None else out / target
        sources = [SetSource(names[0], names[0], partial(given, own, target))]
        sources += [
            SetSource(name, name, partial(read, other, target))
            for name, other in zip(names[1:], notes, strict=True)
        ]
        context = ReportContext(
            title=f"Trained on {names[0]}, tested on {_counted(len(notes))}"
            + ("" if target is None else f": {target}"),
            model=context_of([own], target).model,
            run_id=own.info.run_id,
            label_definition=own.cohort.label_definition if target is None else target,
            phantom=own.phantom,
            **told,
        )
        try:
            found: dict[str, Any] = evaluate_sources(sources, place, context=context, **choices)
        except NothingToLockOnError as error:
            # Of several targets the others have their reports all the same.
            if target is None:
                raise
            print(f"{target}\nnote: no report, {error}\n")
            missing[target] = error
            continue
        written = place
        if target is not None:
            print(target)
            for name, metrics in found["sets"].items():
                rows += [{"set": name, **row} for row in of_target(target, metrics)]
        print(sets_table(found))
        keep_in_mlflow(
            run.path.parent, run.info.mlflow_run_id, place, out, folder="external-report"
        )
        if target is not None:
            print()
    if not rows and missing:
        raise next(iter(missing.values()))
    if rows:
        write_targets(rows, out)
        reported = ", ".join(one for one in targets if one not in missing)
        print(f"wrote {out}: a report in a folder of its own for each of {reported}")
    else:
        print(f"\nwrote {out}: index.html, metrics.json, and a report of each set")
    print(f"look at: {shlex.quote(str(written / 'index.html'))}")
    print(f"next: {_predicting(run)}")


def _counted(stores: int) -> str:
    return "another store" if stores == 1 else f"{stores} other stores"


def _quoted(definition: str | None) -> str:
    return "not defined" if definition is None else f"“{definition}”"


def lock_in_checkpoint(scored: "Scored", choices: dict[str, Any]) -> None:
    """Lock operating points by these choices in the checkpoint, unless it has them."""
    import numpy as np

    from mammo_pd.evaluation.levels import Aggregation
    from mammo_pd.evaluation.operating_points import Choices, OperatingPoints
    from mammo_pd.terms import Level
    from mammo_pd.training.checkpoint import put_operating_points
    from mammo_pd.training.model_card import CheckpointHeader
    from mammo_pd.training.operating_points import lock_operating_points

    wanted = Choices(
        Aggregation(choices["aggregation"]),
        choices["miss_cost"],
        choices["prevalence"],
        Level(choices["prevalence_level"]),
    )
    path = scored.file.with_name("best.safetensors")
    locked = CheckpointHeader.read(path).operating_points
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
            f"locked thresholds and calibration in {path.name}, on the validation images and by "
            "these choices; mammo-pd predict applies them"
        )


def _refuse_unreported(run: "RunFolder") -> None:
    """Refuse a run that learns nothing to report on, before it is scored."""
    from mammo_pd.training.objectives import build_objective

    if not build_objective(run.config.training).target_columns:
        raise InputError(
            f"the run {run.info.run_id} was trained for {run.config.training.objective}, which has "
            "no labels to report on; its best.safetensors is the start of another run: mammo-pd "
            f"train --weights {run.best}"
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
    from mammo_pd.inference.predict import join_folds
    from mammo_pd.report.evaluate import evaluate_predictions

    pictures = ErrorPictures(scored)
    context = replace(context_of(scored, target), pictures=pictures.legend, **told)
    table = join_folds(scored)
    if target is not None:
        table = only_target(table, scored[0].objective, target)
    return evaluate_predictions(
        table,
        out,
        context=context,
        thumbnail=pictures,
        **choices,
    )


def provenance_of(scored: "Sequence[Scored]", checkpoint: str) -> dict[str, str]:
    """What the predictions of some runs were made with: also the hashes of labels and weights."""
    from mammo_pd.cli.provenance import provenance

    weights = {
        f"checkpoint {one.info.run_id}" if len(scored) > 1 else "checkpoint": (
            one.file.with_name(f"{checkpoint}.safetensors")
        )
        for one in scored
    }
    return provenance(weights) | {"labels, SHA-256": scored[0].info.labels_hash}


def keep_in_mlflow(
    runs: Path, mlflow_run_id: str | None, report: Path, whole: Path, *, folder: str = "report"
) -> None:
    """Keep a report, or that of one target within the whole, beside its run; a failure is said."""
    from mammo_pd.tracking import keep_report

    if mlflow_run_id is not None:
        inside = Path(folder) / report.relative_to(whole)
        problem = keep_report(runs, mlflow_run_id, report, inside.as_posix())
        if problem is not None:
            print(f"warning: {problem}")


def of_target(target: str, metrics: "Mapping[str, Any]") -> list[dict[str, object]]:
    """One row for each level of a target's metrics: units, positives and the AUC."""
    wanted = ("n", "n_positive", "auc", "auc_ci_low", "auc_ci_high")
    return [
        {"target": target, "level": level.value, **{name: metrics[level][name] for name in wanted}}
        for level in Level
    ]


def write_targets(rows: list[dict[str, object]], out: Path) -> None:
    """Write the AUCs of all targets side by side: ``targets.csv``, beside their reports."""
    import pandas as pd

    from mammo_pd.files import atomic_write
    from mammo_pd.table_file import write_csv

    with atomic_write(out / "targets.csv") as beside:
        write_csv(pd.DataFrame(rows), beside)


def only_target(table: "pd.DataFrame", objective: "Objective", target: str) -> "pd.DataFrame":
    """Predictions of one of several targets, as a report takes them."""
    score = objective.score_columns[objective.target_columns.index(target)]
    # A label that is not this report's would not be told from it.
    others = {"label", "score"} - {target, score}
    table = table.drop(columns=[name for name in others if name in table])
    return table.rename(columns={target: "label", score: "score"})


def _with_target(
    rows: "pd.DataFrame", objective: "Objective", target: str | None
) -> "pd.DataFrame":
    """Manifest rows with one of several targets as the label."""
    import pandas as pd

    if target is None:
        return rows
    values = objective.targets(rows)[:, objective.target_columns.index(target)]
    return rows.assign(label=pd.Series(values, index=rows.index, dtype="Float32"))


def context_of(scored: "Sequence[Scored]", target: str | None = None) -> "ReportContext":
    """What the report says about the runs behind the predictions; several runs are folds.

    Args:
        scored: the runs.
        target: that is reported on, where it is one of several.
    """
    from mammo_pd.data.split_store import count_flow, count_parts
    from mammo_pd.evaluation.characteristics import describe_parts
    from mammo_pd.report.content import ReportContext

    first = scored[0]
    split = first.cohort.split
    manifest = _with_target(first.cohort.manifest, first.objective, target)
    if len(scored) > 1:
        part = "fold " + split.table["fold"].astype(str)
        tested = [f"fold {one.info.fold}" for one in scored]
    else:
        part, tested = split.parts(first.cohort.fold), [Split.TEST.value]
    of_image = part.astype(str).set_axis(split.table["image_id"])
    images = first.cohort.rows
    parts = images["image_id"].map(of_image)
    names = sorted(parts.unique(), key=lambda name: ([*Split, name].index(name), name))
    run = first.info
    height, width = run.img_size
    epochs = sorted({one.epoch for one in scored})
    notes = [
        f"Trained on {run.num_keep} of {run.num_tokens} patches of each image "
        "(PatchDropout); scored here on all of them.",
        f"Weights of epoch {', '.join(map(str, epochs))}.",
    ]
    notes += [
        f"The run {one.info.run_id} was not trained to its end; these are the weights of epoch "
        f"{one.epoch}."
        for one in scored
        if one.info.finished is None
    ]
    if (corrected := first.objective.prior_note()) is not None:
        notes.append(corrected)
    folds = f"{len(scored)} folds" if len(scored) > 1 else None
    title = "Phantom mammograms: a demonstration" if first.phantom else "Evaluation report"
    return ReportContext(
        title=title if target is None else f"{title}: {target}",
        model=f"{run.model}, image size {height}x{width} pixels",
        run_id=", ".join(one.info.run_id for one in scored),
        split_name=run.split,
        split_hash=run.split_hash,
        split_part=folds or "test",
        store_fingerprint=run.store_fingerprint,
        label_definition=first.cohort.label_definition
        if target in (None, "label")
        else first.objective.define(target),
        exclusions=first.exclusions,
        parts=first.parts if target is None else count_parts(manifest, split),
        flow=count_flow(manifest, of_image),
        tested=tested,
        characteristics=describe_parts(images, parts, names),
        phantom=first.phantom,
        notes=notes,
    )
