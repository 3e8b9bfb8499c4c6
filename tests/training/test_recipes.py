"""Layer decay, frozen phases, averages, sampling and what it does to scores, stopping, warnings."""

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from prediction_tables import made_up
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score
from small_runs import set_up, small
from torch import nn

from mammo_pd.backbones.build import build_backbone
from mammo_pd.config import TrainingSettings
from mammo_pd.data.balanced import BalancedDraw
from mammo_pd.errors import InputError
from mammo_pd.terms import Split
from mammo_pd.training import loop
from mammo_pd.training.averaging import WeightAverage
from mammo_pd.training.loop import chosen_epoch
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.objectives.binary_label import BinaryLabel
from mammo_pd.training.optimizer import (
    backbone_parameters,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.train import train

IMG_SIZE = (64, 48)


def trained(store: Path, runs: Path, said: list[str] | None = None, **changes: object) -> RunFolder:
    run = train(store, runs, small(**changes), say=(said if said is not None else []).append)
    assert run is not None
    return run


# ---- layer decay, frozen phases


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_rope_mixed_224"])
def test_rates_fall_by_the_decay_from_block_to_block(name: str) -> None:
    backbone = build_backbone(name, IMG_SIZE)
    groups = parameter_groups(backbone, backbone.timm_model, weight_decay=0.1, layer_decay=0.5)
    scale = {id(weight): group["lr_scale"] for group in groups for weight in group["params"]}
    decay = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    weights = dict(backbone.named_parameters())
    assert scale.keys() == {id(weight) for weight in weights.values()}
    assert sum(len(group["params"]) for group in groups) == len(weights)
    depth = len(backbone.timm_model.blocks)
    for weight_name, weight in weights.items():
        if ".blocks." in weight_name:
            block = int(weight_name.split(".blocks.")[1].split(".")[0])
            assert scale[id(weight)] == pytest.approx(0.5 ** (depth - block))
        elif ".head." in weight_name:
            assert scale[id(weight)] == 1
        elif "patch_embed" in weight_name:
            assert scale[id(weight)] == pytest.approx(0.5 ** (depth + 1))
        if weight.ndim == 1:
            assert decay[id(weight)] == 0


@pytest.mark.parametrize("layer_decay", [0.5, 1])
def test_what_timm_spares_is_not_decayed(layer_decay: float) -> None:
    backbone = build_backbone("vit_tiny_patch16_224", IMG_SIZE)
    groups = parameter_groups(
        backbone, backbone.timm_model, weight_decay=0.1, layer_decay=layer_decay
    )
    decay = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    weights = dict(backbone.timm_model.named_parameters())
    spared = backbone.timm_model.no_weight_decay() & weights.keys()
    assert spared == {"pos_embed", "cls_token"}
    for name, weight in weights.items():
        expected = 0 if name in spared or weight.ndim == 1 else 0.1
        assert decay[id(weight)] == expected, name


def test_rates_are_used(phantom_store: Path, tmp_path: Path) -> None:
    """With so steep a decay that the first blocks' steps vanish beside their weights."""
    config = {"training__layer_decay": 0.01, "training__epochs": 1}
    before = set_up(phantom_store, small(**config)).backbone.timm_model.state_dict()
    after = load_file(trained(phantom_store, tmp_path, **config).chosen)
    names = ("blocks.0.mlp.fc1.weight", "blocks.5.mlp.fc1.weight", "head.weight")
    moved = [float((after[name] - before[name]).abs().max()) for name in names]
    assert moved[0] == 0 < moved[1] < moved[2]


def test_steps_are_adamws_at_each_groups_own_share_of_the_rate() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.ParameterList(nn.Parameter(torch.ones(3)) for _ in range(2)) for _ in "ab")
    groups = [
        {"params": [ours[0]], "weight_decay": 0.1, "lr_scale": 0.25},
        # As where there is no layer decay.
        {"params": [ours[1]], "weight_decay": 0.0},
    ]
    optimizer = make_optimizer(groups, 1.0, fused=False, captured_on=None)
    oracle = torch.optim.AdamW(
        [{"params": [theirs[0]], "weight_decay": 0.1}, {"params": [theirs[1]], "weight_decay": 0}],
        betas=(0.9, 0.95),
    )
    for rate in (0.02, 0.04, 0.01):
        set_learning_rate(optimizer, rate)
        oracle.param_groups[0]["lr"], oracle.param_groups[1]["lr"] = rate / 4, rate
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(3)
            other.grad = one.grad.clone()
        optimizer.step()
        oracle.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


def test_rates_that_a_captured_step_reads_stay_where_they_are() -> None:
    """A CUDA graph reads that memory, and would go on with the rate of its capture elsewhere."""
    groups = [
        {"params": [nn.Parameter(torch.ones(1))], "lr_scale": 0.25},
        {"params": [nn.Parameter(torch.ones(1))]},
    ]
    optimizer = make_optimizer(groups, 1.0, fused=True, captured_on=torch.device("cpu"))
    rates = [group["lr"] for group in optimizer.param_groups]
    set_learning_rate(optimizer, 0.02)
    for group, rate, expected in zip(optimizer.param_groups, rates, (0.005, 0.02), strict=True):
        assert group["lr"] is rate
        assert isinstance(rate, torch.Tensor)
        assert rate.item() == pytest.approx(expected)
        assert group["capturable"]
        assert group["fused"]


@pytest.mark.parametrize("layer_decay", [0.5, 1])
def test_what_lies_around_the_backbone_learns_at_the_full_rate(layer_decay: float) -> None:
    backbone = build_backbone("test_vit", IMG_SIZE)
    around = {"decoder": nn.Linear(3, 2), "kinds": nn.Embedding(3, 2)}
    model = nn.ModuleDict({"backbone": backbone, **around})
    groups = parameter_groups(model, backbone.timm_model, weight_decay=0.1, layer_decay=layer_decay)
    found = {
        id(weight): (group.get("lr_scale", 1), group["weight_decay"])
        for group in groups
        for weight in group["params"]
    }
    assert found[id(model["decoder"].weight)] == (1, 0.1)
    assert found[id(model["decoder"].bias)] == (1, 0)
    assert found[id(model["kinds"].weight)] == (1, 0)


@pytest.mark.parametrize(("frozen", "moves"), [("all", False), (1, True)])
def test_frozen_backbone_stays_as_it_was(
    phantom_store: Path, tmp_path: Path, frozen: object, moves: bool
) -> None:
    config = {"training__frozen_epochs": frozen, "training__lr": 0.01, "training__epochs": 2}
    before = set_up(phantom_store, small(**config)).backbone.timm_model.state_dict()
    run = trained(phantom_store, tmp_path, **config)
    last = load_file(run.last)
    after = {
        name.removeprefix("model.timm_model."): value
        for name, value in last.items()
        if name.startswith("model.")
    }
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"head.weight", "head.bias"} <= moved
    assert bool(moved - {"head.weight", "head.bias"}) == moves


@pytest.mark.parametrize("pool", ["avg", "map"])
def test_what_lies_behind_the_blocks_is_not_frozen(pool: str) -> None:
    backbone = build_backbone("test_vit", IMG_SIZE, global_pool=pool)
    weights = dict(backbone.timm_model.named_parameters())
    learning = {name for name in weights if name.startswith(("head.", "fc_norm.", "attn_pool."))}
    assert len(learning) > 2
    held = {id(weight) for weight in backbone_parameters(backbone.timm_model)}
    assert held == {id(weight) for name, weight in weights.items() if name not in learning}
    # What never learns is not let go afterwards.
    weights["pos_embed"].requires_grad_(False)
    again = {id(weight) for weight in backbone_parameters(backbone.timm_model)}
    assert held - again == {id(weights["pos_embed"])}


# ---- moving average


def test_average_is_the_sum_that_its_definition_gives() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.7)
    expected = model.weight.detach().clone()
    for step in range(30):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(step)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    own = model.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight.detach(), own)


def test_averaged_weights_are_what_is_kept_as_the_best(phantom_store: Path, tmp_path: Path) -> None:
    run = trained(phantom_store, tmp_path, training__ema_decay=0.9, training__epochs=1)
    best, last = load_file(run.chosen), load_file(run.last)
    name = "blocks.0.mlp.fc1.weight"
    assert torch.equal(best[name], last[f"average.timm_model.{name}"])
    assert not torch.equal(best[name], last[f"model.timm_model.{name}"])


# ---- what sampling does to scores


@pytest.mark.parametrize(
    "settings",
    [{}, {"positive_share": 0.5}, {"positive_weight": 20.0}],
    ids=["as they are", "half positive", "weighted"],
)
def test_scores_are_probabilities_at_the_true_prevalence(settings: dict[str, float]) -> None:
    """At 2 % positives, whatever training draws or weighs; scikit-learn's own fit is the judge."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=20_000)
    label = rng.random(20_000) < 1 / (1 + np.exp(-(1.2 * x - 4.6)))
    assert 0.015 < label.mean() < 0.03
    objective = BinaryLabel(TrainingSettings(**settings))
    backbone = build_backbone("test_vit", IMG_SIZE)
    objective.prepare(backbone, label[:, None].astype(np.float32))
    start = torch.sigmoid(backbone.timm_model.head.bias).item()
    assert start == pytest.approx(label.mean(), rel=1e-4)
    rows = np.arange(len(x))
    if "positive_share" in settings:
        draw = BalancedDraw(label, settings["positive_share"])
        rows = np.concatenate([draw.draw(rng) for _ in range(5)])
    features = torch.tensor(x[rows, None], dtype=torch.float32)
    targets = torch.tensor(label[rows, None], dtype=torch.float32)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective.loss(model(features), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        found = torch.tensor(x[:, None], dtype=torch.float32)
        scores = objective.scores(model(found)).numpy()[:, 0]
    judge = LogisticRegression(C=np.inf).fit(x[:, None], label)
    expected = judge.predict_proba(x[:, None])[:, 1]
    # Which negatives were drawn is chance; without the correction these are 25 times as large.
    assert scores.mean() == pytest.approx(label.mean(), rel=0.1)
    np.testing.assert_allclose(scores.mean(), expected.mean(), rtol=0.1)
    assert model.weight.item() == pytest.approx(judge.coef_.item(), rel=0.1)


@pytest.mark.parametrize("positive", [0, 4, 40, 996, 1000])
def test_head_starts_at_the_prevalence_however_rare(positive: int) -> None:
    """Screening has four positives in a thousand women."""
    objective = BinaryLabel(TrainingSettings())
    backbone = build_backbone("test_vit", IMG_SIZE)
    objective.prepare(backbone, (np.arange(1000) < positive).astype(np.float32)[:, None])
    bias = backbone.timm_model.head.bias.item()
    assert math.isfinite(bias)
    assert 1 / (1 + math.exp(-bias)) == pytest.approx(positive / 1000, abs=2e-4)


@pytest.mark.parametrize(
    "settings",
    [{}, {"label_smoothing": 0.2}, {"positive_weight": 4.0}, {"positive_share": 0.5}],
)
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.1, 0.8)])
def test_loss_of_a_constant_score_is_the_least_that_one_gives(
    settings: dict[str, float], low: float, high: float
) -> None:
    label = np.where(np.arange(200) < 30, high, low).astype(np.float32)[:, None]
    objective = BinaryLabel(TrainingSettings(**settings))
    objective.prepare(build_backbone("test_vit", IMG_SIZE), label)
    rows = np.arange(200)
    if "positive_share" in settings:
        rows = BalancedDraw(label[:, 0] > 0.5, 0.5).draw(np.random.default_rng(0))
    targets = torch.tensor(label[rows])
    losses = [
        objective.loss(torch.full((200, 1), logit), targets).item()
        for logit in np.linspace(-6, 6, 2001)
    ]
    assert objective.chance_loss(label) == pytest.approx(min(losses), abs=1e-4)
    if not settings and high == 1:
        assert objective.chance_loss(label) == pytest.approx(
            log_loss(label[:, 0], np.full(200, 0.15))
        )


def test_labels_are_smoothed_as_torch_smooths_two_classes() -> None:
    logits, label = torch.linspace(-3, 5, 8), torch.arange(8) % 2
    objective = BinaryLabel(TrainingSettings(label_smoothing=0.2))
    expected = nn.functional.cross_entropy(
        torch.stack([torch.zeros(8), logits], dim=1), label, label_smoothing=0.2
    )
    torch.testing.assert_close(objective.loss(logits[:, None], label[:, None].float()), expected)


@pytest.mark.parametrize("level", ["image", "breast", "exam", "patient"])
def test_epochs_are_judged_by_the_means_of_a_units_images(level: str) -> None:
    rows = made_up(60).drop(columns="score")
    scores = np.random.default_rng(0).random((len(rows), 1))
    monitor = f"val_average_precision_{level}"
    found = BinaryLabel(TrainingSettings(monitor=monitor)).metrics(rows, scores)
    units = {
        "image": ["image_id"],
        "breast": ["exam_id", "laterality"],
        "exam": ["exam_id"],
        "patient": ["patient_id"],
    }
    grouped = rows.assign(score=scores[:, 0]).groupby(units[level])
    label, score = grouped["label"].max(), grouped["score"].mean()
    assert found[monitor] == pytest.approx(average_precision_score(label, score))
    if level in ("image", "breast"):
        assert found[f"val_auc_{level}"] == pytest.approx(roc_auc_score(label, score))
    assert found["val_loss"] == pytest.approx(log_loss(rows["label"], scores[:, 0]))


def test_a_changed_share_is_stated() -> None:
    assert BinaryLabel(TrainingSettings()).prior_note() is None
    less = BinaryLabel(TrainingSettings(positive_weight=0.5)).prior_note()
    assert less is not None
    assert "Training gave positives 0.5 times the weight." in less
    both = BinaryLabel(TrainingSettings(positive_share=0.3, positive_weight=5.0)).prior_note()
    assert both is not None
    assert "positives as 30 % of its images and gave positives 5 times" in both
    assert "corrected to the prevalence of the training images" in both


def test_two_in_a_hundred_train_without_collapsing(phantom_store: Path, tmp_path: Path) -> None:
    """A few positives only: scores stay near their prevalence from the first epoch on."""
    store = tmp_path / "store"
    shutil.copytree(phantom_store, store, ignore=shutil.ignore_patterns("splits"))
    (store / "splits").mkdir()
    run = trained(
        store,
        tmp_path / "runs",
        training__positive_share=0.5,
        training__epochs=1,
        training__lr=1e-5,
    )
    from mammo_pd.inference.predict import predict

    scores = predict(run, say=lambda _: None).table["score"]
    prevalence = pd.read_parquet(store / "manifest.parquet")["label"].mean()
    assert scores.mean() == pytest.approx(prevalence, abs=0.15)


# ---- targets, monitor, stopping


def rows_of(values: list[object]) -> pd.DataFrame:
    label = pd.array([0, 1, 1], dtype="Int8")
    return pd.DataFrame({"label": label, "grade": values})


def test_soft_labels_are_trained_on_and_the_label_is_judged() -> None:
    objective = BinaryLabel(TrainingSettings(target_column="grade"))
    rows = rows_of([0.1, None, 0.8])
    targets = objective.training_targets(rows)
    np.testing.assert_allclose(targets[:, 0], [0.1, np.nan, 0.8], rtol=1e-6)
    assert objective.targets(rows)[:, 0].tolist() == [0, 1, 1]


@pytest.mark.parametrize("values", [[0, 1, 2], [0, -0.1, 1], ["low", 0, 1]])
def test_soft_labels_that_are_no_probabilities_are_refused(values: list[object]) -> None:
    objective = BinaryLabel(TrainingSettings(target_column="grade"))
    with pytest.raises(InputError, match=r"grade.*outside \[0, 1\]"):
        objective.training_targets(rows_of(values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([None, None, None], "'grade' is empty for every training image, so"),
        ([0, 0, 0], "'grade' is 0 for every training image, so"),
        ([1, None, 1], "'grade' is 1 for every training image that has a value, so"),
    ],
)
@pytest.mark.parametrize("fusion", [None, "breast"])
def test_soft_labels_that_teach_nothing_are_refused(
    values: list[object], said: str, fusion: str | None
) -> None:
    """They trained to a loss that is no number, or failed where it is held against chance."""
    objective = build_objective(TrainingSettings(target_column="grade", fusion=fusion))
    identity = {"image_id": list("abc"), "patient_id": "p", "exam_id": "e", "laterality": "L"}
    with pytest.raises(InputError, match=said):
        objective.training_targets(rows_of(values).assign(**identity))


@pytest.mark.parametrize("values", [[0, None, 1], [0, 0, 0.1], [1, 0.9, 1], [0.5, None, None]])
def test_soft_labels_that_teach_something_have_a_finite_chance(values: list[object]) -> None:
    objective = BinaryLabel(TrainingSettings(target_column="grade"))
    assert math.isfinite(objective.chance_loss(objective.training_targets(rows_of(values))))


@pytest.mark.parametrize(("label", "missing"), [(0, "positive"), (1, "negative")])
def test_images_of_one_class_are_refused(label: int, missing: str) -> None:
    objective = BinaryLabel(TrainingSettings())
    rows = pd.DataFrame({"label": pd.array([label, None, label], dtype="Int8")})
    with pytest.raises(InputError, match=f"the training part has no {missing} image"):
        objective.check(rows, "the training part")
    rows.loc[1, "label"] = 1 - label
    objective.check(rows, "the training part")


def test_columns_and_metrics_that_do_not_exist_are_refused(phantom_store: Path) -> None:
    for changes, words in (
        ({"training__target_column": "none"}, "target_column 'none' is not in the store"),
        (
            {"training__balance_within": "none", "training__positive_share": 0.5},
            "balance_within 'none' is not in the store",
        ),
        ({"training__monitor": "val_f1"}, "val_auc_image.*val_loss"),
    ):
        with pytest.raises(InputError, match=words):
            set_up(phantom_store, small(**changes))
    with pytest.raises(InputError, match=r"also needs training\.positive_share"):
        small(training__balance_within="vendor")
    with pytest.raises(InputError, match=r"add training\.choose_epoch=best"):
        small(training__patience=3)


@pytest.mark.parametrize(
    ("monitor", "expected"), [("val_auc_image", 2), ("val_loss", 3), ("val_auc_breast", 1)]
)
def test_best_epoch_is_the_monitors(monitor: str, expected: int) -> None:
    history = [
        {"val_auc_image": 0.6, "val_loss": 0.7, "val_auc_breast": 0.9},
        {"val_auc_image": 0.8, "val_loss": 0.6, "val_auc_breast": 0.8},
        {"val_auc_image": 0.7, "val_loss": 0.5, "val_auc_breast": 0.7},
    ]
    objective = BinaryLabel(TrainingSettings(monitor=monitor))
    assert chosen_epoch(history, objective, "best") == expected
    assert chosen_epoch(history, objective, "last") == 3


def test_training_stops_where_nothing_gets_better(phantom_store: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run = trained(
        phantom_store,
        tmp_path,
        said,
        training__epochs=40,
        training__lr=1e-12,
        training__patience=2,
        training__choose_epoch="best",
    )
    # The order of the scores stays as it is, and no change is no improvement.
    assert len(pd.read_csv(run.history)) == 3
    assert any("no better epoch in the last 2" in line for line in said)


def test_run_that_learns_nothing_says_so_once(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The scores of random weights on so few images can by chance be a little better than constant.
    monkeypatch.setattr(loop, "_STANDSTILL", 0.7)
    said: list[str] = []
    trained(phantom_store, tmp_path, said, training__epochs=6, training__lr=1e-12)
    warnings = [line for line in said if "the model has learnt nothing yet" in line]
    assert len(warnings) == 1
    assert "--weights of a pretrained model with training.layer_decay" in warnings[0]


@pytest.mark.parametrize(("score", "told"), [(0.9, False), (0.5, True), (0.1, True)])
def test_a_loss_at_a_standstill_says_nothing_against_better_validation(
    phantom_store: Path, score: float, told: bool
) -> None:
    """An epoch's mean loss, on parts of augmented images, may lag far behind."""
    said: list[str] = []
    setup = dataclasses.replace(set_up(phantom_store, small()), say=said.append)
    label = setup.parts[Split.VAL]["label"].to_numpy(float)
    scores = np.where(label == 1, score, 1 - score)[:, None]
    loop._warn_if_nothing_is_learnt(setup, 10.0, scores, 4)
    assert len(said) == told


# ---- validation


def test_validation_reads_the_same_patches_in_every_epoch(phantom_store: Path) -> None:
    setup = set_up(phantom_store, small())
    rows = torch.arange(4)
    first, again = setup.val_kept(rows), setup.val_kept(rows)
    assert torch.equal(first.keys, again.keys)
    assert first.num_keep == setup.num_keep


def test_validation_on_all_patches_if_asked(phantom_store: Path, tmp_path: Path) -> None:
    run = trained(phantom_store, tmp_path, training__validate_on="all", training__epochs=2)
    history, info = pd.read_csv(run.history), run.info
    assert info.validation is not None
    best = history.loc[history["val_auc_image"][::-1].idxmax()]
    for name in ("val_auc_image", "val_auc_breast", "val_loss"):
        assert info.validation[name] == pytest.approx(best[name], rel=1e-5)
    assert math.isfinite(history["epoch_images_per_second"].iloc[0])
    faster = history["train_images_per_second"] > history["epoch_images_per_second"]
    assert faster.all()
