"""``mammo-pd pretrain``: a store's images, without their labels, to weights to train from."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from mammo_pd.cli.config_flags import ConfigFlags
from mammo_pd.cli.options import (
    DEFAULT_RUNS,
    FoldOption,
    NamedStoreOption,
    ResumeOption,
    RunsOption,
    SeedOption,
    WholeNumber,
    default_store,
    unless_default,
)
from mammo_pd.cli.train import resuming, run_to_resume, train_or_resume
from mammo_pd.errors import InputError
from mammo_pd.terms import ScoredPatches
from mammo_pd.wording import counted

if TYPE_CHECKING:
    from mammo_pd.config import RunConfig
    from mammo_pd.training.runs import RunFolder

_OBJECTIVE = "masked_autoencoder"
# As He et al. have it, but for the number of epochs, which is theirs at a quarter: many passes, a
# long warm-up, no stochastic depth.
_DEFAULTS = {
    "training.objective": _OBJECTIVE,
    "training.epochs": 200,
    "training.warmup_epochs": 10.0,
    "model.drop_path_rate": 0.0,
}
# Settings about labels that a configuration for train may contain; unused here.
_OF_LABELS = ("monitor", "positive_share", "balance_within")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PretrainFlags(ConfigFlags):
    """Settings of a run, as of train.

    Attributes:
        epochs: Passes over the training images.
        target: Not available in pretrain, which uses no labels.
    """

    epochs: Annotated[WholeNumber | None, Parameter(metavar="N", show_default="200")] = None
    target: Annotated[list[str] | None, Parameter(show=False)] = None


_NONE_GIVEN = PretrainFlags()


def pretrain(
    *,
    store: NamedStoreOption = None,
    runs: RunsOption = DEFAULT_RUNS,
    settings: PretrainFlags = _NONE_GIVEN,
    seed: SeedOption = None,
    fold: FoldOption = None,
    resume: ResumeOption = None,
) -> None:
    """Pretrain on images without labels, as a masked autoencoder.

    Learns to predict dropped patches from the training part of the split, labelled
    or not, and never sees a woman of the test part. Start train from its
    model.safetensors, on the same split and fold.

    For example:

        mammo-pd pretrain --store store --keep 0.25
        mammo-pd pretrain --config configs/finetune.yaml --epochs 100
        mammo-pd pretrain --resume

    Args:
        store: The store that preprocess made.
        runs: The folder of runs.
        settings: See `ConfigFlags`.
        seed: Seed of the weights, the order of images, the patch draws and the augmentation.
        fold: Fold whose women are left out, if the split has folds.
        resume: Continue a run from its last checkpoint, by default the latest run.
    """
    stopped = run_to_resume("pretrain", runs, resume, settings, (seed, fold))
    if stopped is not None:
        _refuse_other_objective(stopped)
    config = _config(settings, {"--seed": seed, "--fold": fold})
    folder = train_or_resume("pretrain", store, runs, resume, config, stopped)
    if folder is None:
        return  # only the first of several processes reports
    from mammo_pd.tracking import page_of_runs
    from mammo_pd.training.runs import RunFolder

    run = RunFolder.open(folder)
    try:
        page = write_reconstructions(run, store)
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)(resuming("pretrain", runs, [folder])) from None
    print(f"\nwrote {folder}: {run.chosen.name}, last.safetensors, history.csv, config.yaml")
    print(f"look at: {shlex.quote(str(page))}")
    print(f"metrics: {page_of_runs(folder.parent)}")
    print(f"next: {_training_from(run, store)}")


def _training_from(run: "RunFolder", store: Path | None) -> str:
    """The command that starts training from a run's weights, on the same split and fold."""
    height, width = run.info.img_size
    stored = store or Path(run.info.store)
    return (
        f"mammo-pd train --weights {shlex.quote(str(run.chosen))} --model {run.info.model} "
        f"--res {height}x{width} --set training.layer_decay=0.65"
        + unless_default("--store", stored.resolve(), default_store().resolve())
        + unless_default("--split", run.info.split, "default")
        + unless_default("--fold", run.info.fold, None)
    )


def _config(settings: PretrainFlags, further: "dict[str, object]") -> "RunConfig":
    """The run's configuration; the file may be one written for train.

    Raises:
        InputError: a value is refused, or is given beside the file and says how labels are learnt.
    """
    if settings.target:
        raise InputError(
            "--target has no effect in pretrain, which predicts dropped patches and uses no "
            "labels; drop it, or use mammo-pd train."
        )
    given = {assignment.partition("=")[0].strip() for assignment in settings.assignments or ()}
    for name in ("objective", *_OF_LABELS):
        if f"training.{name}" in given:
            raise InputError(
                f"--set training.{name} has no effect in pretrain, which predicts dropped patches "
                "and uses no labels; drop it, or use mammo-pd train."
            )
    if "patch_dropout.score_on" in given:
        raise InputError(
            "--set patch_dropout.score_on has no effect in pretrain, which scores no image; drop "
            "it, and give it to the mammo-pd train that follows."
        )
    config = settings.load(further, _DEFAULTS)
    without = dict.fromkeys(_OF_LABELS)
    return config.replace(
        training=config.training.replace(objective=_OBJECTIVE, **without),
        patch_dropout=config.patch_dropout.replace(score_on=ScoredPatches.ALL),
    )


def write_reconstructions(run: "RunFolder", store: Path | None) -> Path:
    """Write a finished run's page of reconstructions, and keep it in a local MLflow.

    Args:
        run: of a masked autoencoder.
        store: where the store lies now; None for where the run was trained from.

    Returns:
        The page.
    """
    from mammo_pd.data.manifest import read_manifest
    from mammo_pd.data.store import open_store
    from mammo_pd.files import write_text
    from mammo_pd.inference.reconstruct import reconstruct
    from mammo_pd.report.reconstructions import ReconstructionRow, reconstructions_page
    from mammo_pd.tracking import keep_page

    manifest = read_manifest(open_store(store or Path(run.info.store)).manifest)
    text = reconstructions_page(
        [
            ReconstructionRow(
                (one.original, one.kept, one.predicted, one.means), one.error, one.share
            )
            for one in reconstruct(run, store=store)
        ],
        run_id=run.info.run_id,
        model=run.info.model,
        made_with=f"{run.info.num_keep} of {run.info.num_tokens} patches kept, "
        f"{run.config.patch_dropout.draw} draw, {counted(run.config.training.epochs, 'epoch')}",
        phantom=bool(manifest["phantom"].fillna(False).any()),
    )
    page = run.reconstructions
    write_text(page, text)
    if run.info.mlflow_run_id is not None:
        problem = keep_page(run.path.parent, run.info.mlflow_run_id, page)
        if problem is not None:
            print(f"warning: {problem}")
    return page


def _refuse_other_objective(run: "RunFolder") -> None:
    if run.config.training.objective != _OBJECTIVE:
        raise InputError(
            f"the run {run.info.run_id} was not made by pretrain; name one that was, or resume "
            f"this one with: mammo-pd train --resume {shlex.quote(str(run.path))}"
        )
