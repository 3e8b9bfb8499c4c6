"""What decides the pixels of a store; known without importing MONAI."""

from dataclasses import dataclass

from mammo_pd.terms import VoiPolicy

# Part of the store's fingerprint: raised whenever the same file gives other pixels.
ALGORITHM_VERSION = 1


@dataclass(frozen=True)
class ImagingSettings:
    """What the user chooses of the way from file to pixels.

    Attributes:
        voi: which value-of-interest transformation makes the grey scale.
    """

    voi: VoiPolicy = VoiPolicy.AUTO
