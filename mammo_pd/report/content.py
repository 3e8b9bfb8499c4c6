"""The report folder: figures and facts go in; page, plots, tables and metrics.json come out."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.evaluation.levels import Aggregation
from mammo_pd.evaluation.measures import Estimate, LevelResults
from mammo_pd.evaluation.schema import SCHEMA_VERSION, metrics_schema
from mammo_pd.evaluation.thresholds import Reader
from mammo_pd.report import figures
from mammo_pd.report.figures import Picture
from mammo_pd.terms import Level

Row = Mapping[str, Estimate]


@dataclass(frozen=True)
class ReportContext:
    """What the figures cannot know and the reader must: facts from whoever scored the images.

    Attributes:
        title: the page's heading.
        model: the model in one line.
        run_id: of the training run.
        split_name: of the split that kept these patients out of training.
        split_hash: of that split.
        split_part: which part of it is scored here.
        store_fingerprint: of the preprocessing that made the images.
        label_definition: a sentence that says what a positive is.
        exclusions: number of images left out, by reason.
        parts: one row per part of the split; the same columns in each, such as ``part, patients,
            images, positives``.
        phantom: whether the images are phantoms; the page then says so at its head.
        notes: further sentences for the reader.
        pictures: what the pictures of the errors show, in a few sentences; None without pictures.
        created: when, in ISO 8601.
    """

    title: str = "Evaluation of predictions"
    model: str | None = None
    run_id: str | None = None
    split_name: str | None = None
    split_hash: str | None = None
    split_part: str | None = None
    store_fingerprint: str | None = None
    label_definition: str | None = None
    exclusions: Mapping[str, int] = field(default_factory=dict)
    parts: Sequence[Row] = ()
    phantom: bool = False
    notes: Sequence[str] = ()
    pictures: str | None = None
    created: str | None = None


@dataclass(frozen=True)
class Computation:
    """How the figures were made.

    Attributes:
        aggregation: how the scores of a unit's images were joined.
        resamples: how many times patients were drawn.
        seed: of the draws.
        prevalence: share of positives that figures are re-weighted to, if any.
        miss_cost: how many false alarms one miss counts as, for the cost threshold.
        thresholds_from: number of validation images that thresholds were chosen on; 0 for none.
        reader: radiologists that the exam level is set beside, if any.
    """

    aggregation: Aggregation
    resamples: int
    seed: int
    prevalence: float | None
    miss_cost: float
    thresholds_from: int
    reader: Reader | None = None


@dataclass(frozen=True)
class Report:
    """Everything that a report folder says.

    Attributes:
        context: the facts handed in.
        computation: how the figures were made.
        counts: of the images scored: units, missing keys, incomplete exams, rows without label.
        levels: the figures by level.
        units: the rows behind them by level, as ``aggregate`` returns them.
        predictions: every row given, validation rows too.
        strata: rows as ``stratify`` returns them.
        folds: one row per level and fold: ``level, fold``, then as ``auc_with_interval``.
        errors: one row each of the highest-scored negatives and the lowest-scored positives.
        thumbnails: PNG files of their images by ``image_id``, those that there are.
    """

    context: ReportContext
    computation: Computation
    counts: Mapping[str, int]
    levels: Mapping[Level, LevelResults]
    units: Mapping[Level, pd.DataFrame]
    predictions: pd.DataFrame
    strata: Sequence[Row] = ()
    folds: Sequence[Row] = ()
    errors: Sequence[Row] = ()
    thumbnails: Mapping[str, bytes] = field(default_factory=dict)


def metrics_of(report: Report) -> dict[str, object]:
    """The content of ``metrics.json``: one object per level, then how they were made.

    Each level has at least ``n, n_positive, auc, auc_ci_low, auc_ci_high``. A figure that does not
    exist is null, and ``remarks`` says why.
    """
    context, computation = report.context, report.computation
    levels = {
        level.value: dict(one.figures)
        | {"operating_points": one.operating_points, "lift": one.lift, "remarks": one.remarks}
        for level, one in report.levels.items()
    }
    return levels | {
        "schema_version": SCHEMA_VERSION,
        "computation": {
            "aggregation": computation.aggregation.value,
            "interval": "95 %, resampled by patient; AUC: BCa, all else: percentiles",
            "resamples": computation.resamples,
            "seed": computation.seed,
            "prevalence": computation.prevalence,
            "miss_cost": computation.miss_cost,
            "thresholds_from_images": computation.thresholds_from,
            "reader": None if computation.reader is None else asdict(computation.reader),
        },
        "counts": dict(report.counts),
        "strata": [dict(row) for row in report.strata],
        "folds": [dict(row) for row in report.folds],
        "context": asdict(context)
        | {"exclusions": dict(context.exclusions), "parts": [dict(row) for row in context.parts]},
    }


def draw(report: Report) -> list[Picture]:
    """The plots that the figures allow, in the page's order."""
    shown = {level: one for level, one in report.levels.items() if one.roc is not None}
    pictures = []
    if shown:
        pictures += [
            figures.roc(shown, report.computation.reader),
            figures.precision_recall(shown),
            figures.calibration(shown),
        ]
    pictures.append(
        figures.scores(
            {
                level: (units["label"].to_numpy(), units["score"].to_numpy())
                for level, units in report.units.items()
            }
        )
    )
    if report.strata:
        overall = {
            _group(row): float(auc)
            for row in report.strata
            if (auc := report.levels[Level(str(row["level"]))].figures["auc"]) is not None
        }
        rows = [{**row, "group": _group(row), "name": row["value"]} for row in report.strata]
        pictures.append(figures.forest("strata", rows, overall))
    if report.folds:
        rows = [
            {**row, "group": row["level"], "name": f"fold {row['fold']}"} for row in report.folds
        ]
        overall = {
            level.value: float(auc)
            for level, one in report.levels.items()
            if (auc := one.figures["auc"]) is not None
        }
        pictures.append(figures.forest("folds", rows, overall))
    return pictures


def _group(row: Row) -> str:
    return f"{str(row['column']).replace('_', ' ')} (per {row['level']})"


def tables_of(report: Report) -> dict[str, pd.DataFrame]:
    """The report's tables by file name, for spreadsheets and other programs."""

    def by_level(rows: Callable[[LevelResults], Sequence[Row]]) -> list[Row]:
        return [
            {"level": level.value, **row}
            for level, one in report.levels.items()
            for row in rows(one)
        ]

    tables = {
        "metrics": by_level(lambda one: [one.figures]),
        "operating_points": by_level(lambda one: one.operating_points),
        "lift": by_level(lambda one: one.lift),
        "reliability": by_level(_reliability),
        "strata": report.strata,
        "folds": report.folds,
        "errors": report.errors,
    }
    return {name: pd.DataFrame(map(dict, rows)) for name, rows in tables.items() if rows}


def _reliability(one: LevelResults) -> list[Row]:
    band, n = one.reliability, one.reliability_n
    if band is None or n is None:
        return []
    columns = zip(band.x, band.y, band.low, band.high, n, strict=True)
    return [
        {"mean_score": x, "observed": y, "observed_ci_low": low, "observed_ci_high": high, "n": k}
        for x, y, low, high, k in columns
    ]


def write_report(report: Report, out: Path) -> dict[str, object]:
    """Write the folder beside its place and rename it, so that an old report is whole or gone.

    Args:
        report: what to say.
        out: the folder; an older report there is replaced.

    Returns:
        What stands in ``metrics.json``.

    Raises:
        InputError: the folder holds something that is no report.
    """
    from mammo_pd.report.page import page

    metrics = metrics_of(report)
    pictures = draw(report)
    with replaced_whole(out) as beside:
        write_json(beside / "metrics.json", metrics)
        write_json(beside / "metrics.schema.json", metrics_schema())
        report.predictions.to_csv(beside / "predictions.csv", index=False)
        for level, units in report.units.items():
            units.to_csv(beside / f"predictions_{level}.csv", index=False)
        for name, table in tables_of(report).items():
            table.to_csv(beside / f"{name}.csv", index=False)
        write_pictures(beside, pictures)
        (beside / "index.html").write_text(page(report, pictures), encoding="utf-8")
    return metrics


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison's folder says.

    Attributes:
        context: the facts handed in.
        aggregation: how the scores of a unit's images were joined.
        resamples: how many times patients were drawn.
        seed: of the draws.
        left_out: images that not all models scored, and that are in no figure.
        alone: rows as ``compare`` returns them first.
        paired: rows as ``compare`` returns them second.
        units: the rows behind them by model and level, as ``aggregate`` returns them.
    """

    context: ReportContext
    aggregation: Aggregation
    resamples: int
    seed: int
    left_out: int
    alone: Sequence[Row]
    paired: Sequence[Row]
    units: Mapping[str, Mapping[Level, pd.DataFrame]]


def write_comparison(comparison: Comparison, out: Path) -> dict[str, object]:
    """Write the folder that compares models, as ``write_report`` writes a report.

    Returns:
        What stands in ``metrics.json``: ``alone`` and ``paired`` rows and how they were made.

    Raises:
        InputError: the folder holds something that is no report.
    """
    from mammo_pd.report.page import comparison_page

    metrics: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "alone": [dict(row) for row in comparison.alone],
        "paired": [dict(row) for row in comparison.paired],
        "computation": {
            "aggregation": comparison.aggregation.value,
            "resamples": comparison.resamples,
            "seed": comparison.seed,
            "images_left_out": comparison.left_out,
        },
    }
    pictures = []
    if any(row["auc"] is not None for row in comparison.alone):
        pictures.append(figures.overlaid_roc(comparison.units))
    with replaced_whole(out) as beside:
        write_json(beside / "metrics.json", metrics)
        pd.DataFrame(map(dict, comparison.alone)).to_csv(beside / "alone.csv", index=False)
        pd.DataFrame(map(dict, comparison.paired)).to_csv(beside / "paired.csv", index=False)
        write_pictures(beside, pictures)
        text = comparison_page(comparison, pictures)
        (beside / "index.html").write_text(text, encoding="utf-8")
    return metrics


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON that every reader takes: no NaN."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_pictures(folder: Path, pictures: Sequence[Picture]) -> None:
    """Write each plot as SVG and PNG."""
    for picture in pictures:
        (folder / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
        (folder / f"{picture.name}.png").write_bytes(picture.png)


@contextmanager
def replaced_whole(out: Path) -> Iterator[Path]:
    """Give an empty folder beside ``out``, renamed onto it if the block ends without error.

    Raises:
        InputError: ``out`` holds something that is no report.
    """
    out = out.resolve()
    beside, aside = out.with_name(f".{out.name}.new"), out.with_name(f".{out.name}.old")
    if aside.exists() and not out.exists():  # killed between the two renames below
        aside.rename(out)
    _refuse_foreign(out)
    for left_over in (beside, aside):
        shutil.rmtree(left_over, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        if out.exists():
            out.rename(aside)
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def _refuse_foreign(out: Path) -> None:
    """A folder that is replaced whole must hold nothing but a report."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file: name a folder for the report.")
    here = {entry.name for entry in out.iterdir()}
    if here and not {"metrics.json", "index.html"} <= here:
        raise InputError(
            f"{out} holds files that are no report, and a report replaces its folder whole: name "
            "a new or empty folder."
        )
