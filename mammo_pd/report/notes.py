"""What the reader must be told of the data and the results, as sentences for page and terminal."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mammo_pd.report.content import Row
from mammo_pd.report.numbers import between, plain

_CANCER = re.compile("cancer|malign|carcinoma|tumou?r", re.IGNORECASE)


@dataclass(frozen=True)
class Words:
    """What a positive is called."""

    one: str
    many: str
    no: str
    who: str
    in_vain: str


def words_of(label_definition: str | None) -> Words:
    """A positive is a cancer only where the label is said to be of one."""
    if label_definition is not None and _CANCER.search(label_definition):
        return Words("cancer", "cancers", "no cancer", "have cancer", "recalled without cancer")
    return Words("positive", "positives", "negative", "are positive", "negatives recalled")


# The number stands after what is counted, so that one and many read alike.
_UNKNOWN = (
    " without a known label, because an image lacks one and none is positive: {count}; neither "
    "positive nor negative, and so excluded at that level."
)
_NOTES = {
    "incomplete_exams": "Exams that lack one of the four standard images (L-CC, L-MLO, R-CC, "
    "R-MLO), or whose views are unknown: {count} of {exams}; included.",
    "images_without_laterality": "Images without laterality: {count}; at breast level each is a "
    "unit of its own.",
    "images_without_exam_id": "Images without an exam ID: {count}; those of one patient are taken "
    "as one exam.",
    "images_without_label": "Images without a label: {count}; excluded at image level.",
    "breasts_of_unknown_label": "Breasts" + _UNKNOWN,
    "exams_of_unknown_label": "Exams" + _UNKNOWN,
    "patients_of_unknown_label": "Patients" + _UNKNOWN,
    "contradictory_breasts": "Breasts with images labelled 1 and images labelled 0: {count}; "
    "counted as positive. If a label is of the breast, one of the two is wrong.",
    "training_images_left_out": "Training images that were supplied: {count}; excluded from all "
    "results.",
}


def data_notes(counts: Mapping[str, int]) -> list[str]:
    """A sentence for everything that the reader must know of the rows.

    Args:
        counts: as in ``Report``.
    """
    return [
        note.format(count=plain(counts[name]), exams=plain(counts["exams"]))
        for name, note in _NOTES.items()
        if counts[name]
    ]


def remarks_with_levels(remarks: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Each remark once, with the levels that it concerns.

    Args:
        remarks: by level.
    """
    levels: dict[str, list[str]] = {}
    for level, of_level in remarks.items():
        for remark in of_level:
            levels.setdefault(remark, []).append(level)
    return levels


def margin_verdicts(paired: Sequence[Row], margin: float | None) -> list[str]:
    """Of each pair and level, whether either model is shown to be not worse than the other.

    Args:
        paired: difference rows, as ``compare`` returns them.
        margin: how much smaller an AUC may be and still count as not worse; None gives no verdict.
    """
    if margin is None:
        return []
    verdicts = []
    for row in paired:
        pairs = ((row["first"], row["second"]), (row["second"], row["first"]))
        for (one, other), shown in zip(
            pairs, (row["first_not_worse"], row["second_not_worse"]), strict=True
        ):
            where = f"{row['level']} level"
            if shown is None:
                verdict = (
                    f"whether {one} is worse than {other} by {margin:g} or more cannot be said "
                    "without an interval of the difference"
                )
            elif shown:
                verdict = f"{one} is not worse than {other} by {margin:g} or more"
            else:
                verdict = f"not shown: that {one} is not worse than {other} by {margin:g} or more"
            interval = between(row, "difference_ci", sign="+")
            verdicts.append(f"{where}: {verdict}" + (f" ({interval})." if interval else "."))
    return verdicts
