"""mammo-pd with parts of your own: a program that adds them, then used just like ``mammo-pd``.

    python examples/own_parts.py preprocess DICOM_DIR --labels outcomes.csv --source ours
    python examples/own_parts.py train --model looped_vit --draw near_chest_wall \
        --set training.objective=focal
    python examples/own_parts.py evaluate

It adds a label table in an archive's own format, a step of `preprocess`, a backbone, a loss, a
draw, another target and (`own_decoder.py`) a decoder. Worker processes and further devices import
this file again, so everything they need is added at its top level, and nothing runs there.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import own_decoder  # noqa: F401
import pandas as pd
import torch
from timm.models import (
    VisionTransformer,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)
from torch import Tensor
from torch.nn import functional as F

from mammo_pd.api import (
    DRAWS,
    FAMILIES,
    OBJECTIVES,
    SOURCES,
    STEPS,
    BinaryLabel,
    ImageBatch,
    Objective,
    PatchSampler,
    Placement,
    Source,
    TrainingSettings,
    VitBackbone,
    draw_tissue,
    main,
)


# ---- a label table in an archive's own format
def read_outcomes(table: Path, definition: str) -> pd.DataFrame:
    """One row per image: a column that identifies it, the woman, and a label of "1", "0" or ""."""
    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    known = {"malignant": "1", "benign": "0", "normal": "0" if definition == "cancer" else ""}
    return pd.DataFrame(
        {
            "path": rows["File"],
            "patient_id": rows["Woman"],
            "label": rows["Outcome"].map(known).fillna(""),
        }
    )


SOURCES["ours"] = Source(
    name="ours",
    title="Our archive",
    table="outcomes.csv, with the columns File, Woman and Outcome",
    licence="for this hospital only",
    reference="none",
    definitions={
        "cancer": "positive where the outcome is malignant",
        "malignant_or_benign": "the same, and images without a lesion have no label",
    },
    read=read_outcomes,
)


# ---- a step of preprocess, between the grey scale and the crop
def brighten(key: str) -> Callable[[dict[Any, Any]], Any]:
    """A MONAI transform, or your own: (1, H, W) in and out, values from 0 to 65535."""
    # Imported only where needed: importing MONAI takes seconds.
    from monai.transforms import AdjustContrastd

    return AdjustContrastd(key, gamma=0.8)


STEPS["brighten"] = brighten


# ---- a backbone: a model in timm's registry, and how it runs on a subset of its patches
class LoopedViT(VisionTransformer):  # type: ignore[misc]
    """A ViT that runs its blocks twice, with the same weights."""

    def forward_features(self, x: Tensor, **masks: object) -> Tensor:
        """Embed whole images and run the blocks, as timm's own `forward` expects."""
        x = self.norm_pre(self._pos_embed(self.patch_embed(x)))
        normed: Tensor = self.norm(self.blocks(self.blocks(x)))
        return normed


class LoopedBackbone(VitBackbone):
    """The same model on kept patches; embedding, pooling and head are those of any ViT."""

    def __init__(self, timm_model: LoopedViT) -> None:
        super().__init__(timm_model)
        # The shortcut for the last block does not apply: each block runs twice.
        self.class_token_alone = False
        self.plain_attention = False

    def forward_features(
        self, tokens: Tensor, positions: Tensor, keys: Tensor | None = None
    ) -> Tensor:
        """Run the blocks twice, and the final norm."""
        self.draw_paths(keys)
        vit = self.timm_model
        normed: Tensor = vit.norm(vit.blocks(vit.blocks(vit.norm_pre(tokens))))
        return normed


# timm's `register_model` looks up pretrained weights under this name.
default_cfgs = generate_default_cfgs({"looped_vit": {}})


@register_model  # type: ignore[untyped-decorator]
def looped_vit(pretrained: bool = False, **options: Any) -> LoopedViT:
    """Three blocks of width 64, run twice, on patches of 16 pixels."""
    shape = {"patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 2}
    model: LoopedViT = build_model_with_cfg(
        LoopedViT, "looped_vit", pretrained, **{**shape, **options}
    )
    return model


FAMILIES[LoopedViT] = LoopedBackbone


# ---- another loss for the label 0 or 1
class Focal(BinaryLabel):
    """Focal loss with gamma 2 (Lin et al., ICCV 2017); all else is as in `BinaryLabel`."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over the images; an image without a label contributes 0."""
        known = ~targets.isnan()
        target = torch.where(known, targets, 0.0)
        loss = F.binary_cross_entropy_with_logits(outputs, target, reduction="none")
        return (loss * (1 - torch.exp(-loss)) ** 2 * known).mean()


OBJECTIVES["focal"] = Focal


# ---- another draw
class NearChestWall(PatchSampler):
    """Patches from the half at the chest wall (the left one) first, then others."""

    def draw(self, images: ImageBatch, keys: Tensor, placement: Placement, num_keep: int) -> Tensor:
        """Draw the kept positions (B, K) int64."""
        rows, columns = self.grid_size
        column = torch.arange(rows * columns, device=keys.device) % columns
        return draw_tissue(keys, (column < columns // 2).expand(len(keys), -1), num_keep)


DRAWS["near_chest_wall"] = NearChestWall


# ---- a number to learn: without a 0/1 label, `evaluate` prints `metrics` instead of a report
class Age(Objective):
    """The woman's age in years, judged by the mean absolute error."""

    num_outputs = 1
    target_columns = ()
    score_columns = ("age_predicted",)
    # The name ends with "loss", so smaller is better.
    monitor = "val_mae_loss"

    def __init__(self, settings: TrainingSettings) -> None:
        """No settings are used."""

    def targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        """(rows, 1) float32, in years."""
        return rows[["age"]].to_numpy(np.float32, na_value=np.nan)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean absolute error, in decades relative to 60 years."""
        known = ~targets.isnan()
        wanted = (torch.where(known, targets, 60.0) - 60) / 10
        return ((outputs - wanted).abs() * known).mean()

    def scores(self, outputs: Tensor) -> Tensor:
        """(B, 1), in years."""
        return 60 + 10 * outputs

    def metrics(self, rows: pd.DataFrame, scores: npt.NDArray[np.float64]) -> dict[str, float]:
        """The mean absolute error in years."""
        return {"val_mae_loss": float(np.abs(self.targets(rows) - scores).mean())}


OBJECTIVES["age"] = Age

if __name__ == "__main__":
    sys.exit(main())
