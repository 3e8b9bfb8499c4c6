"""The exams that the page lists as errors: rows go in, the images of the clearest come out."""

from collections.abc import Callable, Sequence

import pandas as pd

from mammo_pd.evaluation.cutoffs import Cutoff
from mammo_pd.evaluation.levels import units_of, with_known_label
from mammo_pd.evaluation.measures import Row
from mammo_pd.report.content import HEADLINE

# Exams listed of each kind of error: as many as a reader will look at.
_LISTED = 8


def clearest_errors(
    evaluated: pd.DataFrame, units: pd.DataFrame, cutoff: Cutoff | None
) -> list[Row]:
    """All images of the exams with the clearest wrong decisions.

    Args:
        evaluated: one row per image.
        units: of the headline level, with known label.
        cutoff: what is flagged; without one nothing is decided, and the highest-scored negatives
            and the lowest-scored positives are listed.
    """
    positive = units["label"].to_numpy() == 1
    if cutoff is None:
        kinds = {"high negative": ~positive, "low positive": positive}
        lowest = None
    else:
        flagged, lowest = cutoff.flags(units), cutoff.lowest(units)
        kinds = {"false alarm": ~positive & flagged, "miss": positive & ~flagged}
    of_image = with_known_label(evaluated, HEADLINE)
    unit = units_of(of_image, HEADLINE)
    rows: list[Row] = []
    for kind, chosen in kinds.items():
        # Folds with their own thresholds have their own scales: rank by distance from it.
        clear = units["score"] if lowest is None else units["score"] - lowest
        order = (-clear if kind in ("false alarm", "high negative") else clear)[chosen]
        for place, index in enumerate(order.sort_values(kind="stable").index[:_LISTED], start=1):
            images = of_image[unit == index]
            images = images.sort_values(["laterality", "view", "image_id"], na_position="last")
            # None instead of NaN, for JSON and for the page's "or".
            known = images.astype(object).where(images.notna(), None)
            rows += [
                {
                    "kind": kind,
                    "place": place,
                    "exam_id": image["exam_id"],
                    "patient_id": image["patient_id"],
                    "exam_score": float(units["score"][index]),
                    "exam_threshold": None if lowest is None else float(lowest[index]),
                    **{name: image[name] for name in ("image_id", "laterality", "view")},
                    "image_label": image["label"],
                    "image_score": image["score"],
                }
                for image in known.to_dict("records")
            ]
    return rows


def thumbnails_of(
    errors: Sequence[Row], thumbnail: Callable[[str], Sequence[bytes]]
) -> dict[str, Sequence[bytes]]:
    """The pictures of the listed images by ``image_id``, where there are any."""
    found = ((str(row["image_id"]), thumbnail(str(row["image_id"]))) for row in errors)
    return {image_id: pictures for image_id, pictures in found if pictures}
