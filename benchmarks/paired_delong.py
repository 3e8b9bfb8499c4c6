"""How often tests call two equally good models different: DeLong's, and the report's by patient.

    python benchmarks/paired_delong.py [--sets 1500]

Sets of independent patients, one unit each, with few positives among 200 negatives or among as few.
Two models see the same logit (normal; in positives moved to the right), each with noise of its own,
so that their true AUCs are equal: .70, .84 or .95. Their scores correlate by .5 or .9 within a
class. Each cell is the percentage of sets with p < .05; a set that both models rank alike has no p,
and counts as no difference. The law is the same with the classes exchanged, and so are both tests:
what is said of few positives holds for few negatives.
"""

import argparse

import numpy as np
from scipy.stats import norm

from mammo_pd.evaluation.compare import PairedTest, paired_by_patient, paired_delong

AUCS = (0.70, 0.84, 0.95)
CORRELATIONS = (0.5, 0.9)
FEW = (5, 8, 12, 18, 25, 36, 50)
MANY = 200


def draw(
    random: np.random.Generator, auc: float, correlation: float, positives: int, negatives: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, and the scores of two models of this AUC."""
    label = np.repeat([1, 0], [positives, negatives])
    shared = np.sqrt(correlation) * random.normal(size=len(label))
    # The difference of two normal scores of variance 1 has variance 2.
    shared += label * np.sqrt(2.0) * norm.ppf(auc)
    first, second = (
        shared + np.sqrt(1.0 - correlation) * random.normal(size=len(label)) for _ in range(2)
    )
    return label, first, second


def main() -> None:
    """Print a Markdown table: by the smaller class, DeLong's and the report's type I error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=1500)
    sets = parser.parse_args().sets
    laws = [(auc, correlation) for auc in AUCS for correlation in CORRELATIONS]
    columns = ["positives / negatives"]
    columns += [f"AUC {auc:.2f}, correlation {correlation}" for auc, correlation in laws]
    columns += ["mean"]
    print(f"Type I error in percent, DeLong / by patient; {sets} sets a cell.\n")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for size in [(few, MANY) for few in FEW] + [(few, few) for few in FEW]:
        patients = np.arange(sum(size))
        cells = []
        for place, (auc, correlation) in enumerate(laws):
            random = np.random.default_rng((*size, place))
            called = np.zeros(2)
            for _ in range(sets):
                given = draw(random, auc, correlation, *size)
                tests = (paired_delong(*given), paired_by_patient(*given, patients))
                called += [_is_different(test) for test in tests]
            cells.append(100 * called / sets)
        cells.append(np.mean(cells, axis=0))
        shown = (f"{delong:.1f} / {by_patient:.1f}" for delong, by_patient in cells)
        print(f"| {size[0]} / {size[1]} | " + " | ".join(shown) + " |", flush=True)


def _is_different(test: PairedTest) -> bool:
    return test.p < 0.05  # of NaN, this is False


if __name__ == "__main__":
    main()
