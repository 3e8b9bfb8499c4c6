"""The intended use's prevalence: given for one level, it follows for the others."""

import numpy as np
import pandas as pd

from mammo_pd.errors import InputError
from mammo_pd.terms import Level


def prevalence_by_level(
    units: dict[Level, pd.DataFrame], prevalence: float, level: Level
) -> dict[Level, float]:
    """The share of positives at every level if it is ``prevalence`` at one.

    A rarer disease means fewer women who have it, not fewer positive images of those who do. So
    patients with a positive count ``r`` times as often as those without, where ``r`` gives the
    level named its prevalence; the shares at the other levels follow. Where half of a sick woman's
    images are positive, 6 positive exams in 1,000 are about 3 positive images in 1,000.

    Args:
        units: by level, as ``aggregate`` returns them.
        prevalence: share of positives in the intended use, in (0, 1).
        level: the units that it is a share of.

    Returns:
        By level; NaN where a level has no units.

    Raises:
        InputError: no weight of the patients gives the level this prevalence.
    """
    patients = units[Level.PATIENT]
    positive_patients = set(patients["patient_id"][patients["label"] == 1].tolist())
    counts = {one: _counts(rows, positive_patients) for one, rows in units.items()}
    positives, beside, others = counts[level]
    r = 1.0
    if positives:
        if not others:
            raise InputError(
                f"--prevalence {prevalence:g} cannot be computed: every patient here has a "
                f"positive {level}, so nothing is known of those who have none; add patients "
                "without, or leave --prevalence out."
            )
        reachable = positives / (positives + beside)
        if prevalence >= reachable:
            raise InputError(
                f"A prevalence of {prevalence:g} at {level} level cannot be reached: even among "
                f"patients with a positive {level} only {reachable:.3g} are positive; give a "
                "smaller one, or name the level that it is a share of (--prevalence-level)."
            )
        r = prevalence * others / (positives - prevalence * (positives + beside))
    shares = {}
    for one, (positives, beside, others) in counts.items():
        total = r * (positives + beside) + others
        shares[one] = r * positives / total if total else float("nan")
    return shares


def _counts(units: pd.DataFrame, positive_patients: set[str]) -> tuple[int, int, int]:
    """Positive units, negative units beside one in the same patient, units of other patients."""
    positive = units["label"].to_numpy() == 1
    of_positive = units["patient_id"].isin(positive_patients).to_numpy()
    return int(positive.sum()), int(np.sum(~positive & of_positive)), int(np.sum(~of_positive))
