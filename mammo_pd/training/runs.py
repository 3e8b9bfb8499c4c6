"""The run folder: how it is written, read, found, compared with a store, and refused.

runs/ID/
run.json              what the run was made with
config.yaml           its whole configuration
history.csv           one row per epoch
model.safetensors     weights of the epoch that is kept, under timm's names
last.safetensors      everything that training needs to go on after a whole epoch
midway.safetensors    the same within an epoch, while it lasts
predictions.csv       of evaluate; predictions.json says of which weights and images
reconstructions.html  of pretrain: what dropped patches of some validation images were predicted as
run.lock              held while it is trained
tracking.jsonl        what MLflow is told; tracking.json says how much of it each MLflow has
"""

import json
import math
import secrets
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from mammo_pd.config import EARLIER_DEFAULTS, RunConfig, dump_config, load_config
from mammo_pd.data.cohort import Cohort
from mammo_pd.data.splits import has_lost_images
from mammo_pd.errors import InputError, cause_of
from mammo_pd.files import load_json, remove_leftovers, write_text
from mammo_pd.normalization import Normalization

# Keys of run.json that earlier versions wrote under another name.
_RENAMED = {"canvas": "img_size"}


@dataclass(frozen=True)
class RunInfo:
    """What a run was made with, as run.json holds it.

    Attributes:
        run_id: the folder's name; sorted by it is sorted by time.
        started: ISO 8601, local time with its offset.
        store: absolute path of the store.
        store_fingerprint: of what decided the store's pixels.
        label_definition: what the labels mean; None if the label table does not say.
        split: name.
        split_hash: of its content.
        labels_hash: of which images are labelled, and how.
        fold: that is tested; None for a split without folds.
        model: timm's name.
        img_size: (height, width) in pixels.
        num_tokens: N.
        num_keep: K of most epochs.
        environment: versions and device.
        normalization: of the input; earlier versions knew .5 and .5 alone.
        weights: what became of pretrained ones, as
            `mammo_pd.backbones.weights.report.WeightsReport` makes it; None for random ones.
        mlflow_run_id: of its record in MLflow, once that was begun.
        mlflow_parent_run_id: of the record that it is nested under, for a cross-validation's run.
        number: one above that of the runs that were there: later runs have higher ones, whatever
            the clock says; 0 in earlier versions.
        finished: when, once it is.
        validation: then, metrics of the epoch that is kept, on the validation images, read as
            `mammo_pd.inference.predict.predict` reads them.
        targets_hash: of the training images' targets, and of their groups where classes are
            balanced within such; None in earlier versions.
    """

    run_id: str
    started: str
    store: str
    store_fingerprint: str
    label_definition: str | None
    split: str
    split_hash: str
    labels_hash: str
    fold: int | None
    model: str
    img_size: tuple[int, int]
    num_tokens: int
    num_keep: int
    environment: dict[str, Any]
    normalization: Normalization = field(default_factory=Normalization)
    weights: dict[str, Any] | None = None
    mlflow_run_id: str | None = None
    mlflow_parent_run_id: str | None = None
    number: int = 0
    finished: str | None = None
    validation: dict[str, float] | None = None
    targets_hash: str | None = None


def weights_in(folder: Path, checkpoint: str = "model") -> Path:
    """The file with the weights of a run's model, or of its last epoch.

    Args:
        folder: of the run.
        checkpoint: ``model``, or ``last`` for the last epoch.
    """
    file = folder / f"{checkpoint}.safetensors"
    # As it is called in runs that were started before there was a choice of the epoch.
    before = folder / "best.safetensors"
    return before if checkpoint == "model" and before.is_file() else file


@dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    Attributes:
        path: the folder.
        info: of run.json.
        config: of config.yaml.
    """

    path: Path
    info: RunInfo
    config: RunConfig

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Read a run.

        Raises:
            InputError: not a run folder, or one whose files are damaged.
        """
        file = path / "run.json"
        if not file.exists():
            if (path / "cv.json").is_file():
                raise InputError(
                    f"{path} is a cross-validation; name one of its runs, such as "
                    f"{path / 'fold0-seed0'}."
                )
            cause = "there is no such folder"
            if path.exists():
                cause = "it holds no run.json" if path.is_dir() else "it is a file"
            raise InputError(
                f"{path} is not a run: {cause}; name a folder that mammo-pd train made."
            )
        try:
            given: dict[str, Any] = load_json(file.read_text(encoding="utf-8"))
            known = {one.name for one in fields(RunInfo)}
            named = {_RENAMED.get(name, name): value for name, value in given.items()}
            info = RunInfo(**{name: value for name, value in named.items() if name in known})
            height, width = info.img_size
            info = replace(info, img_size=(int(height), int(width)))
            if isinstance(info.normalization, dict):
                info = replace(info, normalization=Normalization(**info.normalization))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is not a run ({file.name} cannot be read: {cause_of(error)}); name a "
                "folder that mammo-pd train made."
            ) from error
        return cls(path, info, load_config(path / "config.yaml", defaults=EARLIER_DEFAULTS))

    @classmethod
    def latest(cls, runs: Path) -> "RunFolder":
        """The run that was started last.

        Raises:
            InputError: there is none, or one whose number cannot be read.
        """
        started = sorted((_number_in(file), file.parent) for file in runs.glob("*/run.json"))
        if not started:
            # No --res: which sizes there are depends on the store, which is not known here.
            raise InputError(
                f"there is no run in {runs}; train one with: mammo-pd train --keep 0.25"
            )
        _, last = started[-1]
        return cls.open(last)

    @classmethod
    def find(cls, runs: Path, named: Path) -> "RunFolder":
        """A run by its folder, or by its ID in the folder of runs."""
        by_id = runs / named
        return cls.open(by_id if not named.exists() and by_id.is_dir() else named)

    @property
    def chosen(self) -> Path:
        """Weights of the epoch that is kept: the run's model."""
        return weights_in(self.path)

    @property
    def last(self) -> Path:
        """Everything that training needs to go on after a whole epoch."""
        return self.path / "last.safetensors"

    @property
    def midway(self) -> Path:
        """The same within an epoch; gone once that is over."""
        return self.path / "midway.safetensors"

    @property
    def has_checkpoint(self) -> bool:
        """Whether training goes on from somewhere, and not from the start."""
        return self.last.is_file() or self.midway.is_file()

    @property
    def history(self) -> Path:
        """One row per epoch."""
        return self.path / "history.csv"

    @property
    def predictions(self) -> Path:
        """What evaluate scored."""
        return self.path / "predictions.csv"

    @property
    def reconstructions(self) -> Path:
        """A page of what a pretraining makes of dropped patches."""
        return self.path / "reconstructions.html"

    @property
    def journal(self) -> Path:
        """What MLflow is told."""
        return self.path / "tracking.jsonl"

    @property
    def journal_state(self) -> Path:
        """How much of that each MLflow has."""
        return self.path / "tracking.json"

    @property
    def lock(self) -> Path:
        """Held by the process that trains the run."""
        return self.path / "run.lock"

    def create(self) -> "RunFolder":
        """Write the folder; from here on the run can be resumed, if only from its start.

        Returns:
            The run with its number.
        """
        numbers = [_number_in(file) for file in self.path.parent.glob("*/run.json")]
        self.path.mkdir(parents=True)
        write_text(self.path / "config.yaml", dump_config(self.config))
        return self.update(number=1 + int(max(filter(math.isfinite, numbers), default=0)))

    def update(self, **changes: Any) -> "RunFolder":
        """Write run.json with some of its fields changed."""
        changed = replace(self, info=replace(self.info, **changes))
        changed._write()
        return changed

    def remove(self) -> None:
        """Remove a run that holds nothing yet: its description alone.

        Raises:
            OSError: the folder holds more.
        """
        (self.path / "config.yaml").unlink(missing_ok=True)
        (self.path / "run.json").unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)
        self.journal_state.unlink(missing_ok=True)
        self.lock.unlink(missing_ok=True)
        self.path.rmdir()

    def remove_leftovers(self) -> None:
        """Remove what a killed training was writing; checkpoints are gigabytes."""
        remove_leftovers(self.path, "*.safetensors", self.history.name, self.journal_state.name)
        # safetensors has a temporary file of its own.
        for beside in self.path.glob(".tmp??????"):
            beside.unlink(missing_ok=True)

    def refuse_resuming_on(self, cohort: Cohort, labels_hash: str, targets_hash: str) -> None:
        """Check that a run goes on with what it was started on.

        Args:
            cohort: to be trained on.
            labels_hash: of it, for the run's objective.
            targets_hash: of it, for the run's objective and settings.

        Raises:
            InputError: split, store settings, labels or targets are others.
        """
        info = self.info
        if self._lost_images(cohort):
            raise InputError(
                f"images were removed from the split {cohort.split.name!r} (mammo-pd forget) since "
                f"the run {info.run_id} was started; start a new run without --resume, which "
                "learns from those that are left."
            )
        if info.split_hash != cohort.split.hash:
            raise InputError(
                f"the run {info.run_id} was started on another split {cohort.split.name!r}; "
                "restore that split, or start a new run without --resume."
            )
        if info.store_fingerprint != cohort.fingerprint:
            raise InputError(
                f"the run {info.run_id} was started on a store made with other settings; start a "
                "new run without --resume."
            )
        if info.labels_hash != labels_hash:
            raise InputError(
                f"the labels in {cohort.paths.root} have changed since the run {info.run_id} was "
                "started; restore them with mammo-pd preprocess --labels, or start a new run "
                "without --resume."
            )
        if self.has_other_targets(targets_hash):
            raise InputError(
                f"the values of {self._target_columns()} in {cohort.paths.root} have changed since "
                f"the run {info.run_id} was started; restore them with mammo-pd preprocess "
                "--labels, or start a new run without --resume."
            )

    def refuse_scoring_on(
        self,
        cohort: Cohort,
        labels_hash: str,
        targets_hash: str | None,
        *,
        accept_other_split: bool,
    ) -> None:
        """Check that a run is judged on the images that were kept from it.

        Args:
            cohort: to be scored.
            labels_hash: of it, for the run's objective.
            targets_hash: of it, for the run's objective and settings; None where it has none.
            accept_other_split: the user vouches for another split or other labels.

        Raises:
            InputError: store settings, and unless accepted split, labels or targets, are others.
        """
        info = self.info
        if info.store_fingerprint != cohort.fingerprint:
            raise InputError(
                f"the run {info.run_id} was trained on a store made with other settings than "
                f"{cohort.paths.root}; name its own with --store."
            )
        if accept_other_split:
            return
        if self._lost_images(cohort):
            raise InputError(
                f"images were removed from the split {cohort.split.name!r} of {cohort.paths.root} "
                f"(mammo-pd forget) since the run {info.run_id} was trained; the others are on the "
                "sides that they were on, so none that is tested was trained on. Give "
                "--accept-other-split to score those that are left."
            )
        if info.split_hash != cohort.split.hash:
            raise InputError(
                f"the split {cohort.split.name!r} of {cohort.paths.root} is not the one that the "
                f"run {info.run_id} was trained on, so it may be tested on images that it was "
                "trained on; restore the split, or give --accept-other-split if you know that no "
                "patient is on both sides."
            )
        if info.labels_hash != labels_hash:
            raise InputError(
                f"the labels in {cohort.paths.root} have changed since the run {info.run_id} was "
                "trained; restore them with mammo-pd preprocess --labels, or give "
                "--accept-other-split to score the run by the labels as they are now."
            )
        if self.has_other_targets(targets_hash):
            raise InputError(
                f"the values of {self._target_columns()} in {cohort.paths.root} have changed since "
                f"the run {info.run_id} was trained by them; restore them with mammo-pd preprocess "
                "--labels, or give --accept-other-split to score the run as it is."
            )

    def has_other_targets(self, targets_hash: str | None) -> bool:
        """Whether it was trained by other targets or groups; False where an earlier version was."""
        return self.info.targets_hash not in (None, targets_hash)

    def _target_columns(self) -> str:
        training = self.config.training
        named = {
            "target_column": training.target_column,
            "balance_within": training.balance_within,
        }
        told = [f"training.{key} {column}" for key, column in named.items() if column is not None]
        return " and ".join(told) or "the training targets"

    def _lost_images(self, cohort: Cohort) -> bool:
        return has_lost_images(cohort.paths.splits, cohort.split.name, self.info.split_hash)

    def _write(self) -> None:
        write_text(self.path / "run.json", json.dumps(asdict(self.info), indent=2) + "\n")


def _number_in(file: Path) -> float:
    """A run's number; infinite where it cannot be read, for it may be the latest."""
    try:
        number = load_json(file.read_text(encoding="utf-8")).get("number", 0)
    except (OSError, ValueError, AttributeError):
        return math.inf
    return number if isinstance(number, int) else math.inf


def new_run_id() -> str:
    """An ID that sorts by time, with four random digits for runs of the same second."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def timestamp() -> str:
    """Now, in ISO 8601 with the local offset."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
