"""docs/models.md from the code: which of timm's vision transformers work, and why others do not.

Run ``python tests/backbones/models_list.py`` to write it anew, in about a minute.
"""

from pathlib import Path

import timm

from mammo_pd.backbones.build import reason_against

FILE = Path(__file__).parents[2] / "docs" / "models.md"
# timm's modules that hold columnar vision transformers; a module may be younger than the oldest
# version of timm that we support, and then lists nothing.
_MODULES = (
    "vision_transformer",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "vision_transformer_sam",
    "deit",
    "eva",
    "beit",
    "vitamin",
    "naflexvit",
    "wide_heads",
)
_HEAD = """# Models

Which of timm's vision transformers can be trained on a subset of their patches (`--model`), and
why the others cannot. Written by `python tests/backbones/models_list.py` with timm {version}, and
checked against the code by `tests/backbones/test_models_list.py`: do not edit it by hand. A model
that works gives, with every patch kept and no augmentation, what timm's own forward gives
(`tests/backbones/test_families.py`). `pip show timm` tells your version; other versions know other
names. Pretrained weights come under licences of their own, DINOv3's and Sapiens2's for instance:
read them before use.

Families outside this list (convolutional networks, Swin and other hierarchical transformers) are
refused: a subset of patches needs a sequence of tokens from which some can be left out.
"""


def model_names() -> list[str]:
    """Every name in timm's modules of vision transformers."""
    return sorted({name for module in _MODULES for name in timm.list_models(module=module)})


def render() -> str:
    """The whole file."""
    works, refused = [], {}
    for name in model_names():
        reason = reason_against(name)
        if reason is None:
            works.append(name)
        else:
            refused.setdefault(reason, []).append(name)
    lines = [_HEAD.format(version=timm.__version__), f"## Works: {len(works)}", ""]
    lines += [f"- `{name}`" for name in works]
    lines += ["", f"## Refused: {sum(map(len, refused.values()))}"]
    for reason, names in sorted(refused.items(), key=lambda item: item[1]):
        lines += ["", f"### It {reason}", "", *(f"- `{name}`" for name in names)]
    return "\n".join(lines) + "\n"


def read() -> tuple[str, dict[str, str | None]]:
    """The version of timm that the file was written with, and each name's reason, None if it works.

    Reasons are as in the file's headings, without "It".
    """
    text = FILE.read_text(encoding="utf-8")
    reason: str | None = None
    reasons = {}
    for line in text.splitlines():
        if line.startswith("### It "):
            reason = line.removeprefix("### It ")
        elif line.startswith("- `"):
            reasons[line.removeprefix("- `").removesuffix("`")] = reason
    version = text.partition("with timm ")[2].partition(",")[0]
    return version, reasons


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
