"""What a report says: types alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pandas as pd

from mammo_pd.evaluation.levels import Aggregation
from mammo_pd.evaluation.locked import Locked
from mammo_pd.evaluation.measures import LevelResults, Scalar
from mammo_pd.evaluation.thresholds import Reader
from mammo_pd.terms import Level, Split

Row = Mapping[str, Scalar]

# Prose speaks of exams: a radiologist recalls a woman, not a film.
HEADLINE = Level.EXAM

_Of = TypeVar("_Of")


def headline_first(levels: Mapping[Level, _Of]) -> dict[Level, _Of]:
    """The same, with the level that the prose speaks of before the others."""
    return dict(sorted(levels.items(), key=lambda item: item[0] is not HEADLINE))


@dataclass(frozen=True)
class ReportContext:
    """What the reader needs to know and the predictions cannot tell.

    Attributes:
        title: the page's heading.
        model: the model in one line.
        run_id: of the training run.
        split_name: of the split that kept these patients out of training.
        split_hash: of that split.
        split_part: the subset of the split that was scored, such as ``test``.
        store_fingerprint: of the preprocessing that made the images.
        label_definition: what a positive is, to complete "The label is ...".
        exclusions: number of excluded images by reason.
        parts: one row per subset of the split; the same columns in each, such as ``part, patients,
            images, positives``.
        flow: how the images found came to be evaluated, one row per step as ``count_flow`` returns
            them: ``step, reason, patients, exams, images, unlabelled, positives``; taken from the
            predictions when empty.
        tested: the steps of the flow whose images are evaluated.
        characteristics: who was examined, as ``describe_parts`` returns them; of the predictions
            when empty.
        study: what the authors state of it: ``intended_use, reference_standard, follow_up``.
        phantom: whether the images are phantoms; the page then warns of it first.
        notes: further sentences for the reader.
        caveats: what makes the results doubtful, in sentences that stand with them.
        pictures: what the thumbnails of the errors show, in a few sentences; None without them.
        runs: of a cross-validation one row per run: ``fold, seed, epoch`` (whose weights were
            used), ``val_auc_image, val_auc_breast, test_auc_image, test_auc_breast, seconds``.
        seeds: of one with several seeds one row per seed, then ``mean`` and ``range``: ``seed``,
            and by level the AUC of the out-of-fold predictions within folds.
        provenance: by name, what the report was made with: ``version``, ``command``, and SHA-256
            hashes of its inputs.
        created: when, in ISO 8601.
    """

    title: str = "Evaluation of predictions"
    model: str | None = None
    run_id: str | None = None
    split_name: str | None = None
    split_hash: str | None = None
    split_part: str | None = None
    store_fingerprint: str | None = None
    label_definition: str | None = None
    exclusions: Mapping[str, int] = field(default_factory=dict)
    parts: Sequence[Row] = ()
    flow: Sequence[Row] = ()
    tested: Sequence[str] = (Split.TEST.value,)
    characteristics: Sequence[Row] = ()
    study: Mapping[str, str | None] = field(default_factory=dict)
    phantom: bool = False
    notes: Sequence[str] = ()
    caveats: Sequence[str] = ()
    pictures: str | None = None
    runs: Sequence[Row] = ()
    seeds: Sequence[Row] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    created: str | None = None


@dataclass(frozen=True)
class Computation:
    """How the metrics were computed.

    Attributes:
        aggregation: how the scores of a unit's images were aggregated.
        prevalence: share of positives in the intended use as it was given, if it was.
        prevalences: by level, the share that metrics are re-weighted to; empty without one.
        miss_cost: cost of a missed positive in false alarms, for the cost threshold.
        thresholds_from: number of validation images that thresholds were chosen on; 0 for none.
        reader: radiologists that the exam level is compared with, if any.
        cross_fitted: whether each fold's thresholds were chosen on the other folds.
        by_fold: whether each fold's were chosen on validation images that its own model scored.
        locked: hash of the thresholds that were decided on another set before this one was read.
    """

    aggregation: Aggregation
    prevalence: float | None
    prevalences: Mapping[Level, float]
    miss_cost: float
    thresholds_from: int
    reader: Reader | None = None
    cross_fitted: bool = False
    by_fold: bool = False
    locked: str | None = None


@dataclass(frozen=True)
class Programme:
    """What a screening programme reads, at exam level.

    Attributes:
        prevalence: share of positives that everything here is for: as intended, or of these exams.
        outcomes: per 1,000 women, one row per operating point and reader, as ``per_thousand``.
        lesions: cancers found by type and size, as ``found_by_lesion``.
        decision_curve: rows as ``decision_curve`` returns them.
        sweep: rows as ``sweep_thresholds`` returns them.
    """

    prevalence: float
    outcomes: Sequence[Row]
    lesions: Sequence[Row]
    decision_curve: Sequence[Row]
    sweep: Sequence[Row]


@dataclass(frozen=True)
class Report:
    """Everything that the report of one model says.

    Attributes:
        context: from whoever scored the images.
        computation: how the metrics were computed.
        counts: of the images scored: units, missing keys, incomplete exams, rows without label.
        levels: the results by level.
        units: the rows behind them by level, as ``aggregate`` returns them.
        predictions: every row given, validation rows too.
        strata: rows as ``stratify`` returns them.
        within: rows as ``within_strata`` returns them; empty where that was not asked for.
        folds: one row per level and fold: ``level, fold``, then as ``auc_with_interval``.
        within_folds: rows as ``mammo_pd.evaluation.within.within_folds`` returns them.
        validation: of a cross-validation, the validation rows as each fold's model scored them,
            with ``fold``; None where thresholds were chosen otherwise.
        programme: at exam level; None where there is one class only.
        errors: the images of the exams decided most clearly wrongly, one row each: ``kind``
            (``false alarm`` or ``miss``; without thresholds ``high negative`` or ``low positive``),
            ``place`` (of the exam within its kind, from 1), ``exam_id, patient_id, exam_score,
            exam_threshold, image_id, laterality, view, image_label, image_score``.
        thumbnails: PNG files of these images by ``image_id``, where there are any: the image, then
            the same with what the model attended to.
    """

    context: ReportContext
    computation: Computation
    counts: Mapping[str, int]
    levels: Mapping[Level, LevelResults]
    units: Mapping[Level, pd.DataFrame]
    predictions: pd.DataFrame
    strata: Sequence[Row] = ()
    within: Sequence[Row] = ()
    folds: Sequence[Row] = ()
    within_folds: Sequence[Row] = ()
    validation: pd.DataFrame | None = None
    programme: Programme | None = None
    errors: Sequence[Row] = ()
    thumbnails: Mapping[str, Sequence[bytes]] = field(default_factory=dict)

    @property
    def compared(self) -> list[Row]:
        """The strata of columns that have several values: of one alone there is no comparison."""
        values = Counter(row["column"] for row in self.strata)
        return [row for row in self.strata if values[row["column"]] > 1]

    @property
    def uniform(self) -> list[Row]:
        """The other strata: one row for each column."""
        values = Counter(row["column"] for row in self.strata)
        return [row for row in self.strata if values[row["column"]] == 1]


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison of models says.

    Attributes:
        context: from whoever scored the images.
        aggregation: how the scores of a unit's images were aggregated.
        left_out: number of images that not all models scored; they are excluded.
        alone: AUC rows, first of what ``compare`` returns.
        paired: difference rows, second of what ``compare`` returns.
        units: the rows behind them by model and level, as ``aggregate`` returns them.
        margin: how much smaller an AUC may be and still count as not worse, if that was asked.
        within_folds: whether a positive was compared only with negatives of its own fold.
    """

    context: ReportContext
    aggregation: Aggregation
    left_out: int
    alone: Sequence[Row]
    paired: Sequence[Row]
    units: Mapping[str, Mapping[Level, pd.DataFrame]]
    margin: float | None = None
    within_folds: bool = False


@dataclass(frozen=True)
class SetResults:
    """One of several sets that a model is tested on.

    Attributes:
        name: for people.
        folder: of its whole report, beside the page.
        metrics: the content of that report's ``metrics.json``.
        units: its rows by level, as ``aggregate`` returns them.
        recalibrated: by level, the calibration after the locked recalibration: ``slope``,
            ``intercept``, ``expected_observed_ratio``, ``brier``; empty of the development set.
        shared_patients: how many of its patient IDs occur in the development set too.
        shared_images: how many of its images are pixel by pixel those of the development store; 0
            where pixels were not at hand.
        notes: further sentences on it for the reader.
        phantom: whether its images are phantoms; the page warns of it first.
    """

    name: str
    folder: str
    metrics: Mapping[str, Any]
    units: Mapping[Level, pd.DataFrame]
    recalibrated: Mapping[Level, Row]
    shared_patients: int
    shared_images: int = 0
    notes: Sequence[str] = ()
    phantom: bool = False


@dataclass(frozen=True)
class ExternalValidation:
    """Everything that a report on several sets says.

    Attributes:
        context: from whoever scored the images.
        sets: the development set, then the external ones.
        locked: what was decided on the first before the others were read.
    """

    context: ReportContext
    sets: Sequence[SetResults]
    locked: Locked
