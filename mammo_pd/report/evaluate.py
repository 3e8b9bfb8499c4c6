"""Evaluation: tables of predictions go in, a report folder comes out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa

from mammo_pd.errors import InputError
from mammo_pd.evaluation.chosen_cutoffs import choose_cutoffs
from mammo_pd.evaluation.compare import compare, folds_of_tables, on_the_same_images
from mammo_pd.evaluation.cutoffs import Cutoff, operating_points
from mammo_pd.evaluation.decision_curve import decision_curve
from mammo_pd.evaluation.levels import (
    Aggregation,
    aggregate,
    count_units,
    units_by_level,
    with_known_label,
)
from mammo_pd.evaluation.locked import Locked
from mammo_pd.evaluation.measures import LevelResults, Row, assess, auc_with_interval
from mammo_pd.evaluation.predictions import check_predictions, read_predictions
from mammo_pd.evaluation.prevalence import prevalence_by_level
from mammo_pd.evaluation.screening import per_thousand
from mammo_pd.evaluation.strata import found_by_lesion, known_strata, stratify
from mammo_pd.evaluation.threshold_sweep import sweep_thresholds
from mammo_pd.evaluation.thresholds import MISS_COST, Reader
from mammo_pd.evaluation.within import within_folds, within_strata
from mammo_pd.report.choices import check_choices
from mammo_pd.report.content import (
    HEADLINE,
    Comparison,
    Computation,
    Programme,
    Report,
    ReportContext,
)
from mammo_pd.report.folder import write_comparison, write_report
from mammo_pd.report.listed_errors import clearest_errors, thumbnails_of
from mammo_pd.report.notes import data_notes, margin_verdicts, remarks_with_levels
from mammo_pd.report.numbers import between, fixed, significance, with_interval
from mammo_pd.report.participants import with_participants
from mammo_pd.report.row_selection import are_validation, by_image, every_row, select_rows
from mammo_pd.terms import Level, Split

_VALIDATION = (
    "These are validation images, on which a model's epoch and settings are chosen: the results "
    "are optimistic, and no test. There are no test rows (split = test)."
)

_RANK_ALIKE = "If two models rank all units alike, there is no interval of the difference."
_SAME_OF_ALL = (
    "If every patient adds the same to a difference, as where one model separates the classes "
    "perfectly and the other ranks no positive unlike another, nothing shows how it varies: there "
    "is no interval and no p."
)
_ROUNDING = 1e-12


def evaluate_file(
    path: Path,
    out: Path,
    *,
    context: ReportContext | None = None,
    aggregation: str = Aggregation.MEAN,
    prevalence: float | None = None,
    prevalence_level: str = Level.EXAM,
    miss_cost: float = MISS_COST,
    reader: Reader | None = None,
    stratify_by: Sequence[str] | None = None,
    within: Sequence[str] = (),
) -> dict[str, object]:
    """Write the report on a CSV of predictions from any tool.

    Arguments, result and errors are those of ``evaluate_predictions``.
    """
    return evaluate_predictions(
        read_predictions(path),
        out,
        context=ReportContext() if context is None else context,
        aggregation=aggregation,
        prevalence=prevalence,
        prevalence_level=prevalence_level,
        miss_cost=miss_cost,
        reader=reader,
        stratify_by=stratify_by,
        within=within,
    )


def evaluate_predictions(
    predictions: pd.DataFrame,
    out: Path,
    *,
    context: ReportContext,
    validation: pd.DataFrame | None = None,
    validation_by_fold: Mapping[str, pd.DataFrame] | None = None,
    aggregation: str = Aggregation.MEAN,
    prevalence: float | None = None,
    prevalence_level: str = Level.EXAM,
    miss_cost: float = MISS_COST,
    reader: Reader | None = None,
    stratify_by: Sequence[str] | None = None,
    within: Sequence[str] = (),
    thumbnail: Callable[[str], Sequence[bytes]] | None = None,
    locked: Locked | None = None,
) -> dict[str, object]:
    """Write the report on a table of predictions.

    If the table has a column ``split``, the rows ``test`` are evaluated (the rows ``val`` if there
    are none), thresholds are chosen on the rows ``val``, and the rows ``train`` are excluded. If it
    has a column ``fold``, the scores are out-of-fold and are evaluated pooled, within folds and per
    fold; without validation rows the thresholds of each fold are chosen on the other folds.

    Args:
        predictions: one row per image, checked by ``check_predictions``.
        out: the report's folder; an older report there is replaced.
        context: what the reader needs to know besides.
        validation: the rows to choose thresholds on, if they are not in the table.
        validation_by_fold: of out-of-fold predictions, by fold the rows to choose its thresholds
            on: validation images, scored by the model that the fold tests. They take the other
            folds' place, unless a fold has one class only at some level.
        aggregation: ``mean``, ``max`` or ``noisy_or``: how the scores of a breast's, exam's or
            patient's images are aggregated.
        prevalence: share of positives in the intended use.
        prevalence_level: the level that it is a share of; the others follow.
        miss_cost: cost of a missed positive in false alarms, for the cost threshold.
        reader: radiologists to compare the exam level with.
        stratify_by: columns; those of ``known_strata`` when None.
        within: columns that a positive and the negatives it is compared with must share, for the
            AUC within strata; none for no such AUC.
        thumbnail: returns a PNG of the image with this ``image_id`` and, where there is one, a
            second with what the model attended to drawn in; nothing where there is no picture.
            Called for the images of the listed exams only.
        locked: thresholds that were decided on another set; none are chosen here.

    Returns:
        The content of ``metrics.json``.

    Raises:
        InputError: the table fails a check, a patient is on two sides of its split (or both
            evaluated and used to choose thresholds) or in several of its folds, some rows have a
            fold and others none, or
            ``validation_by_fold`` has other folds than the table.
    """
    aggregated_by = check_choices(
        aggregation=aggregation,
        prevalence=prevalence,
        prevalence_level=prevalence_level,
        miss_cost=miss_cost,
        reader=reader,
        within=within,
    )
    # Sorted as they will be evaluated, so that memory holds only one copy.
    table = by_image(check_predictions(predictions))
    del predictions
    evaluated, of_validation, training_rows = select_rows(
        table,
        None if validation is None else check_predictions(validation, source="the validation rows"),
    )
    if evaluated["label"].isna().all():
        raise InputError(
            "None of the rows to evaluate has a label: fill in the column label (1 or 0), or "
            "choose rows that have one."
        )
    counts = {"training_images_left_out": training_rows, **count_units(evaluated)}
    units = units_by_level(evaluated, aggregated_by)
    _return_freed_memory()
    intended: dict[Level, float] = {}
    if prevalence is not None:
        intended = prevalence_by_level(units, prevalence, Level(prevalence_level))

    chosen = choose_cutoffs(
        units,
        evaluated=evaluated,
        locked=locked,
        validation=of_validation,
        validation_by_fold=validation_by_fold,
        aggregation=aggregated_by,
        miss_cost=miss_cost,
        prevalence=intended,
    )
    caveats = [_VALIDATION] if are_validation(evaluated) else []
    results = {
        level: _judged(
            rows,
            chosen.by_level[level],
            prevalence=intended.get(level),
            reader=reader if level is Level.EXAM else None,
            caveats=[*caveats, *context.caveats],
        )
        for level, rows in units.items()
    }

    errors = clearest_errors(evaluated, units[HEADLINE], chosen.fixed.get(HEADLINE))
    report = Report(
        context=_completed(context, table, evaluated, of_validation),
        computation=Computation(
            aggregated_by,
            prevalence,
            intended,
            miss_cost,
            chosen.images,
            reader,
            cross_fitted=chosen.cross_fitted,
            by_fold=chosen.by_fold,
            locked=chosen.locked,
        ),
        counts=counts,
        levels=results,
        units=units,
        # With locked thresholds nothing is chosen on validation rows.
        predictions=every_row(
            table, validation, of_validation if locked is None else of_validation[:0]
        ),
        within=within_strata(evaluated, within, aggregation=aggregated_by) if within else (),
        strata=stratify(
            evaluated,
            known_strata(evaluated) if stratify_by is None else list(stratify_by),
            aggregation=aggregated_by,
            # Of all levels or of none: one may lack a class among the validation images.
            cutoffs=chosen.fixed if len(chosen.fixed) == len(Level) else None,
        ),
        programme=_programme(
            results[HEADLINE],
            units[HEADLINE],
            chosen.by_level[HEADLINE],
            _lesions(evaluated, aggregated_by, chosen.fixed.get(HEADLINE)),
            prevalence=intended.get(HEADLINE),
            reader=reader,
        ),
        folds=_folds(evaluated, aggregated_by),
        within_folds=within_folds(evaluated, aggregation=aggregated_by),
        validation=_joined(validation_by_fold) if chosen.by_fold and validation_by_fold else None,
        errors=errors,
        thumbnails={} if thumbnail is None else thumbnails_of(errors, thumbnail),
    )
    _return_freed_memory()
    return write_report(report, out)


def _judged(
    units: pd.DataFrame,
    cutoffs: Sequence[Cutoff],
    *,
    prevalence: float | None,
    reader: Reader | None,
    caveats: Sequence[str],
) -> LevelResults:
    """Every metric of one level, and what its cutoffs decide; the caveats precede the remarks."""
    common = [cutoff.threshold for cutoff in cutoffs if cutoff.by_fold is None]
    results = assess(units, thresholds=common, prevalence=prevalence, reader=reader)
    results.remarks[:0] = caveats
    if len(common) == len(cutoffs):
        return results
    # Thresholds that differ between folds are not points of the pooled curve.
    return replace(results, operating_points=operating_points(units, cutoffs, prevalence))


def _completed(
    context: ReportContext,
    table: pd.DataFrame,
    evaluated: pd.DataFrame,
    of_validation: pd.DataFrame,
) -> ReportContext:
    """The context with what the rows themselves tell, where nobody told more."""
    if are_validation(evaluated):
        context = replace(context, split_part=Split.VAL.value)
    if context.created is None:
        context = dated(context)
    return with_participants(context, table, evaluated, of_validation)


def _return_freed_memory() -> None:
    """Return the memory of freed columns to the system, which allocators keep for later ones."""
    # The first holds text, the second is the C library's, which also serves NumPy.
    for pool in (pa.default_memory_pool(), pa.system_memory_pool()):
        pool.release_unused()


def compare_predictions(
    tables: Mapping[str, pd.DataFrame],
    out: Path,
    *,
    context: ReportContext,
    intersect: bool = False,
    aggregation: str = Aggregation.MEAN,
    margin: float | None = None,
) -> dict[str, object]:
    """Write the comparison of two or more models on the same images.

    Rows are chosen by the column ``split``, if any, as in ``evaluate_predictions``.

    Args:
        tables: by the model's name, one row per image, as for ``evaluate_predictions``.
        out: the folder; an older report there is replaced.
        context: what the reader needs to know besides.
        intersect: where the images differ, compare on those that are in every table.
        aggregation: ``mean``, ``max`` or ``noisy_or``.
        margin: how much smaller an AUC may be and still count as not worse; None not to ask.

    Returns:
        The content of ``metrics.json``.

    Raises:
        InputError: a table fails a check, or the tables are on different images.
    """
    aggregated_by = check_choices(aggregation=aggregation, margin=margin)
    evaluated: dict[str, pd.DataFrame] = {}
    for name, table in tables.items():
        checked = check_predictions(table, source=f"the predictions of {name}")
        rows, _, _ = select_rows(checked, None)
        evaluated[name] = rows
    aligned, left_out = on_the_same_images(evaluated, intersect=intersect)
    alone, paired = compare(aligned, aggregation=aggregated_by, margin=margin)
    units = {name: units_by_level(table, aggregated_by) for name, table in aligned.items()}
    if context.created is None:
        context = dated(context)
    if of_validation := [name for name, rows in evaluated.items() if are_validation(rows)]:
        caveat = _VALIDATION
        if len(of_validation) < len(evaluated):
            caveat += f" ({', '.join(of_validation)})"
        context = replace(context, caveats=[*context.caveats, caveat])
    return write_comparison(
        Comparison(
            context,
            aggregated_by,
            left_out,
            alone,
            paired,
            units,
            margin,
            within_folds=bool(folds_of_tables(aligned)),
        ),
        out,
    )


def difference_table(metrics: Mapping[str, object]) -> str:
    """A few lines for the terminal: level, models, difference with its interval, p; caveats."""
    rows, alone, how = metrics["paired"], metrics["alone"], metrics["computation"]
    caveats = metrics["caveats"]
    assert isinstance(caveats, Sequence)
    assert isinstance(rows, Sequence)
    assert isinstance(alone, Sequence)
    assert isinstance(how, Mapping)
    several = len({(row["first"], row["second"]) for row in rows}) > 1
    adjusted = ", and adjusted for all pairs (Holm)" if several else ""
    measure = "difference in AUC" + (" within folds" if how["within_folds"] else "")
    lines = [f"{'level':<8} {measure} [95 % interval], p; both by patient{adjusted}"]
    for row in rows:
        difference = fixed(row["difference"], sign="+")
        interval = between(row, "difference_ci", sign="+")
        p = "   p " + significance(row["p"])
        if several:
            p += f" (Holm {significance(row['p_holm'])})"
        shown = " ".join(filter(None, [difference, interval]))
        lines.append(f"{row['level']:<8} {row['first']} − {row['second']}: {shown}{p}")
    lines += [f"note: {verdict}" for verdict in margin_verdicts(rows, how["margin"])]
    for sentence, differ in ((_RANK_ALIKE, False), (_SAME_OF_ALL, True)):
        if where := [
            f"{row['level']} level" + f", {row['first']} and {row['second']}" * several
            for row in rows
            if row["se"] == 0 and (abs(row["difference"]) > _ROUNDING) is differ
        ]:
            lines.append(f"note: {sentence} ({'; '.join(where)})")
    lines += [f"note: {caveat}" for caveat in caveats]
    remarks: dict[str, list[str]] = {}
    for row in alone:
        if row["remark"] is not None:
            remarks.setdefault(f"{row['level']} level, {row['model']}", []).append(row["remark"])
    for remark, where in remarks_with_levels(remarks).items():
        lines.append(f"note: {remark} ({'; '.join(where)})")
    return "\n".join(lines)


def summary_table(metrics: Mapping[str, object]) -> str:
    """A few lines for the terminal: by level units, positives and AUC with interval; caveats."""
    lines = [f"{'level':<8} {'n':>9} {'positive':>9}   AUC [95 % interval, by patient]"]
    remarks, counts = {}, metrics["counts"]
    assert isinstance(counts, Mapping)
    for level in Level:
        results = metrics[level]
        assert isinstance(results, Mapping)
        shown = with_interval(results)
        lines.append(f"{level:<8} {results['n']:>9,} {results['n_positive']:>9,}   {shown}")
        remarks[level.value] = results["remarks"]
    context = metrics["context"]
    assert isinstance(context, Mapping)
    scored_by = "ensemble" if context["seeds"] else "model"
    lines += _within_lines(metrics["within_folds"], scored_by)
    lines += _within_lines(metrics["within"])
    lines += [f"note: {note}" for note in data_notes(counts)]
    for remark, levels in remarks_with_levels(remarks).items():
        lines.append(f"note: {remark} ({', '.join(levels)} level)")
    return "\n".join(lines)


def _within_lines(rows: object, scored_by: str = "model") -> list[str]:
    """The AUC within strata as ``summary_table`` shows that of all; nothing without rows.

    Args:
        rows: as ``within_strata`` returns them.
        scored_by: what scored a fold.
    """
    assert isinstance(rows, Sequence)
    lines, remarks = [], {}
    for row in rows:
        units = f"{row['n']:>9,} {row['n_positive']:>9,}"
        lines.append(f"{row['level']:<8} {units}   {with_interval(row)}")
        remarks[row["level"]] = [] if row["remark"] is None else [row["remark"]]
    if lines:
        columns = rows[0]["columns"].replace(", ", " and ")
        if columns == "fold":
            columns += f" (one {scored_by}'s scores)"
        lines.insert(0, f"compared only with negatives of the same {columns}:")
    for remark, levels in remarks_with_levels(remarks).items():
        lines.append(f"note: {remark} ({', '.join(levels)} level)")
    return lines


def dated(context: ReportContext) -> ReportContext:
    """The same context, created now."""
    return replace(context, created=datetime.now().astimezone().isoformat(timespec="seconds"))


def _joined(by_fold: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([rows.assign(fold=name) for name, rows in by_fold.items()], ignore_index=True)


def _folds(rows: pd.DataFrame, aggregation: Aggregation) -> list[Row]:
    """AUC by level and fold of out-of-fold predictions."""
    # A single fold would repeat the overall result.
    if "fold" not in rows.columns or rows["fold"].nunique() < 2:
        return []
    return [
        {
            "level": level.value,
            "fold": str(fold),
            **auc_with_interval(aggregate(with_known_label(within, level), level, aggregation)),
        }
        for level in Level
        for fold, within in rows.groupby("fold", sort=True)
    ]


def _lesions(
    evaluated: pd.DataFrame, aggregation: Aggregation, cutoff: Cutoff | None
) -> Sequence[Row]:
    """Cancers found by type and size at a cutoff of the headline level; none without one."""
    if cutoff is None:
        return ()
    return found_by_lesion(evaluated, level=HEADLINE, aggregation=aggregation, cutoff=cutoff)


def _programme(
    results: LevelResults,
    units: pd.DataFrame,
    cutoffs: Sequence[Cutoff],
    lesions: Sequence[Row],
    *,
    prevalence: float | None,
    reader: Reader | None,
) -> Programme | None:
    """What a screening programme reads; None where there is one class only."""
    if results.roc is None:
        return None
    own = float(units["label"].mean())
    share = own if prevalence is None else prevalence
    return Programme(
        prevalence=share,
        outcomes=per_thousand(
            results.operating_points, units, results.metrics, prevalence=share, reader=reader
        ),
        lesions=lesions,
        decision_curve=decision_curve(units, prevalence=prevalence, reader=reader),
        # Thresholds that differ between folds are not points of the pooled scores.
        sweep=sweep_thresholds(
            units, [cutoff.value for cutoff in cutoffs if cutoff.by_fold is None], prevalence
        ),
    )
