"""The report's plots: assessments go in, a picture as SVG and PNG comes out.

A plot is drawn once in the light palette; the page swaps those colours for its own variables, so
that the inlined SVG follows light and dark.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mammo_pd.evaluation.measures import Band, Estimate, LevelResults
from mammo_pd.evaluation.roc import Floats, Ranking
from mammo_pd.evaluation.thresholds import Reader
from mammo_pd.terms import Level

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Canvas

# The light palette, and the CSS variable that each colour becomes on the page.
PAPER, INK, MUTED, GRID = "#ffffff", "#1c2430", "#5b6675", "#dfe4ea"
MODEL, CHANCE, MARK, OTHER = "#0b5fa5", "#8a94a3", "#b3400f", "#7a4fa3"
VARIABLES = {
    PAPER: "--paper",
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    MODEL: "--model",
    CHANCE: "--chance",
    MARK: "--mark",
    OTHER: "--other",
}
_RC = {
    "font.size": 9.5,
    "axes.edgecolor": CHANCE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "legend.frameon": False,
    "svg.fonttype": "none",
}
_PANEL = 3.55  # inches, the side of one level's panel
_PIXELS = 1500  # points of a curve closer than 1 / this are drawn as one


@dataclass(frozen=True)
class Picture:
    """One plot.

    Attributes:
        name: the files' name without suffix.
        svg: a complete SVG document in the light palette.
        png: the same at 160 dots per inch.
        alt: what it shows, in words and numbers, for those who cannot see it.
    """

    name: str
    svg: str
    png: bytes
    alt: str

    def inline(self) -> str:
        """The SVG element alone, for a page that sets the colour variables."""
        svg = self.svg[self.svg.index("<svg") :]
        for colour, variable in VARIABLES.items():
            svg = svg.replace(colour, f"var({variable})")
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
        svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
        svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # every drawing counts its groups from 1
        # The alternative text is on the figure; the drawing's own letters would be read twice.
        return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def _canvas(width: float, height: float) -> "Canvas":
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), dpi=160, layout="constrained")


def _finish(figure: "Canvas", name: str, alt: str) -> Picture:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    svg, png = io.StringIO(), io.BytesIO()
    # Laid out once and drawn once for each: savefig would do both again and again.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": "mammo-pd"})
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": "mammo-pd"})
    return Picture(name, svg.getvalue(), png.getvalue(), alt)


def _rc(name: str) -> Any:
    import matplotlib as mpl

    # Ids inside the drawings are hashed with the name, so that drawings on one page do not clash.
    return mpl.rc_context(_RC | {"svg.hashsalt": f"mammo-pd {name}"})


def _panels(levels: Sequence[Level]) -> tuple["Canvas", list[Any]]:
    columns = min(2, len(levels))
    rows = math.ceil(len(levels) / columns)
    figure = _canvas(_PANEL * columns + 0.2, _PANEL * rows + 0.1)
    axes = figure.subplots(rows, columns, squeeze=False)
    for spare in axes.ravel()[len(levels) :]:
        spare.set_visible(False)
    return figure, list(axes.ravel()[: len(levels)])


def _unit_square(axis: Any, x: str, y: str) -> None:
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")
    ticks = np.linspace(0, 1, 6)
    axis.set_xticks(ticks)
    axis.set_yticks(ticks)


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The points of a curve that a reader can tell apart."""
    cell = np.round(np.column_stack([x, y]) * _PIXELS)
    new = np.ones(len(x), dtype=bool)
    new[1:-1] = (np.diff(cell, axis=0)[:-1] != 0).any(axis=1)
    return x[new], y[new]


def _shade(axis: Any, band: Band) -> None:
    if not np.isnan(band.low).all():
        axis.fill_between(band.x, band.low, band.high, color=MODEL, alpha=0.16, linewidth=0)


def with_interval(figures: Mapping[str, Estimate], name: str = "auc", digits: int = 3) -> str:
    """``0.812 [0.764, 0.858]``; a dash where there is no figure."""
    value, low, high = figures[name], figures.get(f"{name}_ci_low"), figures.get(f"{name}_ci_high")
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text if low is None else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def _said(levels: Mapping[Level, LevelResults], name: str) -> str:
    return "; ".join(f"{level} {with_interval(one.figures, name)}" for level, one in levels.items())


_MARKERS = {
    "youden": ("o", "Youden"),
    "cost": ("D", "cost"),
    "specificity_90": ("s", "90 % specificity"),
}


def roc(levels: Mapping[Level, LevelResults], reader: Reader | None = None) -> Picture:
    """ROC curves with their bands, one panel per level, thresholds from validation marked.

    Args:
        levels: each with both classes.
        reader: radiologists, marked at exam level.
    """
    with _rc("roc"):
        figure, axes = _panels(list(levels))
        for axis, (level, one) in zip(axes, levels.items(), strict=True):
            if one.roc is None or one.roc_band is None:
                continue
            axis.plot([0, 1], [0, 1], color=CHANCE, linestyle=(0, (4, 3)), linewidth=1)
            _shade(axis, one.roc_band)
            axis.plot(*_thinned(*one.roc), color=MODEL, linewidth=1.8)
            for point in one.operating_points:
                code = str(point["code"])
                if code in _MARKERS:
                    marker, name = _MARKERS[code]
                    axis.plot(
                        1.0 - float(point["specificity"] or 0.0),
                        point["sensitivity"],
                        marker=marker,
                        color=MARK,
                        markerfacecolor=PAPER,
                        markersize=6,
                        linestyle="none",
                        label=name,
                    )
            if reader is not None and level is Level.EXAM:
                axis.plot(
                    1.0 - reader.specificity,
                    reader.sensitivity,
                    marker="*",
                    color=OTHER,
                    markersize=11,
                    linestyle="none",
                    label="radiologists",
                )
            if axis.get_legend_handles_labels()[1]:
                title = "chosen on validation" if one.operating_points else None
                axis.legend(loc="lower right", title=title, alignment="left")
            _unit_square(axis, "1 − specificity", "sensitivity")
            axis.set_title(f"{level}: AUC {with_interval(one.figures)}")
        return _finish(
            figure, "roc", f"ROC curves. AUC with 95 % interval: {_said(levels, 'auc')}."
        )


_LINES = ((MODEL, "-"), (MARK, (0, (6, 2))), (OTHER, (0, (2, 1.2))), (INK, (0, (6, 2, 1, 2))))


def overlaid_roc(models: "Mapping[str, Mapping[Level, pd.DataFrame]]") -> Picture:
    """The ROC curves of several models on the same units, one panel per level.

    Args:
        models: units by model and level, ``label`` and ``score``.
    """
    with _rc("roc"):
        figure, axes = _panels(list(Level))
        said = []
        for axis, level in zip(axes, Level, strict=True):
            axis.plot([0, 1], [0, 1], color=CHANCE, linestyle=(0, (4, 3)), linewidth=1)
            for number, (name, units) in enumerate(models.items()):
                curve = Ranking.of(units[level]["label"], units[level]["score"]).curve()
                if not curve.has_both_classes:
                    continue
                colour, line = _LINES[number % len(_LINES)]
                points = _thinned(curve.false_positive_rate, curve.sensitivity)
                axis.plot(*points, color=colour, linestyle=line, linewidth=1.7, label=name)
                said.append(f"{level} {name} {curve.auc():.3f}")
            if axis.get_legend_handles_labels()[1]:
                axis.legend(loc="lower right")
            _unit_square(axis, "1 − specificity", "sensitivity")
            axis.set_title(str(level))
        return _finish(figure, "roc", f"ROC curves of the models. AUC: {'; '.join(said)}.")


def precision_recall(levels: Mapping[Level, LevelResults]) -> Picture:
    """Precision against recall with bands; the dashed line is the prevalence."""
    with _rc("pr"):
        figure, axes = _panels(list(levels))
        for axis, (level, one) in zip(axes, levels.items(), strict=True):
            if one.precision_recall is None:
                continue
            prevalence = float(one.figures["prevalence"] or 0.0)
            axis.axhline(prevalence, color=CHANCE, linestyle=(0, (4, 3)), linewidth=1)
            _shade(axis, one.precision_recall)
            axis.plot(one.precision_recall.x, one.precision_recall.y, color=MODEL, linewidth=1.8)
            _unit_square(axis, "sensitivity (recall)", "precision (positive predictive value)")
            axis.set_title(f"{level}: AP {with_interval(one.figures, 'average_precision')}")
        alt = f"Precision-recall curves. Average precision: {_said(levels, 'average_precision')}."
        return _finish(figure, "pr", alt)


def calibration(levels: Mapping[Level, LevelResults]) -> Picture:
    """Observed share of positives against mean score in bins of equal size."""
    with _rc("calibration"):
        figure, axes = _panels(list(levels))
        for axis, (level, one) in zip(axes, levels.items(), strict=True):
            band = one.reliability
            if band is None:
                continue
            reach = [band.x, band.y] + ([] if np.isnan(band.high).all() else [band.high])
            top = min(1.0, 1.08 * max(float(np.nanmax(values)) for values in reach))
            axis.plot([0, top], [0, top], color=CHANCE, linestyle=(0, (4, 3)), linewidth=1)
            error = np.abs(np.vstack([band.y - band.low, band.high - band.y]))
            axis.errorbar(
                band.x,
                band.y,
                yerr=np.nan_to_num(error),
                color=MODEL,
                marker="o",
                markersize=4.5,
                linewidth=1.2,
                elinewidth=1,
            )
            axis.set(xlim=(0, top), ylim=(0, top), aspect="equal")
            axis.set(xlabel="mean score in the bin", ylabel="share that is positive")
            slope = with_interval(one.figures, "calibration_slope", 2)
            axis.set_title(f"{level}: slope {slope}")
        alt = f"Reliability curves. Calibration slope: {_said(levels, 'calibration_slope')}."
        return _finish(figure, "calibration", alt)


def scores(levels: Mapping[Level, tuple[Floats, Floats]]) -> Picture:
    """How the scores of positives and negatives lie, each as a share of its class.

    Args:
        levels: label and score, (n,) each.
    """
    with _rc("scores"):
        figure, axes = _panels(list(levels))
        edges = np.linspace(0, 1, 41)
        said = []
        for axis, (level, (label, score)) in zip(axes, levels.items(), strict=True):
            tallest = 0.0
            # One class up, the other down: told apart without colour.
            for kind, name, colour, way in ((1, "positive", MODEL, 1), (0, "negative", CHANCE, -1)):
                of_class = score[label == kind]
                if len(of_class):
                    share = np.histogram(of_class, edges)[0] / len(of_class)
                    tallest = max(tallest, float(share.max()))
                    axis.stairs(way * share, edges, color=colour, fill=True, alpha=0.75)
                    said.append(f"{level} {name} median {np.median(of_class):.3f}")
                axis.text(
                    0.98, 0.5 + way * 0.44, name, transform=axis.transAxes, ha="right", va="center"
                )
            axis.axhline(0, color=INK, linewidth=0.8)
            axis.set(xlim=(0, 1), xlabel="score", ylabel="share of the class", title=str(level))
            axis.set_ylim(-1.1 * tallest, 1.1 * tallest)
            axis.yaxis.set_major_formatter(lambda share, _: f"{abs(share):.2f}")
        return _finish(figure, "scores", f"Histograms of scores: {'; '.join(said)}.")


def forest(
    name: str, rows: Sequence[Mapping[str, Estimate]], overall: Mapping[str, float]
) -> Picture:
    """AUC and interval of each stratum as a row, grouped, with the overall AUC as a line.

    Args:
        name: of the picture.
        rows: ``group, name, auc, auc_ci_low, auc_ci_high, n, n_positive``.
        overall: the AUC of all units, per group.
    """
    groups = list(dict.fromkeys(str(row["group"]) for row in rows))
    lines = len(rows) + len(groups)
    with _rc(name):
        figure = _canvas(2 * _PANEL + 0.2, 0.28 * lines + 0.9)
        axis = figure.subplots()
        height, ticks, names, said = 0.0, [], [], []
        for group in groups:
            members = [row for row in rows if row["group"] == group]
            ticks.append(height)
            names.append(group)
            if group in overall:
                span = [height + 0.5, height + len(members) + 0.5]
                axis.plot([overall[group]] * 2, span, color=OTHER, linewidth=1.2)
            for row in members:
                height += 1
                ticks.append(height)
                names.append(f"{row['name']} · {row['n_positive']:,} / {row['n']:,}")
                if row["auc"] is None:
                    said_so = axis.text(0.02, height, "no AUC: too few", color=MUTED, va="center")
                    said_so.set_transform(axis.get_yaxis_transform())
                    said_so.set_bbox({"facecolor": PAPER, "linewidth": 0, "pad": 1})
                    continue
                if row["auc_ci_low"] is not None and row["auc_ci_high"] is not None:
                    span = [float(row["auc_ci_low"]), float(row["auc_ci_high"])]
                    axis.plot(span, [height] * 2, color=MODEL, linewidth=1.6)
                axis.plot(float(row["auc"]), height, "s", color=MODEL, markersize=5)
                said.append(f"{group} {row['name']} {with_interval(row)}")
            height += 1
        axis.axvline(0.5, color=CHANCE, linestyle=(0, (4, 3)), linewidth=1)
        axis.set_yticks(ticks, names)
        for tick in axis.get_yticklabels():
            if tick.get_text() in groups:
                tick.set(weight="bold", color=INK)
        axis.set_ylim(height - 0.4, -0.7)
        known = [float(row["auc_ci_low"]) for row in rows if row["auc_ci_low"] is not None]
        known += [float(row["auc"]) for row in rows if row["auc"] is not None]
        axis.set_xlim(min([0.45, *known]) - 0.02, 1.01)
        axis.set_xlabel("AUC with 95 % interval")
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        return _finish(figure, name, f"AUC by group: {'; '.join(said) or 'too few in each'}.")
