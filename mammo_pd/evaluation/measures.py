"""Every metric of one level: a table of units goes in; estimates, intervals and curves come out.

Point estimates and curves are scikit-learn's where it has them; intervals are ``Uncertainty``'s.

Shapes: n units, g grid points of a band.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from mammo_pd.evaluation.calibration import (
    CalibrationLine,
    Coefficient,
    SmoothCalibration,
    calibration_line,
    reliability_bins,
    smooth_calibration,
)
from mammo_pd.evaluation.intervals import Interval, equal_patients, plain_limits
from mammo_pd.evaluation.levels import Aggregation, aggregate, with_known_label
from mammo_pd.evaluation.roc import (
    Curve,
    Floats,
    Ranking,
    delong_standard_error,
    f1_of_sums,
    normal_interval,
)
from mammo_pd.evaluation.thresholds import (
    FIXED_RATES,
    FLAGGED_SHARES,
    Reader,
    Threshold,
    at_reader,
    lift,
    rates_at,
)
from mammo_pd.evaluation.uncertainty import Uncertainty, auc_interval_by_patient
from mammo_pd.terms import Level

PARTIAL_FROM = 0.90
PARTIAL_AUC = f"partial_auc_{PARTIAL_FROM * 100:.0f}"
# With fewer than 20 units in a bin, its share of positives is mostly noise.
_BINS, _PER_BIN = 10, 20
_GRID = np.linspace(0.0, 1.0, 101)
# Intervals have been shown to hold from five patients per class (docs/statistics.md).
_FEW_PATIENTS = 5
# Where patients of equal size who would determine a mean as precisely are fewer than this share of
# those there are, some intervals were too narrow (benchmarks/unequal_patients.py).
_UNEQUAL = 0.5
# DeLong's interval holds with about this many patients per class; with 72 it is too narrow.
_FOR_DELONG = 100

OPERATING = ("sensitivity", "specificity", "recall_rate", "ppv", "npv")
LIFT = ("sensitivity", "ppv", "lift")

# A cell of a table, ready for JSON; None where the value is undefined.
Scalar = float | int | str | None
Row = dict[str, Scalar]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
        value: NaN where it is undefined.
        interval: low and high; None where there is no interval.
    """

    value: float
    interval: Interval | None = None

    def columns(self, name: str) -> Row:
        """The cells ``name, name_ci_low, name_ci_high``."""
        low, high = self.interval or (None, None)
        return {name: number(self.value), f"{name}_ci_low": low, f"{name}_ci_high": high}


@dataclass(frozen=True)
class Band:
    """A curve and its pointwise 95 % interval.

    Attributes:
        x: (g,) float64.
        y: (g,) float64.
        low: (g,) float64, NaN where there is no interval.
        high: (g,) float64, the same.
    """

    x: Floats
    y: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class LevelResults:
    """The results at one level.

    Attributes:
        metrics: counts, estimates and interval limits by name, ready for JSON; None where a value
            is undefined.
        remarks: a sentence for each metric that is missing or needs caution.
        operating_points: one row per threshold, ready for JSON.
        lift: one row per share flagged, ready for JSON.
        roc: false-positive rate and sensitivity; None with one class only.
        roc_band: sensitivity on a grid of false-positive rates.
        precision_recall: recall and precision; None with one class only.
        precision_recall_band: precision on a grid of recalls.
        reliability: observed share of positives over mean score, one point per bin.
        reliability_n: (bins,) int64, units in each bin.
        smooth_calibration: the same without bins; None with one class only.
    """

    metrics: Row
    remarks: list[str] = field(default_factory=list)
    operating_points: list[Row] = field(default_factory=list)
    lift: list[Row] = field(default_factory=list)
    roc: tuple[Floats, Floats] | None = None
    roc_band: Band | None = None
    precision_recall: tuple[Floats, Floats] | None = None
    precision_recall_band: Band | None = None
    reliability: Band | None = None
    reliability_n: NDArray[np.int64] | None = None
    smooth_calibration: SmoothCalibration | None = None


def number(value: float) -> float | None:
    """A float for JSON, which has no NaN."""
    return None if np.isnan(value) else float(value)


def _count(units: pd.DataFrame) -> Row:
    label = units["label"].to_numpy()
    return {
        "n": len(units),
        "n_positive": int(label.sum()),
        "n_patients": int(units["patient_id"].nunique()),
        "n_positive_patients": int(units["patient_id"][label == 1].nunique()),
        "prevalence": float(label.mean()) if len(label) else None,
    }


def _one_class(units: pd.DataFrame) -> str | None:
    if units.empty:
        return "There are no units of known label."
    positives = int(units["label"].sum())
    if positives and positives < len(units):
        return None
    held = "positive" if positives else "negative"
    return f"Only {held} units ({len(units):,}): a ROC curve and an AUC need both classes."


def _patients_of_each_class(units: pd.DataFrame) -> tuple[int, int]:
    label = units["label"].to_numpy()
    with_positive = units["patient_id"][label == 1].nunique()
    return with_positive, units["patient_id"][label == 0].nunique()


def can_have_intervals(units: pd.DataFrame) -> bool:
    """Whether there are two patients with positives and two with negatives to tell apart."""
    return min(_patients_of_each_class(units)) >= 2


def few_patients(units: pd.DataFrame) -> str | None:
    """The remark where patients are few, or too few for an interval."""
    positive, negative = _patients_of_each_class(units)
    if min(positive, negative) < 2:
        return (
            "No interval: the units of one patient are alike, so it takes at least two patients "
            f"with positives and two with negatives; here there are {positive} and {negative}."
        )
    if min(positive, negative) < _FEW_PATIENTS:
        return (
            f"Few patients: {positive} with positives and {negative} with negatives. With fewer "
            f"than {_FEW_PATIENTS} of a class the estimates may be far off, and their intervals "
            "have not been shown to hold."
        )
    return None


def _unequal_patients(units: pd.DataFrame) -> str | None:
    """The remark where a few patients have most of the units of a class."""
    label = units["label"].to_numpy()
    of_class = [units["patient_id"][label == one] for one in (1, 0)]
    if all(equal_patients(pd.factorize(p)[0]) >= _UNEQUAL * p.nunique() for p in of_class):
        return None
    counted = units["patient_id"].value_counts()
    return (
        f"A few patients have most of the units: one has {counted.max():,}, half of the patients "
        f"{counted.median():g} or fewer. Few patients then decide, and intervals of average "
        "precision, probabilistic F1, Brier score, E:O and calibration may be too narrow. Results "
        "per patient count each patient once."
    )


def _at_the_end(auc: float) -> str | None:
    """The remark where the scores of the classes do not overlap."""
    if auc not in (0.0, 1.0):
        return None
    return (
        f"Every positive scores {'above' if auc else 'below'} every negative: the interval of the "
        "AUC is the exact one for pairs of patients who share none, and values without such an "
        "interval have none."
    )


ALL_EQUAL = (
    "All scores are equal: the AUC is 0.5 by definition and has no interval, and the model does "
    "not tell any unit from another."
)


def auc_with_interval(units: pd.DataFrame) -> Row:
    """The AUC and its interval alone, for strata and folds.

    Args:
        units: ``patient_id, label, score``.

    Returns:
        ``n, n_positive, n_patients, n_positive_patients, prevalence, auc, auc_ci_low, auc_ci_high,
        remark``; undefined values are None and the remark says why.
    """
    row = counted(units)
    if remark := _one_class(units):
        return row | {"remark": remark}
    auc = float(roc_auc_score(units["label"], units["score"]))
    few = few_patients(units)
    row |= {"auc": auc, "remark": few}
    if units["score"].nunique() == 1:
        row["remark"] = " ".join(filter(None, [few, ALL_EQUAL]))
    elif can_have_intervals(units):
        code, _ = pd.factorize(units["patient_id"], sort=True)
        low, high = auc_interval_by_patient(units["label"], units["score"], code)
        row |= {"auc_ci_low": low, "auc_ci_high": high, "remark": row["remark"] or _at_the_end(auc)}
    return row


def auc_by_level(
    predictions: pd.DataFrame, aggregation: Aggregation = Aggregation.MEAN
) -> pd.DataFrame:
    """The AUC at each level with its interval by patient, of any program's scores.

    The same numbers as in the report of ``mammo-pd evaluate --predictions``.

    Args:
        predictions: one row per image, checked by ``check_predictions``; all rows are judged,
            whatever a column ``split`` says.
        aggregation: how the scores of a breast's, exam's or patient's images are aggregated.

    Returns:
        One row per level (``image``, ``breast``, ``exam``, ``patient``), with the columns of
        ``auc_with_interval``.
    """
    rows = [
        auc_with_interval(aggregate(with_known_label(predictions, level), level, aggregation))
        for level in Level
    ]
    return pd.DataFrame(rows, index=pd.Index([level.value for level in Level], name="level"))


def counted(units: pd.DataFrame) -> Row:
    """The row of ``auc_with_interval`` without an AUC."""
    return _count(units) | {"auc": None, "auc_ci_low": None, "auc_ci_high": None, "remark": None}


def _measured(
    curve: Curve,
    label: Floats,
    score: Floats,
    points: Mapping[str, int],
    prevalence: float | None,
    reader: Reader | None,
) -> dict[str, float]:
    """All metrics by name; ``CODE.name`` at an operating point, ``SHARE.name`` at a share flagged.

    Args:
        curve: of the units, both classes present.
        label: (n,) 0 or 1.
        score: (n,) in [0, 1].
        points: the point of the curve at each threshold, by the threshold's code.
        prevalence: share of positives in the intended use, or None.
        reader: radiologists to compare with, or None.
    """
    # scikit-learn's, where it has a metric.
    measured = {
        "auc": float(roc_auc_score(label, score)),
        PARTIAL_AUC: float(roc_auc_score(label, score, max_fpr=1.0 - PARTIAL_FROM)),
        "average_precision": float(average_precision_score(label, score)),
    }
    for rate in FIXED_RATES:
        sensitivity, _ = curve.rates(curve.at_specificity(rate))
        measured[f"sensitivity_at_specificity_{rate * 100:.0f}"] = sensitivity
    for rate in FIXED_RATES:
        _, specificity = curve.rates(curve.at_sensitivity(rate))
        measured[f"specificity_at_sensitivity_{rate * 100:.0f}"] = specificity
    measured["pf1"] = f1_of_sums(
        float((label * score).sum()), float(score.sum()), float(label.sum())
    )
    measured["brier"] = float(brier_score_loss(label, score))
    measured["expected_observed_ratio"] = float(score.sum() / label.sum())
    for code, point in points.items():
        for name, value in rates_at(curve, point, prevalence).items():
            measured[f"{code}.{name}"] = value
    for share, values in lift(curve, prevalence).items():
        for name, value in values.items():
            measured[f"{share}.{name}"] = value
    if reader is not None:
        measured |= at_reader(curve, reader, prevalence)
    if prevalence is not None:
        measured["average_precision_at_prevalence"] = curve.average_precision(prevalence)
    return measured


def _intervals(
    known: Uncertainty, points: Mapping[str, int], reader: Reader | None
) -> dict[str, Interval | None]:
    """The intervals of what ``_measured`` returns, by the same names."""
    of_data = replace(known, prevalence=None)
    intervals: dict[str, Interval | None] = {
        "auc": known.auc(),
        PARTIAL_AUC: known.partial_auc(PARTIAL_FROM),
        "average_precision": of_data.average_precision(),
    }
    for rate in FIXED_RATES:
        intervals[f"sensitivity_at_specificity_{rate * 100:.0f}"] = known.sensitivity_at(rate)
        intervals[f"specificity_at_sensitivity_{rate * 100:.0f}"] = known.specificity_at(rate)
    intervals["pf1"] = known.pf1()
    intervals["brier"] = known.brier()
    intervals["expected_observed_ratio"] = known.expected_observed_ratio()
    for code, point in points.items():
        for name, interval in known.rates(point).items():
            intervals[f"{code}.{name}"] = interval
    for share in FLAGGED_SHARES:
        for name, interval in known.lift(share).items():
            intervals[f"{share}.{name}"] = interval
    if reader is not None:
        intervals["specificity_at_reader_sensitivity"] = known.specificity_at(reader.sensitivity)
        intervals["recall_rate_at_reader_sensitivity"] = known.recall_rate_at(reader.sensitivity)
        intervals["sensitivity_at_reader_specificity"] = known.sensitivity_at(reader.specificity)
    if known.prevalence is not None:
        intervals["average_precision_at_prevalence"] = known.average_precision()
    return intervals


def _on_grid(curve: Curve) -> tuple[Floats, Floats]:
    """Sensitivity at each false-positive rate of the grid, and precision at each recall of it."""
    tp, fp = curve.true_positives, curve.false_positives
    sensitivity = np.interp(_GRID * curve.negatives, fp, tp) / curve.positives
    # The factor keeps a recall that is met exactly from being missed through rounding.
    wanted = _GRID[1:] * curve.positives * (1.0 - 1e-12)
    point = np.searchsorted(tp, wanted, side="left")
    return sensitivity, tp[point] / (tp[point] + fp[point])


def assess(
    units: pd.DataFrame,
    *,
    thresholds: list[Threshold],
    prevalence: float | None = None,
    reader: Reader | None = None,
) -> LevelResults:
    """Every metric of one level.

    Args:
        units: ``patient_id, label`` (0 or 1), ``score`` (in [0, 1]), one row per unit.
        thresholds: chosen on other units.
        prevalence: share of positives in the intended use; adds metrics re-weighted to it.
        reader: radiologists to compare with.

    Returns:
        The results; with one class only, counts and a remark.
    """
    metrics = _count(units)
    if remark := _one_class(units):
        return LevelResults(
            metrics | {"auc": None, "auc_ci_low": None, "auc_ci_high": None}, [remark]
        )
    label = units["label"].to_numpy(dtype=np.float64)
    score = units["score"].to_numpy(dtype=np.float64)
    code, patients = pd.factorize(units["patient_id"], sort=True)
    patient = np.asarray(code, dtype=np.intp)

    ranking = Ranking.of(label, score)
    curve = ranking.curve()
    bins = reliability_bins(ranking, score, max(1, min(_BINS, len(score) // _PER_BIN)))
    points = {chosen.code: ranking.index_of(chosen.value) for chosen in thresholds}
    values = _measured(curve, label, score, points, prevalence, reader)
    remarks = [remark for remark in (few_patients(units), _unequal_patients(units)) if remark]
    sensitivity, precision = _on_grid(curve)
    observed = bins.observed(curve)
    roc_band, precision_recall_band, reliability = (
        Band(x, y, np.full(len(x), np.nan), np.full(len(x), np.nan))
        for x, y in ((_GRID, sensitivity), (_GRID[1:], precision), (bins.mean_score, observed))
    )
    intervals: Mapping[str, Interval | None] = {}
    if can_have_intervals(units):
        known = Uncertainty(ranking, patient, score, prevalence)
        reliability = Band(bins.mean_score, observed, *known.bins(bins.n))
        intervals = _intervals(known, points, reader)
        # Equal scores give a single point: no threshold or ranking could be uncertain.
        if len(ranking.thresholds) == 1:
            intervals = {
                name: interval
                for name, interval in intervals.items()
                if name in ("brier", "pf1", "expected_observed_ratio")
            }
        else:
            roc_band = Band(_GRID, sensitivity, *known.roc_band(_GRID, sensitivity))
            limits = known.precision_band(_GRID[1:], precision)
            precision_recall_band = Band(_GRID[1:], precision, *limits)
            remarks += known.remarks(FIXED_RATES, FIXED_RATES)
    estimates = {name: Estimate(value, intervals.get(name)) for name, value in values.items()}
    for name, estimate in estimates.items():
        if "." not in name:  # the dotted ones go into the tables below
            metrics |= estimate.columns(name)

    independent = len(patients) == len(units)
    fit = independent and min(_patients_of_each_class(units)) >= _FOR_DELONG
    metrics |= _delong(label, score, values["auc"], fit=fit)
    metrics["brier_of_prevalence"] = float(label.mean() * (1.0 - label.mean()))
    line = calibration_line(label, score, patient)
    smooth = smooth_calibration(label, score, patient, line)
    metrics |= _calibration(score, line, smooth, remarks)
    if len(ranking.thresholds) == 1:
        remarks.append(ALL_EQUAL)
    elif intervals and (remark := _at_the_end(values["auc"])):
        remarks.append(remark)
    false_positive_rate, true_positive_rate, _ = roc_curve(label, score)
    precisions, recalls, _ = precision_recall_curve(label, score, drop_intermediate=True)
    return LevelResults(
        metrics=metrics,
        remarks=remarks,
        operating_points=[
            {
                "threshold": chosen.value,
                "code": chosen.code,
                "rule": chosen.rule,
                **_confusion(label, score, chosen.value),
                **_columns(chosen.code, OPERATING, estimates),
            }
            for chosen in thresholds
        ],
        lift=[
            {"share_flagged": share, **_columns(str(share), LIFT, estimates)}
            for share in FLAGGED_SHARES
        ],
        roc=(false_positive_rate, true_positive_rate),
        roc_band=roc_band,
        precision_recall=(recalls, precisions),
        precision_recall_band=precision_recall_band,
        reliability=reliability,
        reliability_n=bins.n,
        smooth_calibration=smooth,
    )


def calibration_of(units: pd.DataFrame) -> Row:
    """The calibration metrics alone, for recalibrated scores.

    Args:
        units: ``patient_id, label`` (both classes), ``score``.

    Returns:
        ``brier, expected_observed_ratio, slope, intercept`` with their limits, as ``assess`` has
        them of the same units; None where there are none.
    """
    label = units["label"].to_numpy(dtype=np.float64)
    score = units["score"].to_numpy(dtype=np.float64)
    patient = np.asarray(pd.factorize(units["patient_id"], sort=True)[0], dtype=np.intp)
    brier = ratio = None
    if can_have_intervals(units):
        known = Uncertainty(Ranking.of(label, score), patient, score, None)
        brier, ratio = known.brier(), known.expected_observed_ratio()
    line = calibration_line(label, score, patient)
    return (
        Estimate(float(brier_score_loss(label, score)), brier).columns("brier")
        | Estimate(float(score.sum() / label.sum()), ratio).columns("expected_observed_ratio")
        | _fitted("slope", line.slope)
        | _fitted("intercept", line.intercept)
    )


def _columns(key: str, names: Sequence[str], estimates: Mapping[str, Estimate]) -> Row:
    row: Row = {}
    for name in names:
        row |= estimates[f"{key}.{name}"].columns(name)
    return row


def _confusion(label: Floats, score: Floats, threshold: float) -> Row:
    (tn, fp), (fn, tp) = confusion_matrix(label, score >= threshold, labels=[0, 1])
    return {"tp": int(tp), "fp": int(fp), "fn": int(fn), "tn": int(tn)}


def _delong(label: Floats, score: Floats, auc: float, *, fit: bool) -> Row:
    error = delong_standard_error(label, score)
    low, high = normal_interval(auc, error)
    # It is 0 at an AUC of 0 or 1, which does not mean certainty.
    known = error > 0.0
    return {
        "auc_delong_se": number(error) if known else None,
        "auc_delong_ci_low": low if known and fit else None,
        "auc_delong_ci_high": high if known and fit else None,
    }


def _calibration(
    score: Floats, line: CalibrationLine, smooth: SmoothCalibration, remarks: list[str]
) -> Row:
    if line.remark is not None:
        # Without a slope there is no curve either.
        remarks.append(
            line.remark.replace("No calibration slope:", "No calibration slope, no smooth curve:")
        )
    if line.slope is not None and smooth.remark is not None:
        remarks.append(smooth.remark)
    saturated = int(((score == 0.0) | (score == 1.0)).sum())
    if saturated:
        remarks.append(
            f"{saturated:,} of {len(score):,} scores are exactly 0 or 1, which no probability is: "
            "scores were rounded or saturated, those units cannot be ranked among each other, and "
            "calibration takes them as 0.0000001 and 0.9999999. Write scores with more digits."
        )
    slope = _fitted("calibration_slope", line.slope)
    return slope | _fitted("calibration_intercept", line.intercept)


def _fitted(name: str, fitted: Coefficient | None) -> Row:
    if fitted is None:
        return Estimate(np.nan).columns(name)
    return Estimate(fitted.value, plain_limits(fitted.value, fitted.spread)).columns(name)
