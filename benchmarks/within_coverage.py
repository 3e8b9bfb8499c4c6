"""How often the interval of the AUC within strata holds, and how far the AUC of all is off there.

    python benchmarks/within_coverage.py [--sets 500]

Sets of 120 patients by the law of ``auc_coverage.py``, of whom 18, 12 or 5 have a cancer, at five
machines with shares of .4, .25, .2, .1 and .05 of the negatives. Women with cancer come more often
from the first (half of them), and each machine moves all logits by a number of its own: a shortcut.
In the second law cancers are also more visible at some machines than at others.
"""

import argparse

import numpy as np
import pandas as pd
from auc_coverage import LEVELS, MODELS, PATIENTS, POSITIVES

from mammo_pd.evaluation.roc import auc
from mammo_pd.evaluation.within import auc_within_strata

_OF_POSITIVES = (0.5, 0.2, 0.1, 0.1, 0.1)
_OF_NEGATIVES = (0.4, 0.25, 0.2, 0.1, 0.05)
_MOVED = np.array([1.0, 0.0, 0.5, -1.0, -0.5])
_VISIBLE = {"alike": np.ones(5), "unlike": np.array([0.5, 1.5, 1.0, 2.0, 0.0])}
_POPULATION = 200_000


def draw(
    random: np.random.Generator, visible: np.ndarray, shift: float, positive: int, patients: int
) -> dict[str, tuple[pd.DataFrame, np.ndarray]]:
    """Units and their machine by level; the first patients have the cancers."""
    machine = np.concatenate(
        [
            random.choice(5, positive, p=_OF_POSITIVES),
            random.choice(5, patients - positive, p=_OF_NEGATIVES),
        ]
    )
    logit = _MOVED[machine][:, None, None] - 3.0 + 0.6 * random.normal(size=(patients, 1, 1))
    logit = logit + 0.5 * random.normal(size=(patients, 2, 1))
    logit = logit + 0.7 * random.normal(size=(patients, 2, 2))
    logit[:positive, 0] += (shift * visible[machine[:positive]])[:, None]
    score = 1.0 / (1.0 + np.exp(-logit))
    label = np.zeros((patients, 2, 2), dtype=int)
    label[:positive, 0] = 1
    units = {
        "image": (label, score),
        "breast": (label[:, :, 0], score.mean(axis=2)),
        "exam": (label[:, 0, 0], score.mean(axis=(1, 2))),
    }
    found = {}
    for level, (labels, scores) in units.items():
        patient = np.repeat(np.arange(patients), labels.size // patients)
        table = {"patient_id": patient, "label": labels.ravel(), "score": scores.ravel()}
        found[level] = (pd.DataFrame(table), machine[patient])
    return found


def main() -> None:
    """Print a Markdown table: by law, model and level, what holds at 18, 12 and 5 positives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=500)
    sets = parser.parse_args().sets
    columns = ("machines, model, level", "AUC of all", "AUC within", "coverage at 18 / 12 / 5")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for law, visible in _VISIBLE.items():
        for model, shift in MODELS.items():
            random = np.random.default_rng(1)
            # As many negatives to a positive as in a set, so that exams count alike.
            population = draw(random, visible, shift, _POPULATION // 10, _POPULATION)
            truth = {level: auc_within_strata(*units)["auc"] for level, units in population.items()}
            held = {level: {positive: [0, 0] for positive in POSITIVES} for level in LEVELS}
            for positive in POSITIVES:
                for _ in range(sets):
                    drawn = draw(random, visible, shift, positive, PATIENTS)
                    for level, units in drawn.items():
                        row = auc_within_strata(*units)
                        if row["auc_ci_low"] is not None:
                            held[level][positive][0] += 1
                            held[level][positive][1] += (
                                row["auc_ci_low"] <= truth[level] <= row["auc_ci_high"]
                            )
            for level in LEVELS:
                table = population[level][0]
                covered = (f"{100 * yes / known:.1f}" for known, yes in held[level].values())
                cells = [f"{law}, {model}, {level}", f"{auc(table['label'], table['score']):.3f}"]
                print(
                    "| " + " | ".join([*cells, f"{truth[level]:.3f}", " / ".join(covered)]) + " |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
