"""CSAW-CC, cases and controls of the Cohort of Screen-Aged Women (Karolinska): one row per image.

- Licence: on request to Karolinska Institutet (kib.ki.se/node/2734).
- Counts: none stated in a source that we could read. Others counted 98,788 images, 24,694 exams,
  8,723 women, 873 of them with cancer, in the set's table. We had no table.
- Label: a woman with a diagnosis (``x_case``) has earlier exams too, so three labels are in use,
  all for the breast in which the cancer was found (``x_cancer_laterality``). ``screen_detected``:
  diagnosed within 60 days of this exam (``rad_timing`` 1); that breast has no label in her other
  exams, since nobody knows whether the cancer is visible there. ``within_2_years``: diagnosed
  within 729 days (1 or 2, so interval cancers too); earlier exams are negative. ``ever``: any exam
  before the diagnosis. The last two are risk labels: never compare them with detection. Her other
  breast, and all images of controls, are negative.
- Known faults: all cases but only a sample of controls are included, so 10 % of the women have
  cancer, which is not a screening prevalence. The date in a file name is a placeholder; exams are
  identified by year, and three are said to have eight images. Age is given in two bands.
- Columns: as reported by several public readers of CSAW-CC_breast_cancer_screening_data.csv and its
  codebook. Dembrower et al., Journal of Digital Imaging 33:408 (2020), describes the cohort.
"""

from pathlib import Path

import pandas as pd

from mammo_pd.data.sources.source import Source
from mammo_pd.data.sources.tables import choose, codes, read_table

_TABLE = "CSAW-CC_breast_cancer_screening_data.csv"
_COLUMNS = (
    "anon_patientid",
    "exam_year",
    "imagelaterality",
    "viewposition",
    "anon_filename",
    "x_case",
    "x_cancer_laterality",
    "rad_timing",
)
_LABEL_BY_TIMING = {
    "screen_detected": {"1": "1"},
    "within_2_years": {"1": "1", "2": "1", "3": "0"},
    "ever": {"1": "1", "2": "1", "3": "1", "": "1"},
}
_TIMING = {"1": "within 60 days", "2": "60 to 729 days", "3": "730 days or more"}
_AGE = {"1": "40-55", "2": "55+"}
_CANCER = {"1": "in situ", "2": "invasive <=15 mm", "3": "invasive >15 mm"}


def read(table: Path, definition: str) -> pd.DataFrame:
    """Read the set's table into label rows, matched by ``path`` (the file name).

    Args:
        table: CSAW-CC_breast_cancer_screening_data.csv.
        definition: ``screen_detected``, ``within_2_years`` or ``ever``.

    Raises:
        InputError: the table lacks a column.
    """
    frame = read_table(table, _COLUMNS, _TABLE)
    for name in (*_COLUMNS, "x_age", "x_type", "x_lymphnode_met", "rad_recall"):
        if name in frame.columns:
            frame[name] = codes(frame[name])
    breast = frame["imagelaterality"].str.upper().str[:1]
    cancer = frame["x_cancer_laterality"].str.upper().str[:1]
    is_case, is_control = frame["x_case"] == "1", frame["x_case"] == "0"
    label = frame["rad_timing"].map(_LABEL_BY_TIMING[definition]).fillna("")
    label = label.where(is_case & (breast == cancer), "")
    # Without the side of the cancer, a case says nothing about either breast.
    other = is_case & cancer.isin(("L", "R")) & breast.isin(("L", "R")) & (breast != cancer)
    label[is_control | other] = "0"
    rows = pd.DataFrame(
        {
            "path": frame["anon_filename"],
            "patient_id": frame["anon_patientid"],
            "exam_id": frame["anon_patientid"] + "/" + frame["exam_year"],
            "laterality": frame["imagelaterality"],
            "view": frame["viewposition"],
            "label": label,
            "exam_year": frame["exam_year"],
            "case": frame["x_case"],
            "time_to_diagnosis": frame["rad_timing"].map(_TIMING).fillna(""),
            **choose(
                frame,
                {
                    "rad_recall": "recalled",
                    "x_lymphnode_met": "lymph_node",
                    "libra_percentdensity": "percent_density",
                },
            ),
        }
    )
    for column, new, words in (
        ("x_age", "age_band", _AGE),
        ("x_type", "cancer_type", _CANCER),
    ):
        if column in frame.columns:
            rows[new] = frame[column].map(words).fillna("")
    return rows


SOURCE = Source(
    name="csaw-cc",
    title="CSAW-CC",
    table=_TABLE,
    licence="on request to Karolinska Institutet",
    reference="Dembrower et al., Journal of Digital Imaging 33:408 (2020)",
    definitions={
        "screen_detected": "positive where cancer was found in this breast within 60 days of the "
        "exam; no label for that breast in earlier exams",
        "within_2_years": "positive where cancer was found in this breast within 729 days of the "
        "exam (risk and detection together)",
        "ever": "positive where cancer was found in this breast at any time after the exam (risk)",
    },
    read=read,
)
