"""Which phantoms to make, and the independent random streams that make them.

Everything about a phantom is a function of (seed, patient, laterality, view). Body, tissue, lesion
and noise draw from separate streams, so a woman with her lesion and the same woman without it
differ only where the lesion lies.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from mammo_pd.errors import InputError
from mammo_pd.phantoms.vendors import VENDORS, Vendor
from mammo_pd.terms import Laterality

VIEWS = ("CC", "MLO")


@dataclass(frozen=True)
class PhantomSettings:
    """Which women to make, and at what resolution.

    Attributes:
        patients: number of women, four images each.
        seed: a different seed makes different women.
        scale: of the matrix; 1 is native (about 2560 x 2048 pixels of 0.1 mm), 0.4 gives pixels of
            0.25 mm. The field of view is unchanged; a calcification keeps its width in pixels.
        prevalence: probability that a woman has a lesion, which then lies in one breast.
        vendors: who makes the images, in equal shares.

    Raises:
        InputError: a value is out of range.
    """

    patients: int = 60
    seed: int = 0
    scale: float = 1.0
    prevalence: float = 0.45
    vendors: tuple[Vendor, ...] = VENDORS

    def __post_init__(self) -> None:
        if self.patients < 1:
            raise InputError(f"patients is {self.patients}: ask for at least one woman.")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}: give a whole number from 0 up.")
        if not 0.1 <= self.scale <= 1:
            raise InputError(f"scale is {self.scale}: give a number from 0.1 to 1 (native).")
        if not 0 <= self.prevalence <= 1:
            raise InputError(f"prevalence is {self.prevalence}: give a number from 0 to 1.")
        if not self.vendors:
            raise InputError("vendors is (): name at least one.")


class Stream(IntEnum):
    """What a random stream is used for; part of the seed, so never renumber."""

    WOMAN = 0
    CASE = 1
    BODY = 2
    TISSUE = 3
    PLACE = 4
    LESION = 5
    NOISE = 6
    VENDOR = 7


def random_stream(
    settings: PhantomSettings,
    patient: int,
    purpose: Stream,
    laterality: Laterality | None = None,
    view: str | None = None,
) -> np.random.Generator:
    """The random generator for one purpose, independent of those for all others.

    Args:
        settings: its seed is used, nothing else, so that the number of women does not matter.
        patient: index of the woman, from 0.
        purpose: what will be drawn.
        laterality: None for what both breasts share.
        view: None for what both views share.
    """
    # 0 stands for "shared", so a shared stream never coincides with that of a side or view.
    side = 0 if laterality is None else 1 + list(Laterality).index(laterality)
    projection = 0 if view is None else 1 + VIEWS.index(view)
    return np.random.default_rng([settings.seed, patient, purpose, side, projection])
