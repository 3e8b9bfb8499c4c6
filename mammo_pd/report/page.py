"""The report's page: one self-contained HTML document, no script, nothing fetched from anywhere."""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from mammo_pd.evaluation.levels import Aggregation
from mammo_pd.evaluation.measures import Estimate, LevelResults
from mammo_pd.report.figures import Picture, with_interval
from mammo_pd.report.markup import document, inlined, table
from mammo_pd.terms import Level

if TYPE_CHECKING:
    from mammo_pd.report.content import Comparison, Report

_NAMES = {
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
    "brier": "Brier score",
    "calibration_slope": "Calibration slope",
    "calibration_intercept": "Calibration intercept",
}
# A rare disease makes small predictive values.
_DIGITS = {"sensitivity": 2, "specificity": 2, "recall_rate": 2, "ppv": 3, "npv": 3}
_CALIBRATION = ("brier", "calibration_slope", "calibration_intercept")

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

_HOW_OVERLAID = (
    "each point is one threshold: how many positives it finds (up) against how many negatives it "
    "flags (right). Where one line lies above another, that model is better there; lines that "
    "cross are better in different places. The table above says whether the difference in area is "
    "more than chance."
)
_HOW = {
    "roc": (
        "each point is one threshold: how many positives it finds (up) against how many negatives "
        "it flags (right). The dashed diagonal is guessing; the further above it, the better. The "
        "shade is the 95 % interval of the sensitivity at each specificity. Marks are thresholds "
        "chosen on validation images, so they may lie off the place that would be best here."
    ),
    "pr": (
        "of all that is flagged, the share that is truly positive, against the share of positives "
        "found. The dashed line is the prevalence, what flagging at random would give. Precision "
        "depends on the prevalence: compare it only between sets with the same one."
    ),
    "calibration": (
        "units in up to ten groups by score, of 20 units or more. On the dashed line a score of "
        "0.2 means that 20 in 100 are positive; below the line scores are too high, above it too "
        "low. Slope below 1: scores are too extreme; intercept below 0: too high on average."
    ),
    "scores": (
        "the scores of positives go up, those of negatives down, each class adding up to 1. The "
        "less the two share a range, the better a threshold can tell them apart."
    ),
    "strata": (
        "the square is the AUC within a group, the line its 95 % interval, the upright line the "
        "AUC of all; positives / units stand by the name. Intervals that overlap prove "
        "neither a difference nor its absence, and among many groups one will stray by chance."
    ),
    "folds": (
        "the AUC of each fold's held-out images; the upright line is the AUC of all folds pooled. "
        "Pooling compares scores of different models: where it lies below most folds, their scales "
        "differ."
    ),
}


def page(report: "Report", pictures: Sequence[Picture]) -> str:
    """The whole document.

    Args:
        report: what to say.
        pictures: the plots, inlined where they belong.
    """
    drawn = {picture.name: picture for picture in pictures}
    sections = [
        ("result", "Result", _result(report)),
        ("data", "Data", _data(report)),
        ("discrimination", "Discrimination", _discrimination(report, drawn)),
        ("thresholds", "Thresholds", _thresholds(report)),
        ("calibration", "Calibration", _calibration(report, drawn)),
    ]
    if report.strata:
        sections.append(("strata", "Groups", _strata(report, drawn)))
    if report.folds:
        sections.append(("folds", "Folds", _figure(drawn["folds"])))
    sections.append(("errors", "Errors worth looking at", _errors(report)))
    sections.append(("method", "How this was computed", _method(report)))
    return document(report.context, sections)


def comparison_page(comparison: "Comparison", pictures: Sequence[Picture]) -> str:
    """The document that compares models on the same images."""
    paired = table(
        "First less second; intervals of 95 %",
        ["level", "first", "second", "difference in AUC, by patient", "DeLong", "DeLong's p"],
        [
            [
                str(row["level"]),
                str(row["first"]),
                str(row["second"]),
                _signed(row, "difference_ci"),
                _signed(row, "delong_ci"),
                "–" if row["delong_p"] is None else f"{row['delong_p']:.3g}",
            ]
            for row in comparison.paired
        ],
        dense=True,
    )
    alone = table(
        "Each model alone",
        ["level", "model", "n", "positive", "AUC [95 %]"],
        [
            [
                str(row["level"]),
                str(row["model"]),
                f"{row['n']:,}",
                f"{row['n_positive']:,}",
                with_interval(row),
            ]
            for row in comparison.alone
        ],
    )
    how = (
        '<p class="how">both models saw the same units and the same draws of patients, so the '
        "interval is that of the difference itself. Where it includes 0, these data do not tell "
        "the two apart; that is not the same as showing them equal. DeLong takes units as "
        "independent, which holds at patient level.</p>"
    )
    left_out = (
        f"<p>{comparison.left_out:,} images that not every model scored are in no figure.</p>"
        if comparison.left_out
        else ""
    )
    method = (
        f"<ul><li>{comparison.resamples:,} resamples of patients, seed {comparison.seed}; a unit's "
        f"score is {escape(_AGGREGATION[comparison.aggregation])}.</li>"
        f"{''.join(f'<li>{escape(note)}</li>' for note in comparison.context.notes)}</ul>"
    )
    sections = [
        ("difference", "Difference", left_out + paired + how),
        ("curves", "Curves", "".join(inlined(picture, _HOW_OVERLAID) for picture in pictures)),
        ("alone", "Each alone", alone),
        ("method", "How this was computed", method),
    ]
    return document(comparison.context, [section for section in sections if section[2]])


def _signed(row: Mapping[str, Estimate], ends: str) -> str:
    value, low, high = row["difference"], row[f"{ends}_low"], row[f"{ends}_high"]
    if value is None:
        return "–"
    return f"{value:+.3f}" + ("" if low is None else f"\n[{low:+.3f}, {high:+.3f}]")


def _result(report: "Report") -> str:
    tiles = "".join(_tile(level, one) for level, one in report.levels.items())
    said = _in_words(report)
    label = report.context.label_definition
    meaning = f"<p>The label is {escape(label)}.</p>" if label else ""
    return f'{meaning}<div class="tiles">{tiles}</div>{said}{_remarks(report.levels)}'


def _tile(level: Level, one: LevelResults) -> str:
    figures = one.figures
    auc = "–" if figures["auc"] is None else f"{figures['auc']:.3f}"
    low, high = figures["auc_ci_low"], figures["auc_ci_high"]
    interval = "no interval" if low is None else f"{low:.3f} to {high:.3f} (95 %)"
    return (
        f'<div class="tile"><span class="level">{level}</span> AUC<b>{auc}</b>'
        f"<small>{interval}</small><small>{figures['n']:,} {_PLURAL[level]}, "
        f"{figures['n_positive']:,} positive</small></div>"
    )


def _headline(report: "Report") -> Level:
    """The level that sentences speak of: exams, as a radiologist recalls a woman and not a film."""
    return Level.EXAM


def _in_words(report: "Report") -> str:
    level = _headline(report)
    one = report.levels[level]
    auc, low, high = (one.figures[name] for name in ("auc", "auc_ci_low", "auc_ci_high"))
    if not isinstance(auc, float):
        return ""
    words = (
        f"<p>Take one positive and one negative {level} at random: the model scores the positive "
        f"one higher {auc * 100:.0f} times in 100 (guessing: 50)."
    )
    if isinstance(low, float) and isinstance(high, float):
        if low > 0.5:
            words += " The interval lies above 0.5: this is better than guessing."
        elif high < 0.5:
            words += (
                " The interval lies <strong>below</strong> 0.5: the scores point the wrong way; "
                "look for labels or scores that are turned round."
            )
        else:
            words += (
                " The interval includes 0.5: on these data the model is <strong>not shown to be "
                "better than guessing</strong>."
            )
    words += "</p>"
    youden = next((point for point in one.operating_points if point["code"] == "youden"), None)
    if youden is not None:
        prevalence = report.computation.prevalence
        at = "" if prevalence is None else f" where {prevalence:.2g} of them are positive"
        found, clear = float(youden["sensitivity"] or 0), float(youden["specificity"] or 0)
        words += (
            f"<p>At Youden's threshold, chosen on validation: of 100 positive {_PLURAL[level]} it "
            f"flags {found * 100:.0f} and misses {100 - round(found * 100)}; of 100 negative ones "
            f"it flags {100 - round(clear * 100)} for nothing. It flags "
            f"{float(youden['recall_rate'] or 0):.0%} of all{at}.</p>"
        )
    return words


def _remarks(levels: Mapping[Level, LevelResults]) -> str:
    said: dict[str, list[str]] = {}
    for level, one in levels.items():
        for remark in one.remarks:
            said.setdefault(remark, []).append(level)
    if not said:
        return ""
    items = "".join(
        f'<li>{escape(remark)} <span class="facts">({", ".join(where)} level)</span></li>'
        for remark, where in said.items()
    )
    return f"<h3>To be read with care</h3><ul>{items}</ul>"


def _data(report: "Report") -> str:
    context, counts = report.context, report.counts
    facts = [
        ("Split", context.split_name),
        ("Split hash", context.split_hash),
        ("Part scored", context.split_part),
        ("Preprocessing", context.store_fingerprint),
    ]
    told = "".join(
        f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts if value is not None
    )
    units = table(
        "What is judged",
        ["level", "n", "positive", "prevalence", "patients", "patients with a positive"],
        [
            [
                level,
                f"{one.figures['n']:,}",
                f"{one.figures['n_positive']:,}",
                f"{float(one.figures['prevalence'] or 0):.2%}",
                f"{one.figures['n_patients']:,}",
                f"{one.figures['n_positive_patients']:,}",
            ]
            for level, one in report.levels.items()
        ],
    )
    kept = [
        (
            counts["incomplete_exams"],
            f"of {counts['exams']:,} exams lack one of the four standard images (L-CC, L-MLO, "
            "R-CC, R-MLO), or their views are not known; they are kept.",
        ),
        (
            counts["images_without_laterality"],
            "images have no laterality; at breast level each stands for itself.",
        ),
        (
            counts["images_without_exam_id"],
            "images have no exam; those of one patient are taken as one exam.",
        ),
        (counts["images_without_label"], "images have no label and are in no figure."),
        (
            counts["training_images_left_out"],
            "training images were handed in and are in no figure.",
        ),
    ]
    notes = "".join(f"<li>{number:,} {text}</li>" for number, text in kept if number)
    parts = ""
    if context.parts:
        columns = list(context.parts[0])
        parts = table(
            "The split",
            [name.replace("_", " ") for name in columns],
            [[_plain(row.get(name)) for name in columns] for row in context.parts],
        )
    excluded = ""
    if context.exclusions:
        excluded = table(
            "Images left out before training, by reason",
            ["reason", "images"],
            [[reason.replace("_", " "), f"{n:,}"] for reason, n in context.exclusions.items()],
        )
    return (
        (f"<dl>{told}</dl>" if told else "")
        + units
        + (f"<ul>{notes}</ul>" if notes else "")
        + parts
        + excluded
    )


def _discrimination(report: "Report", drawn: Mapping[str, Picture]) -> str:
    return (
        "".join(_figure(drawn[name]) for name in ("roc", "pr") if name in drawn)
        + _figures_table(
            "Discrimination, with 95 % intervals by patient",
            report.levels,
            [name for name in _NAMES if name not in _CALIBRATION],
            delong=True,
        )
        + _lift(report)
        + _figure(drawn["scores"])
    )


def _lift(report: "Report") -> str:
    """The table for the headline level; the others are in lift.csv."""
    level = _headline(report)
    rows = report.levels[level].lift
    if not rows:
        return ""
    prevalence = report.computation.prevalence
    at = "as in these data" if prevalence is None else f"re-weighted to {prevalence:g}"
    return table(
        f"Flagging only the highest scores, {level} level, prevalence {at}",
        ["share flagged", "sensitivity", "PPV", "lift (PPV / prevalence)"],
        [
            [
                f"{float(row['share_flagged'] or 0):.0%}",
                with_interval(row, "sensitivity"),
                with_interval(row, "ppv"),
                with_interval(row, "lift", 1),
            ]
            for row in rows
        ],
    )


def _figures_table(
    caption: str,
    levels: Mapping[Level, LevelResults],
    names: Iterable[str],
    *,
    delong: bool = False,
) -> str:
    rows = []
    for name in names:
        if any(name in one.figures for one in levels.values()):
            cells = [
                with_interval(one.figures, name) if name in one.figures else "–"
                for one in levels.values()
            ]
            rows.append([_NAMES[name], *cells])
            if delong and name == "auc":
                rows.append(["AUC, DeLong's interval", *map(_delong, levels.values())])
    return table(caption, ["", *levels], rows)


def _delong(one: LevelResults) -> str:
    low, high = (one.figures.get(f"auc_delong_ci_{end}") for end in ("low", "high"))
    return "–" if low is None else f"[{low:.3f}, {high:.3f}]"


def _thresholds(report: "Report") -> str:
    if not any(one.operating_points for one in report.levels.values()):
        return (
            "<p>No threshold is given: there are no validation images with both classes to choose "
            "one on, and choosing it on the images that it is judged on would flatter it. Hand in "
            "validation rows (<code>split</code> = <code>val</code>) to get this section.</p>"
        )
    prevalence = report.computation.prevalence
    at = "" if prevalence is None else f", at a prevalence of {prevalence:g}"
    blocks = []
    for level, one in report.levels.items():
        listed = table(
            f"Each threshold chosen on validation and applied here, {level} level{at}",
            [
                "chosen for",
                "threshold",
                "sensitivity",
                "specificity",
                "flagged",
                "PPV",
                "NPV",
                "TP",
                "FP",
                "FN",
                "TN",
            ],
            [
                [
                    str(point["rule"]),
                    f"{point['threshold']:.4g}",
                    *(
                        with_interval(point, name, digits).replace(" [", "\n[")
                        for name, digits in _DIGITS.items()
                    ),
                    *(f"{point[name]:,}" for name in ("tp", "fp", "fn", "tn")),
                ]
                for point in one.operating_points
            ],
            dense=True,
        )
        opened = " open" if level is _headline(report) else ""
        blocks.append(f"<details{opened}><summary>Per {level}</summary>{listed}</details>")
    return (
        '<p class="how">a unit is flagged when its score is at least the threshold. The rule was '
        f"met on {report.computation.thresholds_from:,} validation images of other patients; here "
        "is what the same threshold does on these. A specificity that drifts from the one asked "
        "for shows how far a threshold carries over.</p>" + "".join(blocks)
    )


def _calibration(report: "Report", drawn: Mapping[str, Picture]) -> str:
    figure = _figure(drawn["calibration"]) if "calibration" in drawn else ""
    return figure + _figures_table("Calibration", report.levels, _CALIBRATION)


def _strata(report: "Report", drawn: Mapping[str, Picture]) -> str:
    listed = table(
        "AUC by group",
        ["group", "value", "per", "n", "positive", "AUC [95 %]", ""],
        [
            [
                str(row["column"]).replace("_", " "),
                str(row["value"]),
                str(row["level"]),
                f"{row['n']:,}",
                f"{row['n_positive']:,}",
                with_interval(row),
                str(row["remark"] or ""),
            ]
            for row in report.strata
        ],
    )
    return _figure(drawn["strata"]) + f"<details><summary>As a table</summary>{listed}</details>"


def _errors(report: "Report") -> str:
    listed = table(
        "By the model's own score, image level",
        ["kind", "image", "side", "view", "score"],
        [
            [
                str(row["kind"]),
                str(row["image_id"]),
                str(row["laterality"] or "–"),
                str(row["view"] or "–"),
                f"{row['score']:.4f}",
            ]
            for row in report.errors
        ],
    )
    return (
        '<p class="how">the negatives that the model is surest are positive, and the positives '
        "that it is surest are negative. Look at these first: wrong labels, markers and poor "
        f"images show here.</p>{_gallery(report)}"
        f"<details><summary>The list</summary>{listed}</details>"
    )


def _gallery(report: "Report") -> str:
    rows: dict[str, list[str]] = {}
    for row in report.errors:
        png = report.thumbnails.get(str(row["image_id"]))
        if png is None:
            continue
        where = " ".join(str(part) for part in (row["laterality"], row["view"]) if part)
        said = f"{row['kind']}, {where or 'view not known'}, score {row['score']:.3f}"
        data = b64encode(png).decode("ascii")
        rows.setdefault(str(row["kind"]), []).append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{escape(said)}">'
            f"<figcaption>{escape(where)} {row['score']:.3f}<br>"
            f"<code>{escape(str(row['image_id']))}</code></figcaption></figure>"
        )
    heading = {
        "false alarm": "Negatives with the highest scores",
        "miss": "Positives with the lowest scores",
    }
    told = report.context.pictures
    legend = f"<p>{escape(told)}</p>" if rows and told else ""
    return legend + "".join(
        f'<h3>{heading[kind]}</h3><div class="gallery">{"".join(shown)}</div>'
        for kind, shown in rows.items()
    )


def _checklist(report: "Report") -> str:
    """What readers of CLAIM and TRIPOD+AI look for, and where it stands or that it is missing."""
    context = report.context
    groups = sorted({str(row["column"]).replace("_", " ") for row in report.strata})
    ours = "to be told by the authors; not known here"
    rows = [
        ("What a positive is (reference standard)", context.label_definition or ours),
        ("Source, period and eligibility of the patients", ours),
        ("Sample size, and how it was arrived at", f"size under Data; reason {ours}"),
        (
            "Images left out, by reason",
            "under Data" if context.exclusions else "none handed in to this report",
        ),
        (
            "How patients were parted for training and testing",
            f"split {context.split_name or 'not named'}, hash {context.split_hash or 'not given'}",
        ),
        ("Model", context.model or ours),
        ("Preprocessing", context.store_fingerprint or ours),
        (
            "Missing labels",
            f"{report.counts['images_without_label']:,} images without label, in no figure",
        ),
        ("Discrimination with uncertainty", "under Discrimination"),
        ("Calibration", "under Calibration"),
        (
            "Decision thresholds chosen apart from the test images",
            "under Thresholds" if report.computation.thresholds_from else "none chosen",
        ),
        (
            "Performance in subgroups (fairness)",
            f"under Groups: {', '.join(groups)}" if groups else "no column to group by",
        ),
        ("Failures looked at", "listed under Errors; what they show is for the authors to say"),
        ("Validation at another site", ours),
    ]
    listed = table("What reviewers look for", ["item", "here"], rows, prose=True)
    return (
        "<details><summary>Checklist, in the manner of CLAIM and TRIPOD+AI</summary>"
        f"{listed}</details>"
    )


def _method(report: "Report") -> str:
    how = report.computation
    lines = [
        f"The score of a breast, exam or patient is {_AGGREGATION[how.aggregation]}; it is "
        "positive when any of its images is.",
        f"Intervals come from {how.resamples:,} resamples of patients with replacement (seed "
        f"{how.seed}); all images of a patient are drawn together. That of the AUC is "
        "bias-corrected and accelerated (BCa), since an AUC's resamples are skewed; all others are "
        "the 2.5th and 97.5th percentiles.",
        "DeLong's interval takes units as independent of one another, which the images and "
        "breasts of one patient are not; it is right at patient level.",
        "Calibration intervals are normal, with standard errors robust to patients having several "
        "units.",
        "Thresholds are held fixed when patients are resampled.",
    ]
    if how.prevalence is not None:
        lines.append(
            "PPV, NPV, the share flagged, the lift and one average precision are re-weighted to a "
            f"prevalence of {how.prevalence:g}."
        )
    lines.append("All figures can be redone from predictions.csv beside this page.")
    lines += list(report.context.notes)
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>{_checklist(report)}"


def _plain(value: Estimate) -> str:
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else str(value)


def _figure(picture: Picture) -> str:
    return inlined(picture, _HOW[picture.name])
