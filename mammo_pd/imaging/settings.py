"""What decides the pixels of a store; known without importing MONAI."""

from dataclasses import dataclass

from mammo_pd.terms import Frames, VoiPolicy

# Part of the store's fingerprint: raised whenever the same file gives other pixels.
ALGORITHM_VERSION = 3


@dataclass(frozen=True)
class ImagingSettings:
    """What the user chooses of the way from file to pixels.

    Attributes:
        voi: which value-of-interest transformation makes the grey scale.
        frames: what is taken of a file of several frames.
    """

    voi: VoiPolicy = VoiPolicy.AUTO
    frames: Frames = Frames.EXCLUDE
