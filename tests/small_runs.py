"""Runs of a tiny ViT on small images, for the tests of what trains them."""

from pathlib import Path

from mammo_pd.config import RunConfig, load_config
from mammo_pd.training.setup import RunSetup


def small(**changes: object) -> RunConfig:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    given = {
        "data.res": "64x48",
        "data.workers": 1,
        "model.name": "test_vit",
        "model.drop_path_rate": 0.0,
        "training.epochs": 2,
        "training.batch_size": 8,
        "device.accelerator": "cpu",
    }
    return load_config(None, {**given, **named})


def set_up(store: Path, config: RunConfig) -> RunSetup:
    return RunSetup.build(store, config, say=lambda _: None)
