"""Scores of new studies: images go in as they are read, scores go into the record, tables come out.

OUT/
predictions.csv           one row per image that was scored
predictions_breast.csv    the same for each breast, exam and patient, as `evaluate` aggregates them
predictions_exam.csv
predictions_patient.csv
not_scored.csv            one row per image that was not, with the reason
predictions.json          the model, its operating points, counts and warnings
saliency/IMAGE_ID.png     where the model looked, if asked for
private/                  owner only: the record, its key, and crosswalk.csv, by which an image_id
                          is found in the archive; and dicom/, results for a PACS, if asked for
"""

import base64
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mammo_pd import __version__
from mammo_pd.data.lost_record import has_record, record_file
from mammo_pd.data.manifest_row import manifest_row
from mammo_pd.data.new_image import NewImage
from mammo_pd.data.record import Record
from mammo_pd.data.store import StorePaths
from mammo_pd.errors import InputError, cause_of
from mammo_pd.evaluation.levels import STANDARD_VIEWS, aggregate_scores
from mammo_pd.evaluation.operating_points import OperatingPoints
from mammo_pd.files import atomic_write, load_json, remove_leftovers, write_text
from mammo_pd.imaging.settings import ALGORITHM_VERSION
from mammo_pd.inference.score import IMAGES_AT_ONCE
from mammo_pd.inference.trained_model import TrainedModel
from mammo_pd.machines import OTHER
from mammo_pd.table_file import write_csv
from mammo_pd.terms import Level, Status
from mammo_pd.training.model_card import kinds_of
from mammo_pd.wording import counted

_IDENTITY = ("image_id", "patient_id", "exam_id", "laterality", "view")
_TOLD = (
    *("manufacturer", "model", "age", "presentation_intent", "implant"),
    *("breast_verdict", "side_verdict"),
)
_NOT_SCORED = ("image_id", "patient_id", "exam_id", "status", "reason", "detail")
# In the record, of an image that is judged beside others: its pooled token.
_TOKEN = "token"
_WAITING = {
    "reason": "not_finished",
    "detail": "it is scored only after all images have been read: run the command again",
}
_JUDGED = ("score", "recalibrated", "threshold", "flagged")
# Files that give no image are committed at the latest after so many.
_FILES_AT_ONCE = 64
_KINDS = {
    "machine": "came from machines",
    "presentation_intent": "had presentation intents",
    "voi": "had kinds of grey scale",
}


@dataclass(frozen=True)
class PredictionFolder:
    """Where the predictions of one folder by one model go."""

    root: Path

    @property
    def about(self) -> Path:
        """What made them."""
        return self.root / "predictions.json"

    @property
    def not_scored(self) -> Path:
        """Images without a score."""
        return self.root / "not_scored.csv"

    @property
    def paths(self) -> StorePaths:
        """Where the record lies: as in a store."""
        return StorePaths(self.root)

    @property
    def crosswalk(self) -> Path:
        """From image_id to file and identifiers."""
        return self.paths.private / "crosswalk.csv"

    @property
    def dicom(self) -> Path:
        """Results for a PACS, a folder for each exam: instances of the women's own studies."""
        return self.paths.private / "dicom"

    def table(self, level: Level) -> Path:
        """The table of a level."""
        suffix = "" if level is Level.IMAGE else f"_{level}"
        return self.root / f"predictions{suffix}.csv"

    def saliency(self, image_id: str) -> Path:
        """Where the model looked in an image."""
        return self.root / "saliency" / f"{image_id}.png"

    def claim(self, model: TrainedModel) -> None:
        """Make the folder, or go on with one of the same model.

        Raises:
            InputError: it holds something else, what another model or version made, or has lost its
                record.
        """
        made_by = {
            "weights": model.digest,
            "preprocessing": {
                **model.settings.recorded(),
                "algorithm": ALGORITHM_VERSION,
            },
        }
        if self.about.is_file():
            try:
                before = load_json(self.about.read_text(encoding="utf-8"))["made_by"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{self.about} is damaged ({cause_of(error)}); name another --out."
                ) from error
            if before != made_by:
                raise InputError(
                    f"{self.root} holds predictions of another model, or of other preprocessing; "
                    "name another --out."
                )
            if self.table(Level.IMAGE).is_file() and not has_record(self.paths):
                raise InputError(
                    f"{self.root} holds predictions without their record, "
                    f"{record_file(self.paths)}, so they would all be recreated under other names; "
                    "restore the record from a copy, or name another --out."
                )
            return
        # But for what a command left that was killed as it wrote its first file.
        first = f".{self.about.name}."
        if self.root.exists() and not (
            self.root.is_dir() and all(file.name.startswith(first) for file in self.root.iterdir())
        ):
            raise InputError(
                f"{self.root} exists and is not a folder of predictions; name a new or empty "
                "folder with --out."
            )
        self.root.mkdir(parents=True, exist_ok=True)
        write_text(self.about, json.dumps({"made_by": made_by}, indent=2) + "\n")

    def remove_leftovers(self) -> None:
        """Remove what a killed command was writing; the record must be open, which is a lock."""
        tables = (self.about, self.not_scored, *(self.table(level) for level in Level))
        remove_leftovers(self.root, *(file.name for file in tables))
        remove_leftovers(self.paths.private, self.crosswalk.name)
        pictures = self.saliency("*")
        remove_leftovers(pictures.parent, pictures.name)
        for exam in self.dicom.glob("*"):
            remove_leftovers(exam, "*.dcm")


def claim_folder(record: Record, folder: Path) -> None:
    """Record which folder the predictions are of.

    Raises:
        InputError: they are of another one.
    """
    if any(before != folder for before in record.folders()):
        raise InputError(
            "--out holds the predictions of another folder of images; name another one for these."
        )
    record.put_folder(folder)
    record.commit()


def score_new_images(
    files: Iterable[list[NewImage]],
    model: TrainedModel,
    record: Record,
    out: PredictionFolder,
    *,
    saliency: bool = False,
) -> int:
    """Score images as they come, and commit each file with its scores.

    Args:
        files: of each file the images to score; it has been recorded.
        model: scores them.
        record: takes the scores.
        out: takes the pictures.
        saliency: draw where the model looked.

    Returns:
        How many images were scored.
    """
    count = 0
    try:
        for images in _in_batches(files):
            if images:
                found = _judge(model, [image.pixels for image in images])
                for image, of_image in zip(images, found, strict=True):
                    if saliency:
                        _draw(model, image, out)
                    record.add_columns(image.image_id, of_image)
            record.commit()
            count += len(images)
        if model.objective.judged is not Level.IMAGE:
            _fuse(model, record)
    except BaseException:
        # A file counts as done with its scores alone.
        record.discard()
        raise
    return count


def _judge(
    model: TrainedModel, images: list[npt.NDArray[np.uint16]]
) -> Iterator[dict[str, dict[str, float] | str]]:
    """What is recorded of each image: its scores, or what `_fuse` makes them of."""
    if model.objective.judged is not Level.IMAGE:
        for token in model.encode(images):
            yield {_TOKEN: base64.b64encode(token.tobytes()).decode("ascii")}
        return
    for scores in model.score(images).tolist():
        yield {"scores": dict(zip(model.objective.score_columns, scores, strict=True))}


def _fuse(model: TrainedModel, record: Record) -> None:
    """Score all images that are there, each beside the others of its unit.

    An earlier run may have scored some without those that have come since.
    """
    rows, tokens = [], []
    for image in record.rows():
        row = manifest_row(image, record.hasher)
        if _TOKEN in row:
            # Without their text, of which there is as much again.
            tokens.append(np.frombuffer(base64.b64decode(row[_TOKEN]), np.float32))
            rows.append([row.get(name) for name in _IDENTITY])
    if not rows:
        return
    table = pd.DataFrame(rows, columns=_IDENTITY)
    scores = model.fuse(np.stack(tokens), table)
    for image_id, of_image in zip(table["image_id"], scores.tolist(), strict=True):
        given = dict(zip(model.objective.score_columns, of_image, strict=True))
        record.add_columns(image_id, {"scores": given})
    record.commit()


def _in_batches(files: Iterable[list[NewImage]]) -> Iterator[list[NewImage]]:
    """The images of whole files, so many as the model takes or a few more."""
    waiting: list[NewImage] = []
    for number, images in enumerate(files, start=1):
        waiting += images
        if len(waiting) >= IMAGES_AT_ONCE or number % _FILES_AT_ONCE == 0:
            yield waiting
            waiting = []
    yield waiting


def _draw(model: TrainedModel, image: NewImage, out: PredictionFolder) -> None:
    # The store's chest wall is on the left; radiologists have the right breast's on the right.
    picture = model.draw_saliency(image.pixels, mirror=bool(image.columns["flipped"]))
    with atomic_write(out.saliency(image.image_id)) as beside:
        beside.write_bytes(picture)


@dataclass(frozen=True)
class Predictions:
    """What is in the record, as tables.

    Attributes:
        images: one row per scored image.
        not_scored: one row per image without a score.
        warnings: of kinds of images that the model was not trained on, and of doubtful ones.
    """

    images: pd.DataFrame
    not_scored: pd.DataFrame
    warnings: list[str]

    @property
    def failed(self) -> int:
        """Images that could not be read."""
        return int((self.not_scored["status"] == Status.FAILED).sum())

    @classmethod
    def read(cls, record: Record, model: TrainedModel) -> "Predictions":
        """Read a record's images."""
        scored, not_scored = [], []
        unseen: dict[str, Counter[str]] = {kind: Counter() for kind in _KINDS}
        unnamed = 0
        for image in record.rows():
            row = manifest_row(image, record.hasher)
            if "scores" not in row:
                told = {name: row.get(name) for name in _NOT_SCORED}
                if _TOKEN in row:
                    told |= _WAITING
                not_scored.append(told)
                continue
            unnamed += "machine" not in kinds_of(row)
            found = _unseen_kinds(row, model.card.trained_on)
            for kind, value in found.items():
                unseen[kind][value] += 1
            scored.append(
                {
                    **{name: row.get(name) for name in _IDENTITY},
                    **row["scores"],
                    "unseen": ";".join(found) or None,
                    **{name: row.get(name) for name in _TOLD},
                }
            )
        columns = [*_IDENTITY, *model.objective.score_columns, "unseen", *_TOLD]
        images = pd.DataFrame(scored, columns=columns)
        without = pd.DataFrame(not_scored, columns=list(_NOT_SCORED))
        found_warnings = _warnings(model, unseen, unnamed, len(scored))
        if (line := _doubts(images, without)) is not None:
            found_warnings.append(line)
        return cls(
            images.astype(dict.fromkeys(model.objective.score_columns, np.float64)),
            without,
            found_warnings,
        )


def _unseen_kinds(
    row: Mapping[str, Any], trained_on: Mapping[str, Mapping[str, int]] | None
) -> dict[str, str]:
    """What of an image the training images were not, by kind."""
    if trained_on is None:
        return {}
    return {
        kind: value
        for kind, value in kinds_of(row).items()
        # Two machines without a known name may be two or one.
        if value not in trained_on.get(kind, {}) or OTHER in value.split()
    }


def _warnings(
    model: TrainedModel, unseen: Mapping[str, Counter[str]], unnamed: int, images: int
) -> list[str]:
    found = [] if (line := model.preprocessing_warning()) is None else [line]
    if model.card.trained_on is None:
        found.append(
            "the checkpoint does not record which machines it was trained on (it comes from an "
            "earlier version), so unseen machines cannot be detected"
        )
    if unnamed:
        found.append(
            f"{unnamed} of {counted(images, 'image')} "
            f"{'does' if unnamed == 1 else 'do'} not say which machine took "
            f"{'it' if unnamed == 1 else 'them'}"
        )
    for kind, counts in unseen.items():
        if counts:
            told = ", ".join(f"{value}: {count}" for value, count in counts.most_common())
            found.append(
                f"{counts.total()} of {counted(images, 'image')} {_KINDS[kind]} that the "
                f"model was not trained on, or that are unknown ({told}); how well it scores them "
                "is not known (column unseen)"
            )
    return found


def _doubts(images: pd.DataFrame, not_scored: pd.DataFrame) -> str | None:
    """What to look at before scores are believed, in one line; None where there is nothing."""
    found = []
    for column, what in (
        ("breast_verdict", "that may show more or less than one breast"),
        ("side_verdict", "with the breast on a different side than stated"),
    ):
        doubtful = images.loc[images[column].notna() & (images[column] != "ok"), column]
        if len(doubtful):
            told = ", ".join(f"{name}: {count}" for name, count in doubtful.value_counts().items())
            found.append(
                f"{len(doubtful)} of {counted(len(images), 'image')} {what} ({column}: {told})"
            )
    if without_side := int(images["laterality"].isna().sum()):
        found.append(
            f"{without_side} of {counted(len(images), 'image')} of unknown side, each scored as a "
            "breast of its own"
        )
    sides = images[images["laterality"].notna()]
    views = [
        of for _, of in sides.groupby(["patient_id", "exam_id", "laterality"], dropna=False)["view"]
    ]
    lacking = [of for of in views if not {*STANDARD_VIEWS} <= set(of)]
    # Where not all images say their view, what seems to be missing may be there.
    unknown = sum(of.isna().any() for of in lacking)
    for count, what in (
        (len(lacking) - unknown, "scored without both CC and MLO"),
        (unknown, "with an image of unknown view, so that CC or MLO may be missing"),
    ):
        if count:
            found.append(f"{count} of {counted(len(views), 'breast')} {what}")
    exams = set(images["exam_id"].dropna())
    unread = not_scored.loc[not_scored["status"] == Status.FAILED, "exam_id"]
    if partial := len(exams & set(unread.dropna())):
        found.append(
            f"{partial} of {counted(len(exams), 'exam')} with an image that could not be read"
        )
    return f"look at these before their scores: {'; '.join(found)}" if found else None


def judged_tables(
    images: pd.DataFrame, model: TrainedModel, code: str
) -> dict[Level, pd.DataFrame]:
    """The table of each level: score, calibrated score, threshold and verdict of each target.

    An objective without 0/1 targets has nothing to judge: a breast, exam or patient has the means
    of its images' scores.

    Args:
        images: of `Predictions`.
        model: whose operating points are applied.
        code: of the operating point.
    """
    objective = model.objective
    judged = dict(zip(objective.score_columns, objective.target_columns, strict=False))
    told_above = list(judged or objective.score_columns)
    tables = {}
    for level in Level:
        table: pd.DataFrame | None = None
        for column in told_above:
            rows = images[list(_IDENTITY)].assign(score=images[column])
            if judged:
                points = model.operating_points.get(judged[column], OperatingPoints.none())
                units = points.judge(rows, level, code)
                values = {name: column_of(column, name) for name in _JUDGED}
            else:
                units = aggregate_scores(rows, level)
                values = {"score": column}
            if table is None:
                table = units.drop(columns=list(values))
            for name, called in values.items():
                table[called] = units[name]
        assert table is not None
        if level is Level.IMAGE:
            further = images.drop(columns=[*_IDENTITY[1:], *told_above])
            table = table.drop(columns="n_images").merge(further, on="image_id")
        tables[level] = table
    return tables


def column_of(score_column: str, name: str) -> str:
    """The column of a verdict on the target of a score: ``cancer_flagged`` beside ``cancer_score``.

    Args:
        score_column: ``score``, or with the target in front of it.
        name: ``score``, ``recalibrated``, ``threshold`` or ``flagged``.
    """
    return score_column.removesuffix("score") + name


def write_tables(
    out: PredictionFolder,
    predictions: Predictions,
    model: TrainedModel,
    code: str,
    *,
    complete: bool,
    told: Mapping[str, Any],
) -> dict[Level, pd.DataFrame]:
    """Write the tables of every level, each whole, and what made them.

    Args:
        out: the folder.
        predictions: what they are made of.
        model: that scored.
        code: of the operating point.
        complete: whether every file of the folder is in.
        told: further facts for predictions.json.

    Returns:
        The tables.
    """
    tables = judged_tables(predictions.images, model, code)
    for level, table in tables.items():
        with atomic_write(out.table(level)) as beside:
            write_csv(table, beside)
    with atomic_write(out.not_scored) as beside:
        write_csv(predictions.not_scored, beside)
    before = load_json(out.about.read_text(encoding="utf-8"))
    card = model.card
    about = {
        "made_by": before["made_by"],
        "complete": complete,
        "research_use_only": "not a medical device; no decision about a patient may rest on it",
        "version": __version__,
        "model": card.model,
        "img_size": list(card.img_size),
        "label_definition": card.label_definition,
        "epoch": model.epoch,
        "operating_point": code,
        "operating_points": {
            target: points.dump() for target, points in model.operating_points.items()
        },
        "images": len(predictions.images),
        "not_scored": {
            str(reason): int(count)
            for reason, count in predictions.not_scored["reason"].value_counts().items()
        },
        "flagged": {level.value: flagged_counts(table) for level, table in tables.items()},
        "warnings": predictions.warnings,
        **told,
    }
    write_text(out.about, json.dumps(about, indent=2) + "\n")
    return tables


def flagged_counts(table: pd.DataFrame) -> dict[str, int]:
    """How many units of a table are flagged, by the column that says so; none without verdicts."""
    columns = [str(name) for name in table if str(name).endswith("flagged")]
    return {name: int(table[name].sum()) for name in columns if table[name].notna().any()}


def refuse_unknown_point(points: Mapping[str, OperatingPoints], code: str) -> None:
    """Check that there is an operating point of that name, where any are locked.

    Raises:
        InputError: there is none.
    """
    known = {code: rule for of in points.values() for code, rule in of.rules.items()}
    if known and code not in known:
        raise InputError(
            f"--operating-point {code} is not locked in the checkpoint; choose one of "
            f"{', '.join(known)}."
        )
