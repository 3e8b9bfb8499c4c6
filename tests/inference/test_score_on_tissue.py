"""Images scored on their tissue alone, by patch_dropout.score_on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import set_up, small

from mammo_pd.backbones.base import Backbone
from mammo_pd.backbones.build import build_backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.cli.app import main
from mammo_pd.config import RunConfig
from mammo_pd.data.split_store import split_store
from mammo_pd.data.store import open_store, read_pyramid_level
from mammo_pd.errors import InputError
from mammo_pd.evaluation.operating_points import OperatingPoints
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.inference import explain, score
from mammo_pd.inference.bundle import write_bundle
from mammo_pd.inference.explain import attention_heat
from mammo_pd.inference.mlflow_model import ScoringModel
from mammo_pd.inference.predict import predict
from mammo_pd.inference.trained_model import TrainedModel
from mammo_pd.inference.whole_image import WholeImageModel
from mammo_pd.patches import sampler as sampler_module
from mammo_pd.patches.sampler import Kept, PatchSampler
from mammo_pd.terms import Level, ScoredPatches, Split
from mammo_pd.training.loop import fit
from mammo_pd.training.model_card import CheckpointHeader
from mammo_pd.training.objectives import OBJECTIVES, build_objective
from mammo_pd.training.objectives.binary_label import BinaryLabel
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.scoring import score_batches
from mammo_pd.training.train import start_run

SIZE, PATCH, N = (112, 80), 16, 35
CPU = torch.device("cpu")
Batches = Callable[[int], tuple[ImageBatch, torch.Tensor]]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """These images have fewer patches than a tile has tokens."""
    monkeypatch.setattr(sampler_module, "_TILE", 4)


def sampler_on(patches: ScoredPatches, size: tuple[int, int] = SIZE) -> PatchSampler:
    return PatchSampler(size, PATCH, score_on=patches, num_prefix=1)


def scores_of(model: Any, sampler: PatchSampler, batches: list[ImageBatch]) -> torch.Tensor:
    objective = build_objective(RunConfig().training)
    found = torch.full((sum(map(len, batches)),), torch.nan, dtype=torch.float64)
    for rows, scores in score_batches(model, sampler, objective, batches, CPU):
        assert found[rows].isnan().all()
        found[rows] = scores[:, 0]
    assert found.isfinite().all()
    return found


def ragged(batch_of: Batches) -> ImageBatch:
    """Eight images, the later ones with more air."""
    images, _ = batch_of(8)
    for number, start in enumerate(images.offsets.tolist()):
        images.pixels[start : start + number * 1100] = 0
    return images


@given(count=st.integers(0, N), prefix=st.integers(0, 3), tile=st.sampled_from([4, 64]))
def test_so_many_patches_as_fill_whole_tiles(count: int, prefix: int, tile: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "_TILE", tile)
        sampler = PatchSampler(SIZE, PATCH, score_on=ScoredPatches.TISSUE, num_prefix=prefix)
        kept = sampler._whole_tiles(count)
    assert max(1, count) <= kept <= N
    # An image without any is read too.
    fewest = max(count, tile - prefix - 3)
    assert kept == N or ((kept + prefix) % tile == 0 and kept - fewest < tile)


def test_all_tissue_is_read_and_no_more_air_than_fills_a_tile(batch_of: Batches) -> None:
    images = ragged(batch_of)
    sampler = sampler_on(ScoredPatches.TISSUE)
    seen = []
    for part, kept in sampler.parts_to_score(images):
        assert kept is not None
        _, positions = sampler.for_evaluation(part, kept)
        tissue = sampler.tissue(part)
        assert positions.shape == (len(part), kept.num_keep)
        assert (tissue.gather(1, positions).sum(1) == tissue.sum(1)).all()
        assert (kept.num_keep - tissue.sum(1) < 4).all()
        seen += part.rows.tolist()
    assert sorted(seen) == list(range(8))
    assert len({kept.num_keep for _, kept in sampler.parts_to_score(images) if kept}) > 2


def test_a_score_does_not_depend_on_the_images_beside(batch_of: Batches) -> None:
    images = ragged(batch_of)
    torch.manual_seed(0)
    model = build_backbone("test_vit", SIZE).eval()
    sampler = sampler_on(ScoredPatches.TISSUE)
    together = scores_of(model, sampler, [images])
    alone = scores_of(model, sampler, [images.slice(n, n + 1) for n in range(8)])
    torch.testing.assert_close(alone, together)
    turned = scores_of(model, sampler, [images.take([5, 1, 7, 0]), images.take([2, 6, 3, 4])])
    torch.testing.assert_close(turned, together)
    on_all = scores_of(model, sampler_on(ScoredPatches.ALL), [images])
    assert not torch.allclose(together, on_all)


def test_parts_hold_no_more_patches_than_asked_for(batch_of: Batches) -> None:
    alike, _ = batch_of(8)
    for images in (ragged(batch_of), alike):
        parts = list(sampler_on(ScoredPatches.TISSUE).parts_to_score(images, 2))
        for part, kept in parts:
            assert kept is not None
            assert len(part) * kept.num_keep <= 2 * N
    # And no fewer than may be.
    *filled, _ = parts
    assert len(filled) > 1
    assert all(kept and (len(part) + 1) * kept.num_keep > 2 * N for part, kept in filled)


def test_without_air_it_is_the_usual_score() -> None:
    rng = np.random.default_rng(0)
    batch = ImageBatch.from_images(list(rng.integers(1, 65536, (3, *SIZE)).astype(np.uint16)))
    model = build_backbone("test_vit", SIZE).eval()
    on_all, on_tissue = (scores_of(model, sampler_on(p), [batch]) for p in ScoredPatches)
    assert torch.equal(on_all, on_tissue)


@pytest.fixture(scope="module")
def run(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "_TILE", 4)
        config = small(
            data__res="128x96", patch_dropout__score_on="tissue", patch_dropout__keep_rate=0.5
        )
        setup = set_up(phantom_store, config)
        folder = start_run(tmp_path_factory.mktemp("runs"), setup)
        fit(setup, folder)
    return RunFolder.open(folder.path)


def test_the_same_images_get_the_same_scores_everywhere(
    run: RunFolder, phantom_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By evaluate, predict and MLflow; and the thresholds are chosen on such scores."""
    scored = predict(run)
    assert "patches that hold breast" in capsys.readouterr().out
    table = scored.table
    paths = open_store(phantom_store)
    images = [np.asarray(read_pyramid_level(paths, name, "native")) for name in table["image_id"]]
    model = TrainedModel.load(run.chosen)
    expected = table["score"].to_numpy()
    np.testing.assert_allclose(model.score(images)[:, 0], expected, rtol=0, atol=1e-6)
    for image, alone in zip(images[:2], expected, strict=False):
        found = ScoringModel(run.chosen).predict(image[None])
        np.testing.assert_allclose(found[:, 0], alone, rtol=0, atol=1e-6)

    header = CheckpointHeader.read(run.chosen)
    assert header.card is not None
    assert header.card.config["patch_dropout"]["score_on"] == "tissue"
    of_validation = check_predictions(table[table["split"] == Split.VAL].reset_index(drop=True))
    locked = OperatingPoints.load(header.operating_points["label"])
    again = OperatingPoints.lock(of_validation, locked.choices, part="val")
    assert len(locked.locked.thresholds[Level.IMAGE]) > 0
    for level, thresholds in locked.locked.thresholds.items():
        expected = [threshold.value for threshold in again.locked.thresholds[level]]
        assert [one.value for one in thresholds] == pytest.approx(expected, abs=1e-6)


def test_large_images_are_read_a_few_at_once(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def watch(*given: Any, **options: Any) -> Any:
        batches = list(given[3])
        sizes.append(max(map(len, batches)))
        return score_batches(*given[:3], batches, *given[4:], **options)

    monkeypatch.setattr(score, "score_batches", watch)
    tables = []
    for pixels in (2**28, 1):
        monkeypatch.setattr(score, "_PIXELS_TOGETHER", pixels)
        tables.append(predict(run, say=lambda _: None).table)
    assert sizes[0] > sizes[1] == score.IMAGES_AT_ONCE
    np.testing.assert_allclose(tables[1]["score"], tables[0]["score"], rtol=0, atol=1e-6)


def test_patches_that_are_not_read_have_no_heat(run: RunFolder) -> None:
    model = TrainedModel.load(run.chosen)
    pixels = np.zeros((128, 96), np.uint16)
    pixels[:64, :48] = np.random.default_rng(0).integers(1, 65536, (64, 48))
    heat = attention_heat(
        model.backbone, model.sampler, ImageBatch.from_images([pixels]), (128, 96)
    )
    assert heat.max() > 0
    # 12 patches hold breast; with the class token they leave room for 3 of air.
    assert (heat[80:, 64:] == 0).mean() > 0.5


def test_the_report_says_so_and_explains_what_was_scored(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    heat_of = explain.attention_rollout

    def watch(model: Backbone, patches: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        read.append(positions.shape[1])
        return heat_of(model, patches, positions)

    monkeypatch.setattr(explain, "attention_rollout", watch)
    assert main(["evaluate", str(run.path), "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "scored here on those that hold breast" in page
    assert "on all of them" not in page
    assert read
    assert max(read) < 48


def test_predict_says_so(
    run: RunFolder, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    shutil.copy(next(phantoms.rglob("L_CC.dcm")), folder)
    assert main(["predict", str(run.path), str(folder), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "those of the 48 patches that hold breast" in said
    assert "all 48 patches" not in said


def test_the_report_of_folds_says_which_were_scored_so(phantom_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(phantom_store, tmp_path / "store"))
    split_store(open_store(store), name="two", folds=2, val=0.3, say=lambda _: None)
    runs = []
    for fold, score_on in enumerate(ScoredPatches):
        config = small(
            data__split="two",
            data__fold=fold,
            patch_dropout__score_on=score_on,
            training__epochs=1,
        )
        setup = set_up(store, config)
        runs.append(start_run(tmp_path / "runs", setup, run_id=str(fold)))
        fit(setup, runs[-1])
    folders = [str(one.path) for one in runs]
    assert main(["evaluate", *folders, "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    expected = "on all of them in fold 0 and on those that hold breast in fold 1."
    assert expected in page


def test_an_objective_that_decides_what_is_read_is_refused(
    phantom_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would read other patches, or all, and nobody would be told."""

    class Own(BinaryLabel):
        def evaluation_inputs(
            self, sampler: PatchSampler, batch: ImageBatch, kept: Kept | None = None
        ) -> tuple[torch.Tensor, ...]:
            return sampler.for_evaluation(batch)

    monkeypatch.setitem(OBJECTIVES, "own", Own)
    assert set_up(phantom_store, small(training__objective="own"))
    for objective in ("own", "masked_autoencoder"):
        config = small(training__objective=objective, patch_dropout__score_on="tissue")
        with pytest.raises(InputError, match=f"score_on=tissue .* objective {objective}"):
            set_up(phantom_store, config)


def test_other_tools_are_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tissue alone .*score with mammo-pd predict"):
        WholeImageModel.of(TrainedModel.load(run.chosen))
    with pytest.raises(InputError, match="tissue alone"):
        write_bundle(run.chosen, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"training__fusion": "breast"}, r"score_on.*side by side"),
        ({"model__name": "swin_tiny_patch4_window7_224", "data__res": "224x224"}, "every window"),
    ],
)
def test_models_that_need_equal_numbers_are_refused(
    changes: dict[str, object], reason: str, phantom_store: Path
) -> None:
    with pytest.raises(InputError, match=reason):
        set_up(phantom_store, small(patch_dropout__score_on="tissue", **changes))


def test_runs_of_before_are_scored_on_all(phantom_store: Path) -> None:
    assert RunConfig().patch_dropout.score_on is ScoredPatches.ALL
    assert not set_up(phantom_store, small()).sampler.parts_differ
