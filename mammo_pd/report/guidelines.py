"""Reporting guidelines: the items of CLAIM, TRIPOD+AI and STARD-AI by their numbers.

Items are named in short, not quoted. Numbers and contents were compared on 2026-11-26 with
transcriptions of the published lists: STARD-AI's of its Table 2, TRIPOD+AI's of the statement's
supplement, CLAIM's item by item of the article. The items that STARD-AI has from STARD 2015 were
also compared with that statement's own table (doi:10.1136/bmj.h5527).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Guideline:
    """A guideline and its items.

    Attributes:
        name: with its year.
        title: of the publication.
        doi: of the publication.
        items: number, what it is about, and the key of its answer; None where only authors can
            answer.
    """

    name: str
    title: str
    doi: str
    items: Sequence[tuple[str, str, str | None]]


CLAIM = Guideline(
    "CLAIM 2024",
    "Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 Update",
    "10.1148/ryai.240300",
    (
        ("1", "title: AI methodology and its kind", None),
        ("2", "structured abstract", None),
        ("3", "background, intended use and clinical role", "intended_use"),
        ("4", "aims, objectives and hypotheses", None),
        ("5", "prospective or retrospective", None),
        ("6", "goal of the study", None),
        ("7", "data sources", None),
        ("8", "inclusion and exclusion criteria", "eligibility"),
        ("9", "preprocessing", "preprocessing"),
        ("10", "selection of subsets of the data", "flow"),
        ("11", "de-identification", "hashed"),
        ("12", "handling of missing data", "missing"),
        ("13", "image acquisition protocol", "machines"),
        ("14", "how the reference standard was obtained", "reference_standard"),
        ("15", "rationale for the reference standard", None),
        ("16", "source of the annotations and annotators' qualifications", None),
        ("17", "annotation of the test set, its tools", None),
        ("18", "variability within and between annotators", None),
        ("19", "assignment to partitions", "split"),
        ("20", "level at which partitions are disjoint", "patients"),
        ("21", "intended sample size", None),
        ("22", "model", "model"),
        ("23", "software and its versions", "version"),
        ("24", "initialisation of the model's parameters", None),
        ("25", "training", None),
        ("26", "selection of the final model", "weights"),
        ("27", "ensembling", "ensemble"),
        ("28", "measures of performance", "discrimination"),
        ("29", "measures of uncertainty and tests of significance", "intervals"),
        ("30", "robustness or sensitivity analysis", "folds"),
        ("31", "explainability", "saliency"),
        ("32", "evaluation on internal data", "internal"),
        ("33", "testing on external data", "external"),
        ("34", "clinical trial registration", None),
        ("35", "numbers included and excluded", "flow"),
        ("36", "characteristics in each partition", "characteristics"),
        ("37", "performance on all partitions", "runs"),
        ("38", "diagnostic performance and its precision", "discrimination"),
        ("39", "failure analysis", "errors"),
        ("40", "limitations", "caveats"),
        ("41", "implications for practice", None),
        ("42", "where the full protocol is", None),
        ("43", "availability of software, model and data", None),
        ("44", "funding and the funders' role", None),
    ),
)

TRIPOD_AI = Guideline(
    "TRIPOD+AI 2024",
    "TRIPOD+AI statement: updated guidance for reporting clinical prediction models that use "
    "regression or machine learning methods",
    "10.1136/bmj-2023-078378",
    (
        ("1", "title", None),
        ("2", "abstract", None),
        ("3a", "healthcare context and rationale", "intended_use"),
        ("3b", "target population, purpose and intended users", "intended_use"),
        ("3c", "known health inequalities", None),
        ("4", "objectives", None),
        ("5a", "sources of data, their rationale and representativeness", None),
        ("5b", "dates of accrual and end of follow-up", "follow_up"),
        ("6a", "setting, number and location of centres", None),
        ("6b", "eligibility", "eligibility"),
        ("6c", "treatments received", None),
        ("7", "data preparation and quality checks", "preprocessing"),
        ("8a", "outcome, its time horizon and its assessment", "reference_standard"),
        ("8b", "who assessed the outcome", None),
        ("8c", "blinding of the assessment of the outcome", None),
        ("9a", "choice of initial predictors (development)", "images_alone"),
        ("9b", "definition of all predictors and their measurement", "images_alone"),
        ("9c", "who assessed the predictors", "images_alone"),
        ("10", "sample size", None),
        ("11", "handling of missing data", "missing"),
        ("12a", "use and partitioning of the data (development)", "split"),
        ("12b", "handling of predictors (development)", "preprocessing"),
        ("12c", "type of model, building steps, internal validation (development)", "model"),
        ("12d", "how heterogeneity between clusters was quantified", "clusters"),
        ("12e", "measures and plots of performance", "discrimination"),
        ("12f", "model updating (evaluation)", "no_updating"),
        ("12g", "how predictions were calculated (evaluation)", "aggregation"),
        ("13", "methods against class imbalance, and recalibration after them", None),
        ("14", "approaches to fairness and their rationale", None),
        ("15", "output of the model, classification and thresholds (development)", "thresholds"),
        ("16", "differences between development and evaluation data", None),
        ("17", "ethical approval and consent", None),
        ("18a", "funding and the funders' role", None),
        ("18b", "conflicts of interest", None),
        ("18c", "where the protocol is", None),
        ("18d", "registration", None),
        ("18e", "availability of the data", None),
        ("18f", "availability of the code", None),
        ("19", "patient and public involvement", None),
        ("20a", "flow of participants", "flow"),
        ("20b", "characteristics of participants", "characteristics"),
        ("20c", "comparison with the development data (evaluation)", "characteristics"),
        ("21", "numbers of participants and events in each analysis", "flow"),
        ("22", "the full model, for predictions in new individuals (development)", "checkpoint"),
        ("23a", "performance with intervals, in subgroups too", "discrimination"),
        ("23b", "heterogeneity of performance between clusters", "clusters"),
        ("24", "results of model updating (evaluation)", "no_updating"),
        ("25", "interpretation, fairness included", None),
        ("26", "limitations", "caveats"),
        ("27a", "handling of poor or missing input in use (development)", None),
        ("27b", "users' interaction and expertise (development)", None),
        ("27c", "next steps for research", None),
    ),
)

STARD_AI = Guideline(
    "STARD-AI 2025, which contains STARD 2015 in other numbers",
    "The STARD-AI reporting guideline for diagnostic accuracy studies using artificial "
    "intelligence",
    "10.1038/s41591-025-03953-8",
    (
        ("1", "title: AI-centred diagnostic accuracy, with a measure of it", None),
        ("2", "abstract", None),
        ("3", "background, intended use and integration into the workflow", "intended_use"),
        ("4", "objectives and hypotheses", None),
        ("5", "planned before or after the tests", None),
        ("6", "ethical approval", None),
        ("7", "eligibility of participants and of data", "eligibility"),
        ("8", "how eligible participants were identified", None),
        ("9", "where and when", None),
        ("10", "consecutive, random or convenience series", None),
        ("11", "source of the data: routine, for the study or open", None),
        ("12", "who annotated, and how", None),
        ("13", "devices that captured the data, software of the index test", "machines"),
        ("14", "acquisition and preprocessing", "preprocessing"),
        ("15a", "index test", "model"),
        ("15b", "how the index test was developed, sample sizes", "parts"),
        ("15c", "cut-offs of the index test, prespecified or not", "thresholds"),
        ("15d", "end users and their expertise", None),
        ("16a", "reference standard", "reference_standard"),
        ("16b", "rationale for the reference standard", None),
        ("16c", "cut-offs of the reference standard", None),
        ("17a", "what readers of the index test knew", "images_alone"),
        ("17b", "what assessors of the reference standard knew", None),
        ("18", "methods of estimation and comparison", "intervals"),
        ("19", "indeterminate results", "missing"),
        ("20", "missing data", "missing"),
        ("21", "analyses of variability, prespecified or not", "strata"),
        ("22", "intended sample size", None),
        ("23", "analysis of errors, of bias and of fairness", "errors_and_groups"),
        ("24", "flow of participants, as a diagram", "flow"),
        ("25", "characteristics of training, validation and test sets", "characteristics"),
        ("26a", "severity of disease in those with it", "lesions"),
        ("26b", "alternative diagnoses in those without", None),
        ("27", "interval and interventions between the tests", "follow_up"),
        ("28", "whether the sets represent the intended population", None),
        ("29", "how an external set differs from the others", None),
        ("30", "cross tabulation", "confusion"),
        ("31", "estimates and their precision", "discrimination"),
        ("32", "adverse events", None),
        ("33", "limitations", "caveats"),
        ("34", "implications for practice", "programme"),
        ("35", "ethics of use and fairness", None),
        ("36", "registration", None),
        ("37", "where the protocol is", None),
        ("38", "funding and the funders' role", None),
        ("39", "commercial interests", None),
        ("40a", "availability of data and code", None),
        ("40b", "whether outputs are stored and auditable", "outputs"),
    ),
)

GUIDELINES = (CLAIM, TRIPOD_AI, STARD_AI)
