"""Evaluate: a table of predictions goes in, a report folder comes out. No torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.evaluation.compare import compare, on_the_same_images
from mammo_pd.evaluation.levels import Aggregation, aggregate, count_units
from mammo_pd.evaluation.measures import Estimate, assess, auc_with_interval
from mammo_pd.evaluation.predictions import check_predictions, read_predictions
from mammo_pd.evaluation.strata import known_strata, stratify
from mammo_pd.evaluation.thresholds import Reader, Threshold, choose_thresholds
from mammo_pd.report.content import (
    Comparison,
    Computation,
    Report,
    ReportContext,
    write_comparison,
    write_report,
)
from mammo_pd.terms import Level, Split

RESAMPLES = 2000
MISS_COST = 10.0
WORST = 12


def evaluate_file(
    path: Path,
    out: Path,
    *,
    context: ReportContext | None = None,
    aggregation: str = Aggregation.MEAN,
    resamples: int = RESAMPLES,
    seed: int = 0,
    prevalence: float | None = None,
    miss_cost: float = MISS_COST,
    reader: Reader | None = None,
    stratify_by: Sequence[str] | None = None,
) -> dict[str, object]:
    """Write the report on a CSV of predictions, whatever tool made it.

    Arguments, result and errors are those of ``evaluate_predictions``.
    """
    return evaluate_predictions(
        read_predictions(path),
        out,
        context=ReportContext() if context is None else context,
        aggregation=aggregation,
        resamples=resamples,
        seed=seed,
        prevalence=prevalence,
        miss_cost=miss_cost,
        reader=reader,
        stratify_by=stratify_by,
    )


def evaluate_predictions(
    predictions: pd.DataFrame,
    out: Path,
    *,
    context: ReportContext,
    validation: pd.DataFrame | None = None,
    aggregation: str = Aggregation.MEAN,
    resamples: int = RESAMPLES,
    seed: int = 0,
    prevalence: float | None = None,
    miss_cost: float = MISS_COST,
    reader: Reader | None = None,
    stratify_by: Sequence[str] | None = None,
    thumbnail: Callable[[str], bytes | None] | None = None,
) -> dict[str, object]:
    """Write the report on a table of predictions.

    Where the table has a column ``split``, the rows ``test`` are judged (all rows ``val`` where
    there are none), thresholds are chosen on the rows ``val``, and rows ``train`` are left out.
    Where it has a column ``fold``, the scores are out-of-fold: pooled and per fold.

    Args:
        predictions: one row per image, checked by ``check_predictions``.
        out: the report's folder; an older report there is replaced whole.
        context: facts for the reader.
        validation: the rows that thresholds are chosen on, where they come apart from the table.
        aggregation: ``mean``, ``max`` or ``noisy_or``: how the scores of a breast's, exam's or
            patient's images are joined.
        resamples: how many times patients are drawn for the intervals.
        seed: of the draws.
        prevalence: share of positives where the model is to be used.
        miss_cost: how many false alarms one miss counts as, for the cost threshold.
        reader: radiologists that the exam level is set beside.
        stratify_by: columns; those of ``known_strata`` when None.
        thumbnail: gives a PNG file of one image by its ``image_id``, with saliency and lesion
            marks drawn in if there are any, or None; asked for the worst errors alone.

    Returns:
        What stands in ``metrics.json``.

    Raises:
        InputError: the table fails a check, or a patient is both judged and validated on.
    """
    joined = check_choices(
        aggregation=aggregation,
        resamples=resamples,
        prevalence=prevalence,
        miss_cost=miss_cost,
        reader=reader,
    )
    table = check_predictions(predictions)
    judged, chosen_on, counts = _parts(
        table,
        None if validation is None else check_predictions(validation, source="the validation rows"),
    )
    labelled = judged[judged["label"].notna()].reset_index(drop=True)
    if labelled.empty:
        raise InputError(
            "None of the rows to be judged has a label: fill in the column label (1 or 0), or "
            "choose the part of the split that has one."
        )
    counts |= {"images_without_label": len(judged) - len(labelled)} | count_units(labelled)

    units = {level: aggregate(labelled, level, joined) for level in Level}
    assessments = {}
    for level, rows in units.items():
        thresholds: list[Threshold] = []
        if len(chosen_on):
            apart = aggregate(chosen_on, level, joined)
            thresholds = choose_thresholds(
                apart["label"], apart["score"], miss_cost=miss_cost, prevalence=prevalence
            )
        assessments[level] = assess(
            rows,
            thresholds=thresholds,
            resamples=resamples,
            seed=seed,
            prevalence=prevalence,
            reader=reader if level is Level.EXAM else None,
        )
    columns = known_strata(labelled) if stratify_by is None else list(stratify_by)
    if context.created is None:
        context = _dated(context)
    errors = _worst(units[Level.IMAGE])
    report = Report(
        context=context,
        computation=Computation(
            joined, resamples, seed, prevalence, miss_cost, len(chosen_on), reader
        ),
        counts=counts,
        levels=assessments,
        units=units,
        predictions=_all_rows(table, validation, chosen_on),
        strata=stratify(labelled, columns, aggregation=joined, resamples=resamples, seed=seed),
        folds=_folds(labelled, joined, resamples, seed),
        errors=errors,
        thumbnails={} if thumbnail is None else _pictured(errors, thumbnail),
    )
    return write_report(report, out)


def compare_predictions(
    tables: Mapping[str, pd.DataFrame],
    out: Path,
    *,
    context: ReportContext,
    intersect: bool = False,
    aggregation: str = Aggregation.MEAN,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, object]:
    """Write the comparison of two models or more on the same images.

    Of a table with a column ``split`` the rows ``test`` count, or ``val`` where there are none.

    Args:
        tables: by the model's name, one row per image, as for ``evaluate_predictions``.
        out: the folder; an older report there is replaced whole.
        context: facts for the reader.
        intersect: compare on the images that all have, where they differ.
        aggregation: ``mean``, ``max`` or ``noisy_or``.
        resamples: how many times patients are drawn.
        seed: of the draws.

    Returns:
        What stands in ``metrics.json``.

    Raises:
        InputError: a table fails a check, or the tables are on different images.
    """
    joined = check_choices(aggregation=aggregation, resamples=resamples)
    judged = {}
    for name, table in tables.items():
        rows, _, _ = _parts(check_predictions(table, source=f"the predictions of {name}"), None)
        judged[name] = rows[rows["label"].notna()].reset_index(drop=True)
    aligned, left_out = on_the_same_images(judged, intersect=intersect)
    alone, paired = compare(aligned, aggregation=joined, resamples=resamples, seed=seed)
    units = {
        name: {level: aggregate(table, level, joined) for level in Level}
        for name, table in aligned.items()
    }
    if context.created is None:
        context = _dated(context)
    return write_comparison(
        Comparison(context, joined, resamples, seed, left_out, alone, paired, units), out
    )


def difference_table(metrics: Mapping[str, object]) -> str:
    """A few lines for the terminal: level, models, difference with its interval, DeLong's p."""
    lines = [f"{'level':<8} difference in AUC [95 % interval, by patient]   DeLong's p"]
    rows = metrics["paired"]
    assert isinstance(rows, Sequence)
    for row in rows:
        shown = "–"
        if row["difference"] is not None:
            shown = f"{row['difference']:+.3f}"
        if row["difference_ci_low"] is not None:
            shown += f" [{row['difference_ci_low']:+.3f}, {row['difference_ci_high']:+.3f}]"
        p = "–" if row["delong_p"] is None else f"{row['delong_p']:.3g}"
        lines.append(f"{row['level']:<8} {row['first']} − {row['second']}: {shown}   p {p}")
    return "\n".join(lines)


def summary_table(metrics: Mapping[str, object]) -> str:
    """A few lines for the terminal: level, units, positives, AUC with its interval."""
    lines = [f"{'level':<8} {'n':>9} {'positive':>9}   AUC [95 % interval, by patient]"]
    for level in Level:
        figures = metrics[level]
        assert isinstance(figures, Mapping)
        auc, low, high = (figures[name] for name in ("auc", "auc_ci_low", "auc_ci_high"))
        shown = "–" if auc is None else f"{auc:.3f}"
        if low is not None:
            shown += f" [{low:.3f}, {high:.3f}]"
        elif figures["remarks"]:
            shown += f"   {figures['remarks'][0]}"
        lines.append(f"{level:<8} {figures['n']:>9,} {figures['n_positive']:>9,}   {shown}")
    return "\n".join(lines)


def check_choices(
    *,
    aggregation: str = Aggregation.MEAN,
    resamples: int = RESAMPLES,
    prevalence: float | None = None,
    miss_cost: float = MISS_COST,
    reader: Reader | None = None,
) -> Aggregation:
    """Check what can be chosen of a report, before hours of scoring; gives the aggregation.

    Raises:
        InputError: a choice that cannot be.
    """
    try:
        joined = Aggregation(aggregation)
    except ValueError:
        raise InputError(
            f"There is no aggregation {aggregation!r}: choose one of {', '.join(Aggregation)}."
        ) from None
    if resamples < 1:
        raise InputError(f"{resamples} resamples give no interval: ask for at least 1, best 2000.")
    if prevalence is not None and not 0.0 < prevalence < 1.0:
        raise InputError(
            f"A prevalence of {prevalence:g} is no share: give one between 0 and 1, such as 0.006."
        )
    if not miss_cost > 0.0:
        raise InputError(f"A miss cannot cost {miss_cost:g} false alarms: give a number above 0.")
    if reader is not None:
        for name, rate in asdict(reader).items():
            if not 0.0 < rate <= 1.0:
                raise InputError(
                    f"The radiologists' {name} of {rate:g} is no share: give one between 0 and 1."
                )
    return joined


def _dated(context: ReportContext) -> ReportContext:
    return replace(context, created=datetime.now().astimezone().isoformat(timespec="seconds"))


def _parts(
    table: pd.DataFrame, validation: pd.DataFrame | None
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """The rows to judge, the labelled rows to choose thresholds on, and how many were left out."""
    judged, chosen_on, left_out = table, table.iloc[:0], 0
    if "split" in table.columns:
        part = table["split"].astype("str").str.strip().str.lower()
        foreign = ~part.isin(list(Split))
        if foreign.any():
            raise InputError(
                f"The column split holds {part[foreign].iloc[0]!r}: each row must be one of "
                f"{', '.join(Split)}, or leave the column out."
            )
        test, val = (part == Split.TEST).to_numpy(), (part == Split.VAL).to_numpy()
        if not (test | val).any():
            raise InputError(
                "All rows are training images, on which any model looks good: hand in predictions "
                "on the parts val and test."
            )
        judged = table[test] if test.any() else table[val]
        chosen_on = table[val] if test.any() else chosen_on
        left_out = int((part == Split.TRAIN).sum())
    if validation is not None:
        chosen_on = validation
    chosen_on = chosen_on[chosen_on["label"].notna()].reset_index(drop=True)
    both = set(chosen_on["patient_id"]) & set(judged["patient_id"])
    if both:
        raise InputError(
            f"{len(both):,} patients are both judged and used to choose thresholds, which flatters "
            "the figures: split by patient, every image of a patient in one part."
        )
    return judged.reset_index(drop=True), chosen_on, {"training_images_left_out": left_out}


def _all_rows(
    table: pd.DataFrame, validation: pd.DataFrame | None, chosen_on: pd.DataFrame
) -> pd.DataFrame:
    """Every row handed in, such that evaluating them again gives the same report."""
    if validation is None:
        return table
    judged = table if "split" in table.columns else table.assign(split=Split.TEST.value)
    judged = judged[judged["split"] != Split.VAL.value]
    return pd.concat([judged, chosen_on.assign(split=Split.VAL.value)], ignore_index=True)


def _folds(
    labelled: pd.DataFrame, aggregation: Aggregation, resamples: int, seed: int
) -> list[dict[str, Estimate]]:
    """AUC by fold of out-of-fold predictions, each level."""
    if "fold" not in labelled.columns or labelled["fold"].nunique() < 2:
        return []
    return [
        {
            "level": level.value,
            "fold": str(fold),
            **auc_with_interval(
                aggregate(rows, level, aggregation), resamples=resamples, seed=seed
            ),
        }
        for level in Level
        for fold, rows in labelled.groupby("fold", sort=True)
    ]


def _pictured(
    errors: Sequence[Mapping[str, Estimate]], thumbnail: Callable[[str], bytes | None]
) -> dict[str, bytes]:
    found = ((str(row["image_id"]), thumbnail(str(row["image_id"]))) for row in errors)
    return {image_id: png for image_id, png in found if png is not None}


def _worst(images: pd.DataFrame) -> list[dict[str, Estimate]]:
    """The highest-scored negatives and the lowest-scored positives."""
    shown = ["image_id", "exam_id", "laterality", "view", "label", "score"]
    negatives = images[images["label"] == 0].nlargest(WORST, "score")
    positives = images[images["label"] == 1].nsmallest(WORST, "score")
    rows: list[dict[str, Estimate]] = []
    for kind, worst in (("false alarm", negatives), ("miss", positives)):
        known = worst[shown].astype(object).where(worst[shown].notna(), None)
        rows += [
            {"kind": kind, **dict(zip(shown, row, strict=True))}
            for row in known.itertuples(index=False)
        ]
    return rows
