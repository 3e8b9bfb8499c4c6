"""What a report says: types alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from mammo_pd.evaluation.levels import Aggregation
from mammo_pd.evaluation.measures import LevelResults, Scalar
from mammo_pd.evaluation.thresholds import Reader
from mammo_pd.terms import Level

Row = Mapping[str, Scalar]


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
        phantom: whether the images are phantoms; the page then warns of it first.
        notes: further sentences for the reader.
        pictures: what the thumbnails of the errors show, in a few sentences; None without them.
        runs: of a cross-validation one row per run: ``fold, seed, epoch`` (whose weights were
            used), ``val_auc_image, val_auc_breast, test_auc_image, test_auc_breast, seconds``.
        seeds: of one with several seeds one row per seed, then ``mean`` and ``range``: ``seed``,
            and by level the AUC of the pooled out-of-fold predictions.
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
    phantom: bool = False
    notes: Sequence[str] = ()
    pictures: str | None = None
    runs: Sequence[Row] = ()
    seeds: Sequence[Row] = ()
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
    """

    aggregation: Aggregation
    prevalence: float | None
    prevalences: Mapping[Level, float]
    miss_cost: float
    thresholds_from: int
    reader: Reader | None = None


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
        folds: one row per level and fold: ``level, fold``, then as ``auc_with_interval``.
        errors: the highest-scored negatives and the lowest-scored positives, one row each: ``kind``
            (``false alarm`` or ``miss``), ``image_id, exam_id, laterality, view, label, score``.
        thumbnails: PNG files of their images by ``image_id``, where there are any.
    """

    context: ReportContext
    computation: Computation
    counts: Mapping[str, int]
    levels: Mapping[Level, LevelResults]
    units: Mapping[Level, pd.DataFrame]
    predictions: pd.DataFrame
    strata: Sequence[Row] = ()
    folds: Sequence[Row] = ()
    errors: Sequence[Row] = ()
    thumbnails: Mapping[str, bytes] = field(default_factory=dict)


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
    """

    context: ReportContext
    aggregation: Aggregation
    left_out: int
    alone: Sequence[Row]
    paired: Sequence[Row]
    units: Mapping[str, Mapping[Level, pd.DataFrame]]
    margin: float | None = None
