"""External validation: a development set and other sets go in, one report on all comes out.

Thresholds and calibration are decided on the first set before any other is read.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.evaluation.levels import Aggregation, units_by_level
from mammo_pd.evaluation.locked import Locked, lock
from mammo_pd.evaluation.measures import Row, calibration_of
from mammo_pd.evaluation.predictions import read_predictions
from mammo_pd.evaluation.prevalence import prevalence_by_level
from mammo_pd.evaluation.thresholds import MISS_COST
from mammo_pd.report.choices import check_choices
from mammo_pd.report.content import ExternalValidation, ReportContext, SetResults
from mammo_pd.report.evaluate import dated, evaluate_predictions
from mammo_pd.report.folder import replacement, write_external
from mammo_pd.report.numbers import with_interval
from mammo_pd.report.row_selection import select_rows
from mammo_pd.terms import Level, Split
from mammo_pd.wording import counted

_MOST_OF_A_NAME = 40


class NothingToLockOnError(InputError):
    """The development set has labels of one class only where thresholds are to be decided."""


@dataclass(frozen=True)
class GivenSet:
    """One set, once it is read.

    Attributes:
        table: predictions, one row per image, checked by ``check_predictions``.
        context: of its own report, but for the title.
        thumbnail: as for ``evaluate_predictions``.
        shared_patients: how many of its patients the development set has too; None to count the
            patient IDs that both tables hold.
        shared_images: how many of its images the development store has too.
        notes: further sentences on it for the reader.
    """

    table: pd.DataFrame
    context: ReportContext
    thumbnail: Callable[[str], Sequence[bytes]] | None = None
    shared_patients: int | None = None
    shared_images: int = 0
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class SetSource:
    """Where a set comes from.

    Attributes:
        name: for people.
        stem: what its folder in the report is named after.
        read: returns the set; called after locking, except for the development set.
    """

    name: str
    stem: str
    read: Callable[[], GivenSet]


def evaluate_sets(
    files: Sequence[Path], out: Path, *, context: ReportContext, **choices: Any
) -> dict[str, object]:
    """Write one report on several tables, the first of which is the development set.

    Args:
        files: CSVs of predictions, as for ``evaluate_file``; two or more.
        out: the report's folder; an older report there is replaced.
        context: what the reader needs to know besides.
        choices: as for `evaluate_sources`.

    Returns:
        As `evaluate_sources`.

    Raises:
        InputError: a table fails a check, or the first one has too few labels to lock anything on.
    """
    context = dated(context) if context.created is None else context

    def read(file: Path) -> GivenSet:
        return GivenSet(read_predictions(file), context)

    sources = [
        SetSource(name, file.stem, partial(read, file))
        for file, name in zip(files, names_of(files, [file.stem for file in files]), strict=True)
    ]
    return evaluate_sources(sources, out, context=context, **choices)


def evaluate_sources(
    sources: Sequence[SetSource],
    out: Path,
    *,
    context: ReportContext,
    aggregation: str = Aggregation.MEAN,
    prevalence: float | None = None,
    prevalence_level: str = Level.EXAM,
    miss_cost: float = MISS_COST,
    **choices: Any,
) -> dict[str, object]:
    """Write one report on several sets, and the whole report of each in a folder of its own.

    The first set is the development set. Thresholds and a recalibration are decided on its rows
    ``val``, or on all of it where it has none, and are locked before the second set is read.

    Args:
        sources: the sets; two or more.
        out: the report's folder; an older report there is replaced.
        context: of the page on all sets.
        aggregation: how the scores of a unit's images are aggregated.
        prevalence: share of positives in the intended use.
        prevalence_level: the level that it is a share of; the others follow.
        miss_cost: cost of a missed positive in false alarms, for the cost threshold.
        choices: further ones, as for ``evaluate_predictions``.

    Returns:
        The content of ``metrics.json``: ``sets`` with the metrics of each by name, and ``locked``.

    Raises:
        InputError: a table fails a check.
        NothingToLockOnError: the first one has labels of one class only.
    """
    how: dict[str, Any] = {
        "aggregation": aggregation,
        "prevalence": prevalence,
        "prevalence_level": prevalence_level,
        "miss_cost": miss_cost,
        **choices,
    }
    aggregated_by = check_choices(**how)
    context = dated(context) if context.created is None else context
    with replacement(out) as folder:
        development, *others = sources
        first = development.read()
        locked = _lock(first.table, development.name, aggregated_by, how)
        patients = set(first.table["patient_id"])
        sets = []
        for number, source in enumerate((development, *others), start=1):
            # Read only now, so that it cannot have influenced what is locked.
            given = first if source is development else source.read()
            # Of the development set, only rows not used for locking are a test.
            tested = locked if source is not development or locked.part == Split.VAL else None
            inside = _folder_name(number, source.stem)
            metrics = evaluate_predictions(
                given.table,
                folder / inside,
                context=replace(given.context, title=f"{context.title}: {source.name}"),
                thumbnail=given.thumbnail,
                locked=tested,
                **how,
            )
            rows, _, _ = select_rows(given.table, None)
            units = units_by_level(rows, aggregated_by)
            shared = given.shared_patients
            if shared is None:
                shared = len(patients & set(given.table["patient_id"]))
            sets.append(
                SetResults(
                    source.name,
                    inside,
                    metrics,
                    units,
                    {} if tested is None else _recalibrated(units, locked),
                    0 if source is development else shared,
                    given.shared_images,
                    given.notes,
                    given.context.phantom,
                )
            )
        return write_external(ExternalValidation(context, sets, locked), folder)


def sets_table(metrics: Mapping[str, Any]) -> str:
    """A few lines for the terminal: by set and level units, positives and AUC with interval."""
    lines = [f"{'set':<24} {'level':<8} {'n':>9} {'positive':>9}   AUC [95 % interval, by patient]"]
    for name, of_set in metrics["sets"].items():
        for level in Level:
            row = of_set[level]
            lines.append(
                f"{name[:24]:<24} {level:<8} {row['n']:>9,} {row['n_positive']:>9,}   "
                f"{with_interval(row)}"
            )
    locked = metrics["locked"]
    lines.append(
        f"note: thresholds and calibration were decided on {counted(locked['images'], 'image')} of "
        f"the first set and locked before the others were read (SHA-256 {locked['digest'][:12]}…)"
    )
    lines += [
        f"note: {name} shares {counted(shared, 'patient ID')} with the first set: if these are the "
        "same women, it is not external"
        for name, shared in metrics["shared_patients"].items()
        if shared
    ]
    lines += [
        f"note: {name}: {note}"
        for name, notes in metrics.get("notes", {}).items()
        for note in notes
    ]
    return "\n".join(lines)


def _lock(
    table: pd.DataFrame, name: str, aggregation: Aggregation, how: Mapping[str, Any]
) -> Locked:
    """Decide on the validation rows, or on all rows where there are none."""
    evaluated, chosen_on, _ = select_rows(table, None)
    part, rows = (Split.VAL.value, chosen_on) if len(chosen_on) else ("all", evaluated)
    intended: dict[Level, float] = {}
    if how["prevalence"] is not None:
        units = units_by_level(evaluated, aggregation)
        intended = prevalence_by_level(units, how["prevalence"], Level(how["prevalence_level"]))
    locked = lock(
        rows, part=part, aggregation=aggregation, miss_cost=how["miss_cost"], prevalence=intended
    )
    if not all(locked.thresholds.values()):
        raise NothingToLockOnError(
            f"the set {name} has labels of one class only where thresholds are to be decided "
            f"({'rows with split = val' if part == Split.VAL else 'all rows'}): name the "
            "development set first, with both classes."
        )
    return locked


def _recalibrated(units: Mapping[Level, pd.DataFrame], locked: Locked) -> dict[Level, Row]:
    """The calibration of a set once the locked line is applied to its scores."""
    found: dict[Level, Row] = {}
    for level, rows in units.items():
        line = locked.calibration[level]
        label = rows["label"].to_numpy(dtype=np.float64)
        if line is None or not 0.0 < label.mean() < 1.0:
            continue
        score = line(rows["score"].to_numpy(dtype=np.float64))
        found[level] = calibration_of(rows.assign(score=score))
    return found


def names_of(places: Sequence[Path], stems: Sequence[str]) -> list[str]:
    """A name for each set: its own, with its folder's or a number where two are the same."""
    names: list[str] = []
    for number, (place, own) in enumerate(zip(places, stems, strict=True), start=1):
        name = own if own not in names else f"{place.parent.name}/{own}"
        names.append(name if name not in names else f"{name} ({number})")
    return names


def _folder_name(number: int, stem: str) -> str:
    """A folder name of letters, digits, dots and dashes."""
    inside = re.sub(r"[^A-Za-z0-9.-]+", "-", stem).strip(".-")[:_MOST_OF_A_NAME]
    return f"{number}-{inside}" if inside else str(number)
