import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import Tensor, nn

from mammo_pd.config import TrainingSettings
from mammo_pd.errors import InputError
from mammo_pd.training.loop import Part, Task, can_fuse, fit, learning_rate

IMAGES, PATCHES = 8, 4


class TinyViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, in_chans=1, num_classes=1, depth=3
        )

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        return self.vit(patches.view(-1, 1, 32, 32))  # type: ignore[no-any-return]


class OneBatch:
    """The same eight random images at every step."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.pixels = torch.randn(IMAGES, PATCHES, 256, generator=generator)
        self.labels = torch.arange(IMAGES) % 2 * 1.0

    waited = 0.0

    def set_epoch(self, epoch: int) -> None:
        pass

    def __len__(self) -> int:
        return 1

    def __iter__(self):  # type: ignore[no-untyped-def]
        yield self.pixels


class Log:
    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.steps.append((step, metrics))


def task_of(
    batch: OneBatch, scores_seen: list[np.ndarray] | None = None, parts: tuple[int, ...] = (IMAGES,)
) -> Task:
    positions = torch.arange(PATCHES).expand(IMAGES, -1)

    def metrics(scores: np.ndarray) -> dict[str, float]:
        if scores_seen is not None:
            scores_seen.append(scores)
        return {"val_auc_image": float(scores[1::2].mean() - scores[::2].mean())}

    def train_parts(pixels: Tensor, epoch: int, step: int) -> list[Part]:
        cut = zip(
            pixels.split(parts), positions.split(parts), batch.labels.split(parts), strict=True
        )
        return [
            Part(len(some), lambda part=(some, at, labels): (part[:2], part[2]))  # type: ignore[misc]
            for some, at, labels in cut
        ]

    return Task(
        train=batch,
        train_parts=train_parts,
        does_not_fit=lambda: "a batch of 8 does not fit: about 2 fit",
        # The batches of the validation set come in any order.
        val=[slice(4, 8), slice(0, 4)],
        val_input=lambda rows: (
            batch.pixels[rows],
            positions[rows],
            torch.arange(IMAGES)[rows],
        ),
        val_metrics=metrics,
    )


def run(folder: Path, task: Task, log: Log, **settings: float) -> list[dict[str, float]]:
    torch.manual_seed(0)
    model = TinyViT()
    fabric = Fabric(accelerator="cpu", devices=1)
    chosen = TrainingSettings(batch_size=IMAGES, **settings)  # type: ignore[arg-type]
    return fit(fabric, model, model.vit, task, chosen, folder, log, say=lambda _: None)


def test_one_batch_is_learnt_by_heart(tmp_path: Path) -> None:
    scores: list[np.ndarray] = []
    history = run(tmp_path, task_of(OneBatch(), scores), Log(), epochs=25, lr=1e-3)
    assert history[-1]["train_loss"] < 0.1 * history[0]["train_loss"]
    # Scores come back in the validation set's order.
    assert ((scores[-1] > 0.5) == (np.arange(IMAGES) % 2 == 1)).all()


def test_parts_of_a_step_give_together_what_the_whole_gives(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", task_of(OneBatch()), Log(), epochs=3, lr=1e-3)
    for parts in ((4, 4), (3, 3, 2), (1,) * 8):
        task = task_of(OneBatch(), parts=parts)
        cut = run(tmp_path / str(parts), task, Log(), epochs=3, lr=1e-3)
        for one, other in zip(whole, cut, strict=True):
            assert other["train_loss"] == pytest.approx(one["train_loss"], abs=1e-5)


def test_batch_that_does_not_fit_is_refused_with_what_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TinyViT, "forward", full)
    with pytest.raises(InputError, match="does not fit: about 2 fit"):
        run(tmp_path, task_of(OneBatch()), Log(), epochs=1)


def test_losses_are_read_late_and_all_of_them(tmp_path: Path) -> None:
    class Many(OneBatch):
        def __len__(self) -> int:
            return 45

        def __iter__(self):  # type: ignore[no-untyped-def]
            for _ in range(45):
                yield self.pixels

    log = Log()
    history = run(tmp_path, task_of(Many()), log, epochs=1, lr=1e-4)
    logged = [(step, metrics["step_loss"]) for step, metrics in log.steps if "step_loss" in metrics]
    assert [step for step, _ in logged] == [20, 40, 45]
    mean = sum(loss * count for (_, loss), count in zip(logged, (20, 20, 5), strict=True)) / 45
    assert history[0]["train_loss"] == pytest.approx(mean, abs=1e-6)


def test_best_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    import json

    from safetensors import safe_open

    history = run(tmp_path, task_of(OneBatch()), Log(), epochs=6, lr=1e-3)
    best = max(history, key=lambda metrics: metrics["val_auc_image"])
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert json.loads(file.metadata()["facts"])["epoch"] == best["epoch"]


def test_loss_that_is_not_finite_stops_with_the_remedy(tmp_path: Path) -> None:
    batch = OneBatch()
    run(tmp_path, task_of(batch), Log(), epochs=2, lr=1e-3)
    kept = (tmp_path / "last.safetensors").read_bytes()
    batch.pixels[0, 0, 0] = math.nan
    with pytest.raises(InputError, match=r"no longer finite.*lower --lr"):
        run(tmp_path, task_of(batch), Log(), epochs=4, lr=1e-3)
    assert (tmp_path / "last.safetensors").read_bytes() == kept


def test_metrics_are_logged_per_step_and_per_epoch(tmp_path: Path) -> None:
    log = Log()
    run(tmp_path, task_of(OneBatch()), log, epochs=3, lr=1e-3, warmup_epochs=1)
    steps = [step for step, metrics in log.steps if "step_loss" in metrics]
    epochs = [step for step, metrics in log.steps if "val_auc_image" in metrics]
    assert steps == epochs == [1, 2, 3]


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
        weight = nn.Parameter(torch.ones(1))
        weight.grad = torch.ones(1)
        with pytest.raises(NotImplementedError, match="clipping"):
            plugin.unscale_gradients(torch.optim.AdamW([weight], fused=True))
