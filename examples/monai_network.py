"""Train a MONAI network on a store, with MONAI's own loader, transforms and metric.

    mammo-pd preprocess DICOM_DIR --labels labels.csv --out store
    mammo-pd split store
    python examples/monai_network.py store

It shows that a store is a MONAI data set, and no more. On 120 phantom women it takes about 20 s of
processor time, and the AUC is high because drawn lesions are easy to see: two epochs of a small
DenseNet on small images say nothing about cancer.
"""

import argparse
import math
from pathlib import Path

import torch
from monai.data import DataLoader, Dataset
from monai.metrics import ROCAUCMetric
from monai.networks.nets import DenseNet
from monai.transforms import NormalizeIntensityd, RandFlipd, Resized, SpatialPadd
from torch.nn.functional import binary_cross_entropy_with_logits

from mammo_pd.data.monai import MammogramStoreDataset
from mammo_pd.errors import InputError


def labelled(store: Path, part: str, size: int) -> Dataset:
    """The images of one part that have a label, fitted into (1, size, size)."""
    transforms = [
        Resized("image", spatial_size=size, size_mode="longest"),
        NormalizeIntensityd("image", nonzero=True),
        # Padded at the end alone: the chest wall stays at the left edge.
        SpatialPadd("image", spatial_size=(size, size), method="end"),
    ]
    if part == "train":
        transforms.append(RandFlipd("image", prob=0.5, spatial_axis=0))
    dataset = MammogramStoreDataset(store, level=512, part=part, transform=transforms)
    known = [sample for sample in dataset.data if not math.isnan(sample["label"])]
    return Dataset(known, dataset.transform)


def train_one_epoch(
    network: torch.nn.Module, batches: DataLoader, optimizer: torch.optim.Optimizer
) -> float:
    """Train once on every image; give the mean loss."""
    network.train()
    device = next(network.parameters()).device
    losses = []
    for batch in batches:
        logits = network(batch["image"].as_tensor().to(device))[:, 0]
        loss = binary_cross_entropy_with_logits(logits, batch["label"].to(logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.inference_mode()
def measure_auc(network: torch.nn.Module, batches: DataLoader) -> float:
    """The area under the ROC curve, each image for itself."""
    network.eval()
    device = next(network.parameters()).device
    auc = ROCAUCMetric()
    for batch in batches:
        logits = network(batch["image"].as_tensor().to(device))
        auc(y_pred=logits.sigmoid().cpu(), y=batch["label"][:, None])
    return float(auc.aggregate())


def main() -> None:
    """Train and validate as the command line says."""
    parser = argparse.ArgumentParser(description="Train a MONAI DenseNet on a mammo-pd store.")
    parser.add_argument("store", type=Path, help="folder of the store, with a split named default")
    parser.add_argument("--size", type=int, default=192, help="side of the input in pixels")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="processes that load images")
    options = parser.parse_args()

    torch.manual_seed(0)
    parts = {part: labelled(options.store, part, options.size) for part in ("train", "val")}
    train_batches = DataLoader(
        parts["train"], batch_size=8, shuffle=True, num_workers=options.workers
    )
    val_batches = DataLoader(parts["val"], batch_size=8, num_workers=options.workers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # DenseNet121's blocks, fewer and narrower, so that a CPU trains it in a minute.
    network = DenseNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        init_features=16,
        growth_rate=8,
        block_config=(2, 4, 4, 2),
    ).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4)
    for epoch in range(1, options.epochs + 1):
        loss = train_one_epoch(network, train_batches, optimizer)
        print(f"epoch {epoch}: loss {loss:.3f} on {len(parts['train'])} images", flush=True)
    positives = sum(int(sample["label"]) for sample in parts["val"].data)
    if not 0 < positives < len(parts["val"]):
        print(
            f"no AUC: {positives} of the {len(parts['val'])} validation images are positive, and "
            "it compares positive with negative ones"
        )
        return
    print(
        f"AUC {measure_auc(network, val_batches):.3f} by image on the {len(parts['val'])} "
        f"validation images ({positives} positive): this shows that the pieces fit, not how well "
        "the network detects cancer"
    )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
