import dataclasses
import itertools
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from lightning.fabric.plugins import MixedPrecision
from safetensors import safe_open
from small_runs import set_up, small
from torch import Tensor
from torch.nn import functional as F

from mammo_pd.backbones.build import build_backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import TrainingSettings
from mammo_pd.data.loader import ReadRate
from mammo_pd.errors import InputError
from mammo_pd.tracking import MlflowRun
from mammo_pd.training import loop
from mammo_pd.training.batch_size import DoesNotFitError
from mammo_pd.training.loop import fit, learning_rate
from mammo_pd.training.objectives import Objective
from mammo_pd.training.objectives.binary_label import BinaryLabel
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.scoring import score_batches
from mammo_pd.training.setup import RunSetup
from mammo_pd.training.step import TrainingStep, can_fuse
from mammo_pd.training.train import start_run

STILL = {
    f"augment.{name}": 0.0
    for name in (
        "vertical_flip",
        "rotation_degrees",
        "scale",
        "shift",
        "gamma",
        "contrast",
    )
}


def fitted(setup: RunSetup, runs: Path) -> tuple[RunFolder, list[dict[str, float]]]:
    run = start_run(runs, setup)
    return run, fit(setup, run)


class Log:
    """Stands in for MLflow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []

        def log(_: MlflowRun, metrics: dict[str, float], step: int, **__: object) -> None:
            self.steps.append((step, metrics))

        monkeypatch.setattr(MlflowRun, "log", log)


def test_one_batch_is_learnt_by_heart(phantom_store: Path) -> None:
    setup = set_up(phantom_store, small(**STILL))
    # Fixed images: which ones a store gives depends on its random key.
    noise = np.random.default_rng(0).integers(0, 65536, (8, 64, 48), dtype=np.uint16)
    targets = (torch.arange(8) % 2).float()[:, None]
    batch = dataclasses.replace(ImageBatch.from_images(list(noise)), targets=targets)
    keys = torch.arange(8)
    optimizer = torch.optim.AdamW(setup.backbone.parameters(), lr=1e-4)
    model, optimizer = setup.fabric.setup(setup.backbone, optimizer)
    step = TrainingStep(setup.fabric, model.train(), optimizer, setup.sampler, setup.objective, 1.0)
    losses = []
    # The rate falls to 0, as in a run: at a constant one the last update can overshoot.
    for number in range(60):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, 60, 5, 3e-3)
        losses.append(step(batch, keys, setup.backbone.num_tokens).item())
    assert losses[-1] < 0.1 * losses[0]
    model.eval()
    ((_, scores),) = score_batches(
        model, setup.sampler, setup.objective, [batch], setup.fabric.device
    )
    assert torch.equal(scores[:, 0] > 0.5, batch.targets[:, 0] > 0.5)


def test_parts_of_a_step_give_together_what_the_whole_gives(phantom_store: Path) -> None:
    """Also where targets are missing, and parts are of unequal size."""
    setup = set_up(phantom_store, small())
    batch, keys = setup.train_set.read(range(8)), torch.arange(8)
    batch.targets[3] = torch.nan
    found = []
    for parts in (1, 2, 3, 8, 11):
        torch.manual_seed(0)
        backbone = build_backbone("test_vit", (64, 48))
        # A rate of 0 leaves the weights, so that losses and gradients can be compared.
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.0)
        model, optimizer = setup.fabric.setup(backbone, optimizer)
        gradients: dict[str, Tensor] = {}

        def keep(*_: object, backbone: Any = backbone, into: Any = gradients) -> None:
            into.update({n: p.grad.clone() for n, p in backbone.named_parameters()})

        optimizer.optimizer.register_step_pre_hook(keep)
        step = TrainingStep(setup.fabric, model.train(), optimizer, setup.sampler, setup.objective)
        found.append((step(batch, keys, 6, parts), gradients))
    (loss, gradients), *others = found
    assert len(gradients) == len(list(setup.backbone.parameters()))
    for other_loss, other in others:
        torch.testing.assert_close(other_loss, loss, atol=1e-6, rtol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-3)


def test_batch_that_does_not_fit_is_refused_with_what_to_change(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    setup = set_up(phantom_store, small())
    monkeypatch.setattr(setup.backbone, "forward", full)
    with pytest.raises(DoesNotFitError, match=r"8 images of 64x48 with 3 patches .* --batch-size"):
        fitted(setup, tmp_path)
    # What holds nothing is not left to be taken for the latest run.
    assert not list(tmp_path.glob("*/run.json"))


def test_losses_are_read_late_and_all_of_them(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(monkeypatch)
    setup = set_up(phantom_store, small(training__epochs=1, training__batch_size=1))
    steps = len(setup.train_set)
    assert 20 < steps < 60
    _, history = fitted(setup, tmp_path)
    logged = [(step, metrics["step_loss"]) for step, metrics in log.steps if "step_loss" in metrics]
    windows = [*range(20, steps, 20), steps]
    assert [step for step, _ in logged] == windows
    counts = np.diff([0, *windows])
    mean = sum(loss * count for (_, loss), count in zip(logged, counts, strict=True)) / steps
    assert history[0]["train_loss"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("choice", ["last", "best"])
def test_weights_that_are_kept_are_those_of_the_chosen_epoch(
    choice: str, phantom_store: Path, tmp_path: Path
) -> None:
    config = small(training__epochs=5, training__choose_epoch=choice)
    run, history = fitted(set_up(phantom_store, config), tmp_path)
    # Of two equally good epochs the later one is kept.
    best = max(history, key=lambda metrics: (metrics["val_auc_image"], metrics["epoch"]))
    with safe_open(run.chosen, "pt") as file:
        kept = json.loads(file.metadata()["facts"])["epoch"]
    assert kept == (5 if choice == "last" else best["epoch"])


def test_earlier_runs_keep_their_best_epoch(phantom_store: Path, tmp_path: Path) -> None:
    """Their configuration has no choose_epoch, and their weights another name."""
    run, _ = fitted(set_up(phantom_store, small(training__epochs=2)), tmp_path)
    file = run.path / "config.yaml"
    file.write_text(re.sub(r"\n  choose_epoch: .*", "", file.read_text()))
    run.chosen.rename(run.path / "best.safetensors")
    earlier = RunFolder.open(run.path)
    assert earlier.config.training.choose_epoch == "best"
    assert earlier.chosen.name == "best.safetensors"
    assert not (run.path / "model.safetensors").exists()


def test_a_disk_that_is_too_slow_is_named_once(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading that keeps up is passed over; here it takes a million times as long."""
    said: list[str] = []
    setup = dataclasses.replace(set_up(phantom_store, small()), say=said.append)
    add = ReadRate.add
    monkeypatch.setattr(
        ReadRate, "add", lambda rate, images, size, seconds: add(rate, images, size, 1e6 * seconds)
    )
    fitted(setup, tmp_path)
    first, second = (number for number, line in enumerate(said) if line.startswith("epoch "))
    assert [line for line in said if line.startswith("waited ")] == [said[first + 1]]
    assert said[first + 1].startswith("waited 100 % of the time for data: a first reading, ")
    assert second > first + 1


def test_loss_that_is_not_finite_stops_with_the_remedy(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = set_up(phantom_store, small(training__epochs=2))
    run = start_run(tmp_path, setup)
    calls, per_epoch = itertools.count(), len(setup.train_batches())

    class Breaks(BinaryLabel):
        """Its loss is not finite in the second epoch."""

        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            loss = super().loss(outputs, targets)
            return loss * (math.nan if next(calls) >= per_epoch else 1)

    broken = dataclasses.replace(setup, objective=Breaks(setup.config.training))
    with pytest.raises(InputError, match=r"no longer finite in epoch 2.*lower --lr"):
        fit(broken, run)
    # The checkpoint of the first epoch is whole, and can be gone on from.
    with safe_open(run.last, "pt") as file:
        assert len(json.loads(file.metadata()["facts"])["history"]) == 1
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118


def test_last_update_of_an_epoch_that_spoils_the_weights_stops_with_the_remedy(
    phantom_store: Path, tmp_path: Path
) -> None:
    """No loss tells of it: the next thing that the weights compute is validation."""
    config = small(training__epochs=1, training__batch_size=1000, training__lr=1e37)
    setup = set_up(phantom_store, config.replace(training=config.training.replace(warmup_epochs=0)))
    assert len(setup.train_batches()) == 1
    with pytest.raises(InputError, match=r"scores.*no longer finite in epoch 1.*lower --lr"):
        fit(setup, start_run(tmp_path, setup))


@pytest.mark.parametrize(
    ("losses", "best", "told"),
    [
        ((0.69, 0.685, 0.5, 0.3), 2, True),
        ((0.69, 0.685, 0.5, 0.3), 3, False),
        ((0.69, 0.69, 0.69, 0.69), 2, False),  # that is told by then
    ],
)
def test_chosen_epoch_that_had_learnt_nothing_is_told_of(
    phantom_store: Path, losses: tuple[float, ...], best: int, told: bool
) -> None:
    said: list[str] = []
    setup = dataclasses.replace(set_up(phantom_store, small()), say=said.append)
    chance = setup.objective.chance_loss(setup.train_set.judged_targets.numpy())
    assert chance is not None
    history = [{"train_loss": chance * loss / 0.69} for loss in losses]
    loop._warn_if_chosen_had_learnt_nothing(setup, history, best)
    assert len(said) == told
    assert not told or (f"{best} of 4" in said[0] and "--checkpoint last" in said[0])


@pytest.mark.parametrize(
    ("losses", "epochs", "told"),
    [
        ((0.72, 0.7, 0.71), 30, True),
        ((0.72, 0.5, 0.3), 30, False),
        ((0.72, 0.7, 0.71), 3, False),  # trained to its end
        ((0.7,) * 12, 30, False),  # told after ten epochs
    ],
)
def test_patience_that_ends_training_before_anything_is_learnt_is_told_of(
    phantom_store: Path, losses: tuple[float, ...], epochs: int, told: bool
) -> None:
    said: list[str] = []
    config = small(training__epochs=epochs, training__patience=1, training__choose_epoch="best")
    setup = dataclasses.replace(set_up(phantom_store, config), say=said.append)
    chance = setup.objective.chance_loss(setup.train_set.judged_targets.numpy())
    assert chance is not None
    history = [{"train_loss": chance * loss / 0.69} for loss in losses]
    loop._warn_if_chosen_had_learnt_nothing(setup, history, 2)
    assert len(said) == told
    assert not told or "training.patience ended training after 3 of 30 epochs" in said[0]


def test_metrics_are_logged_per_step_and_per_epoch(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(monkeypatch)
    setup = set_up(phantom_store, small(training__epochs=3))
    fitted(setup, tmp_path)
    each = len(setup.train_batches())
    steps = [step for step, metrics in log.steps if "step_loss" in metrics]
    epochs = [step for step, metrics in log.steps if "val_auc_image" in metrics]
    assert steps == epochs == [each, 2 * each, 3 * each]


# ---- another objective through the same loop


class Findings(Objective):
    """Several findings of each image, some of them unknown: a head of T outputs."""

    monitor = "val_mean_error"

    def __init__(self, columns: tuple[str, ...]) -> None:
        self._columns = columns
        self.num_outputs = len(columns)
        self.target_columns = columns
        self.score_columns = tuple(f"score_{column}" for column in columns)

    def targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        return rows[list(self._columns)].to_numpy(np.float32, na_value=np.nan)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        known = ~targets.isnan()
        loss = F.binary_cross_entropy_with_logits(
            outputs, torch.where(known, targets, 0.0), reduction="none"
        )
        return (loss * known).sum(dim=1).mean()

    def scores(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def metrics(self, rows: pd.DataFrame, scores: npt.NDArray[np.float64]) -> dict[str, float]:
        error = np.abs(scores - self.targets(rows))
        return {"val_mean_error": -float(np.nanmean(error))}


def test_three_findings_with_missing_targets_train_through_the_same_loop(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mammo_pd.data import cohort
    from mammo_pd.training import run_data

    read = cohort.read_manifest

    def with_findings(*arguments: Any, **options: Any) -> pd.DataFrame:
        rows = read(*arguments, **options)
        draw = np.random.default_rng(0)
        known = draw.random(len(rows)) < 0.5
        return rows.assign(
            dense=(rows["image_id"].str[0] < "8").astype(float),
            calcification=np.where(known, rows["label"], np.nan),
            never=np.nan,
        )

    monkeypatch.setattr(cohort, "read_manifest", with_findings)
    findings = Findings(("dense", "calcification", "never"))
    monkeypatch.setattr(run_data, "build_objective", lambda _: findings)
    setup = set_up(phantom_store, small(training__epochs=8, training__lr=1e-3))
    never = setup.backbone.timm_model.get_classifier().weight[2].detach().clone()
    run, history = fitted(setup, tmp_path)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert np.isfinite([metrics["val_mean_error"] for metrics in history]).all()
    # What is never known has no gradient; weight decay alone moved it.
    after = setup.backbone.timm_model.get_classifier().weight[2].detach()
    assert F.cosine_similarity(after, never, dim=0) == pytest.approx(1, abs=1e-5)
    assert run.chosen.is_file()


def test_missing_labels_change_neither_loss_nor_gradient(phantom_store: Path) -> None:
    objective = set_up(phantom_store, small(training__positive_weight=3.0)).objective
    outputs = torch.randn(6, 1, requires_grad=True)
    targets = torch.tensor([[1.0], [0.0], [math.nan], [1.0], [math.nan], [0.0]])
    known = [0, 1, 3, 5]
    objective.loss(outputs, targets).backward()
    assert outputs.grad is not None
    assert (outputs.grad[[2, 4]] == 0).all()
    # The shift undoes the weight where the scores are read: docs of the module.
    expected = F.binary_cross_entropy_with_logits(
        outputs[known] + math.log(3.0),
        targets[known],
        pos_weight=torch.tensor(3.0),
        reduction="sum",
    )
    assert objective.loss(outputs, targets).item() == pytest.approx(expected.item() / 6, rel=1e-6)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 10, 1.0) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize("name", ["epochs", "batch_size", "lr", "positive_weight"])
def test_settings_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        TrainingSettings(**{name: 0})


@pytest.mark.parametrize(
    ("device", "precision", "fused"),
    [("cuda", "bf16-mixed", True), ("cuda", "16-mixed", False), ("cpu", "32-true", False)],
)
def test_adamw_is_fused_where_gradients_can_still_be_clipped(
    device: str, precision: str, fused: bool
) -> None:
    """Lightning's own fp16 plugin is the judge: it refuses to unscale for a fused optimiser."""
    plugin = MixedPrecision("16-mixed", "cuda") if precision == "16-mixed" else None
    fabric = SimpleNamespace(
        device=torch.device(device),
        strategy=SimpleNamespace(precision=plugin or SimpleNamespace(precision=precision)),
    )
    assert can_fuse(fabric) == fused
    if plugin is not None:
        weight = torch.nn.Parameter(torch.ones(1))
        weight.grad = torch.ones(1)
        with pytest.raises(NotImplementedError, match="clipping"):
            plugin.unscale_gradients(torch.optim.AdamW([weight], fused=True))
