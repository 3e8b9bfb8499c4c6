"""How often AUC intervals hold that trust few patients' variance less, as much or more than ours.

    python benchmarks/auc_coverage.py [--sets 2000]

Sets of 120 patients, of whom 18, 12 or 5 have a cancer, by the law of ``interval_coverage.py`` and
two of its variants: one cancer in five invisible, and cancers of varying visibility. The limits are
``auc_interval``'s with another weight of the variance of independent patients, which also sets the
degrees of freedom. A set without an invisible cancer misleads every method; that is in the figures.
"""

import argparse
from collections import Counter
from collections.abc import Iterator

import numpy as np

from mammo_pd.evaluation import intervals
from mammo_pd.evaluation.roc import auc
from mammo_pd.evaluation.uncertainty import auc_interval_by_patient

PATIENTS = 120
POSITIVES = (18, 12, 5)
MODELS = {"plain": 1.0, "strong": 2.6}
LAWS = ("as above", "one in five invisible", "varying visibility")
LEVELS = ("image", "breast", "exam")
WEIGHTS = (0.0, 2.0, 4.0, 8.0)
_POPULATION = 400_000


def scores(
    random: np.random.Generator, law: str, shift: float, positive: int, patients: int
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Label, score and patient of every unit, by level; the first patients have the cancers."""
    logit = -3.0 + 0.6 * random.normal(size=(patients, 1, 1))
    logit = logit + 0.5 * random.normal(size=(patients, 2, 1))
    logit = logit + 0.7 * random.normal(size=(patients, 2, 2))
    moved = np.full(positive, shift)
    if law == "one in five invisible":
        moved *= random.random(positive) >= 0.2
    if law == "varying visibility":
        moved += 1.2 * random.normal(size=positive)
    logit[:positive, 0] += moved[:, None]
    score = 1.0 / (1.0 + np.exp(-logit))
    label = np.zeros((patients, 2, 2), dtype=bool)
    label[:positive, 0] = True
    number = np.arange(patients)
    return {
        "image": (label.ravel(), score.ravel(), np.repeat(number, 4)),
        "breast": (label[:, :, 0].ravel(), score.mean(axis=2).ravel(), np.repeat(number, 2)),
        "exam": (label[:, 0, 0], score.mean(axis=(1, 2)), number),
    }


def cells(sets: int) -> Iterator[tuple[str, str, int, str, float, float]]:
    """Law, model, positives, level, weight and coverage in percent."""
    for law in LAWS:
        for model, shift in MODELS.items():
            random = np.random.default_rng(1)
            population = scores(random, law, shift, _POPULATION // 2, _POPULATION)
            truth = {level: auc(*units[:2]) for level, units in population.items()}
            for positive in POSITIVES:
                held: Counter[tuple[str, float]] = Counter()
                for _ in range(sets):
                    for level, units in scores(random, law, shift, positive, PATIENTS).items():
                        for weight in WEIGHTS:
                            intervals._PRIOR_OF_AN_AUC = weight
                            low, high = auc_interval_by_patient(*units)
                            held[level, weight] += low <= truth[level] <= high
                for level in LEVELS:
                    for weight in WEIGHTS:
                        yield law, model, positive, level, weight, 100 * held[level, weight] / sets


def main() -> None:
    """Print a Markdown table: by law, model and weight, the coverage of each level at 18, 12, 5."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=2000)
    found = {}
    for law, model, positive, level, weight, covered in cells(parser.parse_args().sets):
        found[law, model, positive, level, weight] = covered
    print("| law, model, level | " + " | ".join(f"weight {weight:g}" for weight in WEIGHTS) + " |")
    print("|---" * (len(WEIGHTS) + 1) + "|")
    for law in LAWS:
        for model in MODELS:
            for level in LEVELS:
                of_weight = (
                    " / ".join(f"{found[law, model, n, level, weight]:.1f}" for n in POSITIVES)
                    for weight in WEIGHTS
                )
                print(f"| {law}, {model}, {level} | " + " | ".join(of_weight) + " |")


if __name__ == "__main__":
    main()
