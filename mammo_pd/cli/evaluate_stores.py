"""Test a run on other stores: lock its choices, score them, and report on all sets."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mammo_pd.cli.scored_runs import (
    choices_for,
    context_of,
    keep_in_mlflow,
    of_target,
    only_target,
    predicting,
    write_targets,
)
from mammo_pd.errors import InputError

if TYPE_CHECKING:
    from mammo_pd.inference.predict import Scored
    from mammo_pd.training.runs import RunFolder


def tell_apart_stores(
    runs: "Sequence[RunFolder]", stores: Sequence[Path], accept_other_split: bool
) -> tuple[Path | None, list[Path]]:
    """Separate the runs' own store, if it is named, from the external stores."""
    from mammo_pd.inference.external import tell_apart

    if accept_other_split and len(stores) == 1:
        return stores[0], []
    own, others = tell_apart(runs[0], stores)
    if others and len(runs) > 1:
        raise InputError(
            f"{others[0]} is not the store that these runs were trained on, and only one model at "
            f"a time can be tested on another store; give one run (got {len(runs)}). Each fold's "
            "run can be tested on its own; an ensemble of the folds would be another model, for "
            "which no thresholds were chosen."
        )
    return own, others


def refuse_without_labels(run: "RunFolder") -> None:
    """Refuse to test a run on another store if it has no threshold to lock beforehand."""
    from mammo_pd.training.objectives import build_objective

    if not build_objective(run.config.training).target_columns:
        raise InputError(
            f"the run {run.info.run_id} was trained for {run.config.training.objective}, which has "
            "no 0/1 label, and another store is judged at thresholds locked beforehand; drop "
            "--store."
        )


def check_others(
    run: "RunFolder", own: Path | None, others: Sequence[Path]
) -> dict[Path, list[str]]:
    """For each store, what the reader must know about its preprocessing."""
    from mammo_pd.inference.external import check_external

    return {other: check_external(run, own, other) for other in others}


def evaluate_on_others(
    run: "RunFolder",
    own: "Scored",
    notes: dict[Path, list[str]],
    checkpoint: str,
    out: Path,
    choices: dict[str, Any],
    told: dict[str, Any],
) -> None:
    """Lock what the run's own store decides, then score the other stores and report on all."""
    from mammo_pd.evaluation.predictions import check_predictions
    from mammo_pd.inference.explain import ErrorPictures
    from mammo_pd.inference.external import overlap_with, predict_store
    from mammo_pd.report.content import ReportContext
    from mammo_pd.report.external import (
        GivenSet,
        NothingToLockOnError,
        SetSource,
        evaluate_sources,
        names_of,
        sets_table,
    )

    scored: dict[Path, Scored] = {}
    places = [own.cohort.paths.root.resolve(), *(other.resolve() for other in notes)]
    names = names_of(places, [place.name for place in places])

    def given(one: "Scored", target: str | None) -> GivenSet:
        table = one.table if target is None else only_target(one.table, one.objective, target)
        pictures = ErrorPictures([one])
        context = replace(context_of([one], target), pictures=pictures.legend, **told)
        return GivenSet(check_predictions(table), context, pictures)

    def read(other: Path, target: str | None) -> GivenSet:
        if other not in scored:
            scored[other] = predict_store(run, other, checkpoint=checkpoint)
        one = scored[other]
        if one.digest != own.digest:
            raise InputError(
                f"the weights of the run {run.info.run_id} were replaced while it was evaluated, "
                f"so {other} was scored with those of epoch {one.epoch} and its own store with "
                f"those of epoch {own.epoch}; evaluate again once the training has ended."
            )
        overlap = overlap_with(own.cohort, one.cohort)
        found = given(one, target)
        said = [*notes[other], overlap.sentence()]
        here = found.context.label_definition
        there = context_of([own], target).label_definition
        if here != there:
            said.append(
                f"A positive is {_quoted(here)} here and {_quoted(there)} in the development store."
            )
        context = replace(
            found.context,
            split_name=None,
            split_hash=None,
            split_part="all images of a store that the run was not trained on",
            store_fingerprint=one.cohort.fingerprint,
            notes=[*found.context.notes, *said],
        )
        return replace(
            found,
            context=context,
            shared_patients=overlap.patients,
            shared_images=overlap.images,
            notes=said,
        )

    targets = own.objective.target_columns
    rows: list[dict[str, object]] = []
    missing: dict[str, NothingToLockOnError] = {}
    written = out
    # The predictions of any other target, even of one alone, have no columns label and score.
    for target in (None,) if targets == ("label",) else targets:
        place = out if target is None else out / target
        sources = [SetSource(names[0], names[0], partial(given, own, target))]
        sources += [
            SetSource(name, name, partial(read, other, target))
            for name, other in zip(names[1:], notes, strict=True)
        ]
        developed = context_of([own], target)
        context = ReportContext(
            title=f"Trained on {names[0]}, tested on {_counted(len(notes))}"
            + ("" if target is None else f": {target}"),
            model=developed.model,
            run_id=own.info.run_id,
            label_definition=developed.label_definition,
            **told,
        )
        try:
            found: dict[str, Any] = evaluate_sources(
                sources, place, context=context, **choices_for(target, own.objective, choices)
            )
        except NothingToLockOnError as error:
            # With several targets, the other targets still get their reports.
            if target is None:
                raise
            print(f"{target}\nnote: no report, {error}\n")
            missing[target] = error
            continue
        written = place
        if target is not None:
            print(target)
            for name, metrics in found["sets"].items():
                rows += [{"set": name, **row} for row in of_target(target, metrics)]
        print(sets_table(found))
        keep_in_mlflow(
            run.path.parent, run.info.mlflow_run_id, place, out, folder="external-report"
        )
        if target is not None:
            print()
    if not rows and missing:
        raise next(iter(missing.values()))
    if rows:
        write_targets(rows, out)
        reported = ", ".join(one for one in targets if one not in missing)
        print(f"wrote {out}: one report folder for each of {reported}")
    else:
        print(f"\nwrote {out}: index.html, metrics.json, and a report of each set")
    print(f"look at: {shlex.quote(str(written / 'index.html'))}")
    print(f"next: {predicting(run)}")


def _counted(stores: int) -> str:
    return "another store" if stores == 1 else f"{stores} other stores"


def _quoted(definition: str | None) -> str:
    return "not defined" if definition is None else f"“{definition}”"
