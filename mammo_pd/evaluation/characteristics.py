"""Who was examined and how: images and their part go in, counts by characteristic come out."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mammo_pd.evaluation.measures import Row
from mammo_pd.evaluation.strata import NOT_KNOWN, in_order, values_of_units
from mammo_pd.terms import Level

# Columns that name the origin of an image.
MACHINES = ("manufacturer", "model", "vendor", "scanner", "machine_id", "site", "site_id")
# A view belongs to an image; everything else is constant within an exam.
_CHARACTERISTICS = {
    "age": Level.EXAM,
    "density": Level.EXAM,
    "tissue": Level.EXAM,
    **dict.fromkeys(MACHINES, Level.EXAM),
    "view": Level.IMAGE,
}
# The columns that identify an exam.
_KEYS = ["patient_id", "exam_id"]


def describe_parts(images: pd.DataFrame, part: "pd.Series[str]", parts: Sequence[str]) -> list[Row]:
    """Age, density, machine and view in each part of the data.

    Args:
        images: ``image_id, patient_id, exam_id``, and any of the characteristics.
        part: of each image, in the same order.
        parts: their names, in the order wanted; others are left out.

    Returns:
        One row per characteristic, value and part, also where it counts none: ``characteristic,
        value, per`` (exam or image), ``part, n, share`` (of the units of the part). A
        characteristic of which nothing is known has no rows.
    """
    table = images.reset_index(drop=True)
    part = part.reset_index(drop=True).astype("str")
    rows: list[Row] = []
    for name, level in _CHARACTERISTICS.items():
        if name not in table.columns:
            continue
        # Units within a part: an exam whose images lie in two parts counts in both.
        needed = table[[*_KEYS, name]]
        values = {
            one: values_of_units(needed[part == one].reset_index(drop=True), name, level)
            for one in parts
        }
        every = np.concatenate(list(values.values()))
        if not (every != "").any():
            continue
        for value in in_order(every):
            for one in parts:
                n = int((values[one] == value).sum())
                rows.append(
                    {
                        "characteristic": name,
                        "value": value or NOT_KNOWN,
                        "per": level.value,
                        "part": one,
                        "n": n,
                        "share": n / len(values[one]),
                    }
                )
    return rows
