"""``mammo-pd predict``: scores and verdicts for new, unlabelled studies."""

import shlex
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from mammo_pd.cli.early_checks import check_output_folder, read_key
from mammo_pd.cli.options import (
    DEFAULT_RUNS,
    OperatingPointOption,
    RunsOption,
    WorkersOption,
    find_checkpoint,
)
from mammo_pd.errors import InputError
from mammo_pd.terms import ScoredPatches
from mammo_pd.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from mammo_pd.data.record import Record
    from mammo_pd.inference.new_studies import PredictionFolder, Predictions
    from mammo_pd.inference.trained_model import TrainedModel
    from mammo_pd.ingest.walk import FoundFiles
    from mammo_pd.terms import Level

# The exit status if some images could not be read.
PARTIAL = 3
# Fewer images than this contain few cancers or none.
_FEW = 300


def predict(
    run: Annotated[Path, Parameter(name="RUN|FILE")],
    folder: Annotated[Path, Parameter(name="DICOM_DIR")],
    /,
    *,
    out: Annotated[Path, Parameter(metavar="DIR")] = Path("predictions"),
    operating_point: OperatingPointOption = "specificity_90",
    saliency: bool = False,
    dicom: bool = False,
    key: Annotated[Path | None, Parameter(metavar="FILE", show_default="a new key")] = None,
    workers: WorkersOption = None,
    runs: RunsOption = DEFAULT_RUNS,
) -> int | None:
    """Score new, unlabelled studies: DICOM files in, tables out.

    Needs nothing but a checkpoint file. Run it again to continue after an
    interruption or to add new files. The exit status is 3 if some images could not
    be read.

    For example:

        mammo-pd predict runs/RUN DICOM_DIR --out predictions
        mammo-pd predict model.safetensors DICOM_DIR --saliency

    Args:
        run: A run, whose model is used, or a checkpoint file.
        folder: Folder of DICOM files.
        out: Where to write the tables; DIR/private holds what identifies a woman.
        operating_point: Which locked threshold decides the verdict.
        saliency: Draw where the model looked, one PNG per image.
        dicom: Write results for a PACS to DIR/private/dicom: one structured report per exam, and
            with --saliency one secondary capture per image. Needs mammo-pd[dicom].
        key: private/key of a store, so that images get the same names as there.
        workers: Number of processes.
        runs: The folder of runs.
    """
    from mammo_pd.ingest.walk import find_images

    # Refuse whatever needs no model before importing torch.
    given_key = read_key(key)
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers} is below 1.")
    check_output_folder("--out", out)
    if dicom:
        from mammo_pd.report.dicom_results import require_highdicom

        require_highdicom()
    checkpoint = find_checkpoint(runs, run)
    folder = folder.resolve()
    found = find_images(folder)
    from mammo_pd.data.record import Record
    from mammo_pd.inference.explain import refuse_unexplained
    from mammo_pd.inference.new_studies import (
        PredictionFolder,
        claim_folder,
        refuse_unknown_point,
        score_new_images,
    )
    from mammo_pd.inference.trained_model import TrainedModel
    from mammo_pd.ingest.new_images import read_new_images

    model = TrainedModel.load(checkpoint)
    refuse_unknown_point(model.operating_points, operating_point)
    if dicom and not model.objective.target_columns:
        raise InputError(
            f"--dicom writes scores of 0/1 targets and verdicts on them, and {checkpoint} was "
            f"trained for {model.card.objective}, which has none; drop --dicom."
        )
    if saliency:
        refuse_unexplained(model.backbone)
    target = PredictionFolder(out.resolve())
    target.claim(model)
    _introduce(model, operating_point)
    with Record(target.paths, given_key) as record:
        claim_folder(record, folder)
        target.remove_leftovers()
        files = read_new_images(
            found,
            folder,
            record,
            model.settings,
            model.card.img_size,
            workers=workers,
            lacks=lambda image_id: saliency and not target.saliency(image_id).is_file(),
        )
        started = time.perf_counter()
        try:
            count = score_new_images(files, model, record, target, saliency=saliency)
        except BaseException:
            _write(record, target, model, operating_point, found, complete=False)
            raise
        seconds = time.perf_counter() - started
        predictions, tables = _write(record, target, model, operating_point, found, complete=True)
        instances, without = 0, Counter[str]()
        if dicom and len(predictions.images):
            from mammo_pd.cli.predict_dicom import write_dicom_results

            instances, without = write_dicom_results(target, record, model, tables, operating_point)
    _print_summary(predictions, tables, found)
    if count:
        device = model.fabric.device.type
        print(
            f"{counted(count, 'image')} read and scored on {device} in {seconds:.1f} s, starting "
            f"the workers included: {count / seconds:.3g} images/s"
        )
    print(f"wrote {out}: predictions.csv (images), predictions_breast.csv, _exam, _patient")
    print(f"{out / 'private' / target.crosswalk.name} lists the file and study of each image_id")
    if dicom:
        print(f"{counted(instances, 'DICOM instance')} for a PACS in {out / 'private' / 'dicom'}")
    for reason, exams in without.most_common():
        print(f"warning: no DICOM result for {counted(exams, 'exam')}: {reason}")
    if not len(predictions.images):
        raise InputError(
            f"none of {counted(len(found.images), 'image')} in {folder} could be scored; "
            f"{out / target.not_scored.name} lists the reasons."
        )
    if model.objective.target_columns == ("label",):
        print("once outcomes are known, add a column label (1 or 0) to predictions.csv; then")
        table = shlex.quote(str(out / "predictions.csv"))
        print(f"next: mammo-pd evaluate --predictions {table}")
    else:
        # With several targets, evaluate needs a store.
        print(f"next: mammo-pd show {shlex.quote(str(checkpoint))}")
    return PARTIAL if predictions.failed or _closed(found) else None


def _introduce(model: "TrainedModel", code: str) -> None:
    height, width = model.card.img_size
    score_on = ScoredPatches(model.card.run_config().patch_dropout.score_on)
    print(
        f"{model.card.model}, {height}x{width} pixels, "
        f"{score_on.in_words(model.backbone.num_tokens)}, "
        f"weights of epoch {model.epoch}; research use only, not a medical device"
    )
    if not model.objective.target_columns:
        print(
            f"no verdicts: {model.card.objective} has no 0/1 target; a breast, exam or patient "
            "has the mean of its images' scores"
        )
    elif not model.operating_points:
        print(
            "warning: the checkpoint holds no thresholds (it comes from an earlier version or an "
            "unfinished run), so there are scores but no verdicts; mammo-pd evaluate RUN adds them"
        )
    for target, points in model.operating_points.items():
        if not points.rules:
            print(
                f"warning: no threshold could be locked for {target}, because its validation "
                "images were all of one class; there are scores but no verdicts"
            )
        else:
            print(
                f"verdict on {target}: {points.rules[code]}, locked on {points.locked.images} "
                f"{points.locked.part} {'image' if points.locked.images == 1 else 'images'}"
            )
            if points.locked.images < _FEW:
                print(
                    f"warning: {counted(points.locked.images, 'image is', 'images are')} too few "
                    "to lock thresholds and calibration on reliably: verdicts and recalibrated "
                    "scores may be far off"
                )


def _write(
    record: "Record",
    target: "PredictionFolder",
    model: "TrainedModel",
    code: str,
    found: "FoundFiles",
    *,
    complete: bool,
) -> "tuple[Predictions, Mapping[Level, pd.DataFrame]]":
    from mammo_pd.inference.new_studies import Predictions, write_tables
    from mammo_pd.ingest.preprocess import write_crosswalk

    predictions = Predictions.read(record, model)
    told = {
        "files": len(found.images),
        "passed_over": {str(reason): count for reason, count in found.passed_over.items()},
        "folders_not_listed": found.unreadable_folders,
    }
    tables = write_tables(target, predictions, model, code, complete=complete, told=told)
    write_crosswalk(target.crosswalk, record)
    return predictions, tables


def _closed(found: "FoundFiles") -> int:
    """Files and folders that could not even be opened."""
    from mammo_pd.ingest.walk import PassedOver

    return found.passed_over.get(PassedOver.UNREADABLE, 0) + found.unreadable_folders


def _print_summary(
    predictions: "Predictions", tables: "Mapping[Level, pd.DataFrame]", found: "FoundFiles"
) -> None:
    from mammo_pd.inference.new_studies import flagged_counts

    print()
    for level, table in tables.items():
        verdicts = [
            f"{count} {name.replace('_', ' ')}" for name, count in flagged_counts(table).items()
        ]
        print(
            f"{len(table):>8}  {level} {'score' if len(table) == 1 else 'scores'}"
            + (f", {', '.join(verdicts)}" * bool(verdicts))
        )
    for reason, count in predictions.not_scored["reason"].value_counts().items():
        print(f"{count:>8}  not scored  {reason}")
    if _closed(found):
        print(
            f"warning: {counted(_closed(found), 'file or folder', 'files or folders')} cannot be "
            "opened, and images may be missing; make them readable and run again"
        )
    for warning in predictions.warnings:
        print(f"warning: {warning}")
