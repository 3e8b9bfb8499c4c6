"""Where on the page each item of a reporting guideline is answered, if it is.

A page of results cannot answer what only authors know; it says so rather than leaving the item out.
"""

from dataclasses import dataclass

from mammo_pd.evaluation.characteristics import MACHINES
from mammo_pd.report.content import HEADLINE, Report
from mammo_pd.report.guidelines import GUIDELINES, Guideline

_AUTHORS = "not stated: for the authors"


@dataclass(frozen=True)
class Item:
    """An item of a guideline and its answer.

    Attributes:
        number: in the guideline.
        about: in a few words.
        section: of the page that answers it; None where none does.
        where: what is said there, or why nothing is.
    """

    number: str
    about: str
    section: str | None
    where: str


def checklist(report: Report) -> list[tuple[Guideline, list[Item]]]:
    """Each guideline with its items in order, and where this report answers them.

    Args:
        report: what the page says.
    """
    answers = _answers(report)
    return [
        (
            guideline,
            [
                Item(number, about, *((answers[key] if key else None) or (None, _AUTHORS)))
                for number, about, key in guideline.items
            ],
        )
        for guideline in GUIDELINES
    ]


def _answers(report: Report) -> dict[str, tuple[str | None, str] | None]:
    """Section and text by key; None where this report does not answer it."""
    context, how = report.context, report.computation
    study, provenance = context.study, context.provenance
    groups = sorted({str(row["column"]).replace("_", " ") for row in report.compared})
    clusters = [name for name in groups if name.replace(" ", "_") in MACHINES]
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
        "internal": ("data", f"the subset scored ({context.split_part}), under Data")
        if context.split_name and how.locked is None
        else None,
        "external": ("thresholds", "this set, with thresholds locked before, under Thresholds")
        if how.locked is not None
        else None,
        "parts": ("data", "numbers of each part, under Data; how: authors")
        if len(context.flow) > 2
        else None,
        "checkpoint": ("method", "the checkpoint's hash, under Methods; access: authors")
        if any("SHA-256" in name for name in provenance) and context.run_id
        else None,
        "outputs": ("method", "every score, in predictions.csv beside this page"),
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
        "machines": ("data", "machines by part, under Data; all else: authors")
        if any(row["characteristic"] in MACHINES for row in context.characteristics)
        else None,
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
        "clusters": ("strata", f"by {', '.join(clusters)}, under Groups") if clusters else None,
        "errors_and_groups": ("errors", "under Errors and Groups; their analysis: authors")
        if report.errors or groups
        else None,
        "lesions": ("screening", "cancers by kind and size, under Screening")
        if report.programme and report.programme.lesions
        else None,
        "programme": ("screening", "per 1,000 women and net benefit, under Screening")
        if report.programme
        else None,
        "no_updating": ("method", "none was done here"),
    }
