"""How a run's input is normalised: one mean and one deviation, for one grey channel."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Normalization:
    """What the sampler subtracts from grey values in [0, 1], and what it divides by.

    Attributes:
        mean: grey value that becomes 0.
        std: grey values per unit of the result.
    """

    mean: float = 0.5
    std: float = 0.5
