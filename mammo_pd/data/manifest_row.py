"""From what is recorded of an image to its row of the manifest: no path, no original identifier."""

import re
from typing import Any

from mammo_pd.data.record import Hasher, RecordedImage
from mammo_pd.machines import machine_column, machine_name
from mammo_pd.terms import VIEWS

# Women above it are so few that an age may name one: HIPAA's safe harbour, 45 CFR
# 164.514(b)(2)(i)(C), puts them into one class, which is written as 90 here.
_OLDEST = 89.0


def manifest_row(image: RecordedImage, hasher: Hasher) -> dict[str, Any]:
    """The columns that are known of one image; those of its label table follow the manifest's own.

    Args:
        image: as it is recorded.
        hasher: of the store, for the names of patient and exam.
    """
    identifiers, labelled = image.identifiers, image.labels
    exam = labelled.get("exam_id") or identifiers.get("study_instance_uid")
    patient, source = labelled.get("patient_id"), "table"
    if not patient:
        patient, source = identifiers.get("patient_id"), "tag"
    if not patient:
        # The frames of one file are of one patient, even if nothing else is known.
        only = image.image_id if image.source.frame is None else f"file:{image.source.path}"
        patient, source = (f"exam:{exam}", "exam") if exam else (f"image:{only}", "image")
    columns = dict(image.columns)
    if "processing" in columns:  # recorded before the column was renamed
        columns["presentation_intent"] = columns.pop("processing")
    further = dict(labelled.get("further", {}))
    for name in further:
        column = machine_column(name)
        if column is not None and further[name] is not None:
            further[name] = machine_name(column, _as_text(further[name]), hasher.hash)
    row = {
        **columns,
        **further,
        "image_id": image.image_id,
        "patient_id": hasher.hash("patient", patient),
        "patient_id_source": source,
        "exam_id": hasher.hash("exam", exam) if exam else None,
        "label": labelled.get("label"),
    }
    for name in ("laterality", "view", "age", "implant"):
        if labelled.get(name) is not None:
            row[name] = labelled[name]
    if row.get("view") is not None and row["view"] not in VIEWS:
        row["view"] = view_code(row["view"])
    for name in ("manufacturer", "model"):
        # In the columns in stores of earlier versions; of a table where the file says nothing.
        given = identifiers.get(name) or columns.get(name) or labelled.get(name)
        row[name] = machine_name(name, given, hasher.hash) if given else None
    if row.get("age") is not None and row["age"] > _OLDEST:
        row["age"] = _OLDEST + 1
    return row


def _as_text(value: str | float) -> str:
    return value.strip() if isinstance(value, str) else f"{value:g}"


def view_code(given: str) -> str:
    """A view of a label table by its code; one that is not known may be any text."""
    code = re.sub(r"[\W_]+", "", given).upper()
    return code if code in VIEWS else "other"
