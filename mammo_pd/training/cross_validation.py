"""A cross-validation: one run for each fold and seed, in one folder that can be gone on with.

runs/cv-NAME/
cv.json               what its runs are made with
config.yaml           their configuration, but for fold and seed
fold0-seed0/          a run folder for each
fold0-seed0.log       what that run printed
report/               of the out-of-fold predictions
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mammo_pd.config import EARLIER_DEFAULTS, RunConfig, dump_config, load_config
from mammo_pd.data.splits import has_lost_images, read_folds
from mammo_pd.data.store import StorePaths, open_store
from mammo_pd.errors import InputError, cause_of
from mammo_pd.files import load_json, write_text
from mammo_pd.locks import locked
from mammo_pd.training.model_card import without_paths
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.run_data import RunData, labels_hash, targets_hash
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.setup import RunSetup
from mammo_pd.training.train import reopen_run, start_run

_LOCK = "cv.lock"


@dataclass(frozen=True)
class CrossValidationInfo:
    """What the runs of a cross-validation are made with, as cv.json holds it.

    Attributes:
        store: absolute path of the store.
        store_fingerprint: of what decided the store's pixels.
        split_hash: of the split's content.
        labels_hash: of which images are labelled, and how.
        folds: of the split.
        mlflow_run_id: of its record in MLflow, once that was begun.
        targets_hash: of all folds' training targets and groups; None in earlier versions.
    """

    store: str
    store_fingerprint: str
    split_hash: str
    labels_hash: str
    folds: int
    mlflow_run_id: str | None = None
    targets_hash: str | None = None


@dataclass(frozen=True)
class CrossValidation:
    """A cross-validation on disk.

    Attributes:
        path: its folder.
        info: of cv.json.
        config: of config.yaml; its seed is the first one.
    """

    path: Path
    info: CrossValidationInfo
    config: RunConfig

    @classmethod
    def plan(cls, path: Path, store: Path, config: RunConfig) -> "CrossValidation":
        """Check every fold of a cross-validation before the first is trained; write nothing.

        Args:
            path: the folder.
            store: made by preprocess; it may have moved since the cross-validation was begun.
            config: of all runs; its fold is None.

        Raises:
            InputError: the split has no folds, a fold cannot be trained on with these settings, or
                the folder holds something else.
        """
        planned = cls(path, _describe(store, config), config)
        holds = {one.name for one in path.iterdir()} if path.is_dir() else set()
        if "cv.json" not in holds and not holds <= {_LOCK, "config.yaml"}:
            raise InputError(
                f"{path} exists and is not a cross-validation; name another folder with --out."
            )
        return planned

    @contextmanager
    def begun(self) -> Iterator["CrossValidation"]:
        """Make the folder of a planned one, or go on with one begun with the same; hold its lock.

        While none of its runs is begun, it may be begun with other settings: what was refused is
        mended in the same place.

        Raises:
            InputError: runs were begun with other settings, split or store; or another process is
                at it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path / _LOCK):
            yield self._begin()

    def _begin(self) -> "CrossValidation":
        if (self.path / "cv.json").is_file():
            begun = CrossValidation.open(self.path)
            differences = begun.differences(self)
            if not differences:
                # With what an earlier version did not write: `train --config` may be given it.
                write_text(self.path / "config.yaml", dump_config(begun.config))
                return begun.update(store=self.info.store)
            if any(self.path.glob("fold*-seed*/run.json")):
                name, splits = self.config.data.split, StorePaths(Path(self.info.store)).splits
                if has_lost_images(splits, name, begun.info.split_hash):
                    raise InputError(
                        f"images were removed from the split {name!r} (mammo-pd forget) since "
                        f"{self.path} was started; start again in another folder with --out. Runs "
                        "that are trained can be scored with: mammo-pd evaluate RUN... "
                        "--accept-other-split"
                    )
                raise InputError(
                    f"{self.path} was started differently: {'; '.join(differences)}; restore that "
                    "to continue, or start again in another folder with --out."
                )
        write_text(self.path / "config.yaml", dump_config(self.config))
        # Last, since it is what a cross-validation is recognised by.
        return self.update()

    @classmethod
    def open(cls, path: Path) -> "CrossValidation":
        """Read a cross-validation.

        Raises:
            InputError: not the folder of one, or its files are damaged.
        """
        file = path / "cv.json"
        try:
            info = CrossValidationInfo(**load_json(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{path} is not a cross-validation ({file.name} cannot be read: "
                f"{cause_of(error)}); name a folder that mammo-pd cv made."
            ) from error
        return cls(path, info, load_config(path / "config.yaml", defaults=EARLIER_DEFAULTS))

    def update(self, **changes: Any) -> "CrossValidation":
        """Write cv.json with some of its fields changed."""
        changed = replace(self, info=replace(self.info, **changes))
        text = json.dumps(asdict(changed.info), indent=2) + "\n"
        write_text(self.path / "cv.json", text)
        return changed

    def differences(self, asked: "CrossValidation") -> list[str]:
        """In what settings, store, split or labels differ from what is asked for, in words."""
        differences = [
            f"{key} was {before} and is now {now}"
            for key, before, now in _differences(self.config, asked.config)
        ]
        for name, word in (
            ("store_fingerprint", "the store was made with other settings"),
            ("split_hash", f"the split {asked.config.data.split!r} is a different one"),
            ("labels_hash", "the labels have changed"),
            ("targets_hash", "the values of target_column or balance_within have changed"),
        ):
            before = getattr(self.info, name)
            # A split of another name has been spoken of.
            if before not in (None, getattr(asked.info, name)) and not differences:
                differences.append(word)
        return differences

    def description(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Parameters and tags for MLflow; paths of this machine stay on it."""
        parameters = without_paths(self.config).model_dump(mode="json")
        hashes = {"split_hash": self.info.split_hash}
        hashes["store_fingerprint"] = self.info.store_fingerprint
        return {**parameters, "folds": self.info.folds}, hashes

    def name_of(self, fold: int, seed: int) -> str:
        """The name of a run, and of its folder."""
        return f"fold{fold}-seed{seed}"

    def run_path(self, fold: int, seed: int) -> Path:
        """The folder of a run, begun or not."""
        return self.path / self.name_of(fold, seed)

    def log_path(self, fold: int, seed: int) -> Path:
        """What a run printed; beside its folder, which only the run itself makes."""
        return self.path / f"{self.name_of(fold, seed)}.log"

    def config_of(self, fold: int, seed: int) -> RunConfig:
        """The configuration of a run."""
        return self.config.replace(
            data=self.config.data.replace(fold=fold),
            training=self.config.training.replace(seed=seed),
        )

    def is_finished(self, fold: int, seed: int) -> bool:
        """Whether a run was trained to its end."""
        path = self.run_path(fold, seed)
        return (path / "run.json").is_file() and RunFolder.open(path).info.finished is not None

    def prepare_run(self, fold: int, seed: int) -> tuple[RunSetup, RunFolder]:
        """Begin a run, or go on with it where it was begun; for `mammo_pd.training.loop.fit`.

        Raises:
            InputError: something given cannot be used, or the store is not what it was.
        """
        path, store = self.run_path(fold, seed), Path(self.info.store)
        if (path / "run.json").is_file():
            return reopen_run(path, store=store)
        # Killed while it was made, a run has a configuration at most.
        if path.is_dir():
            (path / "config.yaml").unlink(missing_ok=True)
            path.rmdir()
        setup = RunSetup.build(store, self.config_of(fold, seed))
        run = start_run(
            self.path, setup, run_id=path.name, mlflow_parent_run_id=self.info.mlflow_run_id
        )
        return setup, run


def _describe(store: Path, config: RunConfig) -> CrossValidationInfo:
    """Check all folds, and say what they rest on."""
    paths, name = open_store(store), config.data.split
    objective = build_objective(config.training)
    if objective.is_pretext:
        raise InputError(
            f"{config.training.objective} has no scores to cross-validate; make each fold's "
            "weights with: mammo-pd pretrain --fold I"
        )
    folds = read_folds(paths.splits, name).folds or 0
    targets = []
    for fold in range(folds):
        of_fold = config.replace(data=config.data.replace(fold=fold))
        # What is to be said of it, its run says.
        cohort = RunData.read(store, of_fold, say=lambda _: None).cohort
        targets.append(targets_hash(cohort, objective, config.training))
    return CrossValidationInfo(
        store=str(paths.root.resolve()),
        store_fingerprint=cohort.fingerprint,
        split_hash=cohort.split.hash,
        # The parts of any fold together are all images.
        labels_hash=labels_hash(cohort, objective),
        folds=folds,
        targets_hash=hashlib.sha256("".join(targets).encode()).hexdigest(),
    )


def _differences(before: RunConfig, now: RunConfig) -> Sequence[tuple[str, object, object]]:
    """Keys of the configuration whose values differ, with both values.

    What the report states of the study changes no run, and may be added once all are trained.
    """
    old, new = (one.model_dump(mode="json", exclude={"study"}) for one in (before, now))
    return [
        (f"{section}.{key}", old[section][key], value)
        for section, values in new.items()
        for key, value in values.items()
        if value != old[section][key] and (section, key) != ("training", "seed")
    ]
