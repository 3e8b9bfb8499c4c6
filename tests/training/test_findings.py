"""Several columns at once, binary and ordinal: what is read, the loss, the scores, the reports."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, log_loss, roc_auc_score
from small_runs import small

from mammo_pd.backbones.build import build_backbone
from mammo_pd.cli.app import main
from mammo_pd.cli.scored_runs import only_target
from mammo_pd.config import TrainingSettings
from mammo_pd.errors import InputError
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.objectives.binary_label import BinaryLabel
from mammo_pd.training.objectives.findings import Findings, Target
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.train import train


def findings(*targets: str, **settings: object) -> Findings:
    given = TrainingSettings.model_validate(
        {"objective": "findings", "targets": targets, **settings}
    )
    built = build_objective(given)
    assert isinstance(built, Findings)
    return built


ROWS = pd.DataFrame(
    {
        "cancer": pd.array([1, 0, None, 0], dtype="Int8"),
        "density": pd.array(["A", "D", None, "C"], dtype="string"),
        "birads": [0.0, 2.0, np.nan, 1.0],
        "dense": ["True", "False", "", "1"],
    }
)
NAN = float("nan")


@pytest.mark.parametrize(
    ("text", "expected", "names"),
    [
        ("cancer", [[1], [0], [NAN], [0]], ("cancer",)),
        ("dense", [[1], [0], [NAN], [1]], ("dense",)),
        (
            "density:4@0.5",
            [[0, 0, 0], [1, 1, 1], [NAN] * 3, [1, 1, 0]],
            ("density_from_2", "density_from_3", "density_from_4"),
        ),
        (
            "birads:1,2,0",
            [[1, 1], [1, 0], [NAN] * 2, [0, 0]],
            ("birads_from_2", "birads_from_0"),
        ),
    ],
)
def test_columns_are_read(text: str, expected: list[list[float]], names: tuple[str, ...]) -> None:
    target = Target.parse(text)
    assert target.names == names
    assert target.weight == (0.5 if "@" in text else 1)
    np.testing.assert_array_equal(target.read(ROWS), np.array(expected, np.float32))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "density:",
        "density:1",
        "density:99",
        "d:a,a",
        "d@0",
        "d@x",
        "d@inf",
        "../up",
        "d:a,../b",
    ],
)
def test_what_is_no_target_is_refused(text: str) -> None:
    """A name becomes a folder."""
    with pytest.raises(InputError, match="is not understood; write a column"):
        Target.parse(text)


def test_values_that_are_no_category_are_named() -> None:
    for text, message in (
        ("density", r"values of 3 images are not 0 and 1 \(such as A, C, D\)"),
        ("density:3", r"values of 1 image are not the categories 1, 2, 3 \(such as D\)"),
        ("height", "no such column; give the label table that has it"),
    ):
        with pytest.raises(InputError, match=message):
            findings(text).targets(ROWS)


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(InputError, match="findings needs --target"):
        findings()
    with pytest.raises(InputError, match="--target cancer is given more than once"):
        findings("cancer", "cancer@2")
    with pytest.raises(InputError, match="positive_share applies to a single label"):
        findings("cancer", positive_share=0.5)
    with pytest.raises(InputError, match=r"choose one of .* val_kappa_density"):
        findings("cancer", "density:4", monitor="val_auc_image")
    with pytest.raises(InputError, match="targets needs training"):
        build_objective(TrainingSettings(targets=("cancer",)))


def test_loss_is_the_weighted_cross_entropy_of_what_is_known() -> None:
    objective = findings("cancer", "density:3@0.5")
    torch.manual_seed(0)
    outputs = torch.randn(6, 3, requires_grad=True)
    targets = torch.tensor(
        [[1, 1, 0], [0, 1, 1], [NAN, 0, 0], [1, NAN, NAN], [0, 0, 0], [NAN, NAN, NAN]]
    )
    loss = objective.loss(outputs, targets)
    scores = objective.scores(outputs).detach().double().numpy()
    expected = 0.0
    for column, weight in enumerate((1, 0.25, 0.25)):
        known = ~targets[:, column].isnan().numpy()
        truth = targets[known, column].numpy()
        # The images that lack it count as well, with no loss.
        of_column = log_loss(truth, scores[known, column], labels=[0, 1]) * known.mean()
        expected += weight / 1.5 * of_column
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert outputs.grad is not None
    assert (outputs.grad[-1] == 0).all()
    assert outputs.grad[2, 0] == 0
    assert (outputs.grad[3, 1:] == 0).all()
    assert (outputs.grad[0] != 0).all()
    # Parts of a step, weighted by their images, add up to the whole.
    parts = [
        objective.loss(outputs[s], targets[s]) * n / 6 for s, n in ((slice(4), 4), (slice(4, 6), 2))
    ]
    assert sum(parts).item() == pytest.approx(loss.item(), rel=1e-6)


def test_one_binary_target_is_learnt_as_the_label_is() -> None:
    alone, one = BinaryLabel(TrainingSettings()), findings("label")
    assert one.target_columns == alone.target_columns
    assert one.score_columns == alone.score_columns
    outputs, targets = torch.randn(8, 1), torch.tensor([0, 1, 1, 0, NAN, 0, 1, 0])[:, None]
    torch.testing.assert_close(one.loss(outputs, targets), alone.loss(outputs, targets))
    torch.testing.assert_close(one.scores(outputs), alone.scores(outputs))
    known = targets[~targets.isnan()].numpy()[:, None]
    assert one.chance_loss(known) == pytest.approx(alone.chance_loss(known))


@pytest.mark.parametrize("p", [(0.1, 0.4, 0.3, 0.2), (0.3, 0.4, 0.0, 0.3)])
def test_an_ordinal_columns_scores_never_rise_and_begin_at_its_shares(p: tuple[float, ...]) -> None:
    """Also where no image has a category in between."""
    objective = findings("cancer", "density:4")
    outputs = torch.randn(500, 4) * 5
    assert (objective.scores(outputs)[:, 1:].diff(dim=1) <= 0).all()
    backbone = build_backbone("vit_tiny_patch16_224", (32, 32), num_outputs=4)
    generator = np.random.default_rng(0)
    place = generator.choice(4, size=400, p=p)
    targets = np.stack([generator.random(400) < 0.05, *(place >= k for k in (1, 2, 3))], axis=1)
    targets = targets.astype(np.float32)
    targets[:100] = np.nan
    objective.prepare(backbone, targets)
    bias = backbone.timm_model.head.bias.detach()[None]
    shares = torch.from_numpy(np.nanmean(targets, axis=0))
    torch.testing.assert_close(objective.scores(bias)[0], shares, atol=1e-4, rtol=1e-4)
    assert objective.chance_loss(targets) == pytest.approx(
        objective.loss(bias.expand(400, -1), torch.from_numpy(targets)).item(), rel=1e-4
    )
    targets[:, 3] = 0
    with pytest.raises(InputError, match="none count for density_from_4"):
        objective.prepare(backbone, targets)


def test_a_part_without_the_rarest_categories_will_do_and_one_of_a_single_one_not() -> None:
    objective = findings("density:4")
    for values, enough in ((["A", "B"], True), (["B", "B"], False), (["D", None], False)):
        rows = pd.DataFrame({"density": pd.array(values, dtype="string")})
        if enough:
            objective.check(rows, "the val part")
        else:
            with pytest.raises(InputError, match="val part has no two different values of density"):
                objective.check(rows, "the val part")
    with pytest.raises(InputError, match="the val part has no image that Findings can use"):
        objective.check(rows[:0], "the val part")


def test_metrics_are_scikit_learns_of_what_is_known() -> None:
    generator = np.random.default_rng(1)
    rows = pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in range(60)],
            "patient_id": [f"p{n // 2}" for n in range(60)],
            "exam_id": [f"e{n // 2}" for n in range(60)],
            "laterality": ["L", "R"] * 30,
            "view": "CC",
            "cancer": generator.integers(0, 2, 60),
            "density": generator.integers(1, 4, 60).astype(float),
        }
    )
    rows.loc[:9, "density"] = np.nan
    scores = np.sort(generator.random((60, 3)), axis=1)[:, ::-1]
    objective = findings("cancer", "density:3", monitor="val_kappa_density")
    found = objective.metrics(rows, scores)
    assert found["val_auc_cancer_image"] == pytest.approx(
        roc_auc_score(rows["cancer"], scores[:, 0])
    )
    known = rows["density"].notna().to_numpy()
    density = rows["density"][known]
    aucs = [roc_auc_score(density > k, scores[known, k]) for k in (1, 2)]
    assert found["val_auc_density_image"] == pytest.approx(np.mean(aucs))
    category = 1 + (scores[known, 1:] > 0.5).sum(axis=1)
    kappa = cohen_kappa_score(density.astype(int), category, weights="quadratic")
    assert found["val_kappa_density"] == pytest.approx(kappa)
    truth = torch.from_numpy(objective.targets(rows))
    steps = -np.diff(np.log(scores[:, 1:] / (1 - scores[:, 1:])), axis=1)
    raw = torch.from_numpy(
        np.column_stack([np.log(scores / (1 - scores))[:, :2], np.log(np.expm1(steps))])
    )
    assert found["val_loss"] == pytest.approx(objective.loss(raw, truth).item(), rel=1e-6)


def test_a_report_takes_its_own_target_as_the_label() -> None:
    objective = findings("cancer", "label", "density:2")
    table = pd.DataFrame(
        {
            "image_id": ["a"],
            "cancer": [1],
            "label": [0],
            "density_from_2": [1],
            "cancer_score": [0.1],
            "score": [0.2],
            "density_from_2_score": [0.3],
        }
    )
    for target, label, score in (("cancer", 1, 0.1), ("label", 0, 0.2), ("density_from_2", 1, 0.3)):
        one = only_target(table, objective, target).iloc[0]
        assert (one["label"], one["score"]) == (label, score)
        assert one.index.is_unique
    assert objective.define("density_from_2") == "whether density is 2 (density_from_2)"
    assert objective.define("cancer") == "cancer"


@pytest.mark.slow
def test_a_run_is_reported_on_by_target(
    phantom_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the store's own label is none of them; views and sides are in every part."""
    targets = ["view:CC,MLO", "laterality:L,R@0.5"]
    config = small(training__objective="findings", training__targets=targets, training__epochs=1)
    run = train(phantom_store, tmp_path, config, say=lambda _: None)
    assert run is not None
    assert main(["evaluate", str(run.path)]) == 0
    printed = capsys.readouterr().out
    table = pd.read_csv(run.path / "report" / "targets.csv").set_index(["target", "level"])
    predictions = pd.read_csv(run.predictions)
    assert "label" not in predictions
    tested = predictions[predictions["split"] == "test"]
    for name in ("view_from_MLO", "laterality_from_R"):
        assert name in printed
        metrics = json.loads((run.path / "report" / name / "metrics.json").read_text())["image"]
        row = table.loc[(name, "image")]
        assert metrics["n"] == row["n"] == len(tested)
        assert metrics["n_positive"] == row["n_positive"] == tested[name].sum()
        expected = roc_auc_score(tested[name], tested[f"{name}_score"])
        assert metrics["auc"] == pytest.approx(expected)
        flow = pd.read_csv(run.path / "report" / name / "flow.csv").set_index("step")
        assert flow.loc["test", "positives"] == tested[name].sum()
    assert RunFolder.open(run.path).config.training.targets == tuple(targets)
