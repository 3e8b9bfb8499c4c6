"""Score the images of a run's split with its checkpoint, on all patches."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from mammo_pd.backbones.vit import PatchViT, build_vit
from mammo_pd.config import load_config
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.manifest import MANIFEST_SCHEMA, read_manifest
from mammo_pd.data.split_store import count_parts
from mammo_pd.data.splits import check_split, read_split
from mammo_pd.data.store import StorePaths, open_store, read_store_info
from mammo_pd.errors import InputError
from mammo_pd.files import atomic_write
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.terms import Split, Status
from mammo_pd.training.checkpoint import load_state, load_weights
from mammo_pd.training.devices import make_fabric
from mammo_pd.training.steps import make_loader
from mammo_pd.training.train import count_in_no_part, hash_of_labels, read_run, rows_of

_IMAGES_AT_ONCE = 8
# What a report can stratify by; the manifest's other columns are of no use to it.
_STRATA = ("manufacturer", "model", "age", "presentation_intent", "implant")


@dataclass(frozen=True)
class Scored:
    """A run's predictions and what a reader must know of them.

    Attributes:
        file: ``predictions.csv`` of the run.
        table: what it holds.
        facts: of the run, as `mammo_pd.training.train.read_run` gives them.
        epoch: whose weights were used.
        parts: patients, images and positives of each part of the split.
        label_definition: of the labels as they are in the store now.
        exclusions: images of the store that were left out, by reason.
        phantom: whether any image is a phantom.
        paths: the store.
        images: the manifest's rows of the images scored.
        model: in evaluation mode, on its device.
    """

    file: Path
    table: pd.DataFrame
    facts: dict[str, Any]
    epoch: int
    parts: list[dict[str, int | str]]
    label_definition: str | None
    exclusions: dict[str, int]
    phantom: bool
    paths: StorePaths
    images: pd.DataFrame
    model: PatchViT


def predict(
    run: Path,
    *,
    store: Path | None = None,
    checkpoint: str = "best",
    accept_other_split: bool = False,
    say: Callable[[str], None] = print,
) -> Scored:
    """Score the validation and test images of a run and write ``predictions.csv`` into it.

    Args:
        run: a run's folder.
        store: where the store lies now; by default where it was trained from.
        checkpoint: ``best`` by validation AUC, or ``last``.
        accept_other_split: score the split as it is now, though the run was trained on another.
        say: takes one line for people.

    Raises:
        InputError: no checkpoint yet, or a store or split other than the run was trained on.
    """
    facts = read_run(run)
    config = load_config(run / "config.yaml")
    # One device is enough, and it need not be of the kind that trained.
    config = replace(config, device=replace(config.device, devices=1, accelerator="auto"))
    paths = open_store(store or Path(facts["store"]))
    if read_store_info(paths)["fingerprint"] != facts["store_fingerprint"]:
        raise InputError(
            f"the run {run.name} was trained on a store made with other settings than "
            f"{paths.root}; name its own with --store."
        )
    manifest = read_manifest(paths.manifest, status=None)
    split = read_split(paths.splits, config.data.split)
    if split.hash != facts["split_hash"] and not accept_other_split:
        raise InputError(
            f"the split {split.name!r} of {paths.root} is not the one that the run {run.name} was "
            "trained on, so images it is tested on may have been trained on; restore the split, or "
            "say --accept-other-split if you know that no patient is on both sides."
        )
    check_split(split, manifest)
    if "finished" not in facts:
        say(
            f"warning: the run {run.name} was not trained to its end; what it has learnt so far is "
            "scored"
        )
    rows = rows_of(manifest, split, config.data.fold)
    if hash_of_labels(rows) != facts["labels_hash"] and not accept_other_split:
        raise InputError(
            f"the labels in {paths.root} have changed since the run {run.name} was trained; put "
            "them back with mammo-pd preprocess --labels, or say --accept-other-split to score the "
            "run by the labels as they are now."
        )
    rows = rows[rows["split"] != Split.TRAIN].reset_index(drop=True)

    img_size = (int(facts["canvas"][0]), int(facts["canvas"][1]))
    fabric = make_fabric(config)
    model = build_vit(config.model.name, img_size, global_pool=config.model.global_pool)
    if checkpoint == "best":
        epoch = int(load_weights(run / "best.safetensors", model.vit)["epoch"])
    else:
        epoch = len(load_state(run / "last.safetensors", model)["history"])
    module = fabric.setup_module(model)
    module.eval()
    sampler = PatchSampler(img_size, model.patch_size)
    dataset = MammogramDataset(paths, rows, img_size)
    starts = range(0, len(dataset), _IMAGES_AT_ONCE)
    batches = [list(range(s, min(s + _IMAGES_AT_ONCE, len(dataset)))) for s in starts]
    scores = torch.empty(len(dataset), dtype=torch.float64)
    with torch.inference_mode():
        loader = make_loader(dataset, batches, config.data.workers, fabric.device)
        for batch in tqdm(loader, desc="evaluate", unit="batch", leave=False, disable=None):
            logits = module(*sampler.for_evaluation(batch.to(fabric.device)))[:, 0]
            scores[batch.rows] = torch.sigmoid(logits.double()).cpu()

    columns = ["image_id", "patient_id", "exam_id", "laterality", "view", "label"]
    table = rows[columns].assign(score=scores.numpy(), split=rows["split"])
    if config.data.fold is not None:
        table["fold"] = config.data.fold
    # A column fold of the label table is not the fold of this split.
    kept_apart = (*MANIFEST_SCHEMA.names, *table.columns, "fold")
    further = [name for name in rows if name not in kept_apart]
    for name in (*_STRATA, *further):
        table[name] = rows[name]
    file = run / "predictions.csv"
    with atomic_write(file) as beside:
        table.to_csv(beside, index=False)
    tested = int((table["split"] == Split.TEST).sum())
    say(
        f"scored {tested} test images, which the report is of, and {len(table) - tested} of "
        f"validation, on all {model.num_tokens} patches with the weights of epoch "
        f"{epoch}"
    )
    exclusions = Counter(manifest.loc[manifest["status"] != Status.OK, "reason"])
    left_out = count_in_no_part(manifest, split)
    if left_out:
        exclusions["in no part of the split"] = left_out
    return Scored(
        file=file,
        table=table,
        facts=facts,
        epoch=epoch,
        parts=count_parts(manifest, split),
        label_definition=read_store_info(paths).get("labels", {}).get("definition"),
        exclusions=exclusions,
        phantom=bool(manifest["phantom"].fillna(False).any()),
        paths=paths,
        images=rows,
        model=model,
    )


def join_folds(scored: Sequence[Scored]) -> pd.DataFrame:
    """The predictions to judge: of one run all, of several the test images of each.

    Raises:
        InputError: the runs rest on different splits, or two test the same fold.
    """
    if len(scored) == 1:
        return scored[0].table
    if len({one.facts["split_hash"] for one in scored}) > 1:
        raise InputError("the runs rest on different splits; evaluate them one by one.")
    folds = [one.facts["fold"] for one in scored]
    if len(set(folds)) < len(folds):
        raise InputError(
            f"the runs test the folds {folds}; give one run for each fold, or one run alone."
        )
    tested = [one.table[one.table["split"] == Split.TEST] for one in scored]
    return pd.concat(tested, ignore_index=True).drop(columns="split")
