"""What a screening programme reads: rates at operating points go in, women per 1,000 come out."""

from collections.abc import Mapping, Sequence

import numpy as np

from mammo_pd.evaluation.measures import Row, Scalar
from mammo_pd.evaluation.rates import Rate
from mammo_pd.evaluation.thresholds import Reader

SCREENED = 1000.0
OUTCOMES = ("recalled", "found", "missed", "false_alarms")


def per_thousand(
    points: Sequence[Row],
    metrics: Mapping[str, Scalar],
    *,
    prevalence: float,
    reader: Reader | None = None,
) -> list[Row]:
    """Of 1,000 women screened: recalled, cancers found and missed, recalled in vain.

    Args:
        points: operating points of the level, as ``LevelResults`` has them.
        metrics: of the level; with a reader, those at the reader's rates.
        prevalence: share of positives among the women, taken as known.
        reader: radiologists, whose rates are taken as known.

    Returns:
        One row per operating point, then with a reader those of the radiologists, of the model at
        their sensitivity, and at their specificity (``code`` is ``reader``,
        ``at_reader_sensitivity``, ``at_reader_specificity``): ``code, rule``, and with limits,
        where there are any, ``recalled, found, missed, false_alarms``, in women.
    """
    of_model = [
        (point["code"], point["rule"], _rate(point, "sensitivity"), _rate(point, "specificity"))
        for point in points
    ]
    beside = []
    if reader is not None and metrics.get("auc") is not None:
        sensitivity, specificity = _known(reader.sensitivity), _known(reader.specificity)
        beside = [
            ("reader", "radiologists", sensitivity, specificity),
            (
                "at_reader_sensitivity",
                "model at the radiologists' sensitivity",
                sensitivity,
                _rate(metrics, "specificity_at_reader_sensitivity"),
            ),
            (
                "at_reader_specificity",
                "model at the radiologists' specificity",
                _rate(metrics, "sensitivity_at_reader_specificity"),
                specificity,
            ),
        ]
    ill, well = SCREENED * prevalence, SCREENED * (1.0 - prevalence)
    rows: list[Row] = []
    for code, rule, sensitivity, specificity in (*of_model, *beside):
        found, false_alarms = sensitivity * ill, (1.0 - specificity) * well
        outcomes = (found + false_alarms, found, (1.0 - sensitivity) * ill, false_alarms)
        row: Row = {"code": code, "rule": rule}
        for name, rate in zip(OUTCOMES, outcomes, strict=True):
            row |= rate.column(name, 0)
        rows.append(row)
    return rows


def _rate(row: Mapping[str, Scalar], name: str) -> Rate:
    cells = (row.get(f"{name}{end}") for end in ("", "_ci_low", "_ci_high"))
    return Rate(*(np.array([np.nan if cell is None else float(cell)]) for cell in cells))


def _known(rate: float) -> Rate:
    """A rate without uncertainty."""
    value = np.array([rate])
    return Rate(value, value, value)
