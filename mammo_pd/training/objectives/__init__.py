"""What a run learns: one file for each objective, one line here to register it."""

from collections.abc import Callable

from mammo_pd.config import TrainingSettings
from mammo_pd.errors import InputError
from mammo_pd.registry import Registry
from mammo_pd.training.objectives.base import Objective
from mammo_pd.training.objectives.binary_label import BinaryLabel
from mammo_pd.training.objectives.findings import Findings
from mammo_pd.training.objectives.fused_views import FusedViews
from mammo_pd.training.objectives.masked_autoencoder import MaskedAutoencoder

# By ``training.objective``: what makes one from the run's settings. A program may add its own.
OBJECTIVES: Registry[str, Callable[[TrainingSettings], Objective]] = Registry(
    "OBJECTIVES",
    {
        "binary_label": BinaryLabel,
        "findings": Findings,
        "masked_autoencoder": MaskedAutoencoder,
    },
)


def build_objective(settings: TrainingSettings) -> Objective:
    """The objective of a run's configuration.

    Raises:
        InputError: there is none of that name.
    """
    build = OBJECTIVES.get(settings.objective)
    if build is None:
        raise InputError(
            f"training.objective {settings.objective!r} does not exist; choose one of "
            f"{', '.join(OBJECTIVES)}; an objective of your own exists only in the program that "
            "adds it (docs/extending.md)."
        )
    objective = build(settings)
    return objective if settings.fusion is None else FusedViews(objective, settings)


__all__ = ["Objective", "build_objective"]
