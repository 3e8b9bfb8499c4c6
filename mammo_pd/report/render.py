"""The report's page: a report and its figures go in, one self-contained HTML document comes out.

The templates hold the layout and the prose. The page fetches nothing. It is complete without its
one script, which adds sorting, a threshold that moves, and a table of contents that follows.
"""

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mammo_pd.evaluation.compare import FOR_PAIRED_DELONG
from mammo_pd.evaluation.cutoffs import FIXED_RULE
from mammo_pd.evaluation.levels import Aggregation
from mammo_pd.evaluation.metric_names import titles
from mammo_pd.evaluation.screening import SCREENED
from mammo_pd.report.checklist import checklist
from mammo_pd.report.content import (
    HEADLINE,
    Comparison,
    ExternalValidation,
    Programme,
    Report,
    ReportContext,
    Row,
    headline_first,
)
from mammo_pd.report.figures import Figure
from mammo_pd.report.notes import data_notes, margin_verdicts, remarks_with_levels, words_of
from mammo_pd.report.numbers import (
    between,
    cutoff,
    fixed,
    in_100,
    plain,
    scaled,
    significance,
    with_interval,
    women,
    women_between,
    women_with_interval,
)
from mammo_pd.terms import Level

_AGGREGATION = {
    Aggregation.MEAN: "the mean of its images' scores",
    Aggregation.MAX: "the highest of its images' scores",
    Aggregation.NOISY_OR: "the noisy-or of its images' scores, 1 − ∏(1 − score)",
}
_PLURAL = {
    Level.IMAGE: "images",
    Level.BREAST: "breasts",
    Level.EXAM: "exams",
    Level.PATIENT: "patients",
}


@dataclass(frozen=True)
class _Section:
    """A section of the page: its anchor, its heading and the template of its content."""

    key: str
    title: str
    template: str


def report_page(report: Report, figures: Sequence[Figure]) -> str:
    """The page on one model.

    Args:
        report: what to say.
        figures: as ``figures_of`` draws them.
    """
    sections = {"result": "Result"}
    if report.programme is not None:
        sections["screening"] = "Screening"
    sections |= {
        "data": "Data",
        "discrimination": "Discrimination",
        "thresholds": "Thresholds",
        "calibration": "Calibration",
    }
    if report.strata:
        sections["strata"] = "Groups"
    if report.within:
        sections["within"] = "Within strata"
    if report.folds:
        sections["folds"] = "Folds"
    if report.context.runs:
        sections["runs"] = "Runs"
    sections |= {"errors": "Errors", "method": "Methods", "checklist": "Reporting checklists"}
    programme = report.programme
    outcomes = {row["code"]: row for row in programme.outcomes} if programme else {}
    return _page(
        "report",
        sections,
        report.context,
        report=report,
        figures={figure.name: figure for figure in figures},
        levels=headline_first(report.levels),
        chosen_on=_chosen_on(report),
        fixed_rule=FIXED_RULE,
        fixed_outcome=outcomes.get(FIXED_RULE),
        sweep=None if programme is None else _sweep(programme, report),
        words=words_of(report.context.label_definition),
        flow=_flow(report.context),
        characteristics=_characteristics(report.context.characteristics),
        study=_STUDY,
        checklist=checklist(report),
        cases=_cases(report.errors),
        decided=any(row["exam_threshold"] is not None for row in report.errors),
        pictured=bool(report.thumbnails),
        remarks=remarks_with_levels(
            {level.value: results.remarks for level, results in report.levels.items()}
        ),
        notes=data_notes(report.counts),
        headline=HEADLINE,
        plural=_PLURAL,
        metric_names=titles(),
    )


def comparison_page(comparison: Comparison, figures: Sequence[Figure]) -> str:
    """The page that compares models on the same images.

    Args:
        comparison: what to say.
        figures: the overlaid ROC curves; none where no model has a curve.
    """
    sections = {"difference": "Difference", "alone": "Each model", "method": "Methods"}
    if figures:
        sections = {"difference": "Difference", "curves": "Curves"} | sections
    return _page(
        "comparison",
        sections,
        comparison.context,
        comparison=comparison,
        for_delong=FOR_PAIRED_DELONG,
        verdicts=margin_verdicts(comparison.paired, comparison.margin),
        several=len({(row["first"], row["second"]) for row in comparison.paired}) > 1,
        figures={figure.name: figure for figure in figures},
    )


def external_page(external: ExternalValidation, figures: Sequence[Figure]) -> str:
    """The page on a development set and external ones.

    Args:
        external: what to say.
        figures: the overlaid ROC curves.
    """
    sections = {
        "sets": "Result",
        "screening": "Screening",
        "thresholds": "Thresholds",
        "calibration": "Calibration",
        "curves": "Curves",
        "locked": "What was locked",
    }
    phantoms = [one.name for one in external.sets if one.phantom]
    return _page(
        "external",
        sections,
        replace(external.context, phantom=len(phantoms) == len(external.sets)),
        external=external,
        phantom_sets=phantoms,
        prevalence=external.sets[0].metrics["computation"]["prevalences"].get(HEADLINE.value),
        headline=HEADLINE,
        levels=list(headline_first(dict.fromkeys(Level))),
        metric_names=titles(),
        words=words_of(external.context.label_definition),
        figures={figure.name: figure for figure in figures},
    )


def render_template(name: str, **variables: object) -> str:
    """Fill in a template that is a whole page."""
    return _ENVIRONMENT.get_template(name).render(**variables)


def _page(
    folder: str, sections: dict[str, str], context: ReportContext, **variables: object
) -> str:
    script = _ENVIRONMENT.get_template("page.js").render()
    digest = b64encode(sha256(script.encode("utf-8")).digest()).decode("ascii")
    return _ENVIRONMENT.get_template("page.html").render(
        context=context,
        sections=[_Section(key, title, f"{folder}/{key}.html") for key, title in sections.items()],
        aggregation=_AGGREGATION,
        # Safe unescaped: it is a file of ours, and nothing is filled in.
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        **variables,
    )


def _chosen_on(report: Report) -> str:
    """What thresholds were chosen on, to complete "chosen on ..."."""
    if report.computation.locked is not None:
        images = plain(report.computation.thresholds_from)
        return f"{images} images of another set, before this one was read"
    if report.computation.cross_fitted:
        return "the out-of-fold scores of the other folds"
    if report.computation.by_fold:
        return "each fold's own validation images as scored by that fold's model"
    return f"{plain(report.computation.thresholds_from)} validation images of other patients"


# Fields of the configuration's section study, and what they are called on the page.
_STUDY = {
    "intended_use": "Intended use",
    "reference_standard": "Reference standard",
    "follow_up": "Follow-up of those without cancer",
}


@dataclass(frozen=True)
class _Flow:
    """The steps of the flow diagram: what was found, what fell out, and the parts at its end."""

    found: Row
    excluded: list[Row]
    usable: Row | None
    unassigned: Row | None
    parts: list[Row]


def _flow(context: ReportContext) -> _Flow:
    by_step: dict[str, list[Row]] = {}
    for row in context.flow:
        by_step.setdefault(str(row["step"]), []).append(row)
    found = (by_step.pop("found", []) + by_step.pop("given", []))[0]
    excluded = by_step.pop("excluded", [])
    usable, unassigned = by_step.pop("usable", []), by_step.pop("unassigned", [])
    return _Flow(
        found,
        excluded,
        usable[0] if usable else None,
        unassigned[0] if unassigned else None,
        [row for rows in by_step.values() for row in rows],
    )


def _characteristics(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, dict[str, Row]]]:
    """By characteristic and its unit, then value, then part."""
    table: dict[tuple[str, str], dict[str, dict[str, Row]]] = {}
    for row in rows:
        of_name = table.setdefault((str(row["characteristic"]), str(row["per"])), {})
        of_name.setdefault(str(row["value"]), {})[str(row["part"])] = row
    return table


def _cases(errors: Sequence[Row]) -> dict[str, list[list[Row]]]:
    """The images of each exam together, by kind of error."""
    cases: dict[str, list[list[Row]]] = {}
    for row in errors:
        of_kind = cases.setdefault(str(row["kind"]), [])
        if of_kind and of_kind[-1][0]["place"] == row["place"]:
            of_kind[-1].append(row)
        else:
            of_kind.append([row])
    for of_kind in cases.values():
        for images in of_kind:
            # In hanging order: both CC, then both MLO, the right breast first.
            images.sort(key=lambda row: (str(row["view"]), str(row["laterality"] or "") != "R"))
    return cases


@dataclass(frozen=True)
class _Sweep:
    """The thresholds of the page's slider, as text.

    Attributes:
        columns: names.
        rows: one per threshold, in the order of the columns.
        start: the row shown first.
        begins: why that one: the end of a sentence that says where the slider begins.
        chosen: row and name of each threshold that was chosen elsewhere.
    """

    columns: list[str]
    rows: list[list[str]]
    start: int
    begins: str
    chosen: list[tuple[int, str]]


_CHOSEN = {
    "youden": "Youden",
    "cost": "lowest cost",
    "specificity_80": "80 % specificity",
    "specificity_90": "90 % specificity",
    "specificity_95": "95 % specificity",
    "sensitivity_80": "80 % sensitivity",
    "sensitivity_90": "90 % sensitivity",
    "sensitivity_95": "95 % sensitivity",
}


def _sweep(programme: Programme, report: Report) -> _Sweep:
    shares = ("sensitivity", "specificity")
    columns = ["threshold", *(f"{name}{end}" for name in shares for end in ("", "_ci"))]
    columns += ["ppv", "ppv_ci", "recalled", "recalled_ci", "tp", "fp", "fn", "tn"]
    rows = []
    for row in programme.sweep:
        cells = [cutoff(float(row["threshold"] or 0.0))]
        for name in shares:
            cells += [fixed(row[name]), between(row, f"{name}_ci")]
        cells += [fixed(row["ppv"]), between(row, "ppv_ci")]
        recalled = scaled(row, SCREENED)
        cells += [women(recalled["recall_rate"]), women_between(recalled, "recall_rate")]
        rows.append(cells + [plain(row[name]) for name in ("tp", "fp", "fn", "tn")])
    values = [float(row["threshold"] or 0.0) for row in programme.sweep]
    chosen = {
        str(point["code"]): values.index(float(point["threshold"]))
        for point in report.levels[HEADLINE].operating_points
        if point["threshold"] in values
    }
    named = [(place, _CHOSEN[code]) for code, place in chosen.items()]
    if FIXED_RULE in chosen:
        begins = f"at the threshold chosen for {_CHOSEN[FIXED_RULE]}"
        return _Sweep(columns, rows, chosen[FIXED_RULE], begins, named)
    tenth = min(
        range(len(rows)),
        key=lambda place: abs(float(programme.sweep[place]["recall_rate"] or 0.0) - 0.1),
    )
    own = report.computation.cross_fitted or report.computation.by_fold
    begins = "where the share recalled is nearest to one in ten, " + (
        "as each fold has its own threshold" if own else "as no threshold was chosen"
    )
    return _Sweep(columns, rows, tenth, begins, named)


def _svg(figure: Figure) -> Markup:
    # Safe unescaped: matplotlib wrote it and escapes text itself.
    return Markup(figure.inline())


def _breakable(name: object) -> Markup:
    """A name that a narrow column may break after each of its words."""
    return Markup(re.sub(r"(?<=[_/.-])(?=\w)", "<wbr>", str(escape(name))))


def _png_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode('ascii')}"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mammo_pd.report"),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name must fail, not leave a blank
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "between": between,
        "breakable": _breakable,
        "cutoff": cutoff,
        "fixed": fixed,
        "in_100": in_100,
        "interval": with_interval,
        "plain": plain,
        "png_uri": _png_uri,
        "significance": significance,
        "svg": _svg,
        "scaled": scaled,
        "women": women,
        "women_between": women_between,
        "women_with_interval": women_with_interval,
    }
    return environment


_ENVIRONMENT = _environment()
