"""What a check finds: that all is well, or what is wrong and what mends it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from mammo_pd.errors import cause_of


class State(StrEnum):
    """How it is with one thing."""

    OK = "ok"
    WARNING = "warning"  # works, but slowly or not for everything
    FAILS = "fails"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        name: of what was looked at.
        state: how it is.
        detail: what was found, in a sentence or a few figures.
        remedy: what mends it; empty if it is ok.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""


Check = Callable[[], Iterator[Finding]]


def ok(name: str, detail: str) -> Finding:
    """All is well."""
    return Finding(name, State.OK, detail)


def warning(name: str, detail: str, remedy: str) -> Finding:
    """It works, but slowly or not for everything."""
    return Finding(name, State.WARNING, detail, remedy)


def fails(name: str, detail: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(name, State.FAILS, detail, remedy)


def run_check(name: str, check: Check) -> list[Finding]:
    """Run one check; what it raises is a finding, too, so that the others are still made."""
    try:
        return list(check())
    except Exception as error:  # a doctor is called where anything may be broken
        return [
            fails(
                name,
                f"the check itself failed ({type(error).__name__}: {cause_of(error)})",
                "reinstall mammo-pd and its dependencies; if that does not help, report it.",
            )
        ]
