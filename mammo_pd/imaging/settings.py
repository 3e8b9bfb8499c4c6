"""The settings that decide the pixels of a store; loads neither MONAI nor a decoder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mammo_pd.errors import InputError
from mammo_pd.registry import Registry
from mammo_pd.terms import Frames, VoiPolicy

# Part of the store's fingerprint: increased whenever the same file gives different pixels.
ALGORITHM_VERSION = 8

# Steps that a program adds between the grey scale and the crop, by name: from the image's key to a
# MONAI dictionary transform (docs/extending.md).
STEPS: Registry[str, Callable[[str], Callable[[dict[Any, Any]], Any]]] = Registry("STEPS", {})


@dataclass(frozen=True)
class ImagingSettings:
    """What the user chooses about the way from file to pixels.

    Attributes:
        voi: which value-of-interest transformation to apply.
        frames: what to take from a file of several frames.
        bits_stored: bit depth of 16-bit files that are not DICOM; None for all 16.
        steps: names of `STEPS`, in their order.

    Raises:
        InputError: this program has no such step.
    """

    voi: VoiPolicy = VoiPolicy.AUTO
    frames: Frames = Frames.EXCLUDE
    bits_stored: int | None = None
    steps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.refuse_unknown_steps()

    def refuse_unknown_steps(self) -> None:
        """Refuse to leave a step out; in a worker, which gets the settings of another process, too.

        Raises:
            InputError: this process has no such step.
        """
        unknown = [name for name in self.steps if name not in STEPS]
        if unknown:
            raise InputError(
                f"the images are prepared with steps that this program does not have "
                f"({', '.join(unknown)}); start the program that adds them to STEPS at its top "
                "level, without --scheduler (docs/extending.md)."
            )

    def recorded(self) -> dict[str, Any]:
        """As stores and predictions record them; without steps as before there were any."""
        found: dict[str, Any] = {
            "voi": str(self.voi),
            "frames": str(self.frames),
            "bits_stored": str(self.bits_stored),
        }
        return found | ({"steps": list(self.steps)} if self.steps else {})
