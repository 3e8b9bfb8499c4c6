import re
from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mammo_pd.backbones.build import build_backbone
from mammo_pd.backbones.vit import VitBackbone
from mammo_pd.batch import ImageBatch
from mammo_pd.cli.app import main
from mammo_pd.config import load_config
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.store import open_store, read_pyramid_level
from mammo_pd.imaging.box import Box
from mammo_pd.imaging.orientation import to_stored_frame
from mammo_pd.imaging.pyramid import area_average
from mammo_pd.inference import explain
from mammo_pd.inference.explain import (
    ErrorPictures,
    LesionMark,
    draw_pictures,
    heat_on_image,
    lesion_in_stored_frame,
)
from mammo_pd.inference.predict import Scored, predict
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.train import train

FRAME = {"rows": 700, "crop_top": 50, "crop_left": 30, "crop_height": 400, "crop_width": 250}
MARK = (0, 225, 255)


@pytest.fixture(scope="module")
def run(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config(
        None,
        {
            "data.res": "128x96",
            "data.workers": 1,
            "model.name": "test_vit",
            "training.epochs": 1,
            "training.batch_size": 8,
            "device.accelerator": "cpu",
        },
    )
    run = train(phantom_store, tmp_path_factory.mktemp("runs"), config, say=lambda _: None)
    assert run is not None
    # One score for all, so that some are wrong whatever the store's key dealt to the test part.
    with safe_open(run.chosen, "pt") as file:
        header = file.metadata()
    weights = load_file(run.chosen)
    for name in ("head.weight", "head.bias"):
        weights[name].zero_()
    save_file(weights, run.chosen, header)
    return run.path


@pytest.fixture(scope="module")
def scored(run: Path) -> Scored:
    return predict(RunFolder.open(run), say=lambda _: None)


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)


@pytest.mark.parametrize("flipped", [False, True])
def test_a_lesion_is_mapped_as_its_box_is(flipped: bool) -> None:
    image = FRAME | {"flipped": flipped, "lesion_row": 120, "lesion_column": 90, "lesion_radius": 7}
    mark = lesion_in_stored_frame(image)
    box = to_stored_frame(Box(120, 90, 1, 1), Box(50, 30, 400, 250), flipped=flipped)
    assert mark == LesionMark(box.top, box.left, 7)


def test_both_spellings_are_one_place() -> None:
    frame = FRAME | {"flipped": True}
    ours = frame | {"lesion_row": 100, "lesion_column": 60, "lesion_radius": 9}
    # mini-MIAS counts from the bottom, and a table can hold its numbers as text.
    theirs = frame | {"x": "60", "y_from_bottom": "599", "radius": "9"}
    assert lesion_in_stored_frame(ours) == lesion_in_stored_frame(theirs) is not None


@pytest.mark.parametrize("nothing", [None, float("nan"), pd.NA, "", "NOTE 3"])
def test_no_lesion_no_mark(nothing: object) -> None:
    frame = FRAME | {"flipped": False}
    assert lesion_in_stored_frame(frame) is None
    assert (
        lesion_in_stored_frame(
            frame | {"lesion_row": nothing, "lesion_column": 60.0, "lesion_radius": 5.0}
        )
        is None
    )


def test_marks_lie_on_the_lesions_of_phantoms(phantom_store: Path) -> None:
    paths = open_store(phantom_store)
    manifest = read_manifest(paths.manifest)
    masses = manifest[manifest["lesion"].astype(str).str.contains("mass")]
    assert len(masses) >= 4
    assert masses["flipped"].nunique() == 2

    def brighter(image: dict[str, object]) -> float:
        """How much brighter the marked place is than a ring around it."""
        pixels = read_pyramid_level(paths, str(image["image_id"]), "native").astype(float)
        mark = lesion_in_stored_frame(image)
        assert mark is not None
        rows, columns = np.indices(pixels.shape)
        away = np.hypot(rows - mark.row, columns - mark.column) / mark.radius
        ring = (away > 1.6) & (away < 2.4) & (pixels > 0)
        return float(pixels[away < 0.6].mean() - pixels[ring].mean())

    images = masses.to_dict("records")
    assert min(map(brighter, images)) > 1000
    # A mark that is turned the wrong way, or comes from another crop, does not pass.
    turned = [image | {"flipped": not image["flipped"]} for image in images]
    shifted = [
        image | {"crop_top": image["crop_top"] + 3 * image["lesion_radius"]} for image in images
    ]
    assert min(map(brighter, turned)) < 0
    assert min(map(brighter, shifted)) < 0


def test_a_ring_is_drawn_around_the_place_in_both_views() -> None:
    pixels = np.full((200, 120), 30000, np.uint16)
    heat = np.zeros((200, 120), np.float32)
    for mirror, column in ((False, 40), (True, 79)):
        pictures = draw_pictures(pixels, heat, LesionMark(80, 40, 10), mirror=mirror)
        assert len(pictures) == 2
        for drawn in map(opened, pictures):
            assert drawn.shape == (200, 120, 3)
            rows, columns = np.nonzero(np.abs(drawn - MARK).sum(axis=2) < 60)
            away = np.hypot(rows - 80, columns - column)
            assert away.min() > 10
            assert away.max() < 16
            assert abs(columns.mean() - column) < 0.5


def test_heat_colours_the_second_view_alone() -> None:
    pixels = np.full((50, 40), 20000, np.uint16)
    heat = np.zeros((50, 40), np.float32)
    heat[10:20] = 1
    alone, drawn = map(opened, draw_pictures(pixels, heat, None))
    (plain,) = map(opened, draw_pictures(pixels, None, None))
    assert plain.shape == (50, 40, 3)
    assert (alone == plain).all()
    assert (drawn[20:] == plain[20:]).all()
    red, _, blue = drawn[10:20].reshape(-1, 3).T
    assert (red > blue + 80).all()


@pytest.mark.parametrize("image_size", [(300, 100), (200, 260), (333, 250)])
def test_heat_lies_where_the_model_read_it(image_size: tuple[int, int]) -> None:
    img_size, size = (256, 192), (image_size[0] // 2, image_size[1] // 2)
    # Blocks of light, so that each patch's mean says where it was read.
    rng = np.random.default_rng(0)
    blocks = rng.random((6, 4)) ** 2
    rows = np.arange(image_size[0]) * 6 // image_size[0]
    columns = np.arange(image_size[1]) * 4 // image_size[1]
    pixels = (1 + 30000 * blocks[rows][:, columns]).astype(np.uint16)
    images = ImageBatch.from_images([pixels])
    sampler = PatchSampler(img_size, 8)
    patches, _ = sampler.for_evaluation(images)
    shares = patches.mean(dim=2).reshape(sampler.grid_size).numpy()
    heat = heat_on_image(shares, image_size, size, img_size)
    seen = area_average(pixels, size)
    seen = np.maximum(seen, np.median(seen))
    assert heat.min() == 0
    assert heat.max() == 1

    def fit(rows: int, columns: int) -> float:
        moved = np.roll(heat, (rows, columns), axis=(0, 1))
        return float(np.corrcoef(moved.flatten(), seen.flatten())[0, 1])

    assert fit(0, 0) > 0.88
    # Nowhere beside this does it fit as well.
    side = round(8 * size[0] / min(256, 192 * image_size[0] / image_size[1]))
    for rows, columns in ((side, 0), (-side, 0), (0, side), (0, -side)):
        assert fit(rows, columns) < fit(0, 0) - 0.02


def test_even_attention_colours_nothing() -> None:
    heat = heat_on_image(np.full((8, 6), 1 / 48, np.float32), (80, 60), (80, 60), (128, 96))
    assert (heat == 0).all()


def test_a_picture_of_a_run(scored: Scored, phantom_store: Path) -> None:
    pictures = ErrorPictures([scored])
    images = scored.images
    assert images["flipped"].nunique() == 2
    ringed = 0
    for flipped, of_side in images.sort_values("lesion_row").groupby("flipped"):
        image = of_side.iloc[0].to_dict()  # with a lesion, if there is one
        files = pictures(image["image_id"])
        assert max(map(len, files)) < 75_000
        plain, attended = map(opened, files)
        assert plain.shape == attended.shape
        height, width = plain.shape[:2]
        assert max(height, width) <= 320
        pixels = read_pyramid_level(open_store(phantom_store), image["image_id"], "native")
        grey = area_average(pixels, (height, width)) >> 8
        # Palette and ring apart it is the stored image, turned back as it was acquired.
        acquired = grey[:, ::-1] if flipped else grey
        assert np.median(np.abs(plain - acquired[:, :, None])) <= 2
        assert ((attended[:, :, 0] - attended[:, :, 2]) > 40).any()
        mark = lesion_in_stored_frame(image)
        if mark is None:
            continue
        ringed += 1
        rows, columns = np.nonzero(np.abs(plain - MARK).sum(axis=2) < 90)
        scale = height / pixels.shape[0]
        column = pixels.shape[1] - 1 - mark.column if flipped else mark.column
        assert abs((rows.min() + rows.max()) / 2 - mark.row * scale) < 2
        assert abs((columns.min() + columns.max()) / 2 - column * scale) < 2
    assert ringed
    assert pictures("no such image") == ()
    assert "attention roll-out" in pictures.legend
    assert "A ring" in pictures.legend


def test_each_fold_explains_its_own(scored: Scored) -> None:
    torch.manual_seed(1)
    other = build_backbone("test_vit", (128, 96)).eval()
    for block in other.timm_model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.3)
    first, second = scored.images["image_id"].iloc[:2]
    table = scored.table.assign(split="test")
    parts = [
        replace(scored, table=table[table["image_id"] == first]),
        replace(scored, table=table[table["image_id"] == second], backbone=other),
    ]
    pictures = ErrorPictures(parts)
    assert pictures(first) == ErrorPictures(parts[:1])(first)
    assert pictures(second) == ErrorPictures(parts[1:])(second)
    assert pictures(second) != ErrorPictures([scored])(second)


def test_a_model_without_rollout_gets_the_image_alone(scored: Scored) -> None:
    vit = timm.create_model("test_vit3", img_size=(128, 96), in_chans=1, dynamic_img_size=False)
    pictures = ErrorPictures([replace(scored, backbone=VitBackbone(vit.eval()))])
    image_id = scored.images["image_id"].iloc[0]
    assert pictures(image_id) == ErrorPictures([scored])(image_id)[:1]
    assert "is not shown" in pictures.legend
    assert "'map'" in pictures.legend


@pytest.mark.usefixtures("blank_figures")
def test_the_report_of_a_run_shows_them_and_that_of_a_table_does_not(
    run: Path, phantom_store: Path, tmp_path: Path
) -> None:
    assert main(["evaluate", str(run), "--out", str(tmp_path / "r")]) == 0
    text = (tmp_path / "r" / "index.html").read_text(encoding="utf-8")
    errors = pd.read_csv(tmp_path / "r" / "errors.csv")
    pictured = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]+)"', text)
    # Each image, and the same with what the model attended to.
    assert len(pictured) == 2 * len(errors) > 0
    for data in pictured:
        assert opened(b64decode(data)).max() > 0
    assert "attention roll-out over the image" in text

    table = str(run / "predictions.csv")
    assert main(["evaluate", "--predictions", table, "--out", str(tmp_path / "t")]) == 0
    text = (tmp_path / "t" / "index.html").read_text(encoding="utf-8")
    assert "<img" not in text
    assert "attention roll-out" not in text


def test_roll_out_that_would_take_minutes_on_a_cpu_is_left_out(
    scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "_MOST_PATCHES_ON_CPU", 10)
    pictures = explain.ErrorPictures([scored])
    assert "takes minutes per image on a CPU" in pictures.legend
    assert len(pictures(scored.table["image_id"][0])) == 1
