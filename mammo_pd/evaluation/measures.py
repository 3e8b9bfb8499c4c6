"""All figures of one level: a table of units goes in; estimates, intervals and curves come out."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mammo_pd.evaluation.bootstrap import corrected_interval, patient_weights, percentile_interval
from mammo_pd.evaluation.calibration import calibration_line, reliability_bins
from mammo_pd.evaluation.roc import (
    Curve,
    Floats,
    Ranking,
    auc_influence,
    delong_standard_error,
    f1_of_sums,
    normal_interval,
    total_of_products,
)
from mammo_pd.evaluation.thresholds import (
    FIXED_RATES,
    FLAGGED_SHARES,
    Reader,
    Threshold,
    beside_reader,
    lift,
    rates_at,
)

PARTIAL_FROM = 0.90
_BINS, _PER_BIN = 10, 20  # a share of positives among fewer units says little
_GRID = np.linspace(0.0, 1.0, 101)

OPERATING = ("sensitivity", "specificity", "recall_rate", "ppv", "npv")
LIFT = ("sensitivity", "ppv", "lift")

Estimate = float | int | str | None


@dataclass(frozen=True)
class Band:
    """A curve to draw, with its pointwise 95 % interval.

    Attributes:
        x: (m,) float64.
        y: (m,) float64.
        low: (m,) float64, NaN where there is no interval.
        high: (m,) float64, the same.
    """

    x: Floats
    y: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class LevelResults:
    """What is known of one level.

    Attributes:
        figures: plain numbers by name, ready for JSON; None where a figure does not exist.
        remarks: a sentence for each figure that is missing or to be read with care.
        operating_points: one row per threshold, ready for JSON.
        lift: one row per share flagged, ready for JSON.
        roc: sensitivity over 1 - specificity; None with one class only.
        roc_band: the same on a grid with its interval.
        precision_recall: precision over sensitivity on a grid with its interval.
        reliability: observed share over mean score, one point per bin.
        reliability_n: (bins,) units in each bin.
    """

    figures: dict[str, Estimate]
    remarks: list[str] = field(default_factory=list)
    operating_points: list[dict[str, Estimate]] = field(default_factory=list)
    lift: list[dict[str, Estimate]] = field(default_factory=list)
    roc: tuple[Floats, Floats] | None = None
    roc_band: Band | None = None
    precision_recall: Band | None = None
    reliability: Band | None = None
    reliability_n: Floats | None = None


def number(value: float) -> float | None:
    """A float for JSON, which knows no NaN."""
    return None if np.isnan(value) else float(value)


def _count(units: pd.DataFrame) -> dict[str, Estimate]:
    label = units["label"].to_numpy()
    return {
        "n": len(units),
        "n_positive": int(label.sum()),
        "n_patients": int(units["patient_id"].nunique()),
        "n_positive_patients": int(units["patient_id"][label == 1].nunique()),
        "prevalence": float(label.mean()) if len(label) else None,
    }


def _one_class(units: pd.DataFrame) -> str | None:
    positives = int(units["label"].sum())
    if positives and positives < len(units):
        return None
    held = "positive" if positives else "negative"
    return (
        f"Every one of the {len(units):,} labelled units is {held}: a ROC curve and an AUC need "
        "both classes."
    )


def _too_few_patients(units: pd.DataFrame) -> str | None:
    label = units["label"].to_numpy()
    with_positive = units["patient_id"][label == 1].nunique()
    with_negative = units["patient_id"][label == 0].nunique()
    if with_positive >= 2 and with_negative >= 2:
        return None
    return (
        "No interval: resampling by patient needs positives from at least two patients and "
        f"negatives from at least two (here {with_positive} and {with_negative})."
    )


def auc_with_interval(units: pd.DataFrame, *, resamples: int, seed: int) -> dict[str, Estimate]:
    """The AUC of some units and its interval by patient, without the rest: for strata and folds.

    Args:
        units: ``patient_id, label, score``.
        resamples: how many times patients are drawn.
        seed: of the draws.

    Returns:
        ``n, n_positive, n_patients, n_positive_patients, prevalence, auc, auc_ci_low, auc_ci_high,
        remark``; what does not exist is None and the remark says why.
    """
    counted = _count(units)
    figures = counted | {"auc": None, "auc_ci_low": None, "auc_ci_high": None, "remark": None}
    if not len(units) or (remark := _one_class(units)):
        return figures | {"remark": remark if len(units) else "There are no units."}
    ranking = Ranking.of(units["label"], units["score"])
    figures["auc"] = estimate = ranking.curve().auc()
    if remark := _too_few_patients(units):
        return figures | {"remark": remark}
    code, patients = pd.factorize(units["patient_id"], sort=True)
    in_order = np.asarray(code)[ranking.order]
    drawn = np.full(resamples, np.nan)
    for i, weight in enumerate(patient_weights(len(patients), resamples, seed)):
        curve = ranking.curve(weight[in_order])
        if curve.has_both_classes:
            drawn[i] = curve.auc()
    influence = auc_influence(units["label"], units["score"], np.asarray(code))
    if interval := corrected_interval(drawn, estimate, influence):
        figures["auc_ci_low"], figures["auc_ci_high"] = interval
    return figures


def _fixed(curve: Curve) -> dict[str, float]:
    """The figures that are read off a curve alone."""
    figures = {
        "auc": curve.auc(),
        f"partial_auc_{PARTIAL_FROM * 100:.0f}": curve.partial_auc(PARTIAL_FROM),
        "average_precision": curve.average_precision(),
    }
    for rate in FIXED_RATES:
        point = curve.at_specificity(rate)
        figures[f"sensitivity_at_specificity_{rate * 100:.0f}"] = curve.rates(point)[0]
    for rate in FIXED_RATES:
        point = curve.at_sensitivity(rate)
        figures[f"specificity_at_sensitivity_{rate * 100:.0f}"] = curve.rates(point)[1]
    return figures


def _on_grid(curve: Curve) -> tuple[Floats, Floats]:
    """Sensitivity at each false-positive rate, and precision at each sensitivity, of the grid."""
    tp, fp = curve.true_positives, curve.false_positives
    sensitivity = np.interp(_GRID * curve.negatives, fp, tp) / curve.positives
    wanted = _GRID[1:] * curve.positives * (1.0 - 1e-12)
    point = np.searchsorted(tp, wanted, side="left")
    return sensitivity, tp[point] / (tp[point] + fp[point])


def assess(
    units: pd.DataFrame,
    *,
    thresholds: list[Threshold],
    resamples: int,
    seed: int,
    prevalence: float | None = None,
    reader: Reader | None = None,
) -> LevelResults:
    """Every figure of one level.

    Args:
        units: ``patient_id, label`` (0 or 1), ``score`` (in [0, 1]), one row per unit.
        thresholds: chosen on other units.
        resamples: how many times patients are drawn for the intervals.
        seed: of the draws; with the same patients every level sees the same draws.
        prevalence: share of positives where the model is to be used; adds figures re-weighted to
            it.
        reader: radiologists to set the model beside.

    Returns:
        The figures; with one class only, counts and a remark.
    """
    figures = _count(units)
    if remark := _one_class(units):
        return LevelResults(
            figures | {"auc": None, "auc_ci_low": None, "auc_ci_high": None}, [remark]
        )
    remarks = []
    label = units["label"].to_numpy(dtype=np.float64)
    score = units["score"].to_numpy(dtype=np.float64)
    code, patients = pd.factorize(units["patient_id"], sort=True)
    code = np.asarray(code)
    n_patients = len(patients)

    ranking = Ranking.of(label, score)
    curve = ranking.curve()
    bins = reliability_bins(ranking, score, max(1, min(_BINS, len(score) // _PER_BIN)))
    points = [ranking.index_of(threshold.value) for threshold in thresholds]
    # Sums over units become sums over patients, so that a resample is one dot product.
    sums = {
        name: np.bincount(code, weights=value, minlength=n_patients).astype(np.float64)
        for name, value in {
            "units": np.ones_like(score),
            "positives": label,
            "flagged": score,
            "hits": label * score,
            "error": (score - label) ** 2,
        }.items()
    }

    def measure(curve: Curve, weight: Floats) -> dict[str, float]:
        of = {name: total_of_products(weight, value) for name, value in sums.items()}
        measured = _fixed(curve)
        measured["pf1"] = f1_of_sums(of["hits"], of["flagged"], of["positives"])
        measured["brier"] = of["error"] / of["units"]
        for threshold, point in zip(thresholds, points, strict=True):
            for name, value in rates_at(curve, point, prevalence).items():
                measured[f"{threshold.code}.{name}"] = value
        for share, values in lift(curve, prevalence).items():
            for name, value in values.items():
                measured[f"{share}.{name}"] = value
        if reader is not None:
            measured |= beside_reader(curve, reader, prevalence)
        if prevalence is not None:
            measured["average_precision_at_prevalence"] = curve.average_precision(prevalence)
        return measured

    found = measure(curve, np.ones(n_patients))
    roc_y, precision = _on_grid(curve)
    observed = bins.observed(curve)

    nothing = _too_few_patients(units)
    if nothing:
        remarks.append(nothing)
        resamples = 0
    drawn = {name: np.full(resamples, np.nan) for name in found}
    roc_drawn = np.full((resamples, len(_GRID)), np.nan, dtype=np.float32)
    precision_drawn = np.full((resamples, len(_GRID) - 1), np.nan, dtype=np.float32)
    observed_drawn = np.full((resamples, len(observed)), np.nan, dtype=np.float32)
    in_order = code[ranking.order]
    for i, weight in enumerate(patient_weights(n_patients, resamples, seed)):
        resampled = ranking.curve(weight[in_order])
        if not resampled.has_both_classes:
            continue
        for name, value in measure(resampled, weight).items():
            drawn[name][i] = value
        roc_drawn[i], precision_drawn[i] = _on_grid(resampled)
        observed_drawn[i] = bins.observed(resampled)

    interval = {name: percentile_interval(values) for name, values in drawn.items()}
    influence = auc_influence(label, score, code)
    interval["auc"] = corrected_interval(drawn["auc"], found["auc"], influence)
    for name, value in found.items():
        if "." not in name:  # those with a point belong to the tables
            figures |= _with_interval(name, value, interval[name])
    used = int((~np.isnan(drawn["auc"])).sum())
    figures["resamples_used"] = used
    if used < resamples:
        remarks.append(
            f"{resamples - used:,} of {resamples:,} resamples held one class only and were left "
            "out of the intervals: there are few positives."
        )
    figures |= _delong(label, score, found["auc"])
    figures["brier_of_prevalence"] = float(label.mean() * (1.0 - label.mean()))
    figures |= _calibration(label, score, code, remarks)
    if len(ranking.thresholds) == 1:
        remarks.append(
            "All scores are the same: the AUC is 0.5 by definition, and the model tells no unit "
            "from another."
        )
    elif found["auc"] in (0.0, 1.0):
        remarks.append(
            "The classes do not overlap in score, so resampling cannot vary the AUC and its "
            "interval has no width: that is a limit of the method, not certainty."
        )
    confusion = [_confusion(curve, point) for point in points]
    operating_points: list[dict[str, Estimate]] = [
        {
            "threshold": threshold.value,
            "code": threshold.code,
            "rule": threshold.rule,
            **counts,
            **_rates(threshold.code, OPERATING, found, interval),
        }
        for threshold, counts in zip(thresholds, confusion, strict=True)
    ]
    by_share: list[dict[str, Estimate]] = [
        {"share_flagged": share, **_rates(str(share), LIFT, found, interval)}
        for share in FLAGGED_SHARES
    ]
    return LevelResults(
        figures=figures,
        remarks=remarks,
        operating_points=operating_points,
        lift=by_share,
        roc=(curve.false_positive_rate, curve.sensitivity),
        roc_band=_band(_GRID, roc_y, roc_drawn),
        precision_recall=_band(_GRID[1:], precision, precision_drawn),
        reliability=_band(bins.mean_score, observed, observed_drawn),
        reliability_n=bins.n.astype(np.float64),
    )


def _with_interval(
    name: str, value: float, interval: tuple[float, float] | None
) -> dict[str, Estimate]:
    low, high = interval or (None, None)
    return {name: number(value), f"{name}_ci_low": low, f"{name}_ci_high": high}


def _rates(
    key: str,
    names: tuple[str, ...],
    found: dict[str, float],
    interval: dict[str, tuple[float, float] | None],
) -> dict[str, Estimate]:
    rates: dict[str, Estimate] = {}
    for name in names:
        rates |= _with_interval(name, found[f"{key}.{name}"], interval[f"{key}.{name}"])
    return rates


def _confusion(curve: Curve, point: int) -> dict[str, Estimate]:
    tp, fp = int(curve.true_positives[point]), int(curve.false_positives[point])
    return {"tp": tp, "fp": fp, "fn": int(curve.positives) - tp, "tn": int(curve.negatives) - fp}


def _delong(label: Floats, score: Floats, auc: float) -> dict[str, Estimate]:
    error = delong_standard_error(label, score)
    low, high = normal_interval(auc, error)
    known = not np.isnan(error)
    return {
        "auc_delong_se": number(error),
        "auc_delong_ci_low": low if known else None,
        "auc_delong_ci_high": high if known else None,
    }


def _calibration(
    label: Floats, score: Floats, patient: np.ndarray, remarks: list[str]
) -> dict[str, Estimate]:
    figures: dict[str, Estimate] = {}
    line = calibration_line(label, score, patient)
    if line is None:
        remarks.append(
            "No calibration slope: the scores are all the same, or separate the classes without "
            "error, and the logistic fit has no finite answer."
        )
    for place, name in enumerate(("calibration_slope", "calibration_intercept")):
        figures |= {name: None, f"{name}_ci_low": None, f"{name}_ci_high": None}
        if line is not None:
            estimate, error = line[place].estimate, line[place].standard_error
            figures |= _with_interval(
                name, estimate, (estimate - 1.96 * error, estimate + 1.96 * error)
            )
    return figures


def _band(x: Floats, y: Floats, drawn: np.ndarray) -> Band:
    usable = drawn[~np.isnan(drawn).all(axis=1)] if drawn.size else drawn
    if not len(usable):
        nothing = np.full(len(x), np.nan)
        return Band(x, y, nothing, nothing)
    low, high = np.nanquantile(usable, (0.025, 0.975), axis=0)
    return Band(x, y, low.astype(np.float64), high.astype(np.float64))
