"""Laws of the masked autoencoder: what it reads, what it is judged on, and what it hands on."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_runs import set_up, small
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mammo_pd.backbones.build import build_backbone, describe_backbone
from mammo_pd.backbones.weights.report import CARD_KEY
from mammo_pd.batch import ImageBatch
from mammo_pd.config import AugmentSettings, RunConfig, TrainingSettings
from mammo_pd.data.cohort import Cohort
from mammo_pd.data.overlap import Overlap
from mammo_pd.data.split_store import split_store
from mammo_pd.data.store import StorePaths
from mammo_pd.errors import InputError
from mammo_pd.patches.draw import draw_dropped, draw_uniform
from mammo_pd.patches.sampler import Kept, PatchSampler
from mammo_pd.perf.cost import forward_macs, shape_of
from mammo_pd.terms import Split
from mammo_pd.training.earlier_weights import refuse_seen_test_women
from mammo_pd.training.model_card import METADATA_KEY, CheckpointHeader
from mammo_pd.training.objectives.masked_autoencoder import MaskedAutoencoder
from mammo_pd.training.objectives.pixel_decoder import PixelDecoder
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.setup import RunSetup
from mammo_pd.training.train import resume, train

IMG_SIZE, PATCH, NUM_KEEP = (80, 64), 8, 16
KEYS = torch.arange(3)


def objective() -> MaskedAutoencoder:
    return MaskedAutoencoder(TrainingSettings(objective="masked_autoencoder"))


def images() -> ImageBatch:
    """Of the input's own size; from column 32 on air, where the last one has nothing but air."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 65536, (3, *IMG_SIZE)).astype(np.uint16)
    pixels[:, :, 32:] = 0
    pixels[2] = 0
    return ImageBatch.from_images(list(pixels))


def patches_of(batch: ImageBatch) -> torch.Tensor:
    """(B, N, P * P) standardised, by torch's own unfold."""
    whole = (batch.pixels.view(3, 1, *IMG_SIZE).int() & 0xFFFF).float() / 65535
    return F.unfold((whole - 0.5) / 0.5, PATCH, stride=PATCH).mT


def make_telling(model: nn.Module) -> None:
    """Weights that let an error show, biases and norms too."""
    for weight in model.parameters():
        nn.init.normal_(weight, std=weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.5)


STILL = PatchSampler(IMG_SIZE, PATCH, augment=AugmentSettings.none())


# A quarter of all patches is predicted, or what is left.
@pytest.mark.parametrize(("num_keep", "predicted"), [(NUM_KEEP, 20), (60, 20), (61, 19), (79, 1)])
def test_targets_are_each_dropped_patchs_own_pixels_normalised(
    num_keep: int, predicted: int
) -> None:
    batch = images()
    (patches, kept, _, asked), targets = objective().training_inputs(STILL, batch, KEYS, num_keep)
    every = patches_of(batch)
    torch.testing.assert_close(patches, every.gather(1, kept[:, :, None].expand(-1, -1, 64)))
    assert asked.shape == (3, predicted)
    assert not (asked[:, :, None] == kept[:, None, :]).any()
    of_tissue = asked % 8 < 4
    assert torch.equal(~targets.isnan().any(2), of_tissue & (KEYS < 2)[:, None])
    expected = F.layer_norm(every, (64,), eps=1e-3)
    expected = expected.gather(1, asked[:, :, None].expand(-1, -1, 64))
    known = ~targets.isnan()
    torch.testing.assert_close(targets[known], expected[known], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("augment", [AugmentSettings(), AugmentSettings.none()])
def test_true_pixels_have_no_loss_and_air_does_not_count(augment: AugmentSettings) -> None:
    sampler = PatchSampler(IMG_SIZE, PATCH, augment=augment)
    _, targets = objective().training_inputs(sampler, images(), KEYS, NUM_KEEP)
    counts = ~targets.isnan()
    assert counts.any()
    assert not counts.all()
    anything_in_air = torch.where(counts, targets, 100.0).requires_grad_()
    loss = objective().loss(anything_in_air, targets)
    assert loss.item() == 0
    # A patch's mean alone is the prediction of nothing.
    mean_alone = torch.where(counts, 0.0, 100.0)
    assert objective().loss(mean_alone, targets).item() == pytest.approx(2 / 3, abs=0.02)
    (gradient,) = torch.autograd.grad(
        objective().loss(anything_in_air + 1, targets), anything_in_air
    )
    assert (gradient[counts] != 0).all()
    assert (gradient[~counts] == 0).all()


def test_dropped_patch_that_is_not_predicted_is_never_read() -> None:
    """Where it holds breast, which the draw asks of a few of its pixels, it may be any breast."""
    batch = images()
    (patches, kept, keys, asked), targets = objective().training_inputs(
        STILL, batch, KEYS, NUM_KEEP
    )
    read = torch.zeros(3, 80, dtype=torch.bool).scatter(1, torch.cat([kept, asked], 1), True)
    mask = read.float()[:, None].expand(-1, PATCH**2, -1)
    mask = F.fold(mask, IMG_SIZE, PATCH, stride=PATCH).bool().flatten()
    # Some of its tissue is dropped and not predicted.
    others = ~mask & (batch.pixels != 0)
    assert others.sum() >= 2 * PATCH**2
    changed = replace(batch, pixels=torch.where(others, 1 + batch.pixels % 7, batch.pixels))
    assert not torch.equal(changed.pixels, batch.pixels)
    again, targets_again = objective().training_inputs(STILL, changed, KEYS, NUM_KEEP)
    for one, other in zip(
        (patches, kept, keys, asked, targets), (*again, targets_again), strict=True
    ):
        torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)


@given(st.integers(2, 90), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31))
def test_dropped_tissue_is_drawn_before_air(n: int, share: float, keep: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tissue = torch.rand(2, n, generator=generator) < share
    keys = torch.randint(-(2**60), 2**60, (2,), generator=generator)
    kept = draw_uniform(keys, n, min(n - 1, 1 + int(keep * n)))
    count = max(1, (n - kept.shape[1]) // 2)
    drawn, is_tissue = draw_dropped(keys, kept, tissue, count)
    assert drawn.shape == (2, count)
    assert (drawn[:, 1:] > drawn[:, :-1]).all()
    for row in range(2):
        dropped = set(range(n)) - set(kept[row].tolist())
        assert set(drawn[row].tolist()) <= dropped
        there = sum(bool(tissue[row, place]) for place in dropped)
        assert int(is_tissue[row].sum()) == min(count, there)
        assert torch.equal(is_tissue[row], tissue[row, drawn[row]])


def test_prediction_does_not_depend_on_what_else_is_predicted() -> None:
    torch.manual_seed(0)
    decoder = PixelDecoder(32, (4, 3), 8)
    tokens, kept = torch.randn(2, 6, 32), torch.tensor([[0, 2, 5, 7, 9], [1, 2, 3, 4, 5]])
    asked = torch.tensor([[1, 3, 11], [0, 6, 10]])
    whole = decoder(tokens, kept, asked)
    assert whole.shape == (2, 3, 64)
    torch.testing.assert_close(decoder(tokens, kept, asked[:, 1:2]), whole[:, 1:2])
    # What it costs, by torch's own count of two operations each.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        decoder(tokens, kept, asked)
    assert decoder.macs(6, 3) * 2 * 2 == counter.get_total_flops()
    # A patch is known by its place, and so is what the encoder has seen.
    assert not torch.allclose(whole[:, 0], whole[:, 1])
    assert not torch.allclose(decoder(tokens, kept.flip(1), asked), whole)


def test_decoder_is_torchs_own_without_self_attention() -> None:
    torch.manual_seed(0)
    decoder = PixelDecoder(32, (4, 3), 8)
    make_telling(decoder)
    layer = nn.TransformerDecoderLayer(
        256, 4, 1024, dropout=0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs = nn.TransformerDecoder(layer, len(decoder.blocks), nn.LayerNorm(256))
    theirs.norm.load_state_dict(decoder.norm.state_dict())
    for ours, block in zip(decoder.blocks, theirs.layers, strict=True):
        nn.init.zeros_(block.self_attn.out_proj.weight)
        for one, other in (
            (block.norm2, ours.norm1),
            (block.multihead_attn, ours.attention),
            (block.norm3, ours.norm2),
            (block.linear1, ours.mlp.fc1),
            (block.linear2, ours.mlp.fc2),
        ):
            one.load_state_dict(other.state_dict())
    kept, asked = torch.tensor([[0, 2, 5, 7, 9], [1, 2, 3, 4, 5]]), torch.tensor([[1, 11], [6, 0]])
    tokens, places = torch.randn(2, 6, 32), torch.zeros(2, 6, 256)
    # The class token has no place.
    places[:, 1:] = decoder.positions[kept]
    context = decoder.context_norm(decoder.project(tokens) + places)
    expected = decoder.pixels(theirs(decoder.query + decoder.positions[asked], context))
    torch.testing.assert_close(decoder(tokens, kept, asked), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kept", [49, 256, 784])
def test_decoder_is_light(kept: int) -> None:
    """A sixth of a ViT-S that gives all tokens, for as many patches as it is given."""
    encoder = replace(shape_of("vit_small_patch16_224"), class_token_alone=False)
    macs = PixelDecoder(encoder.width, (4, 3), encoder.patch_size).macs(kept + 1, kept)
    assert macs / sum(forward_macs(encoder, kept)) == pytest.approx(1 / 6, rel=0.1)


def test_places_are_told_by_row_and_column() -> None:
    decoder = PixelDecoder(32, (5, 3), 8)
    places = decoder.positions.view(5, 3, 256)
    of_row = (places == places[:, :1]).all(1).all(0)
    of_column = (places == places[:1]).all(1).all(0)
    assert of_row.sum() >= 128
    assert of_column.sum() >= 128
    assert (of_row | of_column).all()
    assert len(decoder.positions.unique(dim=0)) == 15
    # They follow from the grid, so no checkpoint has them.
    assert "positions" not in decoder.state_dict()


def test_what_counts_of_a_moved_image_is_where_its_breast_has_come_to() -> None:
    """Chest wall on the right: the breast is in the patches that were air."""
    augment = AugmentSettings.none().replace(horizontal_flip=1)
    sampler = PatchSampler(IMG_SIZE, PATCH, augment=augment)
    inputs, targets = objective().training_inputs(sampler, images(), KEYS, NUM_KEEP)
    of_tissue = inputs[3] % 8 >= 4
    assert torch.equal(~targets.isnan().any(2), of_tissue & (KEYS < 2)[:, None])


def test_it_is_judged_on_images_as_they_are() -> None:
    moved = PatchSampler(IMG_SIZE, PATCH, augment=AugmentSettings(horizontal_flip=1))
    *inputs, pixels = objective().evaluation_inputs(moved, images(), Kept(NUM_KEEP, KEYS))
    expected, targets = objective().training_inputs(STILL, images(), KEYS, NUM_KEEP)
    for one, other in zip((*inputs, pixels), (*expected, targets), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)


def test_error_of_an_image_is_the_mean_of_its_patches_that_count() -> None:
    """Whatever their number, by torch's own loss of each patch."""
    generator = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(2, 5, 6, 9, generator=generator)
    for image, count in enumerate((6, 4, 2, 1, 0)):
        targets[image, count:] = torch.nan
    each = [
        F.mse_loss(outputs[image, :count], targets[image, :count])
        for image, count in enumerate((6, 4, 2, 1))
    ]
    loss = objective().loss(outputs, targets)
    torch.testing.assert_close(loss, sum(each) / 5)

    model = objective().build_model(build_backbone("test_vit", (80, 64)))
    model.backbone.encode = lambda patches, kept, keys: patches
    model.backbone.timm_model.fc_norm = nn.Identity()
    model.decoder.forward = lambda tokens, kept, asked: outputs
    errors = model(outputs, KEYS, KEYS, KEYS, targets)
    torch.testing.assert_close(errors[:, 0], torch.tensor([*each, torch.nan]), equal_nan=True)
    assert objective().metrics(pd.DataFrame(), np.full((3, 1), np.nan)) == {"val_loss": np.inf}


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_decoder_is_given_timms_own_tokens_and_teaches_all_of_the_encoder(pool: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny_patch16_224", (64, 48), global_pool=pool)
    model = objective().build_model(backbone).eval()
    timm_model = model.backbone.timm_model
    make_telling(model)
    whole, every = torch.randn(2, 1, 64, 48), torch.arange(12).expand(2, -1)
    # In another order than the grid's: a token is known by its place.
    kept, asked = every.roll(5, 1), torch.tensor([[3, 7], [0, 11]])
    patches = F.unfold(whole, 16, stride=16).mT
    predicted = model(patches.roll(5, 1), kept, KEYS[:2], asked)
    tokens = timm_model.fc_norm(timm_model.forward_features(whole))
    torch.testing.assert_close(predicted, model.decoder(tokens, every, asked), atol=1e-4, rtol=1e-4)
    predicted.square().sum().backward()
    for weight_name, weight in timm_model.named_parameters():
        # What classifies has nothing to do with it.
        if not weight_name.startswith("head."):
            assert weight.grad is not None, weight_name
            assert weight.grad.abs().max() > 0, weight_name


def test_model_is_judged_by_the_loss_of_images_that_have_one() -> None:
    model = objective().build_model(build_backbone("test_vit", (80, 64))).eval()
    sampler = PatchSampler((80, 64), 16)
    inputs = objective().evaluation_inputs(sampler, images(), Kept(4, KEYS))
    errors = model(*inputs)
    assert errors.shape == (3, 1)
    assert torch.equal(errors.isnan()[:, 0], KEYS == 2)
    *given, pixels = inputs
    loss = objective().loss(model(*given), pixels)
    assert loss.item() == pytest.approx(errors.nan_to_num().mean().item(), rel=1e-5)
    scores = errors.detach().double().numpy()
    metrics = objective().metrics(pd.DataFrame(index=range(3)), scores)
    assert metrics["val_loss"] == pytest.approx(float(scores[:2].mean()))


class KilledError(Exception):
    """Stands in for SIGKILL."""


CONFIG = small(
    training__objective="masked_autoencoder",
    training__epochs=2,
    training__batch_size=12,
    training__ema_decay=0.5,
    model__drop_path_rate=0.2,
    model__name="test_vit",
    data__res="96x64",
)


def pretrained(store: Path, runs: Path, config: RunConfig = CONFIG) -> Path:
    run = train(store, runs, config, say=lambda _: None)
    assert run is not None
    return run.path


@pytest.fixture(scope="module")
def run(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(phantom_store, tmp_path_factory.mktemp("runs"))


def test_resumed_run_equals_an_unbroken_one(
    run: Path, phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, steps = PatchSampler.place, iter(range(1000))

    def place_until_killed(self: PatchSampler, batch: ImageBatch, keys: torch.Tensor | None):
        if keys is not None and next(steps) == 3:
            raise KilledError
        return place(self, batch, keys)

    with monkeypatch.context() as patch:
        patch.setattr(PatchSampler, "place", place_until_killed)
        with pytest.raises(KilledError):
            pretrained(phantom_store, tmp_path)
    broken = RunFolder.latest(tmp_path)
    assert broken.has_checkpoint
    assert resume(broken.path, say=lambda _: None) is not None
    for name in ("model.safetensors", "last.safetensors"):
        whole, after = load_file(run / name), load_file(broken.path / name)
        assert whole.keys() == after.keys()
        for key, tensor in whole.items():
            assert torch.equal(tensor, after[key]), (name, key)
    columns = ["epoch", "train_loss", "val_loss"]
    first, second = (pd.read_csv(one / "history.csv")[columns] for one in (run, broken.path))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_encoder_is_handed_on_tensor_by_tensor(run: Path, phantom_store: Path) -> None:
    trained = load_file(run / "model.safetensors")
    weights = str(run / "model.safetensors")
    setup = set_up(
        phantom_store, small(model__name="test_vit", data__res="96x64", model__weights=weights)
    )
    encoder = setup.backbone.timm_model.state_dict()
    assert len(encoder) > 50
    for name, tensor in encoder.items():
        if not name.startswith("head."):
            assert torch.equal(tensor, trained[name]), name
    left = {name for name in trained if name not in encoder}
    assert left
    assert all(name.startswith("objective.decoder.") for name in left)


@pytest.mark.parametrize("keep", [1.0, "1:0.25", "random", "0.25+1"])
def test_keeping_every_patch_is_refused(keep: object, phantom_store: Path) -> None:
    config = CONFIG.replace(patch_dropout=CONFIG.patch_dropout.replace(keep_rate=keep))
    with pytest.raises(InputError, match=r"--keep .* a rate below 1"):
        set_up(phantom_store, config)


def test_what_pretraining_cannot_do_is_refused() -> None:
    pooled = build_backbone("test_vit", (80, 64), global_pool="map")
    with pytest.raises(InputError, match=r"model\.global_pool=avg"):
        objective().build_model(pooled)
    swin = describe_backbone("swin_tiny_patch4_window7_224")
    with pytest.raises(InputError, match=r"merges them; choose a ViT"):
        objective().build_model(swin)
    with pytest.raises(InputError, match="uses no labels"):
        MaskedAutoencoder(TrainingSettings(monitor="val_auc_image"))
    MaskedAutoencoder(TrainingSettings(monitor="val_loss"))
    with pytest.raises(InputError, match="no score of a whole image"):
        objective().evaluation_inputs(STILL, images())


def another_store(store: Path, folder: Path) -> StorePaths:
    """The same images, to be split or labelled anew."""
    folder.mkdir()
    for name in ("store.json", "manifest.parquet"):
        shutil.copy(store / name, folder)
    (folder / "pixels").symlink_to(store / "pixels")
    return StorePaths(folder)


def test_weights_remember_the_women_of_the_weights_that_they_were_started_from(
    run: Path, phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pretrained here, trained on the women of another archive, and now to be tested here.
    elsewhere = another_store(phantom_store, tmp_path / "elsewhere")
    # Of other sizes than the default split: of twelve women two draws can be the same.
    split_store(elsewhere, name="elsewhere", fractions=(0.5, 0.25, 0.25), say=lambda _: None)
    nothing = Overlap(0, 0, True)
    monkeypatch.setattr("mammo_pd.training.earlier_weights.find_overlap", lambda *_: nothing)
    changes = {"model__weights": str(run / "model.safetensors"), "data__split": "elsewhere"}
    between = set_up(elsewhere.root, small(model__name="test_vit", data__res="96x64", **changes))
    weights = tmp_path / "between.safetensors"
    card = between.card
    save_file({"a": torch.zeros(1)}, weights, {METADATA_KEY: "{}", CARD_KEY: card.dump()})

    paths = another_store(phantom_store, tmp_path / "store")
    split_store(paths, name="other", fractions=(0.3, 0.2, 0.5), say=lambda _: None)
    told: list[str] = []
    refuse_seen_test_women(str(weights), Cohort.read(paths, "other"), told.append)
    assert "the split elsewhere, which" in told[0]
    assert "the split default, which" in told[1]
    assert all("make sure that none of its women is in the test part" in line for line in told)
    for file in (phantom_store / "splits").glob("default.*"):
        shutil.copy(file, paths.splits)
    with pytest.raises(InputError, match=r"started from those of another that learnt from \d"):
        refuse_seen_test_women(str(weights), Cohort.read(paths, "other"), told.append)
    # On the split that all of it began with there is nothing to refuse.
    refuse_seen_test_women(str(weights), Cohort.read(paths, "default"), told.append)
    assert len(told) == 4


def test_weights_of_one_fold_have_seen_the_women_of_the_others(
    run: Path, phantom_store: Path, tmp_path: Path
) -> None:
    paths = another_store(phantom_store, tmp_path / "store")
    split = split_store(paths, name="cv", folds=3, say=lambda _: None)
    card = CheckpointHeader.read(run / "model.safetensors").card
    assert card is not None
    weights = tmp_path / "fold.safetensors"
    card = replace(card, split="cv", split_hash=split.hash, fold=0)
    save_file({"a": torch.zeros(1)}, weights, {METADATA_KEY: "{}", CARD_KEY: card.dump()})
    told: list[str] = []
    refuse_seen_test_women(str(weights), Cohort.read(paths, "cv", 0), told.append)
    for fold in (1, 2):
        cohort = Cohort.read(paths, "cv", fold)
        # Every woman of another fold's test part was trained on, or chose the epoch.
        women = cohort.part(Split.TEST)["patient_id"].nunique()
        with pytest.raises(InputError, match=f"learnt from {women} of the {women} women") as error:
            refuse_seen_test_women(str(weights), cohort, told.append)
        assert "train with --split cv --fold 0." in str(error.value)
    assert told == []


def test_weights_that_have_seen_test_women_are_refused(
    run: Path, phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = another_store(phantom_store, tmp_path / "store")
    # With so many to be tested, some are among those that the default split trains on.
    split_store(paths, name="other", fractions=(0.3, 0.2, 0.5), say=lambda _: None)
    config = small(
        model__name="test_vit",
        data__res="96x64",
        data__split="other",
        model__weights=str(run / "model.safetensors"),
    )
    # Where the store does not have the split that they were made on, the run's own store tells.
    with pytest.raises(InputError, match=r"run on another store, .* learnt from \d wom.n of the"):
        set_up(paths.root, config)
    # Weights that were taken out of their run cannot be asked.
    alone = tmp_path / "alone.safetensors"
    shutil.copy(run / "model.safetensors", alone)
    said: list[str] = []
    elsewhere = config.replace(model=config.model.replace(weights=str(alone)))
    RunSetup.build(paths.root, elsewhere, say=said.append)
    assert any("alone.safetensors are of a run on the split default" in line for line in said)
    assert any("is not to be found: make sure" in line for line in said)
    for one_key, warnings in ((True, 0), (False, 1), (None, 1)):
        overlap = Overlap(0, 0, one_key)
        monkeypatch.setattr(
            "mammo_pd.training.earlier_weights.find_overlap", lambda *_, found=overlap: found
        )
        told: list[str] = []
        cohort = Cohort.read(paths, "other")
        refuse_seen_test_women(str(run / "model.safetensors"), cohort, told.append)
        assert len(told) == warnings
    monkeypatch.undo()
    # Nor can weights of a version that did not note it; others' weights are not asked.
    for facts, expected in (({"facts": "{}"}, 2), (None, 1)):
        save_file({"a": torch.zeros(1)}, tmp_path / "earlier.safetensors", facts)
        told = said[:1]
        cohort = Cohort.read(paths, "other")
        refuse_seen_test_women(str(tmp_path / "earlier.safetensors"), cohort, told.append)
        assert len(told) == expected
        assert all("make sure" in line for line in told[1:])
    for file in (phantom_store / "splits").glob("default.*"):
        shutil.copy(file, paths.splits)
    with pytest.raises(InputError, match=r"learnt from \d of the \d women of the test part"):
        set_up(paths.root, config)
    # Nor may pretraining begin with them.
    with pytest.raises(InputError, match="women of the test part"):
        set_up(paths.root, config.replace(training=CONFIG.training))
    # The part that they were not trained on may be tested, whatever the split is called.
    for suffix in (".csv", ".json"):
        shutil.copy(paths.splits / f"default{suffix}", paths.splits / f"again{suffix}")
    set_up(paths.root, config.replace(data=config.data.replace(split="again")))


def test_store_without_any_label_is_pretrained_on_and_not_trained_on(
    phantom_store: Path, tmp_path: Path
) -> None:
    paths = another_store(phantom_store, tmp_path / "store")
    table = pq.read_table(paths.manifest)
    place = table.schema.get_field_index("label")
    nothing = pa.nulls(len(table), table.schema.field(place).type)
    pq.write_table(table.set_column(place, table.schema.field(place), nothing), paths.manifest)
    with pytest.raises(InputError, match="no patient is positive"):
        set_up(paths.root, CONFIG.replace(training=TrainingSettings()))
    said: list[str] = []
    setup = RunSetup.build(paths.root, CONFIG, say=said.append)
    assert any("no image has a label yet" in line for line in said)
    assert sum(map(len, setup.parts.values())) == len(table)
    groups = [set(rows["patient_id"]) for rows in setup.parts.values()]
    assert not set.intersection(*groups)
    assert len(setup.train_set) > len(setup.val_set) > 0
