"""Draw the pictures of the documentation anew.

    mammo-pd demo --out demo
    mammo-pd preprocess demo/dicom --labels demo/dicom/labels.csv --out demo/store \
        --contact-sheet demo/crops.png
    python docs/pictures/make_pictures.py demo

The contact sheet and the report are those of the demo (phantoms, no patients); the AUCs are those
of the tables in benchmarks/results/. pipeline.svg is drawn by hand. Chromium makes the screenshot.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results"
# Of docs/results.md, by the names of benchmarks/recipes: what a reader compares, and its look.
LINES = {
    "keep1": ("keep 1", "#263238", "o"),
    "keep50": ("keep .5, uniform", "#1565c0", "o"),
    "tissue50": ("keep .5, tissue", "#1565c0", "^"),
    "keep25": ("keep .25, uniform", "#bf5b04", "o"),
    "tissue": ("keep .25, tissue", "#bf5b04", "^"),
    "tissue_e60": ("keep .25, tissue, 60 epochs", "#bf5b04", "D"),
    "keep1_e60": ("keep 1, 60 epochs", "#263238", "D"),
    "keep10": ("keep .1, uniform", "#2e7d32", "o"),
    "tissue10": ("keep .1, tissue", "#2e7d32", "^"),
}


def read_recipes(name: str) -> dict[str, tuple[list[float], float]]:
    """The recipes of one table of benchmarks/results: each seed's AUC, and GPU seconds a run."""
    found = {}
    for line in (RESULTS / name).read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 11 and cells[0] in LINES:
            found[cells[0]] = [float(auc) for auc in cells[4].split(",")], float(cells[9])
    return found


def draw_auc_over_gpu_time(path: Path) -> None:
    """AUC per image of each seed over GPU time, one panel for the lines of each day."""
    first = read_recipes("recipes_h100_2026-11-25.md")
    second = {
        name: line
        for name, line in read_recipes("recipes_h200_2026-11-26.md").items()
        if name not in first
    }
    plt.rcParams["svg.hashsalt"] = "mammo-pd"  # the same file each time
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
    for panel, lines, title in zip(
        panels, (first, second), ("two H100, 2026-11-25", "two H200, 2026-11-26"), strict=True
    ):
        for name, (label, colour, marker) in LINES.items():
            if name in lines:
                seeds, seconds = lines[name]
                panel.scatter(
                    [seconds] * len(seeds), seeds, c=colour, marker=marker, label=label, s=34
                )
        panel.axhline(0.657, color="#90a4ae", linestyle=":", linewidth=1)
        panel.set(title=title, xlabel="GPU s of one fold's run, 14 at a time", xlim=(0, 56))
        panel.grid(alpha=0.25)
        panel.legend(fontsize=8, loc="lower right")
    panels[0].set_ylabel("AUC per image, five folds by woman")
    panels[0].text(1, 0.659, "age, machine and grey values alone", fontsize=7, color="#607d8b")
    figure.suptitle(
        "2,319 RSNA images at 518x392, DINOv2 ViT-S; each AUC is known to about ±.035 (95 %)",
        fontsize=9,
    )
    figure.savefig(path, metadata={"Date": None})
    text = path.read_text("utf-8")
    path.write_text(re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE), "utf-8")


def shrink(image: Image.Image, width: int, colours: int, path: Path) -> None:
    """Save a small PNG."""
    height = round(image.height * width / image.width)
    smaller = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    smaller.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)


def take_screenshot(page: Path, size: tuple[int, int], path: Path) -> Image.Image:
    """The top of a page, as Chromium shows it."""
    browser = shutil.which("chromium")
    if browser is None:
        raise SystemExit("chromium is not installed; it takes the screenshot.")
    subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={size[0]},{size[1]}",
            f"--screenshot={path}",
            page.resolve().as_uri(),
        ],
        check=True,
        capture_output=True,
    )
    return Image.open(path)


def main() -> None:
    """Draw all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="the folder of mammo-pd demo, with crops.png")
    demo = parser.parse_args().demo
    draw_auc_over_gpu_time(HERE / "auc_gpu_time.svg")
    with Image.open(demo / "crops.png") as sheet:
        # The first two rows of eight.
        rows = sheet.crop((0, 0, sheet.width, sheet.height * 2 // 5))
        shrink(rows, 1200, 96, HERE / "contact_sheet.png")
    report = max((demo / "runs").glob("*/report/index.html"))
    with tempfile.TemporaryDirectory() as folder:
        shot = take_screenshot(report, (1000, 1180), Path(folder) / "report.png")
        shrink(shot, 1000, 64, HERE / "report.png")


if __name__ == "__main__":
    main()
