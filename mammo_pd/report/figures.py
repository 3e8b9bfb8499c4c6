"""The report's figures: results go in, plots as SVG and PNG come out.

A figure is drawn once, in the light palette; the page replaces those colours with CSS variables, so
that the inlined SVG follows the light or dark theme. matplotlib is slow to import and is loaded
when the first figure is drawn.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score, roc_curve

from mammo_pd.evaluation.cutoffs import FIXED_RULE
from mammo_pd.evaluation.measures import Band, LevelResults
from mammo_pd.evaluation.roc import Floats
from mammo_pd.evaluation.thresholds import Reader
from mammo_pd.report.content import Programme, Report, Row, headline_first
from mammo_pd.report.notes import Words, words_of
from mammo_pd.report.numbers import with_interval
from mammo_pd.terms import Level

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

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
    "text.parse_math": False,  # names of models and sites may contain a dollar sign
}
_PANEL = 3.55  # inches, the side of one level's panel
_LONGEST = 34  # characters of a name in a figure; the tables have it whole
_MARGIN = 3.0  # points around a panel
_PIXELS = 1500  # points of a curve closer than 1 / 1500 of the axis are drawn as one


@dataclass(frozen=True)
class Figure:
    """One figure of the report.

    Attributes:
        name: file name without suffix.
        svg: a complete SVG document in the light palette.
        png: the same at 160 dots per inch.
        alt: text alternative: what it shows, with the numbers.
        panels: left, top, width and height of each panel in the drawing's own units.
    """

    name: str
    svg: str
    png: bytes
    alt: str
    panels: tuple[tuple[float, float, float, float], ...] = ()

    def inline(self) -> str:
        """The drawing, then an SVG element for each panel, for a page with the colour variables.

        On a narrow page panels lie below one another, where a drawing of them all would shrink
        until nobody could read it.
        """
        # Without the XML declaration and doctype, which may not stand inside HTML.
        svg = self.svg[self.svg.index("<svg") :]
        for colour, variable in VARIABLES.items():
            svg = svg.replace(colour, f"var({variable})")
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
        svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
        svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # matplotlib numbers each figure's groups from 1
        # The text alternative is on <figure>; a screen reader would also read every axis label.
        hidden = 'aria-hidden="true" focusable="false"'
        if not self.panels:
            return svg.replace("<svg ", f"<svg {hidden} ", 1)
        begin, end = svg.index(">") + 1, svg.rindex("</svg>")
        drawing = f"drawing-{self.name}"
        shown = "".join(
            f'<svg {hidden} viewBox="{left:.1f} {top:.1f} {width:.1f} {height:.1f}">'
            f'<use href="#{drawing}"/></svg>'
            for left, top, width, height in self.panels
        )
        return (
            f'<svg {hidden} class="drawing"><g id="{drawing}">{svg[begin:end]}</g></svg>'
            f'<div class="panels">{shown}</div>'
        )


def figures_of(report: Report) -> list[Figure]:
    """The figures that the results allow, in the page's order."""
    with_curve = {
        level: results
        for level, results in headline_first(report.levels).items()
        if results.roc is not None
    }
    figures = []
    if report.programme is not None:
        figures.append(net_benefit(report.programme, words_of(report.context.label_definition)))
    if with_curve:
        figures += [
            roc(
                with_curve,
                report.computation.reader,
                "other folds" if report.computation.cross_fitted else "validation",
            ),
            precision_recall(with_curve),
            calibration(with_curve),
        ]
    figures.append(
        scores(
            {
                level: (units["label"].to_numpy(), units["score"].to_numpy())
                for level, units in headline_first(report.units).items()
            }
        )
    )
    aucs = {
        level.value: float(auc)
        for level, results in report.levels.items()
        if (auc := results.metrics["auc"]) is not None
    }
    if report.compared:
        rows = [{**row, "group": _group(row), "name": row["value"]} for row in report.compared]
        measures = [Measure("auc", "AUC", chance=0.5)]
        if any(row.get("sensitivity") is not None for row in rows):
            measures.append(Measure("sensitivity", "Sensitivity"))
        levels = {str(row["group"]): Level(str(row["level"])) for row in rows}
        overall = {
            "auc": {group: aucs[level] for group, level in levels.items() if level in aucs},
            "sensitivity": {
                group: float(point["sensitivity"])
                for group, level in levels.items()
                for point in report.levels[level].operating_points
                if point["code"] == FIXED_RULE and point["sensitivity"] is not None
            },
        }
        figures.append(forest("strata", rows, measures, overall))
    if report.folds:
        rows = [
            {**row, "group": str(row["level"]), "name": f"fold {row['fold']}"}
            for row in report.folds
        ]
        figures.append(forest("folds", rows, [Measure("auc", "AUC", chance=0.5)], {"auc": aucs}))
    return figures


def _group(row: Row) -> str:
    return f"{str(row['column']).replace('_', ' ')} (per {row['level']})"


def _drawing(width: float, height: float) -> "Drawing":
    from matplotlib.figure import Figure as Drawing

    # Not through pyplot, which keeps every figure and may want a display.
    return Drawing(figsize=(width, height), dpi=160, layout="constrained")


def _finish(drawing: "Drawing", name: str, alt: str) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    svg, png = io.StringIO(), io.BytesIO()
    # A canvas from the start: without one, each measurement of a text makes a bitmap of its own.
    canvas = FigureCanvasAgg(drawing)
    # Lay out once: savefig would repeat the constrained layout for each format.
    drawing.draw_without_rendering()
    drawing.set_layout_engine("none")
    panels = _panels_of(drawing)
    canvas.print_png(png, metadata={"Software": "mammo-pd"})
    FigureCanvasSVG(drawing).print_svg(svg, metadata={"Date": None, "Creator": "mammo-pd"})
    return Figure(name, svg.getvalue(), png.getvalue(), alt, panels)


def _panels_of(drawing: "Drawing") -> tuple[tuple[float, float, float, float], ...]:
    """Where each panel lies with all its text, in points from the top left."""
    # The SVG is drawn at 72 units per inch, whatever the resolution of the PNG.
    scale, height = 72.0 / drawing.dpi, drawing.get_figheight() * 72.0
    tight = (axis.get_tightbbox() for axis in drawing.axes if axis.get_visible())
    boxes = (box for box in tight if box is not None)
    return tuple(
        (
            box.x0 * scale - _MARGIN,
            height - box.y1 * scale - _MARGIN,
            box.width * scale + 2 * _MARGIN,
            box.height * scale + 2 * _MARGIN,
        )
        for box in boxes
    )


def _rc(name: str) -> Any:
    import matplotlib as mpl

    # matplotlib hashes the ids of clip paths and markers with this salt: fixed, so that the SVG is
    # reproducible; one for each figure, so that ids on the page are unique.
    return mpl.rc_context(_RC | {"svg.hashsalt": f"mammo-pd {name}"})


def _panels(levels: Sequence[Level]) -> tuple["Drawing", list[Any]]:
    columns = min(2, len(levels))
    rows = math.ceil(len(levels) / columns)
    drawing = _drawing(_PANEL * columns + 0.2, _PANEL * rows + 0.1)
    axes = drawing.subplots(rows, columns, squeeze=False)
    for spare in axes.ravel()[len(levels) :]:
        spare.set_visible(False)
    return drawing, list(axes.ravel()[: len(levels)])


def _unit_square(axis: Any, x: str, y: str) -> None:
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")
    ticks = np.linspace(0, 1, 6)
    axis.set_xticks(ticks)
    axis.set_yticks(ticks)


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Drop points that would be drawn on their predecessor's pixel, to keep the SVG small."""
    cell = np.round(np.column_stack([x, y]) * _PIXELS)
    new = np.ones(len(x), dtype=bool)
    # The last point always stays: the curve must reach its end.
    new[1:-1] = (np.diff(cell, axis=0)[:-1] != 0).any(axis=1)
    return x[new], y[new]


def _shade(axis: Any, band: Band) -> None:
    if not np.isnan(band.low).all():
        axis.fill_between(band.x, band.low, band.high, color=MODEL, alpha=0.16, linewidth=0)


def _listed(levels: Mapping[Level, LevelResults], name: str) -> str:
    return "; ".join(
        f"{level} {with_interval(results.metrics, name)}" for level, results in levels.items()
    )


# The operating points that are marked: too many more would hide the curve.
_MARKERS = {
    "youden": ("o", "Youden"),
    "cost": ("D", "cost"),
    "specificity_90": ("s", "90 % specificity"),
}


def roc(
    levels: Mapping[Level, LevelResults],
    reader: Reader | None = None,
    chosen_on: str = "validation",
) -> Figure:
    """ROC curves with bands, one panel per level, with operating points marked.

    Args:
        levels: each with both classes.
        reader: radiologists, marked at exam level.
        chosen_on: what the operating points were chosen on.
    """
    with _rc("roc"):
        drawing, axes = _panels(list(levels))
        for axis, (level, results) in zip(axes, levels.items(), strict=True):
            if results.roc is None or results.roc_band is None:
                continue
            axis.plot([0, 1], [0, 1], color=CHANCE, linestyle=(0, (4, 3)), linewidth=1)
            _shade(axis, results.roc_band)
            axis.plot(*_thinned(*results.roc), color=MODEL, linewidth=1.8)
            for point in results.operating_points:
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
                title = f"chosen on {chosen_on}" if results.operating_points else None
                axis.legend(loc="lower right", title=title, alignment="left")
            _unit_square(axis, "1 − specificity", "sensitivity")
            axis.set_title(f"{level}: AUC {with_interval(results.metrics)}")
        alt = f"ROC curves. AUC with 95 % interval: {_listed(levels, 'auc')}."
        return _finish(drawing, "roc", alt)


_LINES = ((MODEL, "-"), (MARK, (0, (6, 2))), (OTHER, (0, (2, 1.2))), (INK, (0, (6, 2, 1, 2))))


def overlaid_roc(models: Mapping[str, Mapping[Level, pd.DataFrame]]) -> Figure:
    """The ROC curves of several models on the same units, one panel per level.

    Args:
        models: units by model and level, ``label`` and ``score``.
    """
    with _rc("roc"):
        levels = list(headline_first(dict.fromkeys(Level)))
        drawing, axes = _panels(levels)
        listed = []
        for axis, level in zip(axes, levels, strict=True):
            axis.plot([0, 1], [0, 1], color=CHANCE, linestyle=(0, (4, 3)), linewidth=1)
            for number, (name, units) in enumerate(models.items()):
                label, score = units[level]["label"], units[level]["score"]
                if label.nunique() < 2:
                    continue
                colour, line = _LINES[number % len(_LINES)]
                false_positive_rate, sensitivity, _ = roc_curve(label, score)
                points = _thinned(false_positive_rate, sensitivity)
                axis.plot(*points, color=colour, linestyle=line, linewidth=1.7, label=_end_of(name))
                listed.append(f"{level} {name} {roc_auc_score(label, score):.3f}")
            if axis.get_legend_handles_labels()[1]:
                axis.legend(loc="lower right")
            _unit_square(axis, "1 − specificity", "sensitivity")
            axis.set_title(str(level))
        return _finish(drawing, "roc", f"ROC curves of the models. AUC: {'; '.join(listed)}.")


def _end_of(name: str) -> str:
    """A model's name, or the end of a long path, which is where paths differ."""
    return name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]


def precision_recall(levels: Mapping[Level, LevelResults]) -> Figure:
    """Precision-recall curves with bands; the dashed line is the prevalence."""
    with _rc("pr"):
        drawing, axes = _panels(list(levels))
        for axis, (level, results) in zip(axes, levels.items(), strict=True):
            if results.precision_recall is None or results.precision_recall_band is None:
                continue
            prevalence = float(results.metrics["prevalence"] or 0.0)
            axis.axhline(prevalence, color=CHANCE, linestyle=(0, (4, 3)), linewidth=1)
            _shade(axis, results.precision_recall_band)
            # In steps: between two recalls precision does not change linearly.
            points = _thinned(*results.precision_recall)
            axis.plot(*points, color=MODEL, linewidth=1.6, drawstyle="steps-post")
            _unit_square(axis, "sensitivity (recall)", "precision (positive predictive value)")
            axis.set_title(f"{level}: AP {with_interval(results.metrics, 'average_precision')}")
        alt = f"Precision-recall curves. Average precision: {_listed(levels, 'average_precision')}."
        return _finish(drawing, "pr", alt)


def calibration(levels: Mapping[Level, LevelResults]) -> Figure:
    """Reliability diagrams: observed share of positives against mean score, in equal-sized bins."""
    with _rc("calibration"):
        drawing, axes = _panels(list(levels))
        for axis, (level, results) in zip(axes, levels.items(), strict=True):
            band = results.reliability
            if band is None:
                continue
            # Scores of a rare finding crowd near 0: the axes end where the points do.
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
            smooth = results.smooth_calibration
            if smooth is not None:
                axis.plot(smooth.score, smooth.observed, color=INK, linewidth=0.9)
            axis.set(xlim=(0, top), ylim=(0, top), aspect="equal")
            axis.set(xlabel="mean score in the bin", ylabel="observed share of positives")
            slope = with_interval(results.metrics, "calibration_slope", 2)
            axis.set_title(f"{level}: slope {slope}")
        alt = f"Reliability diagrams. Calibration slope: {_listed(levels, 'calibration_slope')}."
        return _finish(drawing, "calibration", alt)


def scores(levels: Mapping[Level, tuple[Floats, Floats]]) -> Figure:
    """Score histograms of positives and negatives, each normalised to its class.

    Args:
        levels: label and score, (n,) each.
    """
    with _rc("scores"):
        drawing, axes = _panels(list(levels))
        edges = np.linspace(0, 1, 41)
        listed = []
        for axis, (level, (label, score)) in zip(axes, levels.items(), strict=True):
            tallest = 0.0
            # One class up, the other down: distinguishable without colour.
            for value, name, colour, sign in (
                (1, "positive", MODEL, 1),
                (0, "negative", CHANCE, -1),
            ):
                of_class = score[label == value]
                if len(of_class):
                    share = np.histogram(of_class, edges)[0] / len(of_class)
                    tallest = max(tallest, float(share.max()))
                    axis.stairs(sign * share, edges, color=colour, fill=True, alpha=0.75)
                    listed.append(f"{level} {name} median {np.median(of_class):.3f}")
                axis.text(
                    0.98, 0.5 + sign * 0.44, name, transform=axis.transAxes, ha="right", va="center"
                )
            axis.axhline(0, color=INK, linewidth=0.8)
            axis.set(xlim=(0, 1), xlabel="score", ylabel="share of the class", title=str(level))
            axis.set_ylim(-1.1 * tallest, 1.1 * tallest)
            axis.yaxis.set_major_formatter(lambda share, _: f"{abs(share):.2f}")
        return _finish(drawing, "scores", f"Score histograms: {'; '.join(listed)}.")


@dataclass(frozen=True)
class Measure:
    """What a forest plot shows in one panel.

    Attributes:
        key: of the row's value, whose limits are ``KEY_ci_low`` and ``KEY_ci_high``.
        name: for people.
        chance: drawn as a dashed line, if there is one.
    """

    key: str
    name: str
    chance: float | None = None


def forest(
    name: str,
    rows: Sequence[Row],
    measures: Sequence[Measure],
    overall: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Forest plot: value and interval of each row, grouped, with that of all units as a line.

    Args:
        name: of the figure.
        rows: ``group, name, n, n_positive`` and the measures with their limits.
        measures: one panel each.
        overall: the value of all units, by measure and group.
    """
    groups = list(dict.fromkeys(str(row["group"]) for row in rows))
    lines = len(rows) + len(groups)
    listed: list[str] = []
    with _rc(name):
        drawing = _drawing(4.6 * len(measures), 0.28 * lines + 0.9)
        panels = drawing.subplots(1, len(measures), squeeze=False).ravel()
        for axis, measure in zip(panels, measures, strict=True):
            listed += _forest_panel(axis, groups, rows, measure, overall[measure.key])
        said = "; ".join(listed) or "too few in each"
        names = " and ".join(measure.name for measure in measures)
        return _finish(drawing, name, f"{names} by group: {said}.")


def _forest_panel(
    axis: Any,
    groups: Sequence[str],
    rows: Sequence[Row],
    measure: Measure,
    overall: Mapping[str, float],
) -> list[str]:
    """Draw one measure, and return its description in words."""
    height, ticks, names, listed = 0.0, [], [], []
    key = measure.key
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
            called = str(row["name"])
            called = called if len(called) <= _LONGEST else called[: _LONGEST - 1] + "…"
            names.append(f"{called} · {row['n_positive']:,} / {row['n']:,}")
            value, low, high = (row.get(f"{key}{end}") for end in ("", "_ci_low", "_ci_high"))
            if value is None:
                note = axis.text(0.02, height, "too few", color=MUTED, va="center")
                note.set_transform(axis.get_yaxis_transform())
                # On paper colour, to keep grid lines out of the words.
                note.set_bbox({"facecolor": PAPER, "linewidth": 0, "pad": 1})
                continue
            if low is not None and high is not None:
                axis.plot([float(low), float(high)], [height] * 2, color=MODEL, linewidth=1.6)
            axis.plot(float(value), height, "s", color=MODEL, markersize=5)
            listed.append(f"{group} {row['name']} {measure.name} {with_interval(row, key)}")
        height += 1
    if measure.chance is not None:
        axis.axvline(measure.chance, color=CHANCE, linestyle=(0, (4, 3)), linewidth=1)
    axis.set_yticks(ticks, names)
    for tick in axis.get_yticklabels():
        if tick.get_text() in groups:
            tick.set(weight="bold", color=INK)
    axis.set_ylim(height - 0.4, -0.7)
    # Most AUCs lie above chance, so the axis starts near there unless a row lies below it.
    start = 0.0 if measure.chance is None else measure.chance - 0.05
    cells = [row.get(f"{key}{end}") for row in rows for end in ("", "_ci_low")]
    known = [float(cell) for cell in cells if cell is not None]
    axis.set_xlim(min([start, *known]) - 0.02, 1.01)
    axis.set_xlabel(f"{measure.name} with 95 % interval")
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    return listed


def net_benefit(programme: Programme, words: Words) -> Figure:
    """Decision curve: net benefit per 1,000 women over the risk at which one would recall."""
    rows = programme.decision_curve
    columns = {
        name: np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=float)
        for name in rows[0]
    }
    risk = 100.0 * columns["threshold_probability"]
    worth = {name: 1000.0 * values for name, values in columns.items()}
    with _rc("decision_curve"):
        drawing = _drawing(4.6, 3.4)
        axis = drawing.subplots()
        low, high = worth["net_benefit_ci_low"], worth["net_benefit_ci_high"]
        axis.fill_between(risk, low, high, color=MODEL, alpha=0.16, linewidth=0)
        axis.plot(risk, worth["net_benefit"], color=MODEL, linewidth=1.8, label="model")
        everyone = worth["net_benefit_all"]
        axis.plot(risk, everyone, color=INK, linewidth=1.1, linestyle=(0, (5, 2)), label="all")
        axis.axhline(0.0, color=CHANCE, linewidth=1.4, linestyle=(0, (1, 1.5)), label="no one")
        if not np.isnan(worth["net_benefit_reader"]).all():
            reader = worth["net_benefit_reader"]
            axis.plot(
                risk,
                reader,
                color=OTHER,
                linewidth=1.4,
                linestyle=(0, (6, 2, 1, 2)),
                label="radiologists",
            )
        axis.legend(title="who is recalled", alignment="left")
        top = 1000.0 * programme.prevalence
        axis.set(xlim=(0.0, float(risk[-1])), ylim=(-0.25 * top, 1.05 * top))
        axis.set(
            xlabel="risk at which one would recall, %", ylabel=f"net {words.many} found per 1,000"
        )
        ends = [rows[i] for i in (len(rows) // 10, len(rows) // 4, len(rows) // 2)]
        said = "; ".join(
            f"at a risk of {100 * float(row['threshold_probability'] or 0):.3g} %: "
            f"{1000 * float(row['net_benefit'] or 0):.3g}, recalling all "
            f"{1000 * float(row['net_benefit_all'] or 0):.3g}"
            for row in ends
        )
        return _finish(
            drawing,
            "decision_curve",
            f"Decision curve, net {words.many} found per 1,000 women. {said}.",
        )
