"""A store as a MONAI data set, for MONAI's loaders, transforms and networks.

In: a store with a split. Out: dictionaries with the image as a `MetaTensor` and plain values that
MONAI's loaders collate. Nothing else in the package needs MONAI to read a store.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.data import Dataset, MetaTensor
from monai.transforms import Compose, Transform
from pandas.api.types import is_string_dtype

from mammo_pd.data.kept_levels import refuse_missing_levels
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.splits import check_split, read_split
from mammo_pd.data.store import StorePaths, open_store, read_pyramid_level
from mammo_pd.errors import InputError
from mammo_pd.terms import PYRAMID_LONG_SIDES, Split

# Manifest columns that a sample holds itself; all others are in the image's ``meta``.
_SAMPLE_FIELDS = ("image_id", "patient_id", "exam_id", "laterality", "view")
_SPACING = ("imager_pixel_spacing_row", "imager_pixel_spacing_column")


class MammogramStoreDataset(Dataset):
    """The images of one part of a split.

    Each sample holds

    - ``image``: (1, H, W) float32 `MetaTensor` in [0, 1], as networks and intensity transforms
      expect; 1 is the uint16 maximum. The chest wall is on the left and what is not breast is 0.
      Its affine has the imager pixel spacing of this level in mm (rows, then columns; at the
      detector, not corrected for magnification), with the first pixel as origin. Its ``meta`` has
      the image's other manifest columns, ``level``, and ``spacing_known``: where that is false,
      the affine is the identity.
    - ``label``: float, 1 or 0; NaN if unknown.
    - ``image_id``, ``patient_id``, ``exam_id``, ``laterality``, ``view``: text.

    Missing text is ``""`` and any other missing value NaN, so that batches can be collated.

    ``data`` (plain dictionaries, no pixels) and ``transform`` fit MONAI's other data sets, for
    example ``PersistentDataset(dataset.data, dataset.transform, cache_dir)``; filter ``data`` for a
    subset.

    Args:
        store: the store's folder.
        level: long side of the pyramid level in pixels, or "native". An image that is not larger
            than the level comes at its native size.
        split: name of a split in the store, which is checked for leaks.
        part: ``train``, ``val`` or ``test``.
        fold: with a split into folds, the one that is tested on.
        transform: MONAI dictionary transforms, applied to each sample.

    Raises:
        InputError: no such store, level, split, part or fold; a level that the store does not keep;
            or a patient on two sides of the split.
    """

    def __init__(
        self,
        store: Path | str,
        *,
        level: int | str = 1024,
        split: str = "default",
        part: str = Split.TRAIN,
        fold: int | None = None,
        transform: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
    ) -> None:
        if str(level) not in {"native", *map(str, PYRAMID_LONG_SIDES)}:
            raise InputError(
                f"there is no level {level!r}; choose one of native, "
                f"{', '.join(map(str, PYRAMID_LONG_SIDES))}."
            )
        if part not in set(Split):
            raise InputError(f"there is no part {part!r}; choose one of {', '.join(Split)}.")
        paths = open_store(Path(store))
        manifest = read_manifest(paths.manifest, status=None)
        table = read_split(paths.splits, split)
        check_split(table, manifest)
        wanted = table.table["image_id"][table.parts(fold) == part]
        rows = manifest[manifest["image_id"].isin(wanted)]
        given = () if transform is None else transform
        following = list(given) if isinstance(given, Sequence) else [given]
        samples = _samples(rows, str(level))
        meta = [sample["image"] for sample in samples]
        refuse_missing_levels(
            paths,
            ((one["level"], max(one["crop_height"], one["crop_width"])) for one in meta),
            f"level={level!r}",
        )
        super().__init__(samples, Compose([ReadPyramidLeveld(paths), *following]))


class ReadPyramidLeveld(Transform):
    """Replace a sample's ``image``, the description of what to read, by the pixels.

    Args:
        paths: the store.
    """

    def __init__(self, paths: StorePaths) -> None:
        self.paths = paths

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read one image.

        Raises:
            InputError: its file is missing or damaged; a `Compose` raises it as the cause of a
                RuntimeError.
        """
        sample = dict(data)
        meta: dict[str, Any] = dict(data["image"])
        stored = read_pyramid_level(self.paths, str(data["image_id"]), meta["level"])
        # The only copy: from the mapped file, through the division, into memory of its own.
        pixels = np.divide(stored[None], np.float32(65535), dtype=np.float32)
        # A level's pixels are larger than native ones by the ratio of the sizes, which rounding
        # makes a little different for rows and columns.
        native = meta["crop_height"], meta["crop_width"]
        spacing = [
            meta[name] * size / small
            for name, size, small in zip(_SPACING, native, stored.shape, strict=True)
        ]
        meta["spacing_known"] = all(map(math.isfinite, spacing))
        if not meta["spacing_known"]:
            spacing = [1.0, 1.0]
        affine = torch.diag(torch.tensor([*spacing, 1.0, 1.0], dtype=torch.float64))
        sample["image"] = MetaTensor(torch.from_numpy(pixels), affine=affine, meta=meta)
        return sample


def _samples(rows: pd.DataFrame, level: str) -> list[dict[str, Any]]:
    long_sides = rows[["crop_height", "crop_width"]].max(axis=1)
    levels = [
        level if level != "native" and int(level) < long_side else "native"
        for long_side in long_sides
    ]
    plain = pd.DataFrame({name: _plain(column) for name, column in rows.items()})
    about = plain.drop(columns=[*_SAMPLE_FIELDS, "label"]).assign(
        level=levels,
        # By this MONAI's SaveImage names what it writes; every level's file has the same name.
        filename_or_obj=plain["image_id"],
    )
    own = plain[list(_SAMPLE_FIELDS)].assign(label=plain["label"].astype(float))
    return [
        {"image": meta, **{str(name): value for name, value in sample.items()}}
        for meta, sample in zip(about.to_dict("records"), own.to_dict("records"), strict=True)
    ]


def _plain(column: pd.Series) -> pd.Series:
    """Python values, with ``""`` or NaN for what is missing, which collating does not take."""
    missing = "" if is_string_dtype(column.dtype) else math.nan
    return column.astype(object).where(column.notna(), missing)
