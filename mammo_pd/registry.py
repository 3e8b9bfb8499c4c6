"""Tables of parts by name, to which programs add their own.

What is entered again, by a module that is reloaded or a notebook's cell that is run again, takes
its own place. Another thing under the same name is an error: which of the two is meant, nobody
could tell from a result.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from mammo_pd.errors import InputError

K = TypeVar("K")
V = TypeVar("V")


class Registry(dict[K, V]):
    """A dictionary in which nothing takes another thing's place."""

    def __init__(
        self, called: str, entries: Mapping[K, V], defined_by: Callable[[V], object] = lambda v: v
    ) -> None:
        """Begin with the package's own entries.

        Args:
            called: its name, for errors.
            entries: the package's own.
            defined_by: from an entry to the class or function that makes it what it is.
        """
        super().__init__(entries)
        self._called = called
        self._defined_by = defined_by

    def __setitem__(self, key: K, value: V) -> None:
        """Enter a part, in place of itself if it is entered already.

        Raises:
            InputError: another one has this name.
        """
        if key in self:
            refuse_another(
                f"{self._called}[{_shown(key)}]",
                self._defined_by(self[key]),
                self._defined_by(value),
            )
        if isinstance(key, type):
            # A class that is defined again is another key.
            for earlier in [one for one in self if one is not key and is_same(one, key)]:
                del self[earlier]
        super().__setitem__(key, value)

    def update(self, entries: Mapping[K, V]) -> None:  # type: ignore[override]
        """Enter several parts, each as by itself."""
        for key, value in entries.items():
            self[key] = value


def refuse_another(place: str, there: object, given: object) -> None:
    """Refuse to put one thing in the place of another.

    Args:
        place: that is taken, for the error.
        there: the class or function that has it.
        given: the one that is to have it.

    Raises:
        InputError: they are not the same thing.
    """
    if not is_same(there, given):
        raise InputError(
            f"{place} is {_name(there)}, and {_name(given)} would take its place; give it another "
            "name, or take the other one out first."
        )


def is_same(one: object, other: object) -> bool:
    """Whether two classes or functions are one that was defined twice: by name, and by module."""
    if one is other:
        return True
    first, second = _definition(one), _definition(other)
    if first.__qualname__ != second.__qualname__:
        return False
    # A script is one module as it is run, and another as it is imported.
    return first.__module__ == second.__module__ or (
        _file(first) is not None and _file(first) == _file(second)
    )


def _definition(thing: object) -> Any:
    while isinstance(thing, partial):
        thing = thing.func
    return thing if hasattr(thing, "__qualname__") else type(thing)


def _file(definition: Any) -> str | None:
    module = sys.modules.get(definition.__module__)
    return getattr(module, "__file__", None)


def _name(thing: object) -> str:
    definition = _definition(thing)
    return f"{definition.__module__}.{definition.__qualname__}"


def _shown(key: object) -> str:
    return key.__qualname__ if isinstance(key, type) else repr(key)
