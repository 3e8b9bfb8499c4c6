"""What a run learns: one file for each objective, one line here to register it."""

from collections.abc import Callable

from mammo_pd.config import TrainingSettings
from mammo_pd.training.objectives.base import Objective
from mammo_pd.training.objectives.binary_label import BinaryLabel

_OBJECTIVES: dict[str, Callable[[TrainingSettings], Objective]] = {
    "binary_label": BinaryLabel,
}


def build_objective(settings: TrainingSettings) -> Objective:
    """The objective of a run's configuration."""
    return _OBJECTIVES["binary_label"](settings)


__all__ = ["Objective", "build_objective"]
