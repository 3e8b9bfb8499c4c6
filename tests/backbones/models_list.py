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
    "swin_transformer",
    "wide_heads",
)
HEAD = """# Models

Which of timm's vision transformers can be trained on a subset of their patches (`--model`), and
why the others cannot. Written by `python tests/backbones/models_list.py` with timm {version}, and
checked against the code by `tests/backbones/test_models_list.py`: do not edit it by hand. A model
that works gives, with every patch kept and no augmentation, what timm's own forward gives
(`tests/backbones/test_families.py`). `pip show timm` tells your version; other versions know other
names. Pretrained weights come under licences of their own, DINOv3's and Sapiens2's for instance:
read them before use.

Families outside this list (convolutional networks and hierarchical transformers other than Swin)
are refused: a subset of patches needs a sequence of tokens from which some can be left out.

## Swin

Swin attends within windows of 7x7 patches, so patches cannot be dropped one by one. As in the
paper, the same n rows and n columns are kept in every window (drawn anew for each image and epoch),
timm's blocks run on the smaller grid that they form, with windows of n x n, and neither the pixels
of dropped patches nor their embeddings are read or computed. `--keep` goes to the n whose share is
nearest, which the run says:

| n | 2 | 3 | 4 | 5 | 6 | 7 |
|---|---|---|---|---|---|---|
| patches kept | 8 % | 18 % | 33 % | 51 % | 73 % | all |

What that saves, swin_tiny at 896x728, batch 32, printed by `benchmarks/swin.py` (H200, 2026-11-26;
timm has no patch dropout for Swin):

| | patches kept | images/s | over timm's, eager | compiled | GiB |
|---|---|---|---|---|---|
| timm, eager | all | 180 | 1.00 | .54 | 28.1 |
| timm, compiled | all | 334 | 1.85 | 1.00 | 24.7 |
| mammo-pd | all | 351 | 1.95 | 1.05 | 24.9 |
| mammo-pd | 51 % | 728 | 4.0 | 2.2 | 11.9 |
| mammo-pd | 33 % | 1,090 | 6.0 | 3.3 | 7.6 |
| mammo-pd | 18 % | 1,527 | 8.5 | 4.6 | 4.5 |
| mammo-pd | 8 % | 2,973 | 16 | 8.9 | 2.3 |

- With `--keep` below 1, height and width are multiples of 28 pixels, a window (48 for the models
  with windows of 12x12); with every patch kept, any multiple of the patch size.
- The draws `tissue` and `grid` choose patches one by one and are refused.
- Attention roll-out is not defined for windows: the report shows the images without it.

The results of the code that was released with the paper will not come out again, for three reasons:

- That code keeps `int(7 * keep)` rows: at keep .25 n is 1 and 2 % of the patches are left, at .5 it
  is 3 and 18 %. Here the share is what `--keep` says, as nearly as windows allow, and n = 1 is
  refused, since a window of one token has nothing to attend to.
- It gathers biases and masks by indices repeated in another order than the windows come in, so that
  with more than one image in a batch most windows take those of another image's rows and columns
  (94 % of them at batch 16). Here each window takes its own image's.
- It shifts windows by 3 tokens on the smaller grid too, which at n = 3 is a whole window and at
  n = 1 three: the windows stay apart, and so nothing ever passes from one to the next before
  patches are merged. Here the shift is 3n/7, rounded. The biases of a shifted window are those of
  the places in which its rows and columns stand, on both sides of the edge that it spans; there
  they are those of a window that is not shifted.
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
    lines = [HEAD.format(version=timm.__version__), f"## Works: {len(works)}", ""]
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
