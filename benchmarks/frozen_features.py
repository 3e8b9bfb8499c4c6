"""What frozen pretrained features hold: a logistic regression on them, out of fold.

    python benchmarks/frozen_features.py STORE WEIGHTS [--split five] [--img-size 252x196]
        [--column density --positive C --positive D] [--out predictions.csv]

Class token and mean of the patch tokens of every stored image, on all patches, standardised; L2
regularisation C = 0.01, which was not tuned. Validation women are not used.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mammo_pd.backbones.build import build_backbone
from mammo_pd.data.cohort import Cohort
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.store import StorePaths, open_store
from mammo_pd.evaluation.levels import Aggregation, aggregate
from mammo_pd.evaluation.measures import auc_with_interval
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.terms import Level

MODEL = "vit_small_patch14_dinov2"
_KEPT = ["image_id", "patient_id", "exam_id", "laterality", "label", "score"]


@torch.no_grad()
def extract(
    paths: StorePaths, rows: pd.DataFrame, weights: str, img_size: tuple[int, int]
) -> np.ndarray:
    """(images, 2 * width) float32."""
    backbone = build_backbone(MODEL, img_size, weights=weights).eval()
    # The last block computes all tokens, since their mean is wanted.
    backbone.class_token_alone = False
    sampler = PatchSampler(img_size, backbone.patch_size, normalization=backbone.normalization)
    dataset = MammogramDataset(paths, rows, img_size)
    found = []
    for start in range(0, len(rows), 16):
        batch = dataset.read(range(start, min(start + 16, len(rows))))
        patches, positions = sampler.for_evaluation(batch)
        tokens = backbone.forward_features(backbone.embed(patches, positions), positions)
        found.append(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1))
    return torch.cat(found).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--split", default="five")
    parser.add_argument("--img-size", default="252x196")
    parser.add_argument("--column")
    parser.add_argument("--positive", action="append", default=[])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    height, width = map(int, given.img_size.split("x"))
    paths = open_store(given.store)
    cohorts = [Cohort.read(paths, given.split, fold) for fold in range(5)]
    rows = cohorts[0].rows.sort_values("image_id").reset_index(drop=True)
    if given.column:
        known = rows[given.column].notna()
        rows = rows[known].reset_index(drop=True)
        rows["label"] = rows[given.column].isin(given.positive).astype(int)
    features = extract(paths, rows, given.weights, (height, width))
    score = np.full(len(rows), np.nan)
    for cohort in cohorts:
        part = cohort.rows.set_index("image_id")["split"].loc[rows["image_id"]].to_numpy()
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        model.fit(features[part == "train"], rows["label"][part == "train"])
        score[part == "test"] = model.predict_proba(features[part == "test"])[:, 1]
    table = check_predictions(rows.assign(score=score))
    if given.out:
        table[_KEPT].to_csv(given.out, index=False)
    for level in (Level.IMAGE, Level.BREAST):
        units = aggregate(table, level, Aggregation.MEAN)
        found = auc_with_interval(units)
        print(
            f"AUC per {level} {found['auc']:.3f} [{found['auc_ci_low']:.3f}, "
            f"{found['auc_ci_high']:.3f}], n {len(units)}, positive {int(units['label'].sum())}"
        )


if __name__ == "__main__":
    main()
