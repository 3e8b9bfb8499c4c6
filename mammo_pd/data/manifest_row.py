"""From what is recorded of an image to its row of the manifest: no path, no original identifier."""

from typing import Any

from mammo_pd.data.record import Hasher, RecordedImage

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
    row = {
        **columns,
        **labelled.get("further", {}),
        "image_id": image.image_id,
        "patient_id": hasher.hash("patient", patient),
        "patient_id_source": source,
        "exam_id": hasher.hash("exam", exam) if exam else None,
        "label": labelled.get("label"),
    }
    for name in ("laterality", "view", "age", "implant"):
        if labelled.get(name) is not None:
            row[name] = labelled[name]
    if row.get("age") is not None and row["age"] > _OLDEST:
        row["age"] = _OLDEST + 1
    return row
