"""The options of a report, checked before anything is read or scored."""

from collections.abc import Sequence
from dataclasses import asdict
from math import inf

from mammo_pd.errors import InputError
from mammo_pd.evaluation.levels import Aggregation
from mammo_pd.evaluation.thresholds import MISS_COST, Reader
from mammo_pd.evaluation.within import IDENTITIES, OUTCOME
from mammo_pd.terms import Level


def check_choices(
    *,
    aggregation: str = Aggregation.MEAN,
    prevalence: float | None = None,
    prevalence_level: str = Level.EXAM,
    miss_cost: float = MISS_COST,
    reader: Reader | None = None,
    margin: float | None = None,
    within: Sequence[str] = (),
) -> Aggregation:
    """Check the options of a report, before hours are spent on scoring.

    Returns:
        The aggregation.

    Raises:
        InputError: an option is out of range.
    """
    try:
        aggregated_by = Aggregation(aggregation)
    except ValueError:
        raise InputError(
            f"There is no aggregation {aggregation!r}: choose one of {', '.join(Aggregation)}."
        ) from None
    if prevalence is not None and not 0.0 < prevalence < 1.0:
        raise InputError(
            f"A prevalence of {prevalence:g} is not a share: use a number between 0 and 1, such as "
            "0.006."
        )
    if prevalence_level not in list(Level):
        raise InputError(
            f"There is no level {prevalence_level!r} for a prevalence to be a share of: choose one "
            f"of {', '.join(Level)}."
        )
    if not 0.0 < miss_cost < inf:
        raise InputError(
            f"A miss cannot cost {miss_cost:g} false alarms: use a number above 0, such as 10. "
            "Whoever accepts any number of false alarms needs no threshold, but flags everyone."
        )
    if margin is not None and not 0.0 < margin < 0.5:
        raise InputError(
            f"A margin of {margin:g} is no difference in AUC that could still count as not worse: "
            "use a number above 0 and below 0.5, such as 0.02."
        )
    if reader is not None:
        for name, rate in asdict(reader).items():
            if not 0.0 < rate <= 1.0:
                raise InputError(
                    f"The radiologists' {name} of {rate:g} is not a share: use a number above 0 "
                    "and at most 1."
                )
    outcome = [name for name in within if name in OUTCOME]
    if outcome:
        raise InputError(
            f"The column {outcome[0]} is what an AUC is made of: compare within columns that "
            "describe an image or a woman, such as machine_id and age."
        )
    unshared = [name for name in within if name in IDENTITIES]
    if unshared:
        raise InputError(
            f"No two women share a value of {unshared[0]}, so within it there is no negative to "
            "compare a positive with: name columns that women share, such as machine_id and age."
        )
    return aggregated_by
