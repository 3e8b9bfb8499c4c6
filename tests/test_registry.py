"""What a program adds: again, it takes its own place; another thing under its name is refused."""

import sys
from functools import partial
from types import ModuleType

import pytest
from pydicom import uid
from pydicom.pixels.decoders import JPEGLosslessSV1Decoder

from mammo_pd.errors import InputError
from mammo_pd.imaging import decode
from mammo_pd.imaging.decode import DECODERS, add_decoder
from mammo_pd.registry import Registry

_CODE = """
class Focal: pass
class Other: pass
def read(table): return {value}
"""


def module(name: str, value: int = 0, file: str | None = None) -> ModuleType:
    """A module as it is when it was imported, or a notebook's cell run, once more."""
    made = ModuleType(name)
    if file is not None:
        made.__file__ = file
    exec(_CODE.format(value=value), vars(made))
    sys.modules[name] = made
    return made


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


def test_what_is_entered_again_takes_its_own_place() -> None:
    registry: Registry[str, object] = Registry("PARTS", {})
    for value in (1, 2):
        ours = module("ours", value)
        registry["focal"] = ours.Focal
        registry["read"] = ours.read
        registry["partly"] = partial(ours.read, None)
        registry.update({"focal": ours.Focal})
    assert registry["focal"] is ours.Focal
    assert registry["read"](None) == registry["partly"]() == 2  # type: ignore[operator]
    del registry["focal"]
    # Run as a script, and imported by a worker.
    registry["focal"] = module("__main__", file="/ours.py").Focal
    registry["focal"] = module("__mp_main__", file="/ours.py").Focal


def test_a_class_that_is_defined_again_is_no_second_key() -> None:
    registry: Registry[type, object] = Registry("FAMILIES", {int: str})
    for _ in range(2):
        ours = module("ours")
        registry[ours.Focal] = ours.Other
    assert list(registry) == [int, ours.Focal]


@pytest.mark.parametrize("there", ["the package's", "a program's"])
def test_another_thing_under_the_same_name_is_refused(there: str) -> None:
    ours, theirs = module("ours"), module("theirs")
    registry = Registry("PARTS", {"focal": ours.Focal} if there == "the package's" else {})
    if there == "a program's":
        registry["focal"] = ours.Focal
    for other in (ours.Other, theirs.Focal, ours.read, partial(theirs.read, 1)):
        with pytest.raises(InputError, match=r"PARTS\['focal'\] is ours\.Focal, and ") as told:
            registry["focal"] = other
        with pytest.raises(InputError):
            registry.update({"focal": other})
        assert getattr(other, "func", other).__qualname__ in str(told.value)
        assert registry["focal"] is ours.Focal
    del registry["focal"]
    registry["focal"] = ours.Other


def test_a_decoder_is_added_again_and_no_other_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decode, "_ADDED", {})
    before = list(DECODERS)
    try:
        for value in (1, 2):
            plugin = module("plugin", value)
            vars(plugin).update(
                DECODER_DEPENDENCIES={uid.JPEGLosslessSV1: ()}, is_available=lambda syntax: True
            )
            add_decoder("again", "plugin", "read")
            assert ["again", *before] == DECODERS
        assert JPEGLosslessSV1Decoder._available["again"](None) == 2
        vars(module("other")).update(vars(plugin), __name__="other")
        exec(_CODE.format(value=3), vars(sys.modules["other"]))
        with pytest.raises(InputError, match=r"'again' is plugin\.read, and other\.read would"):
            add_decoder("again", "other", "read")
        with pytest.raises(InputError, match=r"'pylibjpeg' is a decoder of pydicom's"):
            add_decoder("pylibjpeg", "plugin", "read")
        vars(plugin)["DECODER_DEPENDENCIES"] = {uid.UID("1.2.3"): ()}
        with pytest.raises(InputError, match="pydicom has no decoder for each"):
            add_decoder("third", "plugin", "read")
    finally:
        JPEGLosslessSV1Decoder.remove_plugin("again")
        DECODERS[:] = before
