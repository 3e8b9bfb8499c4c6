"""The settings that decide the pixels of a store; loads neither MONAI nor a decoder."""

from dataclasses import dataclass

from mammo_pd.terms import Frames, VoiPolicy

# Part of the store's fingerprint: increased whenever the same file gives different pixels.
ALGORITHM_VERSION = 7


@dataclass(frozen=True)
class ImagingSettings:
    """What the user chooses about the way from file to pixels.

    Attributes:
        voi: which value-of-interest transformation to apply.
        frames: what to take from a file of several frames.
        bits_stored: bit depth of 16-bit files that are not DICOM; None for all 16.
    """

    voi: VoiPolicy = VoiPolicy.AUTO
    frames: Frames = Frames.EXCLUDE
    bits_stored: int | None = None
