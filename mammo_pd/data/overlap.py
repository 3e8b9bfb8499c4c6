"""What two stores share: women by their hashed IDs, pictures by their pixels.

Hashes of one store mean nothing in another unless both have the same key, but equal pixels are
equal whatever the key.
"""

import contextlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mammo_pd.data.kept_levels import kept_levels, levels_of
from mammo_pd.data.store import StorePaths, read_pyramid_level
from mammo_pd.errors import InputError
from mammo_pd.wording import counted

# Copies of one picture have these in common, whatever they are named.
_SHAPE = ["crop_height", "crop_width", "breast_area_fraction"]


@dataclass(frozen=True)
class Overlap:
    """What a store shares with the one that a model was made on.

    Attributes:
        patients: of its patient IDs, how many are in the other store too.
        images: how many of its images have the same pixels as one of the other store.
        one_key: whether both stores hash with the same key, so that IDs can be compared; None where
            a store was handed on without its key.
    """

    patients: int
    images: int
    one_key: bool | None

    def sentence(self) -> str:
        """What was compared, and what could not be."""
        pixels = counted(self.images, "image has", "images have") if self.images else "no image has"
        compared = (
            "Compared with every image of the development store, including the training images: "
            f"{pixels} the pixels of one of them"
        )
        if self.one_key or self.patients:
            found = self.patients or "none"
            return f"{compared}, and of the patient IDs {found} are in both."
        why = (
            "have different keys"
            if self.one_key is False
            else "do not both include the key of their hashes"
        )
        return (
            f"{compared}. Patient IDs could not be compared, because the stores {why}: other "
            "images of the same women would go unnoticed."
        )


def find_overlap(
    development: StorePaths,
    developed_on: pd.DataFrame,
    external: StorePaths,
    tested: pd.DataFrame,
) -> Overlap:
    """Compare two stores by patient ID and by pixels.

    Only pictures of one size and breast area are read, at the largest level that both stores keep.

    Args:
        development: the store that a model was trained, or its thresholds chosen, on.
        developed_on: its usable manifest rows.
        external: another store.
        tested: the usable manifest rows of that.
    """
    patients = set(developed_on["patient_id"].dropna()) & set(tested["patient_id"].dropna())
    keys = [_key(paths) for paths in (development, external)]
    pairs = developed_on.dropna(subset=_SHAPE)[["image_id", *_SHAPE]].merge(
        tested.dropna(subset=_SHAPE)[["image_id", *_SHAPE]], on=_SHAPE, suffixes=("", "_tested")
    )
    long_sides = pairs[_SHAPE[:2]].max(axis=1).tolist()
    names = zip(pairs["image_id"].tolist(), pairs["image_id_tested"].tolist(), strict=True)
    kept = [kept_levels(paths) for paths in (development, external)]
    same: set[str] = set()
    for (one, other), long_side in zip(names, long_sides, strict=True):
        if other in same:
            continue
        first, second = (levels_of(long_side, levels) for levels in kept)
        level = next((name for name in first if name in second), None)
        # A level that is lost is told of when it is needed.
        with contextlib.suppress(InputError):
            if level is not None and np.array_equal(
                read_pyramid_level(development, one, level),
                read_pyramid_level(external, other, level),
            ):
                same.add(other)
    return Overlap(len(patients), len(same), None if None in keys else keys[0] == keys[1])


def _key(paths: StorePaths) -> bytes | None:
    try:
        return (paths.private / "key").read_bytes()
    except OSError:
        return None
