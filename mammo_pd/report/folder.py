"""The report folder: a report goes in; page, figures, tables and metrics.json are written."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.evaluation.measures import LevelResults, number
from mammo_pd.evaluation.schema import SCHEMA_VERSION, metrics_schema
from mammo_pd.report.content import Comparison, Report, Row
from mammo_pd.report.figures import Figure, figures_of, overlaid_roc
from mammo_pd.report.render import comparison_page, report_page
from mammo_pd.table_file import write_csv


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
    with _replacement(out) as folder:
        _write_json(folder / "metrics.json", metrics)
        _write_json(folder / "metrics.schema.json", metrics_schema())
        write_csv(report.predictions, folder / "predictions.csv")
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
        The content of ``metrics.json``: ``alone`` and ``paired`` rows and how they were computed.

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
        },
    }
    has_curve = any(row["auc"] is not None for row in comparison.alone)
    figures = [overlaid_roc(comparison.units)] if has_curve else []
    with _replacement(out) as folder:
        _write_json(folder / "metrics.json", metrics)
        write_csv(pd.DataFrame(map(dict, comparison.alone)), folder / "alone.csv")
        write_csv(pd.DataFrame(map(dict, comparison.paired)), folder / "paired.csv")
        _write_figures(folder, figures)
        text = comparison_page(comparison, figures)
        (folder / "index.html").write_text(text, encoding="utf-8")
    return metrics


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
        },
        "counts": dict(report.counts),
        "strata": [dict(row) for row in report.strata],
        "folds": [dict(row) for row in report.folds],
        "context": asdict(context)
        | {
            "exclusions": dict(context.exclusions),
            "parts": [dict(row) for row in context.parts],
            "runs": [dict(row) for row in context.runs],
            "seeds": [dict(row) for row in context.seeds],
        },
    }


def _tables(report: Report) -> dict[str, pd.DataFrame]:
    """The report's tables by file name, for spreadsheets and other programs; no empty ones."""

    def by_level(rows: Callable[[LevelResults], Sequence[Row]]) -> list[Row]:
        return [
            {"level": level.value, **row}
            for level, results in report.levels.items()
            for row in rows(results)
        ]

    tables = {
        "metrics": by_level(lambda results: [results.metrics]),
        "operating_points": by_level(lambda results: results.operating_points),
        "lift": by_level(lambda results: results.lift),
        "reliability": by_level(_reliability),
        "calibration_curve": by_level(_smooth_calibration),
        "strata": report.strata,
        "folds": report.folds,
        "runs": report.context.runs,
        "seeds": report.context.seeds,
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
def _replacement(out: Path) -> Iterator[Path]:
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
