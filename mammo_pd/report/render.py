"""The report's page: a report and its figures go in, one self-contained HTML document comes out.

The templates hold the layout and the prose. The page has no script and fetches nothing.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mammo_pd.evaluation.levels import Aggregation
from mammo_pd.report.content import Comparison, Report, ReportContext, Row
from mammo_pd.report.figures import Figure
from mammo_pd.report.notes import data_notes, margin_verdicts, remarks_with_levels
from mammo_pd.report.numbers import between, fixed, plain, significance, with_interval
from mammo_pd.terms import Level

# Prose speaks of exams: a radiologist recalls a woman, not a film.
HEADLINE = Level.EXAM

_METRIC_NAMES = {
    "discrimination": {
        "auc": "AUC",
        "partial_auc_90": "Partial AUC, specificity 90–100 % (0.5 is chance)",
        "average_precision": "Average precision",
        "average_precision_at_prevalence": "Average precision, re-weighted",
        "pf1": "Probabilistic F1 (RSNA)",
        "sensitivity_at_specificity_80": "Sensitivity at 80 % specificity",
        "sensitivity_at_specificity_90": "Sensitivity at 90 % specificity",
        "sensitivity_at_specificity_95": "Sensitivity at 95 % specificity",
        "specificity_at_sensitivity_80": "Specificity at 80 % sensitivity",
        "specificity_at_sensitivity_90": "Specificity at 90 % sensitivity",
        "specificity_at_sensitivity_95": "Specificity at 95 % sensitivity",
        "specificity_at_reader_sensitivity": "Specificity at the radiologists' sensitivity",
        "recall_rate_at_reader_sensitivity": "Share flagged at the radiologists' sensitivity",
        "sensitivity_at_reader_specificity": "Sensitivity at the radiologists' specificity",
    },
    "calibration": {
        "brier": "Brier score",
        "brier_of_prevalence": "Brier score of the prevalence alone",
        "expected_observed_ratio": "Expected over observed positives (E:O)",
        "calibration_slope": "Calibration slope",
        "calibration_intercept": "Calibration intercept",
    },
}
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
    sections = {
        "result": "Result",
        "data": "Data",
        "discrimination": "Discrimination",
        "thresholds": "Thresholds",
        "calibration": "Calibration",
    }
    if report.strata:
        sections["strata"] = "Groups"
    if report.folds:
        sections["folds"] = "Folds"
    if report.context.runs:
        sections["runs"] = "Runs"
    sections |= {"errors": "Largest errors", "method": "Methods"}
    return _page(
        "report",
        sections,
        report.context,
        report=report,
        figures={figure.name: figure for figure in figures},
        gallery=_gallery(report),
        remarks=remarks_with_levels(
            {level.value: results.remarks for level, results in report.levels.items()}
        ),
        notes=data_notes(report.counts),
        headline=HEADLINE,
        plural=_PLURAL,
        metric_names=_METRIC_NAMES,
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
        verdicts=margin_verdicts(comparison.paired, comparison.margin),
        several=len({(row["first"], row["second"]) for row in comparison.paired}) > 1,
        figures={figure.name: figure for figure in figures},
    )


def _page(
    folder: str, sections: dict[str, str], context: ReportContext, **variables: object
) -> str:
    return _ENVIRONMENT.get_template("page.html").render(
        context=context,
        sections=[_Section(key, title, f"{folder}/{key}.html") for key, title in sections.items()],
        aggregation=_AGGREGATION,
        **variables,
    )


def _gallery(report: Report) -> dict[str, list[Row]]:
    """The errors that have a thumbnail, by kind."""
    gallery: dict[str, list[Row]] = {}
    for row in report.errors:
        if row["image_id"] in report.thumbnails:
            gallery.setdefault(str(row["kind"]), []).append(row)
    return gallery


def _svg(figure: Figure) -> Markup:
    # Safe unescaped: matplotlib wrote it and escapes text itself.
    return Markup(figure.inline())


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
        "fixed": fixed,
        "interval": with_interval,
        "plain": plain,
        "png_uri": _png_uri,
        "significance": significance,
        "svg": _svg,
    }
    return environment


_ENVIRONMENT = _environment()
