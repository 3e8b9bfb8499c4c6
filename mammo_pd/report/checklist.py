"""Reporting guidelines: where on the page each item is answered, or that it is not.

Items are named in short, not quoted. A page of results cannot answer what only authors know; it
says so rather than leaving the item out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mammo_pd.report.content import HEADLINE, Report

_AUTHORS = "not stated: for the authors"


@dataclass(frozen=True)
class Item:
    """An item of a guideline and its answer.

    Attributes:
        number: in the guideline.
        about: in a few words.
        section: of the page that answers it; None where none does.
        where: what stands there, or why nothing does.
    """

    number: str
    about: str
    section: str | None
    where: str


# Number, what it is about, and the key of its answer; None where only authors can answer.
_ITEMS: Mapping[str, Sequence[tuple[str, str, str | None]]] = {
    "CLAIM": (
        ("1", "title: AI methodology and its kind", None),
        ("2", "structured summary", None),
        ("3", "background, intended use and clinical role", "intended_use"),
        ("4", "objectives and hypotheses", None),
        ("5", "prospective or retrospective", None),
        ("6", "study goal", None),
        ("7", "data sources", None),
        ("8", "eligibility: how, where and when", "eligibility"),
        ("9", "preprocessing", "preprocessing"),
        ("10", "selection of subsets", "flow"),
        ("11", "definitions of data elements", "reference_standard"),
        ("12", "de-identification", "hashed"),
        ("13", "handling of missing data", "missing"),
        ("14", "definition of the reference standard", "reference_standard"),
        ("15", "rationale for the reference standard", None),
        ("16", "who annotated", None),
        ("17", "annotation tools", None),
        ("18", "variability of annotators", None),
        ("19", "intended sample size", None),
        ("20", "assignment to partitions", "split"),
        ("21", "level at which partitions are disjoint", "patients"),
        ("22", "model", "model"),
        ("23", "software", "version"),
        ("24", "initialisation of the model", None),
        ("25", "training", None),
        ("26", "selection of the final model", "weights"),
        ("27", "ensembling", "ensemble"),
        ("28", "measures of performance", "discrimination"),
        ("29", "statistical measures and uncertainty", "intervals"),
        ("30", "robustness and sensitivity analysis", "folds"),
        ("31", "explainability", "saliency"),
        ("32", "testing on external data", None),
        ("33", "flow of participants", "flow"),
        ("34", "characteristics in each partition", "characteristics"),
        ("35", "performance on all partitions", "runs"),
        ("36", "diagnostic accuracy and its precision", "thresholds"),
        ("37", "failure analysis", "errors"),
        ("38", "limitations", "caveats"),
        ("39", "implications for practice", None),
        ("40", "registration", None),
        ("41", "access to the protocol", None),
        ("42", "funding", None),
    ),
    "TRIPOD+AI": (
        ("1", "title", None),
        ("2", "abstract", None),
        ("3a", "healthcare context", "intended_use"),
        ("3b", "target population and intended use", "intended_use"),
        ("3c", "known health inequalities", None),
        ("4", "objectives", None),
        ("5a", "sources of data", None),
        ("5b", "dates of participation and follow-up", "follow_up"),
        ("6a", "setting", None),
        ("6b", "eligibility", "eligibility"),
        ("6c", "treatments received", None),
        ("7", "data preparation", "preprocessing"),
        ("8a", "outcome and its time horizon", "reference_standard"),
        ("8b", "who assessed the outcome", None),
        ("8c", "blinding of the assessment", None),
        ("9a", "choice of predictors", "images_alone"),
        ("9b", "definition of predictors", "images_alone"),
        ("9c", "who assessed the predictors", "images_alone"),
        ("10", "sample size", None),
        ("11", "missing data", "missing"),
        ("12a", "use of the data", "split"),
        ("12b", "handling of predictors", "preprocessing"),
        ("12c", "type of model and how it was built", "model"),
        ("12d", "heterogeneity between clusters", "intervals"),
        ("12e", "measures of performance", "discrimination"),
        ("12f", "model updating", "no_updating"),
        ("12g", "how predictions are calculated", "aggregation"),
        ("13", "class imbalance", "prevalence"),
        ("14", "fairness", "strata"),
        ("15", "output of the model and thresholds", "thresholds"),
        ("16", "differences between development and evaluation data", "characteristics"),
        ("17", "ethical approval", None),
        ("18a", "funding", None),
        ("18b", "conflicts of interest", None),
        ("18c", "protocol", None),
        ("18d", "registration", None),
        ("18e", "data sharing", None),
        ("18f", "code sharing", None),
        ("19", "patient and public involvement", None),
        ("20a", "flow of participants", "flow"),
        ("20b", "characteristics of participants", "characteristics"),
        ("20c", "comparison with the development data", "characteristics"),
        ("21", "numbers of participants and events in each analysis", "flow"),
        ("22", "specification of the model", "model"),
        ("23a", "performance with intervals, in subgroups too", "discrimination"),
        ("23b", "heterogeneity of performance", "folds"),
        ("24", "results of model updating", "no_updating"),
        ("25", "interpretation", None),
        ("26", "limitations", "caveats"),
        ("27a", "handling of poor or missing input", None),
        ("27b", "users' interaction and expertise", None),
        ("27c", "next steps for research", None),
    ),
    "STARD and STARD-AI": (
        ("1", "title: a study of diagnostic accuracy", None),
        ("2", "abstract", None),
        ("3", "background, intended use and clinical role", "intended_use"),
        ("4", "objectives and hypotheses", None),
        ("5", "planned before or after the tests", None),
        ("6", "eligibility", "eligibility"),
        ("7", "how eligible participants were identified", None),
        ("8", "where and when", None),
        ("9", "consecutive, random or convenience series", None),
        ("10a", "index test", "model"),
        ("10b", "reference standard", "reference_standard"),
        ("11", "rationale for the reference standard", None),
        ("12a", "cut-offs of the index test, prespecified or not", "thresholds"),
        ("12b", "cut-offs of the reference standard", "reference_standard"),
        ("13a", "what readers of the index test knew", "images_alone"),
        ("13b", "what assessors of the reference standard knew", None),
        ("14", "methods of estimation and comparison", "intervals"),
        ("15", "indeterminate results", "missing"),
        ("16", "missing data", "missing"),
        ("17", "analyses of variability", "strata"),
        ("18", "intended sample size", None),
        ("19", "flow of participants", "flow"),
        ("20", "baseline characteristics", "characteristics"),
        ("21a", "severity of disease in those with it", "lesions"),
        ("21b", "alternative diagnoses in those without", None),
        ("22", "interval between the tests", "follow_up"),
        ("23", "cross tabulation", "confusion"),
        ("24", "estimates and their precision", "discrimination"),
        ("25", "adverse events", None),
        ("26", "limitations", "caveats"),
        ("27", "implications for practice", "programme"),
        ("28", "registration", None),
        ("29", "protocol", None),
        ("30", "funding", None),
        ("AI", "partitions of the data and their independence", "patients"),
        ("AI", "version of the model and its software", "version"),
        ("AI", "performance in groups (fairness)", "strata"),
        ("AI", "analysis of errors", "errors"),
        ("AI", "access to data and code", None),
    ),
}


def checklist(report: Report) -> dict[str, list[Item]]:
    """Each guideline's items in order, with where this report answers them.

    Args:
        report: what the page says.
    """
    answers = _answers(report)
    return {
        guideline: [
            Item(number, about, *(answers.get(key or "") or (None, _AUTHORS)))
            for number, about, key in items
        ]
        for guideline, items in _ITEMS.items()
    }


def _answers(report: Report) -> dict[str, tuple[str | None, str] | None]:
    """Section and text by key; None where this report does not answer it."""
    context, how = report.context, report.computation
    study, provenance = context.study, context.provenance
    groups = sorted({str(row["column"]).replace("_", " ") for row in report.strata})
    excluded = any(row["step"] == "excluded" for row in context.flow) or context.exclusions
    points = report.levels[HEADLINE].operating_points
    reference: tuple[str, str] | None = None
    if study.get("reference_standard"):
        reference = ("data", "under Data")
    elif context.label_definition:
        reference = ("result", "the label's definition, under Result")
    return {
        "intended_use": ("data", "under Data") if study.get("intended_use") else None,
        "follow_up": ("data", "under Data") if study.get("follow_up") else None,
        "reference_standard": reference,
        "eligibility": ("data", "excluded images by reason, under Data; of patients: authors")
        if excluded
        else None,
        "preprocessing": ("data", "the fingerprint of its settings, under Data")
        if context.store_fingerprint
        else None,
        "flow": ("data", "flow of images, under Data"),
        "hashed": ("data", "identifiers are keyed hashes") if context.store_fingerprint else None,
        "missing": ("data", "images and units without a label, under Data"),
        "split": ("data", f"the split {context.split_name} and its hash, under Data")
        if context.split_name
        else None,
        "patients": ("method", "patients; a patient on both sides is refused")
        if context.split_name or how.thresholds_from
        else None,
        "model": ("result", "at the head of the page") if context.model else None,
        "version": ("method", "under Methods") if "version" in provenance else None,
        "weights": ("method", "which epoch's weights, under Methods") if context.runs else None,
        "ensemble": ("runs", "under Runs") if context.seeds else None,
        "runs": ("runs", "validation and test, under Runs") if context.runs else None,
        "folds": ("folds", "under Folds") if report.folds else None,
        "discrimination": ("discrimination", "under Discrimination and Calibration"),
        "intervals": ("method", "by patient, under Methods"),
        "thresholds": ("thresholds", "chosen on other patients, under Thresholds")
        if points
        else None,
        "confusion": ("thresholds", "under Thresholds") if points else None,
        "saliency": ("errors", "where the model looked, under Errors")
        if any(len(pictures) > 1 for pictures in report.thumbnails.values())
        else None,
        "characteristics": ("data", "by part, under Data") if context.characteristics else None,
        "errors": ("errors", "listed under Errors; their analysis is for the authors")
        if report.errors
        else None,
        "caveats": ("result", "caveats of the data, under Result; all others: authors")
        if any(results.remarks for results in report.levels.values())
        else None,
        "images_alone": ("result", "the model reads images alone") if context.run_id else None,
        "aggregation": ("method", f"{how.aggregation} of the images' scores, under Methods"),
        "prevalence": ("screening", "the prevalence that results are for, under Screening")
        if report.programme
        else None,
        "strata": ("strata", f"by {', '.join(groups)}, under Groups") if groups else None,
        "lesions": ("screening", "cancers by kind and size, under Screening")
        if report.programme and report.programme.lesions
        else None,
        "programme": ("screening", "per 1,000 women and net benefit, under Screening")
        if report.programme
        else None,
        "no_updating": ("method", "none was done here"),
    }
