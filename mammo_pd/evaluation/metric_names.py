"""The numbers of a level: what each is called on the page, and what values it takes.

``mammo_pd.evaluation.measures`` computes them; the page and the schema of metrics.json read this.
"""

from dataclasses import dataclass
from enum import StrEnum

from mammo_pd.evaluation.measures import PARTIAL_AUC, PARTIAL_FROM
from mammo_pd.evaluation.thresholds import FIXED_RATES


class Part(StrEnum):
    """The section of the page that shows a number."""

    DISCRIMINATION = "discrimination"
    CALIBRATION = "calibration"


@dataclass(frozen=True)
class Metric:
    """A number of a level.

    Attributes:
        name: its key in metrics.json; its 95 % interval is ``NAME_ci_low`` and ``NAME_ci_high``.
        title: on the page.
        part: the section that shows it.
        is_share: whether it lies in [0, 1].
        has_interval: whether it may have one.
    """

    name: str
    title: str
    part: Part
    is_share: bool = True
    has_interval: bool = True


# In the order of the page.
METRICS = (
    Metric("auc", "AUC", Part.DISCRIMINATION),
    Metric(
        PARTIAL_AUC,
        f"Partial AUC, specificity {PARTIAL_FROM * 100:.0f}–100 % (0.5 is chance)",
        Part.DISCRIMINATION,
    ),
    Metric("average_precision", "Average precision", Part.DISCRIMINATION),
    Metric(
        "average_precision_at_prevalence", "Average precision, re-weighted", Part.DISCRIMINATION
    ),
    Metric("pf1", "Probabilistic F1 (RSNA)", Part.DISCRIMINATION),
    *(
        Metric(
            f"sensitivity_at_specificity_{rate * 100:.0f}",
            f"Sensitivity at {rate * 100:.0f} % specificity",
            Part.DISCRIMINATION,
        )
        for rate in FIXED_RATES
    ),
    *(
        Metric(
            f"specificity_at_sensitivity_{rate * 100:.0f}",
            f"Specificity at {rate * 100:.0f} % sensitivity",
            Part.DISCRIMINATION,
        )
        for rate in FIXED_RATES
    ),
    Metric(
        "specificity_at_reader_sensitivity",
        "Specificity at the radiologists' sensitivity",
        Part.DISCRIMINATION,
    ),
    Metric(
        "recall_rate_at_reader_sensitivity",
        "Share flagged at the radiologists' sensitivity",
        Part.DISCRIMINATION,
    ),
    Metric(
        "sensitivity_at_reader_specificity",
        "Sensitivity at the radiologists' specificity",
        Part.DISCRIMINATION,
    ),
    Metric("brier", "Brier score", Part.CALIBRATION),
    Metric(
        "brier_of_prevalence",
        "Brier score of the prevalence alone",
        Part.CALIBRATION,
        has_interval=False,
    ),
    Metric(
        "expected_observed_ratio",
        "Expected over observed positives (E:O)",
        Part.CALIBRATION,
        is_share=False,
    ),
    Metric("calibration_slope", "Calibration slope", Part.CALIBRATION, is_share=False),
    Metric("calibration_intercept", "Calibration intercept", Part.CALIBRATION, is_share=False),
)


def titles() -> dict[str, dict[str, str]]:
    """The title of each metric by the part of the page, then by name."""
    return {
        part.value: {one.name: one.title for one in METRICS if one.part is part} for part in Part
    }
