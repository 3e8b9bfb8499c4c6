"""``mammo-pd compare``: the predictions of several models to their paired differences."""

import shlex
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from mammo_pd.cli.early_checks import check_output_folder
from mammo_pd.cli.options import (
    DEFAULT_RUNS,
    AggregationOption,
    ResamplesOption,
    RunsOption,
    tell_of_resamples,
)
from mammo_pd.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def compare(
    *models: Annotated[Path, Parameter(name="RUN")],
    out: Annotated[Path, Parameter(metavar="DIR")] = Path("comparison"),
    intersect: bool = False,
    aggregation: AggregationOption = "mean",
    resamples: ResamplesOption = None,
    margin: Annotated[float | None, Parameter(metavar="M")] = None,
    runs: RunsOption = DEFAULT_RUNS,
) -> None:
    """Compare models on the same images: paired differences of the AUC.

    For example:

        mammo-pd compare runs/ONE runs/OTHER
        mammo-pd compare runs/KEEP1 runs/KEEP25 --margin 0.02

    Args:
        models: Two or more evaluated runs, or CSV files of predictions.
        out: Where to write the report.
        intersect: If the sets of images differ, compare on those they have in common.
        aggregation: How image scores are combined for a breast, exam or patient.
        resamples: No effect; accepted so that older scripts keep working.
        margin: Non-inferiority margin: say for each pair whether one model's AUC is at most this
            much lower, such as 0.02.
        runs: The folder of runs.
    """
    if len(models) < 2:
        raise InputError("name two or more runs, or files of predictions, to compare.")
    check_output_folder("--out", out)
    tell_of_resamples(resamples)
    files = [_predictions_of(model, runs) for model in models]
    from mammo_pd.evaluation.predictions import read_predictions
    from mammo_pd.report.content import ReportContext
    from mammo_pd.report.evaluate import compare_predictions, difference_table

    tables: dict[str, pd.DataFrame] = {}
    names = [model.name if model.is_dir() else model.stem for model in models]
    for model, name, file in zip(models, names, files, strict=True):
        # Models of one name are told apart by their folders' names, and by their order where these
        # are alike, too: the paths of this machine stay on it.
        told = f"{model.absolute().parent.name}/{name}" if names.count(name) > 1 else name
        numbered = (f"{told} ({number})" for number in count(2))
        tables[next(name for name in chain([told], numbered) if name not in tables)] = (
            read_predictions(file)
        )
    metrics = compare_predictions(
        tables,
        out,
        context=ReportContext(title="Comparison of " + " and ".join(tables)),
        intersect=intersect,
        aggregation=aggregation,
        margin=margin,
    )
    print(difference_table(metrics))
    print(f"\nwrote {out}: index.html, metrics.json")
    print(f"look at: {shlex.quote(str(out / 'index.html'))}")
    first = shlex.quote(str(files[0].parent if models[0] != files[0] else files[0]))
    if models[0] == files[0]:
        print(f"next: mammo-pd evaluate --predictions {first}")
    else:
        print(f"next: mammo-pd predict {first} DICOM_DIR")


def _predictions_of(model: Path, runs: Path) -> Path:
    """The file of a run's predictions, or the one that was named."""
    if not model.exists():
        if not (runs / model).is_dir():
            raise InputError(f"there is no run or file of predictions {model}.")
        model = runs / model
    file = model / "predictions.csv" if model.is_dir() else model
    if not file.is_file():
        raise InputError(
            f"{model} has no predictions yet; make them with: mammo-pd evaluate {model}"
        )
    return file
