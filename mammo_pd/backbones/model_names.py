"""timm's names of models, told without timm, whose import takes seconds."""

import difflib
import re
import sys
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from mammo_pd.errors import InputError

_REGISTERED = re.compile(r"^@register_model\b.*\ndef (\w+)\(", re.MULTILINE)
# Among these a misspelt name is looked for.
_TRANSFORMERS = ("*vit*", "deit*", "eva*", "swin_*")


def refuse_unknown_model(name: str) -> None:
    """Refuse a model that neither timm's sources nor our own speak of.

    What they speak of may still be no model, or one that cannot drop patches:
    `mammo_pd.backbones.build.reason_against` says so. Where timm is imported already, a program may
    have registered models of its own there, and nothing is refused.

    Raises:
        InputError: there is no such model.
    """
    texts = [] if "timm" in sys.modules else _sources()
    if not texts:
        return
    architecture = re.escape(name.partition(".")[0])
    # Quoted, it may be an earlier name that timm still takes.
    spoken_of = re.compile(rf"""def {architecture}\(|['"]{architecture}['".]""")
    if not any(spoken_of.search(text) for text in texts):
        raise no_such_model(name, [known for text in texts for known in _REGISTERED.findall(text)])


def no_such_model(name: str, known: list[str]) -> InputError:
    """The error for a name that is none of timm's.

    Args:
        name: that was given.
        known: names of models.
    """
    transformers = [one for one in known if any(fnmatch(one, form) for form in _TRANSFORMERS)]
    near = difflib.get_close_matches(name, transformers, n=4)
    return InputError(
        f"timm {version('timm')} has no model {name!r}; "
        + (f"similar names: {', '.join(near)}" if near else "try vit_small_patch16_224")
        + "; a model of your own exists only in the program that registers it (docs/extending.md)."
    )


@cache
def _sources() -> list[str]:
    """The text of every module that may register a model; none where timm has no sources."""
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        return []
    folders = (Path(spec.origin).parent / "models", Path(__file__).parent)
    files = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    return [file.read_text(encoding="utf-8") for file in files]
