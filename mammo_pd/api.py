"""The public names for programs of your own, re-exported from where they are defined.

Each module is imported when one of its names is first used: importing all of them takes seconds and
a gigabyte, which a ``preprocess`` worker, for example, does not need. See docs/extending.md for
their use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # by a name of its own each is re-exported
    from mammo_pd.backbones.base import Backbone as Backbone
    from mammo_pd.backbones.base import ModelShape as ModelShape
    from mammo_pd.backbones.build import FAMILIES as FAMILIES
    from mammo_pd.backbones.build import build_backbone as build_backbone
    from mammo_pd.backbones.vit import VitBackbone as VitBackbone
    from mammo_pd.batch import ImageBatch as ImageBatch
    from mammo_pd.config import RunConfig as RunConfig
    from mammo_pd.config import TrainingSettings as TrainingSettings
    from mammo_pd.config import load_config as load_config
    from mammo_pd.data.cohort import Cohort as Cohort
    from mammo_pd.data.dataset import EpochBatches as EpochBatches
    from mammo_pd.data.dataset import MammogramDataset as MammogramDataset
    from mammo_pd.data.labels import label_table as label_table
    from mammo_pd.data.labels import read_labels as read_labels
    from mammo_pd.data.loader import BatchLoader as BatchLoader
    from mammo_pd.data.monai import MammogramStoreDataset as MammogramStoreDataset
    from mammo_pd.data.sources import SOURCES as SOURCES
    from mammo_pd.data.sources import Source as Source
    from mammo_pd.data.store import open_store as open_store
    from mammo_pd.errors import ImageError as ImageError
    from mammo_pd.errors import InputError as InputError
    from mammo_pd.evaluation.levels import Aggregation as Aggregation
    from mammo_pd.evaluation.measures import auc_by_level as auc_by_level
    from mammo_pd.evaluation.predictions import check_predictions as check_predictions
    from mammo_pd.evaluation.predictions import read_predictions as read_predictions
    from mammo_pd.imaging.decode import DECODERS as DECODERS
    from mammo_pd.imaging.decode import add_decoder as add_decoder
    from mammo_pd.imaging.settings import STEPS as STEPS
    from mammo_pd.imaging.settings import ImagingSettings as ImagingSettings
    from mammo_pd.inference.trained_model import TrainedModel as TrainedModel
    from mammo_pd.ingest.new_images import read_image as read_image
    from mammo_pd.ingest.preprocess import preprocess as preprocess
    from mammo_pd.ingest.transforms import mammogram_transforms as mammogram_transforms
    from mammo_pd.patches.draw import draw_grid as draw_grid
    from mammo_pd.patches.draw import draw_tissue as draw_tissue
    from mammo_pd.patches.draw import draw_uniform as draw_uniform
    from mammo_pd.patches.sampler import DRAWS as DRAWS
    from mammo_pd.patches.sampler import Kept as Kept
    from mammo_pd.patches.sampler import PatchSampler as PatchSampler
    from mammo_pd.patches.sampler import Placement as Placement
    from mammo_pd.start import main as main
    from mammo_pd.terms import Level as Level
    from mammo_pd.terms import Split as Split
    from mammo_pd.training.loop import fit as fit
    from mammo_pd.training.objectives import OBJECTIVES as OBJECTIVES
    from mammo_pd.training.objectives import Objective as Objective
    from mammo_pd.training.objectives.binary_label import BinaryLabel as BinaryLabel
    from mammo_pd.training.setup import RunSetup as RunSetup
    from mammo_pd.training.step import image_keys as image_keys
    from mammo_pd.training.train import reopen_run as reopen_run
    from mammo_pd.training.train import resume as resume
    from mammo_pd.training.train import start_run as start_run
    from mammo_pd.training.train import train as train

# {name: the module that defines it}, in the order of a project.
_HOMES = {
    # a program of your own
    "main": "mammo_pd.start",
    "InputError": "mammo_pd.errors",
    "ImageError": "mammo_pd.errors",
    "Level": "mammo_pd.terms",
    "Split": "mammo_pd.terms",
    # from files to a store
    "preprocess": "mammo_pd.ingest.preprocess",
    "STEPS": "mammo_pd.imaging.settings",
    "ImagingSettings": "mammo_pd.imaging.settings",
    "mammogram_transforms": "mammo_pd.ingest.transforms",
    "read_image": "mammo_pd.ingest.new_images",
    "DECODERS": "mammo_pd.imaging.decode",
    "add_decoder": "mammo_pd.imaging.decode",
    "SOURCES": "mammo_pd.data.sources",
    "Source": "mammo_pd.data.sources",
    "read_labels": "mammo_pd.data.labels",
    "label_table": "mammo_pd.data.labels",
    # a store and its splits
    "open_store": "mammo_pd.data.store",
    "Cohort": "mammo_pd.data.cohort",
    "MammogramDataset": "mammo_pd.data.dataset",
    "EpochBatches": "mammo_pd.data.dataset",
    "BatchLoader": "mammo_pd.data.loader",
    "ImageBatch": "mammo_pd.batch",
    "MammogramStoreDataset": "mammo_pd.data.monai",
    # models
    "PatchSampler": "mammo_pd.patches.sampler",
    "DRAWS": "mammo_pd.patches.sampler",
    "Placement": "mammo_pd.patches.sampler",
    "Kept": "mammo_pd.patches.sampler",
    "draw_uniform": "mammo_pd.patches.draw",
    "draw_tissue": "mammo_pd.patches.draw",
    "draw_grid": "mammo_pd.patches.draw",
    "image_keys": "mammo_pd.training.step",
    "build_backbone": "mammo_pd.backbones.build",
    "FAMILIES": "mammo_pd.backbones.build",
    "Backbone": "mammo_pd.backbones.base",
    "ModelShape": "mammo_pd.backbones.base",
    "VitBackbone": "mammo_pd.backbones.vit",
    "OBJECTIVES": "mammo_pd.training.objectives",
    "Objective": "mammo_pd.training.objectives",
    "BinaryLabel": "mammo_pd.training.objectives.binary_label",
    # runs and their evaluation
    "RunConfig": "mammo_pd.config",
    "TrainingSettings": "mammo_pd.config",
    "load_config": "mammo_pd.config",
    "train": "mammo_pd.training.train",
    "resume": "mammo_pd.training.train",
    "reopen_run": "mammo_pd.training.train",
    "RunSetup": "mammo_pd.training.setup",
    "start_run": "mammo_pd.training.train",
    "fit": "mammo_pd.training.loop",
    "TrainedModel": "mammo_pd.inference.trained_model",
    "read_predictions": "mammo_pd.evaluation.predictions",
    "check_predictions": "mammo_pd.evaluation.predictions",
    "auc_by_level": "mammo_pd.evaluation.measures",
    "Aggregation": "mammo_pd.evaluation.levels",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(_HOMES)
