"""The plot of a bench: speed and memory by image size."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib import ticker
from matplotlib.figure import Figure

from mammo_pd.files import atomic_write
from mammo_pd.perf.rows import OURS, BenchRow


def plot_rows(rows: Sequence[BenchRow], file: Path) -> None:
    """Draw images/s, and on a GPU memory per image, one column of panels for each model."""
    models = list(dict.fromkeys(row.model for row in rows))
    panels = 1 if math.isnan(rows[0].peak_gib) else 2
    figure = Figure(figsize=(5 * len(models), 3.5 * panels), layout="constrained")
    axes = figure.subplots(panels, len(models), squeeze=False)
    for column, model in enumerate(models):
        speed = axes[0, column]
        lines: dict[str, list[BenchRow]] = {}
        for row in rows:
            if row.model == model:
                lines.setdefault(f"{row.who}, keep {row.keep_rate:.3g}", []).append(row)
        for name, line in lines.items():
            line.sort(key=lambda row: row.img_size)
            sizes = [f"{row.img_size[0]}x{row.img_size[1]}" for row in line]
            style = {"marker": "o", "linestyle": "-" if name.startswith(OURS) else "--"}
            speed.plot(sizes, [row.images_per_second for row in line], label=name, **style)
            if panels == 2:
                axes[1, column].plot(
                    sizes, [row.peak_gib / row.batch_size for row in line], **style
                )
        speed.set(title=model, ylabel="training images/s", yscale="log")
        # Plain numbers even where the axis spans less than a decade, for which matplotlib's
        # default shows powers of ten.
        speed.yaxis.set_major_formatter(ticker.LogFormatter(minor_thresholds=(2, 0.5)))
        speed.yaxis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(2, 0.5)))
        if panels == 2:
            axes[1, column].set(ylabel="GiB per image")
        axes[-1, column].set(xlabel="image size, pixels")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    with atomic_write(file) as beside:
        figure.savefig(beside, dpi=120)
