"""``mammo-pd compare``: the predictions of several models to their paired differences."""

import shlex
from collections.abc import Sequence
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
        models: Two or more evaluated runs, cross-validations, or CSV files of predictions.
        out: Where to write the report.
        intersect: If the sets of images differ, compare on those they have in common.
        aggregation: How image scores are combined for a breast, exam or patient.
        resamples: No effect; accepted so that older scripts keep working.
        margin: Non-inferiority margin: say for each pair whether one model's AUC is at most this
            much lower, such as 0.02.
        runs: The folder of runs.
    """
    if len(models) < 2:
        raise InputError(
            "name two or more runs, cross-validations or files of predictions to compare."
        )
    check_output_folder("--out", out)
    tell_of_resamples(resamples)
    files = [_predictions_of(model, runs) for model in models]
    from mammo_pd.evaluation.compare import not_surpassed
    from mammo_pd.evaluation.predictions import read_predictions
    from mammo_pd.report.content import ReportContext
    from mammo_pd.report.evaluate import compare_predictions, difference_table

    tables: dict[str, pd.DataFrame] = {}
    for name, file in zip(_names(models), files, strict=True):
        numbered = (f"{name} ({number})" for number in count(2))
        tables[next(name for name in chain([name], numbered) if name not in tables)] = (
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
    paired = metrics["paired"]
    assert isinstance(paired, list)
    left = not_surpassed(list(tables), paired)
    if len(left) > 1:
        print(
            f"undecided between {', '.join(left[:-1])} and {left[-1]}: at some level their "
            "difference may be due to chance"
        )
    following = [
        _following(model, file)
        for name, model, file in zip(tables, models, files, strict=True)
        if name in left
    ]
    print("next: " + "\n  or: ".join(dict.fromkeys(following)))


def _following(model: Path, file: Path) -> str:
    """The command that goes on with a model."""
    run = file.parent
    if model != file and (run / "run.json").is_file():
        return f"mammo-pd predict {shlex.quote(str(run))} DICOM_DIR"
    return f"mammo-pd evaluate --predictions {shlex.quote(str(file))}"


def _names(models: Sequence[Path]) -> list[str]:
    """What each model is called.

    Models of one name are told apart by the names of up to two folders above them, and by their
    order where these are alike, too: the paths of this machine stay on it.
    """
    tails = [
        (model.absolute() if model.is_dir() else model.absolute().with_suffix("")).parts[-3:]
        for model in models
    ]
    names = []
    for tail in tails:
        alike = [other for other in tails if other[-1] == tail[-1] and other != tail]
        alike_here = tails.count(tail) > 1
        depth = 2 if alike_here else 1
        while depth < len(tail) and any(other[-depth:] == tail[-depth:] for other in alike):
            depth += 1
        names.append("/".join(tail[-depth:]))
    return names


def _predictions_of(model: Path, runs: Path) -> Path:
    """The predictions of a run or a cross-validation, or the file that was named."""
    if not model.exists():
        if not (runs / model).is_dir():
            raise InputError(f"there is no run or file of predictions {model}.")
        model = runs / model
    of_targets = sorted(model.glob("report/*/predictions.csv"))
    if (model / "cv.json").is_file():
        file = model / "report" / "predictions.csv"
        if not file.is_file():
            _refuse_several(model, of_targets)
            raise InputError(
                f"{model} has no predictions yet: the cross-validation did not finish; continue it "
                "with the mammo-pd cv command that started it."
            )
        return file
    file = model / "predictions.csv" if model.is_dir() else model
    if not file.is_file():
        if not (model / "run.json").is_file():
            raise InputError(
                f"{model} is no run, cross-validation or file of predictions; name some of these."
            )
        raise InputError(
            f"{model} has no predictions yet; make them with: mammo-pd evaluate "
            f"{shlex.quote(str(model))}"
        )
    # A run's own table has the label and its score where these are among what it learnt.
    if "label" not in [report.parent.name for report in of_targets]:
        _refuse_several(model, of_targets)
    return file


def _refuse_several(model: Path, of_targets: Sequence[Path]) -> None:
    """Refuse a run or cross-validation of other columns than the label, if it has such reports."""
    if of_targets:
        raise InputError(
            f"{model} has a report for each column that it learnt; name the predictions of one: "
            + " or ".join(shlex.quote(str(file)) for file in of_targets)
        )
