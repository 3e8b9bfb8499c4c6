"""Weights that were checked are those that are loaded."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mammo_pd.errors import InputError
from mammo_pd.training.earlier_weights import refuse_replaced, version_of


def rewrite_in_place(file: Path) -> None:
    file.write_bytes(b"others, as many")
    os.utime(file, ns=(0, 2))


def grow(file: Path) -> None:
    file.write_bytes(b"more than there were")
    os.utime(file, ns=(0, 1))


def take_its_place(file: Path) -> None:
    """By one as large and as old."""
    beside = file.with_name("beside")
    beside.write_bytes(b"others, as many")
    os.utime(beside, ns=(0, 1))
    beside.replace(file)


@pytest.mark.parametrize("replace", [rewrite_in_place, grow, take_its_place, Path.unlink])
def test_weights_that_were_replaced_are_refused(
    replace: Callable[[Path], None], tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"some, fifteen b")
    os.utime(file, ns=(0, 1))
    before = version_of(str(file))
    refuse_replaced(str(file), before)
    replace(file)
    with pytest.raises(InputError, match=r"model\.safetensors were replaced"):
        refuse_replaced(str(file), before)


def test_weights_that_were_not_there_when_they_were_checked_are_refused(tmp_path: Path) -> None:
    for weights in (None, "timm", str(tmp_path / "none.safetensors")):
        assert version_of(weights) is None
        refuse_replaced(weights, None)
    (tmp_path / "none.safetensors").touch()
    with pytest.raises(InputError, match="were replaced"):
        refuse_replaced(str(tmp_path / "none.safetensors"), None)
