"""What a report says about the runs scored for it, and keeping it in MLflow."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mammo_pd.terms import Level, ScoredPatches, Split
from mammo_pd.wording import counted

if TYPE_CHECKING:
    import pandas as pd

    from mammo_pd.inference.predict import Scored
    from mammo_pd.report.content import ReportContext
    from mammo_pd.training.objectives import Objective
    from mammo_pd.training.runs import RunFolder


def context_of(scored: "Sequence[Scored]", target: str | None = None) -> "ReportContext":
    """What the report says about the runs behind the predictions; several runs are taken as folds.

    Args:
        scored: the runs.
        target: that is reported on, where it is one of several.
    """
    from mammo_pd.data.split_store import count_flow, count_parts
    from mammo_pd.data.splits import with_joined_patients
    from mammo_pd.evaluation.characteristics import describe_parts
    from mammo_pd.report.content import ReportContext

    first = scored[0]
    split = first.cohort.split
    # Counted as the report counts patients.
    manifest = with_joined_patients(_with_target(first.cohort.manifest, first.objective, target))
    if len(scored) > 1:
        part = "fold " + split.table["fold"].astype(str)
        tested = [f"fold {one.info.fold}" for one in scored]
    else:
        part, tested = split.parts(first.cohort.fold), [Split.TEST.value]
    of_image = part.astype(str).set_axis(split.table["image_id"])
    images = first.cohort.by_patient(first.cohort.rows)
    parts = images["image_id"].map(of_image)
    names = sorted(parts.unique(), key=lambda name: ([*Split, name].index(name), name))
    run = first.info
    height, width = run.img_size
    epochs = sorted({one.epoch for one in scored})
    notes = [
        f"Trained on {run.num_keep} of {run.num_tokens} patches of each image "
        f"(PatchDropout, {first.draw} draw); scored here on {_read_in(scored)}.",
        f"Weights of epoch {', '.join(map(str, epochs))}.",
    ]
    notes += [
        f"The run {one.info.run_id} did not finish training; these are the weights of epoch "
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
        split_hash=split.hash,
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
        caveats=list(dict.fromkeys(caveat for one in scored for caveat in one.caveats)),
    )


def _read_in(scored: "Sequence[Scored]") -> str:
    """Which patches were read, by fold where these differ."""
    words = {ScoredPatches.ALL: "all of them", ScoredPatches.TISSUE: "those that hold breast"}
    folds: dict[ScoredPatches, list[str]] = {}
    for one in scored:
        folds.setdefault(one.score_on, []).append(str(one.info.fold))
    if len(folds) == 1:
        return words[scored[0].score_on]
    return " and on ".join(
        f"{words[way]} in fold{'s' * (len(names) > 1)} {', '.join(names)}"
        for way, names in folds.items()
    )


def _with_target(
    rows: "pd.DataFrame", objective: "Objective", target: str | None
) -> "pd.DataFrame":
    """Manifest rows with one of several targets as the label."""
    import pandas as pd

    if target is None:
        return rows
    values = objective.targets(rows)[:, objective.target_columns.index(target)]
    return rows.assign(label=pd.Series(values, index=rows.index, dtype="Float32"))


def only_target(table: "pd.DataFrame", objective: "Objective", target: str) -> "pd.DataFrame":
    """The predictions for one of several targets, in the form that a report needs."""
    score = objective.score_columns[objective.target_columns.index(target)]
    # Another target's label could be mistaken for this report's.
    others = {"label", "score"} - {target, score}
    table = table.drop(columns=[name for name in others if name in table])
    return table.rename(columns={target: "label", score: "score"})


def choices_for(
    target: str | None, objective: "Objective", choices: "Mapping[str, Any]"
) -> dict[str, Any]:
    """What was chosen for a report, as that of one of several targets can have it.

    Within values of the column that it is read from, a target has positives or negatives alone: the
    report goes without that column, and a line says so.
    """
    if target is None:
        return dict(choices)
    within = without_own(choices["within"], target, objective)
    if len(within) < len(choices["within"]):
        print(f"note: {target} is not compared within its own column")
    return {**choices, "within": within}


def without_own(columns: "Sequence[str]", target: str, objective: "Objective") -> list[str]:
    """Of columns to compare within, those that do not tell a target."""
    return [name for name in columns if name not in (target, objective.column_of(target))]


def provenance_of(scored: "Sequence[Scored]") -> dict[str, str]:
    """What the runs' predictions were made with, including hashes of labels and weights."""
    from mammo_pd.cli.provenance import provenance
    from mammo_pd.training.run_data import labels_hash

    # Of the weights that scored, not of the file: training may have replaced it since, and locked
    # thresholds change its header.
    weights = {
        f"weights {one.info.run_id}, SHA-256" if len(scored) > 1 else "weights, SHA-256": one.digest
        for one in scored
    }
    # As they are now, which --accept-other-split lets differ from those that were trained on.
    labels = labels_hash(scored[0].cohort, scored[0].objective)
    return provenance({}) | weights | {"labels, SHA-256": labels}


def of_target(target: str, metrics: "Mapping[str, Any]") -> list[dict[str, object]]:
    """One row per level of a target's metrics: units, positives and the AUC."""
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


def keep_in_mlflow(
    runs: Path, mlflow_run_id: str | None, report: Path, whole: Path, *, folder: str = "report"
) -> None:
    """Keep a report, or one target's part of it, in its run's MLflow record; print any failure."""
    from mammo_pd.tracking import keep_report

    if mlflow_run_id is not None:
        inside = Path(folder) / report.relative_to(whole)
        problem = keep_report(runs, mlflow_run_id, report, inside.as_posix())
        if problem is not None:
            print(f"warning: {problem}")


def tell_metrics(scored: "Sequence[Scored]") -> None:
    """Print the objective's metrics for each run's test images, instead of a report."""
    for one in scored:
        tested = (one.images["split"] == Split.TEST) & one.objective.usable(one.images)
        scores = one.table.loc[tested, list(one.objective.score_columns)].to_numpy(float)
        metrics = one.objective.metrics(one.images[tested], scores)
        told = "  ".join(
            f"{name.removeprefix('val_')} {value:.4g}" for name, value in metrics.items()
        )
        print(f"{counted(int(tested.sum()), 'test image')}: {told}")
        print(f"wrote {one.file}: {', '.join(one.objective.score_columns)} of each image")


def predicting(run: "RunFolder") -> str:
    """The command that applies an evaluated run."""
    return f"mammo-pd predict {shlex.quote(str(run.path))} DICOM_DIR"
