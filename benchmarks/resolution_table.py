"""The table and the picture of `resolution_vs_keep.py`, from its stored results alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mammo_pd.evaluation.compare import on_the_same_images, paired_by_patient
from mammo_pd.evaluation.cross_validation import average_seeds
from mammo_pd.evaluation.cutoffs import folds_of_patients
from mammo_pd.evaluation.levels import Aggregation, aggregate, with_known_label
from mammo_pd.evaluation.predictions import check_predictions
from mammo_pd.evaluation.within import auc_within_strata
from mammo_pd.files import atomic_write
from mammo_pd.terms import Level
from mammo_pd.wording import percent

_MEAN = Aggregation.MEAN
# Figure 1 of PatchDropout's official repository (https://github.com/yuliu1995/PatchDropout, Liu et
# al., WACV 2023): risk on CSAW, ViT-B/16; AUC times 100 by keep rate at 896x896, and at 224x224.
_PAPER = {896: {0.05: 65.2, 0.1: 65.6, 0.25: 66.6, 0.5: 67.0, 1.0: 66.45}, 224: {1.0: 64.7}}
_PAPER_MODEL = "vit_base_patch16_224"


@dataclass(frozen=True)
class Judged:
    """One cell of which every fold is there, for at least one seed.

    Attributes:
        name: of the cell.
        height: nominal, of the input, in pixels.
        keep: rate in training.
        draw: of the patches.
        variant: of the recipe; empty for the plan's own.
        seeds: the test images' scores by seed, all folds together.
        lines: of its runs.
    """

    name: str
    height: int
    keep: float
    draw: str
    variant: str
    seeds: dict[int, pd.DataFrame]
    lines: list[dict[str, Any]]

    @property
    def scores(self) -> pd.DataFrame:
        """Of each image the mean over the seeds."""
        return average_seeds(list(self.seeds.values()))

    @property
    def timed(self) -> list[dict[str, Any]]:
        """The runs that had a GPU to themselves; all of them where none had."""
        alone = [line for line in self.lines if line["at_once"] <= max(1, line["gpus"])]
        return alone or self.lines

    def gpu_seconds(self) -> float:
        """Of training, for one seed: all folds, without compilation, validation and scoring.

        Where some of the runs had a GPU to themselves and others had not, all count at the rate of
        those that had.
        """
        if len(self.timed) < len(self.lines):
            rate = float(np.median([line["images_per_second"] for line in self.timed]))
            return sum(line["images"] for line in self.lines) / rate / len(self.seeds)
        shares = [
            line["train_seconds"] * max(1, line["gpus"]) / max(line["at_once"], line["gpus"], 1)
            for line in self.lines
        ]
        return sum(shares) / len(self.seeds)

    def aucs(self, subset: "Subset") -> list[float]:
        """Of the single seeds."""
        return [subset.auc(table)["auc"] for table in self.seeds.values()]

    def mean_auc(self, subset: "Subset") -> float:
        """The mean of the single seeds' AUCs: what one model is worth."""
        return float(np.mean(self.aucs(subset)))

    def mean_interval(self, subset: "Subset") -> tuple[float, float]:
        """The mean of the limits of the single seeds' intervals; NaN where there are none."""
        found = [subset.auc(table) for table in self.seeds.values()]
        low, high = ([row[f"auc_ci_{end}"] for row in found] for end in ("low", "high"))
        return float(np.mean(np.array(low, float))), float(np.mean(np.array(high, float)))


@dataclass(frozen=True)
class Subset:
    """What an AUC is of.

    Attributes:
        title: for people.
        level: the units.
        kind: the positives of this lesion type against all negatives; None for all of them.
        contrasts: lowest and highest of these positives; None for all of them.
    """

    title: str
    level: Level
    kind: str | None = None
    contrasts: tuple[float, float] | None = None

    def units(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows that are judged."""
        if self.kind is not None:
            table = table[(table["label"] == 0) | (table["lesion_type"] == self.kind)]
        if self.contrasts is not None:
            within = table["lesion_contrast"].between(*self.contrasts)
            table = table[(table["label"] == 0) | within]
        known = with_known_label(table.reset_index(drop=True), self.level)
        return aggregate(known, self.level, _MEAN)

    def auc(self, table: pd.DataFrame) -> dict[str, Any]:
        """With its interval by patient; within folds where there are several."""
        units = self.units(table)
        return dict(auc_within_strata(units, _folds_of(units, table)))

    def difference(self, first: Judged, second: Judged) -> str:
        """In AUC, first less second, of the same seeds, with its interval by patient."""
        shared = [seed for seed in first.seeds if seed in second.seeds]
        if not shared:
            return ""
        tables = {
            which: average_seeds([cell.seeds[seed] for seed in shared])
            for which, cell in (("first", first), ("second", second))
        }
        aligned, _ = on_the_same_images(tables)
        one, other = self.units(aligned["first"]), self.units(aligned["second"])
        patient = np.asarray(pd.factorize(one["patient_id"])[0])
        fold = _folds_of(one, aligned["first"])
        found = paired_by_patient(one["label"], one["score"], other["score"], patient, fold)
        low, high = found.difference - found.reach, found.difference + found.reach
        return f"{found.difference:+.3f} [{low:+.3f}, {high:+.3f}]"


def _folds_of(units: pd.DataFrame, table: pd.DataFrame) -> np.ndarray:
    """(n,) the fold in which each unit was tested; 0 without folds."""
    fold = folds_of_patients(table)
    if fold is None:
        return np.zeros(len(units), dtype=np.intp)
    return np.asarray(units["patient_id"].map(fold).astype(int), dtype=np.intp)


def read_results(folders: Sequence[Path]) -> list[Judged]:
    """The complete cells of some OUT folders, by height and keep rate."""
    lines: dict[str, dict[str, Any]] = {}
    tables = []
    for folder in folders:
        for line in map(json.loads, (folder / "results.jsonl").read_text().splitlines()):
            if "error" not in line:
                lines[line["cell"]] = line
        tables.append(pd.read_parquet(folder / "predictions.parquet"))
    # Of a cell that is in two folders the later one counts, as for its line.
    predictions = pd.concat(
        [
            table[~table["cell"].isin(set().union(*(later["cell"] for later in tables[n + 1 :])))]
            for n, table in enumerate(tables)
        ],
        ignore_index=True,
    )
    tested = predictions[predictions["split"] == "test"]
    by_cell = dict(list(tested.groupby("cell", sort=False)))
    most_folds = max(len(_folds(lines, line["name"], line["seed"])) for line in lines.values())
    cells = []
    for name in dict.fromkeys(line["name"] for line in lines.values()):
        own = [line for line in lines.values() if line["name"] == name]
        seeds = {}
        for seed in sorted({line["seed"] for line in own}):
            runs = _folds(lines, name, seed)
            if len(runs) == most_folds:
                pooled = pd.concat([by_cell[line["cell"]] for line in runs], ignore_index=True)
                seeds[seed] = check_predictions(pooled)
        if seeds:
            facts = {key: own[0][key] for key in ("name", "height", "keep", "draw", "variant")}
            whole = [line for line in own if line["seed"] in seeds]
            cells.append(Judged(**facts, seeds=seeds, lines=whole))
    return sorted(cells, key=lambda c: (c.height, -c.keep, c.draw != "uniform", c.variant))


def _folds(lines: dict[str, dict[str, Any]], name: str, seed: int) -> list[dict[str, Any]]:
    return [line for line in lines.values() if line["name"] == name and line["seed"] == seed]


def _subsets(cells: Sequence[Judged]) -> list[Subset]:
    table = next(iter(cells[0].seeds.values()))
    subsets = [Subset("AUC per image", Level.IMAGE)]
    if aggregate(table, Level.BREAST)["n_images"].max() > 1:
        subsets.append(Subset("AUC per breast", Level.BREAST))
    if "lesion_type" in table:
        kinds = sorted(table["lesion_type"].dropna().unique())
        subsets += [Subset(f"of {kind}", Level.IMAGE, kind) for kind in kinds]
    return subsets


# ---- the tables


def tell(out: list[Path], picture: Path | None) -> str:
    """Markdown: every cell, then the differences that the claim is about; and draw the picture."""
    cells = read_results(out)
    subsets = _subsets(cells)
    texts = [_head(cells), _cells(cells, subsets)]
    if differences := _differences(cells, subsets):
        texts.append(differences)
    if "lesion_contrast" in next(iter(cells[0].seeds.values())):
        texts.append(_by_contrast(cells, subsets))
    front = [f"{c.height} keep {c.keep:g} {c.draw}" for c in pareto(cells, subsets[0])]
    texts.append("Pareto front, by GPU time: " + ", ".join(front) + ".")
    if picture is not None:
        draw_picture(cells, subsets, picture)
        texts.append(f"drawn: {picture.with_suffix('.svg')} and {picture.with_suffix('.png')}")
    return "\n\n".join(texts)


def _head(cells: Sequence[Judged]) -> str:
    lines = [line for cell in cells for line in cell.lines]
    test = next(iter(cells[0].seeds.values()))
    said = {
        key: sorted({str(line[key]) for line in lines}) for key in ("model", "epochs", "device")
    }
    images = sorted({line["images"] for line in lines})
    seen = " or ".join(f"{count:,}" for count in images)
    return (
        f"{', '.join(said['model'])}, {' or '.join(said['epochs'])} epochs, "
        f"{seen} images seen in a run; {', '.join(said['device'])}. "
        f"Tested: {len(test):,} images of {test['patient_id'].nunique():,} women, "
        f"{int(test['label'].sum()):,} positive. AUCs are of each image's mean score over the "
        "seeds, within folds where there are several; intervals 95 %, by woman. GPU s: of training "
        "alone, for one seed (all folds)."
    )


def _cells(cells: Sequence[Judged], subsets: Sequence[Subset]) -> str:
    head = ["height", "keep", "draw", "patches", "seeds", *(s.title for s in subsets)]
    head += ["each seed", "loss", "images/s", "waiting", "GPU s", "GiB"]
    rows = [head, ["---"] * len(head)]
    for cell in cells:
        row = [
            f"{cell.height}",
            f"{cell.keep:g}",
            " ".join(filter(None, (cell.draw, cell.variant))),
        ]
        row.append(f"{cell.lines[0]['num_keep']:,}")
        row.append(", ".join(map(str, cell.seeds)))
        for subset in subsets:
            found = subset.auc(cell.scores)
            row.append(_with_interval(found["auc"], found["auc_ci_low"], found["auc_ci_high"]))
        row.append(", ".join(f"{value:.3f}" for value in cell.aucs(subsets[0])))
        row.append(f"{np.mean([line['loss'][-1] for line in cell.lines]):.2f}")
        row.append(f"{np.median([line['images_per_second'] for line in cell.timed]):,.0f}")
        row.append(percent(float(np.median([line["wait_share"] for line in cell.timed]))))
        row.append(f"{cell.gpu_seconds():.0f}")
        row.append(f"{max(line['gib'] for line in cell.lines):.1f}")
        rows.append(row)
    return _markdown(rows)


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _differences(cells: Sequence[Judged], subsets: Sequence[Subset]) -> str:
    by_key = {(c.height, c.keep, c.draw): c for c in cells if not c.variant}
    heights = sorted({c.height for c in cells})
    draws, pairs = ("uniform", "tissue"), []
    for height in heights:
        whole = (height, 1.0, "uniform")
        pairs += [
            ("fewer patches", (height, keep, draw), whole)
            for draw in draws
            for keep in (0.5, 0.25, 0.1)
        ]
    for height in heights:
        # A quarter of four times the patches: the same compute.
        whole = (height, 1.0, "uniform")
        pairs += [("equal compute", (2 * height, 0.25, draw), whole) for draw in draws]
    for height in heights:
        pairs.append(("resolution", (2 * height, 1.0, "uniform"), (height, 1.0, "uniform")))
    for height in heights:
        pairs.append(("the draw", (height, 0.25, "tissue"), (height, 0.25, "uniform")))
    head = ["question", "first", "less second", *(s.title for s in subsets), "GPU s, times", "GiB"]
    rows = [head, ["---"] * len(head)]
    for question, first, second in pairs:
        if first in by_key and second in by_key:
            one, other = by_key[first], by_key[second]
            row = [question, *(_say(*key) for key in (first, second))]
            row += [subset.difference(one, other) for subset in subsets]
            row.append(f"{one.gpu_seconds() / other.gpu_seconds():.2f}")
            gib = [max(line["gib"] for line in cell.lines) for cell in (one, other)]
            row.append(f"{gib[0] / gib[1]:.2f}")
            rows.append(row)
    for cell in cells:
        base = by_key.get((cell.height, cell.keep, cell.draw))
        if cell.variant and base is not None:
            row = [
                "recipe",
                f"{_say(cell.height, cell.keep, cell.draw)} {cell.variant}",
                "as planned",
            ]
            row += [subset.difference(cell, base) for subset in subsets]
            rows.append([*row, f"{cell.gpu_seconds() / base.gpu_seconds():.2f}", ""])
    return _markdown(rows) if len(rows) > 2 else ""


def _by_contrast(cells: Sequence[Judged], subsets: Sequence[Subset]) -> str:
    """How many lesions a cell finds of those that stand out least, more, and most."""
    table = next(iter(cells[0].seeds.values()))
    parts = []
    for subset in subsets:
        if subset.kind is not None:
            contrast = table.loc[table["lesion_type"] == subset.kind, "lesion_contrast"]
            edges = contrast.quantile([0, 1 / 3, 2 / 3, 1]).tolist()
            for low, high in pairwise(edges):
                title = f"AUC {subset.title}, contrast {low:.2f} to {high:.2f}"
                parts.append(Subset(title, subset.level, subset.kind, (low, high)))
    rows = [["cell", *(part.title for part in parts)], ["---"] * (len(parts) + 1)]
    for cell in cells:
        name = f"{_say(cell.height, cell.keep, cell.draw)} {cell.variant}".strip()
        rows.append([name, *(f"{cell.mean_auc(part):.3f}" for part in parts)])
    return _markdown(rows)


def _say(height: int, keep: float, draw: str) -> str:
    return f"{height} keep {keep:g}" + (f" {draw}" if draw != "uniform" else "")


def _markdown(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def pareto(cells: Sequence[Judged], subset: Subset) -> list[Judged]:
    """The cells that no cell beats which takes no more GPU time, the cheapest first."""
    best, front = -1.0, []
    found = [(c.gpu_seconds(), -c.mean_auc(subset), c) for c in cells if not c.variant]
    for _, less, cell in sorted(found, key=lambda place: place[:2]):
        if -less > best:
            best = -less
            front.append(cell)
    return front


# ---- the picture

_INK, _MUTED, _GRID, _FRONT = "#1c2430", "#5b6675", "#dfe4ea", "#c3ccd6"
# From light to dark, which stay apart in grey; each line has its marker as well.
_SHADES = ("#7fb2dd", "#3f8ac6", "#0b5fa5", "#062f57")
_MARKERS = ("o", "s", "^", "D")


def draw_picture(cells: Sequence[Judged], subsets: Sequence[Subset], file: Path) -> None:
    """AUC against GPU time and memory, a line a height, beside the paper's; as SVG and PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _MUTED,
        "axes.labelcolor": _MUTED,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": _GRID,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "text.color": _INK,
        "svg.fonttype": "none",
    }
    planned = [cell for cell in cells if not cell.variant]
    kinds = [subset for subset in subsets if subset.kind is not None]
    with mpl.rc_context(style):
        figure = Figure(figsize=(13, 4.3 * (2 if kinds else 1)), layout="constrained")
        axes = figure.subplots(2 if kinds else 1, 3, squeeze=False)
        _panel(axes[0, 0], planned, subsets[0], by_memory=False)
        _panel(axes[0, 1], planned, subsets[0], by_memory=True)
        _paper_panel(axes[0, 2])
        for axis, subset in zip(axes[1] if kinds else (), kinds, strict=False):
            _panel(axis, planned, subset, by_memory=False)
        if kinds:
            axes[1, 2].axis("off")
            axes[1, 2].text(0, 1, _KEY, va="top", linespacing=1.6, color=_MUTED)
        else:
            figure.supxlabel(_KEY.replace("\n", " "), fontsize=8, color=_MUTED)
        file.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".svg", ".png"):
            with atomic_write(file.with_suffix(suffix)) as beside:
                figure.savefig(beside, format=suffix[1:], dpi=150)


_KEY = (
    "Numbers at the points: the keep rate in training.\n"
    "A point is the mean AUC of one model over the seeds;\n"
    "its bar the 95 % interval by woman, the mean of the seeds'.\n"
    "Short dashes: the single seeds.\n"
    "Hollow points: patches drawn from tissue first.\n"
    "Broad grey line: the Pareto front, what no cheaper cell reaches."
)


def _panel(axis: Any, cells: Sequence[Judged], subset: Subset, *, by_memory: bool) -> None:
    def place(cell: Judged) -> tuple[float, float]:
        x = max(line["gib"] for line in cell.lines) if by_memory else cell.gpu_seconds()
        return x, cell.mean_auc(subset)

    points = sorted(map(place, cells), key=lambda point: (point[0], -point[1]))
    front = [
        (x, y) for n, (x, y) in enumerate(points) if all(y > before for _, before in points[:n])
    ]
    axis.step(*zip(*front, strict=True), where="post", color=_FRONT, linewidth=6, zorder=1)
    for number, height in enumerate(sorted({cell.height for cell in cells})):
        colour, marker = _SHADES[number % 4], _MARKERS[number % 4]
        own = [cell for cell in cells if cell.height == height]
        drawn = sorted((place(cell), cell.keep) for cell in own if cell.draw == "uniform")
        xy = [point for point, _ in drawn]
        axis.plot(*zip(*xy, strict=True), color=colour, linewidth=1.6, zorder=2)
        for cell in own:
            x, y = place(cell)
            low, high = cell.mean_interval(subset)
            axis.plot([x, x], [low, high], color=colour, linewidth=0.7, zorder=2)
            if len(cell.seeds) > 1:
                seeds = cell.aucs(subset)
                axis.plot([x] * len(seeds), seeds, "_", color=colour, markersize=9, zorder=2)
            fill = colour if cell.draw == "uniform" else "white"
            axis.plot(x, y, marker, color=colour, markerfacecolor=fill, markersize=6, zorder=3)
            _name_keep(axis, cell.keep, x, y, below=cell.draw != "uniform")
        if drawn:
            (x, y), _ = drawn[-1]
            _name_height(axis, height, (x, y), colour)
    axis.set_xscale("log")
    _plain_numbers(axis)
    axis.margins(x=0.16)
    title = "AUC per image" if subset.kind is None else f"AUC of {subset.kind} alone"
    axis.set_title(f"{title}, by {'memory' if by_memory else 'GPU time'}")
    axis.set_xlabel("peak memory in training, GiB" if by_memory else "GPU seconds of training")


def _name_keep(axis: Any, keep: float, x: float, y: float, *, below: bool = False) -> None:
    axis.annotate(
        f"{keep:g}".removeprefix("0"),
        (x, y),
        (4, -11 if below else 5),
        textcoords="offset points",
        fontsize=7.5,
        color=_MUTED,
    )


def _name_height(axis: Any, height: int, end: tuple[float, float], colour: str) -> None:
    axis.annotate(
        f"{height} px",
        end,
        (9, -3),
        textcoords="offset points",
        color=colour,
        fontweight="bold",
        annotation_clip=False,
    )


def _paper_panel(axis: Any) -> None:
    """The paper's figures, against the operations of one image's forward pass in training."""
    from mammo_pd.perf.cost import forward_macs, keep_of, shape_of

    shape = shape_of(_PAPER_MODEL)
    for number, (side, by_keep) in enumerate(_PAPER.items()):
        colour, marker = (_SHADES[2], _MARKERS[2]) if number == 0 else (_SHADES[0], _MARKERS[0])
        xy = [
            (sum(forward_macs(shape, keep_of(shape, (side, side), keep))) / 1e9, value / 100)
            for keep, value in sorted(by_keep.items())
        ]
        axis.plot(*zip(*xy, strict=True), color=colour, marker=marker, linewidth=1.6)
        for (x, y), keep in zip(xy, sorted(by_keep), strict=True):
            _name_keep(axis, keep, x, y)
        _name_height(axis, side, xy[-1], colour)
    axis.set_xscale("log")
    _plain_numbers(axis)
    axis.margins(x=0.16)
    axis.set_title("The paper's: risk on CSAW, ViT-B/16 (another task)")
    axis.set_xlabel(
        "G multiply-accumulates of an image's forward pass, reckoned\n"
        "AUC: Liu et al., WACV 2023, figure 1 of their repository"
    )


def _plain_numbers(axis: Any) -> None:
    from matplotlib import ticker

    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
    axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(ticker.NullLocator())
