"""The result of a check: all is well, or what is wrong and how to fix it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from mammo_pd.errors import cause_of


class State(StrEnum):
    """The state of one requirement."""

    OK = "ok"
    WARNING = "warning"  # works, but slowly or not for everything
    FAILS = "fails"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's output.

    Attributes:
        name: what was checked.
        state: of the requirement.
        detail: what was found, in a sentence or a few figures.
        remedy: how to fix it; empty if it is ok.
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
    """Run one check; an exception becomes a finding, so that the other checks still run."""
    try:
        return list(check())
    except Exception as error:  # anything may be broken where a doctor is needed
        first = (
            "fix what is said about folders"
            if isinstance(error, OSError)
            else "reinstall mammo-pd and its dependencies"
        )
        return [
            fails(
                name,
                f"the check itself failed ({type(error).__name__}: {cause_of(error)})",
                f"{first}; if that does not help, report it.",
            )
        ]
