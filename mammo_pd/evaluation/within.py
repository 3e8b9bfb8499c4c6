"""The AUC within strata: units and their strata go in; what is left of the AUC comes out.

A model may tell positives from negatives by the machine or the woman's age. A positive that is
compared only with negatives of the same machine and age band has no help from either.

Shapes: n units, m patients, s strata.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mammo_pd.errors import InputError
from mammo_pd.evaluation.intervals import Floats, Interval, Spread, auc_interval
from mammo_pd.evaluation.levels import Aggregation, aggregate, with_known_label
from mammo_pd.evaluation.measures import Row, few_patients
from mammo_pd.evaluation.measures import counted as counts_of
from mammo_pd.evaluation.roc import placements, total_of_products
from mammo_pd.evaluation.strata import values_of_units
from mammo_pd.terms import Level
from mammo_pd.wording import counted

# What an AUC is made of, and what no two women share: neither makes strata.
OUTCOME = ("label", "score")
IDENTITIES = ("image_id", "exam_id", "patient_id")
# With one patient's negatives alone, chance decides whether her stratum is easy or hard.
_MIN_PATIENTS = 2


def within_strata(
    predictions: pd.DataFrame, columns: Sequence[str], *, aggregation: Aggregation
) -> list[Row]:
    """The AUC of every level among units that share their value of every column.

    Args:
        predictions: as ``check_predictions`` returns it.
        columns: whose values together make a stratum; ages and tumour sizes are banded, what is not
            known is a value of its own, and so are several values of a unit's images together.
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
    compared = np.isin(strata, _comparable(label, patient, strata))
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
    remarks = [left_out, few_patients(units[compared])]
    row["remark"] = " ".join(filter(None, remarks)) or None
    score = units["score"].to_numpy(dtype=np.float64)
    row["auc"], interval = _estimate(
        label[compared], score[compared], patient[compared], strata[compared]
    )
    if interval is not None:
        row |= {"auc_ci_low": interval[0], "auc_ci_high": interval[1]}
    return row


def _comparable(
    label: NDArray[np.bool_], patient: NDArray[np.intp], stratum: NDArray[np.intp]
) -> NDArray[np.intp]:
    """The strata with positives, and with negatives of two patients."""
    of_patient = np.unique(np.stack([stratum[~label], patient[~label]], axis=1), axis=0)
    names, patients = np.unique(of_patient[:, 0], return_counts=True)
    found: NDArray[np.intp] = np.intersect1d(names[patients >= _MIN_PATIENTS], stratum[label])
    return found


def _estimate(
    label: NDArray[np.bool_],
    score: Floats,
    patient: NDArray[np.intp],
    stratum: NDArray[np.intp],
) -> tuple[float, Interval | None]:
    """The AUC and its interval; None where one patient has all positives, or no score differs.

    With one stratum both are those of ``auc_with_interval``. With several, the influence of a
    positive is how far its placement lies from the AUC; that of a negative, how far its lies from
    its own stratum's AUC, which counts as much as the stratum has positives.
    """
    m = int(patient.max()) + 1
    placed = np.empty(len(label))
    by_negatives, corrected = np.zeros(m), np.zeros(m)
    total, of_negatives, pairs = int(label.sum()), 0.0, []
    for name in np.unique(stratum):
        here = stratum == name
        positive, negative = here & label, here & ~label
        placed[positive], placed[negative] = placements(label[here], score[here])
        weight = int(positive.sum()) / total
        away = (placed[negative] - placed[negative].mean()) / int(negative.sum())
        moved = weight * np.bincount(patient[negative], weights=away, minlength=m)
        with_positives, with_negatives = np.unique(patient[positive]), np.unique(patient[negative])
        few, many = sorted((len(with_positives), len(with_negatives)))
        by_negatives += moved
        # Each stratum's mean was estimated from its own patients, hence n / (n - 1).
        corrected += moved * np.sqrt(len(with_negatives) / (len(with_negatives) - 1))
        of_negatives += weight**2 / len(with_negatives)
        # All pairs can be in order though a stratum of few pairs, or of much weight, is not easy.
        both = np.intersect1d(with_positives, with_negatives).size
        pairs.append(min(few, (few + many - both) // 2) * total // int(positive.sum()))
    auc = float(placed[label].mean())
    count = len(np.unique(patient[label]))
    if count < _MIN_PATIENTS:
        return auc, None
    away = (placed[label] - auc) / total
    by_positives = np.bincount(patient[label], weights=away, minlength=m).astype(np.float64)
    variance = float((by_positives**2).sum()) * count / (count - 1)
    variance += float((corrected**2).sum())
    everyone = len(np.unique(patient))
    variance += 2.0 * total_of_products(by_positives, by_negatives) * everyone / (everyone - 1)
    spread = Spread(max(variance, 0.0), Spread.of(by_positives + by_negatives).patients)
    if spread.variance == 0.0 and 0.0 < auc < 1.0:
        return auc, None
    # So many patients with negatives, in one stratum, would know the AUC as well.
    return auc, auc_interval(auc, spread, count, 1.0 / of_negatives, min(pairs))
