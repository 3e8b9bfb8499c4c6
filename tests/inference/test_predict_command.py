"""``mammo-pd predict`` on phantoms: what it writes, and what it does with bad files."""

import json
import re
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from dicom_files import half_disk, make_dataset, write_dicom
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out
from monai.bundle import run as run_bundle
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import set_up, small

from mammo_pd.cli.app import main
from mammo_pd.cli.evaluate import lock_in_checkpoint
from mammo_pd.data.record import Record
from mammo_pd.data.store import StorePaths
from mammo_pd.errors import InputError
from mammo_pd.evaluation.levels import Aggregation, aggregate
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.inference.bundle import _inference, write_bundle
from mammo_pd.inference.new_studies import PredictionFolder, judged_tables
from mammo_pd.inference.predict import Scored
from mammo_pd.inference.predict import predict as score_run
from mammo_pd.inference.trained_model import TrainedModel
from mammo_pd.ingest import new_images
from mammo_pd.locks import locked
from mammo_pd.terms import Frames, Level, Split, VoiPolicy
from mammo_pd.training.checkpoint import weights_digest, weights_of
from mammo_pd.training.loop import fit
from mammo_pd.training.model_card import CheckpointHeader
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.train import start_run

HAS_HIGHDICOM = find_spec("highdicom") is not None
# What MONAI's monai/bundle/meta_schema.json asks of every bundle, and of each input and output.
REQUIRED_TENSOR = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range")
REQUIRED_METADATA = (
    *("schema", "version", "monai_version", "pytorch_version", "numpy_version"),
    *("required_packages_version", "task", "description", "authors", "copyright"),
    "network_data_format",
)
BROKEN = {
    "text.dcm": "not_an_image",
    "copy.dcm": "duplicate_image",
    "scan.PNG": "not_dicom",
    "ct.dcm": "not_mammography",
}


@dataclass(frozen=True)
class Trained:
    """A run, its scores of the stored images, and a folder of the files that these came from."""

    scored: Scored
    checkpoint: Path
    key: Path
    folder: Path


@pytest.fixture(scope="module")
def trained(phantoms: Path, phantom_store: Path, tmp_path_factory: pytest.TempPathFactory):
    place = tmp_path_factory.mktemp("trained")
    setup = set_up(phantom_store, small(training__epochs=1))
    run = start_run(place / "runs", setup)
    fit(setup, run)
    scored = score_run(run, say=lambda _: None)
    folder = place / "new"
    names = set(scored.table["image_id"])
    with Record(StorePaths(phantom_store)) as record:
        files = {i.image_id: i.source.path for i in record.rows() if i.image_id in names}
    for path in files.values():
        copy = folder / path.relative_to(phantoms)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    first = next(iter(files.values()))
    content = first.read_bytes()
    (folder / "cut.dcm").write_bytes(content[: len(content) // 2])
    (folder / "text.dcm").write_text("no image at all")
    ct = pydicom.dcmread(first)
    ct.Modality, ct.SOPClassUID = "CT", "1.2.840.10008.5.1.4.1.1.2"
    ct.save_as(folder / "ct.dcm")
    # Its folder is the last by name, so that it is the copy.
    (folder / "Z").mkdir()
    (folder / "Z" / "copy.dcm").write_bytes(content)
    (folder / "scan.PNG").write_bytes(b"\x89PNG")
    return Trained(scored, run.chosen, phantom_store / "private" / "key", folder)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_turn(jobs: list[Any], work: Callable[[Any], Any], _: int) -> Any:
        return ((job, work(job)) for job in jobs)

    monkeypatch.setattr(new_images, "run_in_processes", in_turn)


@pytest.fixture(scope="module")
def predicted(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What predict writes of the folder, with pictures and the names of the store."""
    out = tmp_path_factory.mktemp("predicted") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            new_images, "run_in_processes", lambda jobs, work, _: ((j, work(j)) for j in jobs)
        )
        words = ["predict", trained.checkpoint, trained.folder, "--out", out, "--saliency"]
        words += ["--dicom"] * HAS_HIGHDICOM
        assert main([*map(str, words), "--key", str(trained.key)]) == 3
    return out


def test_scores_are_those_of_the_stored_images_at_every_level(
    trained: Trained, predicted: Path
) -> None:
    stored = trained.scored.table
    found = pd.read_csv(predicted / "predictions.csv")
    both = stored.merge(found, on="image_id", suffixes=("", "_new"))
    assert len(both) == len(stored) == len(found) > 8
    assert (both["score"] - both["score_new"]).abs().max() <= 1e-6
    for name in ("patient_id", "exam_id", "laterality", "view"):
        assert (both[name] == both[f"{name}_new"]).all()
    for level in (Level.BREAST, Level.EXAM, Level.PATIENT):
        units = aggregate(check_predictions(stored), level, Aggregation.MEAN)
        table = pd.read_csv(predicted / f"predictions_{level}.csv")
        keys = [name for name in ("patient_id", "exam_id", "laterality") if name in units]
        joined = units.merge(table, on=keys)
        assert len(joined) == len(units) == len(table)
        assert np.allclose(joined["score_x"], joined["score_y"], rtol=0, atol=1e-6)


def test_verdicts_are_those_of_the_locked_thresholds(trained: Trained, predicted: Path) -> None:
    points = json.loads((predicted / "predictions.json").read_text())["operating_points"]["label"]
    assert points == CheckpointHeader.read(trained.checkpoint).operating_points["label"]
    validated = trained.scored.table["split"] == Split.VAL
    assert points["images"] == validated.sum()
    for level in Level:
        suffix = "" if level is Level.IMAGE else f"_{level}"
        table = pd.read_csv(predicted / f"predictions{suffix}.csv")
        threshold = points["thresholds"][level]["specificity_90"]
        assert (table["threshold"] == threshold).all()
        assert (table["flagged"] == (table["score"] >= threshold)).all()


def test_files_that_are_no_good_are_listed_and_private_is_private(
    trained: Trained, predicted: Path
) -> None:
    listed = pd.read_csv(predicted / "not_scored.csv")
    crosswalk = pd.read_csv(predicted / "private" / "crosswalk.csv")
    names = crosswalk["path"].map(lambda path: Path(path).name).set_axis(crosswalk["image_id"])
    reasons = dict(zip(listed["image_id"].map(names), listed["reason"], strict=True))
    # Where it is noticed depends on the vendor's transfer syntax.
    assert reasons.pop("cut.dcm") in ("unreadable_file", "header_contradicts_pixels")
    assert reasons == BROKEN
    # The table finds each image's file and study again.
    scored = pd.read_csv(predicted / "predictions.csv")["image_id"]
    for path, uid in (
        crosswalk.set_index("image_id").loc[scored, ["path", "sop_instance_uid"]].values
    ):
        assert pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID == uid
    private = predicted / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    files = [file for file in private.rglob("*") if file.is_file()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    secrets = {str(trained.folder), "PHANTOM^", *crosswalk["sop_instance_uid"].dropna()}
    secrets |= {*crosswalk["study_instance_uid"].dropna(), *crosswalk["patient_id"].dropna()}
    for file in predicted.rglob("*"):
        if file.is_file() and private not in file.parents:
            assert not [text for text in secrets if text.encode() in file.read_bytes()], file
            assert not [text for text in secrets if text in file.name]
    assert {file.stem for file in (predicted / "saliency").iterdir()} == {*scored}


@pytest.mark.parametrize("voi", VoiPolicy)
def test_reasons_speak_of_nothing_that_predict_does_not_take(
    voi: VoiPolicy, trained: Trained, tmp_path: Path
) -> None:
    """Such as label tables and the options of preprocess; also of files listed before."""
    card = CheckpointHeader.read(trained.checkpoint).card
    assert card is not None
    checkpoint = tmp_path / "model.safetensors"
    model = TrainedModel.load(trained.checkpoint)
    other = replace(card, preprocessing={**card.preprocessing, "voi": str(voi)})
    weights_of(model.trained, model.backbone.timm_model, {"epoch": 1}, other).write(checkpoint)
    (folder := tmp_path / "new").mkdir()
    for suffix in ("png", "jpg", "jpeg", "tif", "tiff", "pgm"):
        (folder / f"scan.{suffix}").write_bytes(b"any")
    pixels = half_disk((96, 64))
    hidden = {"WindowCenter": 60000, "WindowWidth": 2}
    for number, (given, tags) in enumerate(
        [
            (pixels, {}),
            (pixels, hidden),
            (np.stack([pixels, pixels]), {"NumberOfFrames": 2}),
            (np.full_like(pixels, 7), {}),
        ]
    ):
        dataset = make_dataset(pixels, SOPInstanceUID=f"1.2.{number}", **tags)
        dataset.PixelData = given.tobytes()
        write_dicom(folder / f"{number}.dcm", dataset)
    words = ["predict", str(checkpoint), str(folder), "--out", str(tmp_path / "out")]
    main(words)
    listed = tmp_path / "out" / "not_scored.csv"
    before = pd.read_csv(listed)
    assert (before["reason"] == "not_dicom").sum() == 6
    for _, row in before.iterrows():
        told = f"{row['reason'].replace('_', ' ')}: {row['detail']}"
        assert not re.search("label table|--", told), told
    # As an earlier version has listed them.
    with sqlite3.connect(tmp_path / "out" / "private" / "images.sqlite") as record:
        record.execute(
            "UPDATE images SET reason = 'not_in_label_table', "
            "facts = replace(facts, 'not_dicom', 'not_in_label_table') WHERE reason = 'not_dicom'"
        )
    record.close()
    main(words)
    pd.testing.assert_frame_equal(pd.read_csv(listed), before)


@pytest.mark.skipif(not HAS_HIGHDICOM, reason="highdicom is not installed (mammo-pd[dicom])")
def test_dicom_results_are_of_their_study_and_hold_the_scores(
    trained: Trained, predicted: Path
) -> None:
    """Opened again by pydicom and highdicom."""
    from highdicom.sr import srread

    exams = pd.read_csv(predicted / "predictions_exam.csv").set_index("exam_id")
    images = pd.read_csv(predicted / "predictions.csv")
    crosswalk = pd.read_csv(predicted / "private" / "crosswalk.csv").set_index("image_id")
    folders = sorted((predicted / "private" / "dicom").iterdir())
    assert {folder.name for folder in folders} == {*exams.index}
    for folder in folders:
        of_exam = images[images["exam_id"] == folder.name].set_index("image_id")
        told = crosswalk.loc[of_exam.index]
        opened = {file: pydicom.dcmread(file) for file in folder.glob("*.dcm")}
        (report,) = [file for file, one in opened.items() if one.Modality == "SR"]
        captures = [one for one in opened.values() if one.Modality == "OT"]
        assert len(captures) == len(of_exam)
        source = pydicom.dcmread(told["path"].iloc[0], stop_before_pixels=True)
        for file, one in opened.items():
            assert file.stem == one.SOPInstanceUID
            for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate"):
                assert one[keyword].value == source[keyword].value
            assert one.SeriesInstanceUID != source.SeriesInstanceUID
            assert "Research use only" in one.SeriesDescription
        assert {one.SourceImageSequence[0].ReferencedSOPInstanceUID for one in captures} == {
            *told["sop_instance_uid"]
        }
        assert all(one.pixel_array.shape[2] == 3 for one in captures)
        groups = srread(report).content.get_image_measurement_groups()
        found = {group.tracking_identifier: group for group in groups}
        values = {name: group.get_measurements()[0].value for name, group in found.items()}
        assert values["label, exam"] == pytest.approx(exams.loc[folder.name, "score"], abs=1e-9)
        for _, row in of_exam.iterrows():
            name = f"label, image {row['laterality']} {row['view']}"
            assert values[name] == pytest.approx(row["score"], abs=1e-9)
            said = [one.value.value for one in found[name].get_qualitative_evaluations()]
            assert said == ["research", "flagged" if row["flagged"] else "not_flagged"]
        assert {*values} >= {"label, breast L", "label, breast R"}


@pytest.mark.skipif(not HAS_HIGHDICOM, reason="highdicom is not installed (mammo-pd[dicom])")
def test_exams_without_a_dicom_result_are_counted_by_the_reason(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "new").mkdir()
    files = sorted(trained.folder.rglob("L_CC.dcm"))[:4]
    assert len(files) == 4
    for number, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        if number in (1, 2):
            dataset.SOPClassUID = "1.3.6.1.4.1.999.1"
            dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        elif number == 3:
            del dataset.StudyInstanceUID
        dataset.save_as(folder / f"{number}.dcm")
    out = tmp_path / "out"
    words = ["predict", str(trained.checkpoint), str(folder), "--out", str(out), "--dicom"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "1 DICOM instance for a PACS" in told
    # Nobody takes the rate for that of the scoring alone.
    assert re.search(r"4 images read and scored on \w+ in .* s, starting the workers incl", told)
    assert "warning: no DICOM result for 2 exams: a file is of a private SOP class" in told
    assert "warning: no DICOM result for 1 exam: an image without the UID of its study" in told
    # No folder of an exam that has none.
    assert len(list((out / "private" / "dicom").iterdir())) == 1


@pytest.mark.skipif(not HAS_HIGHDICOM, reason="highdicom is not installed (mammo-pd[dicom])")
@pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)"
)
def test_dciodvfy_finds_no_error_in_dicom_results(predicted: Path) -> None:
    folder = min((predicted / "private" / "dicom").iterdir())
    kinds = set()
    for file in folder.glob("*.dcm"):
        judged = subprocess.run(["dciodvfy", file], capture_output=True, text=True).stderr
        assert "Error" not in judged
        kinds.add(judged.split(maxsplit=1)[0])
    assert kinds == {"ComprehensiveSR", "SCImage"}


@pytest.mark.skipif(not HAS_HIGHDICOM, reason="highdicom is not installed (mammo-pd[dicom])")
@pytest.mark.skipif(
    shutil.which("dsrdump") is None, reason="dsrdump is not installed (Debian: dcmtk)"
)
def test_dcmtk_reads_the_report(predicted: Path) -> None:
    """Another toolkit than the one that wrote it."""
    folder = min((predicted / "private" / "dicom").iterdir())
    (report,) = [f for f in folder.glob("*.dcm") if pydicom.dcmread(f).Modality == "SR"]
    told = subprocess.run(["dsrdump", "+Pl", report], capture_output=True, text=True, check=True)
    score = pd.read_csv(predicted / "predictions_exam.csv").set_index("exam_id")["score"]
    assert f'"Score of the model, 0 to 1")="{score[folder.name]:.10g}' in told.stdout
    assert not told.stderr


@pytest.mark.parametrize("fusion", [None, "breast"])
def test_scores_that_are_no_numbers_are_told_as_such(
    fusion: str | None,
    trained: Trained,
    phantom_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And not as a record that is damaged, which is what refuses to hold them."""
    setup = set_up(phantom_store, small(training__fusion=fusion))
    with torch.no_grad():
        setup.backbone.timm_model.get_classifier().bias.fill_(torch.nan)
    file = tmp_path / "model.safetensors"
    weights_of(setup.model, setup.backbone.timm_model, {"epoch": 1}, setup.card).write(file)
    out = tmp_path / "out"
    assert main(["predict", str(file), str(trained.folder), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert re.search(r"the model gives \d+ of \d+ images? a score that is no number", said)
    assert "damaged (" not in said


@pytest.fixture(scope="module")
def bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    assert main(["export", str(trained.checkpoint), "--bundle", str(folder)]) == 0
    return folder


def test_bundle_run_by_monai_gives_the_scores_of_predict(
    trained: Trained, predicted: Path, bundle: Path, tmp_path: Path
) -> None:
    configs = bundle / "configs"
    given = {"config_file": str(configs / "inference.json"), "bundle_root": str(bundle)}
    meta = str(configs / "metadata.json")
    verify_net_in_out("network", meta_file=meta, device="cpu", **given)
    woman = next(trained.folder.glob("PHANTOM*"))
    folder, out = tmp_path / "some", tmp_path / "out"
    shutil.copytree(woman, folder)
    shutil.copy(trained.folder / "text.dcm", folder)
    run_bundle(**given, dataset_dir=str(folder), output_dir=str(out), device="cpu")
    table = pd.read_csv(out / "scores.csv").set_index("file")
    assert stat.S_IMODE((out / "scores.csv").stat().st_mode) == 0o600
    assert table.loc["text.dcm", "reason"] == "not_an_image"
    scored = pd.read_csv(predicted / "predictions.csv").set_index("image_id")["score"]
    crosswalk = pd.read_csv(predicted / "private" / "crosswalk.csv").set_index("path")["image_id"]
    found = table["score"].dropna()
    assert len(found) == 4
    for file, score in found.items():
        assert score == pytest.approx(scored[crosswalk[str(woman / file)]], abs=1e-5)


def test_bundle_prepares_images_by_every_setting_of_the_store(tmp_path: Path) -> None:
    settings = ImagingSettings(VoiPolicy.RAW, Frames.MIDDLE, bits_stored=12)
    card = SimpleNamespace(img_size=(64, 48))
    objective = SimpleNamespace(score_columns=("score",))
    config = _inference(
        cast(TrainedModel, SimpleNamespace(settings=settings, card=card, objective=objective))
    )
    given = config["preprocessing"]
    for setting in fields(settings):
        if setting.name != "steps":  # which a bundle refuses
            assert given[setting.name] == getattr(settings, setting.name)
    row, column = np.mgrid[:400, :300]
    breast = (row - 200) ** 2 / 150**2 + column**2 / 200**2 < 1
    Image.fromarray(np.where(breast, 2000 + row, 0).astype(np.uint16)).save(tmp_path / "x.png")
    prepare = ConfigParser(config).get_parsed_content("preprocessing")
    brightest = (2000 + row)[breast].max()
    image = prepare({"image": tmp_path / "x.png"})["image"]
    assert image.max() == pytest.approx(brightest * 65535 / 4095, abs=1)


@pytest.mark.parametrize("mark", ["$", "@", "%"])
def test_no_text_of_a_checkpoint_becomes_code_in_a_bundle(
    mark: str, trained: Trained, tmp_path: Path
) -> None:
    """Every text of its configuration, one by one: MONAI would evaluate it."""
    with safe_open(trained.checkpoint, "pt") as file:
        header = file.metadata()
    tensors = load_file(trained.checkpoint)
    card = json.loads(header["model_card"])
    code = f"{mark}__import__('pathlib').Path('ran').touch()"
    refused = set()
    for section, settings in card["config"].items():
        for name, value in settings.items():
            changed = {**card["config"], section: {**settings, name: code}}
            if name == "targets":
                changed["training"] = {**settings, "objective": "findings", name: [code]}
            bad = {**header, "model_card": json.dumps({**card, "config": changed})}
            save_file(tensors, tmp_path / "bad.safetensors", bad)
            bundle = tmp_path / f"{section}-{name}"
            try:
                write_bundle(tmp_path / "bad.safetensors", bundle)
            except InputError as error:
                # Most are no text, or one of a few.
                assert not bundle.exists()
                if "MONAI would run" in str(error):
                    refused.add(name)
                continue
            written = [file.read_text() for file in (bundle / "configs").iterdir()]
            assert not any("__import__" in text for text in written), (section, name, value)
    assert "target_column" in refused


def test_metadata_has_what_monai_asks_of_it(bundle: Path, tmp_path: Path) -> None:
    """By MONAI's own check, of a schema that lies here: its own is downloaded."""
    tensors = {"patternProperties": {"^.+$": {"required": [*REQUIRED_TENSOR]}}}
    schema = {
        "required": [*REQUIRED_METADATA],
        "properties": {
            "network_data_format": {"properties": {"inputs": tensors, "outputs": tensors}},
            **{f"{name}_packages_version": {"type": "object"} for name in ("required", "optional")},
        },
    }
    meta, place = bundle / "configs" / "metadata.json", tmp_path / "schema.json"
    place.write_text(json.dumps(schema))
    verify_metadata(meta_file=str(meta), filepath=str(place))
    told = json.loads(meta.read_text())
    del told["network_data_format"]["outputs"]["pred"]["dtype"]
    (broken := tmp_path / "metadata.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="'dtype' is a required property"):
        verify_metadata(meta_file=str(broken), filepath=str(place))


@pytest.mark.slow
def test_bundle_fine_tunes_by_monai(
    bundle: Path, phantom_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its own weights, with the settings that it was trained with but for those given."""
    given = {"config_file": str(bundle / "configs" / "train.json"), "bundle_root": str(bundle)}
    given |= {"store": str(phantom_store), "runs": str(tmp_path / "runs"), "lr": 1e-4}
    with pytest.raises(SystemExit, match="--settings#training#epochs is 0; it must be at least 1"):
        run_bundle(**given, epochs=0)
    run_bundle(**given, epochs=1, **{"settings#device#accelerator": "cpu"})
    (folder,) = (tmp_path / "runs").glob("*/model.safetensors")
    card = CheckpointHeader.read(folder).card
    before = CheckpointHeader.read(bundle / "models" / "model.safetensors").card
    assert card is not None and before is not None
    assert card.weights is not None and card.weights["source"] == "model.safetensors"
    assert card.config["training"] == {**before.config["training"], "lr": 1e-4}
    assert card.config["patch_dropout"] == before.config["patch_dropout"]
    assert card.img_size == before.img_size
    assert "next: mammo-pd evaluate" in capsys.readouterr().out


@pytest.mark.parametrize("moment", ["copyfile", "rename", "rmdir"])
def test_bundle_is_whole_or_none_and_a_killed_one_is_made_by_the_same_command(
    moment: str,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["export", str(trained.checkpoint), "--bundle", str(tmp_path / "b")]
    calls = []
    where: Any = shutil if moment == "copyfile" else Path
    before = getattr(where, moment)

    def killed(*given: Any, **named: Any) -> Any:
        calls.append(given)
        if len(calls) == (2 if moment == "rename" else 1):
            raise KeyboardInterrupt
        return before(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(where, moment, killed)
        assert main(words) == 130
    assert "run the same command to start again" in capsys.readouterr().err
    assert (tmp_path / "b" / "configs").exists() == (moment == "rmdir")
    assert main(words) == 0
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["configs", "docs", "models"]
    copy = tmp_path / "b" / "models" / "model.safetensors"
    assert copy.read_bytes() == trained.checkpoint.read_bytes()
    # A whole one is not replaced.
    assert main(words) == 2


@pytest.mark.parametrize("lost", ["private", "private/images.sqlite"])
def test_predictions_without_their_record_are_not_made_anew(
    lost: str,
    trained: Trained,
    predicted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "handed on"
    shutil.copytree(predicted, out, ignore=shutil.ignore_patterns(Path(lost).name))
    before = (out / "predictions.csv").read_bytes()
    words = ["predict", str(trained.checkpoint), str(trained.folder), "--out", str(out)]
    assert main(words) == 2
    assert "holds predictions without their record" in capsys.readouterr().err
    assert (out / "predictions.csv").read_bytes() == before
    assert (out / "private").exists() == (lost != "private")


def test_folder_of_a_run_that_was_killed_before_its_first_file_is_taken(
    trained: Trained, tmp_path: Path
) -> None:
    out = PredictionFolder(tmp_path)
    (tmp_path / ".predictions.json.x7y_zabc.json").write_text("{")
    out.claim(TrainedModel.load(trained.checkpoint))
    pictures = out.saliency("x").parent
    pictures.mkdir()
    for leftover in (".predictions_exam.csv.a1b2c3d4.csv", "saliency/.x.png.a1b2c3_4.png"):
        (tmp_path / leftover).touch()
    (pictures / "x.png").touch()
    out.remove_leftovers()
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == ["predictions.json", "x.png"]


def test_interrupted_run_leaves_whole_tables_and_goes_on(
    trained: Trained,
    predicted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["predict", str(trained.checkpoint), str(trained.folder), "--out", str(tmp_path / "o")]
    words += ["--key", str(trained.key)]
    score, calls = TrainedModel.score, []

    def interrupted(model: TrainedModel, images: Any) -> Any:
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(model, images)

    with monkeypatch.context() as patch:
        patch.setattr(TrainedModel, "score", interrupted)
        assert main(words) == 130
    assert not json.loads((tmp_path / "o" / "predictions.json").read_text())["complete"]
    assert len(pd.read_csv(tmp_path / "o" / "predictions.csv")) == calls[0]
    # Nothing was, not even the PNG, which is refused before any file is read.
    assert "done before" not in capsys.readouterr().out
    assert main(words) == 3
    assert "done before" in capsys.readouterr().out
    for name in ("predictions", "predictions_breast", "predictions_patient", "not_scored"):
        after = pd.read_csv(tmp_path / "o" / f"{name}.csv")
        pd.testing.assert_frame_equal(after, pd.read_csv(predicted / f"{name}.csv"))


def test_doubtful_images_breasts_and_exams_are_counted_in_one_line(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image without air, one that names the other side, and a file that is cut off."""
    (folder := tmp_path / "new").mkdir()
    woman = next(trained.folder.glob("PHANTOM*"))
    for view in ("R_CC", "R_MLO", "L_CC", "L_MLO"):
        (file,) = woman.rglob(f"{view}.dcm")
        image = pydicom.dcmread(file)
        if image.file_meta.TransferSyntaxUID.is_compressed:
            image.decompress(generate_instance_uid=False)
        if view == "L_CC":
            image.ImageLaterality = "R"
            del image.PatientOrientation
        if view == "L_MLO":
            image.PixelData = image.PixelData[:-100]
        if view == "R_MLO":
            noise = np.random.default_rng(0).integers(0, 9, image.pixel_array.shape)
            image.PixelData = (noise + image.pixel_array.max() // 2).astype("<u2").tobytes()
        image.save_as(folder / f"{view}.dcm")
    words = ["predict", str(trained.checkpoint), str(folder), "--out", str(tmp_path / "o")]
    assert main(words) == 3
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "look at these" in line]
    images = pd.read_csv(tmp_path / "o" / "predictions.csv")
    for column in ("breast_verdict", "side_verdict"):
        verdicts = images[column][images[column].notna() & (images[column] != "ok")]
        assert len(verdicts) == 1
        assert "1 of 3 images" in line and f"({column}: {verdicts.item()}: 1)" in line
    assert "1 of 1 exam with an image that could not be read" in line
    assert (
        line.removeprefix("warning: ")
        in json.loads((tmp_path / "o" / "predictions.json").read_text())["warnings"]
    )


def test_verdicts_on_several_targets_have_the_names_of_their_scores() -> None:
    settings = small(training__objective="findings", training__targets=("label", "mass")).training
    model: Any = SimpleNamespace(objective=build_objective(settings), operating_points={})
    row = {"image_id": "i", "patient_id": "p", "exam_id": "e", "laterality": "L", "view": "CC"}
    images = pd.DataFrame([{**row, "score": 0.2, "mass_score": 0.9, "unseen": None}])
    tables = judged_tables(images, model, "youden")
    names = ("score", "recalibrated", "threshold", "flagged")
    verdicts = [*names, *(f"mass_{name}" for name in names)]
    assert [*tables[Level.IMAGE].columns] == [*row, *verdicts, "unseen"]
    assert [*tables[Level.PATIENT].columns] == ["patient_id", "n_images", *verdicts]
    assert tables[Level.EXAM]["mass_score"].tolist() == [0.9]


def test_tables_follow_the_folder(trained: Trained, tmp_path: Path) -> None:
    """A file that has left the folder leaves the tables, and its copy is taken instead."""
    folder, out = tmp_path / "new", tmp_path / "out"
    first, second = sorted(trained.folder.rglob("L_CC.dcm"))[:2]
    folder.mkdir()
    shutil.copy(first, folder / "1.dcm")
    shutil.copy(first, folder / "2.dcm")
    words = ["predict", str(trained.checkpoint), str(folder), "--out", str(out)]
    assert main(words) == 0
    (image,) = pd.read_csv(out / "predictions.csv")["score"]
    assert pd.read_csv(out / "not_scored.csv")["reason"].tolist() == ["duplicate_image"]
    (folder / "1.dcm").unlink()
    shutil.copy(second, folder / "3.dcm")
    assert main(words) == 0
    found = pd.read_csv(out / "predictions.csv")["score"]
    assert len(found) == 2
    assert np.isclose(found, image, rtol=0, atol=1e-6).any()
    assert pd.read_csv(out / "not_scored.csv").empty


def test_what_the_model_does_not_know_is_warned_of(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another machine, another version of preprocessing; and a file of an earlier version."""
    with safe_open(trained.checkpoint, "pt") as file:
        header = dict(file.metadata())
    card = json.loads(header["model_card"])
    assert sum(card["trained_on"]["machine"].values()) == card["counts"]["train"]["images"]
    (folder := tmp_path / "new").mkdir()
    shutil.copy(next(trained.folder.rglob("L_CC.dcm")), folder / "1.dcm")

    def predict(name: str, **changes: Any) -> str:
        header["model_card"] = json.dumps({**card, **changes})
        changed = tmp_path / f"{name}.safetensors"
        save_file(load_file(trained.checkpoint), changed, header)
        assert main(["predict", str(changed), str(folder), "--out", str(tmp_path / name)]) == 0
        return capsys.readouterr().out

    machines = {**card["trained_on"], "machine": {"Hologic Selenia Dimensions": 9}}
    older = {**card["preprocessing"], "algorithm": 1}
    printed = predict("other", trained_on=machines, preprocessing=older)
    assert "1 of 1 image came from machines that the model was not trained on" in printed
    assert "by version 1 of the preprocessing" in printed
    assert pd.read_csv(tmp_path / "other" / "predictions.csv")["unseen"].tolist() == ["machine"]
    few, doubts = [line for line in predict("same").splitlines() if "warning" in line]
    assert "images are too few to lock thresholds" in few
    assert "1 of 1 breast scored without both CC and MLO" in doubts
    del header["operating_points"], card["trained_on"]
    printed = predict("old")
    assert "the checkpoint holds no thresholds" in printed
    assert "does not record which machines it was trained on" in printed
    table = pd.read_csv(tmp_path / "old" / "predictions.csv")
    assert table["score"].notna().all()
    assert table[["recalibrated", "threshold", "flagged"]].isna().all(axis=None)


# Beside its own tags, what a side and a view are read from.
_TELL_A_VIEW = ("SeriesDescription", "PatientOrientation")


@pytest.mark.parametrize(
    ("views", "incomplete", "unknown"),
    [
        ({"L": ["CC", "MLO"], "R": ["CC", "MLO", "ML"]}, 0, 0),
        ({"L": ["CC"], "R": ["CC", "MLO"]}, 1, 0),
        ({"L": [None], "R": ["CC", "MLO"]}, 0, 1),
        ({"L": ["CC", None], "R": ["MLO", "MLO"]}, 1, 1),
        # Neither is missing, whatever the third shows.
        ({"L": ["CC", "MLO", None]}, 0, 0),
    ],
)
def test_every_breast_that_may_lack_a_view_is_counted_among_the_doubts(
    views: dict[str, list[str | None]],
    incomplete: int,
    unknown: int,
    trained: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder := tmp_path / "new").mkdir()
    source = pydicom.dcmread(min(trained.folder.rglob("L_CC.dcm")))
    if source.file_meta.TransferSyntaxUID.is_compressed:
        source.decompress(generate_instance_uid=False)
    pixels = source.pixel_array.copy()
    for side, of_side in views.items():
        for number, view in enumerate(of_side):
            for keyword in (*_TELL_A_VIEW, "ViewPosition", "ViewCodeSequence"):
                source.pop(keyword, None)
            source.ImageLaterality = side
            if view is not None:
                source.ViewPosition = view
            source.SOPInstanceUID = f"1.2.{ord(side)}.{number}"
            # Not a copy of another's pixels.
            pixels[pixels.shape[0] // 2] += 1
            source.PixelData = pixels.tobytes()
            source.save_as(folder / f"{side}{number}.dcm")
    out = tmp_path / "out"
    assert main(["predict", str(trained.checkpoint), str(folder), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert (f" {incomplete} of {len(views)} breast" in told) == bool(incomplete)
    assert ("scored without both CC and MLO" in told) == bool(incomplete)
    assert (f"{unknown} of {len(views)} breasts with an image of unknown view" in told) == (
        bool(unknown)
    )
    written = json.loads((out / "predictions.json").read_text())["warnings"]
    assert any("unknown view" in line for line in written) == bool(unknown)


def test_images_of_unknown_side_are_counted_among_the_doubts(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "new").mkdir()
    source = pydicom.dcmread(next(trained.folder.rglob("L_CC.dcm")))
    for keyword in (*_TELL_A_VIEW, "ImageLaterality", "Laterality"):
        source.pop(keyword, None)
    source.save_as(folder / "1.dcm")
    words = ["predict", str(trained.checkpoint), str(folder), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "1 of 1 image of unknown side" in capsys.readouterr().out


def test_evaluate_locks_by_its_choices_and_leaves_the_weights(
    trained: Trained, tmp_path: Path
) -> None:
    """And leaves the file as it is where it holds the same choices already."""
    place = tmp_path / "model.safetensors"
    shutil.copy(trained.checkpoint, place)
    scored = Scored(**{**vars(trained.scored), "file": tmp_path / "predictions.csv"})
    choices = {"prevalence": None, "prevalence_level": "exam"}
    before = place.read_bytes()
    lock_in_checkpoint(scored, {**choices, "aggregation": "mean", "miss_cost": 10.0})
    assert place.read_bytes() == before
    lock_in_checkpoint(scored, {**choices, "aggregation": "max", "miss_cost": 20.0})
    assert weights_digest(place) == weights_digest(trained.checkpoint)
    points = CheckpointHeader.read(place).operating_points["label"]
    assert (points["aggregation"], points["miss_cost"]) == ("max", 20.0)
    validated = scored.table[scored.table["split"] == Split.VAL]
    units = aggregate(check_predictions(validated), Level.EXAM, Aggregation.MAX)
    threshold = points["thresholds"]["exam"]["specificity_90"]
    assert (units["score"][units["label"] == 0] >= threshold).mean() <= 0.1


def test_thresholds_are_not_locked_in_weights_that_training_has_written_since(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "model.safetensors"
    shutil.copy(trained.checkpoint, place)
    file = tmp_path / "predictions.csv"
    scored = Scored(**{**vars(trained.scored), "file": file, "epoch": trained.scored.epoch - 1})
    before = place.read_bytes()
    choices = {"prevalence": None, "prevalence_level": "exam"}
    lock_in_checkpoint(scored, {**choices, "aggregation": "max", "miss_cost": 20.0})
    assert place.read_bytes() == before
    assert "warning: no thresholds were locked in model.safetensors" in capsys.readouterr().out


def test_thresholds_are_not_locked_beside_a_training_which_may_write_an_epoch_meanwhile(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "model.safetensors"
    shutil.copy(trained.checkpoint, place)
    scored = Scored(**{**vars(trained.scored), "file": tmp_path / "predictions.csv"})
    before = place.read_bytes()
    choices = {"prevalence": None, "prevalence_level": "exam"}
    choices |= {"aggregation": "max", "miss_cost": 20.0}
    with locked(tmp_path / "run.lock"):
        lock_in_checkpoint(scored, choices)
    assert place.read_bytes() == before
    assert "because the run is in use; evaluate again once" in capsys.readouterr().out
    lock_in_checkpoint(scored, choices)
    assert place.read_bytes() != before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["FILE", "FOLDER", "--out", "TAKEN"], "is not a folder of predictions"),
        (["FILE", "FOLDER", "--operating-point", "best"], "Invalid value"),
        (["FILE", "TAKEN"], "holds no images"),
        (["none.safetensors", "FOLDER"], "there is no checkpoint at none.safetensors"),
        (["FILE", "FOLDER", "--workers", "0"], "--workers 0"),
        (["FILE", "ELSEWHERE", "--out", "OUT"], "predictions of another folder"),
    ],
)
def test_refused(
    words: list[str],
    message: str,
    trained: Trained,
    predicted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    named = {
        "FILE": trained.checkpoint,
        "FOLDER": trained.folder,
        "TAKEN": tmp_path / "taken",
        "ELSEWHERE": next(trained.folder.glob("PHANTOM*")),
        "OUT": predicted,
    }
    assert main(["predict", *(str(named.get(word, word)) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "taken" / "notes.txt").read_text() == "mine"
