"""What docs/extending.md promises: parts of one's own, without a change of the package."""

import ast
import importlib
import inspect
import json
import re
import runpy
import shutil
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from documented_commands import ROOT, blocks
from monai.transforms import AdjustContrastd, Compose, Lambdad
from prediction_tables import made_up
from pydicom import uid
from sklearn.metrics import roc_auc_score

from mammo_pd import api
from mammo_pd.api import (
    DECODERS,
    DRAWS,
    FAMILIES,
    OBJECTIVES,
    SOURCES,
    STEPS,
    ImageBatch,
    ImageError,
    ImagingSettings,
    InputError,
    PatchSampler,
    TrainingSettings,
)
from mammo_pd.backbones.build import build_backbone
from mammo_pd.cli.app import main
from mammo_pd.data.sources import read_source
from mammo_pd.data.split_store import split_store
from mammo_pd.data.store import create_or_match, open_store
from mammo_pd.doctor.codecs import check_codecs
from mammo_pd.inference import bundle
from mammo_pd.ingest.process import process_image
from mammo_pd.ingest.transforms import store_transforms
from mammo_pd.terms import Frames
from mammo_pd.training.objectives import build_objective


@pytest.fixture(scope="module")
def parts() -> Iterator[ModuleType]:
    """The example's program, imported as its workers import it; what it adds is taken out again."""
    kept: list[tuple[dict[object, object], dict[object, object]]] = [
        (entries, dict(entries))  # type: ignore[arg-type]
        for entries in (SOURCES, STEPS, FAMILIES, OBJECTIVES, DRAWS)
    ]
    order = list(DECODERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        yield importlib.import_module("own_parts")
        for name in ("own_parts", "own_decoder"):
            del sys.modules[name]
    DECODERS[:] = order
    for entries, before in kept:
        entries.clear()
        entries.update(before)


@pytest.mark.filterwarnings("ignore:Overwriting looped_vit:UserWarning")  # timm's register_model
def test_every_example_is_imported_again(parts: ModuleType) -> None:
    """As a notebook does, which reloads a module or runs a cell once more."""
    entries: tuple[dict[Any, Any], ...] = (SOURCES, STEPS, FAMILIES, OBJECTIVES, DRAWS)
    names = [list(map(str, one)) for one in entries]
    decoders = list(DECODERS)
    examples = [file.stem for file in (ROOT / "examples").glob("*.py")]
    assert {"own_decoder", "own_parts"} < {*examples}
    loaded = {name: importlib.import_module(name) for name in examples}
    DECODERS.remove(parts.own_decoder.NAME)  # pydicom still has it
    for name in sorted(examples):
        importlib.reload(loaded[name])
        del sys.modules[name]
        importlib.import_module(name)
    assert [list(map(str, one)) for one in entries] == names
    assert decoders == DECODERS
    assert OBJECTIVES["focal"] is sys.modules["own_parts"].Focal


@pytest.fixture(scope="module")
def store(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extending") / "store"
    shutil.copytree(phantom_store, folder)
    split_store(open_store(folder), say=lambda _: None)
    return folder


def test_every_name_is_there_for_python_and_for_type_checkers() -> None:
    tree = ast.parse(Path(api.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert typed == {name: vars(api)["_HOMES"][name] for name in dir(api)}
    for name in dir(api):
        assert getattr(api, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'Preprocess'"):
        api.Preprocess  # noqa: B018


@pytest.mark.parametrize(
    "ask",
    [
        lambda folder: read_source("mine", folder / "table.csv", folder),
        lambda folder: build_backbone("mine", (64, 48)),
        lambda folder: build_objective(TrainingSettings(objective="mine")),
        lambda folder: ImagingSettings(steps=("mine",)),
    ],
)
def test_a_part_that_is_not_there_may_be_another_programs(
    ask: Callable[[Path], object], tmp_path: Path
) -> None:
    """As where `mammo-pd` is typed for a run that a program with parts of its own trained."""
    with pytest.raises(InputError, match=r"mine.* program that .*docs/extending\.md"):
        ask(tmp_path)


def test_what_a_subclass_is_given_can_be_named() -> None:
    """A typed subclass of what the page says to subclass needs no other module of the package."""
    for cls in (api.Objective, api.BinaryLabel, api.PatchSampler, api.Backbone, api.VitBackbone):
        for name, method in inspect.getmembers(cls, inspect.isfunction):
            if name.startswith("_") or not method.__module__.startswith("mammo_pd."):
                continue
            names = {
                found.__name__
                for hint in typing.get_type_hints(method).values()
                for found in (hint, *typing.get_args(hint))
                if getattr(found, "__module__", "").startswith("mammo_pd.")
            }
            assert names <= {*dir(api)}, f"{cls.__name__}.{name}"


def _methods_of_the_api() -> Iterator[tuple[str, Callable[..., object]]]:
    for name in dir(api):
        value = getattr(api, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for own in (own for own in vars(value) if not own.startswith("_")):
                method = getattr(value, own)
                if inspect.isfunction(method) or inspect.ismethod(method):
                    yield f"{name}.{own}", method


def test_wherever_a_path_is_taken_a_text_is_too() -> None:
    takes = {
        name: typing.get_args(hint)
        for name, method in _methods_of_the_api()
        for argument, hint in typing.get_type_hints(method).items()
        if argument != "return" and Path in (hint, *typing.get_args(hint))
    }
    assert takes.keys() >= {"open_store", "preprocess", "RunSetup.build", "TrainedModel.load"}
    assert not [name for name, accepted in takes.items() if str not in accepted]


def test_texts_lead_from_files_to_a_score(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dicom").symlink_to(phantoms)
    monkeypatch.chdir(tmp_path)
    labels = api.read_labels("dicom/labels.csv")
    api.preprocess(
        "dicom", "store", labels=labels, contact_sheet="sheet.png", crosswalk="files.csv"
    )
    Path("recipe.yaml").write_text("training: {epochs: 1}\n")
    config = api.load_config("recipe.yaml", {"data.res": "64x48", "model.name": "test_vit"})
    run = api.train("store", "runs", config)
    rows = api.Cohort.read("store", "default").part(api.Split.TRAIN)
    assert len(api.MammogramDataset("store", rows, (64, 48))) == len(rows) > 0
    _, reopened = api.reopen_run(str(run.path), store="store")
    model = api.TrainedModel.load(str(reopened.chosen))
    image = api.read_image(str(min(phantoms.rglob("*.dcm"))), model.card.img_size)
    assert model.score([image]).shape == (1, 1)
    made_up(30).to_csv("own.csv", index=False)
    assert len(api.read_predictions("own.csv")) == len(made_up(30))


def test_every_function_and_class_is_on_the_api_page() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^(?:::: [\w.]+\.| +- )(\w+)$", page, re.MULTILINE)
    own = {name for name in dir(api) if inspect.isroutine(getattr(api, name))}
    own |= {name for name in dir(api) if inspect.isclass(getattr(api, name))}
    assert own <= {*listed}


def test_a_source_reads_an_archives_own_words(parts: ModuleType, tmp_path: Path) -> None:
    table = tmp_path / "outcomes.csv"
    table.write_text("File,Woman,Outcome\na.dcm,1,malignant\nb.dcm,2,normal\nc.dcm,2,\n")
    labels = [row["label"] for row in read_source("ours", table, tmp_path).rows]
    assert labels == [1, 0, None]
    other = read_source("ours", table, tmp_path, definition="malignant_or_benign")
    assert [row["label"] for row in other.rows] == [1, None, None]


def test_a_step_is_in_the_pixels_and_in_the_settings(
    parts: ModuleType, phantoms: Path, tmp_path: Path
) -> None:
    """Of an image as `preprocess` and `predict` make it; what does not know the step refuses it."""
    file = next(phantoms.rglob("*.dcm"))
    settings = ImagingSettings(steps=("brighten",))
    load, grey, *rest = store_transforms(ImagingSettings()).transforms
    rounded = Lambdad("image", lambda pixels: np.rint(np.asarray(pixels)).astype(np.uint16))
    expected = Compose([load, grey, AdjustContrastd("image", gamma=0.8), rounded, *rest])
    found, plain, wanted = (
        transforms({"image": file})["image"]
        for transforms in (store_transforms(settings), Compose([load, grey, *rest]), expected)
    )
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, wanted)
    assert (found > plain).any()

    create_or_match(tmp_path / "store", settings.recorded())
    with pytest.raises(InputError, match=r"other settings \(steps was \['brighten'\]"):
        create_or_match(tmp_path / "store", ImagingSettings().recorded())
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(STEPS, "brighten")
        for unknown in (
            lambda: store_transforms(settings),
            lambda: ImagingSettings(steps=("brighten",)),
        ):
            with pytest.raises(InputError, match=r"does not have \(brighten\)"):
                unknown()
        patch.setitem(STEPS, "brighten", lambda key: lambda d: {key: d[key][:, 1:]})
        with pytest.raises(RuntimeError) as raised:
            store_transforms(settings)({"image": file})
        assert "made (1, " in str(raised.value.__cause__)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda pixels: pixels[:, 1:], r"made \(1, \d+, \d+\) of \(1, \d+, \d+\)"),
        (lambda pixels: pixels / 65535, "made no value above 1; values are from 0 to 65535"),
        (lambda pixels: pixels * 4.0, r"made \d+ % of its values lie outside 0 to 65535"),
        (lambda pixels: pixels - 20000.0, r"made \d+ % of its values lie outside"),
        (lambda pixels: pixels * np.nan, "made values that are no numbers"),
        (lambda pixels: pixels["image"], "ended in IndexError"),
    ],
)
def test_a_step_that_goes_wrong_is_named_for_each_image(
    make: Callable[[Any], Any],
    said: str,
    phantoms: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not the grey scale before it; the next run, with the step mended, tries again."""
    file = next(phantoms.rglob("*.dcm"))
    monkeypatch.setitem(STEPS, "wrong", lambda key: lambda d: {**d, key: make(d[key])})
    with pytest.raises(ImageError) as raised:
        process_image(file, store_transforms(ImagingSettings(steps=("wrong",))))
    assert raised.value.reason.may_pass
    assert re.fullmatch(f"The step wrong {said}.*", raised.value.detail)


def test_a_bundle_would_leave_a_step_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = SimpleNamespace(frames=Frames.EXCLUDE, steps=("brighten",))
    model = SimpleNamespace(settings=settings)
    monkeypatch.setattr(bundle.TrainedModel, "read", lambda _: model)
    monkeypatch.setattr(bundle.WholeImageModel, "of", lambda _: None)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"\(brighten\), which a bundle .* with predict"):
        bundle.write_bundle(tmp_path / "model.safetensors", tmp_path / "bundle")


def test_a_decoder_is_asked_in_its_place(parts: ModuleType) -> None:
    """Of an image whose values `doctor` knows."""
    told = {one.name: one.detail for one in check_codecs() if uid.JPEGLosslessSV1 in one.name}
    assert len(told) == 1
    assert next(iter(told.values())).startswith(f"{parts.own_decoder.NAME}, ")


def test_a_backbone_with_every_patch_computes_its_own_forward(parts: ModuleType) -> None:
    backbone = build_backbone("looped_vit", (64, 48)).eval()
    pixels = torch.randint(65536, (3, 64, 48), generator=torch.Generator().manual_seed(0))
    batch = ImageBatch.from_images(list(pixels.numpy().astype("uint16")))
    sampler = PatchSampler((64, 48), backbone.patch_size)
    whole = (pixels[:, None] / 65535 - 0.5) / 0.5
    with torch.no_grad():
        found = backbone(*sampler.for_evaluation(batch))
        torch.testing.assert_close(found, backbone.timm_model(whole), atol=1e-5, rtol=1e-5)


def test_a_number_is_learnt_judged_and_written(
    parts: ModuleType,
    store: Path,
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the example's backbone, too; what needs a label of 0 and 1 says so."""
    monkeypatch.chdir(tmp_path)
    words = (
        "--res 64x48 --model looped_vit --epochs 1 --batch-size 8 --keep 0.5 "
        "--set training.objective=age --set device.compile=false --set device.accelerator=cpu"
    )
    runs = tmp_path / "runs"
    assert main(["train", *words.split(), "--store", str(store), "--runs", str(runs)]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--runs", str(runs)]) == 0
    printed = capsys.readouterr().out
    run = next(runs.glob("*/run.json")).parent
    tested = pd.read_csv(run / "predictions.csv")[lambda table: table["split"] == "test"].dropna(
        subset="age"
    )
    error = (tested["age"] - tested["age_predicted"]).abs().mean()
    told = re.search(rf"^{len(tested)} test images: mae_loss ([\d.]+)$", printed, re.MULTILINE)
    assert told is not None
    assert float(told[1]) == pytest.approx(error, rel=1e-3)
    assert "report" not in printed

    other = shutil.copytree(store, tmp_path / "other")
    shutil.rmtree(other / "splits")
    for command, said in (
        (
            ["predict", str(run / "model.safetensors"), str(phantoms), "--dicom", "--out", "pacs"],
            "trained for age, which has none; drop --dicom",
        ),
        (["evaluate", str(run), "--store", str(other)], "has no 0/1 label"),
        (["evaluate", str(run), "--within", "age"], "--within compares positives with negatives"),
    ):
        assert main(command) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "pacs").exists()

    # New studies get what evaluate writes, and the means of it.
    assert main(["predict", str(run), str(phantoms), "--key", str(store / "private" / "key")]) == 0
    printed = capsys.readouterr()
    assert "no verdicts: age has no 0/1 target" in printed.out
    assert "threshold" not in printed.out + printed.err
    images = pd.read_csv("predictions/predictions.csv")
    of_store = pd.read_csv(run / "predictions.csv").set_index("image_id")["age_predicted"]
    assert len(of_store) > 3
    found = images.set_index("image_id")["age_predicted"]
    np.testing.assert_allclose(found[of_store.index], of_store, atol=1e-4)
    for level, keys in (
        ("breast", ["patient_id", "exam_id", "laterality"]),
        ("exam", ["patient_id", "exam_id"]),
        ("patient", ["patient_id"]),
    ):
        units = pd.read_csv(f"predictions/predictions_{level}.csv")
        means = images.groupby(keys)["age_predicted"].mean().reset_index()
        assert list(units) == [*keys, "n_images", "age_predicted"]
        pd.testing.assert_frame_equal(units[list(means)], means)

    assert main(["export", str(run), "--bundle", "bundle"]) == 0
    told = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    scores = told["network_data_format"]["outputs"]["pred"]
    assert scores["value_range"] == []
    assert scores["channel_def"] == {"0": "age_predicted"}


def test_what_needs_no_label_needs_none_for_its_split(
    parts: ModuleType, phantom_store: Path, tmp_path: Path
) -> None:
    """A store of ages alone, for which `train` makes the split."""
    store = shutil.copytree(phantom_store, tmp_path / "store")
    manifest = pd.read_parquet(store / "manifest.parquet")
    labels = pd.array([None] * len(manifest), dtype="Int8")
    manifest.assign(label=labels).to_parquet(store / "manifest.parquet")
    words = (
        "--res 64x48 --model test_vit --epochs 1 --batch-size 8 --keep 0.5 "
        "--set device.compile=false --set device.accelerator=cpu"
    )
    where = ["--store", str(store), "--runs", str(tmp_path / "runs")]
    assert main(["train", *words.split(), *where]) == 2
    assert main(["train", *words.split(), *where, "--set", "training.objective=age"]) == 0


def test_focal_loss_is_that_of_the_paper(parts: ModuleType) -> None:
    logit, target = torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([[1.0], [1.0], [torch.nan]])
    share = torch.sigmoid(logit[:2])
    expected = (-((1 - share) ** 2) * share.log()).sum() / 3
    torch.testing.assert_close(parts.Focal.loss(None, logit, target), expected)


def test_a_draw_is_what_a_step_reads(
    parts: ModuleType, batch_of: Callable[[int], tuple[ImageBatch, torch.Tensor]]
) -> None:
    batch, keys = batch_of(3)
    sampler = DRAWS["near_chest_wall"]((64, 64), 16, draw="near_chest_wall")
    patches, positions = sampler.for_training(batch, keys, 5)
    assert (positions % 4 < 2).all()
    whole, _ = PatchSampler((64, 64), 16).for_training(batch, keys, 16)
    expected = whole.gather(1, positions[:, :, None].expand(-1, -1, 256))
    torch.testing.assert_close(patches, expected)


def test_example_trains_a_lightning_module(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(ROOT / "examples" / "lightning_module.py")
    words = ["--model", "test_vit", "--size", "64", "48", "--epochs", "1", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", [file, str(store), *words])
    runpy.run_path(file, run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(r"^image +8 +[\d.]+", printed, re.MULTILINE)


def test_every_block_of_the_page_runs(
    store: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").symlink_to(store)
    (tmp_path / "DICOM_DIR").symlink_to(phantoms)
    made_up(30).to_csv(tmp_path / "own.csv", index=False)
    monkeypatch.chdir(tmp_path)
    run = [block for block in blocks(ROOT / "docs" / "extending.md") if block.why_not is None]
    assert len(run) == 6
    for block in run:
        exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})


def test_auc_by_level_is_scikit_learns() -> None:
    table = made_up(30)
    table["label"] = table["label"].where(table["label"].index % 7 > 0)
    found = api.auc_by_level(api.check_predictions(table))
    known = table.dropna(subset="label")
    assert found.loc["image", "auc"] == roc_auc_score(known["label"], known["score"])
    assert found["n"].is_monotonic_decreasing
    inside = found["auc"].between(found["auc_ci_low"], found["auc_ci_high"], inclusive="neither")
    assert inside.all()
