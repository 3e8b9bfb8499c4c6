"""Features are timm's own, whatever is left out or interrupted on the way."""

import fcntl
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from small_runs import set_up, small

from mammo_pd.backbones.build import build_backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.cli.app import main
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.store import (
    choose_pyramid_level,
    open_store,
    read_pyramid_level,
    read_store_info,
    write_store_info,
)
from mammo_pd.errors import InputError
from mammo_pd.inference import embed as module
from mammo_pd.inference.embed import Encoder, embed, encoder_of_checkpoint, encoder_of_run
from mammo_pd.keyed_random import image_key
from mammo_pd.locks import lock
from mammo_pd.normalization import Normalization
from mammo_pd.patches.sampler import Kept, PatchSampler
from mammo_pd.training.checkpoint import weights_of
from mammo_pd.training.train import start_run

SIZE = (96, 64)
NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of timm's model, as somebody else would hand them on."""
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("weights") / "someones.safetensors"
    save_file(timm.create_model(NAME, img_size=SIZE, in_chans=1).state_dict(), file)
    return file


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def encoder(name: str = NAME, **options: str) -> Encoder:
    torch.manual_seed(2)
    return Encoder(build_backbone(name, SIZE, **options), SIZE, name, "random")


def stacked(file: Path, column: str) -> np.ndarray:
    return np.stack(pd.read_parquet(file)[column].to_list())


def timms(model: torch.nn.Module, store: Path) -> torch.Tensor:
    """Tokens (images, T, D) of timm's own forward_features on whole images."""
    paths = open_store(store)
    rows = read_manifest(paths.manifest)
    images = [
        read_pyramid_level(paths, row.image_id, choose_pyramid_level(*row[1:], SIZE))
        for row in rows[["image_id", "crop_height", "crop_width"]].itertuples(index=False)
    ]
    patches, _ = PatchSampler(SIZE, 16).for_evaluation(ImageBatch.from_images(images))
    grid = patches.reshape(len(rows), 6, 4, 16, 16).permute(0, 1, 3, 2, 4)
    with torch.no_grad():
        return model.eval().forward_features(grid.reshape(len(rows), 1, *SIZE))  # type: ignore[operator]


def test_command_gives_timms_features(
    weights: Path, phantom_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "features.parquet"
    words = ["embed", str(weights), "--model", NAME, "--res", "96x64"]
    assert main([*words, "--store", str(phantom_store), "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("next: python -c ")
    model = timm.create_model(NAME, img_size=SIZE, in_chans=1)
    model.load_state_dict(load_file(weights))
    tokens = timms(model, phantom_store)
    torch.testing.assert_close(
        torch.from_numpy(stacked(out, "class_token")), tokens[:, 0], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        torch.from_numpy(stacked(out, "patch_mean")), tokens[:, 1:].mean(1), rtol=1e-4, atol=1e-5
    )
    table, manifest = pd.read_parquet(out), read_manifest(open_store(phantom_store).manifest)
    # The store's hashed identifiers and labels, and no other.
    columns = ["image_id", "patient_id", "exam_id", "laterality", "view", "label"]
    assert list(table.columns) == [*columns, "class_token", "patch_mean"]
    pd.testing.assert_frame_equal(
        table[columns].astype(str), manifest[columns].astype(str), check_dtype=False
    )
    about = json.loads(pq.read_schema(out).metadata[b"mammo_pd"])
    assert (about["weights"], about["patches"]) == ("someones.safetensors", "24 of 24")
    assert [file.name for file in tmp_path.iterdir()] == ["features.parquet"]


@pytest.mark.parametrize("named", ["FOLDER", "UNDER A FILE"])
def test_a_place_that_cannot_be_written_is_named_before_the_work(
    named: str,
    weights: Path,
    phantom_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "file").write_text("")
    place = {"FOLDER": tmp_path / "folder.parquet"}.get(named, tmp_path / "file" / "f.parquet")
    words = ["embed", str(weights), "--model", NAME, "--res", "96x64"]
    assert main([*words, "--store", str(phantom_store), "--out", str(place)]) == 2
    said = capsys.readouterr()
    assert f"--out {place if named == 'FOLDER' else place.parent}" in said.err
    assert ".parts" not in said.err
    assert {file.name for file in tmp_path.iterdir()} == {"folder.parquet", "file"}


def test_run_and_its_file_alone_give_the_same(phantom_store: Path, tmp_path: Path) -> None:
    """With the columns that a run of several targets has learnt."""
    learnt = {"training__objective": "findings", "training__targets": ("label",)}
    setup = set_up(phantom_store, small(data__res="96x64", patch_dropout__draw="tissue", **learnt))
    run = start_run(tmp_path / "runs", setup)
    weights_of(setup.model, setup.backbone.timm_model, {"epoch": 1}, setup.card).write(run.chosen)
    moved = tmp_path / "handed_on.safetensors"
    moved.write_bytes(run.chosen.read_bytes())
    files = []
    for number, named in enumerate((run.path, moved)):
        files.append(tmp_path / f"{number}.parquet")
        words = ["embed", str(named), "--store", str(phantom_store), "--out", str(files[-1])]
        assert main([*words, "--keep", "0.5"]) == 0
    pd.testing.assert_frame_equal(*map(pd.read_parquet, files))
    model = setup.backbone.timm_model
    assert encoder_of_run(run).targets == ("label",)
    encoder = replace(encoder_of_run(run), targets=("label", "density", "elsewhere"))
    embed(encoder, phantom_store, files[0], say=lambda _: None)
    assert [*pd.read_parquet(files[0]).columns[5:8]] == ["label", "density", "class_token"]
    torch.testing.assert_close(
        torch.from_numpy(stacked(files[0], "class_token")),
        timms(model, phantom_store)[:, 0],
        rtol=1e-4,
        atol=1e-5,
    )
    assert main(["embed", str(run.path), "--store", str(phantom_store), "--res", "96x64"]) == 2


def test_features_are_of_images_normalised_as_the_encoder_was_trained(
    phantom_store: Path, tmp_path: Path
) -> None:
    """As pretrained weights want it, so that it is another than the default."""
    setup = set_up(phantom_store, small(data__res="96x64"))
    told = Normalization(0.25, 0.125)
    run = start_run(tmp_path / "runs", setup)
    run = replace(run, info=replace(run.info, normalization=told))
    card = replace(setup.card, normalization=told)
    weights_of(setup.model, setup.backbone.timm_model, {"epoch": 1}, card).write(run.chosen)
    assert setup.backbone.normalization != told
    for encoder in (encoder_of_run(run), encoder_of_checkpoint(run.chosen)):
        assert encoder.backbone.normalization == told


def test_model_without_a_class_token_has_no_such_column(
    phantom_store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.parquet"
    one = encoder("vit_little_patch16_reg1_gap_256")
    done = embed(one, phantom_store, out, say=lambda _: None)
    assert not done.has_class_token
    tokens = timms(one.backbone.timm_model, phantom_store)
    torch.testing.assert_close(
        # Without the register token.
        torch.from_numpy(stacked(out, "patch_mean")),
        tokens[:, 1:].mean(1),
        rtol=1e-4,
        atol=1e-5,
    )
    assert "class_token" not in pd.read_parquet(out)


def test_kept_patches_depend_on_the_image_alone(phantom_store: Path, tmp_path: Path) -> None:
    first, second, all_ = (tmp_path / f"{name}.parquet" for name in "abc")
    done = embed(encoder(), phantom_store, first, keep_rate=0.5, batch_size=5, say=lambda _: None)
    assert (done.num_keep, done.num_tokens) == (12, 24)
    embed(encoder(), phantom_store, second, keep_rate=0.5, batch_size=16, say=lambda _: None)
    np.testing.assert_allclose(
        stacked(first, "patch_mean"), stacked(second, "patch_mean"), rtol=1e-4, atol=1e-5
    )
    embed(encoder(), phantom_store, all_, say=lambda _: None)
    assert not np.allclose(stacked(first, "patch_mean"), stacked(all_, "patch_mean"), atol=1e-3)


@pytest.mark.parametrize("name", [NAME, "swin_tiny_patch4_window7_224"])
def test_kept_patches_are_those_that_training_keeps(
    name: str, phantom_store: Path, tmp_path: Path
) -> None:
    """Of windows the same rows and columns, which is all that their attention takes."""
    size = (112, 112)
    torch.manual_seed(2)
    backbone = build_backbone(name, size)
    out = tmp_path / "a.parquet"
    embed(Encoder(backbone, size, name, "random"), phantom_store, out, keep_rate=0.5, say=print)
    rows = read_manifest(open_store(phantom_store).manifest)
    dataset = MammogramDataset(phantom_store, rows, size)
    sampler = PatchSampler(
        size,
        backbone.patch_size,
        normalization=backbone.normalization,
        window=backbone.window,
    )
    keys = torch.tensor([image_key(0, 0, image_id) for image_id in dataset.image_ids])
    kept = Kept(backbone.allowed_keep(0.5), keys)
    patches, positions = sampler.for_evaluation(dataset.read(range(len(dataset))), kept)
    with torch.no_grad():
        tokens = backbone.eval().forward_features(backbone.embed(patches, positions), positions)
    torch.testing.assert_close(
        torch.from_numpy(stacked(out, "patch_mean")),
        tokens[:, backbone.num_prefix :].mean(1),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "changed", ["label", "patient_id", "normalization", "name", "weights", "store"]
)
def test_nothing_is_taken_over_of_a_killed_run_that_the_file_would_tell_otherwise(
    changed: str, phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels may be corrected, and the same weights be given with another normalisation."""
    monkeypatch.setattr(module, "_PART", 10)
    store, out, anew = tmp_path / "store", tmp_path / "out.parquet", tmp_path / "anew.parquet"
    shutil.copytree(phantom_store, store)
    with monkeypatch.context() as patch:
        # All parts are done, and not joined.
        patch.setattr(module, "_join", interrupt)
        with pytest.raises(KeyboardInterrupt):
            embed(encoder(), store, out, say=lambda _: None)
    one = encoder()
    if changed == "normalization":
        one.backbone.normalization = Normalization(0.25, 0.125)
    elif changed == "name":
        one = replace(one, name="another")
    elif changed == "weights":
        # Under the same name, as of a file that was replaced.
        one.backbone.timm_model.patch_embed.proj.weight.data += 0.1
    elif changed == "store":
        paths = open_store(store)
        write_store_info(paths, {**read_store_info(paths), "fingerprint": "made otherwise"})
    else:
        manifest = open_store(store).manifest
        table = pq.read_table(manifest)
        place = table.schema.get_field_index(changed)
        field = table.schema.field(place)
        values = pa.array(table[changed].to_pylist()[::-1], field.type)
        pq.write_table(table.set_column(place, field, values), manifest)
    assert embed(one, store, out, say=lambda _: None).resumed == 0
    embed(one, store, anew, say=lambda _: None)
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(anew))


def test_killed_run_goes_on_and_another_starts_anew(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PART", 10)
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    images = embed(encoder(), phantom_store, whole, say=lambda _: None).images
    out.write_bytes(b"of before")
    true, calls = module._table, []

    def killed(*given: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return true(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(module, "_table", killed)
        with pytest.raises(KeyboardInterrupt):
            embed(encoder(), phantom_store, out, say=lambda _: None)
    assert out.read_bytes() == b"of before"
    # Of another keep rate nothing is taken over, and its parts replace those.
    assert embed(encoder(), phantom_store, tmp_path / "x.parquet", say=lambda _: None).resumed == 0
    assert embed(encoder(), phantom_store, out, say=lambda _: None).resumed == 20 < images
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(whole))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("out.parquet", "whole.parquet", "x.parquet")
    ]
    with (
        (tmp_path / ".out.parquet.lock").open("ab") as held,
        pytest.raises(InputError, match="another process"),
    ):
        lock(held, "")
        embed(encoder(), phantom_store, out, say=lambda _: None)
    with monkeypatch.context() as patch:
        calls.clear()
        patch.setattr(module, "_table", killed)
        with pytest.raises(KeyboardInterrupt):
            embed(encoder(), phantom_store, out, say=lambda _: None)
    assert embed(encoder(), phantom_store, out, keep_rate=0.5, say=lambda _: None).resumed == 0


def test_of_three_processes_one_writes_while_the_first_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second opens the lock just before the first removes it; then comes a third."""
    out, flock = tmp_path / "out.parquet", fcntl.flock
    first = module._alone_at(out)
    first.__enter__()

    def once_the_first_has_ended(file: object, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.__exit__(None, None, None)
        flock(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", once_the_first_has_ended)
    with module._alone_at(out):
        assert fcntl.flock is flock
        with pytest.raises(InputError, match="another process is using"), module._alone_at(out):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "a.csv"], "must end in .parquet"),
        (["--keep", "0"], "--keep 0 is not above 0"),
        (["nowhere.safetensors", "--model", NAME], "the weights file nowhere.safetensors does not"),
    ],
)
def test_bad_input(
    words: list[str],
    message: str,
    phantom_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["embed", *words, "--store", str(phantom_store)]) == 2
    assert message in capsys.readouterr().err


def test_file_of_weights_needs_its_model(
    weights: Path, phantom_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "features.parquet")
    assert main(["embed", str(weights), "--store", str(phantom_store), "--out", out]) == 2
    assert "--model" in capsys.readouterr().err
