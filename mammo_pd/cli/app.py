"""The command line: ``mammo-pd COMMAND``. Heavy imports happen inside the command chosen."""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mammo_pd import __version__
from mammo_pd.errors import InputError
from mammo_pd.terms import Draw, Frames, VoiPolicy

if TYPE_CHECKING:
    from mammo_pd.inference.predict import Scored
    from mammo_pd.ingest.preprocess import PreprocessSummary
    from mammo_pd.report.content import ReportContext

_TORCHVISION_REMEDY = (
    "torch and torchvision do not match (they must come from the same index); install both anew, "
    "for instance with: pip install --force-reinstall 'torch>=2.11' 'torchvision>=0.26'"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit status is returned."""
    options = _parser().parse_args(arguments)
    # Threads that spin while they wait take a shared machine's cores from whoever has work to do.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return int(options.run(options) or 0)
    except InputError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        again = _resume_command(options) if options.run is _train else "the same command"
        print(
            f"\nmammo-pd: interrupted; what was done is kept, and {again} goes on with it.",
            file=sys.stderr,
        )
        return 130
    except Exception as error:
        remedy = _remedy(error)
        if remedy is None:
            raise
        return _fail(remedy)


def _remedy(error: Exception) -> str | None:
    """A sentence for what the machine, not the user, got wrong; None for a fault of ours."""
    text = str(error)
    # numpy, SQLite and safetensors each say in their own words that a disk is full.
    words = ("No space left", "disk is full", "requested and", "File too large", "quota exceeded")
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full or any(word in text for word in words):
        return (
            "the disk is full; what was done is kept. Free some space, and the same command goes "
            "on (training: add --resume)."
        )
    if "torchvision::" in text:
        return _TORCHVISION_REMEDY
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"{error.filename} cannot be read or written ({error.strerror}); check that it exists "
            "and its rights."
        )
    return None


def _fail(message: str) -> int:
    print(f"mammo-pd: error: {message}", file=sys.stderr)
    return 2


# ---- the commands


def _preprocess(options: argparse.Namespace) -> None:
    from mammo_pd.data.labels import read_labels
    from mammo_pd.imaging.settings import ImagingSettings
    from mammo_pd.ingest.preprocess import preprocess

    if options.labels is None and (options.label_column or options.positive):
        raise InputError("--label-column and --positive speak of a table; name it with --labels.")
    labels = None
    if options.labels is not None and options.source is None:
        labels = read_labels(
            options.labels, label_column=options.label_column, positive=options.positive or ()
        )
    elif options.source is not None:
        from mammo_pd.data.sources import read_source

        if options.labels is None or options.label_column or options.positive:
            raise InputError(
                "--source reads the data set's own table, which --labels names, and defines its "
                "label (--definition); --label-column and --positive have no place beside it."
            )
        labels = read_source(
            options.source, options.labels, options.folder, definition=options.definition
        )
    key = None
    if options.key is not None:
        if not options.key.is_file():
            raise InputError(f"the key {options.key} does not exist; name a store's private/key.")
        key = options.key.read_bytes()
    summary = preprocess(
        options.folder,
        options.out,
        labels=labels,
        settings=ImagingSettings(voi=VoiPolicy(options.voi), frames=Frames(options.frames)),
        workers=options.workers,
        scheduler=options.scheduler,
        contact_sheet=options.contact_sheet,
        crosswalk=options.crosswalk,
        key=key,
    )
    _print_summary(summary, has_table=labels is not None)
    if summary.details and options.crosswalk is None:
        print("which files these are, in the clear: the same command with --crosswalk FILE")
    if not summary.ok:
        raise InputError(
            f"none of the {summary.found} images in {options.folder} can be used; the reasons "
            f"stand above and in {options.out / 'manifest.parquet'}."
        )
    print(f"\nwrote {options.out / 'manifest.parquet'} and the pixels of {summary.ok} images")
    for file in (*summary.contact_sheets, *([options.crosswalk] if options.crosswalk else [])):
        print(f"wrote {file}")
    if summary.labelled:
        print(f"next: mammo-pd train{_store_option(options.out)} --res 1024 --keep 0.25")
    else:
        print(
            f"next: mammo-pd preprocess {options.folder}{_out_option(options.out)}"
            f"{_imaging_options(options)} --labels TABLE.csv   (no image has a label yet; nothing "
            "is decoded again)"
        )


def _print_summary(summary: "PreprocessSummary", *, has_table: bool) -> None:
    print()
    for (status, reason), count in sorted(summary.by_status.items(), key=lambda item: -item[1]):
        line = f"{count:>8}  {status}" + (f"  {reason}" if reason else "")
        print(line + (f"   such as {summary.details[reason]}" if reason else ""))
    if summary.labelled or has_table:
        print(
            f"{summary.labelled} of {summary.ok} usable images have a label, {summary.positive} of "
            "them positive"
        )
    if summary.unmatched_labels:
        print(
            f"warning: {summary.unmatched_labels} rows of the label table match no image here; if "
            "that is more than you expect, compare its paths or identifiers with the folder"
        )
    if summary.closed_folders:
        print(
            f"warning: {summary.closed_folders} folders could not be listed, so what they hold is "
            "missing; make them readable and run again"
        )
    if summary.disagreeing:
        print(
            f"warning: the side of {summary.disagreeing} images differs between label table and "
            "DICOM; the table's was taken"
        )
    for count, what in (
        (
            summary.doubtful,
            "it is doubtful what is breast, and they are kept whole (breast_verdict)",
        ),
        (
            summary.wrong_side,
            "the breast lies on the other side than the laterality tag says (laterality_agrees)",
        ),
        (summary.burned_in, "text is burnt in, as the tag says (burned_in_annotation)"),
        (summary.for_processing, "the image is FOR PROCESSING, not for display (processing)"),
    ):
        if count:
            print(f"warning: in {count} of {summary.ok} usable images {what}; see the manifest")


def _split(options: argparse.Namespace) -> None:
    from mammo_pd.data.manifest import read_manifest
    from mammo_pd.data.split_store import FRACTIONS, count_parts, split_store
    from mammo_pd.data.store import open_store

    paths = open_store(options.store)
    split = split_store(
        paths,
        name=options.name,
        fractions=tuple(options.fractions or FRACTIONS),
        folds=options.folds,
        seed=options.seed,
    )
    counts = count_parts(read_manifest(paths.manifest, status=None), split)
    print("part    patients   images  positive  unlabelled")
    for row in counts:
        print(
            f"{row['part']:<6}{row['patients']:>10}{row['images']:>9}{row['positives']:>10}"
            f"{row['unlabelled']:>12}"
        )
    print(f"\nwrote {paths.splits / (split.name + '.csv')} (hash {split.hash[:12]})")
    named = "" if split.name == "default" else f" --split {split.name}"
    fold = " --fold 0" if split.folds else ""
    store = _store_option(options.store)
    print(f"next: mammo-pd train{store}{named}{fold} --res 1024 --keep 0.25")


_DAILY = {
    "res": "data.res",
    "split": "data.split",
    "fold": "data.fold",
    "keep": "patch_dropout.keep_rate",
    "draw": "patch_dropout.draw",
    "model": "model.name",
    "weights": "model.weights",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "lr": "training.lr",
    "seed": "training.seed",
    "devices": "device.devices",
}


def _train(options: argparse.Namespace) -> None:
    from mammo_pd.config import load_config, parse_assignments
    from mammo_pd.perf.memory_advice import memory_advice, memory_warning
    from mammo_pd.training.loop import fit
    from mammo_pd.training.runs import RunFolder
    from mammo_pd.training.setup import RunSetup
    from mammo_pd.training.train import reopen_run, start_run

    given = {name: getattr(options, name) for name in _DAILY if getattr(options, name) is not None}
    stopped = None
    if options.resume is not None:
        if given or options.config or options.assignments:
            raise InputError(
                "--resume takes the run's own configuration; leave the other settings away (type "
                f"{_resume_command(options)}), or train anew without --resume."
            )
        named = options.resume
        stopped = (
            RunFolder.find(options.runs, Path(named)) if named else RunFolder.latest(options.runs)
        )
    overrides = parse_assignments(options.assignments)
    overrides |= {_DAILY[name]: value for name, value in given.items()}
    try:
        config = load_config(options.config, overrides)
    except InputError as error:
        text = str(error)
        for name in given:
            # What was typed is spoken of as it was typed.
            text = text.replace(f"the configuration: {_DAILY[name]}", f"--{name.replace('_', '-')}")
        raise InputError(text) from error
    with memory_advice():
        if stopped is not None:
            setup, run = reopen_run(stopped.path, store=options.store)
        else:
            setup = RunSetup.build(options.store or _default_store(), config)
            run = start_run(options.runs, setup)
        warning = memory_warning(setup)
        if warning is not None:
            setup.say(warning)
        fit(setup, run)
    if not setup.fabric.is_global_zero:
        return  # the first of several processes speaks for all
    print(f"\nwrote {run.path}: best.safetensors, last.safetensors, history.csv, config.yaml")
    print(f"metrics: mlflow ui --backend-store-uri sqlite:///{run.path.parent / 'mlflow.db'}")
    print(f"next: mammo-pd evaluate {run.path}")


def _resume_command(options: argparse.Namespace) -> str:
    runs = "" if options.runs == _default_runs() else f" --runs {options.runs}"
    return f"mammo-pd train{runs} --resume"


def _evaluate(options: argparse.Namespace) -> None:
    from mammo_pd.evaluation.thresholds import Reader
    from mammo_pd.report.evaluate import (
        check_choices,
        evaluate_file,
        evaluate_predictions,
        summary_table,
    )

    choices: dict[str, Any] = {
        "aggregation": options.aggregation,
        "resamples": options.resamples,
        "prevalence": options.prevalence,
        "miss_cost": options.miss_cost,
        "reader": options.reader and Reader(*options.reader),
    }
    check_choices(**choices)
    if options.predictions is not None:
        if options.run_folders:
            raise InputError("give runs or --predictions, not both.")
        out = options.out or options.predictions.with_name(options.predictions.stem + "-report")
        metrics = evaluate_file(options.predictions, out, **choices)
    else:
        from mammo_pd.inference.explain import ErrorPictures
        from mammo_pd.inference.predict import join_folds, predict
        from mammo_pd.training.runs import RunFolder

        named = [RunFolder.find(options.runs, folder) for folder in options.run_folders]
        runs = named or [RunFolder.latest(options.runs)]
        folders = [run.path for run in runs]
        print(f"evaluating {', '.join(map(str, folders))}")
        scored = [
            predict(
                run,
                store=options.store,
                checkpoint=options.checkpoint,
                accept_other_split=options.accept_other_split,
            )
            for run in runs
        ]
        out = options.out or (
            folders[0] / "report"
            if len(folders) == 1
            else folders[-1].with_name(f"{folders[-1].name}-folds-report")
        )
        pictures = ErrorPictures(scored)
        metrics = evaluate_predictions(
            join_folds(scored),
            out,
            context=replace(context_of(scored), pictures=pictures.legend),
            thumbnail=pictures,
            **choices,
        )
    print(summary_table(metrics))
    print(f"\nwrote {out}: index.html, metrics.json, predictions, ROC and PR curves")
    print(f"next: open {out / 'index.html'}")


def context_of(scored: "Sequence[Scored]") -> "ReportContext":
    """What a reader of the report must know of the runs that made the predictions."""
    from mammo_pd.report.content import ReportContext

    first = scored[0]
    info = first.info
    height, width = info.img_size
    epochs = sorted({one.epoch for one in scored})
    notes = [
        f"Trained on {info.num_keep} of {info.num_tokens} patches of each image "
        "(PatchDropout); scored here on all of them.",
        f"Weights of epoch {', '.join(map(str, epochs))}.",
    ]
    folds = f"{len(scored)} folds" if len(scored) > 1 else None
    return ReportContext(
        title="Phantom mammograms: a demonstration" if first.phantom else "Evaluation report",
        model=f"{info.model}, {height}x{width} pixels",
        run_id=", ".join(one.info.run_id for one in scored),
        split_name=info.split,
        split_hash=info.split_hash,
        split_part=folds or "test",
        store_fingerprint=info.store_fingerprint,
        label_definition=first.cohort.label_definition,
        exclusions=first.exclusions,
        parts=first.parts,
        phantom=first.phantom,
        notes=notes,
    )


def _compare(options: argparse.Namespace) -> None:
    from mammo_pd.evaluation.predictions import read_predictions
    from mammo_pd.report.content import ReportContext
    from mammo_pd.report.evaluate import compare_predictions, difference_table

    if len(options.models) < 2:
        raise InputError("name two or more runs, or files of predictions, to compare.")
    tables = {}
    for model in options.models:
        file = model / "predictions.csv" if model.is_dir() else model
        if not file.is_file():
            raise InputError(
                f"{model} has no predictions yet; make them with: mammo-pd evaluate {model}"
            )
        # A run goes by its folder's name, a file by its own; where two agree, by the whole path.
        name = model.name if model.is_dir() else model.stem
        tables[str(model) if name in tables else name] = read_predictions(file)
    context = ReportContext(title="Comparison of " + " and ".join(tables))
    metrics = compare_predictions(
        tables,
        options.out,
        context=context,
        intersect=options.intersect,
        aggregation=options.aggregation,
        resamples=options.resamples,
    )
    print(difference_table(metrics))
    print(f"\nwrote {options.out}: index.html, metrics.json")
    print(f"next: open {options.out / 'index.html'}")


def _bench(options: argparse.Namespace) -> None:
    from mammo_pd.perf.bench import bench

    table = bench(
        options.out,
        resolutions=options.res,
        keep_rates=options.keep,
        models=options.model,
        batch_size=options.batch_size,
        store=options.store,
        runs=options.runs if options.mlflow else None,
    )
    print((options.out / "bench.md").read_text())
    print(f"wrote {options.out}: bench.json, bench.md, bench.png")
    if options.mlflow:
        print(f"logged: mlflow ui --backend-store-uri sqlite:///{options.runs / 'mlflow.db'}")
    memory = "" if table["peak_gib"].notna().any() else " --memory 24GB"
    print(f"next: mammo-pd budget --bench {options.out / 'bench.json'}{memory}")


def _budget(options: argparse.Namespace) -> None:
    from mammo_pd.perf.budget import budget

    text, best = budget(
        options.memory,
        hours=options.hours,
        images=options.images,
        bench=options.bench,
        models=options.model,
        resolutions=options.res,
        keep_rates=options.keep,
    )
    print(text)
    print(f"next: {best}")


def _demo(options: argparse.Namespace) -> None:
    from mammo_pd.files import write_text
    from mammo_pd.phantoms.phantom import PhantomSettings, write_phantoms

    out: Path = options.out
    dicom, store, runs = out / "dicom", out / "store", out / "runs"
    cores = len(os.sched_getaffinity(0))
    print(f"writing phantom mammograms as DICOM files to {dicom}; they stand in for real ones")
    # Phantoms need no secret: with one key for all demos, all have the same split and draws.
    key = out / "key"
    write_text(key, f"{'phantoms need no secret key':<32}")
    table = write_phantoms(dicom, PhantomSettings(**_DEMO_PHANTOMS), processes=cores)
    for command in (
        ["preprocess", dicom, "--labels", table, "--out", store, "--key", key],
        ["split", store, *_DEMO_SPLIT.split()],
        ["train", "--store", store, "--runs", runs, *_DEMO_TRAINING.split()],
        ["evaluate", "--store", store, "--runs", runs],
    ):
        words = [str(word) for word in command]
        print(f"\n$ mammo-pd {' '.join(words)}")
        arguments = _parser().parse_args(words)
        arguments.run(arguments)
    print(
        "\nThese are results on phantoms: they show that the tool runs, and nothing about cancer."
    )


# What a tiny model learns within minutes on two cores.
_DEMO_PHANTOMS: dict[str, Any] = {"patients": 120, "scale": 0.3}
_DEMO_SPLIT = "--fractions 0.6 0.1 0.3"
_DEMO_TRAINING = "--res 384x304 --keep 0.25 --model test_vit --epochs 30 --batch-size 16 --lr 5e-4"


# ---- the options


def _store_option(store: Path) -> str:
    return "" if store == _default_store() else f" --store {store}"


def _imaging_options(options: argparse.Namespace) -> str:
    frames = "" if options.frames == Frames.EXCLUDE else f" --frames {options.frames}"
    return frames if options.voi == VoiPolicy.AUTO else f"{frames} --voi {options.voi}"


def _out_option(store: Path) -> str:
    return "" if store == _default_store() else f" --out {store}"


def _default_store() -> Path:
    return Path(os.environ.get("MAMMO_PD_STORE", "store"))


def _default_runs() -> Path:
    return Path(os.environ.get("MAMMO_PD_RUNS", "runs"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mammo-pd",
        description="Train vision transformers on full-resolution mammograms with PatchDropout.",
        epilog="The whole job: mammo-pd preprocess DICOM_DIR --labels TABLE.csv; "
        "mammo-pd train --res 1024 --keep 0.25; mammo-pd evaluate. "
        "Research use only, not a medical device.",
    )
    parser.add_argument("--version", action="version", version=f"mammo-pd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_preprocess(commands)
    _add_split(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_compare(commands)
    _add_bench(commands)
    _add_budget(commands)
    _add_demo(commands)
    return parser


def _add(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def _add_preprocess(commands: Any) -> None:
    command = _add(
        commands, "preprocess", _preprocess, "Take a folder of mammograms into a store of tensors."
    )
    command.add_argument("folder", metavar="DICOM_DIR", type=Path)
    command.add_argument(
        "--out",
        metavar="STORE",
        type=Path,
        default=_default_store(),
        help="the store to make or add to (default: $MAMMO_PD_STORE, else store)",
    )
    command.add_argument(
        "--labels",
        metavar="TABLE",
        type=Path,
        help="CSV with a column path, sop_instance_uid or image_id, and a label; needed for PNG, "
        "PGM and TIFF",
    )
    command.add_argument(
        "--source",
        metavar="NAME",
        help="TABLE is a public data set's own: rsna, vindr-mammo, cbis-ddsm, cmmd, inbreast, "
        "embed, csaw-cc or mias (DIR of tables for some; see data_manifests/)",
    )
    command.add_argument(
        "--definition", metavar="NAME", help="which of the data set's labels (default: its first)"
    )
    command.add_argument(
        "--label-column", metavar="NAME", help="the label's column (default: label, else cancer)"
    )
    command.add_argument(
        "--positive",
        metavar="VALUE",
        nargs="+",
        help="values that count as positive (default: 1); all others are then negative",
    )
    command.add_argument(
        "--voi",
        choices=[str(policy) for policy in VoiPolicy],
        default=VoiPolicy.AUTO,
        help="grey scale: VOI LUT, else window, else full range (auto); or insist on one",
    )
    command.add_argument(
        "--frames",
        choices=[str(frames) for frames in Frames],
        default=Frames.EXCLUDE,
        help="of files of several frames (tomosynthesis), take none, the middle one, the maximum "
        "over all (mip), or each as an image of its own",
    )
    where = command.add_mutually_exclusive_group()
    where.add_argument("--workers", metavar="N", type=int, help="processes (default: all cores)")
    where.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="a Dask scheduler, such as tcp://host:8786, whose workers do the work",
    )
    command.add_argument(
        "--contact-sheet", metavar="PNG", type=Path, help="draw every crop, to be looked at"
    )
    command.add_argument(
        "--crosswalk",
        metavar="CSV",
        type=Path,
        help="write image_id, path and original identifiers in the clear",
    )
    command.add_argument(
        "--key",
        metavar="FILE",
        type=Path,
        help="private/key of another store, so that images get the same names (default: a new one)",
    )


def _add_split(commands: Any) -> None:
    command = _add(
        commands, "split", _split, "Split a store by patient: train, val and test, or folds."
    )
    command.add_argument("store", metavar="STORE", nargs="?", type=Path, default=_default_store())
    command.add_argument("--name", default="default", help="what the split is called")
    parts = command.add_mutually_exclusive_group()
    parts.add_argument(
        "--fractions",
        metavar=("TRAIN", "VAL", "TEST"),
        nargs=3,
        type=float,
        help="shares of the patients (default: 0.7 0.1 0.2)",
    )
    parts.add_argument("--folds", metavar="K", type=int, help="K folds instead")
    command.add_argument("--seed", type=int, default=0)


def _add_train(commands: Any) -> None:
    command = _add(commands, "train", _train, "Train a vision transformer with PatchDropout.")
    _add_store_and_runs(command)
    command.add_argument(
        "--res",
        metavar="RES",
        help="canvas: a height in pixels (width is 4/5 of it), HxW, or full (default: 1024)",
    )
    command.add_argument(
        "--keep",
        metavar="RATE",
        help="share of patches kept (default: 0.25); 0.5:0.25 is linear over the epochs, random is "
        "drawn for each step; +N after it keeps all patches in the last N epochs",
    )
    command.add_argument(
        "--draw",
        choices=[str(draw) for draw in Draw],
        help="which patches: any (uniform, the default), those that hold breast first (tissue), or "
        "evenly spread (grid)",
    )
    command.add_argument("--model", help="timm's name (default: vit_small_patch16_224)")
    command.add_argument(
        "--weights", help="a local file, or 'timm' for its hub (default: random weights)"
    )
    command.add_argument("--epochs", metavar="N", type=int)
    command.add_argument(
        "--batch-size",
        metavar="N",
        type=_number_or_auto,
        help="over all devices, or auto for as many as fit",
    )
    command.add_argument("--lr", metavar="RATE", type=float, help="peak learning rate")
    command.add_argument("--seed", metavar="N", type=int)
    command.add_argument("--devices", metavar="N", type=int)
    command.add_argument("--split", metavar="NAME", help="a split of the store")
    command.add_argument("--fold", metavar="I", type=int, help="the fold to test on")
    command.add_argument("--config", metavar="FILE", type=Path, help="a YAML recipe")
    command.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="assignments",
        action="append",
        default=[],
        help="any setting of a recipe, such as training.weight_decay=0.1; may be repeated",
    )
    command.add_argument(
        "--resume",
        metavar="RUN",
        nargs="?",
        const="",
        help="go on with a run (default: the latest) from its last checkpoint",
    )


def _add_evaluate(commands: Any) -> None:
    command = _add(
        commands,
        "evaluate",
        _evaluate,
        "Score a run's test images on all patches and write the ROC report.",
    )
    command.add_argument(
        "run_folders",
        metavar="RUN",
        nargs="*",
        type=Path,
        help="a run, or the runs of all folds (default: the latest)",
    )
    _add_store_and_runs(command)
    command.add_argument(
        "--predictions",
        metavar="CSV",
        type=Path,
        help="anyone's predictions: image_id, patient_id, exam_id, laterality, view, label, score",
    )
    command.add_argument("--out", metavar="DIR", type=Path, help="the report (default: RUN/report)")
    command.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which weights"
    )
    _add_statistics(command)
    command.add_argument(
        "--prevalence", metavar="P", type=float, help="re-weight to this share of positives"
    )
    command.add_argument(
        "--miss-cost",
        metavar="C",
        type=float,
        default=10.0,
        help="false alarms that one miss counts as, for the cost threshold (default: 10)",
    )
    command.add_argument(
        "--reader",
        metavar=("SENSITIVITY", "SPECIFICITY"),
        nargs=2,
        type=float,
        help="the radiologists' operating point, set beside the exam level",
    )
    command.add_argument(
        "--accept-other-split",
        action="store_true",
        help="score the split as it is now, though the run was trained on another",
    )


def _add_compare(commands: Any) -> None:
    command = _add(
        commands, "compare", _compare, "Compare models on the same images: paired AUC differences."
    )
    command.add_argument(
        "models",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="a run that was evaluated, or a CSV of predictions",
    )
    command.add_argument("--out", metavar="DIR", type=Path, default=Path("comparison"))
    command.add_argument(
        "--intersect",
        action="store_true",
        help="compare on the images that all have, where they differ",
    )
    _add_statistics(command)


def _add_statistics(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--aggregation",
        choices=("mean", "max", "noisy_or"),
        default="mean",
        help="how the images of a breast, exam or patient are joined",
    )
    command.add_argument(
        "--resamples", metavar="N", type=int, default=2000, help="of the patients, for intervals"
    )


_RESOLUTIONS = ["1024", "2048x1664", "3328x2560"]
_KEEP_RATES = [0.25, 1.0]
_MODELS = ["vit_small_patch16_224"]


def _add_bench(commands: Any) -> None:
    command = _add(
        commands,
        "bench",
        _bench,
        "Measure training steps on this machine: images/s, memory, share of the ceiling, waiting; "
        "beside timm's patch_drop_rate.",
    )
    _add_choices(command, resolutions=_RESOLUTIONS, keep_rates=_KEEP_RATES, models=_MODELS)
    command.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        help="images in a step (default: what about 20 GiB hold, at most 128; 2 on a CPU)",
    )
    command.add_argument(
        "--store", metavar="STORE", type=Path, help="read its images (default: made-up ones)"
    )
    command.add_argument("--out", metavar="DIR", type=Path, default=Path("bench"))
    command.add_argument("--mlflow", action="store_true", help="log to the MLflow of --runs too")
    command.add_argument("--runs", metavar="DIR", type=Path, default=_default_runs())


def _add_budget(commands: Any) -> None:
    command = _add(
        commands,
        "budget",
        _budget,
        "Say which resolution, model, keep rate and batch fit in a GPU, and in how much time.",
    )
    command.add_argument(
        "--memory",
        metavar="SIZE",
        help="of the GPU, such as 24GB (default: that of the --bench file, else of this machine's)",
    )
    command.add_argument("--hours", metavar="H", type=float, help="there are for training")
    command.add_argument("--images", metavar="N", type=int, help="to train on")
    command.add_argument(
        "--bench", metavar="FILE", type=Path, help="bench.json of this GPU, to go by its speed"
    )
    _add_choices(
        command,
        resolutions=["512", "1024", "1536", "2048x1664", "3328x2560"],
        keep_rates=[0.1, 0.25, 0.5, 1.0],
        models=["vit_small_patch16_224", "vit_base_patch16_224"],
    )


def _add_choices(
    command: argparse.ArgumentParser,
    *,
    resolutions: list[str],
    keep_rates: list[float],
    models: list[str],
) -> None:
    shown = " ".join(resolutions)
    command.add_argument(
        "--res",
        metavar="RES",
        nargs="+",
        default=resolutions,
        help=f"canvases, as of train (default: {shown})",
    )
    command.add_argument(
        "--keep",
        metavar="RATE",
        nargs="+",
        type=float,
        default=keep_rates,
        help=f"shares of patches kept, constant each (default: {' '.join(map(str, keep_rates))})",
    )
    command.add_argument(
        "--model",
        metavar="NAME",
        nargs="+",
        default=models,
        help=f"timm's names (default: {' '.join(models)})",
    )


def _add_demo(commands: Any) -> None:
    command = _add(
        commands,
        "demo",
        _demo,
        "The whole job on phantom mammograms made here: DICOM files, store, training, report.",
    )
    command.add_argument("--out", metavar="DIR", type=Path, default=Path("demo"))


def _number_or_auto(text: str) -> int | str:
    if text != "auto" and not text.lstrip("-").isdigit():
        raise argparse.ArgumentTypeError(f"{text} is neither a number nor auto")
    return text if text == "auto" else int(text)


def _add_store_and_runs(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--store",
        metavar="STORE",
        type=Path,
        help="made by preprocess (default: the run's own; for a new run $MAMMO_PD_STORE, else "
        "store)",
    )
    command.add_argument(
        "--runs",
        metavar="DIR",
        type=Path,
        default=_default_runs(),
        help="the folder of runs (default: $MAMMO_PD_RUNS, else runs)",
    )
