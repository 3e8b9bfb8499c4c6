"""Features of every image of a store, for those who fit their own models: a Parquet file out.

The class token and the mean of the patch tokens, of what timm's ``forward_features`` returns. What
is done is kept beside the file until all is, so a run that was killed goes on.
"""

import glob
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import build_backbone, describe_backbone
from mammo_pd.backbones.weights.report import CARD_KEY
from mammo_pd.batch import ImageBatch
from mammo_pd.config import RunConfig, resolve_img_size
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.store import open_store, read_store_info
from mammo_pd.errors import InputError
from mammo_pd.files import atomic_write, load_json, remove_leftovers, write_text
from mammo_pd.inference.predict import load_model
from mammo_pd.inference.score import IMAGES_AT_ONCE
from mammo_pd.keyed_random import image_key
from mammo_pd.locks import locked_while_there
from mammo_pd.patches.sampler import Kept, PatchSampler, sampler_class
from mammo_pd.progress import Progress
from mammo_pd.table_file import csv_text
from mammo_pd.terms import Draw
from mammo_pd.training.checkpoint import OpenCheckpoint, open_checkpoint
from mammo_pd.training.devices import make_fabric
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.objectives.findings import Target
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.setup import make_loader
from mammo_pd.wording import counted

# Images of a part; a kill loses at most so many.
_PART = 256
# Columns of the manifest that go in front of the features.
_COLUMNS = ("image_id", "patient_id", "exam_id", "laterality", "view", "label")


@dataclass(frozen=True)
class Encoder:
    """A backbone whose features are wanted.

    Attributes:
        backbone: in evaluation mode.
        img_size: (height, width) in pixels that it sees.
        name: timm's name of the model.
        weights: what they are, without a path.
        draw: how kept positions are drawn.
        targets: columns of the manifest that it has learnt.
    """

    backbone: Backbone
    img_size: tuple[int, int]
    name: str
    weights: str
    draw: str = Draw.UNIFORM
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Embedded:
    """What was written.

    Attributes:
        images: rows of the file.
        width: D, of each of the features.
        has_class_token: whether the model has one.
        num_keep: K, the patches that were read of each image.
        num_tokens: N, those of the grid.
        resumed: images that an earlier, unfinished run had done.
    """

    images: int
    width: int
    has_class_token: bool
    num_keep: int
    num_tokens: int
    resumed: int


def encoder_of_run(run: RunFolder, checkpoint: str = "model") -> Encoder:
    """The backbone of a run, as trained.

    Args:
        run: that has a checkpoint.
        checkpoint: ``model``, or ``last`` for the last epoch.
    """
    loaded = load_model(run, build_objective(run.config.training), checkpoint)
    backbone = loaded.backbone
    backbone.normalization = run.info.normalization
    weights = f"run {run.info.run_id}, epoch {loaded.epoch}"
    return Encoder(
        backbone,
        run.info.img_size,
        run.config.model.name,
        weights,
        run.config.patch_dropout.draw,
        _columns_learnt(run.config),
    )


def is_checkpoint(file: Path) -> bool:
    """Whether a file is a checkpoint of ours, which says itself what model it is of."""
    try:
        with safe_open(file, "pt") as opened:
            return CARD_KEY in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return False


def encoder_of_checkpoint(file: Path) -> Encoder:
    """The backbone in a run's model.safetensors, wherever the file lies.

    Raises:
        InputError: not such a file.
    """
    with open_checkpoint(file) as opened:
        return _encoder_of(opened)


def _encoder_of(opened: OpenCheckpoint) -> Encoder:
    header = opened.header()
    card = header.card
    assert card is not None, "is_checkpoint was asked"
    config = card.run_config()
    objective = build_objective(config.training)
    backbone = build_backbone(
        card.model,
        card.img_size,
        num_outputs=objective.num_outputs,
        global_pool=config.model.global_pool,
    )
    opened.load_into(objective.build_model(backbone), backbone.timm_model)
    backbone.normalization = card.normalization
    weights = f"{opened.path.name}, epoch {header.epochs}"
    return Encoder(
        backbone,
        card.img_size,
        card.model,
        weights,
        config.patch_dropout.draw,
        _columns_learnt(config),
    )


def _columns_learnt(config: RunConfig) -> tuple[str, ...]:
    """Columns of a manifest that a run of several targets learns: density of ``density:4@0.5``."""
    return tuple(Target.parse(given).column for given in config.training.targets or ())


def encoder_of_weights(weights: str, model: str, res: str, store: Path) -> Encoder:
    """A timm model with weights of its own or of a file.

    Args:
        weights: a file, ``timm``, a timm name or ``hf-hub:`` and a repository.
        model: timm's name.
        res: input size, as of ``train``.
        store: whose largest crop ``full`` asks for.
    """
    rows = read_manifest(open_store(store).manifest)
    if rows.empty:
        raise InputError(f"no image of the store {store} can be used.")
    largest = int(rows["crop_height"].max()), int(rows["crop_width"].max())
    img_size = resolve_img_size(res, describe_backbone(model).patch_size, largest)
    backbone = build_backbone(model, img_size, weights=weights)
    report = backbone.weights_report
    return Encoder(backbone, img_size, model, weights if report is None else report.source)


def embed(
    encoder: Encoder,
    store: Path,
    out: Path,
    *,
    keep_rate: float = 1.0,
    batch_size: int = IMAGES_AT_ONCE,
    say: Callable[[str], None] = print,
) -> Embedded:
    """Write the features of every usable image of a store.

    Args:
        encoder: whose features.
        store: of images.
        out: the Parquet file. Columns: image_id, patient_id, exam_id, laterality, view and label of
            the manifest, what else of it the encoder has learnt and the store has, ``class_token``
            (where the model has one) and ``patch_mean``, lists of D float32.
        keep_rate: share of the patches that is read, drawn for each image by its image_id alone; 1
            reads all.
        batch_size: images at once.
        say: takes one line for people.

    Raises:
        InputError: no usable image, the store does not keep a level that the size needs, the file
            cannot be written there, or another process writes it.
    """
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; name the file to write.")
    paths = open_store(store)
    rows = read_manifest(paths.manifest)
    if rows.empty:
        raise InputError(f"no image of the store {store} can be used.")
    backbone = encoder.backbone
    num_keep = backbone.num_tokens if keep_rate == 1 else backbone.allowed_keep(keep_rate)
    has_class_token = getattr(backbone.timm_model, "cls_token", None) is not None
    dataset = MammogramDataset(paths, rows, encoder.img_size)
    learnt = [name for name in encoder.targets if name in rows and name not in _COLUMNS]
    columns = [*_COLUMNS, *learnt]
    made_of = {
        "model": encoder.name,
        "weights": _digest_of(backbone.timm_model),
        "normalization": str(backbone.normalization),
        # What the file tells of the images, too: labels may have been corrected meanwhile.
        "rows": hashlib.sha256(csv_text(rows[columns]).encode()).hexdigest(),
        "store_fingerprint": read_store_info(paths)["fingerprint"],
        "img_size": list(encoder.img_size),
        "num_keep": num_keep,
        "draw": encoder.draw,
        "columns": columns,
    }
    # One device is enough, and it need not be of the kind that trained.
    fabric = make_fabric(RunConfig())
    module = fabric.setup_module(_Features(backbone, has_class_token))
    module.eval()
    # A draw of one's own, which this program may lack, is not needed for all patches.
    reads = PatchSampler if num_keep == backbone.num_tokens else sampler_class(encoder.draw)
    sampler = reads(
        encoder.img_size,
        backbone.patch_size,
        normalization=backbone.normalization,
        draw=encoder.draw,
        window=backbone.window,
    )
    keys = torch.tensor([image_key(0, 0, image_id) for image_id in dataset.image_ids])

    def features_of(chosen: range) -> npt.NDArray[np.float32]:
        batches = [
            list(chosen[first : first + batch_size]) for first in range(0, len(chosen), batch_size)
        ]
        found = []
        for batch in make_loader(dataset, batches, None, fabric.device):
            kept = None if num_keep == backbone.num_tokens else keys[batch.rows]
            found.append(_features(module, sampler, batch, num_keep, kept, fabric.device))
            progress.update(len(batch))
        return np.concatenate(found)

    parts = out.with_name(f".{out.name}.parts")
    starts = range(0, len(rows), _PART)
    files = [parts / f"{start:09d}.parquet" for start in starts]
    with _alone_at(out):
        done = _parts_of_before(parts, made_of)
        todo = [start for start in starts if start not in done]
        resumed = len(rows) - sum(min(_PART, len(rows) - start) for start in todo)
        if resumed:
            say(f"{resumed} of {counted(len(rows), 'image')} already done")
        with Progress("embed", len(rows), say, done=resumed) as progress:
            for start in todo:
                chosen = range(start, min(start + _PART, len(rows)))
                table = _table(rows[columns].iloc[chosen.start : chosen.stop], features_of(chosen))
                with atomic_write(parts / f"{start:09d}.parquet") as beside:
                    pq.write_table(table, beside)
        _join(files, out, encoder, num_keep, backbone)
        shutil.rmtree(parts)
    return Embedded(
        images=len(rows),
        width=backbone.embed_dim,
        has_class_token=has_class_token,
        num_keep=num_keep,
        num_tokens=backbone.num_tokens,
        resumed=resumed,
    )


@contextmanager
def _alone_at(out: Path) -> Iterator[None]:
    lock = out.with_name(f".{out.name}.lock")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be written ({error.strerror}); check that its folder exists and "
            "that you have permission."
        ) from error
    with locked_while_there(lock):
        remove_leftovers(out.parent, glob.escape(out.name))
        yield


class _Features(nn.Module):
    """From patches to (B, 1 or 2, D): class token (if there is one) and patches' mean."""

    def __init__(self, backbone: Backbone, has_class_token: bool) -> None:
        super().__init__()
        # The last block is to compute every token.
        backbone.class_token_alone = False
        self._backbone = backbone
        self._has_class_token = has_class_token

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        tokens = self._backbone.forward_features(
            self._backbone.embed(patches, positions), positions
        ).float()
        mean = tokens[:, self._backbone.num_prefix :].mean(dim=1, keepdim=True)
        # timm puts the class token first, and register tokens behind it.
        return torch.cat([tokens[:, :1], mean], dim=1) if self._has_class_token else mean


@torch.no_grad()
def _features(
    module: nn.Module,
    sampler: PatchSampler,
    batch: ImageBatch,
    num_keep: int,
    keys: Tensor | None,
    device: torch.device,
) -> npt.NDArray[np.float32]:
    kept = None if keys is None else Kept(num_keep, keys.to(device))
    found: Tensor = module(*sampler.for_evaluation(batch.to(device), kept))
    features: npt.NDArray[np.float32] = found.cpu().numpy()
    return features


def _table(rows: pd.DataFrame, features: npt.NDArray[np.float32]) -> pa.Table:
    """The rows with their features, (rows, 1 or 2, D)."""
    table = pa.Table.from_pandas(rows, preserve_index=False)
    names = ("class_token", "patch_mean")[-features.shape[1] :]
    for column, name in enumerate(names):
        flat = pa.array(np.ascontiguousarray(features[:, column]).reshape(-1))
        table = table.append_column(
            name, pa.FixedSizeListArray.from_arrays(flat, features.shape[2])
        )
    return table


def _join(
    parts: Sequence[Path], out: Path, encoder: Encoder, num_keep: int, backbone: Backbone
) -> None:
    """One file of all parts, a part at a time; its metadata says what made it."""
    about = {
        "model": encoder.name,
        "weights": encoder.weights,
        "img_size": f"{encoder.img_size[0]}x{encoder.img_size[1]}",
        "patches": f"{num_keep} of {backbone.num_tokens}",
        "normalization": f"{backbone.normalization}",
    }
    schema = pq.read_schema(parts[0])
    schema = schema.with_metadata({**(schema.metadata or {}), b"mammo_pd": json.dumps(about)})
    with atomic_write(out) as beside, pq.ParquetWriter(beside, schema) as writer:
        for part in parts:
            writer.write_table(pq.read_table(part).cast(schema))


def _parts_of_before(parts: Path, made_of: dict[str, object]) -> set[int]:
    """The parts that an unfinished run of the very same work left; those of other work are removed.

    Returns:
        The first row of each.
    """
    told = parts / "made_of.json"
    try:
        same = load_json(told.read_text(encoding="utf-8")) == made_of
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        write_text(told, json.dumps(made_of) + "\n")
    return {int(file.stem) for file in parts.glob("[0-9]*.parquet")}


def _digest_of(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
