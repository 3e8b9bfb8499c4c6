"""The usable images of a store, each with its part of a split: what a run trains on or scores."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.splits import SplitTable, check_split, read_split, with_joined_patients
from mammo_pd.data.store import StorePaths, open_store, read_store_info
from mammo_pd.terms import Split, Status


@dataclass(frozen=True)
class Cohort:
    """The images of one split of one store.

    Attributes:
        paths: the store.
        manifest: one row per image found, usable or not.
        split: checked against the manifest: no patient is on both sides.
        fold: which fold is tested, where the split has folds.
    """

    paths: StorePaths
    manifest: pd.DataFrame
    split: SplitTable
    fold: int | None

    @classmethod
    def read(
        cls,
        store: StorePaths | Path | str,
        split: str | SplitTable,
        fold: int | None = None,
    ) -> "Cohort":
        """Read a store's manifest and one of its splits.

        Args:
            store: opened, or its folder.
            split: its name, or one that is not written yet.
            fold: that is tested, where the split has folds.

        Raises:
            InputError: no such store, split or fold, or a patient on both sides of it.
        """
        paths = store if isinstance(store, StorePaths) else open_store(store)
        manifest = read_manifest(paths.manifest, status=None)
        table = read_split(paths.splits, split) if isinstance(split, str) else split
        check_split(table, manifest)
        return cls(paths, manifest, table, fold)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Manifest rows of the images that the split names, with the column ``split``."""
        parts = self.split.table[["image_id"]].assign(split=self.split.parts(self.fold))
        # A label table may carry a column of that name; the split's own counts.
        usable = self._usable.drop(columns="split", errors="ignore")
        return usable.merge(parts, on="image_id").sort_values("image_id", ignore_index=True)

    def by_patient(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows with one ``patient_id`` for each patient, as the split understands the word.

        An archive may give a woman several IDs. Whoever counts patients, or takes the images of one
        for correlated, must not count her twice.

        Args:
            rows: of usable images of this store.
        """
        return rows.assign(patient_id=rows["image_id"].map(self._patient_of))

    @cached_property
    def _patient_of(self) -> "pd.Series[str]":
        joined = with_joined_patients(self.manifest)
        usable = joined[joined["status"] == Status.OK]
        return usable.set_index("image_id")["patient_id"]

    def part(self, part: Split) -> pd.DataFrame:
        """The rows of one part, labelled or not, in the order of their image IDs."""
        return self.rows[self.rows["split"] == part].reset_index(drop=True)

    @property
    def unassigned(self) -> int:
        """How many usable images the split does not name: they came after it was made."""
        return int((~self._usable["image_id"].isin(self.split.table["image_id"])).sum())

    @cached_property
    def store_info(self) -> dict[str, Any]:
        """What the store was made with; see `mammo_pd.data.store.read_store_info`."""
        return read_store_info(self.paths)

    @property
    def fingerprint(self) -> str:
        """Of everything that decided the store's pixels."""
        return str(self.store_info["fingerprint"])

    @property
    def label_definition(self) -> str | None:
        """What the labels mean, in the label table's own words; None if it does not say."""
        definition = self.store_info.get("labels", {}).get("definition")
        return None if definition is None else str(definition)

    @property
    def _usable(self) -> pd.DataFrame:
        return self.manifest[self.manifest["status"] == Status.OK]


def hash_targets(
    image_ids: pd.Series, targets: npt.NDArray[np.float32], groups: Iterable[str] | None = None
) -> str:
    """Of which images are labelled, and how; it changes if one label does, not with the order.

    Args:
        image_ids: of the labelled images.
        targets: (images, T) float32, NaN where one is missing.
        groups: of the images, where it matters which are together.
    """
    lines = [
        f"{image_id},{','.join(f'{value:.9g}' for value in values)}"
        for image_id, values in zip(image_ids, targets.tolist(), strict=True)
    ]
    if groups is not None:
        lines = [f"{line},{group}" for line, group in zip(lines, groups, strict=True)]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
