"""How often do the report's 95 % intervals hold the true value? Sets of 120 simulated patients.

    python benchmarks/interval_coverage.py [--sets 1000] [--out TABLE.md]

Every patient has one exam of two breasts of two views. The logit of an image's score has an effect
of the patient, one of the breast and one of the image; one breast of a patient with cancer is
positive. The true value of a figure is the one that the same code gives for 100,000 patients of
the same law. Figures of one class (sensitivity, AUC), and those re-weighted to a stated prevalence,
are measured on sets with exactly 18, 12 or 5 positive patients; figures that depend on the
prevalence of the data (PPV, Brier) on sets drawn at random, with so many positive ones on average.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn

from mammo_pd.evaluation.measures import LevelResults, assess
from mammo_pd.evaluation.thresholds import Reader, Threshold
from mammo_pd.wording import percent

PATIENTS = 120
POSITIVES = (18, 12, 5)
MODELS = {"plain": 1.0, "strong": 2.6}
LEVELS = ("image", "breast", "exam")
_POPULATION = 100_000
_PREVALENCE = {"image": 0.0015, "breast": 0.003, "exam": 0.006}
_READER = Reader(0.869, 0.889)  # Lehman et al. 2017, of 1.7 million mammograms
# Standard deviations of the effects of patient, breast and image on the logit.
_SPREAD = (0.6, 0.5, 0.7)
_INTERCEPT = -3.0
_ROC_GRID = (0.05, 0.1, 0.2, 0.5)
_PR_GRID = (0.2, 0.5, 0.8, 0.9)

Units = dict[str, pd.DataFrame]


def units(random: np.random.Generator, patients: int, positive: int, shift: float) -> Units:
    """Images, breasts and exams of ``patients`` patients, of whom ``positive`` have a cancer."""
    of_patient, of_breast, of_image = _SPREAD
    logit = _INTERCEPT + of_patient * random.normal(size=(patients, 1, 1))
    logit = logit + of_breast * random.normal(size=(patients, 2, 1))
    logit = logit + of_image * random.normal(size=(patients, 2, 2))
    label = np.zeros((patients, 2, 2), dtype=np.int64)
    label[:positive, 0] = 1
    score = 1.0 / (1.0 + np.exp(-(logit + shift * label)))
    patient = np.arange(patients)
    of_level = {
        "image": (np.repeat(patient, 4), label.ravel(), score.ravel()),
        "breast": (np.repeat(patient, 2), label[:, :, 0].ravel(), score.mean(axis=2).ravel()),
        "exam": (patient, label[:, 0, 0], score.mean(axis=(1, 2))),
    }
    return {
        level: pd.DataFrame(dict(zip(("patient_id", "label", "score"), columns, strict=True)))
        for level, columns in of_level.items()
    }


@dataclass(frozen=True)
class Law:
    """A population: thresholds and true values by level.

    Attributes:
        shift: how far a cancer moves the logit.
        positives: expected number of positive patients among ``PATIENTS``.
        thresholds: fixed ones, of 90 % sensitivity and of 90 % specificity in the population.
        truth: true values by design, level and figure.
        population: the units by level.
    """

    shift: float
    positives: int
    thresholds: dict[str, list[Threshold]]
    truth: dict[str, dict[str, dict[str, float]]]
    population: Units

    @classmethod
    def of(cls, shift: float, positives: int, seed: int) -> "Law":
        """Draw the population and measure it."""
        random = np.random.default_rng(seed)
        population = units(random, _POPULATION, round(_POPULATION * positives / PATIENTS), shift)
        thresholds = {}
        for level, rows in population.items():
            label, score = rows["label"].to_numpy(), rows["score"].to_numpy()
            thresholds[level] = [
                Threshold("at_sensitive", "", float(np.quantile(score[label == 1], 0.1))),
                Threshold("at_specific", "", float(np.quantile(score[label == 0], 0.9))),
            ]
        law = cls(shift, positives, thresholds, {"fixed": {}, "drawn": {}}, population)
        for design, of_design in law.truth.items():
            for level in LEVELS:
                results = law.assess(design, level, population[level])
                of_design[level] = {name: value for name, value, _ in figures(results)}
        return law

    def assess(self, design: str, level: str, rows: pd.DataFrame) -> LevelResults:
        """Every figure of one set at one level."""
        fixed = design == "fixed"
        return assess(
            rows,
            thresholds=self.thresholds[level],
            prevalence=_PREVALENCE[level] if fixed else None,
            reader=_READER,
        )

    def drawn(self, design: str, random: np.random.Generator) -> Units:
        """One set; at least two of its patients are positive, or nothing has an interval."""
        count = self.positives
        while design == "drawn":
            count = int(random.binomial(PATIENTS, self.positives / PATIENTS))
            if count >= 2:
                break
        return units(random, PATIENTS, count, self.shift)


def figures(results: LevelResults) -> Iterator[tuple[str, float, tuple[float, float] | None]]:
    """Every figure that has an interval, with its value and its interval or None."""

    def of(row: dict, name: str) -> tuple[float, tuple[float, float] | None]:
        value, low, high = (row[key] for key in (name, f"{name}_ci_low", f"{name}_ci_high"))
        return np.nan if value is None else value, None if low is None else (low, high)

    metrics = results.metrics
    for key in metrics:
        name = key.removesuffix("_ci_low")
        if name != key and name in metrics:
            yield name, *of(metrics, name)
    if "auc_delong_ci_low" in metrics:
        low, high = metrics["auc_delong_ci_low"], metrics["auc_delong_ci_high"]
        yield "auc_delong", metrics["auc"], None if low is None else (low, high)
    for point in results.operating_points:
        for name in ("sensitivity", "specificity", "recall_rate", "ppv", "npv"):
            yield f"{name} {point['code']}", *of(point, name)
    for row in results.lift:
        for name in ("sensitivity", "ppv", "lift"):
            yield f"{name} of top {percent(row['share_flagged'])}", *of(row, name)
    for band, name, grid in (
        (results.roc_band, "roc_band", _ROC_GRID),
        (results.precision_recall_band, "precision_band", _PR_GRID),
    ):
        for x in grid:
            i = int(np.argmin(np.abs(band.x - x)))
            interval = None if np.isnan(band.low[i]) else (band.low[i], band.high[i])
            yield f"{name} {x:g}", float(band.y[i]), interval


# Which figures depend on the prevalence of the data: measured on sets drawn at random.
_MIXED = (
    "recall_rate",
    "ppv",
    "npv",
    "lift",
    "average_precision",
    "pf1",
    "brier",
    "expected",
    "calibration",
    "precision_band",
    "reliability",
)


def _belongs(name: str, design: str) -> bool:
    re_weighted = ("recall_rate", "ppv", "npv", "lift", "average_precision_at_prevalence")
    if design == "drawn":
        return name.startswith(_MIXED)
    return not name.startswith(_MIXED) or name.startswith(re_weighted)


def _reliability(
    results: LevelResults, rows: pd.DataFrame, population: pd.DataFrame
) -> Iterator[tuple[bool, bool]]:
    """For each bin: has it an interval, and does that hold the population's share of positives?"""
    band = results.reliability
    falling = np.sort(rows["score"].to_numpy())[::-1]
    ends = np.cumsum(results.reliability_n)
    # Bins meet half-way between their scores.
    cuts = (falling[ends[:-1] - 1] + falling[ends[:-1]]) / 2.0
    bin_of = np.searchsorted(-cuts, -population["score"].to_numpy(), side="right")
    positive = np.bincount(bin_of, weights=population["label"], minlength=len(ends))
    share = positive / np.maximum(np.bincount(bin_of, minlength=len(ends)), 1)
    for i, true in enumerate(share):
        yield not np.isnan(band.low[i]), bool(band.low[i] <= true <= band.high[i])


def coverage(law: Law, *, sets: int, seed: int) -> pd.DataFrame:
    """Coverage of every figure, in percent.

    Returns:
        Columns ``figure, level, covered`` (percent of the intervals that hold the true value),
        ``shown`` (percent of the sets that have one), ``width`` (their median width).
    """
    found: dict[tuple[str, str], list[tuple[bool, bool, float]]] = {}
    for design in ("fixed", "drawn"):
        random = np.random.default_rng([seed, design == "drawn"])
        small = {
            level: rows.sample(50_000, random_state=0) for level, rows in law.population.items()
        }
        for _ in range(sets):
            for level, rows in law.drawn(design, random).items():
                results = law.assess(design, level, rows)
                truth = law.truth[design][level]
                for name, value, interval in figures(results):
                    if not _belongs(name, design) or np.isnan(value):
                        continue
                    key = f"{name}, re-weighted" if _re_weighted(name, design) else name
                    cell = found.setdefault((key, level), [])
                    low, high = interval or (np.nan, np.nan)
                    cell.append((interval is not None, low <= truth[name] <= high, high - low))
                if design == "drawn" and results.reliability is not None:
                    cell = found.setdefault(("reliability", level), [])
                    cell += [(*one, 0.0) for one in _reliability(results, rows, small[level])]
    rows = []
    for (name, level), cell in found.items():
        shown, covered, width = np.array(cell, dtype=np.float64).T
        known = shown == 1
        rows.append(
            {
                "figure": name,
                "level": level,
                "covered": 100.0 * covered[known].mean() if known.any() else np.nan,
                "shown": 100.0 * shown.mean(),
                "width": float(np.median(width[known])) if known.any() else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _re_weighted(name: str, design: str) -> bool:
    return design == "fixed" and name.startswith(("recall_rate", "ppv", "npv", "lift"))


def _cell(rows: pd.DataFrame) -> str:
    """``95 / 96 / 94``: image, breast, exam; a dash where fewer than half of the sets have one."""
    by_level = rows.set_index("level")
    text = []
    for level in LEVELS:
        if level not in by_level.index or by_level.loc[level, "shown"] < 50.0:
            text.append("–")
            continue
        shown = by_level.loc[level, "shown"]
        text.append(
            f"{by_level.loc[level, 'covered']:.0f}" + (f"({shown:.0f})" if shown < 95 else "")
        )
    return "–" if set(text) == {"–"} else " / ".join(text)


def table(found: pd.DataFrame) -> str:
    """A Markdown table: a row for each figure, a column for each model and number of positives."""
    columns = [(model, count) for model in MODELS for count in POSITIVES]
    lines = [
        "| figure | " + " | ".join(f"{model}, {count}" for model, count in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in found["figure"].drop_duplicates():
        of_figure = found[found["figure"] == name]
        cells = [
            _cell(of_figure[(of_figure["model"] == model) & (of_figure["positives"] == count)])
            for model, count in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure all laws and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    sklearn.set_config(skip_parameter_validation=True, assume_finite=True)
    found = []
    for i, (model, shift) in enumerate(MODELS.items()):
        for positives in POSITIVES:
            law = Law.of(shift, positives, seed=99 + i)
            one = coverage(law, sets=chosen.sets, seed=100 * i + positives)
            found.append(one.assign(model=model, positives=positives))
            print(f"{model}, {positives}: done", flush=True)
            if chosen.out:
                pd.concat(found).to_csv(chosen.out.with_suffix(".csv"), index=False)
    every = pd.concat(found, ignore_index=True)
    error = 100.0 * np.sqrt(0.95 * 0.05 / chosen.sets)
    text = (
        f"{date.today()}: {chosen.sets:,} sets each; standard error of a coverage of 95: "
        f"{error:.1f}.\n\n{table(every)}\n"
    )
    print(text)
    if chosen.out:
        chosen.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
