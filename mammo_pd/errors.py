"""What can go wrong: input that a user can mend, and one image that cannot be used."""

from mammo_pd.terms import Reason


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message names what was given, the cause and the remedy in a sentence or two; the command
    line prints it without a traceback and exits with status 2.
    """


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
