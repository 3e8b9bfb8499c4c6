"""``mammo-pd forget``: take images out of a store, and say which runs saw them."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from mammo_pd.cli.options import (
    DEFAULT_RUNS,
    DEFAULT_STORE,
    RunsOption,
    StoreArgument,
    default_store,
    unless_default,
)
from mammo_pd.errors import InputError
from mammo_pd.wording import counted

if TYPE_CHECKING:
    from mammo_pd.data.forget import ToForget
    from mammo_pd.training.runs_on_images import RunOnImages


def forget(
    store: StoreArgument = DEFAULT_STORE,
    *,
    patient: Annotated[
        list[str] | None, Parameter(consume_multiple=1, metavar="ID...", show_default=False)
    ] = None,
    image: Annotated[
        list[str] | None, Parameter(consume_multiple=1, metavar="IMAGE_ID...", show_default=False)
    ] = None,
    missing: bool = False,
    whole_folders: bool = False,
    take_again: bool = False,
    dry_run: bool = False,
    runs: RunsOption = DEFAULT_RUNS,
) -> None:
    """Permanently remove images from a store, and list the runs that used them.

    Removes pixels, manifest rows and entries in splits. The source files stay, but
    preprocess will skip those of the patients and images named here.

    For example:

        mammo-pd forget --patient P0123
        mammo-pd forget --missing --dry-run

    Args:
        store: The store to remove them from.
        patient: Remove all images of these patients, given by original identifier or by the
            manifest's patient_id.
        image: Remove these images, given by the manifest's image_id.
        missing: Remove all images whose source files were deleted.
        whole_folders: With --missing, also remove images whose whole source folder is gone.
        take_again: Undo an earlier forget: let the next preprocess add these patients or images
            again.
        dry_run: Only say what would be removed.
        runs: The folder of runs.
    """
    from mammo_pd.data.forget import forget as forget_images
    from mammo_pd.data.forget import plan_forgetting
    from mammo_pd.data.forget import take_again as let_in
    from mammo_pd.data.record import Record
    from mammo_pd.data.store import open_store
    from mammo_pd.training.runs_on_images import runs_on_images

    if not (patient or image or missing):
        raise InputError("say what to forget: --patient ID, --image IMAGE_ID or --missing.")
    if take_again and (missing or dry_run):
        raise InputError("--take-again only works with --patient or --image.")
    if whole_folders and not missing:
        raise InputError("--whole-folders only works with --missing.")
    paths = open_store(store.resolve())
    if not (paths.private / "images.sqlite").is_file():
        raise InputError(
            f"{store} has no record of its files (it was copied without {paths.private.name}/); "
            "forget the images in the original store, then copy that again."
        )
    with Record(paths) as record:
        if take_again:
            let_in(paths, record, patients=patient or (), images=image or ())
            print("the next preprocess will add them again")
            print(f"next: mammo-pd preprocess DICOM_DIR{_unless_default('--out', store)}")
            return
        plan = plan_forgetting(
            paths,
            record,
            patients=patient or (),
            images=image or (),
            missing=missing,
            whole_folders=whole_folders,
        )
        if not plan.image_ids and not plan.unrecorded:
            print("no file of the store is missing; nothing was removed")
            print(f"next: {_training(store)}")
            return
        # Print this first: once the images are gone from the splits, nothing shows which runs saw
        # them.
        used, unknown = runs_on_images(runs, paths.root, plan.splits, plan.image_ids)
        _print_plan(plan, used, unknown, runs)
        if dry_run:
            # Not echoed: the IDs that were typed may identify women.
            print("\nnothing was removed")
            print("next: the same command without --dry-run, which removes it")
            return
        forgotten = forget_images(paths, record, plan)
    print(
        f"\nremoved {counted(len(plan.image_ids), 'image')}, with manifest rows, from {paths.root}"
        + (", and the unrecorded files of an interrupted preprocess" if plan.unrecorded else "")
    )
    for name, count in forgotten.shortened:
        print(
            f"removed {counted(count, 'row')} of the split {name}; its other images stay where "
            "they were"
        )
    for name in forgotten.removed:
        print(f"removed the split {name}, because one of its parts would have been empty")
    if forgotten.removed:
        place = "" if store == default_store() else f" {shlex.quote(str(store))}"
        print(f"next: mammo-pd split{place} --name NEW")
    elif plan.unrecorded:
        print(f"next: mammo-pd preprocess DICOM_DIR{_unless_default('--out', store)}")
    else:
        print(f"next: {_training(store)}")


def _training(store: Path) -> str:
    from mammo_pd.data.store import StorePaths
    from mammo_pd.data.usual_res import usual_res

    given = _unless_default("--store", store)
    return f"mammo-pd train{given} --res {usual_res(StorePaths(store))} --keep 0.25"


def _unless_default(flag: str, store: Path) -> str:
    return unless_default(flag, store, default_store())


def _print_plan(
    plan: "ToForget", used: list["RunOnImages"], unknown: list[Path], runs: Path
) -> None:
    print(f"{counted(len(plan.image_ids), 'image')} of {counted(plan.patients, 'patient')}")
    for run in used:
        parts = ((run.train, "trained"), (run.val, "validated"), (run.test, "tested"))
        print(f"{run.path} was " + ", ".join(f"{what} on {n} of them" for n, what in parts if n))
    if used:
        print(
            "these runs' weights, predictions, reports, reconstructions.html and MLflow records "
            "are untouched: delete what must go, and train again (to score a run that you keep: "
            "evaluate --accept-other-split)"
        )
    elif runs.is_dir():
        print(f"no run in {runs} is recorded as having used them")
    else:
        print(
            f"warning: there is no folder of runs at {runs}, so it is unknown which runs used "
            "them; name the folder with --runs"
        )
    if plan.unrecorded:
        print(
            f"{counted(plan.unrecorded, 'image')} left unrecorded by an interrupted preprocess: "
            "nothing says whose they are, so all of them are removed, and the next preprocess "
            "recreates those of other patients"
        )
    if plan.not_found:
        print(
            f"warning: no recorded image of {counted(plan.not_found, 'patient')} given with "
            "--patient; preprocess will skip any of their images (if the ID was misspelt: "
            "--take-again)"
        )
    if unknown:
        print(
            f"warning: {counted(len(unknown), 'run')} in {runs} cannot be read, or used a split "
            f"that the store no longer has, and may have used the images, such as {unknown[0]}"
        )
    if plan.files_left:
        print(
            counted(plan.files_left, "source file is", "source files are")
            + " still there, for you to delete; later preprocess runs skip what was forgotten"
        )
    if plan.to_read_again:
        print(
            f"{counted(len(plan.to_read_again), 'copy was', 'copies were')} left out as duplicates "
            "of images whose files are gone; the next preprocess will add them"
        )
    if plan.relatives:
        print(
            f"warning: {counted(len(plan.relatives), 'other patient ID')} with an exam or image in "
            f"common, possibly the same woman: --patient {' '.join(plan.relatives)}"
        )
