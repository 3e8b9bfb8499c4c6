"""PatchDropout in a LightningModule of your own, on a store.

    mammo-pd preprocess DICOM_DIR --labels labels.csv --out store
    mammo-pd split store
    python examples/lightning_module.py store --epochs 5

Data set, sampler and backbone are mammo-pd's; trainer, optimiser and metrics are yours. The AUC is
mammo-pd's again, with its interval by patient.
"""

import argparse
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from mammo_pd.api import (
    Cohort,
    ImageBatch,
    InputError,
    MammogramDataset,
    PatchSampler,
    Split,
    auc_by_level,
    build_backbone,
    check_predictions,
    image_keys,
    open_store,
)


class PatchDropoutModule(lightning.LightningModule):
    """A ViT trained on a share of the patches, and validated on all of them."""

    def __init__(
        self, model: str, img_size: tuple[int, int], keep: float, dataset: MammogramDataset
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(model, img_size)
        self.sampler = PatchSampler(
            img_size, self.backbone.patch_size, normalization=self.backbone.normalization
        )
        self.num_keep = self.backbone.allowed_keep(keep)
        self.dataset = dataset

    def training_step(self, batch: ImageBatch, _: int) -> Tensor:
        """Draw, read the kept patches, and learn from them."""
        # All that is random about an image follows from its key, so from seed, epoch and image.
        keys = image_keys(self.dataset, batch.rows, 0, self.current_epoch, self.device)
        patches, positions = self.sampler.for_training(batch, keys, self.num_keep)
        logits = self.backbone(patches, positions, keys)
        loss = F.binary_cross_entropy_with_logits(logits, batch.targets)
        self.log("loss", loss, batch_size=len(batch), prog_bar=True)
        return loss

    def predict_step(self, batch: ImageBatch, _: int) -> Tensor:
        """(B,) scores, on every patch."""
        return self.backbone(*self.sampler.for_evaluation(batch))[:, 0].sigmoid()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, at one rate."""
        return torch.optim.AdamW(self.parameters(), 3e-4)


def labelled(cohort: Cohort, part: Split) -> pd.DataFrame:
    """Manifest rows of a part's images that have a label."""
    rows = cohort.part(part)
    return rows[rows["label"].notna()].reset_index(drop=True)


def batches(dataset: MammogramDataset, *, shuffle: bool, workers: int) -> DataLoader:
    """Torch's own loader: images differ in size, so a batch is read as one, by row numbers."""
    return DataLoader(
        range(len(dataset)),
        batch_size=8,
        shuffle=shuffle,
        collate_fn=dataset.read,
        num_workers=workers,
    )


def main() -> None:
    """Train and validate as the command line says."""
    parser = argparse.ArgumentParser(description="Train a LightningModule on a mammo-pd store.")
    parser.add_argument("store", type=Path, help="folder of the store, with a split named default")
    parser.add_argument("--model", default="vit_small_patch16_224", help="timm's name")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 384), help="height and width")
    parser.add_argument("--keep", type=float, default=0.25, help="share of the patches")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes that load images")
    options = parser.parse_args()

    lightning.seed_everything(0, verbose=False)
    paths, img_size = open_store(options.store), tuple(options.size)
    cohort = Cohort.read(paths, "default")
    rows = {part: labelled(cohort, part) for part in (Split.TRAIN, Split.VAL)}
    datasets = {
        part: MammogramDataset(paths, of_part, img_size, of_part[["label"]].to_numpy(np.float32))
        for part, of_part in rows.items()
    }
    module = PatchDropoutModule(options.model, img_size, options.keep, datasets[Split.TRAIN])
    trainer = lightning.Trainer(max_epochs=options.epochs, logger=False, enable_checkpointing=False)
    trainer.fit(module, batches(datasets[Split.TRAIN], shuffle=True, workers=options.workers))
    scores = trainer.predict(
        module, batches(datasets[Split.VAL], shuffle=False, workers=options.workers)
    )
    predictions = rows[Split.VAL].assign(score=torch.cat(scores).numpy())
    print(auc_by_level(check_predictions(predictions))[["n", "auc", "auc_ci_low", "auc_ci_high"]])


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
