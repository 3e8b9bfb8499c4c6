"""Fill the model card of an evaluated run, as Markdown.

    mammo-pd evaluate runs/ID
    python examples/model_card.py runs/ID --title "My model" > MODEL_CARD.md

What the checkpoint and its report know is filled in; what only its makers know stands there in
italics, to be written by hand. docs/model-card.md is that of a run on phantoms. The template,
model_card.md.jinja, is made to be changed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mammo_pd.errors import InputError
from mammo_pd.training.model_card import CheckpointHeader, ModelCard
from mammo_pd.training.runs import RunFolder

LEVELS = ("image", "breast", "exam", "patient")


def fill(run: Path, title: str) -> str:
    """The card of a run.

    Args:
        run: the run's folder, with a report.
        title: of the model.

    Raises:
        InputError: no such run, or one that has not been evaluated.
    """
    folder = RunFolder.open(run)
    header = CheckpointHeader.read(folder.chosen)
    report = folder.path / "report" / "metrics.json"
    if header.card is None or not report.is_file():
        raise InputError(f"{run} has no report yet; evaluate it with: mammo-pd evaluate {run}")
    metrics = json.loads(report.read_text(encoding="utf-8"))
    exam = metrics.get("exam", {})
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    return environment.get_template("model_card.md.jinja").render(
        title=title,
        phantom=metrics["context"]["phantom"],
        card=header.card,
        weights=_weights(header.card),
        training=header.card.config["training"],
        dropout=header.card.config["patch_dropout"],
        study=header.card.config["study"],
        environment=header.card.environment,
        epoch=header.epochs,
        metrics=metrics,
        part=metrics["context"]["split_part"],
        levels=[level for level in LEVELS if level in metrics],
        points=exam.get("operating_points", []),
        remarks=exam.get("remarks", []),
        strata=metrics["strata"],
        interval=_interval,
    )


def _weights(card: ModelCard) -> str:
    named = card.config["model"]["weights"]
    return "random" if named is None else f"`{named}`"


def _interval(values: dict[str, Any], name: str) -> str:
    """An estimate with its interval, as far as there are any."""
    estimate, low, high = (values.get(key) for key in (name, f"{name}_ci_low", f"{name}_ci_high"))
    if estimate is None:
        return "none"
    if low is None or high is None:
        return f"{estimate:.3f}"
    return f"{estimate:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Print the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--title", default="untitled")
    options = parser.parse_args()
    print(fill(options.run, options.title), end="")


if __name__ == "__main__":
    main()
