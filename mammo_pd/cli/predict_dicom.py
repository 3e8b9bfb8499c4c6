"""The part of ``mammo-pd predict`` that writes results for a PACS."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from mammo_pd.data.record import ImageOrigin, Record
from mammo_pd.inference.new_studies import PredictionFolder, column_of
from mammo_pd.inference.trained_model import TrainedModel
from mammo_pd.report.dicom_results import (
    NoResultError,
    ScoredExam,
    ScoredImage,
    ScoringModel,
    Verdict,
    write_exam,
)
from mammo_pd.terms import Level

if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import Any


def write_dicom_results(
    target: PredictionFolder,
    record: Record,
    model: TrainedModel,
    tables: Mapping[Level, pd.DataFrame],
    code: str,
) -> tuple[int, Counter[str]]:
    """Write the results of every exam, one at a time.

    Args:
        target: whose owner-only folder takes them.
        record: knows the files.
        model: that scored.
        tables: of every level.
        code: of the operating point.

    Returns:
        How many instances there are, and for how many exams none could be made, by the reason.
    """
    height, width = model.card.img_size
    maker = ScoringModel(
        f"{model.card.model} {height}x{width}", model.digest, model.card.label_definition
    )
    facts = {
        image.image_id: (image.source, bool(image.columns.get("turned_upright")))
        for image in record.rows()
        if "scores" in image.columns
    }
    breasts = _by_exam(tables[Level.BREAST])
    exams = {row["exam_id"]: row for row in tables[Level.EXAM].to_dict("records")}
    written, without = 0, Counter[str]()
    for exam_id, images in _by_exam(tables[Level.IMAGE]).items():
        exam = ScoredExam(
            [_image(row, facts, target, model, code) for row in images],
            {
                row["laterality"]: _verdicts(row, model, Level.BREAST, code)
                for row in breasts[exam_id]
                if isinstance(row["laterality"], str)
            },
            _verdicts(exams[exam_id], model, Level.EXAM, code),
        )
        try:
            written += len(write_exam(exam, maker, target.dicom / exam_id))
        except OSError:
            raise
        except NoResultError as error:
            without[str(error)] += 1
        except Exception as error:  # archive headers can raise almost anything
            without[f"a header holds something that a result cannot ({type(error).__name__})"] += 1
    # They belong to no study.
    if stray := int(tables[Level.IMAGE]["exam_id"].isna().sum()):
        without["an image without the UID of its study"] += stray
    return written, without


def _by_exam(table: pd.DataFrame) -> "dict[str, list[dict[Hashable, Any]]]":
    return {str(exam_id): rows.to_dict("records") for exam_id, rows in table.groupby("exam_id")}


def _image(
    row: "Mapping[Hashable, Any]",
    facts: Mapping[str, tuple[ImageOrigin, bool]],
    target: PredictionFolder,
    model: TrainedModel,
    code: str,
) -> ScoredImage:
    source, turned = facts[row["image_id"]]
    saliency = target.saliency(row["image_id"])
    return ScoredImage(
        source.path,
        source.frame,
        row["laterality"] if isinstance(row["laterality"], str) else None,
        row["view"] if isinstance(row["view"], str) else None,
        _verdicts(row, model, Level.IMAGE, code),
        saliency if saliency.is_file() else None,
        upright=not turned,
    )


def _verdicts(
    row: "Mapping[Hashable, Any]", model: TrainedModel, level: Level, code: str
) -> list[Verdict]:
    objective = model.objective
    found = []
    for name, column in zip(objective.target_columns, objective.score_columns, strict=False):
        points = model.operating_points.get(name)
        flagged = row[column_of(column, "flagged")]
        recalibrated = row[column_of(column, "recalibrated")]
        found.append(
            Verdict(
                name,
                float(row[column]),
                None if pd.isna(flagged) else bool(flagged),
                "" if points is None else points.rules.get(code, ""),
                None if points is None else points.threshold(level, code),
                None if pd.isna(recalibrated) else float(recalibrated),
            )
        )
    return found
