"""The report folder: a report goes in; page, figures, tables and metrics.json are written."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.evaluation.measures import LevelResults, number
from mammo_pd.evaluation.schema import SCHEMA_VERSION, metrics_schema
from mammo_pd.report.content import (
    HEADLINE,
    Comparison,
    ExternalValidation,
    Programme,
    Report,
    Row,
)
from mammo_pd.report.figures import Figure, figures_of, overlaid_roc
from mammo_pd.report.render import comparison_page, external_page, report_page
from mammo_pd.table_file import write_csv
from mammo_pd.terms import Level


def write_report(report: Report, out: Path) -> dict[str, object]:
    """Write a report's folder, all or nothing.

    Args:
        report: what to say.
        out: the folder; an older report there is replaced.

    Returns:
        The content of ``metrics.json``.

    Raises:
        InputError: the folder holds something other than a report.
    """
    metrics = metrics_of(report)
    figures = figures_of(report)
    with replacement(out) as folder:
        _write_json(folder / "metrics.json", metrics)
        _write_json(folder / "metrics.schema.json", metrics_schema())
        write_csv(report.predictions, folder / "predictions.csv")
        if report.validation is not None:
            write_csv(report.validation, folder / "validation.csv")
        for level, units in report.units.items():
            write_csv(units, folder / f"predictions_{level}.csv")
        for name, table in _tables(report).items():
            write_csv(table, folder / f"{name}.csv")
        _write_figures(folder, figures)
        (folder / "index.html").write_text(report_page(report, figures), encoding="utf-8")
    return metrics


def write_comparison(comparison: Comparison, out: Path) -> dict[str, object]:
    """Write the folder that compares models, as ``write_report`` writes a report.

    Returns:
        The content of ``metrics.json``: ``alone`` and ``paired`` rows, how they were computed, and
        ``caveats``.

    Raises:
        InputError: the folder holds something other than a report.
    """
    metrics: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "alone": [dict(row) for row in comparison.alone],
        "paired": [dict(row) for row in comparison.paired],
        "computation": {
            "aggregation": comparison.aggregation.value,
            "images_left_out": comparison.left_out,
            "margin": comparison.margin,
            "within_folds": comparison.within_folds,
        },
        "caveats": list(comparison.context.caveats),
    }
    has_curve = any(row["auc"] is not None for row in comparison.alone)
    figures = [overlaid_roc(comparison.units)] if has_curve else []
    with replacement(out) as folder:
        _write_json(folder / "metrics.json", metrics)
        write_csv(pd.DataFrame(map(dict, comparison.alone)), folder / "alone.csv")
        write_csv(pd.DataFrame(map(dict, comparison.paired)), folder / "paired.csv")
        _write_figures(folder, figures)
        text = comparison_page(comparison, figures)
        (folder / "index.html").write_text(text, encoding="utf-8")
    return metrics


def write_external(external: ExternalValidation, folder: Path) -> dict[str, object]:
    """Write the page on several sets beside their own reports.

    Args:
        external: what to say.
        folder: holds the folder of each set's report already.

    Returns:
        The content of ``metrics.json``.
    """
    locked = external.locked
    metrics: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "sets": {one.name: dict(one.metrics) for one in external.sets},
        "folders": {one.name: one.folder for one in external.sets},
        "recalibrated": {
            one.name: {level.value: dict(row) for level, row in one.recalibrated.items()}
            for one in external.sets
        },
        "shared_patients": {one.name: one.shared_patients for one in external.sets},
        "shared_images": {one.name: one.shared_images for one in external.sets},
        "notes": {one.name: list(one.notes) for one in external.sets},
        "locked": locked.content() | {"digest": locked.digest},
    }
    units = {one.name: one.units for one in external.sets}
    figures = [overlaid_roc(units)]
    _write_json(folder / "metrics.json", metrics)
    rows = [
        {"set": one.name, "level": level.value, **_flat(one.metrics[level.value])}
        for one in external.sets
        for level in Level
    ]
    write_csv(pd.DataFrame(rows), folder / "sets.csv")
    points = [
        {"set": one.name, "level": level.value, **point}
        for one in external.sets
        for level in Level
        for point in one.metrics[level.value]["operating_points"]
    ]
    write_csv(pd.DataFrame(points), folder / "operating_points.csv")
    moved = [
        {"set": one.name, "level": level.value, **row}
        for one in external.sets
        for level, row in one.recalibrated.items()
    ]
    if moved:
        write_csv(pd.DataFrame(moved), folder / "recalibrated.csv")
    _write_figures(folder, figures)
    text = external_page(external, figures)
    (folder / "index.html").write_text(text, encoding="utf-8")
    return metrics


def _flat(metrics: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in metrics.items() if not isinstance(value, list)}


def metrics_of(report: Report) -> dict[str, object]:
    """The content of ``metrics.json``: one object per level, then how they were computed.

    Each level has at least ``n, n_positive, auc, auc_ci_low, auc_ci_high``. An undefined value is
    null, and ``remarks`` says why.
    """
    context, computation = report.context, report.computation
    levels = {
        level.value: dict(results.metrics)
        | {
            "operating_points": results.operating_points,
            "lift": results.lift,
            "remarks": results.remarks,
        }
        for level, results in report.levels.items()
    }
    return levels | {
        "schema_version": SCHEMA_VERSION,
        "computation": {
            "aggregation": computation.aggregation.value,
            "interval": "95 %, by patient; the methods are those of docs/statistics.md",
            "prevalence": computation.prevalence,
            "prevalences": {
                level.value: number(share) for level, share in computation.prevalences.items()
            },
            "miss_cost": computation.miss_cost,
            "thresholds_from_images": computation.thresholds_from,
            "reader": None if computation.reader is None else asdict(computation.reader),
            "cross_fitted": computation.cross_fitted,
            "by_fold": computation.by_fold,
            "locked": computation.locked,
        },
        "counts": dict(report.counts),
        "strata": [dict(row) for row in report.strata],
        "within": [dict(row) for row in report.within],
        "folds": [dict(row) for row in report.folds],
        "within_folds": [dict(row) for row in report.within_folds],
        "programme": _programme(report.programme),
        "context": asdict(context)
        | {
            "exclusions": dict(context.exclusions),
            "parts": [dict(row) for row in context.parts],
            "runs": [dict(row) for row in context.runs],
            "seeds": [dict(row) for row in context.seeds],
            "flow": [dict(row) for row in context.flow],
            "tested": list(context.tested),
            "characteristics": [dict(row) for row in context.characteristics],
            "study": dict(context.study),
            "provenance": dict(context.provenance),
        },
    }


def _programme(programme: Programme | None) -> dict[str, object] | None:
    """Its part of metrics.json; the full sweep of thresholds is in thresholds.csv alone."""
    if programme is None:
        return None
    return {
        "level": HEADLINE.value,
        "prevalence": programme.prevalence,
        "per_thousand": [dict(row) for row in programme.outcomes],
        "lesions": [dict(row) for row in programme.lesions],
        "decision_curve": [dict(row) for row in programme.decision_curve],
    }


def _tables(report: Report) -> dict[str, pd.DataFrame]:
    """The report's tables by file name, for spreadsheets and other programs; no empty ones."""

    def by_level(rows: Callable[[LevelResults], Sequence[Row]]) -> list[Row]:
        return [
            {"level": level.value, **row}
            for level, results in report.levels.items()
            for row in rows(results)
        ]

    programme = report.programme
    tables = {
        "metrics": by_level(lambda results: [results.metrics]),
        "operating_points": by_level(lambda results: results.operating_points),
        "lift": by_level(lambda results: results.lift),
        "reliability": by_level(_reliability),
        "calibration_curve": by_level(_smooth_calibration),
        "strata": report.strata,
        "within": report.within,
        "folds": report.folds,
        "within_folds": report.within_folds,
        "per_thousand": programme.outcomes if programme else (),
        "lesions": programme.lesions if programme else (),
        "decision_curve": programme.decision_curve if programme else (),
        "thresholds": programme.sweep if programme else (),
        "runs": report.context.runs,
        "seeds": report.context.seeds,
        "flow": report.context.flow,
        "characteristics": report.context.characteristics,
        "errors": report.errors,
    }
    return {name: pd.DataFrame(map(dict, rows)) for name, rows in tables.items() if rows}


def _reliability(results: LevelResults) -> list[Row]:
    band, n = results.reliability, results.reliability_n
    if band is None or n is None:
        return []
    columns = zip(band.x, band.y, band.low, band.high, n, strict=True)
    return [
        {
            "mean_score": x,
            "observed": y,
            "observed_ci_low": low,
            "observed_ci_high": high,
            "n": int(units),
        }
        for x, y, low, high, units in columns
    ]


def _smooth_calibration(results: LevelResults) -> list[Row]:
    curve = results.smooth_calibration
    if curve is None:
        return []
    columns = zip(curve.score, curve.observed, curve.low, curve.high, strict=True)
    return [
        {"score": x, "observed": y, "observed_ci_low": low, "observed_ci_high": high}
        for x, y, low, high in columns
    ]


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    # NaN is not JSON, though Python writes it: other programs would refuse the file.
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _write_figures(folder: Path, figures: Sequence[Figure]) -> None:
    for figure in figures:
        (folder / f"{figure.name}.svg").write_text(figure.svg, encoding="utf-8")
        (folder / f"{figure.name}.png").write_bytes(figure.png)


@contextmanager
def replacement(out: Path) -> Iterator[Path]:
    """An empty folder that is renamed to ``out`` if the block ends without error.

    Raises:
        InputError: ``out`` holds something other than a report.
    """
    out = out.resolve()
    new, old = out.with_name(f".{out.name}.new"), out.with_name(f".{out.name}.old")
    if old.exists() and not out.exists():  # killed between the two renames below
        old.rename(out)
    _refuse_foreign(out)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        # A folder cannot be renamed onto one that is not empty, hence two renames.
        if out.exists():
            out.rename(old)
        new.rename(out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def check_replaceable(out: Path) -> None:
    """Refuse a folder that no report can be written to, before there is one.

    Raises:
        InputError: ``out`` holds something other than a report, or there is no permission to write
            in the folder above it, where the new report is made.
    """
    out = out.resolve()
    _refuse_foreign(out)
    above = next(place for place in out.parents if place.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(
            f"the report {out} cannot be written: there is no permission to write in {above}; "
            "name another folder with --out."
        )


def _refuse_foreign(out: Path) -> None:
    """Refuse to replace a folder that holds anything but a report."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file: name a folder for the report.")
    here = {entry.name for entry in out.iterdir()}
    if here and not {"metrics.json", "index.html"} <= here:
        raise InputError(
            f"{out} holds files that are not a report, and writing a report replaces the whole "
            "folder: name a new or empty folder."
        )
