"""The JSON Schema of metrics.json: what other programs may rely on."""

from mammo_pd.evaluation.measures import LIFT, OPERATING
from mammo_pd.evaluation.metric_names import METRICS
from mammo_pd.evaluation.screening import OUTCOMES
from mammo_pd.terms import Level

SCHEMA_VERSION = 1

_COUNT: dict[str, object] = {"type": "integer", "minimum": 0}
_SHARE: dict[str, object] = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
_NUMBER: dict[str, object] = {"type": ["number", "null"]}
_TEXT: dict[str, object] = {"type": ["string", "null"]}


def _with_interval(name: str, kind: dict[str, object]) -> dict[str, object]:
    return {name: kind, f"{name}_ci_low": kind, f"{name}_ci_high": kind}


def _object(properties: dict[str, object], required: list[str]) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": required}


def _rates(names: tuple[str, ...]) -> dict[str, object]:
    rates: dict[str, object] = {}
    for name in names:
        rates |= _with_interval(name, _NUMBER if name == "lift" else _SHARE)
    return rates


def metrics_schema() -> dict[str, object]:
    """The schema of ``metrics.json``, JSON Schema 2020-12.

    Shares lie in [0, 1]; null is an undefined value, and ``remarks`` says why. Intervals are 95 %.
    """
    counted: dict[str, object] = {
        "n": _COUNT,
        "n_positive": _COUNT,
        "n_patients": _COUNT,
        "n_positive_patients": _COUNT,
        "prevalence": _SHARE,
        **_with_interval("auc", _SHARE),
    }
    level = dict(counted)
    for metric in METRICS:
        kind = _SHARE if metric.is_share else _NUMBER
        level |= _with_interval(metric.name, kind) if metric.has_interval else {metric.name: kind}
    level |= {"auc_delong_se": _NUMBER, "auc_delong_ci_low": _SHARE, "auc_delong_ci_high": _SHARE}
    point = {"code": _TEXT, "rule": _TEXT, "threshold": {"type": "number"}}
    point |= dict.fromkeys(("tp", "fp", "fn", "tn"), _COUNT) | _rates(OPERATING)
    level |= {
        "operating_points": {"type": "array", "items": _object(point, list(point))},
        "lift": {"type": "array", "items": _object({"share_flagged": _SHARE} | _rates(LIFT), [])},
        "remarks": {"type": "array", "items": {"type": "string"}},
    }
    rates = _with_interval("sensitivity", _SHARE) | _with_interval("specificity", _SHARE)
    outcome: dict[str, object] = {"code": _TEXT, "rule": _TEXT}
    for name in OUTCOMES:
        outcome |= _with_interval(name, _NUMBER)
    lesion = {"column": _TEXT, "value": _TEXT, "level": {"enum": list(Level)}}
    lesion |= dict.fromkeys(("n_positive", "found", "missed"), _COUNT)
    lesion |= _with_interval("sensitivity", _SHARE)
    benefit: dict[str, object] = dict.fromkeys(("threshold_probability", "threshold"), _SHARE)
    benefit |= _with_interval("net_benefit", _NUMBER)
    benefit |= dict.fromkeys(("net_benefit_all", "net_benefit_reader"), _NUMBER)
    programme: dict[str, object] = {
        "level": {"enum": list(Level)},
        "prevalence": _SHARE,
        "per_thousand": {"type": "array", "items": _object(outcome, list(outcome))},
        "lesions": {"type": "array", "items": _object(lesion, list(lesion))},
        "decision_curve": {"type": "array", "items": _object(benefit, list(benefit))},
    }
    stratum = {"column": _TEXT, "value": _TEXT, "level": {"enum": list(Level)}, "remark": _TEXT}
    group = _object(stratum | counted | rates, list(stratum))
    fold = {"level": {"enum": list(Level)}, "fold": _TEXT, "remark": _TEXT}
    within = {"columns": _TEXT, "level": {"enum": list(Level)}, "remark": _TEXT}
    within |= dict.fromkeys(("n_strata", "n_positive_left_out"), _COUNT) | counted
    always = [*counted, "operating_points", "lift", "remarks"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "metrics.json of a mammo-pd report",
        **_object(
            {
                "schema_version": {"const": SCHEMA_VERSION},
                **{one.value: _object(level, always) for one in Level},
                "counts": {"type": "object", "additionalProperties": _COUNT},
                "computation": {"type": "object"},
                "context": {"type": "object"},
                "strata": {"type": "array", "items": group},
                "within": {"type": "array", "items": _object(within, list(within))},
                "folds": {"type": "array", "items": _object(fold | counted, list(fold))},
                "within_folds": {"type": "array", "items": _object(within, list(within))},
                # What a screening programme reads; null with one class only.
                "programme": _object(programme, list(programme)) | {"type": ["object", "null"]},
            },
            ["schema_version", *Level, "counts", "computation", "context", "strata", "folds"],
        ),
    }
