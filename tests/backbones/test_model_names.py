"""What timm's sources tell of its names is what timm itself knows."""

import sys
from collections.abc import Callable

import pytest
import timm
from timm.models._registry import _model_entrypoints

from mammo_pd.backbones.build import describe_backbone
from mammo_pd.backbones.model_names import _REGISTERED, _sources, refuse_unknown_model
from mammo_pd.errors import InputError


@pytest.fixture
def _not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "timm")


def _is_packaged(make: Callable[..., object]) -> bool:
    return make.__module__.partition(".")[0] in ("timm", "mammo_pd")


@pytest.mark.usefixtures("_not_imported")
def test_every_name_that_timm_takes_passes() -> None:
    """Its models, the earlier names of some, weights by their tag, and our own models."""
    names = {known for text in _sources() for known in _REGISTERED.findall(text)}
    # Other tests of this process may have registered some of a program's own.
    known = {name for name, make in _model_entrypoints.items() if _is_packaged(make)}
    assert names == known & set(timm.list_models())
    assert "vit_small_patch16_hd128_224" in names
    earlier = sorted(known - names)
    for name in ("vit_small_patch16_224.augreg_in21k", *earlier[::20], *sorted(names)[::100]):
        refuse_unknown_model(name)


@pytest.mark.usefixtures("_not_imported")
@pytest.mark.parametrize("name", ["vit_smal_patch16_224", "vit_small", "a(b", "hf-hub:a/b"])
def test_an_unknown_one_is_refused_in_the_words_of_timms_own_check(name: str) -> None:
    with pytest.raises(InputError, match="has no model") as early:
        refuse_unknown_model(name)
    with pytest.raises(InputError) as late:
        describe_backbone(name)
    assert str(early.value) == str(late.value)


def test_a_program_may_have_models_of_its_own() -> None:
    """Where timm is imported, only timm knows."""
    refuse_unknown_model("a_users_own")
