"""How often intervals from influences hold with quantiles of t, and with the normal one.

    python benchmarks/quantile_coverage.py [--sets 150]

Sets of ``interval_coverage.py``, drawn with 5 or 12 positive patients on average.
"""

import argparse
from unittest.mock import patch

import numpy as np
import sklearn
from interval_coverage import LEVELS, MODELS, Law, figures
from scipy.special import ndtri

from mammo_pd.evaluation import intervals

FIGURES = (
    "average_precision",
    "pf1",
    "brier",
    "expected_observed_ratio",
    "calibration_slope",
    "calibration_intercept",
)
QUANTILES = {"t": intervals.student_quantile, "normal": lambda _: float(ndtri(0.975))}


def coverage(law: Law, sets: int, seed: int) -> dict[tuple[str, str, str], float]:
    """Coverage in percent by figure, level and quantile."""
    held: dict[tuple[str, str, str], list[bool]] = {}
    random = np.random.default_rng([seed, True])
    for _ in range(sets):
        for level, rows in law.drawn("drawn", random).items():
            truth = law.truth["drawn"][level]
            for called, quantile in QUANTILES.items():
                with patch.object(intervals, "student_quantile", quantile):
                    found = law.assess("drawn", level, rows)
                for name, _, interval in figures(found):
                    if name in FIGURES and interval is not None:
                        low, high = interval
                        cell = held.setdefault((name, level, called), [])
                        cell.append(low <= truth[name] <= high)
    return {key: 100.0 * float(np.mean(cell)) for key, cell in held.items()}


def main() -> None:
    """Print a Markdown table: images / breasts / exams."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=150)
    sets = parser.parse_args().sets
    sklearn.set_config(skip_parameter_validation=True, assume_finite=True)
    print("| model, positives | figure | t | normal |\n|---|---|---|---|")
    for number, (model, shift) in enumerate(MODELS.items()):
        for positives in (5, 12):
            found = coverage(Law.of(shift, positives, seed=99 + number), sets, seed=7)
            for name in FIGURES:
                of_quantile = (
                    " / ".join(f"{found[name, level, called]:.0f}" for level in LEVELS)
                    for called in QUANTILES
                )
                print(f"| {model}, {positives} | {name} | {' | '.join(of_quantile)} |", flush=True)


if __name__ == "__main__":
    main()
