"""mammo-pd with an objective of its own, as a user's program would add one.

Two findings of each image, one of them missing where the label is 0, learnt by a module around the
backbone; the column ``label`` is not a target. It is started as mammo-pd is, with the same words.
"""

import sys

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mammo_pd.backbones.base import Backbone
from mammo_pd.cli.app import main
from mammo_pd.training.objectives import OBJECTIVES, Objective


class TwoHeads(nn.Module):
    """A backbone without its head; a buffer, too, as many modules have."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.norm = nn.BatchNorm1d(backbone.embed_dim)
        self.heads = nn.Linear(backbone.embed_dim, 2)

    def forward(self, patches: Tensor, positions: Tensor, keys: Tensor | None = None) -> Tensor:
        tokens = self.backbone.embed(patches, positions)
        pooled = self.backbone.pool(self.backbone.forward_features(tokens, positions, keys))
        return self.heads(self.norm(pooled))  # type: ignore[no-any-return]


class Findings(Objective):
    """Dense or not, known of every image; and above 55, known of positives alone."""

    num_outputs = 0
    target_columns = ("dense", "older")
    score_columns = ("dense_score", "older_score")
    monitor = "val_accuracy"

    def targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        dense = rows["density"].isin(["C", "D"])
        older = (rows["age"] > 55).where((rows["density"] != "A").to_numpy(bool))
        columns = pd.DataFrame({"dense": dense, "older": older})
        return columns.to_numpy(np.float32, na_value=np.nan)

    def build_model(self, backbone: Backbone) -> nn.Module:
        return TwoHeads(backbone)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        known = ~targets.isnan()
        loss = F.binary_cross_entropy_with_logits(
            outputs, torch.where(known, targets, 0.0), reduction="none"
        )
        return (loss * known).sum(dim=1).mean()

    def scores(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def metrics(self, rows: pd.DataFrame, scores: npt.NDArray[np.float64]) -> dict[str, float]:
        targets = self.targets(rows)
        right = (scores > 0.5) == (targets > 0.5)
        return {"val_accuracy": float(right[~np.isnan(targets)].mean())}


if __name__ == "__main__":
    OBJECTIVES["two_findings"] = lambda _: Findings()
    sys.exit(main(sys.argv[1:]))
