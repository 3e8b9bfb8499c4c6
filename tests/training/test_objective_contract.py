"""An objective of one's own that breaks its contract is told so in a sentence that names it."""

import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from torch import Tensor

from mammo_pd.cli.app import main
from mammo_pd.config import TrainingSettings
from mammo_pd.data.manifest import MANIFEST_SCHEMA
from mammo_pd.data.split_store import split_store
from mammo_pd.data.store import open_store
from mammo_pd.errors import InputError
from mammo_pd.training.objectives import OBJECTIVES, Objective
from mammo_pd.training.objectives.contract import check_names, check_scores, check_targets

WORDS = (
    "--res 64x48 --model test_vit --epochs 1 --batch-size 8 --keep 0.5 "
    "--set training.objective=own --set device.compile=false --set device.accelerator=cpu"
)


class Decades(Objective):
    """Age in decades; every attribute and method is as the base class asks."""

    num_outputs = 1
    target_columns: Any = ()
    score_columns: Any = ("decades",)
    monitor = "val_error_loss"

    def __init__(self, settings: TrainingSettings) -> None:
        pass

    def targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        return rows[["age"]].to_numpy(np.float32, na_value=np.nan) / np.float32(10)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        known = ~targets.isnan()
        return ((outputs + 6 - torch.where(known, targets, 6.0)).abs() * known).mean()

    def scores(self, outputs: Tensor) -> Tensor:
        return outputs + 6

    def metrics(self, rows: pd.DataFrame, scores: npt.NDArray[np.float64]) -> dict[str, float]:
        return {"val_error_loss": float(np.nanmean(np.abs(self.targets(rows) - scores)))}


@pytest.fixture(scope="module")
def store(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract") / "store"
    shutil.copytree(phantom_store, folder)
    split_store(open_store(folder), say=lambda _: None)
    return folder


@pytest.fixture
def train(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Train `Decades` with some of it replaced."""

    def trained(**replaced: object) -> int:
        monkeypatch.setitem(
            OBJECTIVES, "own", type("Own", (Decades,), {"__module__": __name__, **replaced})
        )
        return main(["train", *WORDS.split(), "--store", str(store), "--runs", str(tmp_path)])

    return trained


def test_one_that_keeps_it_is_trained(train: Callable[..., int]) -> None:
    assert train() == 0


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"score_columns": ("age",)}, "another column of the name age; choose other names"),
        ({"score_columns": "decades"}, "has score_columns 'decades'; give a tuple of names"),
        ({"target_columns": ("label", "dense")}, "give one score for each target"),
        (
            {"targets": lambda self, rows: rows["age"].to_numpy(np.float32)},
            "give (images, targets) float32",
        ),
        ({"targets": lambda self, rows: rows[["age"]].to_numpy(float)}, "and float64 for"),
        ({"scores": lambda self, outputs: outputs[:, 0]}, "with the score_columns ['decades']"),
        ({"score_columns": ("mean", "spread")}, "with the score_columns ['mean', 'spread']"),
        ({"num_outputs": 2, "loss": lambda self, o, t: o.mean()}, "gives scores of shape"),
        ({"monitor": "val_other"}, "monitor 'val_other', and its metrics are val_error_loss"),
    ],
)
def test_one_that_breaks_it_is_named(
    train: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    replaced: dict[str, object],
    said: str,
) -> None:
    assert train(**replaced) == 2
    error = capsys.readouterr().err
    assert f"the objective {__name__}.Own" in error
    assert said in error


@pytest.mark.parametrize("column", [*MANIFEST_SCHEMA.names, "split", "fold"])
def test_no_score_takes_the_place_of_what_is_known(column: str) -> None:
    """The true age, say, would be judged in place of the model's."""
    objective = type("Own", (Decades,), {"score_columns": (column,)})(TrainingSettings())
    with pytest.raises(InputError, match=f"such as {column}_predicted"):
        check_names(objective, [*MANIFEST_SCHEMA.names, "split", "fold"])


CLEAR = {"target_columns": ("dense",), "score_columns": ("density",)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"target_columns": ["dense"], "score_columns": ["density", "age_years"]}, None),
        ({"target_columns": ()}, None),
        # The label is what predictions.csv has beside.
        ({"target_columns": ("label",)}, None),
        ({"target_columns": "dense"}, "has target_columns 'dense'; give a tuple of names"),
        ({"target_columns": None}, "has target_columns None; give a tuple of names"),
        ({"score_columns": ("density", 2)}, r"has score_columns \('density', 2\); give a tuple"),
        ({"score_columns": ()}, r"\['dense'\] and the score_columns \[\]; give one score for each"),
        ({"score_columns": ("dense",)}, "name dense; choose other names, such as dense_predicted"),
        ({"score_columns": ("a", "b", "a")}, "name a; choose other names, such as a_predicted"),
        ({"target_columns": ("a", "a"), "score_columns": ("b", "c")}, "the name a; choose other"),
        ({"score_columns": ("label", "a", "a")}, "the name a, label; choose other names"),
        ({"score_columns": ("label", "label")}, "the name label; choose other names"),
    ],
)
def test_columns_have_a_name_each(changes: dict[str, object], said: str | None) -> None:
    objective = type("Own", (Decades,), {**CLEAR, **changes})(TrainingSettings())
    with pytest.raises(InputError, match=said) if said else nullcontext():
        check_names(objective, ["label", "age"])


@pytest.mark.parametrize(
    ("targets", "fits"),
    [
        (np.zeros((3, 1), np.float32), True),
        (np.zeros((3, 0), np.float32), True),
        (np.zeros((2, 1), np.float32), False),
        (np.zeros(3, np.float32), False),
        (np.zeros((3, 1, 1), np.float32), False),
        (np.zeros((3, 1)), False),
        (np.zeros((3, 1), np.int64), False),
    ],
)
def test_targets_are_a_row_of_float32_for_each_image(
    targets: npt.NDArray[np.generic], fits: bool
) -> None:
    objective = type("Own", (Decades,), {"targets": lambda *_: targets})(TrainingSettings())
    words = re.escape(f"gives targets of shape {targets.shape} and {targets.dtype} for 3 images")
    with nullcontext() if fits else pytest.raises(InputError, match=words):
        check_targets(objective, pd.DataFrame(index=range(3)))


@pytest.mark.parametrize("shape", [(3, 1), (3,), (3, 2), (2, 1), (1, 3), (3, 1, 1), ()])
def test_scores_are_one_of_each_column_for_each_image(shape: tuple[int, ...]) -> None:
    objective = Decades(TrainingSettings())
    words = re.escape(f"gives scores of shape {shape} for 3 images")
    with nullcontext() if shape == (3, 1) else pytest.raises(InputError, match=words):
        check_scores(objective, shape, 3)
