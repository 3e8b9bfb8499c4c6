import math
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor, PersistentDataset
from monai.transforms import RandFlipd, Resized, Spacingd

import mammo_pd.data
from mammo_pd.data.image_file import write_image_file
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.monai import MammogramStoreDataset
from mammo_pd.data.split_store import split_store
from mammo_pd.data.store import open_store, read_pyramid_level, take_in
from mammo_pd.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms' store with a default split, three folds, and two women of whom little is known.

    They have no label, age or spacing, and are negative ones of the training part, so that
    validation keeps women of either label.
    """
    copy = tmp_path_factory.mktemp("monai") / "store"
    # Other tests may have split the shared store.
    shutil.copytree(phantom_store, copy, ignore=shutil.ignore_patterns("splits"))
    split = split_store(open_store(copy), fractions=(0.5, 0.25, 0.25), say=lambda _: None)
    split_store(open_store(copy), name="three", folds=3, say=lambda _: None)
    file = copy / "manifest.parquet"
    table = pd.read_parquet(file, dtype_backend="pyarrow")
    trained = set(split.table.loc[split.table["split"] == "train", "patient_id"])
    positive = set(table.loc[table["label"] == 1, "patient_id"])
    unknown = table["patient_id"].isin(sorted(trained - positive)[:2])
    assert table.loc[unknown, "patient_id"].nunique() == 2
    for column in ("label", "age", "imager_pixel_spacing_row", "imager_pixel_spacing_column"):
        table.loc[unknown, column] = None
    table.to_parquet(file)
    return copy


def everything(store: Path, **options: object) -> list[dict[str, object]]:
    parts = ("train", "val", "test")
    return [s for part in parts for s in MammogramStoreDataset(store, part=part, **options)]


@pytest.mark.parametrize("level", [512, "512", 1024, "native"])
def test_samples_are_the_stored_pixels_and_the_manifest(store: Path, level: int | str) -> None:
    manifest = read_manifest(store / "manifest.parquet").set_index("image_id")
    samples = everything(store, level=level)
    assert sorted(s["image_id"] for s in samples) == sorted(manifest.index)
    for sample in samples:
        image, row = sample["image"], manifest.loc[sample["image_id"]]
        stored = read_pyramid_level(open_store(store), row.name, image.meta["level"])
        assert isinstance(image, MetaTensor)
        assert (image.dtype, image.shape) == (torch.float32, (1, *stored.shape))
        assert np.array_equal(np.rint(image[0].numpy() * 65535.0).astype(np.uint16), stored)
        # These phantoms are smaller than any level.
        assert image.meta["level"] == "native"
        for field in ("patient_id", "exam_id", "laterality", "view"):
            assert sample[field] == row[field]
        assert image.meta["manufacturer"] == row["manufacturer"]
        assert image.meta["crop_height"] == row["crop_height"]
        if pd.isna(row["label"]):
            assert math.isnan(sample["label"])
            assert math.isnan(image.meta["age"])
        else:
            assert sample["label"] == row["label"]


def test_affine_is_the_spacing_of_the_level(tmp_path: Path, phantom_store: Path) -> None:
    """Height and width in mm are those of the native image, whatever the level."""
    store = tmp_path / "store"
    shutil.copytree(phantom_store, store)
    split_store(open_store(store), say=lambda _: None)
    # Pretend that what is stored is a level of a larger image.
    manifest = read_manifest(store / "manifest.parquet")
    for image_id in manifest["image_id"]:
        native = read_pyramid_level(open_store(store), image_id, "native")
        beside = open_store(store).partial
        write_image_file(beside, {"512": native[::2, ::3]})
        take_in(open_store(store), beside, image_id)
    pd.read_parquet(store / "manifest.parquet").assign(
        crop_height=lambda t: t["crop_height"] * 10,
        crop_width=lambda t: t["crop_width"] * 10,
        imager_pixel_spacing_row=0.05,
        imager_pixel_spacing_column=0.07,
    ).to_parquet(store / "manifest.parquet")
    for sample in everything(store, level=512):
        image = sample["image"]
        stored = read_pyramid_level(open_store(store), sample["image_id"], "512")
        assert image.meta["level"] == "512"
        assert np.array_equal(image[0].numpy(), stored / np.float32(65535))
        assert image.meta["spacing_known"]
        for pixels, pixdim, native, mm in zip(
            image.shape[1:],
            image.pixdim.tolist(),
            (image.meta["crop_height"], image.meta["crop_width"]),
            (0.05, 0.07),
            strict=True,
        ):
            assert pixels * pixdim == pytest.approx(native * mm)
    resampled = Spacingd("image", pixdim=(0.5, 0.5))(sample)["image"]
    assert resampled.pixdim.tolist() == pytest.approx([0.5, 0.5])
    assert resampled.shape[1] == pytest.approx(image.meta["crop_height"] * 0.05 / 0.5, abs=1.5)


def test_unknown_spacing_is_the_identity_and_says_so(store: Path) -> None:
    known = {True: 0, False: 0}
    for sample in everything(store):
        image = sample["image"]
        known[image.meta["spacing_known"]] += 1
        if image.meta["spacing_known"]:
            spacing = [image.meta[f"imager_pixel_spacing_{axis}"] for axis in ("row", "column")]
            assert image.pixdim.tolist() == pytest.approx(spacing)
        else:
            assert torch.equal(image.affine, torch.eye(4, dtype=torch.float64))
    assert known == {True: 40, False: 8}


def test_parts_are_those_of_the_split(store: Path) -> None:
    table = pd.read_csv(store / "splits" / "default.csv")
    for part in ("train", "val", "test"):
        samples = MammogramStoreDataset(store, part=part).data
        assert {s["image_id"] for s in samples} == set(table["image_id"][table["split"] == part])
    tested = [
        {s["patient_id"] for s in MammogramStoreDataset(store, split="three", part="test", fold=f)}
        for f in range(3)
    ]
    assert sum(map(len, tested)) == len(set.union(*tested)) == 12


def test_leak_is_refused(store: Path, tmp_path: Path) -> None:
    """Two patients on two sides turn out to be one woman: an exam of both."""
    leaky = tmp_path / "store"
    shutil.copytree(store, leaky)
    sides = pd.read_csv(leaky / "splits" / "default.csv").set_index("image_id")["split"]
    table = pd.read_parquet(leaky / "manifest.parquet", dtype_backend="pyarrow")
    side = table["image_id"].map(sides)
    for part in ("train", "test"):
        table.loc[table.index[side == part][0], "exam_id"] = "shared"
    table.to_parquet(leaky / "manifest.parquet")
    with pytest.raises(InputError, match="1 patient on more than one side"):
        MammogramStoreDataset(leaky)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 1000}, "no level 1000; choose one of native, 4096, 2048, 1024, 512"),
        ({"part": "dev"}, "no part 'dev'; choose one of train, val, test"),
        ({"split": "other"}, "no split 'other'"),
        ({"fold": 0}, "has no folds"),
        ({"split": "three"}, "choose the one to test on"),
    ],
)
def test_what_is_not_there_is_refused_with_the_choice(
    store: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        MammogramStoreDataset(store, **options)


def test_lost_level_is_refused_with_the_remedy(store: Path, tmp_path: Path) -> None:
    broken = tmp_path / "store"
    shutil.copytree(store, broken)
    shutil.rmtree(broken / "pixels")
    # MONAI wraps what a transform raises.
    with pytest.raises(RuntimeError) as raised:
        MammogramStoreDataset(broken)[0]
    assert isinstance(raised.value.__cause__, InputError)
    assert "again to repair it" in str(raised.value.__cause__)


def test_monais_loader_batches_it_in_other_processes(store: Path) -> None:
    """Text, labels and meta collate, missing ones included, and every image comes once."""
    resize = Resized("image", spatial_size=(64, 48))
    dataset = MammogramStoreDataset(store, part="train", transform=resize)
    loader = DataLoader(
        dataset, batch_size=8, num_workers=2, multiprocessing_context="forkserver", shuffle=True
    )
    seen: dict[str, float] = {}
    for batch in loader:
        assert batch["image"].shape == (len(batch["label"]), 1, 64, 48)
        assert len(batch["image"].meta["manufacturer"]) == len(batch["label"])
        seen |= dict(zip(batch["image_id"], batch["label"].tolist(), strict=True))
    expected = {s["image_id"]: s["label"] for s in dataset.data}
    assert seen == pytest.approx(expected, nan_ok=True)
    assert len(pickle.loads(pickle.dumps(dataset))) == len(dataset)


def test_monais_caches_take_its_data_and_transform(store: Path, tmp_path: Path) -> None:
    transform = [Resized("image", spatial_size=(64, 48)), RandFlipd("image", prob=0.0)]
    dataset = MammogramStoreDataset(store, part="val", transform=transform)
    cached = CacheDataset(dataset.data, dataset.transform, num_workers=0, progress=False)
    kept = PersistentDataset(dataset.data, dataset.transform, cache_dir=tmp_path / "cache")
    for plain, one, other in zip(dataset, cached, kept, strict=True):
        assert torch.equal(plain["image"].as_tensor(), one["image"].as_tensor())
        assert torch.equal(plain["image"].as_tensor(), torch.as_tensor(other["image"]))
    assert len(list((tmp_path / "cache").iterdir())) == len(dataset)


def test_the_rest_of_data_does_not_import_monai() -> None:
    names = sorted(path.stem for path in Path(mammo_pd.data.__file__).parent.glob("*.py"))
    others = "; ".join(f"import mammo_pd.data.{name}" for name in names if name != "monai")
    code = f"import sys; {others}; sys.exit('monai' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def run_example(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """As its user does, but within this process, which has torch and MONAI already."""
    file = str(ROOT / "examples" / "monai_network.py")
    monkeypatch.setattr(sys, "argv", [file, *words])
    runpy.run_path(file, run_name="__main__")


def test_example_trains_a_monai_network(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example(monkeypatch, str(store), "--size", "64", "--workers", "0")
    printed = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"epoch \d: loss ([\d.]+) on \d+ images", printed)]
    assert len(losses) == 2
    auc = re.search(r"^AUC ([\d.]+) by image on the (\d+) .*not how well", printed, re.MULTILINE)
    assert auc is not None
    assert 0 <= float(auc[1]) <= 1


def test_example_says_why_there_is_no_auc(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    table = pd.read_parquet(copy / "manifest.parquet", dtype_backend="pyarrow")
    table["label"] = table["label"] * 0
    table.to_parquet(copy / "manifest.parquet")
    run_example(monkeypatch, str(copy), "--size", "64", "--workers", "0", "--epochs", "1")
    assert re.search(r"^no AUC: 0 of the \d+ ", capsys.readouterr().out, re.MULTILINE)


def test_example_says_in_one_line_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"\Aerror: there is no store at.*\Z"):
        run_example(monkeypatch, str(tmp_path))
