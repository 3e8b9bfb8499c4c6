"""The AUC within strata: units and their strata go in; what is left of the AUC comes out.

A model may tell positives from negatives by the machine or the woman's age. A positive that is
compared only with negatives of the same machine and age band gains nothing from either.

The folds of a cross-validation are strata, too: within them, scores of one model are compared.

Shapes: n units, m patients, s strata.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mammo_pd.errors import InputError
from mammo_pd.evaluation.cutoffs import folds_of_patients
from mammo_pd.evaluation.intervals import (
    Floats,
    Interval,
    Spread,
    auc_interval,
    independent_patients,
)
from mammo_pd.evaluation.levels import Aggregation, aggregate, with_known_label
from mammo_pd.evaluation.measures import Row, few_patients
from mammo_pd.evaluation.measures import counted as counts_of
from mammo_pd.evaluation.roc import placements, total_of_products
from mammo_pd.evaluation.strata import values_of_units
from mammo_pd.terms import Level
from mammo_pd.wording import counted

# An AUC is made of the former, and no two women share the latter: neither makes strata.
OUTCOME = ("label", "score")
IDENTITIES = ("image_id", "exam_id", "patient_id")
# With one patient's negatives alone, chance decides whether her stratum is easy or hard.
_MIN_PATIENTS = 2
_ALIKE = (
    "Within every stratum all scores are equal: the AUC there is 0.5 by definition and has no "
    "interval."
)


def within_strata(
    predictions: pd.DataFrame, columns: Sequence[str], *, aggregation: Aggregation
) -> list[Row]:
    """The AUC of every level among units that share their value of every column.

    Args:
        predictions: as ``check_predictions`` returns it.
        columns: whose values together make a stratum; ages and tumour sizes are banded; an unknown
            value is a value of its own, and so is a combination of values within a unit.
        aggregation: how the scores of a unit's images are aggregated.

    Returns:
        One row per level: ``columns, level``, then as ``auc_within_strata``.

    Raises:
        InputError: the table has no such column.
    """
    check_columns(columns, predictions.columns)
    rows: list[Row] = []
    for level in Level:
        known = with_known_label(predictions, level)
        if known.empty:
            continue
        values = {name: values_of_units(known, name, level, joined=False) for name in columns}
        stratum = pd.DataFrame(values).groupby(list(columns), sort=True).ngroup()
        found = auc_within_strata(aggregate(known, level, aggregation), stratum)
        rows.append({"columns": ", ".join(columns), "level": level.value, **found})
    return rows


def within_folds(predictions: pd.DataFrame, *, aggregation: Aggregation) -> list[Row]:
    """The AUC of out-of-fold scores at every level, each fold on its own and then averaged.

    Every fold is scored by a model of its own, on a scale of its own: where one model was stopped
    early, its scores lie close together. Pooled, a positive of one model is compared with negatives
    of another, which lowers the AUC though no single model is worse.

    Args:
        predictions: as ``check_predictions`` returns it.
        aggregation: how the scores of a unit's images are aggregated.

    Returns:
        As ``within_strata``, the column being ``fold``; no rows with fewer than two folds, or where
        a patient is in several.

    Source: Forman and Scholz 2010; Parker, Günter and Bedo 2007 (what pooling does).
    """
    if "fold" not in predictions.columns or folds_of_patients(predictions) is None:
        return []
    return within_strata(predictions, ["fold"], aggregation=aggregation)


def check_columns(columns: Sequence[str], there: Iterable[object]) -> None:
    """Refuse columns that a table does not have.

    Args:
        columns: to compare within.
        there: the table's.

    Raises:
        InputError: it lacks one of them.
    """
    names = [str(name) for name in there]
    absent = [name for name in columns if name not in names]
    if absent:
        raise InputError(
            f"The predictions have no column {', '.join(absent)} to compare within: add it, or "
            f"choose from {', '.join(n for n in names if n not in (*OUTCOME, *IDENTITIES))}."
        )


def auc_within_strata(units: pd.DataFrame, stratum: ArrayLike) -> Row:
    """The probability that a random positive scores above a random negative of its own stratum.

    Ties count half. A stratum is compared where it has positives, and negatives of at least two
    patients; the positives of all others are left out and counted.

    Args:
        units: ``patient_id, label, score``.
        stratum: (n,) int, of each unit.

    Returns:
        ``n_strata, n_positive_left_out``, then as ``auc_with_interval`` of the units compared.

    Source: Janes and Pepe 2009 (the area under the covariate-adjusted ROC curve).
    """
    label = units["label"].to_numpy() == 1
    strata = np.asarray(stratum, dtype=np.intp)
    patient = np.asarray(pd.factorize(units["patient_id"], sort=True)[0], dtype=np.intp)
    compared = np.isin(strata, comparable(label, patient, strata))
    there, positives = int(label[compared].sum()), int(label.sum())
    row: Row = {
        "n_strata": len(np.unique(strata[compared])),
        "n_positive_left_out": positives - there,
        **counts_of(units[compared]),
    }
    if not positives:
        return row | {"remark": "There are no positives."}
    left_out = None
    if there < positives:
        left_out = (
            f"{counted(positives - there, 'positive')} of {positives:,} left out: a stratum is "
            "compared where it has negatives of two patients."
        )
    if not there:
        return row | {"remark": left_out}
    score = units["score"].to_numpy(dtype=np.float64)
    alike = _are_alike(score[compared], strata[compared])
    remarks = [left_out, few_patients(units[compared]), _ALIKE if alike else None]
    row["remark"] = " ".join(filter(None, remarks)) or None
    row["auc"], interval = _estimate(
        label[compared], score[compared], patient[compared], strata[compared]
    )
    if interval is not None:
        row |= {"auc_ci_low": interval[0], "auc_ci_high": interval[1]}
    return row


def comparable(
    label: NDArray[np.bool_], patient: NDArray[np.intp], stratum: NDArray[np.intp]
) -> NDArray[np.intp]:
    """The strata with positives, and with negatives of two patients: those that are compared.

    Args:
        label: (n,).
        patient: (n,) from 0.
        stratum: (n,).
    """
    of_patient = np.unique(np.stack([stratum[~label], patient[~label]], axis=1), axis=0)
    names, patients = np.unique(of_patient[:, 0], return_counts=True)
    found: NDArray[np.intp] = np.intersect1d(names[patients >= _MIN_PATIENTS], stratum[label])
    return found


def _are_alike(score: Floats, stratum: NDArray[np.intp]) -> bool:
    """Whether all scores of a stratum are equal, in every stratum."""
    pairs = np.unique(np.stack([stratum, score]), axis=1)
    return bool(pairs.shape[1] == len(np.unique(stratum)))


def _estimate(
    label: NDArray[np.bool_],
    score: Floats,
    patient: NDArray[np.intp],
    stratum: NDArray[np.intp],
) -> tuple[float, Interval | None]:
    """The AUC and its interval; None where one patient has all positives, or no score differs.

    With one stratum both are those of ``auc_with_interval``.
    """
    found = Influence.of(label, score, patient, stratum)
    positives = len(np.unique(patient[label]))
    if positives < _MIN_PATIENTS:
        return found.auc, None
    if _are_alike(score, stratum):
        return found.auc, None
    variance = found.variance(positives, len(np.unique(patient)))
    spread = Spread(variance, Spread.of(found.positives + found.negatives).patients)
    total, of_negatives, pairs = int(label.sum()), 0.0, []
    for name in np.unique(stratum):
        positive, negative = label & (stratum == name), ~label & (stratum == name)
        with_positives, with_negatives = np.unique(patient[positive]), np.unique(patient[negative])
        few, many = sorted((len(with_positives), len(with_negatives)))
        of_negatives += (int(positive.sum()) / total) ** 2 / independent_patients(patient[negative])
        # All pairs can be in order though a stratum of few pairs, or of much weight, is not easy.
        both = np.intersect1d(with_positives, with_negatives).size
        pairs.append(min(few, (few + many - both) // 2) * total // int(positive.sum()))
    # This many patients with negatives, in one stratum, would give the same precision.
    independent = independent_patients(patient[label])
    return found.auc, auc_interval(found.auc, spread, independent, 1.0 / of_negatives, min(pairs))


@dataclass(frozen=True)
class Influence:
    """The influence of each patient on an AUC within strata.

    That of a positive is how far its placement lies from the AUC; that of a negative, how far its
    placement lies from its own stratum's AUC, which counts as much as the stratum has positives.

    Attributes:
        auc: within strata.
        positives: (m,) the sum over each patient's positives.
        negatives: (m,) the sum over each patient's negatives.
        corrected: (m,) the same, for the sum of squares: each stratum's mean was estimated from its
            own n patients, hence the root of n / (n - 1).
    """

    auc: float
    positives: Floats
    negatives: Floats
    corrected: Floats

    @classmethod
    def of(
        cls,
        label: NDArray[np.bool_],
        score: Floats,
        patient: NDArray[np.intp],
        stratum: NDArray[np.intp],
    ) -> "Influence":
        """The influences on the AUC of one score.

        Args:
            label: (n,).
            score: (n,).
            patient: (n,) from 0.
            stratum: (n,), each with positives, and negatives of two patients.

        Source: Obuchowski 1997, for one stratum.
        """
        m = int(patient.max()) + 1
        placed = np.empty(len(label))
        by_negatives, corrected = np.zeros(m), np.zeros(m)
        total = int(label.sum())
        for name in np.unique(stratum):
            here = stratum == name
            positive, negative = here & label, here & ~label
            placed[positive], placed[negative] = placements(label[here], score[here])
            away = (placed[negative] - placed[negative].mean()) / int(negative.sum())
            weight = int(positive.sum()) / total
            moved = weight * np.bincount(patient[negative], weights=away, minlength=m)
            patients = len(np.unique(patient[negative]))
            by_negatives += moved
            corrected += moved * np.sqrt(patients / (patients - 1))
        auc = float(placed[label].mean())
        away = (placed[label] - auc) / total
        by_positives = np.bincount(patient[label], weights=away, minlength=m).astype(np.float64)
        return cls(auc, by_positives, by_negatives, corrected)

    def __sub__(self, other: "Influence") -> "Influence":
        """The influences on the difference in AUC of two scores of the same units."""
        return Influence(
            self.auc - other.auc,
            self.positives - other.positives,
            self.negatives - other.negatives,
            self.corrected - other.corrected,
        )

    def variance(self, positives: int, patients: int) -> float:
        """The variance of the AUC or of the difference.

        Args:
            positives: number of patients with positives, at least 2.
            patients: number of patients.
        """
        variance = float((self.positives**2).sum()) * positives / (positives - 1)
        variance += float((self.corrected**2).sum())
        both = total_of_products(self.positives, self.negatives)
        return max(0.0, variance + 2.0 * both * patients / (patients - 1))
