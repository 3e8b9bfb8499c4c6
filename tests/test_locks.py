import errno
import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mammo_pd.errors import InputError
from mammo_pd.locks import locked, locked_while_there


@pytest.mark.parametrize("hold", [locked, locked_while_there])
def test_one_holds_it_at_a_time(hold: Callable[[Path], Any], tmp_path: Path) -> None:
    for _ in range(2):
        with hold(tmp_path / "lock"), pytest.raises(InputError, match="another process is using"):
            hold(tmp_path / "lock").__enter__()
    assert (tmp_path / "lock").exists() == (hold is locked)


def test_of_a_file_that_is_made_for_the_lock_nothing_is_left_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped"), locked_while_there(tmp_path / "lock"):
        raise RuntimeError("stopped")
    assert not [*tmp_path.iterdir()]


def test_a_file_system_without_locks_stops_no_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "lock"):
        pass
