"""Every metric of one level: a table of units goes in; estimates, intervals and curves come out.

Point estimates and curves are scikit-learn's. Resamples are weighted by patient and counted on one
sorted ranking (``roc.Ranking``): scikit-learn sorts anew for every metric, 35 times as slow.

Shapes: n units, b resamples, g grid points of a band.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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

from mammo_pd.evaluation.bootstrap import corrected_interval, patient_weights, percentile_interval
from mammo_pd.evaluation.calibration import ReliabilityBins, calibration_line, reliability_bins
from mammo_pd.evaluation.extremes import independent_pairs, widened_at_the_end
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
    at_reader,
    lift,
    rates_at,
)

PARTIAL_FROM = 0.90
_PARTIAL_AUC = f"partial_auc_{PARTIAL_FROM * 100:.0f}"
# With fewer than 20 units in a bin, its share of positives is mostly noise.
_BINS, _PER_BIN = 10, 20
_GRID = np.linspace(0.0, 1.0, 101)
# Of fewer patients of a class, most resamples are copies of one or two.
_FEW_PATIENTS = 5
# The limits of a 95 % interval lie beyond 2.5 % of the resamples: of 200, beyond five.
_FEW_RESAMPLES = 200

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
    interval: tuple[float, float] | None = None

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


def can_be_resampled(units: pd.DataFrame) -> bool:
    """Whether there are two patients with positives and two with negatives to draw from."""
    return min(_patients_of_each_class(units)) >= 2


def _few_patients(units: pd.DataFrame) -> str | None:
    positive, negative = _patients_of_each_class(units)
    if min(positive, negative) < 2:
        return (
            "No interval: resampling by patient needs at least two patients with positives and two "
            f"with negatives; here there are {positive} and {negative}."
        )
    if min(positive, negative) < _FEW_PATIENTS:
        return (
            f"Few patients: {positive} with positives and {negative} with negatives. With fewer "
            f"than {_FEW_PATIENTS} of a class the estimates may be far off, and their intervals "
            "are too narrow."
        )
    return None


def _at_the_end(auc: float, pairs: int) -> str | None:
    """What to say where the scores of the classes do not overlap."""
    if auc not in (0.0, 1.0):
        return None
    return (
        f"Every positive scores {'above' if auc else 'below'} every negative, which resampling "
        f"cannot vary: the interval of the AUC is the exact one for the {pairs} independent "
        "pair(s) of patients, and values without such an interval have none."
    )


def few_resamples(resamples: int) -> str | None:
    """What to say of intervals of so few resamples; None if they are enough."""
    if resamples >= _FEW_RESAMPLES:
        return None
    return (
        f"The intervals are of {resamples:,} resamples, a quick look: their limits are steady from "
        f"{_FEW_RESAMPLES} on; use 2,000 for a report."
    )


def auc_with_interval(units: pd.DataFrame, *, resamples: int, seed: int) -> Row:
    """The AUC of some units with its interval, and nothing else: for strata and folds.

    Args:
        units: ``patient_id, label, score``.
        resamples: number of bootstrap resamples of the patients.
        seed: of the resampling.

    Returns:
        ``n, n_positive, n_patients, n_positive_patients, prevalence, auc, auc_ci_low, auc_ci_high,
        remark``; undefined values are None and the remark says why.
    """
    row = _count(units) | {"auc": None, "auc_ci_low": None, "auc_ci_high": None, "remark": None}
    if remark := _one_class(units):
        return row | {"remark": remark}
    row["auc"] = float(roc_auc_score(units["label"], units["score"]))
    row["remark"] = _few_patients(units)
    if not can_be_resampled(units):
        return row
    ranking = Ranking.of(units["label"], units["score"])
    code, patients = pd.factorize(units["patient_id"], sort=True)
    in_order = np.asarray(code)[ranking.order]
    drawn = np.full(resamples, np.nan)
    for i, weight in enumerate(patient_weights(len(patients), resamples, seed)):
        curve = ranking.curve(weight[in_order])
        if curve.has_both_classes:
            drawn[i] = curve.auc()
    influence = auc_influence(units["label"], units["score"], np.asarray(code))
    estimate = ranking.curve().auc()
    interval = corrected_interval(drawn, estimate, influence)
    if resamples:
        pairs = independent_pairs(units["label"], code)
        interval = widened_at_the_end(estimate, interval, pairs)
        row["remark"] = row["remark"] or _at_the_end(estimate, pairs)
    if interval is not None:
        row["auc_ci_low"], row["auc_ci_high"] = interval
    return row


@dataclass(frozen=True)
class _Statistics:
    """What is computed on the units as they are, and again on every resample of their patients.

    Attributes:
        points: the point of the curve at each threshold, by the threshold's code.
        sums: (patients,) each; sums over units taken by patient, so that a resample of them is one
            dot product.
        prevalence: share of positives in the intended use, or None.
        reader: radiologists to compare with, or None.
    """

    points: Mapping[str, int]
    sums: Mapping[str, Floats]
    prevalence: float | None
    reader: Reader | None

    def of(self, curve: Curve, weight: Floats) -> dict[str, float]:
        """All metrics under one weighting.

        Args:
            curve: counted under the weights, both classes present.
            weight: (patients,) how often each patient counts.

        Returns:
            By name; ``CODE.name`` at an operating point and ``SHARE.name`` at a share flagged.
        """
        total = {name: total_of_products(weight, value) for name, value in self.sums.items()}
        measured = {
            "auc": curve.auc(),
            _PARTIAL_AUC: curve.partial_auc(PARTIAL_FROM),
            "average_precision": curve.average_precision(),
        }
        for rate in FIXED_RATES:
            sensitivity, _ = curve.rates(curve.at_specificity(rate))
            measured[f"sensitivity_at_specificity_{rate * 100:.0f}"] = sensitivity
        for rate in FIXED_RATES:
            _, specificity = curve.rates(curve.at_sensitivity(rate))
            measured[f"specificity_at_sensitivity_{rate * 100:.0f}"] = specificity
        measured["pf1"] = f1_of_sums(total["hits"], total["flagged"], total["positives"])
        measured["brier"] = total["squared_error"] / total["units"]
        measured["expected_observed_ratio"] = total["flagged"] / total["positives"]
        for code, point in self.points.items():
            for name, value in rates_at(curve, point, self.prevalence).items():
                measured[f"{code}.{name}"] = value
        for share, values in lift(curve, self.prevalence).items():
            for name, value in values.items():
                measured[f"{share}.{name}"] = value
        if self.reader is not None:
            measured |= at_reader(curve, self.reader, self.prevalence)
        if self.prevalence is not None:
            measured["average_precision_at_prevalence"] = curve.average_precision(self.prevalence)
        return measured


@dataclass(frozen=True)
class _Draws:
    """What the resamples gave; NaN in those that hold one class only.

    Attributes:
        metrics: (b,) each, by name.
        sensitivity: (b, g) float32, on the grid of false-positive rates.
        precision: (b, g - 1) float32, on the grid of recalls.
        observed: (b, bins) float32, share of positives in each reliability bin.
    """

    metrics: dict[str, Floats]
    sensitivity: NDArray[np.float32]
    precision: NDArray[np.float32]
    observed: NDArray[np.float32]


def _on_grid(curve: Curve) -> tuple[Floats, Floats]:
    """Sensitivity at each false-positive rate of the grid, and precision at each recall of it."""
    tp, fp = curve.true_positives, curve.false_positives
    sensitivity = np.interp(_GRID * curve.negatives, fp, tp) / curve.positives
    # The factor keeps a recall that is met exactly from being missed by one rounding.
    wanted = _GRID[1:] * curve.positives * (1.0 - 1e-12)
    point = np.searchsorted(tp, wanted, side="left")
    return sensitivity, tp[point] / (tp[point] + fp[point])


def _resample(
    statistics: _Statistics,
    ranking: Ranking,
    bins: ReliabilityBins,
    patient: NDArray[np.intp],
    *,
    names: Sequence[str],
    resamples: int,
    seed: int,
) -> _Draws:
    """Compute the statistics on each resample of the patients, (n,) numbered from 0."""
    draws = _Draws(
        metrics={name: np.full(resamples, np.nan) for name in names},
        # A band is drawn a pixel wide: single precision halves its memory.
        sensitivity=np.full((resamples, len(_GRID)), np.nan, dtype=np.float32),
        precision=np.full((resamples, len(_GRID) - 1), np.nan, dtype=np.float32),
        observed=np.full((resamples, len(bins.n)), np.nan, dtype=np.float32),
    )
    in_order = patient[ranking.order]
    for i, weight in enumerate(patient_weights(int(patient.max()) + 1, resamples, seed)):
        curve = ranking.curve(weight[in_order])
        if not curve.has_both_classes:  # no AUC: stays NaN, and is counted by the caller
            continue
        for name, value in statistics.of(curve, weight).items():
            draws.metrics[name][i] = value
        draws.sensitivity[i], draws.precision[i] = _on_grid(curve)
        draws.observed[i] = bins.observed(curve)
    return draws


def assess(
    units: pd.DataFrame,
    *,
    thresholds: list[Threshold],
    resamples: int,
    seed: int,
    prevalence: float | None = None,
    reader: Reader | None = None,
) -> LevelResults:
    """Every metric of one level.

    Args:
        units: ``patient_id, label`` (0 or 1), ``score`` (in [0, 1]), one row per unit.
        thresholds: chosen on other units.
        resamples: number of bootstrap resamples of the patients.
        seed: of the resampling; given the same patients, every level sees the same resamples.
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
    # Sums that the Brier score and probabilistic F1 are made of.
    by_patient = {
        "units": np.ones_like(score),
        "positives": label,
        "flagged": score,
        "hits": label * score,
        "squared_error": (score - label) ** 2,
    }
    statistics = _Statistics(
        points={chosen.code: ranking.index_of(chosen.value) for chosen in thresholds},
        sums={
            name: np.bincount(patient, weights=value).astype(np.float64)
            for name, value in by_patient.items()
        },
        prevalence=prevalence,
        reader=reader,
    )
    counted = statistics.of(curve, np.ones(len(patients)))
    remarks = [remark] if (remark := _few_patients(units)) else []
    if not can_be_resampled(units):
        resamples = 0
    elif remark := few_resamples(resamples):
        remarks.append(remark)
    draws = _resample(
        statistics, ranking, bins, patient, names=list(counted), resamples=resamples, seed=seed
    )
    intervals = {name: percentile_interval(values) for name, values in draws.metrics.items()}
    # BCa counts the resamples below and equal to the estimate, so it needs the estimate in their
    # own arithmetic. scikit-learn's differs in the last bit now and then, which moved limits by up
    # to 0.12 in samples of a few patients.
    intervals["auc"] = corrected_interval(
        draws.metrics["auc"], counted["auc"], auc_influence(label, score, patient)
    )
    values = counted | _point_estimates(label, score)
    if resamples:
        trials = _Trials(label, score, patient, thresholds, prevalence).of
        intervals = {
            name: widened_at_the_end(counted[name], interval, trials(name))
            for name, interval in intervals.items()
        }
    estimates = {name: Estimate(value, intervals[name]) for name, value in values.items()}
    for name, estimate in estimates.items():
        if "." not in name:  # the dotted ones go into the tables below
            metrics |= estimate.columns(name)

    used = int((~np.isnan(draws.metrics["auc"])).sum())
    metrics["resamples_used"] = used
    if used < resamples:
        remarks.append(
            f"{resamples - used:,} of {resamples:,} resamples contained one class only and were "
            "excluded from the intervals: there are few positives."
        )
    metrics |= _delong(label, score, values["auc"])
    metrics["brier_of_prevalence"] = float(label.mean() * (1.0 - label.mean()))
    metrics |= _calibration(label, score, patient, remarks)
    if len(ranking.thresholds) == 1:
        remarks.append(
            "All scores are equal: the AUC is 0.5 by definition and has no interval, and the model "
            "does not tell any unit from another."
        )
    elif resamples and (remark := _at_the_end(counted["auc"], independent_pairs(label, patient))):
        remarks.append(remark)
    sensitivity, precision = _on_grid(curve)
    if counted["auc"] in (0.0, 1.0):  # bands of no width would read as certainty
        draws.sensitivity[:], draws.precision[:] = np.nan, np.nan
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
        roc_band=_band(_GRID, sensitivity, draws.sensitivity),
        precision_recall=(recalls, precisions),
        precision_recall_band=_band(_GRID[1:], precision, draws.precision),
        reliability=_reliability(bins, ranking, patient, draws.observed),
        reliability_n=bins.n,
    )


@dataclass(frozen=True)
class _Trials:
    """How many patients stand behind a metric, for the exact interval of a value of 0 or 1.

    Attributes:
        label: (n,).
        score: (n,).
        patient: (n,) int.
        thresholds: of the operating points.
        prevalence: share of positives in the intended use, or None.
    """

    label: Floats
    score: Floats
    patient: NDArray[np.intp]
    thresholds: Sequence[Threshold]
    prevalence: float | None

    def of(self, name: str) -> int | None:
        """Patients behind a metric, by its name; None where they cannot be counted."""
        code, _, rate = name.rpartition(".")
        if name == "auc":
            return independent_pairs(self.label, self.patient)
        if rate.startswith("sensitivity"):
            return self._patients(self.label == 1)
        if rate.startswith("specificity"):
            return self._patients(self.label == 0)
        # Bayes' rule mixes rates of both classes, and a lift's flags move with the resample.
        threshold = {chosen.code: chosen.value for chosen in self.thresholds}.get(code)
        if self.prevalence is not None or threshold is None:
            return None
        counted = {
            "recall_rate": np.ones(len(self.score), dtype=bool),
            "ppv": self.score >= threshold,
            "npv": self.score < threshold,
        }
        return self._patients(counted[rate])

    def _patients(self, chosen: NDArray[np.bool_]) -> int:
        return len(np.unique(self.patient[chosen]))


def _point_estimates(label: Floats, score: Floats) -> dict[str, float]:
    """What scikit-learn has a metric for."""
    return {
        "auc": float(roc_auc_score(label, score)),
        _PARTIAL_AUC: float(roc_auc_score(label, score, max_fpr=1.0 - PARTIAL_FROM)),
        "average_precision": float(average_precision_score(label, score)),
        "brier": float(brier_score_loss(label, score)),
    }


def _columns(key: str, names: Sequence[str], estimates: Mapping[str, Estimate]) -> Row:
    row: Row = {}
    for name in names:
        row |= estimates[f"{key}.{name}"].columns(name)
    return row


def _confusion(label: Floats, score: Floats, threshold: float) -> Row:
    (tn, fp), (fn, tp) = confusion_matrix(label, score >= threshold, labels=[0, 1])
    return {"tp": int(tp), "fp": int(fp), "fn": int(fn), "tn": int(tn)}


def _delong(label: Floats, score: Floats, auc: float) -> Row:
    error = delong_standard_error(label, score)
    low, high = normal_interval(auc, error)
    known = error > 0.0  # at an AUC of 0 or 1 it is 0, which is no certainty
    return {
        "auc_delong_se": number(error) if known else None,
        "auc_delong_ci_low": low if known else None,
        "auc_delong_ci_high": high if known else None,
    }


def _calibration(
    label: Floats, score: Floats, patient: NDArray[np.intp], remarks: list[str]
) -> Row:
    line = calibration_line(label, score, patient)
    if line.remark is not None:
        remarks.append(line.remark)
    saturated = int(((score == 0.0) | (score == 1.0)).sum())
    if saturated:
        remarks.append(
            f"{saturated:,} of {len(score):,} scores are exactly 0 or 1, which no probability is: "
            "scores were rounded or saturated, those units cannot be ranked among each other, and "
            "calibration takes them as 0.0000001 and 0.9999999. Write scores with more digits."
        )
    row: Row = {}
    for name, fitted in (
        ("calibration_slope", line.slope),
        ("calibration_intercept", line.intercept),
    ):
        if fitted is None:
            row |= Estimate(np.nan).columns(name)
            continue
        reach = 1.96 * fitted.standard_error
        # Of one patient a standard error can be 0: the scores of her units cancel out.
        known = reach > 0.0
        interval = (fitted.value - reach, fitted.value + reach) if known else None
        row |= Estimate(fitted.value, interval).columns(name)
    return row


def _reliability(
    bins: ReliabilityBins,
    ranking: Ranking,
    patient: NDArray[np.intp],
    drawn: NDArray[np.float32],
) -> Band:
    """The bins with their intervals; exact in those that are all positive or all negative."""
    band = _band(bins.mean_score, bins.observed(ranking.curve()), drawn)
    ends = np.concatenate([[0], np.cumsum(bins.n)])
    falling = patient[ranking.order]
    for i, observed in enumerate(band.y):
        if not np.isnan(band.low[i]):
            patients = len(np.unique(falling[ends[i] : ends[i + 1]]))
            limits = widened_at_the_end(observed, (band.low[i], band.high[i]), patients)
            band.low[i], band.high[i] = limits or (np.nan, np.nan)
    return band


def _band(x: Floats, y: Floats, drawn: NDArray[np.float32]) -> Band:
    usable = drawn[~np.isnan(drawn).all(axis=1)] if drawn.size else drawn
    if not len(usable):
        nothing = np.full(len(x), np.nan)
        return Band(x, y, nothing, nothing)
    low, high = np.nanquantile(usable, (0.025, 0.975), axis=0)
    return Band(x, y, low.astype(np.float64), high.astype(np.float64))
