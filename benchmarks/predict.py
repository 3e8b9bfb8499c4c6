"""How many new studies `mammo-pd predict` scores a second, and where the time goes.

    python benchmarks/predict.py [FOLDER] [--model NAME] [--res RES] [--images N] [--saliency]

FOLDER holds DICOM files; without one, phantoms of the size of real mammograms are written. The model
has random weights: what it says means nothing, and takes as long. Beside the whole command, as it is
typed, reading alone (decode, crop, pyramid) and scoring alone (all patches, images in memory).
"""

import argparse
import platform
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mammo_pd.backbones.build import build_backbone
from mammo_pd.cli.app import main as mammo_pd
from mammo_pd.config import load_config
from mammo_pd.cores import available_cores
from mammo_pd.data.record import Record
from mammo_pd.data.store import StorePaths
from mammo_pd.inference.trained_model import TrainedModel
from mammo_pd.ingest.new_images import read_new_images
from mammo_pd.ingest.walk import find_images
from mammo_pd.phantoms import PhantomSettings, write_phantoms
from mammo_pd.training.setup import RunSetup
from mammo_pd.training.train import start_run


def untrained(place: Path, model: str, res: str) -> Path:
    """A checkpoint of a model as it begins, made as a run makes it."""
    dicom = place / "few"
    labels = write_phantoms(dicom, PhantomSettings(patients=12, scale=0.15), processes=2)
    store = place / "store"
    mammo_pd(["preprocess", str(dicom), "--labels", str(labels), "--out", str(store)])
    wanted = {"data.res": res, "model.name": model, "training.batch_size": 2}
    setup = RunSetup.build(store, load_config(None, wanted), say=lambda _: None)
    run = start_run(place / "runs", setup)
    from mammo_pd.training.checkpoint import save_weights

    return run.best


def main() -> None:
    pass
