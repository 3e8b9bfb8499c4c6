"""The two expected errors: input that the user can fix, and an image that cannot be used."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mammo_pd.terms import Reason

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class InputError(ValueError):
    """Something given by the user cannot be used.

    The message names what was given, the cause and the remedy in a sentence or two; the command
    line prints it without a traceback and exits with status 2.
    """


# Longer texts are cut, since they become part of a sentence.
_LONGEST_CAUSE = 200


def cause_of(error: BaseException) -> str:
    """The cause of an error, for use in a sentence: one line, without ``[Errno 2]`` and paths.

    Args:
        error: as it was raised by Python or a library.

    Returns:
        The operating system's words, or the error's own first sentence.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8"
    if isinstance(error, KeyError):
        return f"it has no {error}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0].rstrip(".")[:_LONGEST_CAUSE]


class ImageError(ValueError):
    """One image cannot be used; the run goes on without it.

    Attributes:
        reason: the code that goes into the manifest.
        detail: a sentence for people. It never carries a path or an identifier, since it is
            written to the manifest.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class RefusedPixelsError(ImageError):
    """One image cannot be used for what its pixels show, which people may want to look at.

    Attributes:
        thumbnail: (h, w) uint8 of the whole frame; None where none was drawn.
        identifiers: the original ones, so that no one who was forgotten is shown.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        thumbnail: "npt.NDArray[np.uint8] | None",
        identifiers: Mapping[str, str],
    ) -> None:
        super().__init__(reason, detail)
        self.thumbnail = thumbnail
        self.identifiers = identifiers
