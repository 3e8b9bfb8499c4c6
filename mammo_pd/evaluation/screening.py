"""What a screening programme reads: rates at operating points go in, women per 1,000 come out."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mammo_pd.evaluation.measures import Row, Scalar
from mammo_pd.evaluation.rates import Decisions, Rate
from mammo_pd.evaluation.thresholds import Reader

SCREENED = 1000.0
OUTCOMES = ("recalled", "found", "missed", "false_alarms")


def per_thousand(
    points: Sequence[Row],
    units: pd.DataFrame,
    metrics: Mapping[str, Scalar],
    *,
    prevalence: float,
    reader: Reader | None = None,
) -> list[Row]:
    """Per 1,000 women screened: recalls, cancers found and missed, false alarms.

    Args:
        points: operating points of the level, as ``LevelResults`` has them.
        units: that they were counted on, ``patient_id, label``.
        metrics: of the level; with a reader, those at the reader's rates.
        prevalence: share of positives among the women, taken as known.
        reader: radiologists, whose rates are taken as known.

    Returns:
        One row per operating point, then with a reader those of the radiologists, of the model at
        their sensitivity, and at their specificity (``code`` is ``reader``,
        ``at_reader_sensitivity``, ``at_reader_specificity``): ``code, rule``, and with limits,
        where there are any, ``recalled, found, missed, false_alarms``, in women.
    """
    rows: list[Row] = []
    for point in points:
        decided = Decisions.of(units, _count(point, "tp"), _count(point, "fp"))
        outcome = _outcome(decided.sensitivity, 1.0 - decided.false_alarms, prevalence)
        rows.append({"code": point["code"], "rule": point["rule"], **outcome})
    if reader is None or metrics.get("auc") is None:
        return rows
    sensitivity, specificity = _known(reader.sensitivity), _known(reader.specificity)
    as_sensitive = _rate(metrics, "specificity_at_reader_sensitivity")
    as_specific = _rate(metrics, "sensitivity_at_reader_specificity")
    beside = {
        "reader": ("radiologists", sensitivity, specificity),
        "at_reader_sensitivity": (
            "model at the radiologists' sensitivity",
            sensitivity,
            as_sensitive,
        ),
        "at_reader_specificity": (
            "model at the radiologists' specificity",
            as_specific,
            specificity,
        ),
    }
    return [
        *rows,
        *(
            {"code": code, "rule": rule, **_outcome(found, spared, prevalence)}
            for code, (rule, found, spared) in beside.items()
        ),
    ]


def _outcome(sensitivity: Rate, specificity: Rate, prevalence: float) -> Row:
    ill, well = SCREENED * prevalence, SCREENED * (1.0 - prevalence)
    found, false_alarms = sensitivity * ill, (1.0 - specificity) * well
    outcomes = (found + false_alarms, found, (1.0 - sensitivity) * ill, false_alarms)
    row: Row = {}
    for name, rate in zip(OUTCOMES, outcomes, strict=True):
        row |= rate.column(name, 0)
    return row


def _count(row: Mapping[str, Scalar], name: str) -> int:
    return int(row[name] or 0)


def _rate(row: Mapping[str, Scalar], name: str) -> Rate:
    cells = (row.get(f"{name}{end}") for end in ("", "_ci_low", "_ci_high"))
    return Rate(*(np.array([np.nan if cell is None else float(cell)]) for cell in cells))


def _known(rate: float) -> Rate:
    """A rate without uncertainty."""
    value = np.array([rate])
    return Rate(value, value, value)
