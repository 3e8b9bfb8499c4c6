"""What only a GPU can show: run with -m gpu where there is one."""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mammo_pd.backbones.build import build_backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import RunConfig
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.store import open_store
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.terms import Draw
from mammo_pd.training.devices import make_fabric
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.setup import make_loader
from mammo_pd.training.step import TrainingStep, image_keys

pytestmark = pytest.mark.gpu
CANVAS = (128, 96)


@pytest.fixture
def dataset(phantom_store: Path) -> MammogramDataset:
    rows = read_manifest(phantom_store / "manifest.parquet")
    targets = rows[["label"]].to_numpy(np.float32)
    return MammogramDataset(open_store(phantom_store), rows, CANVAS, targets)


Batches = Callable[[int], tuple[ImageBatch, torch.Tensor]]


def on_gpu(batch: tuple[ImageBatch, torch.Tensor]) -> tuple[ImageBatch, torch.Tensor]:
    images, keys = batch
    return images.to(torch.device("cuda")), keys.cuda()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("draw", [Draw.UNIFORM, Draw.GRID])
def test_draws_of_a_gpu_are_those_of_a_cpu(draw: Draw, compiled: bool, batch_of: Batches) -> None:
    positions = []
    for device in ("cpu", "cuda"):
        images, keys = batch_of(64) if device == "cpu" else on_gpu(batch_of(64))
        sampler = PatchSampler((512, 384), 16, draw=draw, compiled=compiled and device == "cuda")
        patches, drawn = sampler.for_training(images, keys, 200)
        positions.append(drawn.cpu())
        assert patches.shape == (64, 200, 256)
    assert torch.equal(*positions)


@pytest.mark.parametrize("draw", list(Draw))
def test_compiled_sampler_equals_the_plain_one(draw: Draw, batch_of: Batches) -> None:
    images, keys = on_gpu(batch_of(64))
    plain = PatchSampler((512, 384), 16, draw=draw)
    compiled = PatchSampler((512, 384), 16, draw=draw, compiled=True)
    patches, positions = plain.for_training(images, keys, 200)
    read, drawn = compiled.for_training(images, keys, 200)
    if draw is not Draw.TISSUE:
        assert torch.equal(drawn, positions)
    same = (drawn == positions).all(dim=1)
    assert same.float().mean() > 0.95
    torch.testing.assert_close(read[same], patches[same], atol=2e-3, rtol=0)


def test_compiled_model_equals_eager_in_bf16(batch_of: Batches) -> None:
    torch.manual_seed(0)
    model = build_backbone("vit_tiny_patch16_224", (512, 384), drop_path_rate=0.2).cuda().train()
    images, keys = on_gpu(batch_of(16))
    patches, positions = PatchSampler((512, 384), 16).for_training(images, keys, 191)
    with torch.autocast("cuda", torch.bfloat16):
        expected = model(patches, positions, keys)
        model.compile_blocks()
        scores = model(patches, positions, keys)
    torch.testing.assert_close(scores, expected, atol=2e-2, rtol=2e-2)


def test_no_step_waits_for_the_gpu(dataset: MammogramDataset) -> None:
    fabric = make_fabric(RunConfig())
    model = build_backbone("vit_tiny_patch16_224", CANVAS, drop_path_rate=0.1)
    sampler = PatchSampler(CANVAS, 16, draw=Draw.TISSUE, compiled=True)
    model.compile_blocks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    module, optimizer = fabric.setup(model, optimizer)
    module.train()
    objective = build_objective(RunConfig().training)
    step = TrainingStep(fabric, module, optimizer, sampler, objective, clip_norm=1.0)
    batches = [list(range(8))] * 8
    loader = make_loader(dataset, batches, 2, fabric.device)
    try:
        for number, batch in enumerate(loader):
            if number == 3:
                torch.cuda.set_sync_debug_mode("error")
            step(batch, image_keys(dataset, batch.rows, 0, 0, fabric.device), 12, parts=2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_automatic_batch_is_the_largest_that_trains(phantom_store: Path, tmp_path: Path) -> None:
    """On a GPU of any size: its memory is cut so that a few images of 1024x768 fit."""
    from mammo_pd.config import load_config
    from mammo_pd.errors import InputError
    from mammo_pd.training.train import train

    def config(batch_size: int | str) -> RunConfig:
        return load_config(
            None,
            {
                "data.res": "1024x768",
                "model.name": "vit_tiny_patch16_224",
                "patch_dropout.keep_rate": 1.0,
                "training.epochs": 1,
                "training.warmup_epochs": 0,
                "training.batch_size": batch_size,
                "device.compile": False,
            },
        )

    share = 2.5 * 2**30 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        with pytest.raises(
            InputError, match=r"a batch of 32 images of 1024x768 .* does not fit in the memory of"
        ):
            train(phantom_store, tmp_path / "large", config(32), say=lambda _: None)
        run = train(phantom_store, tmp_path / "auto", config("auto"), say=lambda _: None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert run is not None
    assert pd.read_csv(run.history)["train_loss"].notna().all()
    found = load_config(run.path / "config.yaml").training.batch_size
    assert isinstance(found, int) and 1 < found < 32
    assert RunFolder.open(run.path).info.finished


_FEW_PATCHES = [
    "--res",
    "128x96",
    "--model",
    "vit_tiny_patch16_224",
    "--keep",
    "0.25",
    "--batch-size",
    "8",
]


def train_in_a_process(
    runs: Path, arguments: Sequence[str], *, interrupt_at: str = "", number: int = signal.SIGINT
) -> tuple[int, str]:
    """What its user sees: the exit status, and the lines on stderr."""
    command = [sys.executable, "-X", "faulthandler", "-m", "mammo_pd", "train"]
    with subprocess.Popen(
        [*command, *arguments, "--runs", str(runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as training:
        assert training.stdout is not None
        for line in training.stdout if interrupt_at else ():
            if line.startswith(interrupt_at):
                training.send_signal(number)
                break
        _, errors = training.communicate(timeout=240)
    return training.returncode, errors


@pytest.mark.parametrize(
    "others",
    [
        "--draw uniform",
        "--draw tissue --set patch_dropout.score_on=tissue",
        "--draw grid --set training.grad_accum_steps=3",
    ],
)
def test_deterministic_training_interrupted_and_resumed_equals_an_unbroken_one(
    others: str, phantom_store: Path, tmp_path: Path
) -> None:
    """Each in a process of its own: what is compiled depends on what came before it."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = [*_FEW_PATCHES, "--epochs", "40", "--set", "training.checkpoint_minutes=0.01"]
    settings += ["--set", "device.deterministic=true", *others.split()]
    settings += ["--store", str(phantom_store)]
    status, errors = train_in_a_process(whole, settings)
    assert status == 0, errors
    status, errors = train_in_a_process(broken, settings, interrupt_at="epoch 7/")
    assert status == 130, errors
    status, errors = train_in_a_process(broken, ["--resume"])
    assert status == 0, errors
    one, other = RunFolder.latest(whole), RunFolder.latest(broken)
    for file, again in ((one.chosen, other.chosen), (one.last, other.last)):
        tensors, others_tensors = load_file(file), load_file(again)
        assert tensors.keys() == others_tensors.keys()
        assert [
            name for name in tensors if not torch.equal(tensors[name], others_tensors[name])
        ] == []
    columns = ["train_loss", "val_auc_image"]
    histories = [pd.read_csv(run.history)[columns] for run in (one, other)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ended_by_a_signal_once_its_steps_are_captured_it_says_how_to_go_on(
    number: int, status: int, phantom_store: Path, tmp_path: Path
) -> None:
    """In a process of its own: what ends it may be the driver's doing, without a word."""
    settings = [*_FEW_PATCHES, "--epochs", "100000", "--set", "training.warmup_epochs=1"]
    settings += ["--store", str(phantom_store)]
    ended, errors = train_in_a_process(tmp_path, settings, interrupt_at="epoch 20/", number=number)
    assert ended == status, errors
    assert "--resume continues from there" in errors
    run = RunFolder.latest(tmp_path)
    assert run.last.is_file() or run.midway.is_file()
