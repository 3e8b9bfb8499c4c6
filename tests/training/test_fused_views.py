"""Views that are judged together: what a score may depend on, and what it may not."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_runs import set_up, small
from torch import Tensor
from torch.nn import functional as F

from mammo_pd.backbones.build import build_backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.cli.app import main
from mammo_pd.config import TrainingSettings, dump_config
from mammo_pd.data.record import Record
from mammo_pd.data.store import StorePaths
from mammo_pd.data.unit_batches import UnitBatches
from mammo_pd.errors import InputError
from mammo_pd.inference.mlflow_model import ScoringModel
from mammo_pd.inference.predict import predict
from mammo_pd.inference.trained_model import TrainedModel
from mammo_pd.inference.whole_image import WholeImageModel
from mammo_pd.ingest import new_images
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.training.batch_size import DoesNotFitError, largest_batch, step_memory
from mammo_pd.training.loop import fit
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.objectives.fused_views import FusedViews
from mammo_pd.training.objectives.view_transformer import FusedModel
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.setup import RunSetup
from mammo_pd.training.step import TrainingStep
from mammo_pd.training.train import resume, start_run, train

# Of seven images: unit, breast within it, kind of view. The second exam has one breast.
EXAMS = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 1, 2], [1, 0, 1], [1, 0, 0]])
BREASTS = torch.tensor(
    [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1], [1, 0, 2], [2, 0, 1], [2, 0, 0]]
)
SAME_BREAST = (slice(0, 2), slice(2, 5), slice(5, 7))


def model_of(fusion: str, *, taught: bool = True) -> FusedModel:
    torch.manual_seed(0)
    model = FusedModel(build_backbone("test_vit", (64, 48)), across_breasts=fusion == "exam")
    if taught:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.3)
    return model.eval()


@pytest.fixture
def pooled() -> Tensor:
    return torch.randn(7, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["breast", "exam"])
def fused(request: pytest.FixtureRequest) -> tuple[FusedModel, Tensor]:
    return model_of(request.param), EXAMS if request.param == "exam" else BREASTS


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# ---- the model


@pytest.mark.parametrize("fusion", ["breast", "exam"])
def test_training_begins_at_the_mean_of_the_views(fusion: str, batch_of: Any) -> None:
    """And a view by itself has what the plain model gives it."""
    model = model_of(fusion, taught=False)
    sampler = PatchSampler((64, 48), model.backbone.patch_size)
    images, _ = batch_of(7)
    inputs = sampler.for_evaluation(images)
    with torch.no_grad():
        plain = model.backbone(*inputs)
        found = model(*inputs, EXAMS if fusion == "exam" else BREASTS)
        alone = model(*(one[:1] for one in inputs), EXAMS[:1])
    for own in SAME_BREAST:
        close(found[own], plain[own].mean(dim=0).expand_as(found[own]))
    close(alone, plain[:1])


@torch.no_grad()
def test_all_images_of_a_breast_have_one_score(
    fused: tuple[FusedModel, Tensor], pooled: Tensor
) -> None:
    model, views = fused
    found = model.fuse(pooled, views)
    for own in SAME_BREAST:
        assert len(found[own].unique(dim=0)) == 1
    assert len(found.unique(dim=0)) == 3
    # It is no longer the mean of the views.
    plain = model.backbone.head(pooled)
    assert not torch.allclose(found[0], plain[:2].mean(dim=0), atol=1e-2)


@torch.no_grad()
def test_order_of_images_does_not_matter(fused: tuple[FusedModel, Tensor], pooled: Tensor) -> None:
    model, views = fused
    order = torch.tensor([5, 2, 0, 6, 4, 1, 3])
    close(model.fuse(pooled[order], views[order]), model.fuse(pooled, views)[order])


@torch.no_grad()
def test_other_units_do_not_matter(fused: tuple[FusedModel, Tensor], pooled: Tensor) -> None:
    """However many they are, and whatever they hold."""
    model, views = fused
    whole = model.fuse(pooled, views)
    for unit in views[:, 0].unique():
        own = views[:, 0] == unit
        close(model.fuse(pooled[own], views[own]), whole[own])
    other = pooled.clone()
    other[5:] = 1e4
    close(model.fuse(other, views)[:5], whole[:5])


@torch.no_grad()
def test_each_view_and_its_kind_matter_and_an_absent_one_leaves_no_trace(
    fused: tuple[FusedModel, Tensor], pooled: Tensor
) -> None:
    model, views = fused
    whole = model.fuse(pooled, views)
    for place in range(5):
        kept = torch.arange(7) != place
        without = model.fuse(pooled[kept], views[kept])
        beside = views[kept][:, 0] == views[place, 0]
        other_breast = views[kept][:, 1] != views[place, 1]
        changed = (without - whole[kept]).abs().amax(dim=1) > 1e-4
        # Of an exam the other breast's score too.
        assert torch.equal(changed, beside), (place, other_breast)
    kinds = views.clone()
    kinds[0, 2] = 2
    assert not torch.allclose(model.fuse(pooled, kinds)[0], whole[0], atol=1e-4)


@torch.no_grad()
def test_left_and_right_are_alike(pooled: Tensor) -> None:
    model = model_of("exam")
    mirrored = EXAMS.clone()
    mirrored[:5, 1] = 1 - mirrored[:5, 1]
    close(model.fuse(pooled, mirrored), model.fuse(pooled, EXAMS))


def test_the_other_breast_is_learnt_from() -> None:
    """Which of two breasts has more of something: by itself each is told with .75 at best."""
    model = model_of("exam", taught=False)
    generator = torch.Generator().manual_seed(0)
    unit = torch.arange(32).repeat_interleave(2)
    views = torch.stack([unit, torch.arange(2).repeat(32), torch.zeros_like(unit)], dim=1)
    around = [weight for name, weight in model.named_parameters() if "blocks" in name]
    optimizer = torch.optim.AdamW([*around, *model.backbone.timm_model.head.parameters()], lr=3e-3)
    right = []
    for _ in range(110):
        pooled = torch.randn(32, 2, 64, generator=generator)
        more = (pooled[:, :, 0] > pooled[:, [1, 0], 0]).float().flatten()
        logits = model.fuse(pooled.flatten(0, 1), views)[:, 0]
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits, more).backward()
        optimizer.step()
        right.append(((logits > 0) == (more > 0.5)).float().mean())
    assert torch.stack(right[-20:]).mean() > 0.85


# ---- rows


def objective_of(fusion: str, **settings: Any) -> FusedViews:
    built = build_objective(TrainingSettings(fusion=fusion, **settings))  # type: ignore[arg-type]
    assert isinstance(built, FusedViews)
    return built


def rows_of(text: str) -> pd.DataFrame:
    """From ``patient exam side view label``, - for what is missing."""
    words = [line.split() for line in text.strip().splitlines()]
    names = ["patient_id", "exam_id", "laterality", "view", "label"]
    table = pd.DataFrame(words, columns=names).replace("-", None).astype("string")
    table["label"] = pd.to_numeric(table["label"]).astype("Int8")
    return table.assign(image_id=[str(number) for number in range(len(table))])


ROWS = rows_of(
    """
    a x L CC  1
    b x L CC  0
    a x R CC  0
    a x L MLO -
    b x L ML  -
    a y L CC  0
    c - - MLO -
    c - - CC  0
    d x R CC  -
    """
)


def test_target_of_a_breast_is_that_of_evaluation() -> None:
    """Positive where any image is; unknown where none is known to be and one is not known."""
    found = objective_of("breast").training_targets(ROWS)[:, 0]
    np.testing.assert_array_equal(found, [1, np.nan, 0, 1, np.nan, 0, np.nan, 0, np.nan])
    assert objective_of("exam").training_targets(ROWS)[0, 0] == 1


@pytest.mark.parametrize(
    ("fusion", "together", "usable"),
    [
        ("breast", [[0, 3], [1, 4], [2], [5], [6], [7], [8]], [0, 1, 2, 3, 4, 5, 7]),
        ("exam", [[0, 2, 3], [1, 4], [5], [6, 7], [8]], [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_units_are_those_of_evaluation(
    fusion: str, together: list[list[int]], usable: list[int]
) -> None:
    """Images without a side are breasts of their own; of a unit with any label all are read."""
    objective = objective_of(fusion)
    views = objective.views(ROWS)
    found = [np.flatnonzero(views[:, 0] == unit).tolist() for unit in np.unique(views[:, 0])]
    assert sorted(found) == together
    assert views[:, 2].tolist() == [0, 0, 0, 1, 2, 0, 1, 0, 0]
    assert np.flatnonzero(objective.usable(ROWS)).tolist() == usable
    if fusion == "exam":
        assert views[0, 1] == views[3, 1] != views[2, 1]
        assert views[6, 1] != views[7, 1]


def test_numbers_of_images_that_tell_the_label_are_warned_of() -> None:
    """As where women with cancer have one breast in the collection, and others both."""
    lines = [f"p{n} - L {view} {int(n < 9)}" for n in range(20) for view in ("CC", "MLO")]
    one_breast = "\n".join(lines)
    further = [f"p{n} - R {view} 0" for n in range(9, 20) for view in ("CC", "MLO")]
    both = "\n".join([*lines, *further])
    assert objective_of("exam").warnings(rows_of(one_breast)) == []
    assert objective_of("breast").warnings(rows_of(one_breast)) == []
    (line,) = objective_of("exam").warnings(rows_of(both))
    assert "images of the other breast alone tells label with an AUC of 1.00" in line
    assert objective_of("breast").warnings(rows_of(both)) == []
    third = "\n".join([*lines, *(f"p{n} - L CC 1" for n in range(9))])
    (line,) = objective_of("breast").warnings(rows_of(third))
    assert "images of a breast alone tells label" in line


def test_breasts_without_a_label_neither_tell_nor_are_judged() -> None:
    known = [f"p{n} - L {view} {int(n < 9)}" for n in range(20) for view in ("CC", "MLO")]
    rows = rows_of("\n".join([*known, *(f"q{n} - L CC 0" for n in range(9))]))
    rows["label"] = rows["label"].astype("Float64").mask(np.arange(len(rows)) >= len(known))
    objective = objective_of("breast")
    assert objective.warnings(rows) == []
    scores = np.random.default_rng(0).random((len(rows), 1))
    labelled = rows.iloc[: len(known)]
    assert objective.metrics(rows, scores) == objective.metrics(labelled, scores[: len(known)])
    # Nor do numbers of images tell anything where all have one label.
    assert objective.warnings(rows[rows["label"] != 1].reset_index(drop=True)) == []


def test_a_collection_without_anything_to_fuse_is_warned_of() -> None:
    alone = "\n".join(f"p{n} - L CC {n % 2}" for n in range(9))
    for fusion in ("breast", "exam"):
        (line,) = objective_of(fusion).warnings(rows_of(alone))
        assert f"each {fusion} has one image" in line
        assert "laterality" not in line
    sideless = rows_of("\n".join(f"p{n // 2} - L CC {n // 2 % 2}" for n in range(8)))
    sideless["laterality"] = None
    assert objective_of("exam").warnings(sideless) == []
    (line,) = objective_of("breast").warnings(sideless)
    assert "of 8 of 8 images nothing says which breast it shows" in line


def test_what_is_not_judged_by_the_breast_is_refused() -> None:
    with pytest.raises(InputError, match=r"training\.fusion breast joins views to judge a breast"):
        objective_of("breast", objective="masked_autoencoder")
    with pytest.raises(InputError, match="two breasts of an exam have labels of their own"):
        objective_of("exam", positive_share=0.5)


# ---- training


def fused_setup(store: Path, fusion: str = "exam", **changes: object) -> RunSetup:
    return set_up(store, small(training__fusion=fusion, **changes))


def test_parts_and_processes_give_together_what_the_whole_gives(phantom_store: Path) -> None:
    """No unit is torn; processes with unequal numbers of images count by them."""
    setup = fused_setup(phantom_store, "breast")
    rows = [row for batch in list(setup.train_batches())[:2] for row in batch][:10]
    found = []
    for parts, shares in ((1, [rows]), (3, [rows]), (1, [rows[:4], rows[4:]])):
        model = model_of("breast").train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        module, wrapped = setup.fabric.setup(model, optimizer)
        step = TrainingStep(setup.fabric, module, wrapped, setup.sampler, setup.objective)
        gradients = []

        def keep(*_: object, model: Any = model, into: Any = gradients) -> None:
            into.append([weight.grad.clone() for weight in model.parameters()])

        wrapped.optimizer.register_step_pre_hook(keep)
        losses = [
            step(
                setup.train_set.read(own),
                torch.tensor(own),
                6,
                parts,
                len(own) * len(shares) / len(rows),
            )
            for own in shares
        ]
        mean = [torch.stack(of_weight).mean(dim=0) for of_weight in zip(*gradients, strict=True)]
        found.append((torch.stack(losses).mean(), mean))
    (loss, whole), *others = found
    for other_loss, other in others:
        close(other_loss, loss)
        for one, expected in zip(other, whole, strict=True):
            torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-3)


def test_edges_tear_no_unit_and_a_unit_that_comes_twice_is_two(phantom_store: Path) -> None:
    setup = fused_setup(phantom_store, "breast")
    views = setup.train_set.views
    assert views is not None
    first, second = (np.flatnonzero(views[:, 0] == unit).tolist() for unit in (0, 1))
    batch = setup.train_set.read([*first, *first, *second])
    assert batch.views is not None
    assert batch.units == (2, 2, 2)
    assert batch.views[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.edges(1) == (0, 6)
    assert batch.edges(6) == (0, 2, 4, 6)
    part = batch.slice(2, 6)
    assert part.units == (2, 2)
    assert torch.equal(part.views, batch.views[2:])  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=40),
    size=st.integers(6, 30),
    world=st.integers(1, 3),
    parts=st.integers(1, 4),
)
@example(sizes=[4, 4, 4], size=4, world=1, parts=4)
def test_no_part_of_a_step_has_more_images_than_are_reckoned_with(
    phantom_setup: RunSetup, sizes: list[int], size: int, world: int, parts: int
) -> None:
    """Whole units are shared less evenly than images: what is measured must be the worst part."""
    units = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    world = min(world, size // max(sizes), len(units) // max(sizes))
    setup = replace(
        phantom_setup,
        fabric=SimpleNamespace(world_size=world),  # type: ignore[arg-type]
        train_set=SimpleNamespace(views=units[:, None]),  # type: ignore[arg-type]
    )
    most = setup.most_at_once(size, parts)
    assert setup.largest_unit <= most <= size
    pixel = np.zeros((1, 1), np.uint16)
    for rank in range(world):
        for rows in UnitBatches(units, size, seed=0, rank=rank, world_size=world):
            # A unit that comes twice in a row is two.
            runs = [(unit, len(list(run))) for unit, run in groupby(units[rows].tolist())]
            own = tuple(sizes[unit] for unit, run in runs for _ in range(run // sizes[unit]))
            batch = replace(ImageBatch.from_images([pixel] * len(rows)), units=own)
            edges = batch.edges(min(parts, len(rows)))
            assert max(end - start for start, end in pairwise(edges)) <= most


@pytest.fixture(scope="module")
def phantom_setup(phantom_store: Path) -> RunSetup:
    return fused_setup(phantom_store)


def test_automatic_batch_holds_a_whole_unit(
    phantom_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of exams with four images: on a GPU of which each image of a step takes so many units."""
    seen: list[int] = []
    encode = FusedModel.encode

    def watch(self: FusedModel, patches: Tensor, *others: Any) -> Tensor:
        seen.append(len(patches))
        return encode(self, patches, *others)

    monkeypatch.setattr(FusedModel, "encode", watch)
    for name in ("reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 20 * seen[-1] << 20)
    setup = fused_setup(phantom_store, training__batch_size=8)
    training = setup.config.training.replace(batch_size="auto")
    setup = replace(setup, config=setup.config.replace(training=training))
    for images, expected in ((6, 6), (4, 4), (3, 0)):
        found = largest_batch(step_memory(setup), 22 * images << 20, most=24, least=4)
        assert found == expected
    with pytest.raises(DoesNotFitError, match=r"not even one exam of 4 images per device fits in"):
        raise DoesNotFitError(setup)


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def run(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    setup = fused_setup(phantom_store)
    run = start_run(tmp_path_factory.mktemp("fused"), setup)
    fit(setup, run)
    return RunFolder.open(run.path)


def test_resumed_run_equals_an_unbroken_one(
    run: RunFolder, phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, steps = PatchSampler.place, iter(range(1000))
    killed_at = len(fused_setup(phantom_store).train_batches()) + 2

    def place_until_killed(self: PatchSampler, batch: ImageBatch, keys: Tensor | None) -> Any:
        if keys is not None and next(steps) == killed_at:
            raise KilledError
        return place(self, batch, keys)

    with monkeypatch.context() as patch:
        patch.setattr(PatchSampler, "place", place_until_killed)
        with pytest.raises(KilledError):
            train(phantom_store, tmp_path, run.config, say=lambda _: None)
    broken = RunFolder.latest(tmp_path)
    assert resume(broken.path, say=lambda _: None) is not None
    for whole, after in ((run.chosen, broken.chosen), (run.last, broken.last)):
        first, second = load_file(whole), load_file(after)
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), name


def test_scores_of_a_run_are_of_breasts(run: RunFolder, phantom_store: Path) -> None:
    """As validation found them; labels stay each image's own."""
    table = predict(run, say=lambda _: None).table
    by_breast = table.groupby(["patient_id", "exam_id", "laterality"])["score"]
    assert (by_breast.nunique() == 1).all()
    assert by_breast.ngroups > 4
    assert table["score"].nunique() == by_breast.ngroups
    manifest = pd.read_parquet(phantom_store / "manifest.parquet").set_index("image_id")
    assert (table["label"] == manifest["label"][table["image_id"]].array).all()
    metrics = run.info.validation
    assert metrics is not None
    rows = table[table["split"] == "val"].reset_index(drop=True)
    again = build_objective(run.config.training).metrics(rows, rows[["score"]].to_numpy())
    assert again["val_loss"] == pytest.approx(metrics["val_loss"], rel=1e-5)


def test_predict_gives_the_scores_of_evaluate_whichever_view_comes_last(
    run: RunFolder,
    phantoms: Path,
    phantom_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images are read one by one, and scored once all are there; also after a stop."""
    monkeypatch.setattr(
        new_images, "run_in_processes", lambda jobs, work, _: ((job, work(job)) for job in jobs)
    )
    expected = predict(run, say=lambda _: None).table.set_index("image_id")
    with Record(StorePaths(phantom_store)) as record:
        files = [image.source.path for image in record.rows() if image.image_id in expected.index]
    folder, out = tmp_path / "dicom", tmp_path / "out"

    def put(view: str) -> None:
        for path in files:
            if view in path.name:
                copy = folder / path.relative_to(phantoms)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)

    words = ["predict", str(run.path), str(folder), "--out", str(out)]
    words += ["--key", str(phantom_store / "private" / "key")]
    put("CC")
    with monkeypatch.context() as patch:
        patch.setattr(TrainedModel, "fuse", interrupted)
        assert main(words) == 130
    waiting = pd.read_csv(out / "not_scored.csv")
    assert set(waiting["reason"]) == {"not_finished"}
    assert main(words) == 0
    half = pd.read_csv(out / "predictions.csv", index_col="image_id")
    assert len(half) == len(waiting) == len(files) / 2
    put("MLO")
    assert main(words) == 0
    found = pd.read_csv(out / "predictions.csv", index_col="image_id")
    assert len(found) == len(files)
    np.testing.assert_allclose(found["score"], expected["score"][found.index], atol=1e-6)
    # With the other view a woman's score is another one; of many women, one may hardly move.
    assert (half["score"] - found["score"][half.index]).abs().median() > 1e-5


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_tools_that_take_images_one_by_one_refuse(run: RunFolder) -> None:
    with pytest.raises(InputError, match="judges all images of one exam together"):
        WholeImageModel.of(TrainedModel.load(run.chosen))
    with pytest.raises(InputError, match="MLflow gives images one by one"):
        ScoringModel(run.chosen)


@pytest.mark.slow
def test_two_processes_equal_one(phantom_store: Path, tmp_path: Path) -> None:
    """Of each batch of five breasts one process takes three, and the other two."""
    config = tmp_path / "config.yaml"
    config.write_text(
        dump_config(
            small(
                training__fusion="breast",
                training__batch_size=10,
                device__precision="32-true",
                device__compile=False,
            )
        )
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    found = []
    for devices in ("1", "2"):
        words = ["train", "--store", phantom_store, "--runs", tmp_path / devices]
        words += ["--config", config, "--devices", devices]
        command = [sys.executable, "-m", "mammo_pd", *map(str, words)]
        subprocess.run(command, check=True, env=environment, timeout=300, capture_output=True)
        found.append(RunFolder.latest(tmp_path / devices))
    assert [run.info.environment["devices"] for run in found] == [1, 2]
    columns = ["train_loss", "val_loss", "val_auc_breast"]
    one, two = (pd.read_csv(run.history)[columns] for run in found)
    pd.testing.assert_frame_equal(two, one, rtol=1e-4)
    one, two = (load_file(run.last) for run in found)
    for name, tensor in one.items():
        if name.startswith("model."):
            torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=1e-3)
