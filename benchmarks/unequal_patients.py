"""How often intervals hold where a few patients have most of the units, and paired tests err.

    python benchmarks/unequal_patients.py [--sets 1000]

Patients have one image or 30, or two to 32, all of one label. Scores are normal, with effects of
patient and image of standard deviations .9 and .5, and those of positives lie 1.2 (plain) or 2.6
(strong) higher. Beside each figure of ours stands that of counting every patient in full. A second
table has the other figures of a report on sets drawn at random, a fifth of whose patients have
positives, scored by the plain model less 2 and the logistic function.
"""

import argparse
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd

from mammo_pd.evaluation import intervals
from mammo_pd.evaluation.compare import paired_by_patient
from mammo_pd.evaluation.measures import Scalar, assess
from mammo_pd.evaluation.rates import Decisions, rate_by_patient
from mammo_pd.evaluation.roc import auc
from mammo_pd.evaluation.uncertainty import auc_interval_by_patient

SIZES = {
    "1 or 30 (1 in 5)": ((1, 30), (0.8, 0.2)),
    "1 or 30 (1 in 20)": ((1, 30), (0.95, 0.05)),
    "2, 4, 8, 16 or 32": ((2, 4, 8, 16, 32), (0.4, 0.3, 0.1, 0.1, 0.1)),
}
MODELS = {"plain": 1.2, "strong": 2.6}
PATIENTS = ((6, 100), (12, 100), (30, 100), (60, 60))
_THRESHOLD = 1.3
_POPULATION = 100_000
FIGURES = {
    "average_precision": "average precision",
    "pf1": "probabilistic F1",
    "brier": "Brier",
    "expected_observed_ratio": "E:O",
    "calibration_slope": "slope",
    "calibration_intercept": "intercept",
}
_OF_ALL = 0.2


def draw(
    random: np.random.Generator, sizes: str, shift: float, positive: int, negative: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Label, patient, and two models' scores of every image, which share a part of her effect."""
    values, shares = SIZES[sizes]
    n = positive + negative
    images = random.choice(values, size=n, p=shares)
    patient = np.repeat(np.arange(n), images)
    label = patient < positive
    common = 0.64 * random.normal(size=n)
    one, other = (
        (common + 0.64 * random.normal(size=n))[patient]
        + 0.5 * random.normal(size=len(patient))
        + shift * label
        for _ in range(2)
    )
    return label, patient, one, other


def figures(
    random: np.random.Generator, sizes: str, positive: int, negative: int
) -> Mapping[str, Scalar]:
    """The report's figures of one set."""
    label, patient, one, _ = draw(random, sizes, MODELS["plain"], positive, negative)
    units = pd.DataFrame({"patient_id": patient, "label": label.astype(int)})
    return assess(units.assign(score=1.0 / (1.0 + np.exp(2.0 - one))), thresholds=[]).metrics


def print_others(sets: int) -> None:
    """Print the coverage of the figures that rest on influences."""
    print("| images of a patient | patients | " + " | ".join(FIGURES.values()) + " |")
    print("|---" * (len(FIGURES) + 2) + "|")
    for sizes in SIZES:
        random = np.random.default_rng(2)
        truth = figures(random, sizes, 8_000, 32_000)
        for patients in (100, 250):
            held: Counter[str] = Counter()
            there: Counter[str] = Counter()
            for _ in range(sets):
                positive = max(2, int(random.binomial(patients, _OF_ALL)))
                found = figures(random, sizes, positive, patients - positive)
                for name in FIGURES:
                    low, high = found[f"{name}_ci_low"], found[f"{name}_ci_high"]
                    if low is not None:
                        there[name] += 1
                        held[name] += low <= truth[name] <= high
            row = " | ".join(f"{100 * held[name] / there[name]:.0f}" for name in FIGURES)
            print(f"| {sizes} | {patients} | {row} |", flush=True)


def main() -> None:
    """Print two Markdown tables, the first in percent, ours / every patient in full."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=1000)
    sets = parser.parse_args().sets
    print("| images of a patient, model | patients | AUC | sensitivity | paired p < .05 |")
    print("|---|---|---|---|---|")
    ours = intervals._OF_EQUAL_PATIENTS
    for sizes in SIZES:
        for model, shift in MODELS.items():
            random = np.random.default_rng(1)
            label, _, score, _ = draw(random, sizes, shift, _POPULATION, _POPULATION)
            truth, found = auc(label, score), float((score[label] >= _THRESHOLD).mean())
            for positive, negative in PATIENTS:
                held: Counter[tuple[str, float]] = Counter()
                for _ in range(sets):
                    label, patient, one, other = draw(random, sizes, shift, positive, negative)
                    for factor in (ours, np.inf):
                        intervals._OF_EQUAL_PATIENTS = factor
                        low, high = auc_interval_by_patient(label, one, patient)
                        held["auc", factor] += low <= truth <= high
                        held["paired", factor] += (
                            paired_by_patient(label, one, other, patient).p < 0.05
                        )
                    units = pd.DataFrame({"patient_id": patient, "label": label.astype(int)})
                    decided = Decisions.where(units, one >= _THRESHOLD).sensitivity
                    counted = rate_by_patient(decided.value, positive)
                    for factor, rate in ((ours, decided), (np.inf, counted)):
                        held["rate", factor] += int(rate.low[0] <= found <= rate.high[0])
                cells = (
                    " / ".join(
                        f"{100 * held[name, factor] / sets:.1f}" for factor in (ours, np.inf)
                    )
                    for name in ("auc", "rate", "paired")
                )
                row = " | ".join(cells)
                print(f"| {sizes}, {model} | {positive} and {negative} | {row} |", flush=True)
    intervals._OF_EQUAL_PATIENTS = ours
    print()
    print_others(sets // 2)


if __name__ == "__main__":
    main()
