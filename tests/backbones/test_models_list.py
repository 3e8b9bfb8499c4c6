"""docs/models.md says of each of timm's names what the code says."""

import re

import pytest
import timm
from models_list import FILE, HEAD, model_names, read, render

from mammo_pd.backbones.build import build_backbone, describe_backbone, reason_against
from mammo_pd.errors import InputError

VERSION, REASONS = read()
same_timm = pytest.mark.skipif(
    timm.__version__ != VERSION,
    reason=f"docs/models.md was written with timm {VERSION}, and {timm.__version__} is installed",
)
# One of each reason, and some that work.
SAMPLE = [
    *{reason: name for name, reason in REASONS.items() if reason is not None}.values(),
    "vit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "vit_small_patch16_dinov3",
    "eva02_tiny_patch14_224",
]


@same_timm
def test_every_name_of_timm_is_listed() -> None:
    assert sorted(REASONS) == model_names()


@pytest.mark.parametrize("name", SAMPLE)
def test_listed_reason_is_what_the_code_says(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    reason = REASONS[name]
    assert reason_against(name) == reason
    if reason is None:
        assert describe_backbone(name).num_tokens > 0
        return
    for build in (lambda: build_backbone(name, (224, 224)), lambda: describe_backbone(name)):
        with pytest.raises(InputError, match=re.escape(reason)) as caught:
            build()
        assert name in str(caught.value)


def test_no_reason_is_only_that_there_is_no_family() -> None:
    """Each name of the list has been looked at."""
    assert not [name for name, reason in REASONS.items() if reason and "so far" in reason]


def test_what_stands_before_the_list_is_the_scripts() -> None:
    assert FILE.read_text(encoding="utf-8").startswith(HEAD.format(version=VERSION))


@pytest.mark.slow
@same_timm
def test_the_file_is_what_the_script_writes() -> None:
    assert FILE.read_text(encoding="utf-8") == render()
