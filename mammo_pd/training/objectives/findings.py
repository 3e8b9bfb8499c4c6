"""Several columns at once, each binary or ordinal: an image counts for those that it has.

A binary column has one logit. An ordinal one of C categories has C - 1, one for each category but
the lowest: whether the image is in that category or a higher one. They never rise from one to the
next, by construction, so the probabilities of the categories are never negative.

Shapes: B images, T targets: the binary columns, and the upper categories of the ordinal ones.

Source: the cumulative (proportional odds) model, McCullagh 1980, J. R. Stat. Soc. B 42(2), with
slopes of its own for each category.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor
from torch.nn import functional as F

from mammo_pd.backbones.base import Backbone
from mammo_pd.config import TrainingSettings
from mammo_pd.errors import InputError
from mammo_pd.evaluation.levels import Aggregation, aggregate
from mammo_pd.evaluation.roc import auc
from mammo_pd.quoting import such_as
from mammo_pd.terms import Level
from mammo_pd.training.objectives.base import Objective
from mammo_pd.wording import counted

_FORMS = (
    "write a column of 0 and 1 (cancer), one of so many categories 1, 2, ... or A, B, ... "
    "(density:4), or its categories from the lowest to the highest (birads:1,2,0), each with a "
    "weight if it is not to count as much as the others (density:4@0.5)"
)
# A name becomes a column of predictions.csv and the folder of a report.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]*")
# A category that no training image reaches still has finite log odds.
_RAREST = 1e-4
_LEVELS = (Level.IMAGE, Level.BREAST)


@dataclass(frozen=True)
class Target:
    """One column to be learnt.

    Attributes:
        column: of the store's manifest.
        categories: of an ordinal column, from the lowest; empty for one of 0 and 1.
        weight: of its loss beside the others'.
    """

    column: str
    categories: tuple[str, ...] = ()
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read ``COLUMN``, ``COLUMN:4`` or ``COLUMN:1,2,0``, each optionally with ``@WEIGHT``.

        Raises:
            InputError: any other form.
        """
        described, at, weight = text.partition("@")
        column, colon, listed = described.strip().partition(":")
        categories = tuple(name.strip() for name in listed.split(",")) if colon else ()
        if len(categories) == 1 and categories[0].isdigit():
            count = int(categories[0])
            categories = tuple(map(str, range(1, count + 1))) if count <= 26 else ()
        try:
            share = float(weight) if at else 1.0
        except ValueError:
            share = 0.0
        names = (column, *categories)
        sound = (
            all(map(_NAME.fullmatch, names))
            and len(set(categories)) == len(categories)
            and (not colon or len(categories) > 1)
            and 0 < share < math.inf
        )
        if not sound:
            raise InputError(f"--target {text!r} is not understood; {_FORMS}.")
        return cls(column, categories, share)

    @property
    def names(self) -> tuple[str, ...]:
        """What the targets are called in predictions.csv, and the folders of their reports."""
        return tuple(f"{self.column}_from_{name}" for name in self.categories[1:]) or (self.column,)

    def read(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        """(rows, targets of the column) float32: 0, 1 or NaN where the column is empty.

        Raises:
            InputError: there is no such column, or it has other values.
        """
        if self.column not in rows:
            raise InputError(
                f"--target {self.column}: the store has no such column; give the label table that "
                f"has it: mammo-pd preprocess --labels TABLE --carry {self.column}; the label that "
                "the store was made with is --target label"
            )
        place = self._places(rows[self.column])
        above = np.arange(1, max(2, len(self.categories)), dtype=np.float32)
        reached = place[:, None] >= above
        return np.where(np.isnan(place)[:, None], np.nan, reached).astype(np.float32)

    def _places(self, values: pd.Series) -> npt.NDArray[np.float32]:
        """Each value's place among the categories, from 0; NaN where it is empty."""
        text = values.astype("string").str.strip()
        text = text.mask(text == "").replace({"True": "1", "False": "0", "true": "1", "false": "0"})
        # 2.0 is 2: a column with gaps is one of floats to some tools.
        text = text.str.replace(r"^([0-9]+)\.0+$", r"\1", regex=True)
        places = {name: place for place, name in enumerate(self.categories or ("0", "1"))}
        if self.categories == tuple(map(str, range(1, len(self.categories) + 1))):
            places |= {chr(ord("A") + place): place for place in range(len(self.categories))}
        found = pd.to_numeric(text.map(places)).to_numpy(np.float32, na_value=np.nan)
        other = np.isnan(found) & text.notna().to_numpy()
        if other.any():
            kind = f"the categories {', '.join(self.categories)}" if self.categories else "0 and 1"
            raise InputError(
                f"--target {self.column}: values of {counted(int(other.sum()), 'image')} are not "
                f"{kind}{such_as(text[other])}; {_FORMS}. Leave unknown values empty in the label "
                "table."
            )
        return found


class Findings(Objective):
    """Several columns, binary or ordinal; what an image lacks is left out of its loss.

    Args:
        settings: of the run; ``targets`` and ``monitor`` are read.

    Raises:
        InputError: no targets, one twice, a setting that is for one label alone, or no such metric
            to monitor.
    """

    def __init__(self, settings: TrainingSettings) -> None:
        if not settings.targets:
            raise InputError(f"training.objective findings needs --target COLUMN; {_FORMS}.")
        for name in ("target_column", "positive_share", "label_smoothing", "positive_weight"):
            if getattr(settings, name) != type(settings).model_fields[name].default:
                raise InputError(
                    f"training.{name} applies to a single label, and --target names "
                    f"{', '.join(settings.targets)}; drop it, or weight targets with @WEIGHT."
                )
        self.given = tuple(map(Target.parse, settings.targets))
        columns = [target.column for target in self.given]
        twice = next((name for name in columns if columns.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"--target {twice} is given more than once; give each column once.")
        self.target_columns = tuple(name for target in self.given for name in target.names)
        # The store's own label has the names that it has where it is learnt alone.
        self.score_columns = tuple(
            "score" if name == "label" else f"{name}_score" for name in self.target_columns
        )
        self.num_outputs = len(self.target_columns)
        self.monitor = settings.monitor or f"val_auc_{columns[0]}_image"
        if self.monitor not in self._metric_names():
            raise InputError(
                f"training.monitor {self.monitor!r} does not exist; choose one of "
                f"{', '.join(self._metric_names())}."
            )
        # Of each target: the upper categories of an ordinal column share the column's weight.
        shares = [target.weight / len(target.names) for target in self.given for _ in target.names]
        self._weights = tuple(share / sum(shares) for share in shares)

    def targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        """(rows, T) float32 of 0, 1 or NaN."""
        return np.concatenate([target.read(rows) for target in self.given], axis=1)

    def check(self, rows: pd.DataFrame, where: str) -> None:
        """Of each column two values are needed.

        Raises:
            InputError: one of them is missing.
        """
        super().check(rows, where)
        for target in self.given:
            values = target.read(rows)
            if not any(_has_both(column) for column in values.T):
                raise InputError(
                    f"{where} has no two different values of {target.column} (known of "
                    f"{counted(int((~np.isnan(values[:, 0])).sum()), 'image')}), so neither "
                    "training nor an AUC is possible; check the label table (mammo-pd preprocess "
                    "--labels), or make another split: mammo-pd split --name NEW"
                )

    def count(self, rows: pd.DataFrame) -> str:
        """Images, and of each target how many are positive of how many known."""
        counted = [
            f"{name} {int(np.nansum(column))} of {int((~np.isnan(column)).sum())}"
            for name, column in zip(self.target_columns, self.targets(rows).T, strict=True)
        ]
        return f"{len(rows)} ({', '.join(counted)})"

    def define(self, target: str) -> str:
        """The column, and of an ordinal one the categories that count."""
        for one in self.given:
            if one.categories and target in one.names:
                counted = one.categories[1 + one.names.index(target) :]
                return f"whether {one.column} is {' or '.join(counted)} ({target})"
        return target

    def column_of(self, target: str) -> str:
        """The column of a category, too."""
        return next(one.column for one in self.given if target in one.names)

    def positive(self, targets: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Positive of the first column's lowest target; never asked for, since no share is set."""
        found: npt.NDArray[np.bool_] = targets[:, 0] > 0.5
        return found

    def prepare(self, backbone: Backbone, targets: npt.NDArray[np.float32]) -> None:
        """Start the head at the shares of the training images that each target is known of.

        Raises:
            InputError: no training image, or every one, is in an upper category of an ordinal
                column.
        """
        odds = []
        for name, column in zip(self.target_columns, targets.T, strict=True):
            if not _has_both(column):
                values = "all" if (column == 1).any() else "none"
                raise InputError(
                    f"of the training images {values} count for {name}, so it cannot be learnt; "
                    "list only categories that there are, such as density:B,C,D."
                )
            share = min(max(float(np.nanmean(column)), _RAREST), 1 - _RAREST)
            odds.append(math.log(share / (1 - share)))
        bias = backbone.timm_model.get_classifier().bias
        start = 0
        for target in self.given:
            end = start + len(target.names)
            steps = [max(a - b, _RAREST) for a, b in pairwise(odds[start:end])]
            # The inverse of softplus.
            raw = [odds[start], *(step + math.log(-math.expm1(-step)) for step in steps)]
            with torch.no_grad():
                bias[start:end] = torch.tensor(raw)
            start = end

    def chance_loss(self, targets: npt.NDArray[np.float32]) -> float:
        """The entropy of each target, weighted, where it is known."""
        total = 0.0
        for weight, column in zip(self._weights, targets.T, strict=True):
            known = column[~np.isnan(column)]
            share = float(known.mean()) if len(known) else 0.0
            if 0 < share < 1:
                entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
                total += weight * entropy * len(known) / len(column)
        return total

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Weighted binary cross-entropy of the known targets, mean over the images."""
        known = ~targets.isnan()
        loss = F.binary_cross_entropy_with_logits(
            self._logits(outputs), torch.where(known, targets, 0.0), reduction="none"
        )
        per_target = (loss * known).mean(dim=0)
        # Numbers of the host one by one: a tensor made of them would wait for the device.
        return torch.stack(
            [weight * of for weight, of in zip(self._weights, per_target.unbind(), strict=True)]
        ).sum()

    def scores(self, outputs: Tensor) -> Tensor:
        """(B, T) probabilities; of an ordinal column those of each upper category or a higher."""
        return torch.sigmoid(self._logits(outputs))

    def metrics(self, rows: pd.DataFrame, scores: npt.NDArray[np.float64]) -> dict[str, float]:
        """By column AUC per image and breast, and kappa; the loss; the monitor.

        The AUC of an ordinal column is the mean over its upper categories, those that have both
        classes. Kappa is weighted quadratically, of the category that the scores lie in: the number
        of upper categories whose score is above one half.
        """
        truth = self.targets(rows)
        found = {"val_loss": self._val_loss(truth, scores)}
        start = 0
        for target in self.given:
            columns = range(start, start + len(target.names))
            start = columns.stop
            for level in _LEVELS:
                aucs = [self._auc(rows, truth[:, n], scores[:, n], level) for n in columns]
                known = [value for value in aucs if value is not None]
                found[f"val_auc_{target.column}_{level}"] = (
                    float(np.mean(known)) if known else math.nan
                )
            if target.categories:
                of_column = truth[:, columns]
                known_rows = ~np.isnan(of_column[:, 0])
                found[f"val_kappa_{target.column}"] = float(
                    cohen_kappa_score(
                        of_column[known_rows].sum(axis=1).astype(int),
                        (scores[:, columns][known_rows] > 0.5).sum(axis=1),
                        labels=list(range(len(target.categories))),
                        weights="quadratic",
                    )
                )
        return found

    def _logits(self, outputs: Tensor) -> Tensor:
        """(B, T) from the head's outputs: of an ordinal column each takes off from the one before.

        So the scores of its categories never rise.
        """
        parts = []
        start = 0
        for target in self.given:
            part = outputs[:, start : start + len(target.names)]
            start += len(target.names)
            if not target.categories:
                parts.append(part)
                continue
            first, steps = part[:, :1], F.softplus(part[:, 1:])
            parts.append(torch.cat([first, first - steps.cumsum(dim=1)], dim=1))
        return torch.cat(parts, dim=1)

    def _metric_names(self) -> Sequence[str]:
        names = ["val_loss"]
        for target in self.given:
            names += [f"val_auc_{target.column}_{level}" for level in _LEVELS]
            if target.categories:
                names.append(f"val_kappa_{target.column}")
        return names

    def _val_loss(self, truth: npt.NDArray[np.float32], scores: npt.NDArray[np.float64]) -> float:
        # As scikit-learn clips probabilities in float64.
        score = np.clip(scores, np.finfo(np.float64).eps, 1 - np.finfo(np.float64).eps)
        losses = -np.where(truth > 0.5, np.log(score), np.log1p(-score))
        losses[np.isnan(truth)] = 0.0
        return float((losses.mean(axis=0) * np.array(self._weights)).sum())

    @staticmethod
    def _auc(
        rows: pd.DataFrame,
        truth: npt.NDArray[np.float32],
        score: npt.NDArray[np.float64],
        level: Level,
    ) -> float | None:
        known = ~np.isnan(truth)
        units = aggregate(
            rows[known].assign(label=truth[known].astype(int), score=score[known]),
            level,
            Aggregation.MEAN,
        )
        if not _has_both(units["label"].to_numpy(np.float32)):
            return None
        return float(auc(units["label"], units["score"]))


def _has_both(column: npt.NDArray[np.float32]) -> bool:
    """Whether 0 and 1 are among the known values."""
    return bool((column == 0).any() and (column == 1).any())
